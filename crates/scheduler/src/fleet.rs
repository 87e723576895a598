//! Who is here, what they hold, how fast they are.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use protocol::{AssignmentId, BlobRef, Dtype, Segment, SessionId, Span, WorkerKind};

use crate::event::{Holds, ModelSpec, Time, WorkerSpec};
pub use crate::groups::Rank;
use crate::links::Traffic;
use crate::survival::Sort;

/// Positions of one KV page.
pub const PAGE_POSITIONS: u32 = 64;
/// Weight of a new measurement in the running averages.
pub(crate) const EWMA: f64 = 0.2;
/// Step durations remembered per worker, as ratios to what was predicted.
const HISTORY_MAX: usize = 128;
/// No step is given less than this before its worker counts as gone.
const STEP_TIMEOUT_MIN: Duration = Duration::from_secs(8);
/// Nor more than this.
const STEP_TIMEOUT_MAX: Duration = Duration::from_secs(120);
/// A step expected to be shorter than this says nothing about a worker's reliability, seconds.
const RATIO_FLOOR_S: f64 = 0.002;
/// Weight of a slower measurement in what counts as a worker's usual speed; a faster one weighs
/// as much as in its speed now.
const USUAL_EWMA: f64 = 0.005;
/// So many times its usual time for a byte, and a worker counts as slowed down.
const SLOWED: f64 = 1.25;
/// How much dearer a worker counts for each session that it has already, beyond what they
/// add to its steps: between equals the emptier one is chosen.
const CROWDING: f64 = 0.05;
/// A hop whose time is not known yet, seconds.
const HOP_UNKNOWN_S: f64 = 0.001;

/// A worker that is here.
#[derive(Debug)]
pub struct Worker {
    /// As it introduced itself.
    pub spec: WorkerSpec,
    /// Takes no new sessions and leaves when its steps are answered.
    pub draining: bool,
    /// Nobody sees its tab: its browser may slow it down or freeze it.
    pub hidden: bool,
    /// Hashes of the weights that it has on its disk.
    pub cached: BTreeSet<String>,
    /// Its shards.
    pub held: BTreeMap<AssignmentId, Held>,
    /// Steps sent and not answered, by number.
    pub in_flight: BTreeMap<u64, StepInFlight>,
    /// Seconds per weight byte at 1 row, and at 8 rows (each byte counted once a step).
    pub s_per_byte: [f64; 2],
    /// Whether real steps have corrected the benchmark.
    pub measured: bool,
    /// Seconds that any step is under way, there and back, beside its computing and its bytes.
    pub hop_s: f64,
    /// Whether a ping was answered: before, a hop is only assumed.
    pub hop_known: bool,
    /// What its link takes for a byte, beyond what it takes for any step, seconds; known once
    /// there was a step large enough to tell.
    pub wire_s_per_byte: Option<f64>,
    /// Boundaries that went over its link.
    pub traffic: Traffic,
    /// Rows computed.
    pub rows: u64,
    /// Why it holds nothing, if so.
    pub idle_because: Option<String>,
    /// Workers of one machine or address have the same.
    pub machine: u64,
    /// When it came.
    pub joined_at: Time,
    /// What it is counted as among those that stay or leave.
    pub sort: Option<Sort>,
    /// The chance that it is here in some minutes.
    pub survives: f64,
    /// When it is to be looked at again, if nothing happens.
    pub visit_at: Option<Time>,
    /// Values that it said overflow, and that nobody else has confirmed.
    pub overflows: u32,
    /// When its last step was answered.
    pub answered_at: Time,
    /// What its real steps took for a weight byte on the whole, seconds, once there were some.
    usual_s_per_byte: Option<[f64; 2]>,
    /// While it leads a tensor group: the same as its own of the group as a whole, exchanges
    /// included.
    pub group_s_per_byte: Option<[f64; 2]>,
    ratios: VecDeque<f64>,
}

/// A shard on a worker.
#[derive(Debug)]
pub struct Held {
    /// Index of the model.
    pub model: usize,
    /// What it computes in.
    pub class: String,
    /// Parts.
    pub span: Span,
    /// Takes steps.
    pub ready: bool,
    /// While it is not ready: bytes fetched, and when the worker counts as stuck.
    pub loading: (u64, Time),
    /// Unique weight bytes.
    pub weight_bytes: u64,
    /// Its weights; shards of one worker may share some.
    pub blobs: Vec<BlobRef>,
    /// KV and scratch, bytes.
    pub own_bytes: u64,
    /// KV pages of 64 positions.
    pub kv_pages: u32,
    /// Pages promised to sessions.
    pub pages: BTreeMap<SessionId, u32>,
    /// Its place, if it is a share in a tensor group.
    pub rank: Option<Rank>,
}

