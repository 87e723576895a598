//! Fleets that are too large to be looked at as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use protocol::{ToWorker, WorkerId, WorkerKind};
use scheduler::{Config, Event, Holds, WorkerSpec};

use crate::bench::{Bench, LAYERS, MIB, worker};

/// The ends, then so many workers that hold `memory` MiB each.
fn crowd(workers: u64, memory_mib: u64) -> Bench {
    let mut bench = Bench::new(Config::default());
    bench.join(1, 10 * MIB, true, Holds::Ends);
    for id in 2..2 + workers {
        bench.tell(Event::Join(worker(id, memory_mib * MIB, false, Holds::Anything)));
    }
    bench.pass(Duration::from_secs(5));
    bench.scheduler.check_invariants();
    bench
}

fn moved(bench: &Bench) -> usize {
    bench.controls.iter().filter(|(_, m)| matches!(m, ToWorker::Unassign { .. })).count()
}

/// The workers of each session's layers.
fn carriers(bench: &Bench) -> Vec<BTreeSet<WorkerId>> {
    let view = bench.scheduler.view();
    let route = |s: &scheduler::SessionView| {
        s.route.iter().map(|r| r.0).filter(|w| *w != WorkerId(1)).collect()
    };
    view.sessions.iter().map(route).collect()
}

#[test]
fn each_that_comes_takes_what_is_weakest_and_nobody_is_moved() {
    let mut bench = crowd(40, 3);
    let before = bench.scheduler.layer_rates("m");
    let (least, most) = (before.iter().min().unwrap(), before.iter().max().unwrap());
    assert!(*least * 10 >= *most * 9, "{before:?}");
    // One is worth as much as ten: the others' layers are the next ones' then.
    let fast = WorkerSpec { bytes_per_s: [1e10; 2], ..worker(90, 3 * MIB, false, Holds::Anything) };
    bench.join_spec(fast);
    for id in 91..=110 {
        bench.join(id, 3 * MIB, false, Holds::Anything);
    }
    let after = bench.scheduler.layer_rates("m");
    let (least, most) = (after.iter().min().unwrap(), after.iter().max().unwrap());
    assert!(*least * 10 >= *most * 8, "{after:?}");
    assert_eq!(moved(&bench), 0);
    bench.submit(1, vec![1, 2], 1);
    bench.answer_all();
    assert_eq!(bench.samples.len(), 1);
}

#[test]
fn a_layer_that_nobody_is_left_for_is_given_to_one_who_can_be_spared() {
    let mut bench = crowd(30, 2);
    let mut holders: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for (worker, layers, ..) in bench.shards() {
        layers.into_iter().for_each(|(first, _)| holders.entry(first).or_default().push(worker));
    }
    assert_eq!(holders.len(), LAYERS as usize, "one layer fits each");
    for &worker in &holders[&2] {
        bench.tell(Event::Leave { worker: WorkerId(worker), reason: "gone".into() });
    }
    bench.pass(Duration::from_secs(2));
    assert!(bench.scheduler.view().models[0].covered);
    let moves = moved(&bench);
    assert!((1..=4).contains(&moves), "{moves} were moved");
    bench.scheduler.check_invariants();
}

#[test]
fn nobody_is_moved_for_ends_that_only_a_trusted_worker_could_hold() {
    let mut bench = crowd(30, 2);
    bench.tell(Event::Leave { worker: WorkerId(1), reason: "gone".into() });
    bench.pass(Duration::from_secs(5));
    let missing = bench.scheduler.view().models[0].missing.clone().unwrap();
    assert!(missing.starts_with("the embedding, the head"), "{missing}");
    assert_eq!(moved(&bench), 0, "that gave nobody the ends");
}

