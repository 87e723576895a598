//! A loaded shard: the engine's whole contract.

use std::ops::Range;
use std::sync::Mutex;

use model::Manifest;
use model::manifest::{Dims, RopePairs};
use model::tensor::TensorForm;
use numerics::rope::Pairs;

use crate::cpu::Element;
use crate::crew::{self, Chief, Crew, Cut, HELPERS_MAX};
use crate::kv::{Kv, PageShape};
use crate::plan;
use crate::pool::Pool;
use crate::run::{GroupedHeads, Machine, PASS_ROWS_MAX, PassError, PassInput, RowFault, Scratch};
use crate::steps::{StepShape, fault_at, passes};
use crate::tensor::{GROUPS, Group};
use crate::types::*;
use crate::weights::{Weights, check_manifest};

/// A contiguous range of a model's parts, ready to compute, with the KV cache of its
/// sessions.
///
/// For one class the output's bits depend only on the weights and on each session's own
/// rows: not on the span's ends, on what else is in a step, on chunks, threads or the
/// instruction set.
pub struct Shard {
    machine: Machine,
    scratch: Scratch,
    cache: Cache,
    pages_max: u32,
    /// In a tensor group, its other ranks.
    pub(crate) group: Option<Group>,
}

/// The KV cache in the class's precision.
enum Cache {
    /// A shard without layers keeps none.
    None,
    F16(Kv<u16>),
    F32(Kv<f32>),
}

impl Shard {
    /// Binds the parts `span` of `manifest` (0 the embedding, `1..=layers` the layers,
    /// `layers + 1` the head) to their blobs and starts the threads.
    ///
    /// `blobs` gives the verified bytes of a hash, or `None` where they are missing; it is
    /// asked once per blob of each part in the span. The step itself runs on the caller's
    /// thread and `limits.threads - 1` others.
    pub fn load(
        manifest: &Manifest,
        span: Range<u32>,
        class: Class,
        mut blobs: impl FnMut(&str) -> Option<BlobBytes>,
        limits: Limits,
    ) -> Result<Shard, LoadError> {
        check_manifest(manifest, &span)?;
        let weights = Weights::bind(manifest, span, &mut blobs, &Ok)?;
        let dims = manifest.dims;
        let heads = GroupedHeads {
            heads: dims.heads as usize,
            per_kv_head: (dims.heads / dims.kv_heads) as usize,
            skipped: 0,
        };
        Shard::assemble(manifest, weights, dims, heads, class, limits, None)
    }

    /// A shard of these weights, which are of those dimensions.
    pub(crate) fn assemble(
        manifest: &Manifest,
        weights: Weights,
        dims: Dims,
        heads: GroupedHeads,
        class: Class,
        limits: Limits,
        form: Option<TensorForm>,
    ) -> Result<Shard, LoadError> {
        let shape = PageShape {
            layers: weights.layers.len(),
            kv_heads: dims.kv_heads as usize,
            head_dim: dims.head_dim as usize,
        };
        let cache = match class {
            Class::WgslF32 => return Err(LoadError::Class { class: class.name() }),
            _ if shape.layers == 0 => Cache::None,
            Class::Canonical1 => Cache::F16(Kv::new(shape, limits.kv_pages_max)),
            Class::ExactF32 => Cache::F32(Kv::new(shape, limits.kv_pages_max)),
        };
        let machine = Machine {
            class,
            // Whatever was asked for: beyond what the machine has would be unsound.
            isa: crate::Isa::available()
                .into_iter()
                .filter(|isa| *isa <= limits.isa)
                .max()
                .unwrap_or(crate::Isa::Portable),
            dims,
            heads,
            eps: f32::from_bits(manifest.rms_eps_bits),
            inv_freq: manifest.rope.inv_freq_bits.iter().map(|&b| f64::from_bits(b)).collect(),
            pairs: match manifest.rope.pairs {
                RopePairs::Adjacent => Pairs::Adjacent,
                RopePairs::HalfSplit => Pairs::HalfSplit,
            },
            plan: plan::compile(&weights, class, form),
            weights,
            pool: Pool::new(limits.threads as usize)?,
            chief: Mutex::new(None),
        };
        let (scratch, pages_max) = (Scratch::default(), limits.kv_pages_max);
        Ok(Shard { machine, scratch, cache, pages_max, group: None })
    }

