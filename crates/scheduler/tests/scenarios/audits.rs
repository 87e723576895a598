//! Liars, and what audits make of them and of the others.

use std::time::Duration;

use protocol::{Frame, WorkerId, WorkerKind};
use scheduler::audit::Settings;
use scheduler::{Config, Event, Holds, Note, RequestId, Standing, WorkerSpec};

use crate::bench::{Bench, LAYERS, MIB, worker};

/// The volunteer.
pub const STRANGER: WorkerId = WorkerId(3);
const PROMPT: u32 = 40;

pub fn key(id: u64) -> String {
    format!("{id:0>64}")
}

fn full() -> Config {
    Config { audits: Settings { full: true, ..Settings::default() }, ..Config::default() }
}

/// The ends on one trusted worker, all layers on a fast stranger, and on a trusted worker
/// that is too slow to be on a route.
pub fn watched(config: Config, stranger: WorkerSpec) -> Bench {
    let mut bench = Bench::new(config);
    bench.join(1, 2 * MIB, true, Holds::Ends);
    bench.join_spec(stranger);
    let slow = WorkerSpec { bytes_per_s: [1e5; 2], ..worker(2, 100 * MIB, true, Holds::Anything) };
    bench.join_spec(slow);
    bench
}

pub fn stranger() -> WorkerSpec {
    worker(STRANGER.0, 100 * MIB, false, Holds::Anything)
}

pub fn lie(frame: &mut Frame) {
    let mut bytes = frame.payload.to_vec();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    frame.payload = bytes.into();
}

fn lie_grossly(frame: &mut Frame) {
    let mut bytes = frame.payload.to_vec();
    bytes[..4].copy_from_slice(&1f32.to_le_bytes());
    frame.payload = bytes.into();
}

/// Answers everything, `liars` with what `spoil` makes of it.
pub fn answer_all(bench: &mut Bench, liars: &[WorkerId], spoil: fn(&mut Frame)) {
    while !bench.steps.is_empty() {
        let (worker, step) = bench.steps.remove(0);
        bench.answer_step(worker, &step, |frame| {
            if liars.contains(&worker) {
                spoil(frame);
            }
        });
    }
}

pub fn prompt() -> Vec<u32> {
    (0..PROMPT).map(|t| t % 8).collect()
}

#[test]
fn work_that_agrees_earns_standing_and_credit() {
    let mut bench = watched(Config::default(), stranger());
    bench.submit(1, prompt(), 1);
    bench.answer_all();
    assert_eq!(bench.samples.len(), 1);
    let expected = Standing {
        agreements: 1,
        rows_verified: u64::from(PROMPT * LAYERS),
        ..Standing::default()
    };
    assert_eq!(bench.standings[&key(3)], expected);
    assert_eq!(bench.verified, [(key(3), LAYERS, PROMPT)]);
    let view = bench.scheduler.view();
    let seen = view.workers.iter().find(|w| w.id == STRANGER).unwrap();
    assert_eq!(seen.standing, expected);
    assert!(bench.notes.iter().all(|n| !matches!(n, Note::Disagreed { .. })));
}

#[test]
fn whoever_answers_otherwise_than_two_replays_is_out_for_good() {
    let mut bench = watched(Config::default(), stranger());
    bench.submit(1, prompt(), 1);
    answer_all(&mut bench, &[STRANGER], lie);
    assert_eq!(bench.dismissed.len(), 1);
    assert_eq!((bench.dismissed[0].0, bench.dismissed[0].2), (STRANGER, false));
    let standing = bench.standings[&key(3)];
    assert!(standing.banned && standing.agreements == 0);
    assert_eq!(standing.rows_verified, 0, "what is not verified earns nothing");
    let disagreed =
        |n: &&Note| matches!(n, Note::Disagreed { position, .. } if *position == PROMPT / 2);
    assert_eq!(bench.notes.iter().filter(disagreed).count(), 2);
    // The session goes on with what is right.
    let route = &bench.scheduler.view().sessions[0].route;
    assert!(route.iter().all(|(id, ..)| *id != STRANGER), "{route:?}");
    // The key is known, whatever its connection is called.
    bench.join_as(7, &key(3), 100 * MIB, false, Holds::Anything);
    assert_eq!((bench.dismissed[1].0, bench.dismissed[1].2), (WorkerId(7), false));
    assert!(bench.scheduler.view().workers.iter().all(|w| w.id != WorkerId(7)));
    // Unless the operator says otherwise.
    bench.tell(Event::Unban { key: key(3) });
    bench.join_as(8, &key(3), 100 * MIB, false, Holds::Anything);
    let view = bench.scheduler.view();
    let back = view.workers.iter().find(|w| w.id == WorkerId(8)).expect("it is let in");
    assert_eq!(back.standing, Standing { banned: false, ..standing });
}