/// A step that was sent.
#[derive(Debug)]
pub struct StepInFlight {
    /// To which shard.
    pub assignment: AssignmentId,
    /// Which parts.
    pub span: Span,
    /// What was sent.
    pub segments: Vec<Segment>,
    /// What the rows are in over the link, there and back.
    pub wire: [Dtype; 2],
    /// What those that come back are logged in.
    pub logged: Dtype,
    /// Bytes of the payload.
    pub payload_bytes: usize,
    /// When.
    pub sent_at: Time,
    /// When the worker counts as gone.
    pub deadline: Time,
    /// Predicted computing time, seconds.
    pub predicted_s: f64,
    /// Predicted time of its bytes and its answer's over the link, seconds.
    pub wire_s: f64,
    /// All of that with the hop and the steps before it.
    pub expected_s: f64,
    /// Whether nothing else was in flight when it was sent.
    pub alone: bool,
}

impl Held {
    /// Pages not promised.
    pub fn pages_free(&self) -> u32 {
        self.kv_pages.saturating_sub(self.pages.values().sum())
    }
}

/// Pages that hold `positions`.
pub fn pages_for(positions: u32) -> u32 {
    positions.div_ceil(PAGE_POSITIONS)
}

/// Whether any layer part is in the span, of a model with `parts` parts.
pub fn has_layers(span: Span, parts: usize) -> bool {
    span.first.max(1) < span.end.min(parts as u32 - 1)
}

impl Worker {
    /// A worker as it joins.
    pub fn new(mut spec: WorkerSpec) -> Worker {
        let seconds = |rate: f64| if rate.is_finite() && rate > 0.0 { 1.0 / rate } else { 1e-6 };
        Worker {
            s_per_byte: spec.bytes_per_s.map(seconds),
            hop_s: if spec.kind == WorkerKind::Embedded { 0.0 } else { HOP_UNKNOWN_S },
            machine: machine_number(&spec),
            joined_at: Time::default(),
            sort: None,
            survives: 1.0,
            visit_at: None,
            overflows: 0,
            answered_at: Time::default(),
            usual_s_per_byte: None,
            group_s_per_byte: None,
            hop_known: spec.kind == WorkerKind::Embedded,
            cached: std::mem::take(&mut spec.cached).into_iter().collect(),
            spec,
            draining: false,
            hidden: false,
            held: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            measured: false,
            wire_s_per_byte: None,
            traffic: Traffic::default(),
            rows: 0,
            idle_because: None,
            ratios: VecDeque::new(),
        }
    }

    /// May be given the embedding or the head.
    pub fn may_hold_ends(&self) -> bool {
        self.spec.trusted
    }

    /// May be given layers.
    pub fn may_hold_layers(&self) -> bool {
        self.spec.holds == Holds::Anything && !self.is_rank()
    }

    /// Whether it holds a share in a tensor group, and so no other layers.
    pub fn is_rank(&self) -> bool {
        self.held.values().any(|h| h.rank.is_some())
    }

    /// Seconds per weight byte of what its routes go through: its own, or its group's.
    pub fn stage_s_per_byte(&self) -> [f64; 2] {
        self.group_s_per_byte.unwrap_or(self.s_per_byte)
    }

    /// Whether it is a tab.
    pub fn is_browser(&self) -> bool {
        self.spec.kind == WorkerKind::Browser
    }

    /// The chance that it is here in some minutes; what it offers is weighted by it.
    pub fn survival(&self) -> f64 {
        self.survives
    }

    /// Seconds that a session's token takes through weights of `work_bytes` beside `others`
    /// sessions: they share its steps.
    pub fn token_s(&self, work_bytes: u64, others: u32) -> f64 {
        let crowd = 1.0 + CROWDING * f64::from(others);
        self.compute_s(work_bytes, 1 + others) * crowd / self.survival()
    }

