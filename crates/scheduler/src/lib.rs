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
//! | `cover` | when to place, and in a small fleet what to assign and drop |
//! | `groups` | tensor groups: whose layers are divided among several workers |
//! | `pauses` | who is in none for a while |
//! | `windows` | which layers a worker is of most use for |
//! | `replicas` | what whoever is left over holds, or why it holds nothing |
//! | `routing` | a session's way through the shards that are ready, as a pure function |
//! | `ways` | which shards it is chosen among |
//! | `wish` | what a request asks of it |
//! | `requests` | admission, the queue, choices, reuse of a conversation's KV |
//! | `links` | what boundaries are sent in |
//! | `steps` | what goes to a worker as one step, and what its answer means |
//! | `pace` | when the next one goes, so that rows go together |
//! | `survival`, `visits` | how long a worker may be counted on, when it is tried again |
//! | `index` | nothing: it holds what would else be searched for |
//! | `recovery` | lost stages, replay, KV that runs out |
//! | `audit` | which rows are replayed elsewhere and compared, and what follows |
//! | `auditors` | what trusted workers hold for that |
//! | `verdict` | how rows are compared, and what several replays prove |
//! | `known` | whose standing is kept |
//! | `standing` | how often a key's work is audited, and when it is banned |

pub mod audit;
pub mod event;
pub mod fleet;
pub mod log;
pub mod placement;
pub mod routing;
pub mod session;
pub mod standing;
pub mod survival;
pub mod verdict;

mod assign;
mod auditors;
mod cover;
mod groups;
mod index;
mod known;
mod links;
mod pace;
mod pauses;
mod recovery;
mod replicas;
mod requests;
mod shown;
mod steps;
mod tracked;
mod view;
mod visits;
mod ways;
mod windows;
mod wish;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use protocol::{AssignmentId, SessionId, Span, WorkerId};

pub use event::*;
use fleet::Worker;
pub use groups::Tensor;
use index::{Due, Index, Late};
pub use links::{Boundaries, Traffic};
use requests::InFlight;
use session::Session;
pub use standing::Standing;
use survival::Survival;
use tracked::Tracked;
pub use wish::{Parallelism, Wish};

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
    /// What the boundaries between stages are sent in.
    pub boundaries: Boundaries,
    /// When layers are divided among workers.
    pub tensor: Tensor,
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
            boundaries: Boundaries::All(protocol::Dtype::F32),
            tensor: Tensor::default(),
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
    workers: Tracked<WorkerId, Worker>,
    sessions: Tracked<SessionId, Session>,
    requests: BTreeMap<RequestId, InFlight>,
    queue: VecDeque<(Request, Time)>,
    /// Model, wish and KV pages that had no route when something was free or ready last.
    without_route: BTreeSet<(usize, Wish, u32)>,
    /// When each request that waits or runs fails.
    request_deadlines: BTreeSet<(Time, RequestId)>,
    /// By key: the worker that is here.
    keys: BTreeMap<String, WorkerId>,
    survival: Survival,
    index: Index,
    due: Due,
    actions: VecDeque<Action>,
    next_assignment: u64,
    next_session: u64,
    next_step: u64,
    /// When to place next, if something changed.
    place_at: Option<Time>,
    audits: audit::Audits,
    pace: pace::Pace,
    /// Boundaries that went over all links, those of workers that are gone included.
    traffic: Traffic,
    /// Rows that went through an embedding.
    tokens_embedded: u64,
    /// Tensor groups, by name.
    groups: BTreeMap<AssignmentId, groups::Group>,
    /// Who is in no group for a while.
    pauses: pauses::Pauses,
    /// When groups may be possible that were not, if nothing happens before.
    group_at: Option<Time>,
    /// While a model is placed that cannot be held otherwise: pauses are shorter.
    urgent: bool,
    /// The idle worker whose turn it is to be looked at again.
    idle_turn: WorkerId,
}

/// A served model and what is known of it.
struct Model {
    spec: ModelSpec,
    /// Why the fleet cannot hold it, if so.
    shortfall: Option<String>,
    /// KV positions that a shard placed now must hold: the longest session that waits.
    kv_positions_needed: u32,
    /// Work bytes of all parts before each part, and of all.
    work: Vec<u64>,
    /// The same of its weights, bytes.
    weights: Vec<u64>,
}

