//! [`Frame`]s as bytes.
//!
//! All numbers little-endian. A header of [`HEADER_BYTES`], the segments, the payload:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic, `WEFT` |
//! | 4 | 2 | protocol version |
//! | 6 | 1 | kind |
//! | 7 | 1 | dtype |
//! | 8 | 2 | segments |
//! | 10 | 1 | dtype of the answer's hidden states |
//! | 11 | 1 | zero |
//! | 12 | 8 | assignment |
//! | 20 | 8 | step |
//! | 28 | 4 | span: first part |
//! | 32 | 4 | span: one past its last part |
//! | 36 | 4 | compute, µs |
//! | 40 | 4 | payload bytes |
//! | 44 | 4 | CRC-32 of the header before it, the segments and the payload |
//!
//! A segment, [`SEGMENT_BYTES`]: session 8, epoch 4, position 4, rows 4, logits rows 4,
//! status 1, zero 7.

use bytes::{BufMut, Bytes, BytesMut};

use crate::PROTOCOL_VERSION;
use crate::control::{AssignmentId, SessionId, Span};
use crate::frame::{Dtype, Frame, FrameError, FrameKind, Segment, Status};
use crate::limits::{PAYLOAD_BYTES_MAX, SEGMENTS_MAX};

/// The first four bytes of a frame.
pub const MAGIC: [u8; 4] = *b"WEFT";
/// Bytes of a frame before its segments.
pub const HEADER_BYTES: usize = 48;
/// Bytes of one segment.
pub const SEGMENT_BYTES: usize = 32;
const CRC_AT: usize = 44;

/// Checks a frame and encodes it whole.
///
/// # Errors
/// As [`Frame::validate`].
pub fn encode(frame: &Frame) -> Result<Bytes, FrameError> {
    let head = encode_head(frame)?;
    let mut out = BytesMut::with_capacity(head.len() + frame.payload.len());
    out.extend_from_slice(&head);
    out.extend_from_slice(&frame.payload);
    Ok(out.freeze())
}

/// Checks a frame and encodes what stands before its payload: header and segments.
pub(crate) fn encode_head(frame: &Frame) -> Result<BytesMut, FrameError> {
    frame.validate()?;
    let mut head = BytesMut::with_capacity(HEADER_BYTES + frame.segments.len() * SEGMENT_BYTES);
    head.put_slice(&MAGIC);
    head.put_u16_le(PROTOCOL_VERSION as u16);
    head.put_u8(frame.kind as u8);
    head.put_u8(frame.dtype as u8);
    head.put_u16_le(frame.segments.len() as u16);
    head.put_u8(frame.answer as u8);
    head.put_u8(0);
    head.put_u64_le(frame.assignment.0);
    head.put_u64_le(frame.step);
    head.put_u32_le(frame.span.first);
    head.put_u32_le(frame.span.end);
    head.put_u32_le(frame.compute_us);
    head.put_u32_le(frame.payload.len() as u32);
    head.put_u32_le(0);
    for s in &frame.segments {
        head.put_u64_le(s.session.0);
        head.put_u32_le(s.epoch);
        head.put_u32_le(s.position);
        head.put_u32_le(s.rows);
        head.put_u32_le(s.logits_rows);
        head.put_u8(s.status as u8);
        head.put_slice(&[0; 7]);
    }
    let crc = checksum(&head, &frame.payload);
    head[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    Ok(head)
}

/// CRC-32 of a frame, but for the four bytes that hold it.
fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[..CRC_AT]);
    crc.update(&head[HEADER_BYTES..]);
    crc.update(payload);
    crc.finalize()
}

