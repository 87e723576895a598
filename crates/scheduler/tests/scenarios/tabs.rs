//! Browser tabs: what they are given beside workers that could do it all, and what they are
//! spared.

use std::time::Duration;

use protocol::{ToWorker, WorkerId, WorkerKind};
use scheduler::{Config, Event, Holds, WorkerSpec};

use crate::bench::{Bench, LAYERS, MIB, alone, worker};

/// Weight bytes a second that make a tab ten times as fast as the others here, and a
/// thousand times slower.
const FAST: f64 = 1e10;
const SLOW: f64 = 1e6;

fn tab(id: u64, memory_bytes: u64, bytes_per_s: f64) -> WorkerSpec {
    WorkerSpec {
        kind: WorkerKind::Browser,
        classes: vec!["wgsl-f32".into()],
        bytes_per_s: [bytes_per_s; 2],
        ..worker(id, memory_bytes, false, Holds::Anything)
    }
}

/// The spans that a worker was given, and in which classes.
fn given(bench: &Bench, id: u64) -> Vec<(u32, u32, String)> {
    let assigned = bench.controls.iter().filter_map(|(w, message)| match message {
        ToWorker::Assign(a) if *w == WorkerId(id) => {
            Some((a.span.first, a.span.end, a.class.clone()))
        }
        _ => None,
    });
    assigned.collect()
}

fn taken_back(bench: &Bench, id: u64) -> usize {
    let back =
        |m: &(WorkerId, ToWorker)| m.0 == WorkerId(id) && matches!(m.1, ToWorker::Unassign { .. });
    bench.controls.iter().filter(|m| back(m)).count()
}

/// Why a worker was told that it idles, in order.
fn told_idle(bench: &Bench, id: u64) -> Vec<String> {
    let told = bench.controls.iter().filter_map(|(w, message)| match message {
        ToWorker::Idle { reason } if *w == WorkerId(id) => Some(reason.clone()),
        _ => None,
    });
    told.collect()
}

/// Requests whose sessions run through a worker.
fn through(bench: &Bench, id: u64) -> Vec<u64> {
    let view = bench.scheduler.view();
    let through = view.sessions.iter().filter(|s| s.route.iter().any(|r| r.0 == WorkerId(id)));
    through.map(|s| s.request.0).collect()
}

#[test]
fn a_tab_gets_a_replica_however_fast_it_is_and_whoever_may_see_text_keeps_the_layers() {
    let mut bench = alone();
    bench.join_spec(tab(2, 100 * MIB, FAST));
    assert_eq!(given(&bench, 2), [(1, LAYERS + 1, "wgsl-f32".to_owned())]);
    assert_eq!(taken_back(&bench, 1), 0);
    let view = bench.scheduler.view();
    let pages: Vec<u32> =
        view.workers.iter().flat_map(|w| &w.shards).map(|s| s.kv_pages.1).collect();
    assert_eq!(pages, [256, 64], "a replica's KV cache takes less");
    // Nor is it moved when another comes.
    bench.join_spec(tab(3, 100 * MIB, FAST));
    bench.pass(Duration::from_secs(60));
    assert_eq!((taken_back(&bench, 2), taken_back(&bench, 3)), (0, 0));
}

#[test]
fn tabs_that_hold_little_get_windows_that_a_route_can_use() {
    let mut bench = alone();
    // Room for two layers each; none for all four.
    bench.join_spec(tab(2, 3 * MIB, FAST));
    bench.join_spec(tab(3, 3 * MIB, FAST));
    let mut windows = [given(&bench, 2), given(&bench, 3)].concat();
    windows.sort();
    let spans: Vec<(u32, u32)> = windows.iter().map(|w| (w.0, w.1)).collect();
    // Before and behind what the first worker runs, or one behind the other.
    assert_eq!(spans, [(1, 3), (3, 5)]);
    bench.submit(1, vec![1, 2], 1);
    bench.answer_all();
    assert_eq!(bench.samples.len(), 1);
    assert_eq!((through(&bench, 2), through(&bench, 3)), (vec![1], vec![1]));
}

#[test]
fn a_replica_between_two_runs_of_one_shard_would_be_of_no_use() {
    let mut bench = alone();
    // One layer each: the third gets a layer at an end again, not one in the middle.
    for id in 2..=4 {
        bench.join_spec(tab(id, 2 * MIB, SLOW));
    }
    for id in 2..=4 {
        let (first, end, _) = given(&bench, id)[0].clone();
        let before = (2..id).any(|other| given(&bench, other)[0].1 == first);
        let behind = (2..id).any(|other| given(&bench, other)[0].0 == end);
        assert!(first == 1 || end == LAYERS + 1 || before || behind, "{first}..{end}");
    }
}

