//! Frames in pieces: each chunk is one binary WebSocket message, so that control messages
//! go between the chunks of a large frame.
//!
//! A chunk is a header of [`CHUNK_HEADER_BYTES`] (magic `WFCK`, the frame's number on this
//! connection and direction counted from 0 and wrapping, the frame's bytes in all, where
//! this chunk starts in it; u32 each, little-endian) and at least one byte of the frame.
//! Frames follow each other: one is in progress at a time.

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{self, HEADER_BYTES, u32_at};
use crate::frame::{Frame, FrameError};
use crate::limits::{CHUNK_BYTES_MAX, FRAME_BYTES_MAX};

/// Bytes of a chunk before its piece of the frame.
pub const CHUNK_HEADER_BYTES: usize = 16;
const CHUNK_MAGIC: [u8; 4] = *b"WFCK";
/// Room reserved when a frame begins; it grows with what really arrives, so that announcing
/// a large frame costs the receiver nothing.
const FIRST_RESERVE_BYTES: usize = 1 << 20;

/// A frame cut into chunks, each ready to be sent as one binary message.
#[derive(Debug)]
pub struct Chunks {
    number: u32,
    head: BytesMut,
    payload: Bytes,
    offset: usize,
}

impl Chunks {
    /// Cuts `frame`, the `number`-th of this connection and direction (from 0, wrapping).
    ///
    /// # Errors
    /// As [`Frame::validate`].
    pub fn new(frame: &Frame, number: u32) -> Result<Chunks, FrameError> {
        let head = codec::encode_head(frame)?;
        Ok(Chunks { number, head, payload: frame.payload.clone(), offset: 0 })
    }

    fn total(&self) -> usize {
        self.head.len() + self.payload.len()
    }
}

impl Iterator for Chunks {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let (total, start) = (self.total(), self.offset);
        if start == total {
            return None;
        }
        let end = total.min(start + CHUNK_BYTES_MAX - CHUNK_HEADER_BYTES);
        let mut out = BytesMut::with_capacity(CHUNK_HEADER_BYTES + end - start);
        out.put_slice(&CHUNK_MAGIC);
        out.put_u32_le(self.number);
        out.put_u32_le(total as u32);
        out.put_u32_le(start as u32);
        let head_bytes = self.head.len();
        out.put_slice(&self.head[start.min(head_bytes)..end.min(head_bytes)]);
        let in_payload = |at: usize| at.saturating_sub(head_bytes);
        out.put_slice(&self.payload[in_payload(start)..in_payload(end)]);
        self.offset = end;
        Some(out.freeze())
    }
}

/// Puts one direction's chunks together again. Holds at most [`FRAME_BYTES_MAX`] bytes.
#[derive(Debug, Default)]
pub struct Reassembler {
    /// The number that the next new frame must have.
    next_frame: u32,
    /// The frame in progress, and its bytes in all.
    partial: Option<(BytesMut, usize)>,
    /// The caller's own bound of a frame, bytes.
    max_bytes: Option<usize>,
}

impl Reassembler {
    /// For a new connection.
    pub fn new() -> Reassembler {
        Reassembler::default()
    }

    /// Refuses frames of more than `max_bytes` that begin from now on, as those that nothing
    /// asked for; [`FRAME_BYTES_MAX`] holds all the same, and alone by default.
    pub fn set_max_bytes(&mut self, max_bytes: usize) {
        self.max_bytes = Some(max_bytes);
    }

    /// Takes one binary message; gives the frame that it completes, if it does.
    ///
    /// # Errors
    /// A chunk out of order, empty or oversized, and a frame that [`codec::decode`] refuses.
    /// The connection is over then: what follows cannot be trusted to be in step.
    pub fn push(&mut self, message: Bytes) -> Result<Option<Frame>, FrameError> {
        let (frame, total, offset) = chunk_header(&message)?;
        let (due_offset, due_total) = match &self.partial {
            Some((buffer, total)) => (buffer.len(), *total),
            None => (0, total),
        };
        if (frame, offset) != (self.next_frame, due_offset) {
            return Err(FrameError::Order {
                expected_frame: self.next_frame,
                expected_offset: due_offset as u32,
                frame,
                offset: offset as u32,
            });
        }
        if total != due_total {
            return Err(FrameError::Length { what: "frame", expected: due_total, got: total });
        }
        if let Some(max) = self.max_bytes.filter(|max| self.partial.is_none() && total > *max) {
            let (max, got) = (max as u64, total as u64);
            return Err(FrameError::TooMany { what: "bytes of the frame", max, got });
        }
        let piece = message.slice(CHUNK_HEADER_BYTES..);
        if piece.is_empty() || piece.len() > total - offset {
            let (expected, got) = (total - offset, piece.len());
            return Err(FrameError::Length { what: "rest of the frame", expected, got });
        }
        let whole = if piece.len() == total {
            piece
        } else {
            let (buffer, _) = self.partial.get_or_insert_with(|| {
                (BytesMut::with_capacity(total.min(FIRST_RESERVE_BYTES)), total)
            });
            buffer.extend_from_slice(&piece);
            if buffer.len() < total {
                return Ok(None);
            }
            self.partial.take().map(|(buffer, _)| buffer.freeze()).unwrap_or_default()
        };
        self.next_frame = self.next_frame.wrapping_add(1);
        codec::decode(&whole).map(Some)
    }
}

/// A chunk's (frame number, frame bytes, offset), each within its bounds.
fn chunk_header(message: &[u8]) -> Result<(u32, usize, usize), FrameError> {
    let got = message.len();
    if got <= CHUNK_HEADER_BYTES {
        let expected = CHUNK_HEADER_BYTES + 1;
        return Err(FrameError::Length { what: "chunk, at least", expected, got });
    }
    if got > CHUNK_BYTES_MAX {
        let max = CHUNK_BYTES_MAX as u64;
        return Err(FrameError::TooMany { what: "chunk bytes", max, got: got as u64 });
    }
    if message[..4] != CHUNK_MAGIC {
        return Err(FrameError::Magic { what: "chunk", got: u32_at(message, 0) });
    }
    let (total, offset) = (u32_at(message, 8) as usize, u32_at(message, 12) as usize);
    if total > FRAME_BYTES_MAX {
        let (max, got) = (FRAME_BYTES_MAX as u64, total as u64);
        return Err(FrameError::TooMany { what: "frame bytes", max, got });
    }
    if total < HEADER_BYTES || offset >= total {
        return Err(FrameError::Length {
            what: "frame",
            expected: offset.max(HEADER_BYTES),
            got: total,
        });
    }
    Ok((u32_at(message, 4), total, offset))
}
