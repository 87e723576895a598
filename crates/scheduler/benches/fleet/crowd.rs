//! A fleet that does as it is told at once, and a clock on every event.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use protocol::{
    AssignmentId, BlobRef, Dtype, Frame, FrameKind, SessionId, ToWorker, WorkerId, WorkerKind,
};
use scheduler::{
    Action, ClassSpec, Config, Event, Holds, ModelSpec, PartSpec, Request, RequestId, Scheduler,
    Time, Wish, WorkerSpec,
};

const MIB: u64 = 1 << 20;
const LAYERS: u32 = 32;
const D_MODEL: u32 = 1024;
const VOCAB: u32 = 8192;
const PROMPT: usize = 16;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A worker comes, up to its assignment: the join and the placing that follows.
    Join,
    /// A worker goes.
    Leave,
    /// A worker says that it holds its shard.
    Ready,
    /// A ping came back.
    RoundTrip,
    /// A step was answered.
    Result,
    /// The shell chose a token.
    Sampled,
    /// A request is submitted, routed, and its first step sent.
    Submit,
    /// A client is gone.
    Cancel,
    /// The time, with nothing due.
    Tick,
}

impl Kind {
    pub const ALL: [Kind; 9] = [
        Kind::Join,
        Kind::Leave,
        Kind::Ready,
        Kind::RoundTrip,
        Kind::Result,
        Kind::Sampled,
        Kind::Submit,
        Kind::Cancel,
        Kind::Tick,
    ];

    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

pub struct Crowd {
    scheduler: Scheduler,
    now: u64,
    rng: u64,
    next_worker: u64,
    next_request: u64,
    workers: Vec<WorkerId>,
    /// Requests in flight, the oldest first.
    requests: VecDeque<RequestId>,
    steps: VecDeque<(WorkerId, Frame)>,
    ready: Vec<(WorkerId, AssignmentId)>,
    samples: VecDeque<SessionId>,
    times_us: BTreeMap<Kind, Vec<f64>>,
}

fn model() -> ModelSpec {
    let blob = |name: String, bytes| BlobRef { hash: format!("{name:0>64}"), bytes };
    let part =
        |name: String, work| PartSpec { blobs: vec![blob(name, 70 * MIB)], work_bytes: work };
    let mut parts = vec![part("e".into(), 0)];
    parts.extend((0..LAYERS).map(|layer| part(layer.to_string(), 70 * MIB)));
    parts.push(part("f".into(), 70 * MIB));
    ModelSpec {
        name: "m".into(),
        manifest: blob("a".into(), 1000),
        classes: vec![ClassSpec { name: "canonical-1".into(), kv_bytes_per_position: 4096 }],
        parts,
        d_model: D_MODEL,
        vocab: VOCAB,
        context: 8192,
        divisions: Vec::new(),
    }
}

impl Crowd {
    pub fn new(sessions: u64) -> Crowd {
        let config = Config {
            sessions_max: 2 * sessions as usize,
            log_bytes_max: 256 << 20,
            ..Config::default()
        };
        let mut crowd = Crowd {
            scheduler: Scheduler::new(config),
            now: 0,
            rng: 1,
            next_worker: 1,
            next_request: 1,
            workers: Vec::new(),
            requests: VecDeque::new(),
            steps: VecDeque::new(),
            ready: Vec::new(),
            samples: VecDeque::new(),
            times_us: BTreeMap::new(),
        };
        crowd.tell(Event::AddModel(model()));
        crowd
    }

    fn below(&mut self, n: u64) -> u64 {
        self.rng = self.rng.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.rng >> 33) % n
    }

    /// Hands over an event and drains the actions. Answers how long that took, µs.
    fn tell(&mut self, event: Event) -> f64 {
        self.now += 10;
        let began = Instant::now();
        self.scheduler.handle(Time(self.now), event);
        let mut actions = Vec::new();
        while let Some(action) = self.scheduler.poll_action() {
            actions.push(action);
        }
        let due = self.scheduler.next_deadline();
        let took = began.elapsed().as_secs_f64() * 1e6;
        std::hint::black_box(due);
        for action in actions {
            match action {
                Action::Control { worker, message: ToWorker::Assign(a) } => {
                    self.ready.push((worker, a.id));
                }
                Action::Step { worker, frame } => self.steps.push_back((worker, frame)),
                Action::Sample { session, .. } => self.samples.push_back(session),
                Action::Dismiss { worker, reason, .. } => panic!("{worker} dismissed: {reason}"),
                // In a small fleet it has outgrown every KV cache.
                Action::Refused { request, .. } => self.requests.retain(|r| *r != request),
                _ => {}
            }
        }
        took
    }

    fn timed(&mut self, kind: Kind, event: Event) {
        let took = self.tell(event);
        self.times_us.entry(kind).or_default().push(took);
    }

    /// Times one event.
    pub fn time(&mut self, kind: Kind, event: impl Fn(&mut Crowd) -> Event) {
        let event = event(self);
        self.timed(kind, event);
    }

    pub fn forget_times(&mut self) {
        self.times_us.clear();
    }

    pub fn median_us(&mut self, kind: Kind) -> f64 {
        let times = self.times_us.entry(kind).or_default();
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
    }

