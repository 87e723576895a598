//! What happens to a worker, and what it wants done.

use bytes::Bytes;
use protocol::{
    Assignment, BlobHash, BlobRef, Dtype, Frame, FromWorker, Segment, SessionId, Span, ToWorker,
    WorkerId, WorkerKind,
};

/// What a worker says of itself in its hello, and keeps to.
#[derive(Clone, Debug)]
pub struct Config {
    /// A name for people.
    pub name: String,
    /// What sort of worker.
    pub kind: WorkerKind,
    /// What computes (`cpu`, `wgpu`, ...).
    pub backend: String,
    /// The device that computes, for people; empty if unknown. What is beyond
    /// [`protocol::NAME_BYTES_MAX`] is cut.
    pub device: String,
    /// For people: why nothing faster computes, which kernel variants failed their self-test.
    /// What is beyond [`protocol::NOTES_MAX`] and [`protocol::NOTE_BYTES_MAX`] is cut.
    pub notes: Vec<String>,
    /// Numerics classes that it computes in; an assignment in another one fails.
    pub classes: Vec<String>,
    /// Memory it lends, bytes; assignments whose weights alone exceed it fail.
    pub memory_bytes: u64,
    /// See [`protocol::Hello::bytes_per_s`].
    pub bytes_per_s: [f64; 2],
    /// Steps that it takes at once, 1 to [`protocol::STEP_CREDITS_MAX`].
    pub step_credits: u32,
    /// An invite token.
    pub token: Option<String>,
}

/// A loaded (or loading) shard; never reused within a process, unlike assignment ids, which
/// a restarted coordinator may give again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardKey(pub u64);

/// One run of a shard; never reused within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u64);

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The coordinator sent a control message (which [`ToWorker::validate`] accepted).
    Control(ToWorker),
    /// The coordinator sent a step.
    Frame(Frame),
    /// The answer to [`Action::Sign`].
    Signed {
        /// The worker's key, hex.
        public_key: String,
        /// The signature, hex.
        signature: String,
        /// Blobs in the cache, the most recently used first.
        cached: Vec<BlobHash>,
    },
    /// So much of a blob has arrived; optional, to be sent a few times a second at most.
    BlobProgress {
        /// Which.
        hash: BlobHash,
        /// Bytes so far.
        bytes: u64,
    },
    /// A blob is here and its hash matched.
    BlobReady {
        /// Which.
        hash: BlobHash,
    },
    /// A blob cannot be had.
    BlobFailed {
        /// Which.
        hash: BlobHash,
        /// Why, in words.
        reason: String,
    },
    /// A shard takes steps.
    Loaded {
        /// Which.
        shard: ShardKey,
        /// What the manifest says.
        shape: Shape,
    },
    /// A shard could not be loaded.
    LoadFailed {
        /// Which.
        shard: ShardKey,
        /// Why, in words.
        reason: String,
    },
    /// A run ended.
    RunDone {
        /// Which.
        run: RunId,
        /// What it computed for, µs.
        compute_us: u32,
        /// The output's values, f32 little-endian: `[Σ rows, D]`, or `[Σ logits_rows, V]`
        /// where the run's span ends with the head.
        result: Result<Bytes, RunFault>,
    },
    /// A shard can take no more steps, as was found outside of a run.
    Broke {
        /// Which.
        shard: ShardKey,
        /// Why, in words.
        reason: String,
    },
    /// The worker's tab was hidden or shown again; it is shown until told otherwise.
    Visibility {
        /// Whether nobody sees it.
        hidden: bool,
    },
    /// The owner wants the worker to leave.
    Drain {
        /// Why, in words.
        reason: String,
    },
    /// The connection is gone: with it everything that the coordinator had asked for.
    Disconnected,
    /// A deadline came.
    Tick,
}

