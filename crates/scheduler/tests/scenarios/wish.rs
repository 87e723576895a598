//! What a request asks of its route.

use std::collections::BTreeSet;
use std::time::Duration;

use protocol::WorkerId;
use scheduler::{Config, Doing, Event, Holds, Parallelism, RequestError, RequestId, Wish};

use crate::bench::{Bench, MIB};

/// A slow trusted worker with all of the model, and two fast strangers with half of the layers
/// each or more.
fn three() -> Bench {
    let mut bench = Bench::new(Config::default());
    for (id, memory, trusted, speed) in
        [(1, 100 * MIB, true, 1e7), (2, 3 * MIB, false, 1e9), (3, 3 * MIB, false, 1e9)]
    {
        let mut spec = crate::bench::worker(id, memory, trusted, Holds::Anything);
        spec.bytes_per_s = [speed, speed];
        bench.join_spec(spec);
    }
    bench
}

/// The workers of the only session's route, and those of its layers.
fn route(bench: &Bench) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let view = bench.scheduler.view();
    let route = &view.sessions[0].route;
    let layered = route.iter().filter(|(_, first, end)| (*first).max(1) < (*end).min(5));
    (route.iter().map(|s| s.0.0).collect(), layered.map(|s| s.0.0).collect())
}

fn asked(bench: &mut Bench, wish: Wish) -> (BTreeSet<u64>, BTreeSet<u64>) {
    bench.submit_wishing(1, vec![1, 2], 1, wish);
    let found = route(bench);
    bench.tell(Event::Cancel { request: RequestId(1) });
    bench.steps.clear();
    found
}

#[test]
fn a_route_is_as_its_request_wishes() {
    let mut bench = three();
    let wish = Wish::default();
    let (auto, _) = asked(&mut bench, wish);
    assert!(auto.len() > 1, "the strangers are faster: {auto:?}");
    let (trusted, _) = asked(&mut bench, Wish { trusted_only: true, ..wish });
    assert_eq!(trusted, [1].into());
    let (one, _) = asked(&mut bench, Wish { nodes_max: Some(1), ..wish });
    assert_eq!(one, [1].into());
    let (two, _) = asked(&mut bench, Wish { nodes_max: Some(2), ..wish });
    assert_eq!(two.len(), 2, "{two:?}");
    let (_, layers) = asked(&mut bench, Wish { parallelism: Parallelism::None, ..wish });
    assert_eq!(layers.len(), 1);
    let (_, layers) = asked(&mut bench, Wish { parallelism: Parallelism::Pipeline, ..wish });
    assert!(layers.len() > 1, "{layers:?}");
}

#[test]
fn a_lost_stage_is_not_replaced_by_whoever_the_request_does_not_want() {
    let mut bench = three();
    let wish = Wish { trusted_only: true, ..Wish::default() };
    bench.submit_wishing(1, vec![1, 2], 1, wish);
    bench.tell(Event::Leave { worker: WorkerId(1), reason: "gone".into() });
    let mut spec = crate::bench::worker(4, 2 * MIB, true, Holds::Ends);
    spec.bytes_per_s = [1e9, 1e9];
    bench.join_spec(spec);
    bench.pass(Duration::from_secs(2));
    assert!(bench.scheduler.view().models[0].covered, "others could go on");
    assert!(bench.scheduler.view().sessions[0].waiting_for.is_some());
    // Whoever wants less is not held up by it.
    bench.submit(2, vec![1, 2], 1);
    assert!(bench.started.contains_key(&RequestId(2)));
}

#[test]
fn what_cannot_be_granted_is_refused_and_says_which_wish() {
    let mut bench = Bench::new(Config::default());
    bench.join(1, 2 * MIB, true, Holds::Ends);
    bench.join(2, 100 * MIB, false, Holds::Anything);
    let cases = [
        (Parallelism::Tensor, None, "weft.parallelism", "one group"),
        (Parallelism::Hybrid, None, "weft.parallelism", "two groups"),
        (Parallelism::Pipeline, None, "weft.parallelism", "two workers or more"),
        (Parallelism::Pipeline, Some(1), "weft.nodes", "two workers at least"),
        (Parallelism::Auto, Some(1), "weft.nodes", "1 workers at most"),
    ];
    for (id, (parallelism, nodes_max, wanted, says)) in (1..).zip(cases) {
        let wish = Wish { nodes_max, parallelism, ..Wish::default() };
        bench.submit_wishing(id, vec![1, 2], 1, wish);
        let error = bench.refused.get(&RequestId(id)).expect("it is refused at once");
        let RequestError::NoRoute { field, why } = error else { panic!("{error}") };
        assert_eq!(*field, wanted);
        assert!(why.contains(says), "{why:?} does not say {says:?}");
    }
    // Somebody who is trusted may still come: it waits, and others pass it.
    bench.submit_wishing(9, vec![1, 2], 1, Wish { trusted_only: true, ..Wish::default() });
    bench.submit(10, vec![1, 2], 1);
    assert!(bench.started.contains_key(&RequestId(10)) && bench.refused.len() == 5);
    bench.answer_all();
    bench.pass(Duration::from_secs(61));
    let RequestError::Deadline { doing: Doing::WaitingFor(what), .. } =
        &bench.refused[&RequestId(9)]
    else {
        panic!("{:?}", bench.refused)
    };
    assert_eq!(what, "a trusted worker for layers 0 to 3 of m");
}

