//! `kill -9` of workers that hold layers, in the middle of a generation: no token is lost,
//! none changes.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::{Coordinator, Process, Written, alone, machine, request, stream_of};
use crate::split::{ENDS_MIB, mib_for, workers};

/// Tokens that have come when the worker is killed.
const KILL_AFTER: usize = 8;

/// The process of the `position`th holder of layers.
async fn holder(
    coordinator: &Coordinator,
    workers: &mut BTreeMap<String, (Process, u64)>,
    position: usize,
) -> (String, Process, u64) {
    let fleet = coordinator.fleet().await;
    fleet.assert_each_needed();
    let name = fleet.holders()[position].name.clone();
    let (process, mib) = workers.remove(&name).expect("a worker of ours");
    (name, process, mib)
}

#[tokio::test]
async fn a_lost_stage_is_replaced_when_another_worker_joins() {
    let _machine = machine().await;
    let alone = alone().await;
    let coordinator = Coordinator::start("lost", &["--embedded", "ends"]).await;
    let layers = [14, 11, 7];
    let started = workers(&coordinator, &layers, false).await;
    let mut workers: BTreeMap<String, (Process, u64)> = BTreeMap::new();
    for (index, process) in started.into_iter().enumerate() {
        workers.insert(format!("w{index}"), (process, mib_for(layers[index])));
    }
    for (round, position) in [0, 1, 2].into_iter().enumerate() {
        let index = [1, 5, 7][round];
        let (victim, mut process, mib) = holder(&coordinator, &mut workers, position).await;
        let mut events = coordinator.api.stream("/v1/chat/completions", &request(index)).await;
        let mut written = Written::nothing();
        stream_of(&mut events, &mut written, KILL_AFTER).await;
        process.kill_9();

        // Nobody else has room: it waits, and the fleet view says for what.
        coordinator
            .fleet_with("the session waits", |fleet| {
                let gone = fleet.workers().iter().all(|w| w["name"] != victim.as_str());
                let session = fleet.sessions().first()?;
                let waits = session["state"] == "waiting" && session["waiting_for"].is_string();
                let uncovered = fleet.0["models"][0]["covered"] == false
                    && fleet.0["models"][0]["missing"].is_string();
                (gone && waits && uncovered).then_some(())
            })
            .await;
        let not_ready = coordinator.api.get("/readyz").await;
        assert_eq!(not_ready.status, 503, "{}", not_ready.text);
        assert!(not_ready.text.contains("layer"), "it says what is missing: {}", not_ready.text);

        let name = format!("replacement{position}");
        workers.insert(name.clone(), (coordinator.worker(&name, mib), mib));
        for event in events.rest().await {
            written.add(&event);
        }
        assert!(events.done);
        assert_eq!(written, alone[index], "the holder at {position} was killed");
    }
}

#[tokio::test]
async fn a_spare_worker_takes_over_at_once() {
    let _machine = machine().await;
    let alone = alone().await;
    let coordinator = Coordinator::start("spare", &["--embedded", "ends"]).await;
    let layers = [16, 14];
    let mut started = workers(&coordinator, &layers, false).await;
    let spare = coordinator.worker("spare", mib_for(18));
    coordinator
        .fleet_with("the spare has joined and nothing loads", |fleet| {
            let here = fleet.workers().iter().any(|w| w["name"] == "spare");
            (here && fleet.all_ready()).then_some(())
        })
        .await;
    let route_before = |fleet: &crate::harness::Fleet| -> Option<Vec<Value>> {
        let session = fleet.sessions().first()?;
        Some(session["route"].as_array()?.clone())
    };
    let mut events = coordinator.api.stream("/v1/chat/completions", &request(1)).await;
    let mut written = Written::nothing();
    stream_of(&mut events, &mut written, KILL_AFTER).await;
    let fleet = coordinator.fleet().await;
    let route = route_before(&fleet).expect("the session is there");
    let stage = route.iter().find(|stage| {
        let name_of = |id: &Value| fleet.workers().iter().find(|w| &w["id"] == id);
        let worker = name_of(&stage["worker"]).expect("it is in the fleet");
        stage["first_layer"].is_u64() && worker["name"] == "w0"
    });
    assert!(stage.is_some(), "w0 is in the route: {route:?}");
    started[0].kill_9();
    for event in events.rest().await {
        written.add(&event);
    }
    assert_eq!(written, alone[1]);
    drop(spare);
}

#[tokio::test]
async fn the_worker_with_the_ends_is_replaced_too() {
    let _machine = machine().await;
    let alone = alone().await;
    let coordinator = Coordinator::start("lost-ends", &["--embedded", "off"]).await;
    let mut started = workers(&coordinator, &[21, 9], true).await;
    let ends = coordinator.fleet().await;
    let w0 = ends.workers().iter().find(|w| w["name"] == "w0").expect("w0").clone();
    let shards = w0["shards"].as_array().expect("shards");
    assert!(shards.iter().any(|s| s["embedding"] == true), "{w0}");
    assert!(shards.iter().any(|s| s["head"] == true), "{w0}");
    let mut events = coordinator.api.stream("/v1/chat/completions", &request(7)).await;
    let mut written = Written::nothing();
    stream_of(&mut events, &mut written, KILL_AFTER).await;
    started[0].kill_9();
    let _replacement = coordinator.worker("replacement", mib_for(21) + ENDS_MIB);
    for event in events.rest().await {
        written.add(&event);
    }
    assert_eq!(written, alone[7]);
}

#[tokio::test]
async fn without_a_replacement_a_request_ends_at_its_own_deadline() {
    let _machine = machine().await;
    let coordinator = Coordinator::start("deadline", &["--embedded", "ends"]).await;
    let mut started = workers(&coordinator, &[18, 14], false).await;
    let mut body = request(1);
    body["timeout"] = json!(4);
    body["max_tokens"] = json!(2000);
    let mut events = coordinator.api.stream("/v1/chat/completions", &body).await;
    let mut written = Written::nothing();
    stream_of(&mut events, &mut written, KILL_AFTER).await;
    started[1].kill_9();
    let rest = events.rest().await;
    let error = &rest.last().expect("an event")["error"];
    assert_eq!(error["type"], "server_error", "{rest:?}");
    assert!(error["message"].as_str().is_some_and(|m| m.contains("layer")), "{error}");
    assert!(!events.done, "a stream that failed is not done");

    // One that is not streamed has it as its status, and says what it waited for.
    body["timeout"] = json!(1);
    let answer = coordinator.api.post("/v1/chat/completions", &body).await;
    let error = answer.error(503, "not_ready_in_time");
    assert!(error["message"].as_str().is_some_and(|m| m.contains("layer")), "{error}");
    coordinator
        .fleet_with("no session is left", |fleet| fleet.sessions().is_empty().then_some(()))
        .await;
}
