//! One behaviour a test, event by event. What happens under faults is the simulation's.

mod audits;
mod bench;
mod blame;
mod boundaries;
mod groups;
mod large;
mod links;
mod pace;
mod slowed;
mod tabs;
mod wish;

use std::time::Duration;

use bytes::Bytes;
use protocol::{Frame, SessionId, Status, ToWorker, WorkerId};
use scheduler::{Config, Doing, Event, Holds, Note, RequestError, RequestId};

use bench::{Bench, MIB, alone};

#[test]
fn one_worker_holds_all_and_a_token_takes_one_step() {
    let mut bench = alone();
    assert_eq!(bench.shards(), [(1, Some((0, 3)), true, true)]);
    bench.submit(1, vec![1, 2, 3], 1);
    let step = bench.answer();
    assert_eq!((step.segments[0].rows, step.segments[0].logits_rows), (3, 1));
    let session = bench.session(1);
    assert_eq!(bench.samples, [(session, 2)]);
    bench.tell(Event::Sampled { session, token: 7 });
    let step = bench.answer();
    assert_eq!((step.segments[0].position, step.payload.len()), (3, 4));
    assert_eq!(bench.samples[1], (session, 3));
}

#[test]
fn the_ends_go_to_trusted_workers_only() {
    let mut bench = Bench::new(Config::default());
    bench.join(1, 100 * MIB, false, Holds::Anything);
    assert_eq!(bench.shards(), [], "nobody may hold the ends yet");
    bench.join(2, 2 * MIB, true, Holds::Ends);
    let mut shards = bench.shards();
    shards.sort();
    let expected =
        [(1, Some((0, 3)), false, false), (2, None, false, true), (2, None, true, false)];
    assert_eq!(shards, expected);
    bench.submit(1, vec![1, 2], 1);
    bench.answer_all();
    assert_eq!(bench.samples, [(bench.session(1), 1)]);
}

#[test]
fn the_ends_are_held_before_anyone_comes_for_the_layers() {
    let mut bench = Bench::new(Config::default());
    bench.join(1, 100 * MIB, true, Holds::Ends);
    assert_eq!(bench.shards(), [(1, None, true, false), (1, None, false, true)]);
    let missing = bench.scheduler.view().models[0].missing.clone().unwrap();
    assert!(missing.starts_with("layers 0 to 3 ("), "{missing}");
    bench.join(2, 100 * MIB, false, Holds::Anything);
    assert!(bench.scheduler.view().models[0].covered);
}

#[test]
fn what_cannot_run_is_refused_with_the_reason() {
    let config = Config { queue_max: 1, sessions_max: 1, ..Config::default() };
    let mut bench = Bench::new(config);
    bench.submit(9, vec![1], 2);
    let expected = RequestError::TooManyChoices { choices: 2, limit: 1 };
    assert_eq!(bench.refused[&RequestId(9)], expected);
    bench.submit(1, vec![0; 1000], 1);
    let expected =
        RequestError::TooLong { positions: 1001, limit: 1000, why: "the model's context".into() };
    assert_eq!(bench.refused[&RequestId(1)], expected);
    bench.submit(2, vec![1], 1);
    bench.submit(3, vec![1], 1);
    assert!(matches!(bench.refused[&RequestId(3)], RequestError::Busy { waiting: 1, .. }));
    bench.pass(Duration::from_secs(61));
    let doing = Doing::WaitingFor("the embedding, layers 0 to 3, the head of m".to_owned());
    let expected = RequestError::Deadline { waited_s: 60, doing };
    assert_eq!(bench.refused[&RequestId(2)], expected);
}

#[test]
fn a_fleet_too_small_says_how_much_is_missing() {
    let mut bench = Bench::new(Config::default());
    bench.join(1, 3 * MIB, true, Holds::Anything);
    let view = bench.scheduler.view();
    let missing = view.models[0].missing.as_deref().unwrap();
    assert!(missing.starts_with("the embedding, layers 0 to 3, the head (m needs "), "{missing}");
    assert!(missing.contains("the workers here lend 3 MiB"), "{missing}");
    let why = view.workers[0].idle_because.as_deref().unwrap();
    assert!(why.starts_with("waits for more workers"), "{why}");
}

#[test]
fn long_prompts_go_in_chunks_and_decodes_pass_them() {
    let mut bench = alone();
    bench.submit(1, vec![1], 1);
    bench.answer();
    bench.submit(2, (0..700).map(|t| t % 8).collect(), 1);
    let first = bench.session(1);
    bench.tell(Event::Sampled { session: first, token: 1 });
    let rows: Vec<u32> =
        bench.steps.iter().flat_map(|(_, f)| f.segments.iter().map(|s| s.rows)).collect();
    assert!(rows.iter().all(|r| *r <= 256), "{rows:?}");
    // The decode goes with the next step, not behind the whole prompt.
    let mut seen = 0;
    while bench.samples.len() < 2 {
        seen += bench.answer().segments.iter().map(|s| s.rows).sum::<u32>();
    }
    assert_eq!(bench.samples[1].0, first);
    assert!(seen < 700, "the decode waited for {seen} rows");
}

