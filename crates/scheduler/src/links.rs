//! What a session's boundaries are sent in, what a link takes for them, and how many bytes went
//! over the links.
//!
//! A *link* is a worker's connection; the embedded worker has none. Each boundary of a session
//! has one dtype from its first row to its last: the coarser one of the two links that it
//! crosses, chosen when the session is given its route, and kept whatever becomes of those
//! workers. The log holds rows as they were sent, so a replacement is fed the same values. A
//! boundary that a repair puts where none was is f32, and a hole never swallows a lossy one:
//! neither changes what a session computes. Only where a session has to begin on another route
//! altogether, its boundaries lie elsewhere, and so does what is rounded.
//!
//! A worker that does not speak a boundary's dtype is sent f32, and its answers are rounded
//! here, to the same bytes: rounding depends on nothing but the row.
//!
//! A link takes a *hop* for any step, and so much more for each byte of it and of its answer.
//! Both are learned from steps that were under way alone. Steps are kept as short as
//! [`STEP_WIRE_S`] on the link, so that a decode waits little behind a prompt; until the time of
//! a byte is known they have [`PROBE_BYTES`] at most, and count as being on the worst link that
//! is served.

use std::collections::BTreeMap;

use bytes::Bytes;
use protocol::{Dtype, Span, WorkerId, WorkerKind, boundary};

use crate::Scheduler;
use crate::event::ModelSpec;
use crate::fleet::{EWMA, StepInFlight, Worker};
use crate::session::{Session, Stage};

/// With [`Boundaries::Auto`], a link is slow, and rounded to f16, where a row's boundaries
/// take this share of the row's computing time in f32, there and back; and to int8 where they
/// take [`SLOW_INT8`].
const SLOW_F16: f64 = 0.25;
/// As long as computing itself: such a worker waits for its link more than it computes.
const SLOW_INT8: f64 = 1.0;
/// Rows of a step at whose rate computing is compared: a link's rate matters for prompts.
const PREFILL_ROWS: u32 = 64;

/// The slowest link that is served: what one counts as that is not measured, bytes a second.
pub(crate) const LINK_FLOOR_BYTES_PER_S: f64 = 32.0 * 1024.0;
/// What a step and its answer may take on the link, seconds.
const STEP_WIRE_S: f64 = 1.0;
/// Steps of so many bytes, there and back, tell what a link takes for a byte, and smaller ones
/// what it takes for any step.
const LARGE_BYTES: usize = 64 << 10;
/// So do those that are known to take so long, seconds: on the slowest links none are larger.
const LARGE_S: f64 = 0.1;
/// Bytes of a step and its answer on a link that is not measured: enough to measure it.
const PROBE_BYTES: usize = 2 * LARGE_BYTES;
/// Rows that a step may have on any link: a decode, and a row of a prompt that gets on.
const WIRE_ROWS_MIN: u32 = 2;

/// What links may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boundaries {
    /// This on every link.
    All(Dtype),
    /// f32, but on links that are measured to be slow.
    Auto,
}

/// Bytes of boundaries over links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// As they were sent, both ways.
    pub bytes: u64,
    /// What they would have been in f32.
    pub bytes_f32: u64,
}

impl Traffic {
    fn add(&mut self, rows: u32, dtype: Dtype, width: usize) {
        self.bytes += u64::from(rows) * dtype.row_bytes(width) as u64;
        self.bytes_f32 += u64::from(rows) * Dtype::F32.row_bytes(width) as u64;
    }
}

impl Worker {
    /// Whether it can be sent this, and asked for it.
    pub(crate) fn speaks(&self, dtype: Dtype) -> bool {
        dtype == Dtype::U32 || dtype == Dtype::F32 || self.spec.boundaries.contains(&dtype)
    }

    /// What goes over its link for a boundary in `dtype`.
    pub(crate) fn on_wire(&self, dtype: Dtype) -> Dtype {
        if self.speaks(dtype) { dtype } else { Dtype::F32 }
    }

    /// Seconds that bytes take on its link, there and back.
    pub(crate) fn wire_s(&self, bytes: usize) -> f64 {
        if self.spec.kind == WorkerKind::Embedded {
            return 0.0;
        }
        bytes as f64 * self.wire_s_per_byte.unwrap_or(1.0 / LINK_FLOOR_BYTES_PER_S)
    }

    /// Rows that a step may have for its link's sake, of `row_bytes` there and back.
    pub(crate) fn wire_rows_max(&self, row_bytes: usize) -> u32 {
        if self.spec.kind == WorkerKind::Embedded {
            return u32::MAX;
        }
        let bytes = match self.wire_s_per_byte {
            Some(s_per_byte) => STEP_WIRE_S / s_per_byte,
            None => PROBE_BYTES as f64,
        };
        // A link without an end is as good as one that takes no time.
        ((bytes / row_bytes.max(1) as f64) as u32).max(WIRE_ROWS_MIN)
    }