#[test]
fn replicas_are_on_different_machines_first() {
    let mut bench = Bench::new(Config::default());
    bench.join(1, 10 * MIB, true, Holds::Ends);
    let join = |bench: &mut Bench, id: u64, machine: &str| {
        let spec = worker(id, 2 * MIB, false, Holds::Anything);
        bench.join_spec(WorkerSpec { machine: machine.into(), ..spec });
    };
    // Twenty workers of one machine give each layer speed, but not one of them safety.
    (2..22).for_each(|id| join(&mut bench, id, "10.0.0.1"));
    (22..34).for_each(|id| join(&mut bench, id, &format!("10.0.1.{id}")));
    let mut elsewhere = [0; LAYERS as usize];
    for (worker, layers, ..) in bench.shards() {
        let (first, _) = layers.filter(|_| worker >= 22).unwrap_or((0, 0));
        elsewhere[first as usize] += u32::from(worker >= 22);
    }
    assert_eq!(elsewhere, [3; LAYERS as usize]);
}

#[test]
fn sessions_do_not_herd() {
    let mut bench = crowd(60, 100);
    for request in 1..=20 {
        bench.submit(request, vec![request as u32 % 8, 2], 1);
    }
    let used: BTreeSet<WorkerId> = carriers(&bench).into_iter().flatten().collect();
    assert!(used.len() >= 18, "20 sessions on {} workers", used.len());
    // A session stays where it is until something fails.
    let before = carriers(&bench);
    bench.answer_all();
    bench.pass(Duration::from_secs(3));
    assert_eq!(carriers(&bench), before);
}

#[test]
fn a_slowed_machine_loses_its_share_and_gets_it_back() {
    let mut bench = Bench::new(Config::default());
    bench.join(1, 10 * MIB, true, Holds::Ends);
    for id in [2, 3] {
        let spec = worker(id, 100 * MIB, false, Holds::Anything);
        bench.join_spec(WorkerSpec { bytes_per_s: [4e9, 1e9], ..spec });
    }
    let mut next = 0;
    // One request after another, each of so many tokens; how many ran on worker 2.
    let mut serve = |bench: &mut Bench, requests: u64, slow: bool| {
        let mut on_2 = 0;
        for _ in 0..requests {
            next += 1;
            bench.submit(next, vec![1, 2], 1);
            on_2 += u64::from(carriers(bench).iter().any(|c| c.contains(&WorkerId(2))));
            let session = bench.session(next);
            for token in 0..4 {
                while !bench.steps.is_empty() {
                    let (worker, step) = bench.steps.remove(0);
                    let us = if slow && worker == WorkerId(2) { 20_000 } else { 1_000 };
                    bench.now += u64::from(us);
                    bench.answer_step(worker, &step, |f| f.compute_us = us);
                }
                bench.tell(Event::Sampled { session, token });
            }
            bench.answer_all();
            bench.tell(Event::Cancel { request: scheduler::RequestId(next) });
        }
        on_2
    };
    assert!(serve(&mut bench, 4, false) > 0, "the first of equals");
    let slowed = serve(&mut bench, 10, true);
    assert!(slowed <= 2, "{slowed} of 10 requests ran on a machine that is 20 times slower");
    for _ in 0..10 {
        bench.pass(Duration::from_secs(31));
        bench.tell(Event::Tick);
    }
    // The other one fills up: whoever comes is better off where nobody is.
    for request in 1000..1012 {
        bench.submit(request, vec![1, 2], 1);
    }
    let both: BTreeSet<WorkerId> = carriers(&bench).into_iter().flatten().collect();
    assert!(both.contains(&WorkerId(2)), "it is never tried again");
}

#[test]
fn who_has_stayed_is_preferred_where_new_ones_keep_leaving() {
    let tab = |id: u64| WorkerSpec {
        kind: WorkerKind::Browser,
        ..worker(id, 100 * MIB, false, Holds::Anything)
    };
    let mut bench = Bench::new(Config::default());
    bench.join(1, 10 * MIB, true, Holds::Ends);
    // The older one has the higher number: between equals the lower one is taken.
    bench.join_spec(tab(200));
    bench.pass(Duration::from_secs(120));
    bench.tell(Event::Tick);
    for id in 10..60 {
        bench.join_spec(tab(id));
        bench.tell(Event::Leave { worker: WorkerId(id), reason: "closed".into() });
    }
    bench.join_spec(tab(2));
    bench.submit(1, vec![1, 2], 1);
    assert_eq!(carriers(&bench), [BTreeSet::from([WorkerId(200)])]);
}