#[test]
fn a_key_that_was_banned_before_is_refused_when_it_joins() {
    let standing = Standing { banned: true, ..Standing::default() };
    let bench = watched(Config::default(), WorkerSpec { standing, ..stranger() });
    assert_eq!((bench.dismissed[0].0, bench.dismissed[0].2), (STRANGER, false));
    assert_eq!(bench.scheduler.view().workers.len(), 2);
}

#[test]
fn a_proven_key_is_audited_seldom() {
    let standing = Standing { agreements: 1000, ..Standing::default() };
    let mut bench = watched(Config::default(), WorkerSpec { standing, ..stranger() });
    for request in 0..20 {
        bench.submit(request, prompt(), 1);
        bench.answer_all();
    }
    assert!(bench.verified.len() <= 1, "{:?}", bench.verified);
}

#[test]
fn with_full_verification_logits_wait_for_the_replay() {
    let mut bench = watched(full(), stranger());
    bench.submit(1, prompt(), 1);
    // Embedding, layers, head; the replay's step is on its way to the slow worker.
    let replay = WorkerId(2);
    while let Some(at) = bench.steps.iter().position(|(worker, _)| *worker != replay) {
        let (worker, step) = bench.steps.remove(at);
        bench.answer_step(worker, &step, |_| {});
    }
    assert_eq!(bench.samples, []);
    assert_eq!(bench.scheduler.view().sessions[0].state, "verifying");
    bench.answer_all();
    assert_eq!(bench.samples, [(bench.session(1), PROMPT - 1)]);
}

#[test]
fn with_full_verification_a_lie_reaches_nobody() {
    let mut bench = watched(full(), stranger());
    bench.submit(1, prompt(), 1);
    while bench.samples.is_empty() {
        let (worker, step) = bench.steps.remove(0);
        bench.answer_step(worker, &step, |frame| {
            if worker == STRANGER {
                lie(frame);
            }
        });
    }
    assert!(bench.standings[&key(3)].banned, "its rows were given out first");
}

#[test]
fn a_trusted_gpu_watches_no_cpu() {
    let mut bench = Bench::new(full());
    let slow =
        |id| WorkerSpec { bytes_per_s: [1e5; 2], ..worker(id, 100 * MIB, true, Holds::Anything) };
    bench.join_spec(slow(1));
    bench.join_spec(WorkerSpec { classes: vec!["wgsl-f32".into()], ..slow(2) });
    bench.join_spec(WorkerSpec { bytes_per_s: [1e12; 2], ..stranger() });
    bench.pass(Duration::from_secs(5));
    let shards = bench.shards();
    bench.submit(1, prompt(), 1);
    assert!(bench.scheduler.view().sessions[0].route.iter().any(|s| s.0 == STRANGER));
    bench.answer_all();
    assert_eq!(bench.samples, [(bench.session(1), PROMPT - 1)], "nobody can replay: {shards:?}");
}

/// A stranger that computes on a GPU.
fn gpu_tab() -> WorkerSpec {
    WorkerSpec {
        kind: WorkerKind::Browser,
        classes: vec!["wgsl-f32".into()],
        bytes_per_s: [1e10; 2],
        ..stranger()
    }
}

