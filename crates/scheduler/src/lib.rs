//! Decides everything: which worker holds what, which way a session's rows go, what is
//! batched, what happens when a worker is lost.
//!
//! One state machine: [`Scheduler::handle`] takes an [`Event`], [`Scheduler::poll_action`]
//! drains what is to be done, [`Scheduler::next_deadline`] says when to send
//! [`Event::Tick`] and why. It knows nothing about sockets, files, text or threads; the
//! coordinator is a shell that turns those into events. There is no randomness, all maps
//! are ordered: one history of events gives one history of actions.
//!
//! | file | decides |
//! |---|---|
//! | `placement` | who should hold what, as a pure function |
//! | `cover` | when to place, and what to assign and drop |
//! | `replicas` | what whoever is left over holds, or why it holds nothing |
//! | `routing` | a session's way through the shards that are ready |
//! | `requests` | admission, the queue, choices, reuse of a conversation's KV |
//! | `steps` | what goes to a worker as one step, and what its answer means |
//! | `recovery` | lost stages, replay, KV that runs out |
//! | `audit` | which rows are replayed elsewhere and compared, and what follows |
//! | `auditors` | what trusted workers hold for that |
//! | `verdict` | how rows are compared, and what several replays prove |
//! | `standing` | how often a key's work is audited, and when it is banned |

pub mod audit;
pub mod event;
pub mod fleet;
pub mod log;
pub mod placement;
pub mod routing;
pub mod session;
pub mod standing;
pub mod verdict;

mod auditors;
mod cover;
mod recovery;
mod replicas;
mod requests;
mod steps;
mod view;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use protocol::{SessionId, Span, WorkerId};

pub use event::*;
use fleet::Worker;
use requests::InFlight;
use session::Session;
pub use standing::Standing;

/// The bounds and habits of a scheduler; every one has a default.
#[derive(Clone, Debug)]
pub struct Config {
    /// Sessions in flight at most; further requests wait.
    pub sessions_max: usize,
    /// Requests that may wait; further ones are refused.
    pub queue_max: usize,
    /// Finished sessions kept for their KV.
    pub cached_sessions_max: usize,
    /// Bytes of activation logs; beyond them logs are dropped and a replay starts from tokens.
    pub log_bytes_max: u64,
    /// KV positions that a shard is given at most.
    pub kv_positions_max: u32,
    /// KV positions without which a shard is not worth placing.
    pub kv_positions_min: u32,
    /// Scratch memory counted per shard, bytes.
    pub scratch_bytes: u64,
    /// Weights that a tab has to fetch for a replica at most, bytes. Layers that nobody else
    /// holds are not bounded by it.
    pub tab_fetch_bytes_max: u64,
    /// KV positions that a tab's replica is given at most: longer sessions have other holders.
    pub tab_kv_positions_max: u32,
    /// Rows of one session in one step, at most.
    pub chunk_rows_max: u32,
    /// Rows of one step, at most.
    pub step_rows_max: u32,
    /// A step is filled up to this predicted computing time while others wait for the worker.
    pub step_busy: Duration,
    /// And up to this while only one session is there.
    pub step_alone: Duration,
    /// From a change in the fleet to placing, so that workers that come together are placed
    /// together.
    pub place_delay: Duration,
    /// A shard that makes no progress for this long costs its worker its place.
    pub load_patience: Duration,
    /// Failures of one session without a token in between, after which the worker that the
    /// last one came from is sent away.
    pub attempts_max: u32,
    /// A conversation's KV is reused from this many common tokens on.
    pub reuse_min: u32,
    /// What of untrusted workers' answers is verified.
    pub audits: audit::Settings,
    /// Leaves out what an invariant rests on, so that the simulation can show that it would
    /// notice. All off everywhere else.
    pub sabotage: Sabotage,
}

/// One switch for each thing that the simulation must miss when it is gone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sabotage {
    /// Lets answers from before the newest fence count.
    pub accept_old_epochs: bool,
    /// Never runs rows again whose output is known.
    pub skip_replay: bool,
    /// Logs a replay's rows a second time.
    pub log_replays: bool,
    /// Finds that all replays agree.
    pub skip_comparison: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            sessions_max: 64,
            queue_max: 256,
            cached_sessions_max: 32,
            log_bytes_max: 256 << 20,
            kv_positions_max: 16_384,
            kv_positions_min: 1024,
            scratch_bytes: 8 << 20,
            tab_fetch_bytes_max: 256 << 20,
            tab_kv_positions_max: 4096,
            chunk_rows_max: 256,
            step_rows_max: 256,
            step_busy: Duration::from_millis(250),
            step_alone: Duration::from_millis(1000),
            place_delay: Duration::from_millis(250),
            load_patience: Duration::from_secs(60),
            attempts_max: 10,
            reuse_min: 8,
            audits: audit::Settings::default(),
            sabotage: Sabotage::default(),
        }
    }
}

/// The state machine.
pub struct Scheduler {
    config: Config,
    now: Time,
    models: Vec<Model>,
    workers: BTreeMap<WorkerId, Worker>,
    sessions: BTreeMap<SessionId, Session>,
    requests: BTreeMap<RequestId, InFlight>,
    queue: VecDeque<(Request, Time)>,
    actions: VecDeque<Action>,
    next_assignment: u64,
    next_session: u64,
    next_step: u64,
    /// When to place next, if something changed.
    place_at: Option<Time>,
    audits: audit::Audits,
}