    /// Takes on helpers that hold their shares of all products, which were [cut](Shard::cut) for
    /// as many helpers as the crew has. Outputs stay what they were, to the bit.
    pub fn take_on(&mut self, crew: Box<dyn Crew>) {
        self.machine.chief = Mutex::new(Some(Chief::new(crew)));
    }

    /// How many products a step has, which helpers may share.
    pub fn products(&self) -> usize {
        self.machine.products().count()
    }

    /// Helper `helper`'s share, of `helpers`, of a product: what its [`crate::crew::Share`]
    /// holds of it. All of them together are less than all weights.
    ///
    /// # Panics
    /// If there is no such helper or product.
    pub fn cut(&self, product: usize, helper: usize, helpers: usize) -> Cut<&[u8]> {
        assert!(helper < helpers && helpers <= HELPERS_MAX, "helper {helper} of {helpers}");
        let factors = self.machine.products().nth(product).expect("a product of the plan");
        let matrices = crew::matrices(&self.machine.weights, factors);
        crew::cut(self.machine.class, &matrices, helper, helpers)
    }

    /// The numerics this shard computes in.
    pub fn class(&self) -> Class {
        self.machine.class
    }

    /// The commands that a step executes, one a line.
    pub fn plan(&self) -> String {
        self.machine.plan.iter().map(|command| format!("{command}\n")).collect()
    }

    /// Runs the segments' rows through every part of the span. A session is made by its
    /// first segment at position 0; each session may occur once in a step. In a tensor group
    /// only the leader is stepped.
    ///
    /// # Panics
    /// If the calling thread's floating-point mode was changed: see
    /// [`numerics::check_float_environment`].
    pub fn step(&mut self, segments: &[Segment], input: Input<'_>) -> Result<Output, StepError> {
        self.step_shape().check(segments, input)?;
        if GROUPS && self.group.is_some() {
            self.lead_step(segments, input)?;
        }
        let values = self.run(segments, input)?;
        let has_head = self.machine.weights.head.is_some();
        Ok(if has_head { Output::Logits(values) } else { Output::Hidden(values) })
    }

    /// A step whose shape is checked.
    pub(crate) fn run(
        &mut self,
        segments: &[Segment],
        input: Input<'_>,
    ) -> Result<Vec<f32>, StepError> {
        let rounding = numerics::check_float_environment();
        assert!(rounding.is_ok(), "a step needs the default floating-point mode: {rounding:?}");
        let Shard { machine, scratch, cache, group, .. } = self;
        let mut runner = Runner { machine, scratch, group: group.as_mut() };
        match cache {
            Cache::None => runner.step::<f32>(None, segments, input),
            Cache::F16(kv) => runner.step(Some(kv), segments, input),
            Cache::F32(kv) => runner.step(Some(kv), segments, input),
        }
    }

    pub(crate) fn step_shape(&self) -> StepShape {
        let Machine { weights, dims, .. } = &self.machine;
        StepShape {
            has_embedding: weights.embedding.is_some(),
            has_layers: !matches!(self.cache, Cache::None),
            has_head: weights.head.is_some(),
            width: dims.d_model as usize,
            vocab: dims.vocab,
        }
    }

    /// Makes `to` hold the first `positions` of `from`, sharing its pages; what `to` held
    /// before is released. [`StepError::Gap`] if `from` holds fewer. A shard without
    /// layers has nothing to do.
    pub fn fork(&mut self, from: u64, to: u64, positions: u32) -> Result<(), StepError> {
        if GROUPS && self.group.is_some() {
            self.lead_fork(from, to, positions)?;
        }
        self.fork_here(from, to, positions)
    }

    pub(crate) fn fork_here(
        &mut self,
        from: u64,
        to: u64,
        positions: u32,
    ) -> Result<(), StepError> {
        match &mut self.cache {
            Cache::None => Ok(()),
            Cache::F16(kv) => kv.fork(from, to, positions),
            Cache::F32(kv) => kv.fork(from, to, positions),
        }
    }

