//! Loading, running and letting go of shards.

use bytes::Bytes;
use engine::{Class, Input, Limits, Output, StepError, kv_page_bytes};
use litemap::LiteMap;
use model::Manifest;
use protocol::payload::{elements, to_payload};
use protocol::{Assignment, BlobHash, BlobRef, Dtype, SessionId, boundary};
use worker_core::{Run, RunFault, Shape, ShardKey};

use crate::source::{Blobs, Source, SourceError};
use crate::spans::SpanShards;

/// What computes.
#[derive(Clone, Debug)]
pub enum Computer {
    /// The CPU, natively or in WASM.
    Cpu {
        /// Threads, the caller's included.
        threads: u32,
    },
    /// A GPU.
    #[cfg(feature = "gpu")]
    Gpu(engine::gpu::Gpu),
}

impl Computer {
    /// The numerics classes it computes in, the preferred one first.
    pub fn classes(&self) -> Vec<String> {
        let classes: &[Class] = match self {
            Computer::Cpu { .. } => &[Class::Canonical1, Class::ExactF32],
            #[cfg(feature = "gpu")]
            Computer::Gpu(_) => &[Class::WgslF32],
        };
        classes.iter().map(|class| class.name().to_owned()).collect()
    }

    /// Its name in a hello.
    pub fn backend(&self) -> &'static str {
        match self {
            Computer::Cpu { .. } if cfg!(target_arch = "wasm32") => "wasm",
            Computer::Cpu { .. } => "cpu",
            #[cfg(feature = "gpu")]
            Computer::Gpu(_) if cfg!(target_arch = "wasm32") => "webgpu",
            #[cfg(feature = "gpu")]
            Computer::Gpu(_) => "wgpu",
        }
    }
}

/// Why a shard could not be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// Its class is none of ours.
    #[error("class {0} is not computed here")]
    Class(String),
    /// The manifest is not one.
    #[error("manifest: {0}")]
    Manifest(String),
    /// More than is lent, together with what is held already.
    #[error(
        "weights of {weights} bytes and a KV cache of {kv} exceed what is left of the {lent} lent, \
         {held} being in use"
    )]
    Memory {
        /// Bytes of weights that are not held already.
        weights: u64,
        /// Bytes of KV cache.
        kv: u64,
        /// Bytes lent in all.
        lent: u64,
        /// Bytes of them that other shards use.
        held: u64,
    },
    /// What computes has less room than was lent.
    #[error("{0}")]
    NoRoom(String),
    /// A blob could not be read.
    #[error("{0}")]
    Blob(String),
    /// The engine refused it.
    #[error("{0}")]
    Engine(String),
}

impl From<SourceError> for LoadError {
    fn from(error: SourceError) -> LoadError {
        match error {
            SourceError::NoRoom(reason) => LoadError::NoRoom(reason),
            SourceError::Other(reason) => LoadError::Blob(reason),
        }
    }
}

/// A worker's shards. One that broke stays in its place and answers why.
pub struct Shards {
    pub(crate) computer: Computer,
    pub(crate) memory_bytes: u64,
    pub(crate) held: LiteMap<ShardKey, Held>,
}

pub(crate) struct Held {
    pub(crate) state: Result<Loaded, String>,
    /// Width of its hidden states.
    pub(crate) d_model: usize,
    /// For the sum of what is held: weights, which shards on the CPU share, and what only this
    /// one has, the KV cache above all.
    pub(crate) blobs: LiteMap<BlobHash, u64>,
    pub(crate) own_bytes: u64,
}

pub(crate) enum Loaded {
    Cpu(Box<SpanShards>),
    /// A share in a tensor group, which is run as a whole. Tabs take part in none.
    #[cfg(not(target_arch = "wasm32"))]
    Rank(Box<engine::Shard>),
    #[cfg(feature = "gpu")]
    Gpu(Box<engine::gpu::GpuShard>),
}

impl Shards {
    /// No shards yet. `memory_bytes` bounds weights and KV caches of all together.
    pub fn new(computer: Computer, memory_bytes: u64) -> Shards {
        Shards { computer, memory_bytes, held: LiteMap::new() }
    }

    /// What computes.
    pub fn computer(&self) -> &Computer {
        &self.computer
    }

    /// Bytes of weights and KV caches, full ones, that the shards held may use.
    pub fn memory_used(&self) -> u64 {
        let own: u64 = self.held.values().map(|held| held.own_bytes).sum();
        own.saturating_add(self.weight_bytes(None))
    }

