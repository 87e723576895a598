//! Loading a rank's shard, leading and following.

use std::ops::Range;

use model::Manifest;
use model::manifest::Dims;
use model::tensor::Division;

use super::order::{self, Before, Order};
use super::{Exchange, ExchangeError, FollowError, Group, TensorShare, cut};
use crate::run::GroupedHeads;
use crate::shard::Shard;
use crate::types::*;
use crate::weights::{Weights, check_manifest};

impl Shard {
    /// Loads a rank's part of the layers `span`; see [`crate::tensor`]. Copies what it keeps out
    /// of the blobs, of which it holds one layer's at a time.
    ///
    /// The span has layers only, `limits.kv_pages_max` is the same on all ranks (a page is
    /// smaller here: [`crate::tensor::kv_page_bytes`]), and so are manifest, span, class, form
    /// and weights.
    ///
    /// # Errors
    /// As [`Shard::load`]; [`LoadError::Division`] where the model cannot be divided so,
    /// [`LoadError::Ends`] where the span has the embedding or the head.
    pub fn load_rank(
        manifest: &Manifest,
        span: Range<u32>,
        class: Class,
        mut blobs: impl FnMut(&str) -> Option<BlobBytes>,
        limits: Limits,
        share: &TensorShare,
        exchange: Box<dyn Exchange>,
    ) -> Result<Shard, LoadError> {
        check_manifest(manifest, &span)?;
        if span.start == 0 || span.end > manifest.head_part() {
            return Err(LoadError::Ends { start: span.start, end: span.end });
        }
        let (rank, ranks) = (share.rank, share.weights.len());
        let division = Division::of(manifest, share.form, &share.weights)?;
        let Some(own) = division.ranks.get(rank) else {
            return Err(LoadError::Rank { rank, ranks });
        };
        let whole = &manifest.dims;
        let weights = Weights::bind(manifest, span, &mut blobs, &|layer| {
            cut::cut(layer, whole, &division, rank)
        })?;
        let dims = Dims {
            heads: own.heads.len() as u32,
            kv_heads: own.kv_heads.len() as u32,
            d_ff: own.ffn.len() as u32,
            ..*whole
        };
        let per_kv_head = whole.heads / whole.kv_heads;
        let heads = GroupedHeads {
            heads: own.heads.len(),
            per_kv_head: per_kv_head as usize,
            skipped: (own.heads.start - own.kv_heads.start * per_kv_head) as usize,
        };
        let mut shard =
            Shard::assemble(manifest, weights, dims, heads, class, limits, Some(share.form))?;
        shard.group = Some(Group::new(whole, &division, rank, exchange));
        Ok(shard)
    }

    /// This shard's rank in its tensor group, if it is of one.
    pub fn rank(&self) -> Option<usize> {
        self.group.as_ref().map(|group| group.rank)
    }

    /// Carries out an order of the leader. A step that the leader's caller gets an error for,
    /// and which leaves the group whole, is none here: this rank has taken it back as well.
    ///
    /// # Errors
    /// [`FollowError`], and every later order gives one, too.
    pub fn follow(&mut self, order: &[u8]) -> Result<(), FollowError> {
        let group = self.group.as_ref().filter(|group| group.rank > 0);
        let group = group.ok_or(FollowError::NoFollower)?;
        if let Some(error) = &group.broken {
            return Err(error.clone().into());
        }
        let carried_out = self.carry_out(order);
        if let (Err(error), Some(group)) = (&carried_out, &mut self.group) {
            group.broken.get_or_insert_with(|| ExchangeError::Lost {
                rank: 0,
                reason: format!("an order was not carried out: {error}"),
            });
        }
        carried_out
    }

    fn carry_out(&mut self, order: &[u8]) -> Result<(), FollowError> {
        let (there, order) = order::read(order)?;
        let same = |what, expected: u64, got: u64| match expected == got {
            true => Ok(()),
            false => Err(FollowError::OutOfStep { what, expected, got }),
        };
        let here = self.before();
        same("the order's number is", there.number, here.number)?;
        same("free KV pages are", there.pages_free.into(), here.pages_free.into())?;
        if let Some(group) = &mut self.group {
            group.orders += 1;
        }
        match order {
            Order::Step { segments, hidden } => {
                for (segment, held) in &segments {
                    let got = self.positions(segment.session);
                    same("positions of a session are", (*held).into(), got.into())?;
                }
                let segments: Vec<Segment> = segments.into_iter().map(|(s, _)| s).collect();
                let input = Input::Hidden(&hidden);
                let no_order = |error: StepError| FollowError::Order(error.to_string());
                self.step_shape().check(&segments, input).map_err(no_order)?;
                match self.run(&segments, input) {
                    // The last three the leader's caller has as well.
                    Ok(_)
                    | Err(StepError::Gap { .. })
                    | Err(StepError::KvFull { .. })
                    | Err(StepError::NumericFault { .. }) => Ok(()),
                    Err(StepError::Exchange(error)) => Err(error.into()),
                    Err(error) => Err(no_order(error)),
                }
            }
            Order::Fork { from, to, positions } => {
                let no_order = |error: StepError| FollowError::Order(error.to_string());
                self.fork_here(from, to, positions).map_err(no_order)
            }
            Order::Truncate { session, positions } => {
                self.truncate_here(session, positions);
                Ok(())
            }
        }
    }

    fn before(&self) -> Before {
        let number = self.group.as_ref().map_or(0, |group| group.orders);
        Before { number, pages_free: self.kv_pages_free() }
    }

    /// Gives the followers, if there are any, the order that `write` writes.
    ///
    /// # Errors
    /// [`StepError::Exchange`] if the group is broken; [`StepError::Shape`] on a follower.
    fn lead(&mut self, write: impl FnOnce(&mut Vec<u8>, Before)) -> Result<(), StepError> {
        let before = self.before();
        let Some(group) = &mut self.group else { return Ok(()) };
        if group.rank > 0 {
            let reason = format!("rank {} of a tensor group follows its leader", group.rank);
            return Err(StepError::Shape(reason));
        }
        if let Some(error) = &group.broken {
            return Err(StepError::Exchange(error.clone()));
        }
        write(&mut group.message, before);
        group.orders += 1;
        group.link.order(&group.message).map_err(|error| {
            group.broken = Some(error.clone());
            StepError::Exchange(error)
        })
    }

    pub(crate) fn lead_step(
        &mut self,
        segments: &[Segment],
        input: Input<'_>,
    ) -> Result<(), StepError> {
        let Input::Hidden(hidden) = input else { return Ok(()) };
        let held: Vec<u32> = segments.iter().map(|s| self.positions(s.session)).collect();
        self.lead(|out, before| order::write_step(out, before, segments, &held, hidden))
    }

    pub(crate) fn lead_fork(
        &mut self,
        from: u64,
        to: u64,
        positions: u32,
    ) -> Result<(), StepError> {
        let held = self.positions(from);
        if positions > held {
            return Err(StepError::Gap { session: from, position: positions, held });
        }
        let numbers = [from, to, u64::from(positions)];
        self.lead(|out, before| order::write_numbers(out, before, 1, numbers))
    }

    /// Whether the truncation is to be done here, too. What the others cannot be told breaks the
    /// group, and the next step says so.
    pub(crate) fn lead_truncate(&mut self, session: u64, positions: u32) -> bool {
        if self.positions(session) <= positions {
            return false;
        }
        let numbers = [session, u64::from(positions), 0];
        let led = self.lead(|out, before| order::write_numbers(out, before, 2, numbers));
        !matches!(led, Err(StepError::Shape(_)))
    }
}
