//! A fleet on paper that the real scheduler drives: time is a number, a shard is ready when it
//! is assigned, and a step takes what the worker's rate says.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use protocol::{Dtype, Frame, FrameKind, SessionId, ToWorker, WorkerId, WorkerKind};
use scheduler::{
    Action, Config, Event, FleetView, Holds, ModelSpec, Request, RequestId, Scheduler, Standing,
    Time, Wish, WorkerSpec,
};

use super::fleet_file::{FleetFile, Machine};

/// Happenings at most: with more, something goes round in circles.
const HAPPENINGS_MAX: usize = 20_000_000;
/// How long after the last join placing may take, time on paper.
const PLACED_WITHIN: Duration = Duration::from_secs(60);
/// How long a measurement may take, time on paper.
const MEASURED_WITHIN: Duration = Duration::from_secs(24 * 3600);
/// Audits that every worker has behind it: what is predicted is a fleet that has proven itself.
const AGREEMENTS: u32 = 1000;
/// Positions that are left for answers, at least, where prompts are cut to the context.
const ANSWER_MIN: u32 = 16;

/// The scheduler and its paper workers.
pub(super) struct Paper {
    scheduler: Scheduler,
    model: ModelSpec,
    now: Time,
    /// What will happen, by time and then in order of its making.
    coming: BTreeMap<(Time, u64), Event>,
    made: u64,
    workers: BTreeMap<WorkerId, Worker>,
    /// The largest payload that an answer may have, all zeros.
    zeros: Bytes,
    requests: u64,
    /// Of the measurement that runs: tokens of each session, and of all since `counting`.
    tokens: BTreeMap<SessionId, u32>,
    counted: u64,
    /// Since when every session has its first token.
    counting: Option<Time>,
    wanted: usize,
    refused: Option<String>,
}

/// A worker, as far as time goes.
struct Worker {
    bytes_per_s: [f64; 2],
    hop_s: f64,
    busy_until: Time,
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rate {
    /// Of all sessions together, decoding.
    pub(super) tokens_per_s: f64,
    /// From the requests to the first token that came last, seconds.
    pub(super) first_token_s: f64,
}

impl Worker {
    /// Seconds of a step: its weights once, in the time that so many rows take; linear between
    /// the two rates that are known, and proportional to the rows beyond.
    fn step_s(&self, work_bytes: u64, rows: u32) -> f64 {
        let [one, eight] = self.bytes_per_s.map(|rate| 1.0 / rate);
        let eight = eight.max(one);
        let per_byte = match rows {
            0..=8 => one + (eight - one) / 7.0 * f64::from(rows.max(1) - 1),
            _ => eight * f64::from(rows) / 8.0,
        };
        work_bytes as f64 * per_byte
    }
}

impl Paper {
    /// The fleet, placed.
    pub(super) fn new(model: ModelSpec, fleet: &FleetFile, sessions_max: usize) -> Paper {
        let config = Config {
            sessions_max: sessions_max.max(1),
            queue_max: sessions_max.max(1),
            ..Config::default()
        };
        let widest = model.vocab.max(model.d_model) as usize * 4 * protocol::ROWS_MAX as usize;
        let mut paper = Paper {
            scheduler: Scheduler::new(config),
            model: model.clone(),
            now: Time(0),
            coming: BTreeMap::new(),
            made: 0,
            workers: BTreeMap::new(),
            zeros: vec![0; widest.min(protocol::PAYLOAD_BYTES_MAX)].into(),
            requests: 0,
            tokens: BTreeMap::new(),
            counted: 0,
            counting: None,
            wanted: 0,
            refused: None,
        };
        paper.tell(Event::AddModel(model));
        for machine in &fleet.workers {
            for index in 0..machine.count {
                paper.join(machine, index);
            }
        }
        paper.run(PLACED_WITHIN, |_| false);
        paper
    }