#[test]
fn a_gpu_is_out_after_three_answers_outside_its_band() {
    let mut bench = watched(Config::default(), gpu_tab());
    for request in 1..=3 {
        assert!(bench.dismissed.is_empty(), "{:?}", bench.dismissed);
        bench.submit(request, prompt().into_iter().map(|t| t ^ request as u32).collect(), 1);
        let before = bench.samples.len();
        while bench.samples.len() == before || !bench.steps.is_empty() {
            let lies =
                bench.standings.get(&key(3)).is_none_or(|s| s.disagreements < request as u32);
            let (worker, step) = bench.steps.remove(0);
            bench.answer_step(worker, &step, |frame| {
                if worker == STRANGER && lies {
                    lie_grossly(frame);
                }
            });
        }
        assert_eq!(bench.standings[&key(3)].disagreements, request as u32);
    }
    assert!(bench.standings[&key(3)].banned);
    assert_eq!((bench.dismissed[0].0, bench.dismissed[0].2), (STRANGER, false));
}

#[test]
fn strangers_judge_each_other_where_nobody_trusted_can() {
    let mut bench = Bench::new(Config::default());
    bench.join(1, 2 * MIB, true, Holds::Ends);
    for id in 3..=6 {
        bench.join(id, 100 * MIB, false, Holds::Anything);
    }
    bench.submit(1, prompt(), 1);
    bench.answer();
    let (liar, _) = bench.steps[0];
    answer_all(&mut bench, &[liar], lie);
    assert!(bench.standings[&key(liar.0)].banned);
    let others = (3..=6).filter(|id| *id != liar.0);
    assert!(others.into_iter().all(|id| !bench.standings.get(&key(id)).is_some_and(|s| s.banned)));
    assert_eq!(bench.dismissed.len(), 1);
}

/// Answers everything but what worker 2, who replays, is asked.
fn answer_but_replays(bench: &mut Bench, spoil: fn(&mut Frame)) {
    while let Some(at) = bench.steps.iter().position(|(worker, _)| *worker != WorkerId(2)) {
        let (worker, step) = bench.steps.remove(at);
        bench.answer_step(worker, &step, |frame| {
            if worker == STRANGER {
                spoil(frame);
            }
        });
    }
}

#[test]
fn what_there_was_no_room_to_audit_is_drawn_for_again() {
    let audits = Settings { audits_max: 1, ..Settings::default() };
    let mut bench = watched(Config { audits, ..Config::default() }, stranger());
    bench.submit(1, prompt(), 1);
    answer_but_replays(&mut bench, |_| {});
    bench.submit(2, vec![3; 40], 1);
    answer_but_replays(&mut bench, lie);
    assert_eq!(bench.scheduler.audits_missed(), 1);
    assert_eq!(bench.scheduler.view().audits_missed, 1);
    bench.answer_all();
    assert_eq!(bench.standings[&key(3)].agreements, 1);
    let session = bench.session(2);
    bench.tell(Event::Finish { session });
    bench.answer_all();
    assert!(bench.standings[&key(3)].banned, "its second session was never audited");
}

#[test]
fn an_audit_that_nobody_can_replay_keeps_no_place() {
    let audits = Settings { audits_max: 1, ..Settings::default() };
    let mut bench = Bench::new(Config { audits, ..Config::default() });
    bench.join(1, 2 * MIB, true, Holds::Ends);
    bench.join_spec(stranger());
    let two = vec!["wgsl-f32".into()];
    bench.join_spec(WorkerSpec {
        bytes_per_s: [1e5; 2],
        classes: two,
        ..worker(4, 100 * MIB, true, Holds::Anything)
    });
    bench.submit(1, prompt(), 1);
    bench.answer_all();
    assert_eq!(bench.scheduler.audits_missed(), 1, "a GPU replays no CPU's rows");
    // A place is free for whoever can be audited: of two strangers in the GPU's class.
    let gpu = WorkerSpec {
        classes: vec!["wgsl-f32".into()],
        bytes_per_s: [1e13; 2],
        ..worker(5, 100 * MIB, false, Holds::Anything)
    };
    bench.join_spec(gpu);
    bench.submit(2, vec![3; 40], 1);
    bench.answer_all();
    assert_eq!(bench.standings[&key(5)].agreements, 1);
}

#[test]
fn rows_are_counted_once_though_choices_share_them() {
    let mut bench = watched(Config::default(), stranger());
    bench.submit(1, prompt(), 2);
    bench.answer_all();
    let sessions = bench.started[&RequestId(1)].0.clone();
    for session in sessions {
        bench.tell(Event::Sampled { session, token: 1 });
        bench.pass(Duration::from_millis(10));
        bench.answer_all();
        bench.tell(Event::Finish { session });
        bench.answer_all();
    }
    let rows: u32 = bench.verified.iter().map(|v| v.2).sum();
    assert_eq!(rows, PROMPT + 2, "{:?}", bench.verified);
}

