//! What happens to the scheduler, and what it wants done.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use protocol::{AssignmentId, BlobRef, Dtype, Frame, SessionId, ToWorker, WorkerId, WorkerKind};

use crate::standing::Standing;
use crate::wish::Wish;

/// A point in time, µs since an origin of the shell's choosing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// This time and `d` more.
    pub fn plus(self, d: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(d.as_micros()).unwrap_or(u64::MAX)))
    }

    /// From `earlier` to this; zero if it is not earlier.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// One HTTP request for one or more choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// What happened. The shell has checked signatures and framing; everything else about a
/// worker's answers is checked here.
#[derive(Clone, Debug)]
pub enum Event {
    /// The operator serves this model from now on.
    AddModel(ModelSpec),
    /// A worker was welcomed.
    Join(WorkerSpec),
    /// A worker's socket is gone.
    Leave {
        /// Who.
        worker: WorkerId,
        /// Why, in words, for the event log.
        reason: String,
    },
    /// A worker's tab was hidden or shown again.
    Visibility {
        /// Who.
        worker: WorkerId,
        /// Whether nobody sees it.
        hidden: bool,
    },
    /// A worker leaves once its steps at hand are answered.
    Drain {
        /// Who.
        worker: WorkerId,
        /// Why, in words.
        reason: String,
    },
    /// A worker holds a shard and takes steps.
    Ready {
        /// Who.
        worker: WorkerId,
        /// What.
        assignment: AssignmentId,
    },
    /// A worker is still fetching a shard's blobs.
    Progress {
        /// Who.
        worker: WorkerId,
        /// What.
        assignment: AssignmentId,
        /// Bytes verified so far.
        bytes_done: u64,
    },
    /// A worker can't hold a shard.
    Failed {
        /// Who.
        worker: WorkerId,
        /// What.
        assignment: AssignmentId,
        /// Why, in words.
        reason: String,
    },
    /// A worker answered a step.
    Result {
        /// Who.
        worker: WorkerId,
        /// The answer.
        frame: Frame,
    },
    /// A round trip to a worker was measured.
    RoundTrip {
        /// Who.
        worker: WorkerId,
        /// From ping to pong.
        rtt: Duration,
    },
    /// A client wants a generation.
    Submit(Request),
    /// The shell chose a token from [`Action::Sample`]'s logits and wants the next.
    Sampled {
        /// Whose.
        session: SessionId,
        /// Which.
        token: u32,
    },
    /// The shell has all it wants of a session (end of text, stop string, enough tokens).
    Finish {
        /// Whose.
        session: SessionId,
    },
    /// The client is gone, or has all it wants: every session of the request ends.
    Cancel {
        /// Whose.
        request: RequestId,
    },
    /// The operator lifted a key's ban: it may join again.
    Unban {
        /// Whose.
        key: String,
    },
    /// A deadline came.
    Tick,
}

/// A model, as far as placing and routing it goes.
#[derive(Clone, Debug)]
pub struct ModelSpec {
    /// Its name in requests.
    pub name: String,
    /// The manifest blob.
    pub manifest: BlobRef,
    /// The classes that workers of this model may compute in, at least one, the preferred
    /// ones first: an assignment carries the first of them that its worker has.
    pub classes: Vec<ClassSpec>,
    /// Embedding, layers, head: L + 2 of them.
    pub parts: Vec<PartSpec>,
    /// Model width D.
    pub d_model: u32,
    /// Vocabulary V.
    pub vocab: u32,
    /// Longest session, positions.
    pub context: u32,
    /// The ways in which its layers can be divided among workers; none if they cannot be.
    pub divisions: Vec<DivisionSpec>,
}

