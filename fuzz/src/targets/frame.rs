//! What crosses a worker's socket: frames, their chunks, control messages.
//!
//! Each input is one connection's messages, given to every parser. A broken frame is also
//! tried with its checksum put right: a peer that means harm computes it as well as we do.

use std::hint::black_box;

use bytes::Bytes;
use protocol::codec::{HEADER_BYTES, decode, encode};
use protocol::{
    Assignment, AssignmentId, BlobRef, Chunks, Dtype, Frame, FrameKind, FromWorker, Hello,
    PROTOCOL_VERSION, Reassembler, Segment, SessionId, Span, Status, ToWorker, WorkerKind,
    boundary,
};

use super::Target;
use crate::mutate::{Form, Seed};

pub struct FrameTarget;

/// Values of a row of hidden states.
const WIDTH: u32 = 40;
/// Where a frame's checksum stands: in the last four bytes of its header.
const CRC_AT: usize = HEADER_BYTES - 4;
/// A chunk's header.
const CHUNK_HEAD_BYTES: usize = protocol::CHUNK_HEADER_BYTES;

impl Target for FrameTarget {
    fn name(&self) -> &'static str {
        "frame"
    }

    fn corpus(&self) -> Vec<Seed> {
        let binary = |pieces, head_bytes| Seed { pieces, head_bytes, form: Form::Binary };
        let mut seeds = Vec::new();
        let lossy = Dtype::LOSSY.map(lossy_answer);
        for frame in [step(Dtype::U32, 1), step(Dtype::F32, 4), answer()].into_iter().chain(lossy) {
            let bytes = encode(&frame).expect("a good frame").to_vec();
            seeds.push(binary(vec![bytes], HEADER_BYTES + 96));
            let chunks = |number| Chunks::new(&frame, number).expect("a good frame");
            let messages = chunks(0).chain(chunks(1)).map(|chunk| chunk.to_vec()).collect();
            seeds.push(binary(messages, CHUNK_HEAD_BYTES));
        }
        let json = |text: String| {
            let bytes = text.into_bytes();
            Seed { head_bytes: bytes.len(), pieces: vec![bytes], form: Form::Json }
        };
        seeds.extend(to_worker().iter().map(|m| json(m.to_json().expect("a good message"))));
        seeds.extend(from_worker().iter().map(|m| json(m.to_json().expect("a good message"))));
        seeds
    }

    fn accepted(&self) -> &'static str {
        "read"
    }

    fn feed(&self, input: &[Vec<u8>]) -> &'static str {
        let mut stage = "refused";
        let mut connection = Reassembler::new();
        let mut in_order = true;
        for piece in input {
            let bytes = Bytes::copy_from_slice(piece);
            if in_order {
                match connection.push(bytes.clone()) {
                    Ok(Some(frame)) => {
                        check_frame(&frame);
                        stage = "read";
                    }
                    Ok(None) => stage = "waits for more",
                    Err(error) => {
                        black_box(error.to_string());
                        in_order = false;
                        stage =
                            if piece.starts_with(b"WFCK") { "refused as a chunk" } else { stage };
                    }
                }
            }
            match decode(&bytes) {
                Ok(frame) => {
                    assert_eq!(encode(&frame).as_ref(), Ok(&bytes));
                    check_frame(&frame);
                    stage = "read";
                }
                Err(error) => drop(black_box(error.to_string())),
            }
            if let Some(mended) = with_checksum(piece) {
                match decode(&mended) {
                    Ok(frame) => {
                        assert_eq!(encode(&frame).as_ref(), Ok(&mended));
                        check_frame(&frame);
                        stage = "read";
                    }
                    Err(error) => {
                        black_box(error.to_string());
                        stage = "refused as a frame";
                    }
                }
            }
            if let Ok(text) = std::str::from_utf8(piece)
                && text.starts_with('{')
            {
                stage = feed_control(text);
            }
        }
        stage
    }

    fn heap_bytes_max(&self, input_bytes: usize) -> usize {
        // A frame in progress gets room for a mebibyte, whatever it announces.
        (1 << 20) + (64 << 10) + 16 * input_bytes
    }
}

fn feed_control(text: &str) -> &'static str {
    let mut stage = "refused as a message";
    match ToWorker::from_json(text) {
        Ok(message) => {
            let again = message.to_json().expect("what was read can be written");
            assert_eq!(ToWorker::from_json(&again).as_ref(), Ok(&message));
            stage = "read";
        }
        Err(error) => drop(black_box(error.to_string())),
    }
    match FromWorker::from_json(text) {
        Ok(message) => {
            let again = message.to_json().expect("what was read can be written");
            // Rates may change in their last bit: they are measurements.
            black_box(FromWorker::from_json(&again).expect("and read again"));
            stage = "read";
        }
        Err(error) => drop(black_box(error.to_string())),
    }
    stage
}