    fn join(&mut self, machine: &Machine, index: u32) {
        let id = WorkerId(self.workers.len() as u64 + 1);
        let layers = &self.model.parts[1..self.model.parts.len() - 1];
        let layer_bytes: u64 = layers.iter().map(|part| part.work_bytes).sum();
        let bytes_per_s = machine.rate.bytes_per_s(layer_bytes as f64 / layers.len().max(1) as f64);
        let blobs = self.model.parts.iter().flat_map(|part| &part.blobs);
        let cached = match machine.cached {
            true => blobs.map(|blob| blob.hash.clone()).collect(),
            false => Vec::new(),
        };
        let hop_s = machine.hop_s();
        self.workers.insert(id, Worker { bytes_per_s, hop_s, busy_until: Time(0) });
        self.tell(Event::Join(WorkerSpec {
            id,
            key: format!("{:064x}", id.0),
            name: match machine.count {
                1 => machine.name.clone(),
                _ => format!("{}-{}", machine.name, index + 1),
            },
            kind: machine.kind,
            backend: String::new(),
            device: String::new(),
            notes: Vec::new(),
            trusted: machine.trusted,
            holds: if machine.ends_only { Holds::Ends } else { Holds::Anything },
            memory_bytes: machine.memory_mib << 20,
            boundaries: Vec::new(),
            bytes_per_s,
            step_credits: machine.step_credits,
            classes: machine.classes.clone(),
            cached,
            standing: Standing { agreements: AGREEMENTS, ..Standing::default() },
            machine: String::new(),
        }));
        if machine.kind != WorkerKind::Embedded {
            let rtt = Duration::from_secs_f64(hop_s);
            self.tell(Event::RoundTrip { worker: id, rtt });
        }
        if machine.hidden {
            self.tell(Event::Visibility { worker: id, hidden: true });
        }
    }

    /// What the fleet looks like.
    pub(super) fn view(&self) -> FleetView {
        self.scheduler.view()
    }

    /// Seconds that one row takes through weights of `work_bytes` on a worker, and its hop.
    pub(super) fn row_s(&self, worker: WorkerId, work_bytes: u64) -> (f64, f64) {
        let worker = &self.workers[&worker];
        (worker.step_s(work_bytes, 1), worker.hop_s)
    }

    /// Has `sessions` sessions with prompts of so many tokens generate until each could have
    /// had `tokens` tokens beside the others; `during` sees the fleet while all of them run.
    ///
    /// # Errors
    /// Why they do not run, in words.
    pub(super) fn measure(
        &mut self,
        sessions: u32,
        prompt: u32,
        tokens: u32,
        mut during: impl FnMut(&FleetView),
    ) -> Result<Rate, String> {
        // The first token is not counted: it ends the prompt.
        let answer = tokens.max(ANSWER_MIN) + 1;
        let prompt = prompt.min(self.model.context.saturating_sub(answer)).max(1);
        let began = self.now;
        (self.tokens, self.counted, self.counting) = (BTreeMap::new(), 0, None);
        (self.wanted, self.refused) = (sessions as usize, None);
        let first = self.requests;
        for _ in 0..sessions {
            self.requests += 1;
            // No two prompts begin alike, so that none finds its KV there.
            let from = self.requests.wrapping_mul(7919);
            let token = |at: u64| ((from + at) % u64::from(self.model.vocab)) as u32;
            self.tell(Event::Submit(Request {
                id: RequestId(self.requests),
                model: self.model.name.clone(),
                prompt: (0..u64::from(prompt)).map(token).collect(),
                choices: 1,
                max_new_tokens: self.model.context - prompt,
                deadline: began.plus(MEASURED_WITHIN),
                wish: Wish::default(),
            }));
        }
        let enough = u64::from(sessions) * u64::from(tokens);
        self.run(MEASURED_WITHIN, |paper| paper.counting.is_some() || paper.refused.is_some());
        let started = self.counting;
        if started.is_some() {
            during(&self.view());
            self.run(MEASURED_WITHIN, |paper| paper.counted >= enough || paper.refused.is_some());
        }
        let (counted, ended) = (self.counted, self.now);
        let running = self.tokens.len();
        for id in first + 1..=self.requests {
            self.tell(Event::Cancel { request: RequestId(id) });
        }
        // What is still on its way is answered before the next measurement.
        self.run(PLACED_WITHIN, |_| false);
        if let Some(refused) = self.refused.take() {
            return Err(refused);
        }
        let Some(started) = started else {
            return Err(format!("only {running} of {sessions} sessions run at once"));
        };
        let seconds = ended.since(started).as_secs_f64();
        if counted < enough || seconds <= 0.0 {
            let context = self.model.context;
            return Err(format!(
                "only {counted} of {enough} tokens came before the sessions were full (a context \
                 of {context}) or it took too long: try a shorter --prompt or less --tokens"
            ));
        }
        Ok(Rate {
            tokens_per_s: counted as f64 / seconds,
            first_token_s: started.since(began).as_secs_f64(),
        })
    }