impl Model {
    fn new(spec: ModelSpec) -> Model {
        let (mut work, mut weights) = (vec![0], vec![0]);
        for (i, part) in spec.parts.iter().enumerate() {
            work.push(work[i] + part.work_bytes);
            weights.push(weights[i] + part.blobs.iter().map(|b| b.bytes).sum::<u64>());
        }
        Model { spec, shortfall: None, kv_positions_needed: 0, work, weights }
    }

    /// Weight bytes of a span that one row works through.
    fn work_bytes(&self, span: Span) -> u64 {
        self.work[span.end as usize] - self.work[span.first as usize]
    }

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
            workers: Tracked::new(),
            sessions: Tracked::new(),
            requests: BTreeMap::new(),
            queue: VecDeque::new(),
            without_route: BTreeSet::new(),
            request_deadlines: BTreeSet::new(),
            keys: BTreeMap::new(),
            survival: Survival::default(),
            index: Index::default(),
            due: Due::default(),
            actions: VecDeque::new(),
            next_assignment: 1,
            next_session: 1,
            next_step: 1,
            place_at: None,
            audits: audit::Audits::default(),
            pace: pace::Pace::default(),
            traffic: Traffic::default(),
            tokens_embedded: 0,
            groups: BTreeMap::new(),
            pauses: pauses::Pauses::default(),
            group_at: None,
            urgent: false,
            idle_turn: WorkerId(0),
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
                self.set_hidden(worker, hidden);
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
                    let first = !std::mem::replace(&mut w.hop_known, true);
                    if first && w.spec.trusted && self.config.tensor == Tensor::Auto {
                        // It may be in a group from now on.
                        self.place_soon();
                    }
                }
            }
            Event::Submit(request) => self.submit(request),
            Event::Sampled { session, token } => self.sampled(session, token),
            Event::Finish { session } => self.finish(session),
            Event::Cancel { request } => self.cancel(request),
            Event::Unban { key } => self.unban(&key),
            Event::Tick => {}
        }
        self.visit_workers();
        self.pass_deadlines();
        self.settle();
        let opened = std::mem::take(&mut self.due.opened);
        if opened {
            self.without_route.clear();
        }
        self.mend(opened);
        self.settle();
        let submitted = std::mem::take(&mut self.due.submitted);
        if opened || submitted || self.due.opened {
            self.admit();
        }
        self.run_audits();
        self.send_steps();
        self.settle();
    }

    /// The next thing to do; drain it after every [`Scheduler::handle`].
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to send [`Event::Tick`] if nothing happens before, and why.
    pub fn next_deadline(&self) -> Option<(Time, &'static str)> {
        let place = self.place_at.map(|t| (t, "place shards"));
        let group = self.group_at.map(|t| (t, "workers may be in a tensor group again"));
        let worker = self.index.deadlines.first().map(|(t, _, late)| match late {
            Late::Step => (*t, "a step is overdue"),
            Late::Load => (*t, "a shard makes no progress"),
        });
        let request = self.request_deadlines.first().map(|(t, _)| (*t, "a request's deadline"));
        let audits =
            self.audits.next_try().map(|t| (t, "an audit waits for somebody to replay it"));
        let pace = self.pace.next().map(|t| (t, "rows have waited for others"));
        place.into_iter().chain(group).chain(audits).chain(pace).chain(worker).chain(request).min()
    }

    fn note(&mut self, note: Note) {
        self.actions.push_back(Action::Note(note));
    }

    /// Everything whose time has come.
    fn pass_deadlines(&mut self) {
        self.settle();
        while let Some(&(at, worker, late)) = self.index.deadlines.first() {
            if at > self.now {
                break;
            }
            if late == Late::Step && self.step_late_in_group(worker) {
                self.settle();
                continue;
            }
            let reason = match late {
                Late::Step => "a step was not answered in time",
                Late::Load => "a shard made no progress",
            };
            self.dismiss(worker, reason, true);
            self.settle();
        }
        self.pass_request_deadlines();
        self.pass_pace();
        let is_due = |at: Option<Time>| at.is_some_and(|t| t <= self.now);
        if is_due(self.place_at) || is_due(self.group_at) {
            self.place_at = None;
            self.group_at = self.pauses.next(self.now);
            self.place();
        }
    }

    /// Sends a worker away and takes what it had from it.
    fn dismiss(&mut self, worker: WorkerId, reason: &str, retry: bool) {
        self.actions.push_back(Action::Dismiss { worker, reason: reason.to_owned(), retry });
        self.lose_worker(worker, reason);
    }
}