    /// Memory promised to the shards that `which` is true of, bytes: weights that several
    /// share count once.
    pub fn memory_used(&self, which: impl Fn(&Held) -> bool) -> u64 {
        let held = || self.held.values().filter(|h| which(h));
        let own: u64 = held().map(|h| h.own_bytes).sum();
        let blobs = held().flat_map(|h| &h.blobs).map(|b| (b.hash.as_str(), b.bytes));
        own + blobs.collect::<BTreeMap<&str, u64>>().values().sum::<u64>()
    }

    /// Memory not promised to a shard, bytes.
    pub fn memory_free(&self) -> u64 {
        self.spec.memory_bytes.saturating_sub(self.memory_used(|_| true))
    }

    /// The same if it held nothing of one model.
    pub fn memory_free_without(&self, model: usize) -> u64 {
        self.spec.memory_bytes.saturating_sub(self.memory_used(|h| h.model != model))
    }

    /// Whether another step may be sent.
    pub fn has_credit(&self) -> bool {
        self.in_flight.len() < self.spec.step_credits as usize
    }

    /// Seconds that a step of `rows` rows through weights of `work_bytes` should take to compute.
    pub fn compute_s(&self, work_bytes: u64, rows: u32) -> f64 {
        let bytes = work_bytes as f64;
        let [one, eight] = self.stage_s_per_byte();
        let eight = eight.max(one);
        if rows <= 8 {
            let slope = (eight - one) / 7.0;
            bytes * (one + slope * f64::from(rows.saturating_sub(1)))
        } else {
            bytes * eight * f64::from(rows) / 8.0
        }
    }

    /// Seconds of computing, and of bytes over the link, until a step is answered that is sent
    /// now and takes `[predicted_s, wire_s]` itself: those of the steps before it count as well.
    pub fn with_those_ahead(&self, predicted_s: f64, wire_s: f64) -> [f64; 2] {
        let ahead = self.in_flight.values();
        ahead.fold([predicted_s, wire_s], |[p, w], s| [p + s.predicted_s, w + s.wire_s])
    }

    /// How long to wait for a step whose answer is expected after so many seconds of computing
    /// and hop, and so many of bytes over the link: three times the 99th percentile of this
    /// worker's own history. Bytes at [`crate::links::LINK_FLOOR_BYTES_PER_S`] have their time whatever that
    /// history is.
    pub fn patience(&self, computing_s: f64, wire_s: f64) -> Duration {
        let (measured_s, assumed_s) = match self.wire_s_per_byte {
            Some(_) => (wire_s, 0.0),
            None => (0.0, wire_s),
        };
        let p99 = self.ratio_p99().unwrap_or(4.0);
        let seconds = (computing_s + measured_s).max(RATIO_FLOOR_S) * 3.0 * p99.max(1.0);
        let least = STEP_TIMEOUT_MIN.as_secs_f64();
        let seconds = seconds.max(least) + assumed_s;
        Duration::from_secs_f64(seconds).min(STEP_TIMEOUT_MAX)
    }

    /// Gives its steps at least so much time from now as any step has.
    pub(crate) fn grant_steps(&mut self, now: Time) {
        for step in self.in_flight.values_mut() {
            step.deadline = step.deadline.max(now.plus(STEP_TIMEOUT_MIN));
        }
    }

    /// Whether it has become much slower than it usually is.
    pub fn is_slowed(&self) -> bool {
        let is_slow = |(now, usual): (&f64, &f64)| *now > SLOWED * *usual;
        self.usual_s_per_byte.is_some_and(|usual| self.s_per_byte.iter().zip(&usual).any(is_slow))
    }

    /// Believes it halfway back to its usual speed.
    pub fn forgive(&mut self) {
        let Some(usual) = self.usual_s_per_byte else { return };
        for (now, usual) in self.s_per_byte.iter_mut().zip(usual) {
            *now = now.min((*now + usual) / 2.0);
        }
    }

    /// The 99th percentile of what steps took against what they were expected to take.
    fn ratio_p99(&self) -> Option<f64> {
        // Of so few it is the largest or the one after it.
        let mut largest = [f64::NEG_INFINITY; 2];
        for &ratio in &self.ratios {
            if ratio > largest[0] {
                largest = [ratio, largest[0]];
            } else if ratio > largest[1] {
                largest[1] = ratio;
            }
        }
        let n = self.ratios.len();
        (n > 0).then(|| largest[usize::from(n * 99 / 100 + 1 < n)])
    }

