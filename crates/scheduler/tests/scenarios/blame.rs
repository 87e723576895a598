//! Rows are held against whoever gave them, and against nobody else.

use protocol::{Frame, Status, WorkerId};
use scheduler::{Config, Event, Holds, RequestError, RequestId, Wish, WorkerSpec};

use crate::audits::{STRANGER, answer_all, key, lie, prompt, stranger, watched};
use crate::bench::{Bench, MIB, worker};

/// Strangers that come later.
const NEIGHBOUR: WorkerId = WorkerId(4);
const LATER: WorkerId = WorkerId(5);

/// A stranger with room for half of the layers.
fn half(id: WorkerId, bytes_per_s: f64) -> WorkerSpec {
    let spec = worker(id.0, 3 * MIB, false, Holds::Anything);
    WorkerSpec { bytes_per_s: [bytes_per_s; 2], ..spec }
}

/// The route of the one session.
fn holders(bench: &Bench) -> Vec<WorkerId> {
    bench.scheduler.view().sessions[0].route.iter().map(|stage| stage.0).collect()
}

/// The next token of a session, and the step with its row answered with `KvFull`.
fn run_out_of_pages(bench: &mut Bench, request: u64, worker: WorkerId) {
    let session = bench.session(request);
    bench.tell(Event::Sampled { session, token: 1 });
    bench.answer();
    let (holder, step) = bench.steps.remove(0);
    assert_eq!(holder, worker);
    bench.answer_step(worker, &step, |frame| {
        frame.segments[0].status = Status::KvFull;
        frame.payload = Default::default();
    });
}

/// Another value in every row.
fn lie_everywhere(frame: &mut Frame) {
    let mut bytes = frame.payload.to_vec();
    bytes.iter_mut().step_by(4).for_each(|byte| *byte ^= 1);
    frame.payload = bytes.into();
}

#[test]
fn whoever_fills_a_forgotten_log_answers_for_it_alone() {
    // Boundaries of 55 rows, and a prompt of 100, do not fit into the log beside each other.
    let config = Config { log_bytes_max: 1800, ..Config::default() };
    let mut bench = watched(config, half(STRANGER, 1e9));
    let route = [WorkerId(1), STRANGER, NEIGHBOUR, WorkerId(1)];
    bench.join_spec(half(NEIGHBOUR, 1e9));
    bench.submit(1, prompt(), 1);
    bench.answer_all();
    let session = bench.session(1);
    assert_eq!(holders(&bench), route);
    for _ in 0..15 {
        bench.tell(Event::Sampled { session, token: 1 });
        bench.answer_all();
    }
    // Its last rows are not drawn for yet when the log forgets them.
    bench.submit(2, vec![2; 100], 1);
    bench.answer();
    assert!(bench.scheduler.view().log_bytes <= 900, "the first session's log was kept");
    bench.tell(Event::Cancel { request: RequestId(2) });
    bench.answer_all();
    bench.join_spec(half(LATER, 1e11));
    run_out_of_pages(&mut bench, 1, STRANGER);
    // Another goes on with it from the beginning, and lies.
    assert_eq!(holders(&bench), route.map(|w| if w == STRANGER { LATER } else { w }));
    let replays = WorkerId(2);
    while let Some(at) = bench.steps.iter().position(|(worker, _)| *worker != replays) {
        let (worker, step) = bench.steps.remove(at);
        bench.answer_step(worker, &step, |frame| {
            if worker == LATER {
                lie_everywhere(frame);
            }
        });
    }
    bench.tell(Event::Finish { session });
    bench.answer_all();
    assert!(bench.standings[&key(LATER.0)].banned);
    assert!(!bench.standings[&key(STRANGER.0)].banned, "it is blamed for another's rows");
    assert!(!bench.standings[&key(NEIGHBOUR.0)].banned, "it is blamed for what it was given");
}

#[test]
fn what_a_session_did_before_it_is_preempted_is_drawn_for() {
    let mut bench = watched(Config::default(), stranger());
    bench.submit(1, prompt()[..20].to_vec(), 1);
    answer_all(&mut bench, &[STRANGER], lie);
    assert_eq!(bench.samples.len(), 1);
    bench.join_spec(WorkerSpec { memory_bytes: 100 * MIB, ..half(LATER, 1e11) });
    run_out_of_pages(&mut bench, 1, STRANGER);
    answer_all(&mut bench, &[STRANGER], lie);
    assert!(bench.standings[&key(STRANGER.0)].banned, "nobody looked at its rows");
}

/// A trusted worker, and strangers that are so much faster that sessions begin there.
fn fast(strangers: &[(u64, u64)]) -> Bench {
    let mut bench = Bench::new(Config::default());
    bench.join(1, 100 * MIB, true, Holds::Anything);
    for &(id, memory_bytes) in strangers {
        let spec = half(WorkerId(id), 1e12);
        bench.join_spec(WorkerSpec { memory_bytes: memory_bytes * MIB, ..spec });
    }
    bench
}

/// Answers the oldest step, that values overflow if it is one of these workers'.
fn overflow(bench: &mut Bench, of: &[u64]) {
    let (worker, step) = bench.steps.remove(0);
    bench.answer_step(worker, &step, |frame| {
        if of.contains(&worker.0) {
            frame.segments[0].status = Status::NumericFault;
            frame.payload = Default::default();
        }
    });
}

#[test]
fn an_overflow_that_another_one_sees_costs_nobody_its_standing() {
    let mut bench = fast(&[(2, 100), (3, 100)]);
    for request in 1..=3 {
        bench.submit(request, vec![request as u32; 2], 1);
        while !bench.refused.contains_key(&RequestId(request)) {
            overflow(&mut bench, &[2, 3]);
        }
        assert!(matches!(bench.refused[&RequestId(request)], RequestError::Numeric { .. }));
        bench.steps.clear();
    }
    let disagreed = |id| bench.standings.get(&key(id)).is_some_and(|s| s.disagreements > 0);
    assert!(!disagreed(2) && !disagreed(3), "{:?}", bench.standings);
}

#[test]
fn whoever_replaces_an_overflow_keeps_to_the_requests_wish() {
    let mut bench = fast(&[(2, 100), (3, 3), (4, 3)]);
    let wish = Wish { nodes_max: Some(2), ..Wish::default() };
    bench.submit_wishing(1, vec![1, 2], 1, wish);
    while bench.samples.is_empty() {
        overflow(&mut bench, &[2]);
    }
    let workers: std::collections::BTreeSet<WorkerId> = holders(&bench).into_iter().collect();
    assert!(workers.len() <= 2 && !workers.contains(&WorkerId(2)), "{workers:?}");
}