/// One way of dividing every layer among the ranks of a tensor group.
#[derive(Clone, Debug, PartialEq)]
pub struct DivisionSpec {
    /// How the shares become one, for the engine: `rows`.
    pub form: String,
    /// By rank, how much it computes, the most first; what an assignment says.
    pub weights: Vec<u32>,
    /// What that comes to.
    pub ranks: Vec<RankSpec>,
    /// Exchanges between the ranks in one layer.
    pub exchanges: u32,
    /// Classes that can be computed so, with the bits of one worker.
    pub classes: Vec<String>,
}

/// What one rank has of every layer, as shares of the whole; they add up to more than 1 where
/// something is held twice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankSpec {
    /// Of its weights: memory, and work.
    pub weights: f64,
    /// Of its KV cache.
    pub kv: f64,
}

/// One way of computing, as far as its memory goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassSpec {
    /// Its name in assignments: `canonical-1`, `wgsl-f32`, `exact-f32`.
    pub name: String,
    /// KV bytes of one position in one layer.
    pub kv_bytes_per_position: u64,
}

impl ModelSpec {
    /// The first of the model's classes that a worker has.
    pub fn class_for(&self, worker: &WorkerSpec) -> Option<&ClassSpec> {
        self.classes.iter().find(|class| worker.classes.contains(&class.name))
    }

    /// Where a class is in [`ModelSpec::classes`].
    pub fn class_index(&self, name: &str) -> Option<usize> {
        self.classes.iter().position(|class| class.name == name)
    }

    /// KV bytes of one position in one layer, in the class that needs the most.
    pub fn kv_bytes_per_position(&self) -> u64 {
        self.classes.iter().map(|class| class.kv_bytes_per_position).max().unwrap_or(0)
    }
}

/// One part's weights.
#[derive(Clone, Debug)]
pub struct PartSpec {
    /// Its blobs; parts may share one (a tied head).
    pub blobs: Vec<BlobRef>,
    /// Weight bytes that one row works through (0 for the embedding: it is a lookup).
    pub work_bytes: u64,
}

/// A worker that joined.
#[derive(Clone, Debug)]
pub struct WorkerSpec {
    /// This connection.
    pub id: WorkerId,
    /// Its key, hex: a reconnect under the same key replaces the older connection.
    pub key: String,
    /// For people.
    pub name: String,
    /// What sort.
    pub kind: WorkerKind,
    /// What computes.
    pub backend: String,
    /// The device that computes, for people.
    pub device: String,
    /// Why nothing faster computes, for people.
    pub notes: Vec<String>,
    /// May hold the embedding and the head.
    pub trusted: bool,
    /// What it may be given to hold.
    pub holds: Holds,
    /// Memory for weights, KV and scratch, bytes.
    pub memory_bytes: u64,
    /// What it speaks beside f32 at the boundaries.
    pub boundaries: Vec<Dtype>,
    /// Weight bytes worked through per second at 1 and at 8 rows a step.
    pub bytes_per_s: [f64; 2],
    /// Steps outstanding.
    pub step_credits: u32,
    /// Classes it computes in.
    pub classes: Vec<String>,
    /// Hashes of blobs that it has already.
    pub cached: Vec<String>,
    /// What is known of its key from before: the last [`Action::Standing`] of it.
    pub standing: Standing,
    /// Its machine or address: workers with the same one are lost together, so replicas go to
    /// different ones. Empty if unknown.
    pub machine: String,
}

/// What a worker may be given to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// Layers, and the ends too if it is trusted.
    Anything,
    /// Embedding and head only (`--embedded ends`).
    Ends,
}

/// A generation to run.
#[derive(Clone, Debug)]
pub struct Request {
    /// The shell's name for it.
    pub id: RequestId,
    /// Which model, by name.
    pub model: String,
    /// Prompt token ids, at least one.
    pub prompt: Vec<u32>,
    /// How many continuations (`n`), at least one; they share the prompt's KV.
    pub choices: u32,
    /// Tokens wanted per choice at most; the shell ends a session with [`Event::Finish`].
    pub max_new_tokens: u32,
    /// When it fails if it has not finished.
    pub deadline: Time,
    /// What it asks of its route.
    pub wish: Wish,
}

