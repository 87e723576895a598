//! Tensor groups: who is in them, when they are ready, what ends them.

use std::time::Duration;

use protocol::{Assignment, AssignmentId, SessionId, TensorRank, ToWorker, WorkerId, WorkerKind};
use scheduler::{
    Config, DivisionSpec, Event, Holds, ModelSpec, Note, Parallelism, RankSpec, RequestId, Tensor,
    Wish, WorkerSpec,
};

use crate::bench::{Bench, LAYERS, MIB, model, worker};

/// The model, whose layers can be divided: equally among 2 and 4, and as 3 : 1.
fn divided() -> ModelSpec {
    let division = |weights: &[u32]| {
        let sum = f64::from(weights.iter().sum::<u32>());
        let share = |w: &u32| RankSpec { weights: f64::from(*w) / sum, kv: f64::from(*w) / sum };
        DivisionSpec {
            form: "rows".into(),
            weights: weights.to_vec(),
            ranks: weights.iter().map(share).collect(),
            exchanges: 4,
            classes: vec!["canonical-1".into()],
        }
    };
    let divisions = vec![division(&[1, 1]), division(&[3, 1]), division(&[1; 4])];
    ModelSpec { divisions, ..model() }
}

fn bench(tensor: Tensor) -> Bench {
    Bench::serving(Config { tensor, ..Config::default() }, divided())
}

/// Joins workers, all before any is placed: with so many MiB, trusted.
fn join(bench: &mut Bench, workers: &[(u64, u64)]) {
    for &(id, mib) in workers {
        bench.tell(Event::Join(worker(id, mib * MIB, true, Holds::Anything)));
    }
    bench.pass(Duration::from_secs(1));
    bench.scheduler.check_invariants();
}

/// The assignments that workers were given as ranks, in order.
fn ranks(bench: &Bench) -> Vec<(u64, Assignment, TensorRank)> {
    let controls = bench.controls.iter().filter_map(|(worker, message)| match message {
        ToWorker::Assign(a) => Some((worker.0, a.clone(), a.tensor.clone()?)),
        _ => None,
    });
    controls.collect()
}

fn members(bench: &Bench) -> Vec<Vec<u64>> {
    bench.groups.values().map(|members| members.iter().map(|id| id.0).collect()).collect()
}

/// A session that waits for its logits.
fn begin(bench: &mut Bench) -> SessionId {
    bench.submit(1, vec![1, 2, 3], 1);
    bench.session(1)
}

#[test]
fn two_workers_hold_each_half_of_every_layer() {
    let mut bench = bench(Tensor::Groups(2));
    join(&mut bench, &[(1, 100), (2, 100)]);
    assert_eq!(members(&bench), [[1, 2]]);
    let [(1, leads, first), (2, follows, second)] = &ranks(&bench)[..] else {
        panic!("{:?}", ranks(&bench))
    };
    assert_eq!((first.group, second.group), (leads.id, leads.id));
    assert_eq!((first.rank, second.rank), (0, 1));
    assert_eq!((leads.span, leads.kv_pages), (follows.span, follows.kv_pages));
    assert_eq!((leads.span.first, leads.span.end), (1, 5), "the layers, without the ends");
    // The leader holds the ends beside its share, and takes all steps.
    begin(&mut bench);
    while let Some((to, step)) = bench.steps.first().cloned() {
        assert_eq!(to, WorkerId(1), "{step:?}");
        bench.answer();
        bench.scheduler.check_invariants();
    }
    assert_eq!(bench.samples.len(), 1);
    let view = bench.scheduler.view();
    let shares: Vec<_> =
        view.workers.iter().flat_map(|w| &w.shards).filter_map(|s| s.rank.clone()).collect();
    let places: Vec<_> = shares.iter().map(|r| (r.leader.0, r.rank, r.weights.clone())).collect();
    assert_eq!(places, [(1, 0, vec![1, 1]), (1, 1, vec![1, 1])]);
}

