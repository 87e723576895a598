//! A loaded shard: the engine's whole contract.

use std::collections::BTreeSet;
use std::ops::Range;

use model::Manifest;
use model::manifest::RopePairs;
use numerics::POSITIONS_MAX;
use numerics::finite::{NOT_FINITE, magnitude_bits};
use numerics::rope::Pairs;

use crate::cpu::Element;
use crate::kv::{Kv, PageShape};
use crate::plan;
use crate::pool::Pool;
use crate::run::{Machine, PASS_ROWS_MAX, PassInput, RowFault, Run, Scratch};
use crate::types::*;
use crate::weights::{Weights, check_manifest};

/// Rows of one step, over all its segments; a longer step is a [`StepError::Shape`].
pub const STEP_ROWS_MAX: usize = 4096;

/// Rows of one step that may want logits: V floats each; more is a [`StepError::Shape`].
pub const STEP_LOGITS_ROWS_MAX: usize = 512;

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
        let weights = Weights::bind(manifest, span, &mut blobs)?;
        let dims = manifest.dims;
        let shape = PageShape {
            layers: weights.layers.len(),
            kv_heads: dims.kv_heads as usize,
            head_dim: dims.head_dim as usize,
        };
        let cache = match class {
            _ if shape.layers == 0 => Cache::None,
            Class::Canonical1 => Cache::F16(Kv::new(shape, limits.kv_pages_max)),
            Class::ExactF32 => Cache::F32(Kv::new(shape, limits.kv_pages_max)),
        };
        let machine = Machine {
            class,
            // Whatever was asked for: beyond what the machine has would be unsound.
            isa: limits.isa.min(crate::Isa::best()),
            dims,
            eps: f32::from_bits(manifest.rms_eps_bits),
            inv_freq: manifest.rope.inv_freq_bits.iter().map(|&b| f64::from_bits(b)).collect(),
            pairs: match manifest.rope.pairs {
                RopePairs::Adjacent => Pairs::Adjacent,
                RopePairs::HalfSplit => Pairs::HalfSplit,
            },
            plan: plan::compile(&weights, class),
            weights,
            pool: Pool::new(limits.threads as usize)?,
        };
        Ok(Shard { machine, scratch: Scratch::default(), cache, pages_max: limits.kv_pages_max })
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
    /// first segment at position 0; each session may occur once in a step.
    ///
    /// # Panics
    /// If the calling thread's floating-point mode was changed: see
    /// [`numerics::check_float_environment`].
    pub fn step(&mut self, segments: &[Segment], input: Input<'_>) -> Result<Output, StepError> {
        let rounding = numerics::check_float_environment();
        assert!(rounding.is_ok(), "a step needs the default floating-point mode: {rounding:?}");
        self.check(segments, input)?;
        let Shard { machine, scratch, cache, .. } = self;
        let values = match cache {
            Cache::None => run_step::<f32>(machine, scratch, None, segments, input)?,
            Cache::F16(kv) => run_step(machine, scratch, Some(kv), segments, input)?,
            Cache::F32(kv) => run_step(machine, scratch, Some(kv), segments, input)?,
        };
        let has_head = machine.weights.head.is_some();
        Ok(if has_head { Output::Logits(values) } else { Output::Hidden(values) })
    }

    /// Makes `to` hold the first `positions` of `from`, sharing its pages; what `to` held
    /// before is released. [`StepError::Gap`] if `from` holds fewer. A shard without
    /// layers has nothing to do.
    pub fn fork(&mut self, from: u64, to: u64, positions: u32) -> Result<(), StepError> {
        match &mut self.cache {
            Cache::None => Ok(()),
            Cache::F16(kv) => kv.fork(from, to, positions),
            Cache::F32(kv) => kv.fork(from, to, positions),
        }
    }

    /// Drops what `session` holds beyond `positions`; holding less already is no error.
    pub fn truncate(&mut self, session: u64, positions: u32) {
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

    /// Checks everything about a step that does not need the cache.
    fn check(&self, segments: &[Segment], input: Input<'_>) -> Result<(), StepError> {
        let shape = |what: String| Err(StepError::Shape(what));
        let machine = &self.machine;
        let mut seen = BTreeSet::new();
        let (mut rows, mut logits_rows) = (0usize, 0usize);
        for s in segments {
            if s.rows == 0 || !seen.insert(s.session) {
                return shape(format!("session {} has no rows or occurs twice", s.session));
            }
            if machine.weights.head.is_some() && s.logits_rows > s.rows {
                let (wanted, rows) = (s.logits_rows, s.rows);
                return shape(format!(
                    "session {} wants logits of {wanted} rows of {rows}",
                    s.session
                ));
            }
            let end = u64::from(s.position) + u64::from(s.rows);
            if !matches!(self.cache, Cache::None) && end > u64::from(POSITIONS_MAX) {
                return shape(format!("session {} would reach position {end}", s.session));
            }
            rows = rows.saturating_add(s.rows as usize);
            logits_rows = logits_rows.saturating_add(s.logits_rows as usize);
        }
        if rows == 0 || rows > STEP_ROWS_MAX {
            return shape(format!("{rows} rows, a step has 1 to {STEP_ROWS_MAX}"));
        }
        if machine.weights.head.is_some() && logits_rows > STEP_LOGITS_ROWS_MAX {
            let max = STEP_LOGITS_ROWS_MAX;
            return shape(format!("{logits_rows} rows want logits, at most {max} may"));
        }
        match (input, machine.weights.embedding.is_some()) {
            (Input::Tokens(tokens), true) => self.check_tokens(segments, tokens, rows),
            (Input::Hidden(hidden), false) => self.check_hidden(segments, hidden, rows),
            (Input::Tokens(_), false) => shape("token ids, but no embedding here".into()),
            (Input::Hidden(_), true) => shape("a hidden state, but the embedding is here".into()),
        }
    }

    fn check_tokens(
        &self,
        segments: &[Segment],
        tokens: &[u32],
        rows: usize,
    ) -> Result<(), StepError> {
        if tokens.len() != rows {
            return Err(StepError::Shape(format!("{} token ids for {rows} rows", tokens.len())));
        }
        let vocab = self.machine.dims.vocab;
        match tokens.iter().position(|&t| t >= vocab) {
            None => Ok(()),
            Some(row) => {
                let (session, token) = (locate(segments, row).0, tokens[row]);
                Err(StepError::Token { session, token, vocab })
            }
        }
    }

    fn check_hidden(
        &self,
        segments: &[Segment],
        hidden: &[f32],
        rows: usize,
    ) -> Result<(), StepError> {
        let width = self.machine.dims.d_model as usize;
        if hidden.len() != rows * width {
            let got = hidden.len();
            return Err(StepError::Shape(format!("{got} values for {rows} rows of {width}")));
        }
        match hidden.iter().position(|&x| magnitude_bits(x) >= NOT_FINITE) {
            None => Ok(()),
            Some(at) => {
                let (session, position) = locate(segments, at / width);
                Err(StepError::NumericFault { session, position })
            }
        }
    }
}