/// Decodes a whole frame; its payload shares `bytes`.
///
/// # Errors
/// Anything that [`encode`] would not have written.
pub fn decode(bytes: &Bytes) -> Result<Frame, FrameError> {
    let header = Header::decode(bytes)?;
    let head_bytes = HEADER_BYTES + header.segments * SEGMENT_BYTES;
    let expected = head_bytes + header.payload_bytes;
    if bytes.len() != expected {
        return Err(FrameError::Length { what: "frame", expected, got: bytes.len() });
    }
    let (head, payload) = (&bytes[..head_bytes], bytes.slice(head_bytes..));
    let crc = checksum(head, &payload);
    if crc != header.crc {
        return Err(FrameError::Checksum { expected: crc, got: header.crc });
    }
    let segments = head[HEADER_BYTES..].chunks_exact(SEGMENT_BYTES).map(decode_segment);
    let frame = Frame {
        kind: header.kind,
        assignment: header.assignment,
        span: header.span,
        step: header.step,
        compute_us: header.compute_us,
        dtype: header.dtype,
        answer: header.answer,
        segments: segments.collect::<Result<_, _>>()?,
        payload,
    };
    frame.validate()?;
    Ok(frame)
}

/// A frame's first [`HEADER_BYTES`], counts checked against their bounds.
struct Header {
    kind: FrameKind,
    dtype: Dtype,
    answer: Dtype,
    segments: usize,
    assignment: AssignmentId,
    span: Span,
    step: u64,
    compute_us: u32,
    payload_bytes: usize,
    crc: u32,
}

impl Header {
    fn decode(bytes: &[u8]) -> Result<Header, FrameError> {
        let Some(h) = bytes.first_chunk::<HEADER_BYTES>() else {
            let (expected, got) = (HEADER_BYTES, bytes.len());
            return Err(FrameError::Length { what: "frame header", expected, got });
        };
        if h[..4] != MAGIC {
            return Err(FrameError::Magic { what: "frame", got: u32_at(h, 0) });
        }
        let version = u32::from(u16_at(h, 4));
        if version != PROTOCOL_VERSION {
            return Err(FrameError::Version { expected: PROTOCOL_VERSION, got: version });
        }
        let kind = match h[6] {
            1 => FrameKind::Step,
            2 => FrameKind::Result,
            got => return Err(FrameError::Value { field: "kind", got: got.into() }),
        };
        let dtype = decode_dtype("dtype", h[7])?;
        let answer = decode_dtype("answer's dtype", h[10])?;
        let segments = usize::from(u16_at(h, 8));
        if segments > SEGMENTS_MAX {
            let (max, got) = (SEGMENTS_MAX as u64, segments as u64);
            return Err(FrameError::TooMany { what: "segments", max, got });
        }
        if h[11] != 0 {
            return Err(FrameError::Value { field: "reserved", got: h[11].into() });
        }
        let payload_bytes = u32_at(h, 40) as usize;
        if payload_bytes > PAYLOAD_BYTES_MAX {
            let (max, got) = (PAYLOAD_BYTES_MAX as u64, payload_bytes as u64);
            return Err(FrameError::TooMany { what: "payload bytes", max, got });
        }
        Ok(Header {
            kind,
            dtype,
            answer,
            segments,
            assignment: AssignmentId(u64_at(h, 12)),
            step: u64_at(h, 20),
            span: Span { first: u32_at(h, 28), end: u32_at(h, 32) },
            compute_us: u32_at(h, 36),
            payload_bytes,
            crc: u32_at(h, CRC_AT),
        })
    }
}

fn decode_dtype(field: &'static str, byte: u8) -> Result<Dtype, FrameError> {
    match byte {
        1 => Ok(Dtype::U32),
        2 => Ok(Dtype::F32),
        3 => Ok(Dtype::F16),
        4 => Ok(Dtype::I8),
        got => Err(FrameError::Value { field, got: got.into() }),
    }
}

fn decode_segment(s: &[u8]) -> Result<Segment, FrameError> {
    let status = match s[24] {
        0 => Status::Ok,
        1 => Status::Stale,
        2 => Status::Gap,
        3 => Status::KvFull,
        4 => Status::NumericFault,
        5 => Status::BadInput,
        got => return Err(FrameError::Value { field: "status", got: got.into() }),
    };
    if s[25..] != [0; 7] {
        return Err(FrameError::Value { field: "reserved", got: u64_at(s, 24) >> 8 });
    }
    Ok(Segment {
        session: SessionId(u64_at(s, 0)),
        epoch: u32_at(s, 8),
        position: u32_at(s, 12),
        rows: u32_at(s, 16),
        logits_rows: u32_at(s, 20),
        status,
    })
}

/// The numbers of a slice that is known to be long enough.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