    /// Seconds that a decode through a span is under way, beside its computing: the hop and, as
    /// far as the link is known, the row's bytes there and back in f32.
    pub(crate) fn row_hop_s(&self, spec: &ModelSpec, span: Span) -> f64 {
        let end = spec.parts.len() as u32;
        let row = Dtype::F32.row_bytes(spec.d_model as usize);
        let input = if span.first == 0 { Dtype::U32.row_bytes(1) } else { row };
        let logits = Dtype::F32.row_bytes(spec.vocab as usize);
        let output = if span.end == end { logits } else { row };
        self.hop_s + self.wire_s_per_byte.unwrap_or(0.0) * (input + output) as f64
    }

    /// Learns what a link takes for a step, and for a byte, from one that was under way alone
    /// for `hop_s` beside its computing.
    pub(crate) fn learn_link(&mut self, bytes: usize, hop_s: f64) {
        let known_s = self.wire_s_per_byte.unwrap_or(0.0) * bytes as f64;
        if bytes >= LARGE_BYTES || known_s >= LARGE_S {
            let new = (hop_s - self.hop_s).max(0.0) / bytes as f64;
            let old = self.wire_s_per_byte.unwrap_or(new);
            self.wire_s_per_byte = Some(old + EWMA * (new - old));
        } else {
            self.hop_s += EWMA * ((hop_s - known_s).max(0.0) - self.hop_s);
        }
    }

    /// What its link is to carry, where a row of `width` values takes `row_s` to compute.
    fn link(&self, boundaries: Boundaries, width: usize, row_s: f64) -> Dtype {
        if self.spec.kind == WorkerKind::Embedded {
            return Dtype::F32;
        }
        let wanted = match boundaries {
            Boundaries::All(dtype) => dtype,
            Boundaries::Auto => {
                let bytes = 2 * Dtype::F32.row_bytes(width);
                match self.wire_s_per_byte.unwrap_or(0.0) * bytes as f64 {
                    transfer_s if transfer_s >= SLOW_INT8 * row_s => Dtype::I8,
                    transfer_s if transfer_s >= SLOW_F16 * row_s => Dtype::F16,
                    _ => Dtype::F32,
                }
            }
        };
        self.on_wire(wanted)
    }
}

impl Session {
    /// Fixes the dtypes of boundaries that have none yet.
    pub(crate) fn fix_dtypes(&mut self, chosen: BTreeMap<u32, Dtype>) {
        for (part, dtype) in chosen {
            self.dtypes.entry(part).or_insert(dtype);
        }
    }

    /// The same where a route was mended: what has none yet is exact.
    pub(crate) fn fix_exact(&mut self) {
        for stage in &self.stages {
            self.dtypes.entry(stage.span.first).or_insert(Dtype::F32);
        }
    }
}

impl Scheduler {
    /// What the link of a worker is to carry for a model now: of the one that it holds first.
    pub(crate) fn link_dtype(&self, worker: &Worker) -> Dtype {
        let held = worker.held.values().next();
        held.map_or(Dtype::F32, |held| self.link_through(worker, held.model, held.span))
    }

    fn link_through(&self, worker: &Worker, model: usize, span: Span) -> Dtype {
        let row_s = worker.compute_s(self.models[model].work_bytes(span), PREFILL_ROWS)
            / f64::from(PREFILL_ROWS);
        worker.link(self.config.boundaries, self.width(model), row_s)
    }

    /// D of a model.
    pub(crate) fn width(&self, model: usize) -> usize {
        self.models[model].spec.d_model as usize
    }

    /// What the boundaries of a route are to be in: the coarser of the links at either side.
    pub(crate) fn dtypes_of(&self, model: usize, stages: &[Stage]) -> BTreeMap<u32, Dtype> {
        let link = |stage: &Stage| {
            let worker = stage.holder.and_then(|(worker, _)| self.workers.get(&worker));
            worker.map_or(Dtype::F32, |worker| self.link_through(worker, model, stage.span))
        };
        let pairs = stages.windows(2);
        pairs.map(|pair| (pair[1].span.first, link(&pair[0]).max(link(&pair[1])))).collect()
    }

    /// What a stage of a session takes and gives, as the log has it.
    pub(crate) fn stage_dtypes(&self, session: &Session, span: Span) -> [Dtype; 2] {
        let parts = self.models[session.model].spec.parts.len() as u32;
        let input = if span.first == 0 { Dtype::U32 } else { session.dtype(span.first) };
        let output = if span.end == parts { Dtype::F32 } else { session.dtype(span.end) };
        [input, output]
    }

