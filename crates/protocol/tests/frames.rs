//! Frames and chunks: what they look like, that they survive the trip, and that nothing
//! else gets through.

use bytes::Bytes;
use proptest::prelude::*;
use protocol::codec::{HEADER_BYTES, SEGMENT_BYTES, decode, encode};
use protocol::*;

fn segment(session: u64, position: u32, rows: u32) -> Segment {
    Segment {
        session: SessionId(session),
        epoch: 7,
        position,
        rows,
        logits_rows: 1,
        status: Status::Ok,
    }
}

fn step(segments: Vec<Segment>, dtype: Dtype, payload: impl Into<Bytes>) -> Frame {
    Frame {
        kind: FrameKind::Step,
        assignment: AssignmentId(0x0102),
        span: Span { first: 3, end: 9 },
        step: 5,
        compute_us: 0,
        dtype,
        answer: Dtype::F16,
        segments,
        payload: payload.into(),
    }
}

fn hex(bytes: &[u8]) -> String {
    let line = |row: &[u8]| row.iter().map(|b| format!("{b:02x}")).collect::<String>();
    bytes.chunks(8).map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_frame_on_the_wire() {
    let frame = step(vec![segment(0xaabb, 300, 2)], Dtype::U32, vec![1, 0, 0, 0, 2, 0, 0, 0]);
    let expected = "\
        57454654 01000101\n 01000300 02010000\n 00000000 05000000\n 00000000 03000000\n\
        09000000 00000000\n 08000000 6db47839\n\
        bbaa0000 00000000\n 07000000 2c010000\n 02000000 01000000\n 00000000 00000000\n\
        01000000 02000000";
    let bytes = encode(&frame).unwrap();
    assert_eq!(hex(&bytes), expected.replace(' ', ""));
    assert_eq!(bytes.len(), HEADER_BYTES + SEGMENT_BYTES + 8);
    assert_eq!(decode(&bytes), Ok(frame));
}

/// Two rows of three values in each dtype, as the payload of an answer.
#[test]
fn boundaries_on_the_wire() {
    let check = |dtype, expected: &str| {
        let rows = vec![1.0, -2.54, 0.02, 0.0, 65504.0, -1.0];
        let payload = boundary::encode(rows, dtype, 3).unwrap();
        let mut frame = step(vec![segment(0xaabb, 300, 2)], dtype, payload);
        (frame.kind, frame.answer) = (FrameKind::Result, dtype);
        let bytes = encode(&frame).unwrap();
        assert_eq!(decode(&bytes), Ok(frame));
        let kinds: String = bytes[6..12].iter().map(|b| format!("{b:02x}")).collect();
        let payload = hex(&bytes[HEADER_BYTES + SEGMENT_BYTES..]).replace('\n', " ");
        assert_eq!(format!("{kinds}: {payload}"), expected);
    };
    check(Dtype::F32, "020201000200: 0000803f5c8f22c0 0ad7a33c00000000 00e07f47000080bf");
    check(Dtype::F16, "020301000300: 003c14c11f250000 ff7b00bc");
    // A scale of 0.02 before 50, -127, 1; one of 65504/127 before 0, 127, 0.
    check(Dtype::I8, "020401000400: 0ad7a33c328101e4 f10044007f00");
}

#[test]
fn a_chunk_on_the_wire() {
    let frame = step(vec![segment(1, 0, 1)], Dtype::U32, vec![9, 0, 0, 0]);
    let chunks: Vec<Bytes> = Chunks::new(&frame, 3).unwrap().collect();
    assert_eq!(chunks.len(), 1);
    assert_eq!(hex(&chunks[0][..CHUNK_HEADER_BYTES]), "5746434b03000000\n5400000000000000");
    assert_eq!(&chunks[0][CHUNK_HEADER_BYTES..], &encode(&frame).unwrap()[..]);
}

/// The error that decoding gives after `damage` was done to a good frame's bytes.
fn refused(damage: impl FnOnce(&mut Vec<u8>)) -> String {
    let frame = step(vec![segment(1, 0, 2)], Dtype::U32, vec![0; 8]);
    let mut bytes = encode(&frame).unwrap().to_vec();
    damage(&mut bytes);
    decode(&Bytes::from(bytes)).expect_err("the damage was not noticed").to_string()
}

#[test]
fn damaged_frames_are_refused_with_numbers() {
    assert_eq!(refused(|b| b.truncate(20)), "frame header: 48 bytes expected, 20 came");
    assert_eq!(refused(|b| b.truncate(80)), "frame: 88 bytes expected, 80 came");
    assert_eq!(refused(|b| b.push(0)), "frame: 88 bytes expected, 89 came");
    assert_eq!(refused(|b| b[0] = 0), "not a weft frame: it begins with 0x54464500");
    assert_eq!(refused(|b| b[4] = 9), "frame of protocol version 9, this side speaks 1");
    assert_eq!(refused(|b| b[6] = 3), "kind of 3 has no meaning");
    assert_eq!(refused(|b| b[7] = 0), "dtype of 0 has no meaning");
    assert_eq!(refused(|b| b[7] = 5), "dtype of 5 has no meaning");
    assert_eq!(refused(|b| b[10] = 5), "answer's dtype of 5 has no meaning");
    assert_eq!(refused(|b| b[11] = 1), "reserved of 1 has no meaning");
    assert_eq!(refused(|b| b[9] = 0xff), "segments: 65281, at most 256 are allowed");
    assert_eq!(
        refused(|b| b[43] = 0x7f),
        "payload bytes: 2130706440, at most 67108864 are allowed"
    );
    for at in [12, 20, 28, 36, 50, 87] {
        assert!(refused(|b| b[at] ^= 1).starts_with("checksum "), "byte {at}");
    }
}

#[test]
fn contradictory_frames_are_refused() {
    let check = |expected: &str, change: fn(&mut Frame)| {
        let mut frame = step(vec![segment(1, 0, 2), segment(2, 9, 1)], Dtype::U32, vec![0; 12]);
        change(&mut frame);
        assert_eq!(encode(&frame).unwrap_err().to_string(), expected);
    };
    check("segment count of 0 has no meaning", |f| f.segments.clear());
    check("segments: 257, at most 256 are allowed", |f| {
        f.segments = (0..257).map(|s| segment(s, 0, 1)).collect();
    });
    check("segment 1: rows of 0 does not fit", |f| f.segments[1].rows = 0);
    check("segment 0: logits_rows of 3 does not fit", |f| f.segments[0].logits_rows = 3);
    check("segment 0: position of 131071 does not fit", |f| f.segments[0].position = 131_071);
    check("segment 1: repeated session of 1 does not fit", |f| {
        f.segments[1].session = SessionId(1)
    });
    check("segment 0: status of 2 does not fit", |f| f.segments[0].status = Status::Gap);
    check("rows: 1025, at most 1024 are allowed", |f| f.segments[0].rows = 1024);
    check("end of the span of 3 has no meaning", |f| f.span.end = 3);
    check("dtype of an answer of 1 has no meaning", |f| f.kind = FrameKind::Result);
    check("answer's dtype of 1 has no meaning", |f| f.answer = Dtype::U32);
    check("compute_us of a step of 4 has no meaning", |f| f.compute_us = 4);
    check("payload: 12 bytes expected, 16 came", |f| f.payload = vec![0; 16].into());
    check("payload, or a multiple: 12 bytes expected, 16 came", |f| {
        (f.dtype, f.payload) = (Dtype::F32, vec![0; 16].into());
    });
    check("payload, or a multiple: 6 bytes expected, 15 came", |f| {
        (f.dtype, f.payload) = (Dtype::F16, vec![0; 15].into());
    });
    // Three rows of 40 bytes would end with a scale that nothing follows.
    check("payload, or a multiple: 15 bytes expected, 120 came", |f| {
        (f.dtype, f.payload) = (Dtype::I8, vec![0; 120].into());
    });
}

#[test]
fn payloads_are_counted_in_rows() {
    let mut frame = step(vec![segment(1, 0, 3), segment(2, 9, 2)], Dtype::F32, vec![0; 5 * 4 * 8]);
    assert_eq!(frame.check_payload(true, 8), Ok(()));
    assert!(frame.check_payload(false, 9).is_err());
    frame.kind = FrameKind::Result;
    frame.segments[0].status = Status::Stale;
    assert_eq!((frame.payload_rows(false), frame.payload_rows(true)), (2, 1));
    frame.payload = vec![0; 4 * 10].into();
    assert_eq!(frame.check_payload(true, 10), Ok(()));
    assert!(frame.check_payload(false, 10).is_err());
    frame.segments[1].status = Status::Gap;
    frame.payload = Bytes::new();
    assert_eq!(frame.check_payload(false, 10), Ok(()));
}

#[test]
fn chunks_out_of_order_are_refused() {
    let large = step(vec![segment(1, 0, 100)], Dtype::F32, vec![5; 100 * 4 * 500]);
    let chunks: Vec<Bytes> = Chunks::new(&large, 0).unwrap().collect();
    assert_eq!(chunks.len(), 4);
    let check = |order: &[usize], expected: &str| {
        let mut reassembler = Reassembler::new();
        let mut last = Ok(None);
        for &i in order {
            assert!(matches!(last, Ok(None)));
            last = reassembler.push(chunks[i].clone());
        }
        assert_eq!(last.unwrap_err().to_string(), expected);
    };
    check(&[1], "chunk of frame 0 at 65520, expected frame 0 at 0");
    check(&[0, 0], "chunk of frame 0 at 0, expected frame 0 at 65520");
    check(&[0, 2], "chunk of frame 0 at 131040, expected frame 0 at 65520");
    let mut next = Reassembler::new();
    for chunk in &chunks[..3] {
        assert_eq!(next.push(chunk.clone()), Ok(None));
    }
    assert_eq!(next.push(chunks[3].clone()), Ok(Some(large)));
    let again = next.push(chunks[0].clone()).unwrap_err().to_string();
    assert_eq!(again, "chunk of frame 0 at 0, expected frame 1 at 0");
}

#[test]
fn oversized_and_empty_chunks_are_refused() {
    let push = |total: u32, offset: u32, piece: usize| {
        let mut chunk = b"WFCK\0\0\0\0".to_vec();
        chunk.extend_from_slice(&total.to_le_bytes());
        chunk.extend_from_slice(&offset.to_le_bytes());
        chunk.resize(CHUNK_HEADER_BYTES + piece, 0);
        Reassembler::new().push(chunk.into()).unwrap_err().to_string()
    };
    assert_eq!(push(100, 0, 0), "chunk, at least: 17 bytes expected, 16 came");
    assert_eq!(push(100, 0, 101), "rest of the frame: 100 bytes expected, 101 came");
    assert_eq!(push(10, 0, 10), "frame: 48 bytes expected, 10 came");
    assert_eq!(push(100, 100, 5), "frame: 100 bytes expected, 100 came");
    assert_eq!(push(100, 0, 65_536), "chunk bytes: 65552, at most 65536 are allowed");
    let max = FRAME_BYTES_MAX as u32;
    let got = push(max + 1, 0, 5);
    assert_eq!(got, format!("frame bytes: {}, at most {max} are allowed", max + 1));
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let segments = prop::collection::vec(
        (any::<u64>(), any::<u32>(), 0..100_000u32, 1..9u32, any::<u32>(), 0..6u8),
        1..6,
    );
    let ids = (any::<u64>(), any::<u64>(), any::<u32>(), 0..4095u32);
    let dtypes = prop::sample::select(vec![Dtype::F32, Dtype::F16, Dtype::I8]);
    (any::<bool>(), any::<bool>(), dtypes, ids, segments, 0..2000usize, any::<u8>()).prop_map(
        |(is_step, tokens, dtype, (assignment, step, compute_us, first), segments, width, fill)| {
            let segment = |(i, (id, epoch, position, rows, logits, status)): (usize, _)| Segment {
                session: SessionId(u64::wrapping_add(id, i as u64)),
                epoch,
                position,
                rows,
                logits_rows: logits % (rows + 1),
                status: match status {
                    _ if is_step => Status::Ok,
                    0 => Status::Stale,
                    1 => Status::Gap,
                    2 => Status::KvFull,
                    3 => Status::NumericFault,
                    _ => Status::Ok,
                },
            };
            let mut frame = Frame {
                kind: if is_step { FrameKind::Step } else { FrameKind::Result },
                assignment: AssignmentId(assignment),
                span: Span { first, end: first + 1 },
                step,
                compute_us: if is_step { 0 } else { compute_us },
                dtype: if is_step && tokens { Dtype::U32 } else { dtype },
                answer: dtype,
                segments: segments.into_iter().enumerate().map(segment).collect(),
                payload: Bytes::new(),
            };
            let mut sessions: Vec<_> = frame.segments.iter().map(|s| s.session).collect();
            sessions.sort();
            sessions.dedup();
            if sessions.len() < frame.segments.len() {
                frame.segments.truncate(1);
            }
            let width = if frame.dtype == Dtype::U32 { 1 } else { width + 1 };
            let rows = frame.payload_rows(false) as usize;
            let bytes = (0..rows * frame.dtype.row_bytes(width))
                .map(|i| fill.wrapping_add((i % 251) as u8));
            frame.payload = bytes.collect();
            frame
        },
    )
}

fn any_control() -> impl Strategy<Value = ToWorker> {
    (any::<u64>(), any::<u32>()).prop_map(|(nonce, n)| match n % 2 {
        0 => ToWorker::Ping { nonce },
        _ => ToWorker::Unassign { assignment: AssignmentId(nonce) },
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames_survive_the_trip(frame in any_frame()) {
        prop_assert_eq!(decode(&encode(&frame).unwrap()), Ok(frame));
    }

    /// Several frames on one connection, control messages between the chunks.
    #[test]
    fn chunked_frames_survive_among_control_messages(
        frames in prop::collection::vec(any_frame(), 1..4),
        controls in prop::collection::vec(any_control(), 0..8),
    ) {
        enum Message { Text(String), Binary(Bytes) }
        let mut texts = controls.iter().map(|c| c.to_json().unwrap());
        let mut wire = Vec::new();
        for (number, frame) in (0..).zip(&frames) {
            for chunk in Chunks::new(frame, number).unwrap() {
                prop_assert!(chunk.len() <= CHUNK_BYTES_MAX);
                wire.push(Message::Binary(chunk));
                wire.extend(texts.next().map(Message::Text));
            }
        }
        wire.extend(texts.map(Message::Text));
        let (mut reassembler, mut got_frames, mut got_controls) = (Reassembler::new(), vec![], vec![]);
        for message in wire {
            match message {
                Message::Text(json) => got_controls.push(ToWorker::from_json(&json).unwrap()),
                Message::Binary(chunk) => got_frames.extend(reassembler.push(chunk).unwrap()),
            }
        }
        prop_assert_eq!(got_frames, frames);
        prop_assert_eq!(got_controls, controls);
    }

    #[test]
    fn arbitrary_bytes_are_only_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(decode(&Bytes::from(bytes.clone())).is_err());
        prop_assert!(Reassembler::new().push(bytes.into()).is_err());
    }
}

#[test]
fn a_frame_above_the_callers_bound_is_refused_at_its_first_chunk() {
    // Number 0, 100 bytes in all, from 0, of which one byte came.
    let mut chunk = b"WFCK".to_vec();
    chunk.extend([0u32, 100, 0].iter().flat_map(|word| word.to_le_bytes()));
    chunk.push(0);
    let push = |max_bytes| {
        let mut reassembler = Reassembler::new();
        reassembler.set_max_bytes(max_bytes);
        reassembler.push(chunk.clone().into())
    };
    assert_eq!(push(100), Ok(None));
    let refused = push(99).unwrap_err().to_string();
    assert_eq!(refused, "bytes of the frame: 100, at most 99 are allowed");
}