    /// Bytes of weights of the shards held, and of `with` beside them.
    fn weight_bytes(&self, with: Option<&Assignment>) -> u64 {
        let held = self.held.values().flat_map(|held| &held.blobs).map(|(h, &n)| (h, n));
        let new = with.into_iter().flat_map(|a| &a.blobs).map(|blob| (&blob.hash, blob.bytes));
        match self.computer {
            // In memory once, whoever reads them.
            Computer::Cpu { .. } => {
                let mut once: LiteMap<&BlobHash, u64> = LiteMap::new();
                for (hash, bytes) in held.chain(new) {
                    once.insert(hash, bytes);
                }
                once.values().sum()
            }
            // Each shard has its own copy there.
            #[cfg(feature = "gpu")]
            Computer::Gpu(_) => held.chain(new).map(|(_, bytes)| bytes).sum(),
        }
    }

    /// Loads a shard; `source` has its blobs, the manifest among them.
    ///
    /// # Errors
    /// Whatever makes it impossible; nothing is held then that was not before.
    pub async fn load(
        &mut self,
        shard: ShardKey,
        assignment: &Assignment,
        source: &mut impl Source,
    ) -> Result<Shape, LoadError> {
        let manifest = source.whole(&assignment.manifest.hash).await?;
        let manifest = Manifest::from_bytes((*manifest).as_ref())
            .map_err(|error| LoadError::Manifest(error.to_string()))?;
        let class = Class::from_name(&assignment.class)
            .filter(|_| self.computer.classes().contains(&assignment.class))
            .ok_or_else(|| LoadError::Class(assignment.class.clone()))?;
        let span = assignment.span.first..assignment.span.end;
        let page_bytes = kv_page_bytes(&manifest, span.clone(), class);
        let kv = u64::from(assignment.kv_pages).saturating_mul(page_bytes);
        self.check_memory(assignment, kv)?;
        let dims = manifest.dims;
        let loaded = match &self.computer {
            #[cfg(feature = "gpu")]
            Computer::Gpu(gpu) => Loaded::Gpu(Box::new(
                on_gpu(gpu, &manifest, span, assignment.kv_pages, source).await?,
            )),
            &Computer::Cpu { threads } => {
                let limits = Limits::new(assignment.kv_pages, threads);
                let mut blobs = Blobs::new();
                for BlobRef { hash, .. } in &assignment.blobs {
                    if !blobs.contains_key(hash) {
                        let bytes = source.whole(hash).await?;
                        blobs.insert(hash.clone(), bytes);
                    }
                }
                let loaded = SpanShards::load(manifest, assignment.span, class, blobs, limits);
                Loaded::Cpu(Box::new(loaded.map_err(|e| LoadError::Engine(e.to_string()))?))
            }
        };
        let mut blobs: LiteMap<_, _> = LiteMap::new();
        for blob in &assignment.blobs {
            blobs.insert(blob.hash.clone(), blob.bytes);
        }
        self.held.insert(
            shard,
            Held { state: Ok(loaded), d_model: dims.d_model as usize, blobs, own_bytes: kv },
        );
        Ok(Shape { layers: dims.layers, d_model: dims.d_model, vocab: dims.vocab })
    }

    fn check_memory(&self, assignment: &Assignment, kv: u64) -> Result<(), LoadError> {
        let (lent, held) = (self.memory_bytes, self.memory_used());
        let weights = self.weight_bytes(Some(assignment)).saturating_sub(self.weight_bytes(None));
        if held.saturating_add(weights).saturating_add(kv) > lent {
            return Err(LoadError::Memory { weights, kv, lent, held });
        }
        Ok(())
    }

    /// Computes a step: hidden states in the dtype that it asks for, or logits in f32.
    ///
    /// # Errors
    /// The step's or the shard's fault.
    pub async fn run(&mut self, run: &Run) -> Result<Bytes, RunFault> {
        let broken = |reason: &str| RunFault::Broken(reason.to_owned());
        let held = self.held.get_mut(&run.shard).ok_or_else(|| broken("it is not loaded"))?;
        let loaded = held.state.as_mut().map_err(|reason| RunFault::Broken(reason.clone()))?;
        let segments: Vec<engine::Segment> = run
            .segments
            .iter()
            .map(|s| engine::Segment {
                session: s.session.0,
                position: s.position,
                rows: s.rows,
                logits_rows: s.logits_rows,
            })
            .collect();
        let output = match run.dtype {
            Dtype::U32 => {
                let tokens = elements::<u32>(&run.payload);
                loaded.step(run.span, &segments, Input::Tokens(&tokens)).await
            }
            dtype @ (Dtype::F32 | Dtype::F16 | Dtype::I8) => {
                let hidden = boundary::decode(&run.payload, dtype, held.d_model)
                    .ok_or_else(|| RunFault::BadStep(format!("no rows of {}", dtype.name())))?;
                loaded.step(run.span, &segments, Input::Hidden(&hidden)).await
            }
        };
        match output {
            Ok(Output::Hidden(values)) => boundary::encode(values, run.answer, held.d_model)
                .map_err(|fault| RunFault::Broken(fault.to_string())),
            Ok(Output::Logits(values)) => Ok(to_payload(values)),
            Err(error) => Err(fault(error)),
        }
    }

