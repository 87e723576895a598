//! A share in a tensor group: its loading, and what its leader orders.

use bytes::Bytes;
use engine::tensor::{Exchange, TensorShare, kv_page_bytes};
use engine::{Class, Limits};
use litemap::LiteMap;
use model::Manifest;
use model::tensor::{Division, TensorForm};
use protocol::Assignment;
use worker_core::{Shape, ShardKey};

use crate::held::{Computer, Held, LoadError, Loaded, Shards};
use crate::source::{Blobs, Source};

impl Shards {
    /// Loads one rank's share of an assignment's layers; `source` has its blobs, the manifest
    /// among them, and what is kept of them is copied out. The other ranks are reached through
    /// `exchange`.
    ///
    /// # Errors
    /// Whatever makes it impossible; nothing is held then that was not before.
    pub async fn load_rank(
        &mut self,
        shard: ShardKey,
        assignment: &Assignment,
        source: &mut impl Source,
        exchange: Box<dyn Exchange>,
    ) -> Result<Shape, LoadError> {
        let refused = |reason: String| LoadError::Engine(reason);
        let tensor = assignment.tensor.as_ref();
        let tensor = tensor.ok_or_else(|| refused("it is no share of a tensor group".into()))?;
        #[cfg_attr(not(feature = "gpu"), expect(irrefutable_let_patterns, reason = "no GPU"))]
        let &Computer::Cpu { threads } = &self.computer else {
            return Err(refused("only CPUs take part in tensor groups".into()));
        };
        let manifest = source.whole(&assignment.manifest.hash).await?;
        let manifest = Manifest::from_bytes((*manifest).as_ref())
            .map_err(|error| LoadError::Manifest(error.to_string()))?;
        let class = Class::from_name(&assignment.class)
            .ok_or_else(|| LoadError::Class(assignment.class.clone()))?;
        let form = TensorForm::from_name(&tensor.form)
            .ok_or_else(|| refused(format!("shares are not joined by {} here", tensor.form)))?;
        let rank = tensor.rank as usize;
        let division = Division::of(&manifest, form, &tensor.weights)
            .map_err(|error| refused(error.to_string()))?;
        let span = assignment.span.first..assignment.span.end;
        let parts = manifest.parts.len() as u32;
        if rank >= division.ranks.len() || span.end > parts {
            return Err(refused(format!("no rank {rank}, or no parts to {}", span.end)));
        }
        let weights = division.weight_bytes(&manifest, span.clone(), rank);
        let page = kv_page_bytes(&manifest, span.clone(), class, &division, rank);
        let kv = u64::from(assignment.kv_pages).saturating_mul(page);
        let (lent, held) = (self.memory_bytes, self.memory_used());
        if held.saturating_add(weights).saturating_add(kv) > lent {
            return Err(LoadError::Memory { weights, kv, lent, held });
        }
        let mut blobs = Blobs::new();
        for blob in &assignment.blobs {
            blobs.insert(blob.hash.clone(), source.whole(&blob.hash).await?);
        }
        let get = |hash: &str| blobs.get(hash).cloned();
        let share = TensorShare { form, weights: tensor.weights.clone(), rank };
        let limits = Limits::new(assignment.kv_pages, threads);
        let loaded =
            engine::Shard::load_rank(&manifest, span, class, get, limits, &share, exchange)
                .map_err(|error| refused(error.to_string()))?;
        let state = Ok(Loaded::Rank(Box::new(loaded)));
        // Its weights are its own, whoever else holds the same layers.
        let own_bytes = weights + kv;
        let dims = manifest.dims;
        let (d_model, blobs) = (dims.d_model as usize, LiteMap::new());
        self.held.insert(shard, Held { state, d_model, blobs, own_bytes });
        Ok(Shape { layers: dims.layers, d_model: dims.d_model, vocab: dims.vocab })
    }

    /// Carries out an order of a tensor group's leader.
    ///
    /// # Errors
    /// Why the shard takes no more orders, in words.
    pub fn follow(&mut self, shard: ShardKey, order: &Bytes) -> Result<(), String> {
        let held = self.held.get_mut(&shard).map(|held| &mut held.state);
        match held {
            Some(Ok(Loaded::Rank(shard))) => shard.follow(order).map_err(|e| e.to_string()),
            Some(Err(reason)) => Err(reason.clone()),
            Some(Ok(_)) => Err("it is no share of a tensor group".into()),
            None => Err("it is not loaded".into()),
        }
    }
}
