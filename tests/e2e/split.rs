//! The split does not matter: however the layers lie, the same tokens and the same log
//! probabilities, to the last digit.

use crate::harness::{Coordinator, Process, Written, alone, machine, request};

/// Memory for so many layers of the default model: 2.1 MiB of weights each, 0.75 MiB of the
/// least KV cache, and 8 MiB of scratch.
pub fn mib_for(layers: u64) -> u64 {
    9 + layers * 29 / 10
}
/// What the embedding and the head, which are one matrix here, take besides: 28.7 MiB, and
/// scratch of their own. A worker with room for at most 9 layers has none for them.
pub const ENDS_MIB: u64 = 38;

/// Starts workers that can hold so many layers each, and waits until all of them do.
pub async fn workers(coordinator: &Coordinator, layers: &[u64], ends: bool) -> Vec<Process> {
    let mut started = Vec::new();
    for (index, layers) in layers.iter().enumerate() {
        let extra = if ends && index == 0 { ENDS_MIB } else { 0 };
        started.push(coordinator.worker(&format!("w{index}"), mib_for(*layers) + extra));
    }
    let fleet = coordinator.ready_over(layers.len()).await;
    fleet.assert_each_needed();
    started
}

async fn check(embedded: &str, layers: &[u64]) {
    let name = format!("split-{embedded}-{}", layers.len());
    let coordinator = Coordinator::start(&name, &["--embedded", embedded]).await;
    let _workers = workers(&coordinator, layers, embedded == "off").await;
    let fleet = coordinator.fleet().await;
    let natives = fleet.workers().iter().filter(|w| w["kind"] == "native").count();
    assert_eq!(natives, layers.len());
    assert_eq!(fleet.workers().len() - natives, usize::from(embedded != "off"));

    let alone = alone().await;
    // One by itself, then two that share steps.
    let first = coordinator.api.post("/v1/chat/completions", &request(1)).await;
    assert_eq!(Written::of(&first.ok(), 0), alone[1], "{embedded}, {layers:?}");
    let (api, again) = (&coordinator.api, [request(0), request(7)]);
    let (a, b) = tokio::join!(
        api.post("/v1/chat/completions", &again[0]),
        api.post("/v1/chat/completions", &again[1])
    );
    assert_eq!(Written::of(&a.ok(), 0), alone[0], "{embedded}, {layers:?}");
    assert_eq!(Written::of(&b.ok(), 0), alone[7], "{embedded}, {layers:?}");
}

#[tokio::test]
async fn with_the_ends_in_the_coordinator_any_split_gives_the_same() {
    let _machine = machine().await;
    check("ends", &[40]).await;
    check("ends", &[18, 14]).await;
    check("ends", &[14, 11, 7]).await;
    check("ends", &[9, 8, 6, 5, 4]).await;
}

#[tokio::test]
async fn with_the_ends_on_a_worker_any_split_gives_the_same() {
    let _machine = machine().await;
    check("off", &[40]).await;
    check("off", &[21, 9]).await;
    check("off", &[14, 9, 8]).await;
    check("off", &[8, 7, 6, 5, 4]).await;
}
