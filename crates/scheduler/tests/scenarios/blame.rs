//! Rows are held against whoever gave them, and against nobody else.

use protocol::{Frame, Status, WorkerId};
use scheduler::{Config, Event, Holds, RequestId, WorkerSpec};

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