    /// Drops what `session` holds beyond `positions`; holding less already is no error.
    /// In a tensor group's follower nothing happens: its sessions are the leader's.
    pub fn truncate(&mut self, session: u64, positions: u32) {
        if !GROUPS || self.group.is_none() || self.lead_truncate(session, positions) {
            self.truncate_here(session, positions);
        }
    }

    pub(crate) fn truncate_here(&mut self, session: u64, positions: u32) {
        match &mut self.cache {
            Cache::None => {}
            Cache::F16(kv) => kv.truncate(session, positions),
            Cache::F32(kv) => kv.truncate(session, positions),
        }
    }

    /// Forgets a session; unknown ones are no error.
    pub fn release(&mut self, session: u64) {
        self.truncate(session, 0);
    }

    /// Positions that `session` holds here; 0 for an unknown one, and always where there
    /// are no layers.
    pub fn positions(&self, session: u64) -> u32 {
        match &self.cache {
            Cache::None => 0,
            Cache::F16(kv) => kv.positions(session),
            Cache::F32(kv) => kv.positions(session),
        }
    }

    /// KV pages that are not in use; `kv_pages_max` where there are no layers.
    pub fn kv_pages_free(&self) -> u32 {
        match &self.cache {
            Cache::None => self.pages_max,
            Cache::F16(kv) => kv.pages_free(),
            Cache::F32(kv) => kv.pages_free(),
        }
    }
}

/// What runs a step.
struct Runner<'a> {
    machine: &'a Machine,
    scratch: &'a mut Scratch,
    group: Option<&'a mut Group>,
}

impl Runner<'_> {
    /// Reserves pages, runs the passes, and commits, or takes everything back.
    fn step<E: Element>(
        &mut self,
        mut kv: Option<&mut Kv<E>>,
        segments: &[Segment],
        input: Input<'_>,
    ) -> Result<Vec<f32>, StepError> {
        if let Some(kv) = kv.as_deref_mut() {
            kv.reserve(segments)?;
        }
        let result = self.passes(kv.as_deref_mut(), segments, input);
        if let Some(kv) = kv {
            for s in segments {
                match result {
                    Ok(_) => kv.commit(s.session, s.position + s.rows),
                    Err(_) => kv.truncate(s.session, s.position),
                }
            }
        }
        result
    }

    /// Cuts the step into passes.
    fn passes<E: Element>(
        &mut self,
        mut kv: Option<&mut Kv<E>>,
        segments: &[Segment],
        input: Input<'_>,
    ) -> Result<Vec<f32>, StepError> {
        let width = self.machine.dims.d_model as usize;
        let mut output = Vec::new();
        let mut done = 0; // rows of earlier passes
        for runs in passes(segments, PASS_ROWS_MAX, usize::MAX) {
            let rows: usize = runs.iter().map(|r| r.rows).sum();
            let part = match input {
                Input::Tokens(tokens) => PassInput::Tokens(&tokens[done..done + rows]),
                Input::Hidden(h) => PassInput::Hidden(&h[done * width..(done + rows) * width]),
            };
            let (kv, group) = (kv.as_deref_mut(), self.group.as_deref_mut());
            self.machine.pass(self.scratch, kv, group, &runs, part, &mut output).map_err(
                |error| match error {
                    PassError::Fault(RowFault(row)) | PassError::Agreed(RowFault(row)) => {
                        fault_at(segments, done + row)
                    }
                    PassError::Exchange(error) => {
                        if let Some(group) = &mut self.group {
                            group.broken = Some(error.clone());
                        }
                        StepError::Exchange(error)
                    }
                },
            )?;
            done += rows;
        }
        Ok(output)
    }
}

/// Bytes of one KV page of [`crate::PAGE_POSITIONS`] positions for all layers of `span`.
pub fn kv_page_bytes(manifest: &Manifest, span: Range<u32>, class: Class) -> u64 {
    let d = &manifest.dims;
    let layers = span.end.min(d.layers + 1).saturating_sub(span.start.max(1));
    let width = match class {
        Class::Canonical1 | Class::WgslF32 => 2,
        Class::ExactF32 => 4,
    };
    let position = 2 * u64::from(d.kv_heads) * u64::from(d.head_dim) * width;
    u64::from(layers) * crate::PAGE_POSITIONS as u64 * position
}
