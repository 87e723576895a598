//! A scheduler with workers that do as they are told, and what it asks of them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use protocol::{
    AssignmentId, BlobRef, Dtype, Frame, FrameKind, SessionId, ToWorker, WorkerId, WorkerKind,
};
use scheduler::{
    Action, ClassSpec, Config, Event, Holds, ModelSpec, Note, PartSpec, Request, RequestError,
    RequestId, Scheduler, Standing, Time, Wish, WorkerSpec,
};

pub const MIB: u64 = 1 << 20;
pub const LAYERS: u32 = 4;
pub const VOCAB: u32 = 8;
pub const D_MODEL: u32 = 2;

/// Worker, first and last layer, embedding, head.
pub type Shard = (u64, Option<(u32, u32)>, bool, bool);

/// A scheduler whose workers load at once and answer when told to.
pub struct Bench {
    pub scheduler: Scheduler,
    pub now: u64,
    /// Steps sent and not answered.
    pub steps: Vec<(WorkerId, Frame)>,
    pub controls: Vec<(WorkerId, ToWorker)>,
    pub samples: Vec<(SessionId, u32)>,
    pub started: BTreeMap<RequestId, (Vec<SessionId>, u32)>,
    pub refused: BTreeMap<RequestId, RequestError>,
    pub dismissed: Vec<(WorkerId, String, bool)>,
    pub notes: Vec<Note>,
    /// The newest of each key.
    pub standings: BTreeMap<String, Standing>,
    /// Key, layers, rows.
    pub verified: Vec<(String, u32, u32)>,
    /// The tensor groups whose members may write to each other.
    pub groups: BTreeMap<AssignmentId, Vec<WorkerId>>,
    /// Whether shards are ready as soon as they are assigned.
    pub loads: bool,
    /// D and V of the model.
    pub widths: [u32; 2],
}

pub fn model() -> ModelSpec {
    let blob = |name: &str, bytes| BlobRef { hash: format!("{name:0>64}"), bytes };
    let part = |name: &str, work_bytes| PartSpec { blobs: vec![blob(name, MIB)], work_bytes };
    let mut parts = vec![part("e", 0)];
    parts.extend((0..LAYERS).map(|layer| part(&layer.to_string(), MIB)));
    parts.push(part("e", MIB));
    ModelSpec {
        name: "m".into(),
        manifest: blob("a", 100),
        classes: ["canonical-1", "wgsl-f32"]
            .map(|name| ClassSpec { name: name.into(), kv_bytes_per_position: 16 })
            .to_vec(),
        parts,
        d_model: D_MODEL,
        vocab: VOCAB,
        context: 1000,
        divisions: Vec::new(),
    }
}

impl Bench {
    pub fn new(config: Config) -> Bench {
        Bench::serving(config, model())
    }

    pub fn serving(config: Config, model: ModelSpec) -> Bench {
        let mut bench = Bench {
            scheduler: Scheduler::new(Config { scratch_bytes: 0, ..config }),
            now: 0,
            steps: Vec::new(),
            controls: Vec::new(),
            samples: Vec::new(),
            started: BTreeMap::new(),
            refused: BTreeMap::new(),
            dismissed: Vec::new(),
            notes: Vec::new(),
            standings: BTreeMap::new(),
            verified: Vec::new(),
            groups: BTreeMap::new(),
            loads: true,
            widths: [model.d_model, model.vocab],
        };
        bench.tell(Event::AddModel(model));
        bench
    }

    pub fn tell(&mut self, event: Event) {
        self.scheduler.handle(Time(self.now), event);
        let mut ready = Vec::new();
        while let Some(action) = self.scheduler.poll_action() {
            match action {
                Action::Control { worker, message } => {
                    if let ToWorker::Assign(assignment) = &message
                        && self.loads
                    {
                        ready.push(Event::Ready { worker, assignment: assignment.id });
                    }
                    self.controls.push((worker, message));
                }
                Action::Step { worker, frame } => self.steps.push((worker, frame)),
                Action::Dismiss { worker, reason, retry } => {
                    self.steps.retain(|(w, _)| *w != worker);
                    self.dismissed.push((worker, reason, retry));
                }
                Action::Started { request, sessions, cached_tokens } => {
                    self.started.insert(request, (sessions, cached_tokens));
                }
                Action::Sample { session, position, logits } => {
                    assert_eq!(logits.len(), self.widths[1] as usize * 4);
                    self.samples.push((session, position));
                }
                Action::Refused { request, error } => drop(self.refused.insert(request, error)),
                Action::Standing { key, standing } => drop(self.standings.insert(key, standing)),
                Action::Verified { key, layers, rows, .. } => {
                    self.verified.push((key, layers, rows));
                }
                Action::Group { group, members } => drop(self.groups.insert(group, members)),
                Action::Ungroup { group } => drop(self.groups.remove(&group)),
                Action::Note(note) => self.notes.push(note),
            }
        }
        for event in ready {
            self.tell(event);
        }
    }