/// The shape of a loaded shard's model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Layers L: the head is part L + 1.
    pub layers: u32,
    /// Width D.
    pub d_model: u32,
    /// Vocabulary V.
    pub vocab: u32,
}

/// Why a run gave nothing. KV of its sessions may be gone beyond their segments' positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunFault {
    /// A session's rows did not fit in the KV cache.
    KvFull {
        /// Whose.
        session: SessionId,
    },
    /// A session's numbers overflowed.
    Numeric {
        /// Whose.
        session: SessionId,
    },
    /// A session's cache holds less than was thought.
    Gap {
        /// Whose.
        session: SessionId,
        /// Positions that it holds.
        held: u32,
    },
    /// A session's token ids are out of range.
    BadInput {
        /// Whose.
        session: SessionId,
    },
    /// The step as a whole does not fit the shard.
    BadStep(String),
    /// The shard is broken and takes no more steps.
    Broken(String),
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Sign this with the worker's key and answer with [`Event::Signed`].
    Sign {
        /// What to sign.
        message: Vec<u8>,
    },
    /// The coordinator took the worker in.
    Joined {
        /// This connection's id.
        worker: WorkerId,
        /// For fetching blobs.
        blob_token: String,
        /// Whether the worker may hold the ends of a model.
        trusted: bool,
    },
    /// The coordinator has nothing for this worker to hold now: tell its owner.
    Idle {
        /// Why, in words.
        reason: String,
    },
    /// Send a control message.
    Send(FromWorker),
    /// Send an answer.
    SendFrame(Frame),
    /// Have a blob here, from the cache or the coordinator, and hold on to it; answer with
    /// [`Event::BlobReady`] or [`Event::BlobFailed`].
    Fetch {
        /// What.
        blob: BlobRef,
        /// Whether it is for a rank of a tensor group, which copies its share out of it: the
        /// whole need not stay in memory.
        shared_out: bool,
    },
    /// No assignment needs this blob any more: stop fetching it, do not hold on to it.
    Forget(BlobHash),
    /// Load a shard, its manifest and blobs being here; answer with [`Event::Loaded`] or
    /// [`Event::LoadFailed`].
    Load {
        /// Its name from here on.
        shard: ShardKey,
        /// What to load.
        assignment: Assignment,
    },
    /// Compute; answer with [`Event::RunDone`].
    Run(Run),
    /// Let `to` begin with a copy of the first `positions` of `from`, which holds them.
    Fork {
        /// Where.
        shard: ShardKey,
        /// Whose KV.
        from: SessionId,
        /// The new session, which holds nothing.
        to: SessionId,
        /// How many, at least 1.
        positions: u32,
    },
    /// Drop what a session holds beyond `positions`.
    Truncate {
        /// Where.
        shard: ShardKey,
        /// Whose.
        session: SessionId,
        /// Positions kept, at least 1.
        positions: u32,
    },
    /// Forget a session.
    Release {
        /// Where.
        shard: ShardKey,
        /// Whose.
        session: SessionId,
    },
    /// Let a shard go; if it is still loading, once it is loaded.
    Unload {
        /// Which.
        shard: ShardKey,
    },
    /// Close the connection, then send [`Event::Disconnected`].
    Close {
        /// Why, in words.
        reason: String,
        /// Whether to connect again.
        retry: bool,
    },
    /// The worker has drained: close the connection and end.
    Drained,
}

/// One computation.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Its name.
    pub id: RunId,
    /// Where.
    pub shard: ShardKey,
    /// The parts to run, within the shard's.
    pub span: Span,
    /// The sessions' rows; each session once, its position no further than what it holds.
    pub segments: Vec<Segment>,
    /// What the payload holds: [`Dtype::U32`] token ids if the span starts with the
    /// embedding, else hidden states.
    pub dtype: Dtype,
    /// What hidden states that come out are to be in; logits are f32.
    pub answer: Dtype,
    /// The segments' rows in order; its length fits them.
    pub payload: Bytes,
}