    /// Lets things happen until `enough`, or nothing more comes within `within`.
    fn run(&mut self, within: Duration, enough: impl Fn(&Paper) -> bool) {
        let end = self.now.plus(within);
        for _ in 0..HAPPENINGS_MAX {
            if enough(self) {
                return;
            }
            let next = self.coming.keys().next().map(|&(at, _)| at);
            let due = self.scheduler.next_deadline().map(|(at, _)| at);
            let at = match (next, due) {
                (Some(next), Some(due)) => next.min(due),
                (one, other) => match one.or(other) {
                    Some(at) => at,
                    None => return,
                },
            };
            if at > end {
                return;
            }
            self.now = self.now.max(at);
            match self.coming.first_entry().filter(|entry| entry.key().0 <= at) {
                Some(entry) => {
                    let event = entry.remove();
                    self.tell(event);
                }
                None => self.tell(Event::Tick),
            }
        }
    }

    /// Tells the scheduler, and does what it wants done.
    fn tell(&mut self, event: Event) {
        self.scheduler.handle(self.now, event);
        while let Some(action) = self.scheduler.poll_action() {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Control { worker, message: ToWorker::Assign(assignment) } => {
                self.at(self.now, Event::Ready { worker, assignment: assignment.id });
            }
            Action::Step { worker, frame } => self.step(worker, frame),
            Action::Sample { session, position, .. } => self.sample(session, position),
            Action::Refused { error, .. } => self.refused = Some(error.to_string()),
            Action::Dismiss { worker, reason, .. } => {
                self.refused = Some(format!("worker {worker} was sent away: {reason}"));
            }
            // Workers on paper have no caches to keep, and nobody reads notes.
            _ => {}
        }
    }

    /// A worker computes a step after those before it, and answers.
    fn step(&mut self, worker: WorkerId, mut frame: Frame) {
        let Some(machine) = self.workers.get_mut(&worker) else { return };
        let parts = &self.model.parts[frame.span.first as usize..frame.span.end as usize];
        let work_bytes: u64 = parts.iter().map(|part| part.work_bytes).sum();
        // The head alone works on the rows that want logits only.
        let compute = Duration::from_secs_f64(machine.step_s(work_bytes, frame.rows()));
        let half = Duration::from_secs_f64(machine.hop_s / 2.0);
        let starts = self.now.plus(half).max(machine.busy_until);
        machine.busy_until = starts.plus(compute);
        let answered = machine.busy_until.plus(half);
        let head = frame.span.end as usize == self.model.parts.len();
        let width = if head { self.model.vocab } else { self.model.d_model };
        frame.kind = FrameKind::Result;
        frame.dtype = Dtype::F32;
        frame.compute_us = u32::try_from(compute.as_micros()).unwrap_or(u32::MAX);
        let bytes = frame.payload_rows(head) as usize * width as usize * 4;
        frame.payload = match bytes <= self.zeros.len() {
            true => self.zeros.slice(..bytes),
            false => vec![0; bytes].into(),
        };
        self.at(answered, Event::Result { worker, frame });
    }

    /// A session has another token.
    fn sample(&mut self, session: SessionId, position: u32) {
        let tokens = self.tokens.entry(session).or_default();
        *tokens += 1;
        if self.counting.is_some() {
            self.counted += 1;
        } else if self.tokens.len() >= self.wanted {
            self.counting = Some(self.now);
        }
        if position + 2 >= self.model.context {
            self.at(self.now, Event::Finish { session });
        } else {
            self.at(self.now, Event::Sampled { session, token: 0 });
        }
    }

    fn at(&mut self, at: Time, event: Event) {
        self.made += 1;
        self.coming.insert((at, self.made), event);
    }
}