#[test]
fn rows_are_counted_once_though_two_audits_cover_them() {
    let mut bench = watched(Config::default(), stranger());
    bench.submit(1, prompt(), 1);
    answer_but_replays(&mut bench, |_| {});
    let session = bench.session(1);
    for _ in PROMPT..64 {
        bench.tell(Event::Sampled { session, token: 1 });
        answer_but_replays(&mut bench, |_| {});
    }
    bench.tell(Event::Cancel { request: RequestId(1) });
    bench.answer_all();
    assert_eq!(bench.standings[&key(3)].agreements, 2);
    let rows: u32 = bench.verified.iter().map(|v| v.2).sum();
    assert_eq!(rows, 64, "{:?}", bench.verified);
}

#[test]
fn strangers_clear_nobody_whom_a_trusted_replay_doubts() {
    let mut bench = watched(Config::default(), stranger());
    let accomplices = [4, 5, 6, 7].map(WorkerId);
    for id in accomplices {
        bench.join(id.0, 100 * MIB, false, Holds::Anything);
    }
    bench.submit(1, prompt(), 1);
    let route = &bench.scheduler.view().sessions[0].route;
    let liar = route[1].0;
    assert!(liar != WorkerId(2));
    let liars = [3, 4, 5, 6, 7].map(WorkerId);
    // Until one replay has differed and the second one is asked for.
    while !bench.notes.iter().any(|n| matches!(n, Note::Disagreed { .. })) {
        let (worker, step) = bench.steps.remove(0);
        bench.answer_step(worker, &step, |frame| {
            if liars.contains(&worker) {
                lie(frame);
            }
        });
    }
    bench.steps.retain(|(worker, _)| *worker != WorkerId(2));
    bench.tell(Event::Leave { worker: WorkerId(2), reason: "gone".into() });
    for _ in 0..6 {
        bench.pass(Duration::from_secs(1));
        answer_all(&mut bench, &liars, lie);
    }
    let slow = WorkerSpec { bytes_per_s: [1e5; 2], ..worker(8, 100 * MIB, true, Holds::Anything) };
    bench.join_spec(slow);
    bench.pass(Duration::from_secs(1));
    answer_all(&mut bench, &liars, lie);
    assert!(bench.standings[&key(liar.0)].banned, "{:?}", bench.standings);
}

#[test]
fn a_finished_session_is_not_kept_for_what_is_wrong() {
    let mut bench = watched(Config::default(), gpu_tab());
    bench.submit(1, prompt(), 1);
    answer_but_replays(&mut bench, lie_grossly);
    let session = bench.session(1);
    bench.tell(Event::Finish { session });
    assert_eq!(bench.scheduler.view().cached_sessions, 1);
    bench.answer_all();
    assert_eq!(bench.standings[&key(3)].disagreements, 1);
    assert_eq!(bench.scheduler.view().cached_sessions, 0);
    bench.scheduler.check_invariants();
}

#[test]
fn fresh_keys_wash_nobody_clean() {
    let standing = Standing { disagreements: 2, ..Standing::default() };
    let gpu = WorkerSpec {
        classes: vec!["wgsl-f32".into()],
        bytes_per_s: [1e10; 2],
        standing,
        ..stranger()
    };
    let mut bench = watched(Config::default(), gpu);
    for id in 1_000..101_000 {
        bench.tell(Event::Join(worker(id, MIB, false, Holds::Anything)));
        bench.tell(Event::Leave { worker: WorkerId(id), reason: "gone".into() });
    }
    bench.submit(1, prompt(), 1);
    while !bench.steps.is_empty() {
        let first = !bench.standings.contains_key(&key(3));
        let (worker, step) = bench.steps.remove(0);
        bench.answer_step(worker, &step, |frame| {
            if worker == STRANGER && first {
                lie_grossly(frame);
            }
        });
    }
    assert_eq!(bench.standings[&key(3)].disagreements, 3);
    assert!(bench.standings[&key(3)].banned);
}