/// What is to be done, in this order.
#[derive(Clone, Debug)]
pub enum Action {
    /// Send a control message.
    Control {
        /// To whom.
        worker: WorkerId,
        /// What.
        message: ToWorker,
    },
    /// Send a step.
    Step {
        /// To whom.
        worker: WorkerId,
        /// What.
        frame: Frame,
    },
    /// From here on these workers, in the order of their ranks, may send each other messages
    /// of this tensor group.
    Group {
        /// Its name: its leader's assignment.
        group: AssignmentId,
        /// Rank 0 first.
        members: Vec<WorkerId>,
    },
    /// A tensor group is over.
    Ungroup {
        /// Which.
        group: AssignmentId,
    },
    /// Close a worker's socket after a [`ToWorker::Dismiss`].
    Dismiss {
        /// Whom.
        worker: WorkerId,
        /// What was wrong.
        reason: String,
        /// Whether it may come back.
        retry: bool,
    },
    /// A request was admitted: its sessions, one per choice, in order.
    Started {
        /// Which.
        request: RequestId,
        /// One per choice.
        sessions: Vec<SessionId>,
        /// Prompt tokens whose KV was there already.
        cached_tokens: u32,
    },
    /// Choose a token from these logits `[V]` f32 LE, then send [`Event::Sampled`] or
    /// [`Event::Finish`].
    Sample {
        /// Whose.
        session: SessionId,
        /// Position of the row that the logits came from; the token chosen gets the next.
        position: u32,
        /// V × 4 bytes.
        logits: Bytes,
    },
    /// A request ended without finishing; nothing more comes for it.
    Refused {
        /// Which.
        request: RequestId,
        /// Why.
        error: RequestError,
    },
    /// What is known of a worker's key changed (an audit agreed or not, the key is banned):
    /// to be kept, and given back in [`WorkerSpec::standing`] when the key joins again, even
    /// if the worker is gone by now.
    Standing {
        /// The worker's key.
        key: String,
        /// All that is known of it from here on.
        standing: Standing,
    },
    /// Work of a key was verified: it earns credit. It is counted in the key's standing
    /// already.
    Verified {
        /// The worker's key.
        key: String,
        /// Of which model.
        model: String,
        /// Layers that the rows went through.
        layers: u32,
        /// Rows that were not verified before.
        rows: u32,
    },
    /// Something that people may want to read.
    Note(Note),
}

/// Why a request ended without finishing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No such model is served.
    #[error("the model `{model}` is not served here")]
    NoModel {
        /// The name asked for.
        model: String,
    },
    /// Too many requests wait already.
    #[error("{waiting} requests are waiting already; try again in {retry_after_s} s")]
    Busy {
        /// How many wait.
        waiting: usize,
        /// When to come back, seconds.
        retry_after_s: u32,
    },
    /// More choices than may ever be in flight.
    #[error("n is {choices}, and at most {limit} choices can run at once here")]
    TooManyChoices {
        /// Choices wanted.
        choices: u32,
        /// Choices possible.
        limit: usize,
    },
    /// The prompt does not fit the model's context, or no route's KV cache could ever hold it.
    #[error("the request needs {positions} positions and at most {limit} are possible: {why}")]
    TooLong {
        /// Positions needed.
        positions: u32,
        /// Positions possible.
        limit: u32,
        /// What sets the limit.
        why: String,
    },
    /// No route is as the request wishes.
    #[error("{field} cannot be granted: {why}")]
    NoRoute {
        /// What it wished for.
        field: &'static str,
        /// Why not.
        why: String,
    },
    /// The deadline passed.
    #[error("the deadline passed after {waited_s} s {doing}")]
    Deadline {
        /// Seconds since it was submitted.
        waited_s: u64,
        /// What it was at then.
        doing: Doing,
    },
    /// Its numbers overflowed.
    #[error("a value overflowed at position {position}: the model cannot continue this text")]
    Numeric {
        /// Where.
        position: u32,
    },
}