#[test]
fn a_tab_fetches_no_more_for_a_replica_than_is_fair() {
    let config = Config { tab_fetch_bytes_max: 2 * MIB, ..Config::default() };
    let mut bench = Bench::new(config);
    bench.join(1, 100 * MIB, true, Holds::Anything);
    bench.join_spec(tab(2, 100 * MIB, FAST));
    assert_eq!(given(&bench, 2).len(), 1);
    let (first, end, _) = given(&bench, 2)[0].clone();
    assert_eq!(end - first, 2);
    // What it has already costs it nothing.
    let cached = (0..LAYERS).map(|layer| format!("{layer:0>64}")).collect();
    bench.join_spec(WorkerSpec { cached, ..tab(3, 100 * MIB, FAST) });
    assert_eq!(given(&bench, 3), [(1, LAYERS + 1, "wgsl-f32".to_owned())]);
}

#[test]
fn where_nobody_else_holds_the_layers_tabs_carry_them_all() {
    let config = Config { tab_fetch_bytes_max: MIB, ..Config::default() };
    let mut bench = Bench::new(config);
    bench.join(1, 100 * MIB, true, Holds::Ends);
    bench.join_spec(WorkerSpec {
        classes: vec!["canonical-1".into(), "wgsl-f32".into()],
        ..tab(2, 3 * MIB, SLOW)
    });
    assert!(!bench.scheduler.view().models[0].covered);
    let reason = told_idle(&bench, 2).pop().unwrap();
    assert!(reason.starts_with("waits for more workers: m needs "), "{reason}");
    bench.join_spec(tab(3, 3 * MIB, FAST));
    assert!(bench.scheduler.view().models[0].covered);
    let class = |id| given(&bench, id)[0].2.clone();
    assert_eq!((class(2), class(3)), ("canonical-1".to_owned(), "wgsl-f32".to_owned()));
    bench.submit(1, vec![1, 2], 1);
    bench.answer_all();
    assert_eq!(bench.samples.len(), 1, "two classes in one session");
    // The fast one goes: what it held is what is missing.
    bench.tell(Event::Leave { worker: WorkerId(3), reason: "closed".into() });
    bench.pass(Duration::from_secs(1));
    assert_eq!(taken_back(&bench, 2), 0);
}

#[test]
fn a_slow_tab_slows_nobody_down() {
    let mut bench = alone();
    bench.join_spec(tab(2, 100 * MIB, SLOW));
    for request in 1..=20 {
        bench.submit(request, vec![1, 2], 1);
    }
    assert_eq!(bench.scheduler.view().sessions.len(), 20);
    assert!(through(&bench, 2).is_empty());
    // But it stands in when the fast one is gone.
    bench.tell(Event::Leave { worker: WorkerId(1), reason: "gone".into() });
    bench.join(3, 2 * MIB, true, Holds::Ends);
    assert_eq!(through(&bench, 2).len(), 20);
}

#[test]
fn a_fast_tab_takes_what_the_busy_worker_has_too_much_of() {
    let mut bench = alone();
    // As fast as the other worker but for its hop and the chance that it goes.
    bench.join_spec(tab(2, 100 * MIB, 1e9));
    bench.submit(1, vec![1, 2], 1);
    assert!(through(&bench, 2).is_empty(), "there is room where it is sure to stay");
    for request in 2..=12 {
        bench.submit(request, vec![1, 2], 1);
    }
    let tabs = through(&bench, 2).len();
    assert!((2..=10).contains(&tabs), "{tabs} of 12 overflow");
}

#[test]
fn a_hidden_tab_is_kept_and_counts_for_less() {
    let mut bench = Bench::new(Config::default());
    bench.join(1, 2 * MIB, true, Holds::Ends);
    bench.join_spec(tab(2, 100 * MIB, 1e9));
    bench.join_spec(tab(3, 100 * MIB, 1e9));
    bench.tell(Event::Visibility { worker: WorkerId(2), hidden: true });
    bench.submit(1, vec![1, 2], 1);
    assert_eq!((through(&bench, 2).len(), through(&bench, 3).len()), (0, 1));
    assert!(bench.scheduler.view().workers.iter().any(|w| w.id == WorkerId(2) && w.hidden));
    bench.tell(Event::Visibility { worker: WorkerId(2), hidden: false });
    bench.tell(Event::Visibility { worker: WorkerId(3), hidden: true });
    bench.submit(2, vec![1, 2], 1);
    assert_eq!(through(&bench, 2), [2]);
    assert_eq!(through(&bench, 3), [1], "what runs stays where it is");
}

#[test]
fn who_holds_nothing_is_told_why_and_not_twice() {
    let mut bench = alone();
    bench.join_spec(tab(2, MIB, FAST));
    bench.join_spec(WorkerSpec { classes: vec!["odd".into()], ..tab(3, 100 * MIB, FAST) });
    bench.pass(Duration::from_secs(60));
    let small = "one layer of m needs 2 MiB and this worker lends 1 MiB";
    assert_eq!(told_idle(&bench, 2), [small]);
    assert_eq!(
        told_idle(&bench, 3),
        ["it computes in odd only, and what is served needs canonical-1 or wgsl-f32"]
    );
    let view = bench.scheduler.view();
    let tab = view.workers.iter().find(|w| w.id == WorkerId(2)).unwrap();
    assert_eq!((tab.state, tab.idle_because.as_deref()), ("idle", Some(small)));
}