    /// See [`worker_core::Action::Fork`]. What fails breaks the shard.
    pub fn fork(&mut self, shard: ShardKey, from: SessionId, to: SessionId, positions: u32) {
        let Some(Held { state: state @ Ok(_), .. }) = self.held.get_mut(&shard) else { return };
        let forked = match state {
            Ok(Loaded::Cpu(shards)) => shards.fork(from.0, to.0, positions),
            #[cfg(not(target_arch = "wasm32"))]
            Ok(Loaded::Rank(shard)) => shard.fork(from.0, to.0, positions),
            #[cfg(feature = "gpu")]
            Ok(Loaded::Gpu(shard)) => shard.fork(from.0, to.0, positions),
            Err(_) => return,
        };
        if let Err(error) = forked {
            *state = Err(format!("fork: {error}"));
        }
    }

    /// See [`worker_core::Action::Truncate`].
    pub fn truncate(&mut self, shard: ShardKey, session: SessionId, positions: u32) {
        match self.held.get_mut(&shard).map(|held| &mut held.state) {
            Some(Ok(Loaded::Cpu(shards))) => shards.truncate(session.0, positions),
            #[cfg(not(target_arch = "wasm32"))]
            Some(Ok(Loaded::Rank(shard))) => shard.truncate(session.0, positions),
            #[cfg(feature = "gpu")]
            Some(Ok(Loaded::Gpu(shard))) => shard.truncate(session.0, positions),
            Some(Err(_)) | None => {}
        }
    }

    /// See [`worker_core::Action::Release`].
    pub fn release(&mut self, shard: ShardKey, session: SessionId) {
        match self.held.get_mut(&shard).map(|held| &mut held.state) {
            Some(Ok(Loaded::Cpu(shards))) => shards.release(session.0),
            #[cfg(not(target_arch = "wasm32"))]
            Some(Ok(Loaded::Rank(shard))) => shard.release(session.0),
            #[cfg(feature = "gpu")]
            Some(Ok(Loaded::Gpu(shard))) => shard.release(session.0),
            Some(Err(_)) | None => {}
        }
    }

    /// What helpers of a shard on the CPU are given their shares of; `None` if it is not held,
    /// or broke.
    pub fn whole(&self, shard: ShardKey) -> Option<&engine::Shard> {
        match self.held.get(&shard)?.state.as_ref().ok()? {
            Loaded::Cpu(shards) => shards.whole(),
            #[cfg(not(target_arch = "wasm32"))]
            Loaded::Rank(_) => None,
            #[cfg(feature = "gpu")]
            Loaded::Gpu(_) => None,
        }
    }

    /// Lets helpers share the products of a shard on the CPU that a step takes whole; see
    /// [`engine::Shard::take_on`]. A shard that is not held, or broke, takes on nobody.
    pub fn take_on(&mut self, shard: ShardKey, crew: Box<dyn engine::crew::Crew>) {
        if let Some(Ok(Loaded::Cpu(shards))) = self.held.get_mut(&shard).map(|h| &mut h.state) {
            shards.take_on(crew);
        }
    }

    /// Lets a shard go.
    pub fn unload(&mut self, shard: ShardKey) {
        self.held.remove(&shard);
    }

    /// Lets all of them go.
    pub fn clear(&mut self) {
        self.held.clear();
    }

    /// Takes a shard for broken after the engine panicked in it. On the CPU it is leaked, not
    /// dropped: its threads may be in any state, and joining them could hang.
    pub fn condemn(&mut self, shard: ShardKey, reason: &str) {
        let Some(held) = self.held.get_mut(&shard) else { return };
        match std::mem::replace(&mut held.state, Err(reason.to_owned())) {
            Ok(Loaded::Cpu(shards)) => std::mem::forget(shards),
            #[cfg(not(target_arch = "wasm32"))]
            Ok(Loaded::Rank(shard)) => std::mem::forget(shard),
            // It has no threads, and its memory is the device's.
            #[cfg(feature = "gpu")]
            Ok(Loaded::Gpu(shard)) => drop(shard),
            Err(_) => {}
        }
    }
}