    pub fn live(&self) -> usize {
        self.scheduler.view().sessions.len()
    }

    fn new_worker(&mut self) -> WorkerSpec {
        let id = self.next_worker;
        self.next_worker += 1;
        let spread = 700 + self.below(600);
        let ends = id <= 2;
        // Memory in MiB, GB/s at one row: tabs, desktops, GPUs.
        let (kind, memory, rate) = match self.below(10) {
            _ if ends => (WorkerKind::Native, 4_000, 30.0),
            0..=5 => (WorkerKind::Browser, 900, 4.0),
            6..=8 => (WorkerKind::Native, 1_800, 12.0),
            _ => (WorkerKind::Native, 4_000, 60.0),
        };
        let rate = rate * spread as f64 * 1e6;
        WorkerSpec {
            id: WorkerId(id),
            key: format!("{id:0>64x}"),
            name: format!("w{id}"),
            kind,
            backend: "cpu".into(),
            device: String::new(),
            notes: Vec::new(),
            trusted: ends,
            holds: if ends { Holds::Ends } else { Holds::Anything },
            memory_bytes: memory * spread / 1000 * MIB,
            boundaries: Vec::new(),
            bytes_per_s: [rate, rate / 3.0],
            step_credits: 2,
            classes: vec!["canonical-1".into()],
            cached: Vec::new(),
            machine: String::new(),
            standing: scheduler::Standing::default(),
        }
    }

    /// So many workers come; placing goes on until all are placed.
    pub fn fill(&mut self, size: u64) {
        for _ in 0..size {
            let spec = self.new_worker();
            self.workers.push(spec.id);
            self.tell(Event::Join(spec));
        }
        self.settle(None);
    }

    /// Lets the time come at which shards are placed, as often as that is wanted, and has
    /// them loaded. Answers how long placing took, µs.
    fn settle(&mut self, counts: Option<Kind>) -> f64 {
        let mut took = 0.0;
        while let Some((at, _)) =
            self.scheduler.next_deadline().filter(|(_, why)| *why == "place shards")
        {
            self.now = self.now.max(at.0);
            took += self.tell(Event::Tick);
            for (worker, assignment) in std::mem::take(&mut self.ready) {
                let event = Event::Ready { worker, assignment };
                match counts {
                    Some(kind) => self.timed(kind, event),
                    None => drop(self.tell(event)),
                }
            }
        }
        took
    }

    pub fn submit(&mut self) {
        let event = self.request();
        self.tell(event);
    }

    fn request(&mut self) -> Event {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        self.requests.push_back(id);
        // Prompts part at once, so that none reuses another's KV.
        let first = id.0 as u32;
        Event::Submit(Request {
            id,
            model: "m".into(),
            prompt: (first..first + PROMPT as u32).collect(),
            choices: 1,
            max_new_tokens: 200,
            deadline: Time(u64::MAX / 2),
            wish: Wish::default(),
        })
    }

    /// The oldest step is answered, and what that leaves to sample is sampled.
    pub fn step(&mut self) {
        if let Some((worker, step)) = self.steps.pop_front() {
            let frame = answer(step);
            self.timed(Kind::Result, Event::Result { worker, frame });
        }
        while let Some(session) = self.samples.pop_front() {
            self.timed(Kind::Sampled, Event::Sampled { session, token: 1 });
        }
    }

    /// One worker goes for good, another comes.
    pub fn turn_over(&mut self) {
        // The first two hold the ends: they stay.
        if self.workers.len() > 2 {
            let gone = 2 + self.below(self.workers.len() as u64 - 2) as usize;
            let worker = self.workers.swap_remove(gone);
            self.steps.retain(|(w, _)| *w != worker);
            let reason = "gone".to_owned();
            self.timed(Kind::Leave, Event::Leave { worker, reason });
            self.settle(None);
        }
        let spec = self.new_worker();
        self.workers.push(spec.id);
        let joined = self.tell(Event::Join(spec));
        let placed = self.settle(Some(Kind::Ready));
        self.times_us.entry(Kind::Join).or_default().push(joined + placed);
        for _ in 0..8 {
            self.step();
        }
    }

    /// One client leaves, another comes.
    pub fn another_request(&mut self) {
        if let Some(request) = self.requests.pop_front() {
            self.timed(Kind::Cancel, Event::Cancel { request });
        }
        let event = self.request();
        self.timed(Kind::Submit, event);
        for _ in 0..8 {
            self.step();
        }
    }

    pub fn round_trip(&mut self) -> Event {
        let at = self.below(self.workers.len() as u64) as usize;
        let rtt = std::time::Duration::from_micros(10_000 + self.below(50_000));
        Event::RoundTrip { worker: self.workers[at], rtt }
    }
}

/// Zeros of the right shape.
fn answer(step: Frame) -> Frame {
    let head = step.span.end == LAYERS + 2;
    let rows: u32 = step.segments.iter().map(|s| if head { s.logits_rows } else { s.rows }).sum();
    let width = if head { VOCAB } else { D_MODEL } as usize * 4;
    Frame {
        kind: FrameKind::Result,
        compute_us: 1000,
        dtype: Dtype::F32,
        payload: Bytes::from(vec![0; rows as usize * width]),
        ..step
    }
}
