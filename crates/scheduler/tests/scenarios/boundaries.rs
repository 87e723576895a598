//! Boundaries that are sent rounded: which dtype, that a session keeps it, and what is counted.

use bytes::Bytes;
use protocol::{Dtype, Frame, WorkerId, boundary};
use scheduler::{Boundaries, Config, Event, Holds, Note, WorkerSpec};

use crate::audits::{STRANGER, answer_all, lie, stranger, watched};
use crate::bench::{Bench, D_MODEL, LAYERS, MIB, worker};

const WIDTH: usize = D_MODEL as usize;

fn lossy(boundaries: Boundaries) -> Config {
    Config { boundaries, ..Config::default() }
}

fn speaks(spec: WorkerSpec) -> WorkerSpec {
    WorkerSpec { boundaries: Dtype::LOSSY.to_vec(), ..spec }
}

/// A worker for the ends, and one after the other with the layers.
fn split(config: Config, layers: &[WorkerSpec]) -> Bench {
    let mut bench = Bench::new(config);
    let ends = worker(1, 2 * MIB, true, Holds::Ends);
    bench.join_spec(speaks(WorkerSpec { kind: protocol::WorkerKind::Embedded, ..ends }));
    for spec in layers {
        bench.join_spec(spec.clone());
    }
    bench
}

/// Answers the oldest step with rows that are no zeros, and says what it was.
fn answer(bench: &mut Bench) -> Frame {
    let (worker, step) = bench.steps.remove(0);
    bench.answer_step(worker, &step, spoken);
    step
}

/// Rows that rounding changes, in what the step asks for.
fn spoken(frame: &mut Frame) {
    if frame.span.end == LAYERS + 2 {
        return;
    }
    let rows: u32 = frame.segments.iter().map(|s| s.rows).sum();
    let values = (0..rows as usize * WIDTH).map(|i| (i as f32 + 1.0) / 3.0).collect();
    frame.payload = boundary::encode(values, frame.answer, WIDTH).unwrap();
}

fn one(boundaries: Boundaries, spec: WorkerSpec) -> Vec<Frame> {
    let mut bench = split(lossy(boundaries), &[spec]);
    bench.submit(1, vec![5, 6, 7], 1);
    let steps = (0..3).map(|_| answer(&mut bench)).collect();
    assert_eq!(bench.samples.len(), 1);
    steps
}

#[test]
fn both_ends_of_a_link_have_its_dtype() {
    let native = || worker(2, 100 * MIB, true, Holds::Anything);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::I8] {
        let steps = one(Boundaries::All(dtype), speaks(native()));
        let seen: Vec<_> = steps.iter().map(|s| (s.dtype, s.answer)).collect();
        // Token ids go to the embedding, and logits come from the head.
        let expected = [(Dtype::U32, dtype), (dtype, dtype), (dtype, Dtype::F32)];
        assert_eq!(seen, expected, "{dtype:?}");
    }
}

#[test]
fn a_worker_that_speaks_f32_only_is_spoken_to_in_f32() {
    let native = worker(2, 100 * MIB, true, Holds::Anything);
    let steps = one(Boundaries::All(Dtype::I8), native);
    assert!(steps[1..].iter().all(|s| s.dtype == Dtype::F32 && s.answer == Dtype::F32));
}

#[test]
fn a_replacement_without_the_dtype_is_fed_the_same_values() {
    let first = speaks(worker(2, 100 * MIB, true, Holds::Anything));
    let mut bench = split(lossy(Boundaries::All(Dtype::I8)), &[first]);
    bench.submit(1, vec![5, 6, 7], 1);
    answer(&mut bench);
    let fed = answer(&mut bench);
    assert_eq!((fed.dtype, fed.payload.len()), (Dtype::I8, 3 * Dtype::I8.row_bytes(WIDTH)));
    // The head has its rows from the log, whoever is gone: the token is chosen.
    bench.tell(Event::Leave { worker: WorkerId(2), reason: "gone".into() });
    bench.answer_all();
    let session = bench.session(1);
    assert_eq!(bench.samples, [(session, 2)]);
    bench.join(3, 100 * MIB, true, Holds::Anything);
    let again = answer(&mut bench);
    assert_eq!((again.dtype, again.answer), (Dtype::F32, Dtype::F32));
    let values = |f: &Frame| boundary::decode(&f.payload, f.dtype, WIDTH).unwrap().to_vec();
    assert_eq!(values(&again), values(&fed));
    // What it adds to the log is rounded as its predecessor's rows were.
    bench.tell(Event::Sampled { session, token: 9 });
    (0..2).for_each(|_| drop(answer(&mut bench)));
    let to_head = answer(&mut bench);
    let mut asked = Frame { answer: Dtype::I8, ..fed };
    asked.segments = to_head.segments.clone();
    spoken(&mut asked);
    assert_eq!((to_head.dtype, to_head.payload), (Dtype::I8, asked.payload));
}

#[test]
fn audits_compare_what_was_sent() {
    let config = lossy(Boundaries::All(Dtype::I8));
    let mut honest = watched(config.clone(), speaks(stranger()));
    let mut liar = watched(config, speaks(stranger()));
    for (bench, lies) in [(&mut honest, false), (&mut liar, true)] {
        bench.submit(1, (0..40).collect(), 1);
        // The trusted worker that replays speaks f32 only.
        answer_all(bench, &[STRANGER], if lies { lie } else { |_| {} });
        let found = bench.notes.iter().any(|n| matches!(n, Note::Disagreed { .. }));
        assert_eq!(found, lies);
        assert_eq!(bench.standings.values().any(|s| s.agreements > 0), !lies);
    }
}

#[test]
fn an_answer_in_another_dtype_or_with_a_broken_scale_ends_its_worker() {
    let check = |spoil: fn(&mut Frame), why: &str| {
        let native = speaks(worker(2, 100 * MIB, true, Holds::Anything));
        let mut bench = split(lossy(Boundaries::All(Dtype::I8)), &[native]);
        bench.submit(1, vec![5], 1);
        answer(&mut bench);
        let (worker, step) = bench.steps.remove(0);
        bench.answer_step(worker, &step, spoil);
        assert!(bench.dismissed[0].1.contains(why), "{:?}", bench.dismissed);
    };
    check(|f| f.dtype = Dtype::F16, "of f16 where");
    check(
        |f| {
            let mut bytes = f.payload.to_vec();
            bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
            f.payload = Bytes::from(bytes);
        },
        "not finite",
    );
}

#[test]
fn what_links_carried_is_counted_beside_f32() {
    let native = speaks(worker(2, 100 * MIB, true, Holds::Anything));
    let mut bench = split(lossy(Boundaries::All(Dtype::F16)), &[native]);
    bench.submit(1, vec![5, 6, 7], 1);
    (0..3).for_each(|_| drop(answer(&mut bench)));
    let view = bench.scheduler.view();
    // Three rows there and three back; the embedded worker has no link.
    let bytes_f32 = 6 * 4 * WIDTH as u64;
    assert_eq!((view.traffic.bytes, view.traffic.bytes_f32), (bytes_f32 / 2, bytes_f32));
    assert_eq!(view.tokens_embedded, 3);
    let of = |id| view.workers.iter().find(|w| w.id == WorkerId(id)).unwrap();
    assert_eq!((of(1).boundary_dtype, of(1).traffic.bytes), (Dtype::F32, 0));
    assert_eq!((of(2).boundary_dtype, of(2).traffic), (Dtype::F16, view.traffic));
}