/// A served model and what is known of it.
struct Model {
    spec: ModelSpec,
    /// Why the fleet cannot hold it, if so.
    shortfall: Option<String>,
    /// KV positions that a shard placed now must hold: the longest session that waits.
    kv_positions_needed: u32,
}

impl Model {
    /// All its parts.
    fn whole(&self) -> Span {
        Span { first: 0, end: self.spec.parts.len() as u32 }
    }
}

impl Scheduler {
    /// A scheduler without models or workers.
    pub fn new(config: Config) -> Scheduler {
        Scheduler {
            config,
            now: Time::default(),
            models: Vec::new(),
            workers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            requests: BTreeMap::new(),
            queue: VecDeque::new(),
            actions: VecDeque::new(),
            next_assignment: 1,
            next_session: 1,
            next_step: 1,
            place_at: None,
            audits: audit::Audits::default(),
        }
    }

    /// Takes in what happened at `now` (not earlier than the last call's). Drain
    /// [`Scheduler::poll_action`] afterwards.
    pub fn handle(&mut self, now: Time, event: Event) {
        self.now = self.now.max(now);
        match event {
            Event::AddModel(spec) => self.add_model(spec),
            Event::Join(spec) => self.join(spec),
            Event::Leave { worker, reason } => self.lose_worker(worker, &reason),
            Event::Drain { worker, reason } => self.drain(worker, reason),
            Event::Visibility { worker, hidden } => {
                if let Some(w) = self.workers.get_mut(&worker) {
                    w.hidden = hidden;
                }
            }
            Event::Ready { worker, assignment } => self.shard_ready(worker, assignment),
            Event::Progress { worker, assignment, bytes_done } => {
                self.shard_progress(worker, assignment, bytes_done);
            }
            Event::Failed { worker, assignment, reason } => {
                self.shard_failed(worker, assignment, &reason);
            }
            Event::Result { worker, frame } => self.step_answered(worker, frame),
            Event::RoundTrip { worker, rtt } => {
                if let Some(w) = self.workers.get_mut(&worker) {
                    // Until steps tell more, the ping is what is known of the hop.
                    if !w.measured && w.spec.kind != protocol::WorkerKind::Embedded {
                        w.hop_s = rtt.as_secs_f64();
                    }
                }
            }
            Event::Submit(request) => self.submit(request),
            Event::Sampled { session, token } => self.sampled(session, token),
            Event::Finish { session } => self.finish(session),
            Event::Cancel { request } => self.cancel(request),
            Event::Tick => {}
        }
        self.pass_deadlines();
        self.mend();
        self.admit();
        self.run_audits();
        self.send_steps();
    }

    /// The next thing to do; drain it after every [`Scheduler::handle`].
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to send [`Event::Tick`] if nothing happens before, and why.
    pub fn next_deadline(&self) -> Option<(Time, &'static str)> {
        let place = self.place_at.map(|t| (t, "place shards"));
        let steps = self.workers.values().flat_map(|w| w.in_flight.values());
        let steps = steps.map(|s| (s.deadline, "a step is overdue"));
        let queued = self.queue.iter().map(|(r, _)| (r.deadline, "a waiting request's deadline"));
        let running = self.requests.values().map(|r| (r.deadline, "a request's deadline"));
        let loads = self.workers.values().flat_map(|w| w.held.values()).filter(|h| !h.ready);
        let loads = loads.map(|h| (h.loading.1, "a shard makes no progress"));
        let audits =
            self.audits.next_try().map(|t| (t, "an audit waits for somebody to replay it"));
        place.into_iter().chain(audits).chain(steps).chain(loads).chain(queued).chain(running).min()
    }

    fn note(&mut self, note: Note) {
        self.actions.push_back(Action::Note(note));
    }

    /// Everything whose time has come.
    fn pass_deadlines(&mut self) {
        let now = self.now;
        let overdue = |w: &Worker| w.in_flight.values().any(|s| s.deadline <= now);
        let stuck = |w: &Worker| w.held.values().any(|h| !h.ready && h.loading.1 <= now);
        self.dismiss_all(overdue, "a step was not answered in time");
        self.dismiss_all(stuck, "a shard made no progress");
        self.pass_request_deadlines();
        if self.place_at.is_some_and(|t| t <= now) {
            self.place_at = None;
            self.place();
        }
    }

    fn dismiss_all(&mut self, which: impl Fn(&Worker) -> bool, reason: &str) {
        let late: Vec<WorkerId> =
            self.workers.iter().filter(|(_, w)| which(w)).map(|(id, _)| *id).collect();
        for worker in late {
            self.dismiss(worker, reason, true);
        }
    }

    /// Sends a worker away and takes what it had from it.
    fn dismiss(&mut self, worker: WorkerId, reason: &str, retry: bool) {
        self.actions.push_back(Action::Dismiss { worker, reason: reason.to_owned(), retry });
        self.lose_worker(worker, reason);
    }
}