    /// Counts what an answered step and its answer were over a worker's link.
    pub(crate) fn count_traffic(&mut self, worker: WorkerId, step: &StepInFlight, model: usize) {
        let rows: u32 = step.segments.iter().map(|s| s.rows).sum();
        if step.span.first == 0 {
            self.tokens_embedded += u64::from(rows);
        }
        let (width, parts) = (self.width(model), self.models[model].spec.parts.len() as u32);
        let Some(worker) = self.workers.get_mut(&worker) else { return };
        if worker.spec.kind == WorkerKind::Embedded {
            return;
        }
        let mut traffic = Traffic::default();
        if step.span.first > 0 {
            traffic.add(rows, step.wire[0], width);
        }
        if step.span.end < parts {
            traffic.add(rows, step.wire[1], width);
        }
        for total in [&mut worker.traffic, &mut self.traffic] {
            total.bytes += traffic.bytes;
            total.bytes_f32 += traffic.bytes_f32;
        }
    }
}

/// Rows `[T, width]` of finite values in another dtype.
pub(crate) fn convert(rows: Bytes, from: Dtype, to: Dtype, width: usize) -> Bytes {
    if from == to {
        return rows;
    }
    let values = boundary::decode(&rows, from, width).expect("rows are checked when they come");
    boundary::encode(values.into_owned(), to, width).expect("what came was finite")
}

#[cfg(test)]
mod tests {
    use protocol::WorkerId;

    use super::*;
    use crate::event::{Holds, WorkerSpec};
    use crate::standing::Standing;

    const WIDTH: usize = 576;
    /// What a row takes to compute.
    const ROW_S: f64 = 1e-3;

    fn worker(kind: WorkerKind, boundaries: &[Dtype]) -> Worker {
        Worker::new(WorkerSpec {
            id: WorkerId(1),
            key: "k".into(),
            name: "w".into(),
            kind,
            backend: "cpu".into(),
            device: String::new(),
            notes: Vec::new(),
            trusted: false,
            holds: Holds::Anything,
            memory_bytes: 1,
            boundaries: boundaries.to_vec(),
            bytes_per_s: [1e9; 2],
            step_credits: 1,
            classes: Vec::new(),
            cached: Vec::new(),
            standing: Standing::default(),
            machine: String::new(),
        })
    }

    /// What a link of that latency and rate is to carry, after some decodes and a prompt.
    fn measured(mut worker: Worker, latency_s: f64, bytes_per_s: f64) -> Dtype {
        for bytes in [4608usize; 30].into_iter().chain([1 << 20]) {
            worker.learn_link(bytes, latency_s + bytes as f64 / bytes_per_s);
        }
        worker.link(Boundaries::Auto, WIDTH, ROW_S)
    }

    #[test]
    fn only_links_that_take_long_for_a_byte_are_lossy_by_themselves() {
        let native = || worker(WorkerKind::Native, &Dtype::LOSSY);
        assert_eq!(native().link(Boundaries::Auto, WIDTH, ROW_S), Dtype::F32, "not measured");
        assert_eq!(measured(native(), 1e-4, 1e9), Dtype::F32);
        // Fewer bytes are of no use against a long way.
        assert_eq!(measured(native(), 0.3, 1e9), Dtype::F32);
        // 4608 bytes a row: 0.46 ms, then 2.3 ms.
        assert_eq!(measured(native(), 0.03, 1e7), Dtype::F16);
        assert_eq!(measured(native(), 0.03, 2e6), Dtype::I8);
        assert_eq!(measured(worker(WorkerKind::Native, &[]), 0.03, 2e6), Dtype::F32);
        assert_eq!(measured(worker(WorkerKind::Embedded, &Dtype::LOSSY), 0.03, 2e6), Dtype::F32);
    }

    #[test]
    fn an_abandoned_routes_boundaries_say_nothing_of_the_next_one() {
        let at = |parts: &[u32]| -> Vec<Stage> {
            let spans = parts.windows(2).map(|p| Span { first: p[0], end: p[1] });
            spans.map(|span| Stage { holder: None, span, done: 0, sent: 0, layers: true }).collect()
        };
        let id = protocol::SessionId(1);
        let mut session =
            Session::new(id, crate::RequestId(1), 0, crate::session::Phase::Computing);
        session.tokens = vec![1];
        let mut go = |parts: &[u32], dtype| {
            session.stages = at(parts);
            let inner = &parts[1..parts.len() - 1];
            session.fix_dtypes(inner.iter().map(|part| (*part, dtype)).collect());
            session.rewind();
            session.dtypes.clone()
        };
        go(&[0, 2, 4, 6], Dtype::I8);
        let stays = [(2, Dtype::I8)].into();
        assert_eq!(go(&[0, 2, 6], Dtype::F32), stays);
        let back = [(2, Dtype::I8), (4, Dtype::F32)].into();
        assert_eq!(go(&[0, 2, 4, 6], Dtype::F32), back);
    }
}
