//! Boundaries in f16 and int8: fewer bytes over the links, the same tokens every time, also
//! when a worker is lost.

use serde_json::Value;

use crate::harness::{Coordinator, Written, machine, request, stream_of};
use crate::split::{mib_for, workers};

/// Tokens that have come when the worker is killed.
const KILL_AFTER: usize = 8;

/// `row_bytes`: of a row of 576 values.
async fn check(dtype: &str, row_bytes: f64) {
    let name = format!("boundaries-{dtype}");
    let flags = ["--embedded", "ends", "--boundaries", dtype];
    let coordinator = Coordinator::start(&name, &flags).await;
    let mut started = workers(&coordinator, &[18, 14], false).await;
    let first = coordinator.api.post("/v1/chat/completions", &request(1)).await;
    let first = Written::of(&first.ok(), 0);

    let fleet = coordinator.fleet().await;
    let natives = fleet.workers().iter().filter(|w| w["kind"] == "native");
    let figures = |of: &Value| {
        let figure = |name: &str| of["boundaries"][name].as_f64().expect("a figure");
        (figure("bytes_per_token"), figure("bytes_per_token_f32"))
    };
    // A row goes to each of the two workers and comes from it.
    let row_f32 = 4.0 * 576.0;
    for worker in natives {
        assert_eq!(worker["boundary_dtype"], dtype, "{worker}");
        let (sent, f32) = figures(worker);
        assert_eq!((sent, f32), (2.0 * row_bytes, 2.0 * row_f32), "{worker}");
    }
    let embedded = fleet.workers().iter().find(|w| w["kind"] == "embedded").expect("the ends");
    assert_eq!(embedded["boundary_dtype"], "f32");
    assert_eq!(embedded["boundaries"]["bytes"], 0, "it has no link");
    let (sent, f32) = figures(&fleet.0);
    assert_eq!((sent, f32), (4.0 * row_bytes, 4.0 * row_f32));

    // The same again, while the worker of the last layers is killed and another takes its place.
    let mut events = coordinator.api.stream("/v1/chat/completions", &request(1)).await;
    let mut written = Written::nothing();
    stream_of(&mut events, &mut written, KILL_AFTER).await;
    let last = fleet.holders()[1].name.clone();
    let at = usize::from(last == "w1");
    started[at].kill_9();
    let _other = coordinator.worker("other", mib_for([18, 14][at]));
    for event in events.rest().await {
        written.add(&event);
    }
    assert_eq!(written, first, "{dtype}");
}

#[tokio::test]
async fn f16_halves_the_bytes_and_a_replay_gives_the_same_tokens() {
    let _machine = machine().await;
    check("f16", 2.0 * 576.0).await;
}

#[tokio::test]
async fn int8_saves_more_than_two_thirds_and_a_replay_gives_the_same_tokens() {
    let _machine = machine().await;
    check("int8", 576.0 + 4.0 * 18.0).await;
}
