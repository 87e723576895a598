//! Leaving in good order, and being stopped without a word.

use crate::harness::{Coordinator, Written, alone, machine, request, stream_of};
use crate::split::{mib_for, workers};

#[tokio::test]
async fn a_worker_told_to_end_drains_and_nothing_is_lost() {
    let _machine = machine().await;
    let alone = alone().await;
    let coordinator = Coordinator::start("drain", &["--embedded", "ends"]).await;
    let mut started = workers(&coordinator, &[30], false).await;
    let mut events = coordinator.api.stream("/v1/chat/completions", &request(5)).await;
    let mut written = Written::nothing();
    stream_of(&mut events, &mut written, 6).await;
    let _other = coordinator.worker("other", mib_for(30));
    started[0].signal("TERM");
    for event in events.rest().await {
        written.add(&event);
    }
    assert_eq!(written, alone[5]);
    let status = started[0].ended().await;
    assert!(status.success(), "{status}");
    coordinator
        .fleet_with("it has left", |fleet| {
            fleet.workers().iter().all(|w| w["name"] != "w0").then_some(())
        })
        .await;
}

#[tokio::test]
async fn a_frozen_worker_is_replaced_and_its_late_answer_changes_nothing() {
    let _machine = machine().await;
    let alone = alone().await;
    let coordinator = Coordinator::start("frozen", &["--embedded", "ends"]).await;
    let started = workers(&coordinator, &[18, 14], false).await;
    let mut events = coordinator.api.stream("/v1/chat/completions", &request(7)).await;
    let mut written = Written::nothing();
    stream_of(&mut events, &mut written, 8).await;
    started[0].signal("STOP");
    let _spare = coordinator.worker("spare", mib_for(18));
    for event in events.rest().await {
        written.add(&event);
    }
    assert_eq!(written, alone[7]);
    started[0].signal("CONT");
    // It comes back, or what is left of its connection is gone; either way nothing changes.
    let again = coordinator.api.post("/v1/chat/completions", &request(1)).await;
    assert_eq!(Written::of(&again.ok(), 0), alone[1]);
}

#[tokio::test]
async fn the_coordinator_ends_in_good_order_and_lets_a_stream_finish() {
    let _machine = machine().await;
    let alone = alone().await;
    let mut coordinator = Coordinator::start("stop", &["--embedded", "ends"]).await;
    let mut started = workers(&coordinator, &[40], false).await;
    let mut events = coordinator.api.stream("/v1/chat/completions", &request(1)).await;
    let mut written = Written::nothing();
    stream_of(&mut events, &mut written, 4).await;
    coordinator.process.signal("TERM");
    for event in events.rest().await {
        written.add(&event);
    }
    assert_eq!(written, alone[1]);
    let status = coordinator.process.ended().await;
    assert!(status.success(), "{status}");
    // The worker stays and tries again, until it is told to end.
    started[0].signal("TERM");
    let status = started[0].ended().await;
    assert!(status.success(), "{status}");
}