/// The session and position of a step's row.
fn locate(segments: &[Segment], row: usize) -> (u64, u32) {
    let mut first = 0;
    for s in segments {
        if row < first + s.rows as usize {
            return (s.session, s.position.saturating_add((row - first) as u32));
        }
        first += s.rows as usize;
    }
    unreachable!("row {row} is one of the step's {first}")
}

/// Reserves pages, runs the passes, and commits, or takes everything back.
fn run_step<E: Element>(
    machine: &Machine,
    scratch: &mut Scratch,
    mut kv: Option<&mut Kv<E>>,
    segments: &[Segment],
    input: Input<'_>,
) -> Result<Vec<f32>, StepError> {
    if let Some(kv) = kv.as_deref_mut() {
        kv.reserve(segments)?;
    }
    let result = run_passes(machine, scratch, kv.as_deref_mut(), segments, input);
    if let Some(kv) = kv {
        for s in segments {
            match result {
                Ok(_) => kv.commit(s.session, s.position + s.rows),
                Err(_) => kv.truncate(s.session, s.position),
            }
        }
    }
    result.map_err(|RowFault(row)| {
        let (session, position) = locate(segments, row);
        StepError::NumericFault { session, position }
    })
}

/// Cuts the step into passes; a fault names the step's row.
fn run_passes<E: Element>(
    machine: &Machine,
    scratch: &mut Scratch,
    mut kv: Option<&mut Kv<E>>,
    segments: &[Segment],
    input: Input<'_>,
) -> Result<Vec<f32>, RowFault> {
    let width = machine.dims.d_model as usize;
    let mut output = Vec::new();
    let mut done = 0; // rows of earlier passes
    for runs in passes(segments) {
        let rows: usize = runs.iter().map(|r| r.rows).sum();
        let part = match input {
            Input::Tokens(tokens) => PassInput::Tokens(&tokens[done..done + rows]),
            Input::Hidden(h) => PassInput::Hidden(&h[done * width..(done + rows) * width]),
        };
        machine
            .pass(scratch, kv.as_deref_mut(), &runs, part, &mut output)
            .map_err(|RowFault(row)| RowFault(done + row))?;
        done += rows;
    }
    Ok(output)
}