#[test]
fn trusted_only_does_not_go_on_with_what_a_stranger_gave() {
    let mut bench = Bench::new(Config::default());
    bench.join(1, 2 * MIB, true, Holds::Ends);
    bench.join(2, 3 * MIB, false, Holds::Anything);
    bench.join(3, 3 * MIB, true, Holds::Anything);
    let prompt: Vec<u32> = (0..20).map(|t| t % 8).collect();
    bench.submit(1, prompt.clone(), 1);
    assert_eq!(route(&bench).1, [2, 3].into());
    bench.answer_all();
    // The stranger's stage is replaced; what the other one holds was computed from its rows.
    bench.tell(Event::Leave { worker: WorkerId(2), reason: "gone".into() });
    bench.join(4, 3 * MIB, true, Holds::Anything);
    bench.answer_all();
    assert_eq!(route(&bench).1, [3, 4].into());
    let session = bench.session(1);
    bench.tell(Event::Sampled { session, token: 5 });
    bench.answer_all();
    bench.tell(Event::Finish { session });
    let next: Vec<u32> = prompt.into_iter().chain([5, 6, 7]).collect();
    let wish = Wish { trusted_only: true, ..Wish::default() };
    bench.submit_wishing(2, next.clone(), 1, wish);
    assert_eq!(bench.started[&RequestId(2)].1, 0, "it rests on a stranger's rows");
    bench.submit(3, next, 1);
    assert_eq!(bench.started[&RequestId(3)].1, 21);
}

#[test]
fn a_pipeline_runs_over_two_workers_that_hold_everything() {
    let mut bench = crate::bench::alone();
    let wish = Wish { parallelism: Parallelism::Pipeline, ..Wish::default() };
    bench.submit_wishing(7, vec![1, 2], 1, wish);
    assert!(bench.refused.contains_key(&RequestId(7)), "there is one worker");
    bench.join(2, 100 * MIB, true, Holds::Anything);
    let (_, layers) = asked(&mut bench, wish);
    assert_eq!(layers, [1, 2].into());
    let (_, layers) = asked(&mut bench, Wish { nodes_max: Some(2), ..wish });
    assert_eq!(layers, [1, 2].into());
}

#[test]
fn what_waits_for_room_as_it_wishes_holds_up_only_who_needs_the_same() {
    let config = Config { kv_positions_min: 128, kv_positions_max: 128, ..Config::default() };
    let mut bench = Bench::new(config);
    bench.join(1, 100 * MIB, true, Holds::Anything);
    bench.join(2, 100 * MIB, false, Holds::Anything);
    let wish = Wish { trusted_only: true, ..Wish::default() };
    for request in 1..=3 {
        bench.submit_wishing(request, vec![request as u32; 62], 1, wish);
    }
    assert!(bench.started.contains_key(&RequestId(2)));
    assert!(!bench.started.contains_key(&RequestId(3)), "the trusted worker's cache is full");
    bench.submit(4, vec![4; 62], 1);
    assert!(bench.started.contains_key(&RequestId(4)), "there is room on the other");
    bench.tell(Event::Cancel { request: RequestId(1) });
    assert!(bench.started.contains_key(&RequestId(3)));
}

#[test]
fn who_lost_its_room_comes_before_who_is_new_whatever_it_wishes() {
    let config = Config { kv_positions_min: 192, kv_positions_max: 192, ..Config::default() };
    let mut bench = Bench::new(config);
    bench.join(1, 100 * MIB, true, Holds::Anything);
    bench.submit(1, vec![1; 62], 1);
    let wish = Wish { nodes_max: Some(1), ..Wish::default() };
    bench.submit_wishing(2, vec![2; 100], 1, wish);
    bench.answer_all();
    let old = bench.session(1);
    for _ in 0..2 {
        bench.tell(Event::Sampled { session: old, token: 1 });
        bench.pass(Duration::from_millis(10));
        bench.answer_all();
    }
    let waits = |bench: &Bench| bench.scheduler.view().sessions[1].waiting_for.clone();
    assert_eq!(waits(&bench).as_deref(), Some("room in the KV cache"));
    // One page is free, and two are needed.
    bench.submit(3, vec![3; 10], 1);
    assert!(!bench.started.contains_key(&RequestId(3)), "it takes a page that another waits for");
    bench.tell(Event::Cancel { request: RequestId(1) });
    assert_eq!(waits(&bench), None);
    assert!(bench.started.contains_key(&RequestId(3)));
}