impl Loaded {
    async fn step(
        &mut self,
        span: protocol::Span,
        segments: &[engine::Segment],
        input: Input<'_>,
    ) -> Result<Output, StepError> {
        match self {
            Loaded::Cpu(shards) => shards.step(span, segments, input),
            // All ranks run the span that they were given; worker-core sees to it.
            #[cfg(not(target_arch = "wasm32"))]
            Loaded::Rank(shard) => shard.step(segments, input),
            #[cfg(feature = "gpu")]
            Loaded::Gpu(shard) => shard.step(span.first..span.end, segments, input).await,
        }
    }
}

/// Streams a shard's weights to a GPU.
#[cfg(feature = "gpu")]
async fn on_gpu(
    gpu: &engine::gpu::Gpu,
    manifest: &Manifest,
    span: std::ops::Range<u32>,
    kv_pages_max: u32,
    source: &mut impl Source,
) -> Result<engine::gpu::GpuShard, LoadError> {
    use engine::gpu::{GpuLimits, GpuShard};

    let refused = |error: engine::LoadError| match error {
        engine::LoadError::OutOfMemory { .. } => LoadError::NoRoom(error.to_string()),
        error => LoadError::Engine(error.to_string()),
    };
    let limits = GpuLimits { kv_pages_max };
    let mut shard = GpuShard::new(gpu, manifest, span, limits).await.map_err(refused)?;
    for hash in shard.blobs() {
        let mut take = |offset, piece: &[u8]| {
            shard.write_blob(&hash, offset, piece).map_err(|error| error.to_string())
        };
        // Whoever loads must still be able to answer the coordinator.
        gpu.idle().await.map_err(LoadError::Engine)?;
        source.pieces(&hash, &mut take).await.map_err(LoadError::Blob)?;
    }
    shard.finish().await.map_err(refused)?;
    Ok(shard)
}