#[test]
fn a_group_is_ready_once_all_of_its_ranks_are() {
    let mut bench = bench(Tensor::Groups(2));
    join(&mut bench, &[(3, 100)]);
    let ready = |bench: &Bench| bench.scheduler.view().models[0].covered;
    assert!(ready(&bench), "one worker is no group");
    bench.loads = false;
    join(&mut bench, &[(1, 100)]);
    let ranks = ranks(&bench);
    assert_eq!(ranks.len(), 2, "with two there is one");
    for (worker, assignment) in ends(&bench) {
        bench.tell(Event::Ready { worker, assignment });
    }
    for (i, (worker, assignment, _)) in ranks.iter().enumerate() {
        assert!(!ready(&bench), "{i} of 2 are loaded");
        bench.tell(Event::Ready { worker: WorkerId(*worker), assignment: assignment.id });
        // A rank that is loaded is not late while it waits.
        bench.pass(Duration::from_secs(50));
        bench.scheduler.check_invariants();
    }
    assert!(ready(&bench));
    assert!(bench.dismissed.is_empty(), "{:?}", bench.dismissed);
}

/// Who was given what beside shares.
fn ends(bench: &Bench) -> Vec<(WorkerId, AssignmentId)> {
    let controls = bench.controls.iter().filter_map(|(worker, message)| match message {
        ToWorker::Assign(a) if a.tensor.is_none() => Some((*worker, a.id)),
        _ => None,
    });
    controls.collect()
}

#[test]
fn the_loss_of_any_member_is_the_loss_of_the_stage() {
    for lost in [1, 2] {
        for drains in [false, true] {
            let mut bench = bench(Tensor::Groups(2));
            join(&mut bench, &[(1, 100), (2, 100)]);
            begin(&mut bench);
            let (worker, reason) = (WorkerId(lost), "a test".to_owned());
            bench.controls.clear();
            bench.steps.retain(|(w, _)| *w != worker);
            bench.tell(match drains {
                true => Event::Drain { worker, reason },
                false => Event::Leave { worker, reason },
            });
            bench.scheduler.check_invariants();
            assert!(bench.groups.is_empty(), "nobody may write to a lost member");
            let freed = bench
                .controls
                .iter()
                .filter(|(w, m)| w.0 != lost && matches!(m, ToWorker::Unassign { .. }));
            assert_eq!(freed.count(), 1, "the other one is free");
            // A third takes the place, and the session goes on.
            join(&mut bench, &[(3, 100)]);
            bench.scheduler.check_invariants();
            let group = members(&bench);
            assert_eq!(group.len(), 1, "worker {lost} is gone");
            assert!(!group[0].contains(&lost) && group[0].contains(&3));
            bench.answer_all();
            assert_eq!(bench.samples.len(), 1, "worker {lost} was lost, drained: {drains}");
        }
    }
}

#[test]
fn members_of_a_group_that_broke_serve_by_themselves_for_a_while() {
    let mut bench = bench(Tensor::Groups(2));
    join(&mut bench, &[(1, 100), (2, 100)]);
    let (worker, assignment, _) = ranks(&bench)[1].clone();
    let reason = "rank 0 sent nothing".to_owned();
    bench.tell(Event::Failed { worker: WorkerId(worker), assignment: assignment.id, reason });
    bench.scheduler.check_invariants();
    assert!(bench.dismissed.is_empty(), "nobody knows whose fault it was");
    assert!(bench.notes.iter().any(|n| matches!(n, Note::GroupFailed { .. })));
    bench.pass(Duration::from_secs(1));
    bench.scheduler.check_invariants();
    assert!(bench.groups.is_empty());
    assert!(bench.scheduler.view().models[0].covered, "alone each has room for all");
    // Nothing happens, and then there is a group again; the next pause is twice as long.
    for (pause_s, rest_s) in [(60, 30), (120, 0)] {
        bench.pass(Duration::from_secs(pause_s - 10 - rest_s / 30));
        assert!(bench.groups.is_empty(), "a pause of {pause_s} s is not over");
        bench.pass(Duration::from_secs(20));
        bench.scheduler.check_invariants();
        assert_eq!(members(&bench), [[1, 2]], "a pause of {pause_s} s is over");
        let (worker, assignment, _) = ranks(&bench).last().unwrap().clone();
        let reason = "rank 0 sent nothing".to_owned();
        bench.tell(Event::Failed { worker: WorkerId(worker), assignment: assignment.id, reason });
    }
}

