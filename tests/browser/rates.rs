//! What the scheduler makes of a tab: of its benchmark, and beside a worker that could do all.

use serde_json::Value;

use crate::harness::machine;
use crate::lent::{Lent, request};
use crate::serving::text;

/// Steps after which the rate is that of real steps.
const STEPS: u32 = 50;
/// Sessions at once, and their tokens: a crowd in which each is slower with the worker that has
/// all than alone with a tab of a quarter of its rate, and which has met before the first ends.
const SESSIONS: usize = 24;
const TOKENS: u32 = 48;
const PATH: &str = "/v1/completions";

fn rate(tab: &Value) -> f64 {
    tab["layer_tokens_per_s"].as_f64().expect("a rate")
}

#[tokio::test]
async fn the_benchmark_foretells_the_first_real_steps() {
    let _machine = machine().await;
    let lent = Lent::start_real("rate").await;
    lent.open("?backend=wasm").await;
    lent.serve().await;
    lent.coordinator.ready().await;
    let foretold = rate(&lent.tabs().await[0]);
    let mut body = request(STEPS);
    body["model"] = crate::harness::MODEL.into();
    lent.coordinator.api.post(PATH, &body).await.ok();
    let tab = lent.tabs().await[0].clone();
    assert!(tab["rows"].as_u64() >= Some(STEPS.into()), "{tab}");
    let ratio = foretold / rate(&tab);
    println!("foretold {foretold:.0} layer tokens/s, seen {:.0}: {ratio:.2}", rate(&tab));
    // Within 30 % on a quiet machine; others may take half of this one.
    assert!((0.33..3.0).contains(&ratio), "foretold {foretold}, then {tab}");
}

#[tokio::test]
async fn beside_a_worker_that_holds_all_it_serves_what_overflows() {
    let _machine = machine().await;
    let lent = Lent::start_real_with("overflow", &[]).await;
    lent.coordinator.ready().await;
    let mut body = request(TOKENS);
    body["model"] = crate::harness::MODEL.into();
    let expected = lent.coordinator.api.post(PATH, &body).await.ok();
    lent.open("?backend=wasm").await;
    lent.serve().await;
    lent.coordinator
        .fleet_with("the tab holds a replica", |fleet| {
            let tab = fleet.workers().iter().find(|worker| worker["kind"] == "browser")?;
            (tab["shards"][0]["ready"] == true).then_some(())
        })
        .await;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(lent.coordinator.api.stream(PATH, &body).await);
    }
    for mut session in sessions {
        let written: String = session.rest().await.iter().map(text).collect();
        assert_eq!(written, text(&expected), "whoever computed it");
    }
    let tab = lent.tabs().await[0].clone();
    assert!(tab["rows"].as_u64() > Some(0), "it took some of the {SESSIONS} sessions: {tab}");
    let served = "return document.querySelector('#figure-tokens').textContent !== '0'";
    lent.chrome.wait("the page shows the tokens", served).await;
    lent.chrome.screenshot("overflow").await;
}