/// What everyone behind the parser relies on.
fn check_frame(frame: &Frame) {
    assert_eq!(frame.validate(), Ok(()));
    assert!(frame.span.first < frame.span.end);
    let rows = frame.payload_rows(frame.kind == FrameKind::Result);
    black_box(frame.check_payload(true, rows).is_ok());
    if frame.dtype.is_boundary() && frame.check_payload(false, WIDTH).is_ok() {
        let width = WIDTH as usize;
        let sound = boundary::is_sound(&frame.payload, frame.dtype, width);
        if let Some(values) = boundary::decode(&frame.payload, frame.dtype, width).filter(|_| sound)
        {
            assert!(values.iter().all(|x| x.is_finite()));
            let again = boundary::encode(values.into_owned(), frame.dtype, width);
            black_box(again.expect("they are finite"));
        }
    }
}

/// The frame with its checksum put right, where it is long enough to have one.
fn with_checksum(bytes: &[u8]) -> Option<Bytes> {
    if bytes.len() < HEADER_BYTES || !bytes.starts_with(b"WEFT") {
        return None;
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes[..CRC_AT]);
    crc.update(&bytes[HEADER_BYTES..]);
    let mut mended = bytes.to_vec();
    mended[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.finalize().to_le_bytes());
    Some(mended.into())
}

fn segment(session: u64, position: u32, rows: u32, status: Status) -> Segment {
    Segment { session: SessionId(session), epoch: 3, position, rows, logits_rows: 1, status }
}

fn step(dtype: Dtype, width: usize) -> Frame {
    Frame {
        kind: FrameKind::Step,
        assignment: AssignmentId(7),
        span: Span { first: u32::from(dtype == Dtype::F32), end: 9 },
        step: 11,
        compute_us: 0,
        dtype,
        answer: Dtype::I8,
        segments: vec![segment(1, 64, 3, Status::Ok), segment(2, 0, 2, Status::Ok)],
        payload: vec![1; 5 * width * 4].into(),
    }
}

fn answer() -> Frame {
    Frame {
        kind: FrameKind::Result,
        compute_us: 900,
        segments: vec![
            segment(1, 64, 3, Status::Ok),
            segment(2, 1, 2, Status::Gap),
            segment(3, 0, 1, Status::KvFull),
        ],
        payload: vec![2; 3 * 4 * 4].into(),
        ..step(Dtype::F32, 4)
    }
}

/// Rows as a worker rounds them.
fn lossy_answer(dtype: Dtype) -> Frame {
    let values = (0..5 * WIDTH).map(|i| i as f32 - 60.5).collect();
    let payload = boundary::encode(values, dtype, WIDTH as usize).expect("finite values");
    Frame { kind: FrameKind::Result, dtype, answer: dtype, payload, ..step(Dtype::F32, 4) }
}

fn blob(digit: &str) -> BlobRef {
    BlobRef { hash: digit.repeat(64), bytes: 1000 }
}

fn to_worker() -> Vec<ToWorker> {
    let assignment = AssignmentId(7);
    vec![
        ToWorker::Challenge { protocol: PROTOCOL_VERSION, nonce: "0".repeat(64) },
        ToWorker::Assign(Assignment {
            id: assignment,
            model: "m".into(),
            manifest: blob("a"),
            span: Span { first: 1, end: 9 },
            class: "canonical-1".into(),
            blobs: vec![blob("b"), blob("c")],
            kv_pages: 64,
            tensor: None,
        }),
        ToWorker::Truncate { assignment, session: SessionId(1), epoch: 4, positions: 100 },
        ToWorker::Idle { reason: "all layers are held".into() },
        ToWorker::Dismiss { reason: "restarting".into(), retry: true },
    ]
}

fn from_worker() -> Vec<FromWorker> {
    let assignment = AssignmentId(7);
    vec![
        FromWorker::Hello(Box::new(Hello {
            protocol: PROTOCOL_VERSION,
            public_key: "1".repeat(64),
            signature: "2".repeat(128),
            token: Some("invite".into()),
            name: "otter".into(),
            kind: WorkerKind::Native,
            backend: "cpu".into(),
            device: "llvmpipe".into(),
            notes: vec!["no GPU".into()],
            classes: vec!["canonical-1".into()],
            memory_bytes: 1 << 30,
            boundaries: vec![Dtype::F16, Dtype::I8],
            bytes_per_s: [1e9, 2e9],
            step_credits: 2,
            cached: vec!["d".repeat(64)],
        })),
        FromWorker::Progress { assignment, bytes_done: 5, bytes_total: 10 },
        FromWorker::Visibility { hidden: true },
        FromWorker::Failed { assignment, reason: "disk full".into() },
    ]
}