#[test]
fn a_model_that_fits_divided_only_is_soon_held_by_a_group_again() {
    // Of three layers two workers have room for one and a half each.
    let mut spec = divided();
    spec.parts.remove(1);
    let config = Config { tensor: Tensor::Groups(2), ..Config::default() };
    let mut bench = Bench::serving(config, spec);
    bench.tell(Event::Join(worker(9, 100 * MIB, true, Holds::Ends)));
    for id in [1, 2] {
        bench.tell(Event::Join(worker(id, MIB * 7 / 4, true, Holds::Anything)));
    }
    bench.pass(Duration::from_secs(1));
    assert_eq!(members(&bench), [[1, 2]]);
    let (worker, assignment, _) = ranks(&bench)[1].clone();
    let reason = "rank 0 sent nothing".to_owned();
    bench.tell(Event::Failed { worker: WorkerId(worker), assignment: assignment.id, reason });
    bench.pass(Duration::from_secs(4));
    assert!(bench.groups.is_empty() && !bench.scheduler.view().models[0].covered);
    bench.pass(Duration::from_secs(2));
    bench.scheduler.check_invariants();
    assert_eq!(members(&bench), [[1, 2]]);
    assert!(bench.scheduler.view().models[0].covered);
}

#[test]
fn who_cannot_load_its_share_is_left_out_and_nobody_else() {
    let mut bench = bench(Tensor::Groups(2));
    bench.loads = false;
    join(&mut bench, &[(1, 100), (2, 100), (3, 100)]);
    assert_eq!(members(&bench), [[1, 2]]);
    let (unable, assignment, _) = ranks(&bench)[1].clone();
    let reason = "no room".to_owned();
    bench.tell(Event::Failed { worker: WorkerId(unable), assignment: assignment.id, reason });
    bench.loads = true;
    bench.pass(Duration::from_secs(1));
    bench.scheduler.check_invariants();
    assert_eq!(members(&bench), [[1, 3]], "the others are a group at once");
    assert!(bench.dismissed.is_empty());
    // To come again ends no pause.
    let reason = "a test".to_owned();
    bench.tell(Event::Leave { worker: WorkerId(2), reason: reason.clone() });
    bench.tell(Event::Leave { worker: WorkerId(3), reason });
    let back = WorkerSpec { id: WorkerId(4), ..worker(2, 100 * MIB, true, Holds::Anything) };
    bench.join_spec(back);
    assert!(bench.groups.is_empty(), "worker 4 has the key of worker 2");
}

#[test]
fn a_slow_rank_never_costs_the_leader_its_place() {
    let mut bench = bench(Tensor::Groups(2));
    join(&mut bench, &[(1, 100), (2, 100)]);
    begin(&mut bench);
    // One holds the ends beside its share: its other steps wait behind the group's as well.
    let leader = WorkerId(members(&bench)[0][0]);
    while bench.steps.iter().all(|(_, step)| !bench.groups.contains_key(&step.assignment)) {
        bench.answer();
    }
    let (worker, late) = bench.steps.remove(0);
    assert_eq!(worker, leader);
    bench.pass(Duration::from_secs(9));
    bench.scheduler.check_invariants();
    assert!(bench.groups.is_empty(), "it is not waited for any longer");
    assert!(bench.dismissed.is_empty(), "whose fault it was is not known");
    // The end of the group ends the step.
    bench.answer_step(worker, &late, |_| {});
    bench.answer_all();
    bench.pass(Duration::from_secs(9));
    bench.answer_all();
    bench.scheduler.check_invariants();
    assert_eq!(bench.samples.len(), 1, "somebody goes on with it");
    assert!(bench.dismissed.is_empty());
}