#[test]
fn choices_share_their_prompt() {
    let mut bench = alone();
    bench.submit(1, vec![1, 2, 3], 3);
    bench.answer_all();
    let (sessions, _) = bench.started[&RequestId(1)].clone();
    assert_eq!(bench.samples, sessions.iter().map(|s| (*s, 2)).collect::<Vec<_>>());
    let forks = bench.controls.iter().filter_map(|(_, m)| match m {
        ToWorker::Fork { from, to, positions, .. } => Some((*from, *to, *positions)),
        _ => None,
    });
    let expected = [(sessions[0], sessions[1], 3), (sessions[0], sessions[2], 3)];
    assert_eq!(forks.collect::<Vec<_>>(), expected);
}

#[test]
fn a_next_turn_computes_only_what_is_new() {
    let mut bench = alone();
    let prompt: Vec<u32> = (0..20).map(|t| t % 8).collect();
    bench.submit(1, prompt.clone(), 1);
    bench.answer_all();
    let session = bench.session(1);
    bench.tell(Event::Sampled { session, token: 5 });
    bench.answer_all();
    bench.tell(Event::Finish { session });
    let next: Vec<u32> = prompt.into_iter().chain([5, 6, 7]).collect();
    bench.submit(2, next, 1);
    assert_eq!(bench.started[&RequestId(2)].1, 21, "the prompt and the token that was fed");
    assert_eq!(bench.answer().segments[0].rows, 2);
    assert_eq!(bench.scheduler.view().cached_sessions, 0, "the old turn is superseded");
}

#[test]
fn a_client_that_leaves_frees_its_session_at_once() {
    let mut bench = alone();
    bench.submit(1, vec![1, 2, 3], 1);
    let session = bench.session(1);
    bench.tell(Event::Cancel { request: RequestId(1) });
    assert!(bench.scheduler.view().sessions.is_empty());
    let told = bench.controls.iter().any(
        |(_, m)| matches!(m, ToWorker::Truncate { session: s, positions: 0, .. } if *s == session),
    );
    assert!(told, "the worker keeps the KV of a session that is over");
    bench.answer_all();
    assert_eq!(bench.samples, [], "an answer for nobody");
}

#[test]
fn a_lost_stage_alone_is_replayed_and_its_late_answer_ignored() {
    let mut bench = Bench::new(Config::default());
    bench.join(1, 2 * MIB, true, Holds::Ends);
    bench.join(2, 3 * MIB, false, Holds::Anything);
    bench.join(3, 3 * MIB, false, Holds::Anything);
    bench.submit(1, vec![1, 2, 3, 4], 1);
    bench.answer_all();
    let session = bench.session(1);
    bench.tell(Event::Sampled { session, token: 6 });
    // The embedding answers, then the first layers' worker is lost with the step.
    bench.answer();
    let (lost, step) = bench.steps[0].clone();
    assert!(lost == WorkerId(2) || lost == WorkerId(3));
    bench.steps.clear();
    bench.tell(Event::Leave { worker: lost, reason: "gone".into() });
    let waits = bench.scheduler.view().sessions[0].waiting_for.clone().unwrap();
    assert!(waits.contains("layer"), "{waits}");
    // An answer that was under way changes nothing.
    bench.answer_step(lost, &step, |_| {});
    assert_eq!(bench.samples.len(), 1);
    bench.join(4, 3 * MIB, false, Holds::Anything);
    let replay = bench.answer();
    assert_eq!((replay.segments[0].position, replay.segments[0].rows), (0, 5));
    // The other stages go on with the one new row.
    while !bench.steps.is_empty() {
        let step = bench.answer();
        assert_eq!(step.segments[0].rows, 1);
    }
    assert_eq!(bench.samples[1], (session, 4));
}

#[test]
fn wrong_shapes_and_nan_cost_a_worker_its_place_and_nobody_a_token() {
    let nan: fn(&mut Frame) = |f| {
        let mut bytes = f.payload.to_vec();
        bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        f.payload = bytes.into();
    };
    let short: fn(&mut Frame) = |f| f.payload = f.payload.slice(4..);
    let other: fn(&mut Frame) = |f| f.segments[0].session = SessionId(99);
    for spoil in [nan, short, other] {
        let mut bench = alone();
        bench.join(2, 100 * MIB, true, Holds::Anything);
        bench.submit(1, vec![1, 2], 1);
        let (worker, step) = bench.steps.remove(0);
        bench.answer_step(worker, &step, spoil);
        assert_eq!((bench.dismissed[0].0, bench.dismissed[0].2), (worker, false));
        bench.answer_all();
        assert_eq!(bench.samples, [(bench.session(1), 1)], "the replica takes over");
    }
}

