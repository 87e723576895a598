//! Layers divided among several workers: the same tokens and the same log probabilities as in
//! one process, to the last digit, also when a rank is killed.

use serde_json::Value;

use crate::harness::{
    Coordinator, Fleet, LAYERS, Process, Written, alone, machine, request, stream_of,
};
use crate::split::mib_for;

/// Tokens that have come when a worker is killed.
const KILL_AFTER: usize = 8;

/// Memory for a share of so many layers of the default model: of two ranks each has 5 or 4 of
/// its 9 heads, and 2 of its 3 K/V heads.
fn mib_for_half(layers: u64) -> u64 {
    8 + layers * 29 * 2 / 30 + 1
}

/// A rank, as the fleet view shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rank {
    name: String,
    leader: u64,
    rank: u64,
    layers: (u64, u64),
}

/// All ranks that are ready, by their layers and their place.
fn ranks(fleet: &Fleet) -> Vec<Rank> {
    let mut ranks = Vec::new();
    for worker in fleet.workers() {
        for shard in worker["shards"].as_array().expect("shards") {
            let tensor = &shard["tensor"];
            let (Some(leader), true) = (tensor["leader"].as_u64(), shard["ready"] == true) else {
                continue;
            };
            let number = |value: &Value| value.as_u64().expect("a number");
            ranks.push(Rank {
                name: worker["name"].as_str().expect("a name").to_owned(),
                leader,
                rank: number(&tensor["rank"]),
                layers: (number(&shard["first_layer"]), number(&shard["last_layer"])),
            });
        }
    }
    ranks.sort_by_key(|rank| (rank.layers, rank.rank));
    ranks
}

/// Waits until so many ranks are ready, and everything with them.
async fn ready_with(coordinator: &Coordinator, expected: usize) -> Vec<Rank> {
    coordinator.ready().await;
    coordinator
        .fleet_with(&format!("{expected} ranks are ready"), |fleet| {
            let ranks = ranks(fleet);
            (ranks.len() == expected && fleet.all_ready()).then_some(ranks)
        })
        .await
}

/// Starts workers of so many MiB.
fn start(coordinator: &Coordinator, memory_mib: &[u64]) -> Vec<Process> {
    let started = memory_mib.iter().enumerate();
    started.map(|(i, mib)| coordinator.worker(&format!("w{i}"), *mib)).collect()
}

/// One request by itself, then two that share steps.
async fn check(coordinator: &Coordinator, what: &str) {
    let alone = alone().await;
    let first = coordinator.api.post("/v1/chat/completions", &request(1)).await;
    assert_eq!(Written::of(&first.ok(), 0), alone[1], "{what}");
    let (api, again) = (&coordinator.api, [request(0), request(7)]);
    let (a, b) = tokio::join!(
        api.post("/v1/chat/completions", &again[0]),
        api.post("/v1/chat/completions", &again[1])
    );
    assert_eq!(Written::of(&a.ok(), 0), alone[0], "{what}");
    assert_eq!(Written::of(&b.ok(), 0), alone[7], "{what}");
}

#[tokio::test]
async fn two_workers_that_divide_every_layer_give_the_same() {
    let _machine = machine().await;
    let coordinator =
        Coordinator::start("tensor-2", &["--embedded", "ends", "--tensor", "2"]).await;
    let _workers = start(&coordinator, &[200, 200]);
    let ranks = ready_with(&coordinator, 2).await;
    let places: Vec<_> = ranks.iter().map(|r| (r.rank, r.layers)).collect();
    let all = (0, u64::from(LAYERS) - 1);
    assert_eq!(places, [(0, all), (1, all)]);
    check(&coordinator, "two ranks").await;
}

#[tokio::test]
async fn four_workers_that_divide_every_layer_give_the_same() {
    let _machine = machine().await;
    let coordinator =
        Coordinator::start("tensor-4", &["--embedded", "ends", "--tensor", "4"]).await;
    let _workers = start(&coordinator, &[200; 4]);
    let ranks = ready_with(&coordinator, 4).await;
    assert_eq!(ranks.iter().map(|r| r.rank).collect::<Vec<_>>(), [0, 1, 2, 3]);
    check(&coordinator, "four ranks").await;
}

#[tokio::test]
async fn a_pipeline_of_tensor_groups_gives_the_same() {
    let _machine = machine().await;
    let coordinator = Coordinator::start("hybrid", &["--embedded", "ends", "--tensor", "2"]).await;
    let _workers = start(&coordinator, &[mib_for_half(20); 4]);
    let ranks = ready_with(&coordinator, 4).await;
    let leaders: Vec<u64> = ranks.iter().map(|r| r.leader).collect();
    assert!(leaders[0] == leaders[1] && leaders[2] == leaders[3], "{ranks:?}");
    assert_ne!(leaders[0], leaders[2], "{ranks:?}");
    assert_eq!(ranks[0].layers.1 + 1, ranks[2].layers.0, "end to end: {ranks:?}");
    check(&coordinator, "two stages of two ranks").await;
}

#[tokio::test]
async fn a_tensor_group_beside_a_plain_worker_gives_the_same() {
    let _machine = machine().await;
    let coordinator =
        Coordinator::start("mixed-stages", &["--embedded", "ends", "--tensor", "2"]).await;
    // All of one size, so that any two of them may be the group: alone none has room.
    let _workers = start(&coordinator, &[mib_for_half(20), mib_for_half(20), mib_for(14)]);
    let ranks = ready_with(&coordinator, 2).await;
    let fleet = coordinator.fleet().await;
    let plain: Vec<_> =
        fleet.holders().into_iter().filter(|h| ranks.iter().all(|r| r.name != h.name)).collect();
    assert_eq!(plain.len(), 1, "{plain:?} beside {ranks:?}");
    check(&coordinator, "a group and a worker").await;
}

/// Kills the rank in the middle of a generation, with nobody left but its peer.
async fn killed(rank: usize) {
    let _machine = machine().await;
    let alone = alone().await;
    let name = format!("tensor-killed-{rank}");
    let coordinator = Coordinator::start(&name, &["--embedded", "ends", "--tensor", "2"]).await;
    let mut workers = start(&coordinator, &[200, 200]);
    let ranks = ready_with(&coordinator, 2).await;
    let mut events = coordinator.api.stream("/v1/chat/completions", &request(5)).await;
    let mut written = Written::nothing();
    stream_of(&mut events, &mut written, KILL_AFTER).await;
    let victim = usize::from(ranks[rank].name == "w1");
    workers[victim].kill_9();
    for event in events.rest().await {
        written.add(&event);
    }
    assert!(events.done);
    assert_eq!(written, alone[5], "rank {rank} was killed");

    // With another worker there is a group again.
    let _replacement = coordinator.worker("replacement", 200);
    let ranks = ready_with(&coordinator, 2).await;
    assert!(ranks.iter().any(|r| r.name == "replacement"), "{ranks:?}");
    check(&coordinator, "the group of those that are left").await;
}

#[tokio::test]
async fn a_killed_follower_costs_no_token() {
    killed(1).await;
}

#[tokio::test]
async fn a_killed_leader_costs_no_token() {
    killed(0).await;
}
