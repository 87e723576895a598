//! Tensor frames: a step's rows to a worker, and its results back.

use bytes::Bytes;
use litemap::LiteMap;
use numerics::BLOCK;
use serde::{Deserialize, Serialize};

use crate::control::{AssignmentId, SessionId, Span};
use crate::limits::{PARTS_MAX, PAYLOAD_BYTES_MAX, POSITIONS_MAX, ROWS_MAX, SEGMENTS_MAX};

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
    /// What an answer's hidden states are to be in ([`Dtype::is_boundary`]); logits are f32
    /// whatever this says. The answer repeats it.
    pub answer: Dtype,
    /// The sessions' rows, in the payload's order. An answer repeats the step's segments
    /// in order, each with its status.
    pub segments: Vec<Segment>,
    /// Row-major values, little-endian: token ids `[ΣT]`, hidden states `[ΣT, D]`, or logits
    /// `[Σ logits_rows, V]`; in an answer, of the segments with [`Status::Ok`] only. How f16 and
    /// int8 rows look is in [`crate::boundary`].
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Dtype {
    /// Token ids.
    U32 = 1,
    /// Hidden states, exact, or logits.
    F32 = 2,
    /// Hidden states rounded to IEEE binary16.
    F16 = 3,
    /// Hidden states as 8-bit integers, a scale for each block of 32.
    #[serde(rename = "int8")]
    I8 = 4,
}

impl Dtype {
    /// What hidden states can be rounded to, the most exact first. Workers say which they speak.
    pub const LOSSY: [Dtype; 2] = [Dtype::F16, Dtype::I8];

    /// Bytes of a row of `width` elements.
    pub fn row_bytes(self, width: usize) -> usize {
        match self {
            Dtype::U32 | Dtype::F32 => 4 * width,
            Dtype::F16 => 2 * width,
            Dtype::I8 => 4 * width.div_ceil(BLOCK) + width,
        }
    }

    /// Whether hidden states can be in it.
    pub fn is_boundary(self) -> bool {
        self != Dtype::U32
    }

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::U32 => "u32",
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::I8 => "int8",
        }
    }

    /// Whether a row of some width has so many bytes.
    fn has_rows_of(self, bytes: usize) -> bool {
        match self {
            Dtype::U32 | Dtype::F32 => bytes.is_multiple_of(4),
            Dtype::F16 => bytes.is_multiple_of(2),
            // Whole blocks, then a scale with at least one value, or nothing.
            Dtype::I8 => !(1..=4).contains(&(bytes % (4 + BLOCK))),
        }
    }
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

/// What is wrong with a frame or a chunk of one. The peer that sent it is at fault, and its
/// connection ends; nothing of the frame was used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The bytes end too early, or go on too long.
    #[error("{what}: {expected} bytes expected, {got} came")]
    Length {
        /// Of what.
        what: &'static str,
        /// Bytes that the header announces or needs.
        expected: usize,
        /// Bytes that are there.
        got: usize,
    },
    /// A number is past its bound.
    #[error("{what}: {got}, at most {max} are allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The bound.
        max: u64,
        /// What it is.
        got: u64,
    },
    /// Not one of our frames or chunks.
    #[error("not a weft {what}: it begins with {got:#010x}")]
    Magic {
        /// `frame` or `chunk`.
        what: &'static str,
        /// The first four bytes.
        got: u32,
    },
    /// A frame of another protocol version.
    #[error("frame of protocol version {got}, this side speaks {expected}")]
    Version {
        /// Ours.
        expected: u32,
        /// Theirs.
        got: u32,
    },
    /// A field holds a value that has no meaning.
    #[error("{field} of {got} has no meaning")]
    Value {
        /// Which field.
        field: &'static str,
        /// What it holds.
        got: u64,
    },
    /// A segment contradicts itself.
    #[error("segment {index}: {field} of {got} does not fit")]
    Segment {
        /// Which one, from 0.
        index: usize,
        /// Which field.
        field: &'static str,
        /// What it holds.
        got: u64,
    },
    /// The checksum does not match: the frame was damaged on its way.
    #[error("checksum {got:#010x}, the bytes give {expected:#010x}")]
    Checksum {
        /// Of the bytes that came.
        expected: u32,
        /// In the header.
        got: u32,
    },
    /// A chunk that does not follow the one before it.
    #[error(
        "chunk of frame {frame} at {offset}, expected frame {expected_frame} at {expected_offset}"
    )]
    Order {
        /// The frame that was due.
        expected_frame: u32,
        /// The offset that was due.
        expected_offset: u32,
        /// Its frame.
        frame: u32,
        /// Its offset.
        offset: u32,
    },
}

impl Frame {
    /// Rows of all segments, ΣT.
    pub fn rows(&self) -> u32 {
        self.segments.iter().map(|s| s.rows).fold(0, u32::saturating_add)
    }