/// The segments' rows in passes of at most [`PASS_ROWS_MAX`].
fn passes(segments: &[Segment]) -> Vec<Vec<Run>> {
    let mut passes = vec![Vec::new()];
    let mut filled = 0;
    for s in segments {
        let (mut done, total) = (0, s.rows as usize);
        let silent = total.saturating_sub(s.logits_rows as usize); // rows without logits
        while done < total {
            if filled == PASS_ROWS_MAX {
                passes.push(Vec::new());
                filled = 0;
            }
            let rows = (total - done).min(PASS_ROWS_MAX - filled);
            let logits_rows = (done + rows).saturating_sub(silent.max(done));
            let position = s.position.wrapping_add(done as u32);
            let run = Run { session: s.session, position, start: filled, rows, logits_rows };
            passes.last_mut().expect("there is a first pass").push(run);
            done += rows;
            filled += rows;
        }
    }
    passes
}

/// Bytes of one KV page of [`crate::PAGE_POSITIONS`] positions for all layers of `span`.
pub fn kv_page_bytes(manifest: &Manifest, span: Range<u32>, class: Class) -> u64 {
    let d = &manifest.dims;
    let layers = span.end.min(d.layers + 1).saturating_sub(span.start.max(1));
    let width = match class {
        Class::Canonical1 => 2,
        Class::ExactF32 => 4,
    };
    let position = 2 * u64::from(d.kv_heads) * u64::from(d.head_dim) * width;
    u64::from(layers) * crate::PAGE_POSITIONS as u64 * position
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_keep_rows_positions_and_logits_in_order() {
        let segment =
            |session, position, rows, logits_rows| Segment { session, position, rows, logits_rows };
        let cut = passes(&[segment(1, 10, 100, 1), segment(2, 0, 300, 250), segment(3, 5, 1, 1)]);
        let seen: Vec<Vec<_>> = cut
            .iter()
            .map(|p| {
                p.iter().map(|r| (r.session, r.position, r.start, r.rows, r.logits_rows)).collect()
            })
            .collect();
        let first = vec![(1, 10, 0, 100, 1), (2, 0, 100, 156, 106)];
        let second = vec![(2, 156, 0, 144, 144), (3, 5, 144, 1, 1)];
        assert_eq!(seen, [first, second]);
    }
}