    /// Lets time pass, deadline by deadline.
    pub fn pass(&mut self, time: Duration) {
        let until = self.now + time.as_micros() as u64;
        while let Some((at, _)) = self.scheduler.next_deadline().filter(|(at, _)| at.0 <= until) {
            self.now = self.now.max(at.0);
            self.tell(Event::Tick);
        }
        self.now = until;
    }

    pub fn join(&mut self, id: u64, memory_bytes: u64, trusted: bool, holds: Holds) {
        self.join_as(id, &format!("{id:0>64}"), memory_bytes, trusted, holds);
    }

    pub fn join_as(&mut self, id: u64, key: &str, memory_bytes: u64, trusted: bool, holds: Holds) {
        let spec = worker(id, memory_bytes, trusted, holds);
        self.join_spec(WorkerSpec { key: key.into(), ..spec });
    }

    pub fn join_spec(&mut self, spec: WorkerSpec) {
        self.tell(Event::Join(spec));
        self.pass(Duration::from_secs(1));
    }

    pub fn submit(&mut self, id: u64, prompt: Vec<u32>, choices: u32) {
        self.submit_wishing(id, prompt, choices, Wish::default());
    }

    pub fn submit_wishing(&mut self, id: u64, prompt: Vec<u32>, choices: u32, wish: Wish) {
        let deadline = Time(self.now + 60_000_000);
        let request = Request {
            id: RequestId(id),
            model: "m".into(),
            prompt,
            choices,
            max_new_tokens: 10,
            deadline,
            wish,
        };
        self.tell(Event::Submit(request));
    }

    /// Answers the oldest step with zeros of the right shape.
    pub fn answer(&mut self) -> Frame {
        let (worker, step) = self.steps.remove(0);
        self.answer_step(worker, &step, |_| {});
        step
    }

    pub fn answer_step(&mut self, worker: WorkerId, step: &Frame, spoil: impl Fn(&mut Frame)) {
        let mut frame = self.answer_to(step);
        spoil(&mut frame);
        self.now += 1500;
        self.tell(Event::Result { worker, frame });
    }

    /// Zeros of the right shape.
    pub fn answer_to(&self, step: &Frame) -> Frame {
        let head = step.span.end == LAYERS + 2;
        let rows: u32 =
            step.segments.iter().map(|s| if head { s.logits_rows } else { s.rows }).sum();
        let [d_model, vocab] = self.widths;
        let (width, dtype) = if head { (vocab, Dtype::F32) } else { (d_model, step.answer) };
        Frame {
            kind: FrameKind::Result,
            compute_us: 1000,
            dtype,
            payload: Bytes::from(vec![0; rows as usize * dtype.row_bytes(width as usize)]),
            ..step.clone()
        }
    }

    pub fn answer_all(&mut self) {
        while !self.steps.is_empty() {
            self.answer();
        }
    }

    pub fn shards(&self) -> Vec<Shard> {
        let view = self.scheduler.view();
        let all = view.workers.iter().flat_map(|w| w.shards.iter().map(move |s| (w.id.0, s)));
        all.map(|(w, s)| (w, s.layers, s.embedding, s.head)).collect()
    }

    pub fn session(&self, request: u64) -> SessionId {
        self.started[&RequestId(request)].0[0]
    }
}

/// A native worker.
pub fn worker(id: u64, memory_bytes: u64, trusted: bool, holds: Holds) -> WorkerSpec {
    WorkerSpec {
        id: WorkerId(id),
        key: format!("{id:0>64}"),
        name: format!("w{id}"),
        kind: WorkerKind::Native,
        backend: "cpu".into(),
        device: String::new(),
        notes: Vec::new(),
        trusted,
        holds,
        memory_bytes,
        boundaries: Vec::new(),
        bytes_per_s: [1e9, 2e8],
        step_credits: 2,
        classes: vec!["canonical-1".into()],
        cached: Vec::new(),
        standing: Standing::default(),
        machine: String::new(),
    }
}

/// One worker that holds everything.
pub fn alone() -> Bench {
    let mut bench = Bench::new(Config::default());
    bench.join(1, 100 * MIB, true, Holds::Anything);
    bench
}
