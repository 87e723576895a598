//! Tensor frames: a step's rows to a worker, and its results back.

use bytes::Bytes;

use crate::control::{AssignmentId, SessionId, Span};

/// A step, or the answer to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which way.
    pub kind: FrameKind,
    /// The shard it is for.
    pub assignment: AssignmentId,
    /// The parts to run, inside the assignment's span: a route may enter and leave a shard
    /// anywhere. A session runs the same parts of a shard each time, but for spans without
    /// layers (embedding or head alone), which keep no KV and may come beside another span.
    /// The answer repeats it.
    pub span: Span,
    /// The step's number, of the coordinator's choosing; the answer repeats it.
    pub step: u64,
    /// In an answer, what the shard computed for, microseconds; else 0.
    pub compute_us: u32,
    /// What the payload holds.
    pub dtype: Dtype,
    /// The sessions' rows, in the payload's order. An answer repeats the step's segments
    /// in order, each with its status.
    pub segments: Vec<Segment>,
    /// Row-major values, little-endian: token ids `[ΣT]`, hidden states `[ΣT, D]`, or logits
    /// `[Σ logits_rows, V]`; in an answer, of the segments with [`Status::Ok`] only.
    pub payload: Bytes,
}

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Coordinator to worker.
    Step = 1,
    /// Worker to coordinator.
    Result = 2,
}

/// Element type of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Dtype {
    /// Token ids.
    U32 = 1,
    /// Hidden states or logits.
    F32 = 2,
}

/// One session's rows in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Whose.
    pub session: SessionId,
    /// The session's fence: a worker drops segments older than the newest it saw.
    pub epoch: u32,
    /// Position of the first row; KV beyond it is dropped first. In an answer with
    /// [`Status::Gap`], the positions that the shard holds.
    pub position: u32,
    /// Rows T, at least 1.
    pub rows: u32,
    /// How many trailing rows want logits, where the shard holds the head.
    pub logits_rows: u32,
    /// In a step, [`Status::Ok`].
    pub status: Status,
}

/// What became of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Computed; its rows are in the payload.
    Ok = 0,
    /// Dropped: the shard has seen a newer epoch of this session.
    Stale = 1,
    /// The shard holds fewer positions than the segment starts at.
    Gap = 2,
    /// No KV page is free.
    KvFull = 3,
    /// A value reached infinity or NaN.
    NumericFault = 4,
    /// The rows did not fit the shard (wrong width, token id out of range, unknown assignment).
    BadInput = 5,
}