#[test]
fn who_answers_nothing_at_all_is_sent_away_though_it_leads() {
    let mut bench = bench(Tensor::Groups(2));
    join(&mut bench, &[(1, 100), (2, 100)]);
    begin(&mut bench);
    let leader = WorkerId(members(&bench)[0][0]);
    while bench.steps.iter().all(|(_, step)| !bench.groups.contains_key(&step.assignment)) {
        bench.answer();
    }
    for _ in 0..30 {
        loop {
            bench.steps.retain(|(worker, _)| *worker != leader);
            if bench.steps.is_empty() {
                break;
            }
            bench.answer();
        }
        bench.pass(Duration::from_secs(1));
    }
    bench.scheduler.check_invariants();
    assert_eq!(bench.dismissed.iter().map(|d| d.0).collect::<Vec<_>>(), [leader]);
}

#[test]
fn a_model_that_lacks_workers_gets_those_of_other_models_groups() {
    let mut bench = bench(Tensor::Groups(2));
    join(&mut bench, &[(1, 100), (2, 100)]);
    assert_eq!(members(&bench), [[1, 2]]);
    let mut other = ModelSpec { name: "n".into(), divisions: Vec::new(), ..model() };
    let blobs = other.parts.iter_mut().flat_map(|part| &mut part.blobs);
    blobs.for_each(|blob| blob.hash.replace_range(..1, "f"));
    bench.tell(Event::AddModel(other));
    bench.pass(Duration::from_secs(2));
    bench.scheduler.check_invariants();
    let covered = |bench: &Bench| bench.scheduler.view().models.iter().all(|m| m.covered);
    assert!(covered(&bench) && bench.groups.is_empty());
    // And it stays so.
    bench.controls.clear();
    bench.pass(Duration::from_secs(3600));
    bench.scheduler.check_invariants();
    assert!(covered(&bench));
    let moves = bench.controls.iter().filter(|(_, m)| matches!(m, ToWorker::Assign(_))).count();
    assert!(moves <= 4, "{moves} assignments in an hour");
}

#[test]
fn a_step_to_a_group_has_as_many_rows_as_may_wait_in_an_order() {
    let check = |tensor, expected: u32| {
        // 16 KiB a row.
        let spec = ModelSpec { d_model: 4096, ..divided() };
        let mut bench = Bench::serving(Config { tensor, ..Config::default() }, spec);
        join(&mut bench, &[(1, 100), (2, 100)]);
        bench.submit(1, vec![1; 200], 1);
        let mut rows = 0;
        while let Some((_, step)) = bench.steps.first() {
            if step.span.first < LAYERS + 1 && step.span.end > 1 {
                rows = rows.max(step.segments.iter().map(|s| s.rows).sum());
            }
            bench.answer();
            if !bench.samples.is_empty() {
                break;
            }
        }
        assert_eq!(rows, expected, "{tensor:?}");
    };
    check(Tensor::Groups(2), 32);
    check(Tensor::Off, 200);
}

#[test]
fn four_workers_are_two_stages_of_two_where_no_two_have_room_for_all() {
    let mut bench = bench(Tensor::Groups(2));
    // Each pair has room for 2 of the 4 layers, the first beside the ends.
    join(&mut bench, &[(1, 3), (2, 2), (3, 2), (4, 2)]);
    let ranks = ranks(&bench);
    let spans: Vec<_> = ranks.iter().map(|(_, a, _)| (a.span.first, a.span.end)).collect();
    assert_eq!(spans.len(), 4, "{spans:?}");
    assert_eq!(bench.groups.len(), 2);
    begin(&mut bench);
    bench.answer_all();
    bench.scheduler.check_invariants();
    assert_eq!(bench.samples.len(), 1);
}