fn fault(error: StepError) -> RunFault {
    match error {
        StepError::Shape(reason) => RunFault::BadStep(reason),
        StepError::Gap { session, held, .. } => RunFault::Gap { session: SessionId(session), held },
        StepError::KvFull { session, .. } => RunFault::KvFull { session: SessionId(session) },
        StepError::NumericFault { session, .. } => {
            RunFault::Numeric { session: SessionId(session) }
        }
        StepError::Token { session, .. } => RunFault::BadInput { session: SessionId(session) },
        StepError::Device(reason) => RunFault::Broken(reason),
        error @ StepError::Exchange(_) => RunFault::Broken(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};

    use engine::BlobBytes;
    use model::testing::TinyModel;
    use protocol::{AssignmentId, BlobRef, Span};

    use super::*;

    /// On the CPU nothing is waited for.
    fn now<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("the CPU does not wait"),
        }
    }

    /// Layers 1 and 2 of a tiny model, each an assignment of its own.
    fn tiny() -> (Manifest, Blobs, [Assignment; 2]) {
        let file = TinyModel::llama(1).to_bytes();
        let gguf = model::Gguf::parse(&[&file]).unwrap();
        let mut store = model::blobs::MemoryBlobs::default();
        let manifest = model::convert(&gguf, "tiny", &mut store).unwrap();
        let mut blobs: Blobs = Blobs::new();
        for (hash, bytes) in store.by_hash {
            blobs.insert(hash, Arc::new(bytes) as BlobBytes);
        }
        let bytes = manifest.to_bytes();
        let named = BlobRef { hash: "manifest".into(), bytes: bytes.len() as u64 };
        blobs.insert(named.hash.clone(), Arc::new(bytes));
        let assignments = [1, 2].map(|first| Assignment {
            id: AssignmentId(first.into()),
            model: "tiny".into(),
            manifest: named.clone(),
            span: Span { first, end: first + 1 },
            class: "canonical-1".into(),
            blobs: manifest
                .blobs_of(first..first + 1)
                .into_iter()
                .map(|b| BlobRef { hash: b.hash.clone(), bytes: b.bytes })
                .collect(),
            kv_pages: 2,
            tensor: None,
        });
        (manifest, blobs, assignments)
    }

    #[test]
    fn what_is_held_counts_together_and_unloading_frees_it() {
        let (manifest, mut blobs, [first, second]) = tiny();
        let kv = 2 * kv_page_bytes(&manifest, 1..2, Class::Canonical1);
        let need = first.weight_bytes() + kv;
        let mut shards = Shards::new(Computer::Cpu { threads: 1 }, need + need / 2);
        now(shards.load(ShardKey(1), &first, &mut blobs)).unwrap();
        assert_eq!(shards.memory_used(), need);
        let refused = now(shards.load(ShardKey(2), &second, &mut blobs));
        assert!(matches!(refused, Err(LoadError::Memory { held, .. }) if held == need));
        assert_eq!(shards.memory_used(), need);
        shards.unload(ShardKey(1));
        now(shards.load(ShardKey(2), &second, &mut blobs)).unwrap();
        // The same weights again cost only their KV cache.
        let mut shards = Shards::new(Computer::Cpu { threads: 1 }, need + kv);
        now(shards.load(ShardKey(1), &first, &mut blobs)).unwrap();
        now(shards.load(ShardKey(2), &first, &mut blobs)).unwrap();
        assert_eq!(shards.memory_used(), need + kv);
    }

    #[test]
    fn what_cannot_be_loaded_is_named() {
        let (_, mut blobs, [mut assignment, _]) = tiny();
        let mut shards = Shards::new(Computer::Cpu { threads: 1 }, 1 << 30);
        assignment.class = "wgsl-f32".into();
        let refused = now(shards.load(ShardKey(1), &assignment, &mut blobs));
        assert_eq!(refused.unwrap_err().to_string(), "class wgsl-f32 is not computed here");
        assignment.class = "canonical-1".into();
        let lost = assignment.blobs[0].hash.clone();
        blobs.remove(&lost);
        let refused = now(shards.load(ShardKey(1), &assignment, &mut blobs)).unwrap_err();
        assert!(refused.to_string().contains(&lost), "{refused}");
        assert_eq!(shards.memory_used(), 0);
    }

    /// A source whose memory is used up before the blobs are.
    struct Full(Blobs, usize);

    impl Source for Full {
        async fn whole(&mut self, hash: &str) -> Result<BlobBytes, SourceError> {
            let none = || SourceError::NoRoom("no memory for it".into());
            self.1 = self.1.checked_sub(1).ok_or_else(none)?;
            self.0.whole(hash).await
        }

        async fn pieces(&mut self, _: &str, _: crate::source::Take<'_>) -> Result<(), String> {
            Err("nothing of this goes to a device".into())
        }
    }

    #[test]
    fn memory_that_was_lent_and_is_not_there_is_told_from_other_faults() {
        let (_, blobs, [assignment, _]) = tiny();
        let mut shards = Shards::new(Computer::Cpu { threads: 1 }, 1 << 30);
        // The manifest does not fit, then a blob of the weights.
        for room in [0, 1] {
            let mut source = Full(blobs.clone(), room);
            let refused = now(shards.load(ShardKey(1), &assignment, &mut source)).unwrap_err();
            assert_eq!(refused, LoadError::NoRoom("no memory for it".into()));
        }
        now(shards.load(ShardKey(1), &assignment, &mut Full(blobs, 99))).unwrap();
    }

    #[test]
    fn a_shard_that_broke_says_why_at_every_step() {
        let (manifest, mut blobs, [assignment, _]) = tiny();
        let mut shards = Shards::new(Computer::Cpu { threads: 1 }, 1 << 30);
        now(shards.load(ShardKey(1), &assignment, &mut blobs)).unwrap();
        let run = Run {
            id: worker_core::RunId(1),
            shard: ShardKey(1),
            span: assignment.span,
            segments: vec![protocol::Segment {
                session: SessionId(1),
                epoch: 0,
                position: 0,
                rows: 1,
                logits_rows: 0,
                status: protocol::Status::Ok,
            }],
            dtype: Dtype::F32,
            answer: Dtype::F32,
            payload: to_payload(vec![0.5; manifest.dims.d_model as usize]),
        };
        let hidden = now(shards.run(&run)).unwrap();
        assert_eq!(hidden.len(), 4 * manifest.dims.d_model as usize);
        // A fork of more than is held is a fault of ours, and breaks it.
        shards.fork(ShardKey(1), SessionId(1), SessionId(2), 9);
        let broken = now(shards.run(&run));
        assert!(matches!(&broken, Err(RunFault::Broken(why)) if why.starts_with("fork: ")));
        shards.unload(ShardKey(1));
        let gone = now(shards.run(&run));
        assert_eq!(gone, Err(RunFault::Broken("it is not loaded".into())));
    }
}