/// What a request was at when its deadline passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Its sessions were being computed.
    Generating,
    /// It was queued behind others.
    WaitingForPlace,
    /// It lacked something of the fleet, for people: `layers 3 to 7 of m`.
    WaitingFor(String),
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Doing::Generating => f.write_str("generating"),
            Doing::WaitingForPlace => f.write_str("waiting for a place"),
            Doing::WaitingFor(what) => write!(f, "waiting for {what}"),
        }
    }
}

/// An entry of the readable event log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A worker joined.
    Joined {
        /// Who.
        worker: WorkerId,
    },
    /// A worker was given a shard.
    Assigned {
        /// Who.
        worker: WorkerId,
        /// What, for people.
        what: String,
    },
    /// A shard is ready.
    Ready {
        /// Who.
        worker: WorkerId,
        /// What, for people.
        what: String,
    },
    /// A tensor group's shard broke; its layers are given out anew.
    GroupFailed {
        /// Which of its members said so.
        worker: WorkerId,
        /// What it held, for people.
        what: String,
        /// What that worker said.
        reason: String,
    },
    /// A worker is leaving in good order.
    Draining {
        /// Who.
        worker: WorkerId,
        /// Why.
        reason: String,
    },
    /// A worker is gone.
    Lost {
        /// Who.
        worker: WorkerId,
        /// Why.
        reason: String,
        /// Sessions that had a stage there.
        sessions: usize,
    },
    /// A session's lost stage was replaced and is being replayed.
    Recovered {
        /// Whose.
        session: SessionId,
        /// Rows to replay.
        rows: u32,
    },
    /// A session waits for layers that nobody holds.
    Waiting {
        /// Whose.
        session: SessionId,
        /// What is missing, for people.
        missing: String,
    },
    /// A session's KV was given up for an older one's; it resumes from its log.
    Preempted {
        /// Whose.
        session: SessionId,
    },
    /// A replay of a worker's rows did not give what it had answered.
    Disagreed {
        /// The key of who had answered.
        key: String,
        /// The key of who replayed.
        by: String,
        /// The session whose rows are audited.
        session: SessionId,
        /// First position whose rows differ.
        position: u32,
    },
    /// A worker's key is out for good: it lied, or its machine computes wrongly.
    Banned {
        /// Its key.
        key: String,
        /// What was found.
        reason: String,
    },
    /// An answer that changed nothing, and why.
    Ignored {
        /// From whom.
        worker: WorkerId,
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Joined { worker } => write!(f, "worker {worker} joined"),
            Note::Assigned { worker, what } => write!(f, "worker {worker} was given {what}"),
            Note::Ready { worker, what } => write!(f, "worker {worker} is ready with {what}"),
            Note::GroupFailed { worker, what, reason } => {
                write!(f, "the tensor group with {what} failed, says worker {worker}: {reason}")
            }
            Note::Draining { worker, reason } => write!(f, "worker {worker} is leaving: {reason}"),
            Note::Lost { worker, reason, sessions } => {
                write!(f, "worker {worker} is gone with {sessions} sessions' stages: {reason}")
            }
            Note::Recovered { session, rows } => {
                write!(f, "session {session} has a new stage and replays {rows} rows")
            }
            Note::Waiting { session, missing } => {
                write!(f, "session {session} waits for {missing}")
            }
            Note::Preempted { session } => {
                write!(f, "session {session} gave its KV cache to an older one")
            }
            Note::Disagreed { key, by, session, position } => write!(
                f,
                "the key {key} answered otherwise than {by} from position {position} of session {session} on"
            ),
            Note::Banned { key, reason } => write!(f, "the key {key} is banned: {reason}"),
            Note::Ignored { worker, reason } => {
                write!(f, "an answer of worker {worker} was ignored: {reason}")
            }
        }
    }
}

pub use crate::shown::*;