#[test]
fn a_trusted_workers_overflow_ends_the_request() {
    let mut bench = alone();
    bench.submit(1, vec![1, 2], 1);
    let (worker, step) = bench.steps.remove(0);
    bench.answer_step(worker, &step, |f| {
        f.segments[0].status = Status::NumericFault;
        f.payload = Bytes::new();
    });
    assert_eq!(bench.refused[&RequestId(1)], RequestError::Numeric { position: 0 });
}

#[test]
fn a_strangers_overflows_that_nobody_else_sees_cost_it_its_standing_from_the_second_on() {
    let mut bench = Bench::new(Config::default());
    bench.join(1, 100 * MIB, true, Holds::Anything);
    let mut spec = bench::worker(2, 100 * MIB, false, Holds::Anything);
    // So much faster that all sessions begin there.
    spec.bytes_per_s = [1e12, 1e12];
    bench.join_spec(spec);
    for request in 1..=2 {
        bench.submit(request, vec![request as u32; 2], 1);
        while bench.samples.len() < request as usize {
            let (worker, step) = bench.steps.remove(0);
            bench.answer_step(worker, &step, |f| {
                if worker == WorkerId(2) {
                    f.segments[0].status = Status::NumericFault;
                    f.payload = Bytes::new();
                }
            });
        }
        let known = bench.standings.get(&format!("{:0>64}", 2)).copied().unwrap_or_default();
        assert_eq!(known.disagreements, request as u32 - 1, "after {request}");
    }
}

#[test]
fn a_worker_that_does_not_answer_is_sent_away() {
    let mut bench = alone();
    bench.submit(1, vec![1, 2], 1);
    bench.steps.clear();
    bench.pass(Duration::from_secs(30));
    assert_eq!(bench.dismissed.len(), 1);
    assert!(bench.dismissed[0].2, "it may come back");
    bench.join(2, 100 * MIB, true, Holds::Anything);
    bench.answer_all();
    assert_eq!(bench.samples, [(bench.session(1), 1)]);
}

#[test]
fn a_reconnect_replaces_its_ghost() {
    let mut bench = alone();
    bench.submit(1, vec![1, 2], 1);
    bench.join_as(2, &format!("{:0>64}", 1), 100 * MIB, true, Holds::Anything);
    assert_eq!(bench.dismissed.len(), 1);
    assert_eq!(bench.dismissed[0].0, WorkerId(1));
    bench.answer_all();
    assert_eq!(bench.samples, [(bench.session(1), 1)]);
}

#[test]
fn a_draining_worker_is_given_nothing_new() {
    let mut bench = alone();
    bench.join(2, 100 * MIB, true, Holds::Anything);
    bench.tell(Event::Drain { worker: WorkerId(1), reason: "battery".into() });
    bench.pass(Duration::from_secs(1));
    bench.submit(1, vec![1, 2], 1);
    assert!(bench.steps.iter().all(|(w, _)| *w == WorkerId(2)));
    bench.answer_all();
    assert_eq!(bench.samples.len(), 1);
}

#[test]
fn when_the_kv_cache_runs_out_the_youngest_waits_and_comes_back() {
    let config = Config { kv_positions_min: 128, kv_positions_max: 128, ..Config::default() };
    let mut bench = Bench::new(config);
    bench.join(1, 100 * MIB, true, Holds::Anything);
    bench.submit(1, vec![1; 62], 1);
    bench.submit(2, vec![2; 62], 1);
    bench.answer_all();
    let (old, young) = (bench.session(1), bench.session(2));
    // The second page that the older one needs is the younger one's.
    for _ in 0..2 {
        bench.tell(Event::Sampled { session: old, token: 1 });
        // It has waited for the other one's token for long enough then.
        bench.pass(Duration::from_millis(10));
        bench.answer_all();
    }
    assert!(bench.notes.contains(&Note::Preempted { session: young }));
    assert_eq!(bench.samples.iter().filter(|(s, _)| *s == old).count(), 3);
    bench.tell(Event::Sampled { session: young, token: 1 });
    bench.tell(Event::Cancel { request: RequestId(1) });
    let replay = bench.answer();
    assert_eq!((replay.segments[0].session, replay.segments[0].rows), (young, 63));
    assert_eq!(bench.samples.last(), Some(&(young, 62)));
}

#[test]
fn a_new_worker_with_nothing_to_do_becomes_a_replica() {
    let mut bench = alone();
    bench.join(2, 3 * MIB, false, Holds::Anything);
    let replica = bench.shards().into_iter().find(|(w, ..)| *w == 2).unwrap();
    assert_eq!((replica.2, replica.3), (false, false));
    assert!(replica.1.is_some(), "it holds some layers");
}