    /// Learns from an answered step, whose answer's payload had `answer_bytes`.
    pub fn learn(
        &mut self,
        step: &StepInFlight,
        work_bytes: u64,
        compute_us: u32,
        answer_bytes: usize,
        now: Time,
    ) {
        let rows: u32 = step.segments.iter().map(|s| s.rows).sum();
        self.rows += u64::from(rows);
        self.answered_at = now;
        let took = now.since(step.sent_at).as_secs_f64();
        if self.ratios.len() == HISTORY_MAX {
            self.ratios.pop_front();
        }
        self.ratios.push_back(took / step.expected_s.max(RATIO_FLOOR_S));
        // A worker's own word about its computing is taken only as far as the clock bears it out.
        let compute = (f64::from(compute_us) * 1e-6).min(took);
        if step.alone && self.spec.kind != WorkerKind::Embedded {
            self.learn_link(step.payload_bytes + answer_bytes, took - compute);
        }
        if work_bytes == 0 || compute == 0.0 {
            return;
        }
        let per_byte = compute / work_bytes as f64;
        let off = compute / self.compute_s(work_bytes, rows);
        let shared = self.held.get(&step.assignment).is_some_and(|h| h.rank.is_some());
        let speed = match &mut self.group_s_per_byte {
            Some(speed) if shared => speed,
            // An end beside a group's share says nothing of the group.
            Some(_) => return,
            None => &mut self.s_per_byte,
        };
        let average = |old: &mut f64, new: f64| *old += EWMA * (new - *old);
        match rows {
            1 => average(&mut speed[0], per_byte),
            8.. => average(&mut speed[1], per_byte * 8.0 / f64::from(rows)),
            _ => {
                // Between the two, both are off by what this step was off by.
                let scale = 1.0 + EWMA * (off - 1.0);
                *speed = speed.map(|s| s * scale);
            }
        }
        if shared {
            return;
        }
        self.measured = true;
        let usual = self.usual_s_per_byte.get_or_insert(self.s_per_byte);
        for (usual, now) in usual.iter_mut().zip(self.s_per_byte) {
            let weight = if now > *usual { USUAL_EWMA } else { EWMA };
            *usual += weight * (now - *usual);
        }
        let usual = *usual;
        match rows {
            1 => self.slow_alike(0, usual),
            8.. => self.slow_alike(1, usual),
            _ => {}
        }
    }

    /// What slows a machine down does so at one row and at many: what steps of one kind have
    /// told is believed of the other, until steps of that kind tell better.
    fn slow_alike(&mut self, told: usize, usual: [f64; 2]) {
        let by = self.s_per_byte[told] / usual[told];
        let (other, usual) = (&mut self.s_per_byte[1 - told], usual[1 - told]);
        if by > SLOWED && usual * by > *other {
            *other = usual * by;
        } else if *other > SLOWED * usual {
            *other += EWMA * (usual * by - *other);
        }
    }
}

/// The same number for workers that say that they share a machine.
fn machine_number(spec: &WorkerSpec) -> u64 {
    // FNV-1a; a worker that does not say has one of its own.
    let own = format!("worker {}", spec.id.0);
    let text = if spec.machine.is_empty() { &own } else { &spec.machine };
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Weight bytes of a span that one row works through.
pub fn work_bytes(model: &ModelSpec, span: Span) -> u64 {
    model.parts[span.first as usize..span.end as usize].iter().map(|p| p.work_bytes).sum()
}

/// Number of layers in a span.
pub fn layer_count(model: &ModelSpec, span: Span) -> u32 {
    let last = model.parts.len() as u32 - 1;
    span.end.min(last).saturating_sub(span.first.max(1))
}

/// A span in words: `the embedding, layers 3 to 7, the head`; layers are counted from 0.
pub fn describe(model: &ModelSpec, span: Span) -> String {
    let last = model.parts.len() as u32 - 1;
    let mut words = Vec::new();
    if span.first == 0 {
        words.push("the embedding".to_owned());
    }
    let (first, end) = (span.first.max(1), span.end.min(last));
    if first + 1 == end {
        words.push(format!("layer {}", first - 1));
    } else if first < end {
        words.push(format!("layers {} to {}", first - 1, end - 2));
    }
    if span.end == last + 1 {
        words.push("the head".to_owned());
    }
    words.join(", ")
}