#[test]
fn a_request_may_ask_for_groups_or_for_none() {
    let check = |workers: &[(u64, u64)], granted: Parallelism| {
        let mut bench = bench(Tensor::Groups(2));
        join(&mut bench, workers);
        let kinds = [Parallelism::Tensor, Parallelism::Hybrid, Parallelism::Pipeline];
        for (id, parallelism) in (1..).zip(kinds) {
            bench.submit_wishing(id, vec![1, 2], 1, Wish { parallelism, ..Wish::default() });
            let started = bench.started.contains_key(&RequestId(id));
            assert_eq!(started, parallelism == granted, "{parallelism:?} over {workers:?}");
        }
    };
    check(&[(1, 100), (2, 100)], Parallelism::Tensor);
    check(&[(1, 3), (2, 2), (3, 2), (4, 2)], Parallelism::Hybrid);
}

#[test]
fn strangers_tabs_and_ends_only_workers_are_in_no_group() {
    let mut bench = bench(Tensor::Groups(2));
    let spec = |id, trusted, holds| worker(id, 100 * MIB, trusted, holds);
    bench.tell(Event::Join(spec(1, false, Holds::Anything)));
    bench.tell(Event::Join(spec(2, true, Holds::Ends)));
    let tab = WorkerSpec { kind: WorkerKind::Browser, ..spec(3, false, Holds::Anything) };
    bench.tell(Event::Join(tab));
    let gpu = WorkerSpec { classes: vec!["wgsl-f32".into()], ..spec(4, true, Holds::Anything) };
    bench.tell(Event::Join(gpu));
    bench.join_spec(spec(5, true, Holds::Anything));
    assert!(ranks(&bench).is_empty());
    assert!(bench.scheduler.view().models[0].covered);
}

#[test]
fn a_faster_worker_takes_more_of_each_layer_and_leads() {
    let mut bench = bench(Tensor::Groups(2));
    let fast =
        WorkerSpec { bytes_per_s: [3e9, 6e8], ..worker(2, 100 * MIB, true, Holds::Anything) };
    bench.tell(Event::Join(worker(1, 100 * MIB, true, Holds::Anything)));
    bench.join_spec(fast);
    let ranks = ranks(&bench);
    let places: Vec<_> = ranks.iter().map(|(w, _, t)| (*w, t.rank, t.weights.clone())).collect();
    assert_eq!(places, [(2, 0, vec![3, 1]), (1, 1, vec![3, 1])]);
}

/// Two workers on machines of their own, at so many milliseconds.
fn on_a_network(hop_ms: u64) -> Bench {
    let mut bench = bench(Tensor::Auto);
    for id in [1, 2] {
        let machine = format!("192.0.2.{id}");
        // A layer of 1 MiB takes 100 ms.
        let bytes_per_s = [1e7, 2e6];
        let spec = worker(id, 100 * MIB, true, Holds::Anything);
        bench.tell(Event::Join(WorkerSpec { machine, bytes_per_s, ..spec }));
        let rtt = Duration::from_millis(hop_ms);
        bench.tell(Event::RoundTrip { worker: WorkerId(id), rtt });
    }
    bench.pass(Duration::from_secs(1));
    bench.scheduler.check_invariants();
    bench
}

#[test]
fn the_planner_forms_a_group_only_where_the_network_is_fast_enough() {
    assert_eq!(members(&on_a_network(1)), [[1, 2]]);
    assert!(members(&on_a_network(40)).is_empty());
}

#[test]
fn the_planner_forms_no_group_on_one_machine() {
    let mut bench = bench(Tensor::Auto);
    for id in [1, 2] {
        let spec = worker(id, 100 * MIB, true, Holds::Anything);
        let (machine, bytes_per_s) = ("192.0.2.1".to_owned(), [1e7, 2e6]);
        bench.tell(Event::Join(WorkerSpec { machine, bytes_per_s, ..spec }));
        let rtt = Duration::from_millis(1);
        bench.tell(Event::RoundTrip { worker: WorkerId(id), rtt });
    }
    bench.pass(Duration::from_secs(1));
    assert!(bench.groups.is_empty());
    assert!(bench.scheduler.view().models[0].covered);
}