    /// Rows that the payload holds: in a step those of every segment; in an answer those of
    /// the segments with [`Status::Ok`], where `holds_head` says that the shard gives
    /// logits and so only the trailing `logits_rows` of each.
    pub fn payload_rows(&self, holds_head: bool) -> u32 {
        let of = |s: &Segment| match self.kind {
            FrameKind::Step => s.rows,
            FrameKind::Result if s.status != Status::Ok => 0,
            FrameKind::Result if holds_head => s.logits_rows,
            FrameKind::Result => s.rows,
        };
        self.segments.iter().map(of).fold(0, u32::saturating_add)
    }

    /// Checks that the payload holds just [`Frame::payload_rows`] rows of `width` elements
    /// (1 for token ids, D for hidden states, V for logits).
    pub fn check_payload(&self, holds_head: bool, width: u32) -> Result<(), FrameError> {
        let rows = self.payload_rows(holds_head) as usize;
        let expected = rows.saturating_mul(self.dtype.row_bytes(width as usize));
        if self.payload.len() != expected {
            return Err(FrameError::Length { what: "payload", expected, got: self.payload.len() });
        }
        Ok(())
    }

    /// Checks everything that can be known without the shard; [`crate::codec`] does so on
    /// both sides, and whoever hands frames on within a process does it himself.
    ///
    /// # Errors
    /// Too many segments, rows or bytes; a session named twice; a segment without rows, with
    /// more logits than rows, or past [`POSITIONS_MAX`]; a step with a status; an answer
    /// with token ids; answers asked for as token ids; a payload that does not divide into the
    /// rows.
    pub fn validate(&self) -> Result<(), FrameError> {
        let too_many = |what, max, got| Err(FrameError::TooMany { what, max, got });
        if self.segments.is_empty() {
            return Err(FrameError::Value { field: "segment count", got: 0 });
        }
        if self.segments.len() > SEGMENTS_MAX {
            return too_many("segments", SEGMENTS_MAX as u64, self.segments.len() as u64);
        }
        if self.payload.len() > PAYLOAD_BYTES_MAX {
            return too_many("payload bytes", PAYLOAD_BYTES_MAX as u64, self.payload.len() as u64);
        }
        if self.kind == FrameKind::Result && self.dtype == Dtype::U32 {
            return Err(FrameError::Value { field: "dtype of an answer", got: Dtype::U32 as u64 });
        }
        if !self.answer.is_boundary() {
            return Err(FrameError::Value { field: "answer's dtype", got: self.answer as u64 });
        }
        if self.kind == FrameKind::Step && self.compute_us != 0 {
            let got = u64::from(self.compute_us);
            return Err(FrameError::Value { field: "compute_us of a step", got });
        }
        if self.span.first >= self.span.end || self.span.end > PARTS_MAX {
            return Err(FrameError::Value { field: "end of the span", got: self.span.end.into() });
        }
        let mut sessions: LiteMap<_, ()> = LiteMap::new();
        for (index, s) in self.segments.iter().enumerate() {
            s.validate(self.kind, index)?;
            if sessions.insert(s.session, ()).is_some() {
                let got = s.session.0;
                return Err(FrameError::Segment { index, field: "repeated session", got });
            }
        }
        if self.rows() > ROWS_MAX {
            return too_many("rows", u64::from(ROWS_MAX), u64::from(self.rows()));
        }
        self.validate_payload()
    }

    /// The payload divides into rows of one width, whatever that is.
    fn validate_payload(&self) -> Result<(), FrameError> {
        let got = self.payload.len();
        let row_counts = match self.kind {
            FrameKind::Step if self.dtype == Dtype::U32 => return self.check_payload(false, 1),
            FrameKind::Step => vec![self.payload_rows(false)],
            FrameKind::Result => vec![self.payload_rows(false), self.payload_rows(true)],
        };
        let divides = |rows: &u32| match *rows {
            0 => got == 0,
            rows => {
                let row_bytes = got / rows as usize;
                got > 0 && got.is_multiple_of(rows as usize) && self.dtype.has_rows_of(row_bytes)
            }
        };
        match row_counts.iter().any(divides) {
            true => Ok(()),
            false => {
                let expected = self.dtype.row_bytes(1) * row_counts[0] as usize;
                Err(FrameError::Length { what: "payload, or a multiple", expected, got })
            }
        }
    }
}

impl Segment {
    fn validate(&self, kind: FrameKind, index: usize) -> Result<(), FrameError> {
        let wrong = |field, got| Err(FrameError::Segment { index, field, got });
        if self.rows == 0 || self.rows > ROWS_MAX {
            return wrong("rows", u64::from(self.rows));
        }
        if self.logits_rows > self.rows {
            return wrong("logits_rows", u64::from(self.logits_rows));
        }
        if self.position > POSITIONS_MAX - self.rows {
            return wrong("position", u64::from(self.position));
        }
        if kind == FrameKind::Step && self.status != Status::Ok {
            return wrong("status", self.status as u64);
        }
        Ok(())
    }
}
