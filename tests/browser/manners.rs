//! What the owner says goes: pause, finish, the cap on data, deleting.

use std::time::{Duration, Instant};

use crate::harness::machine;
use crate::lent::{Lent, request};

/// Within this long after Pause no step may run.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Tokens that take far longer than a test lasts.
const ENDLESS: u32 = 1500;

/// Rows that the fleet's tab has computed, or `None` if it is gone.
async fn rows(lent: &Lent) -> Option<u64> {
    lent.tabs().await.first().and_then(|tab| tab["rows"].as_u64())
}

#[tokio::test]
async fn after_pause_no_step_runs_and_start_goes_on() {
    let _machine = machine().await;
    let lent = Lent::start("pause").await;
    lent.open("?backend=wasm").await;
    lent.serve().await;
    lent.coordinator.ready().await;
    let mut events = lent.coordinator.api.stream("/v1/completions", &request(ENDLESS)).await;
    for _ in 0..4 {
        events.next().await.expect("the stream goes on");
    }
    let before = rows(&lent).await.expect("the tab is here");
    assert!(before > 0);
    lent.chrome.click("#start").await;
    let pressed = Instant::now();
    lent.phase("paused").await;
    // The page has heard it from its worker, or has ended it.
    lent.coordinator
        .fleet_with("the session waits for the tab's layers", |fleet| {
            let session = fleet.sessions().first()?;
            session["waiting_for"].is_string().then_some(())
        })
        .await;
    lent.tabs_are(0).await;
    let took = pressed.elapsed();
    assert!(took < 2 * PAUSE_MAX, "it took {took:?} to leave");
    let tokens = lent.figure("tokens").await;
    lent.chrome.screenshot("paused").await;
    assert!(lent.chrome.text("#start").await.starts_with("Start"));
    assert_eq!(lent.figure("tokens").await, tokens, "no step was taken since");
    assert_eq!(lent.figure("layers").await, 0.0);

    // The same generation goes on when the owner lets it.
    lent.serve().await;
    assert!(events.next().await.is_some(), "the stream goes on");
}

#[tokio::test]
async fn finish_and_stop_leaves_in_good_order() {
    let _machine = machine().await;
    let lent = Lent::start("finish").await;
    lent.open("?backend=wasm").await;
    lent.serve().await;
    lent.coordinator.ready().await;
    lent.generate(4).await.ok();
    lent.chrome.click("#finish").await;
    lent.phase("paused").await;
    lent.tabs_are(0).await;
    assert_eq!(lent.chrome.count("#finish").await, 0, "there is nothing to finish");
}

#[tokio::test]
async fn deleting_asks_twice_and_leaves_nothing() {
    let _machine = machine().await;
    let lent = Lent::start("delete").await;
    lent.open("?backend=wasm").await;
    lent.serve().await;
    lent.coordinator.ready().await;
    let first = lent.blob_bytes_sent().await;
    assert!(lent.figure("disk").await > 0.0);
    lent.chrome.script("document.querySelector('#controls').open = true").await;
    let disabled = "return document.querySelector('#forget').disabled";
    assert_eq!(lent.chrome.script(disabled).await, true, "not while it runs");
    lent.chrome.click("#start").await;
    lent.phase("paused").await;
    lent.chrome
        .wait("it can be deleted", "return !document.querySelector('#forget').disabled")
        .await;
    lent.chrome.click("#forget").await;
    assert!(lent.chrome.text("#forget").await.starts_with("Yes"));
    lent.chrome.screenshot("delete").await;
    lent.chrome.click("#forget").await;
    let said = "return document.querySelector('#detail').textContent.includes('deleted')";
    lent.chrome.wait("all data is deleted", said).await;
    let left = "return (async () => {
        const left = [];
        for await (const name of (await navigator.storage.getDirectory()).keys()) left.push(name);
        return [left, Object.keys(localStorage), (await indexedDB.databases()).length];
    })()";
    let left = lent.chrome.script(left).await;
    assert_eq!(left, serde_json::json!([[], [], 0]), "nothing is left");

    // So the layers are fetched again.
    lent.open("?backend=wasm").await;
    lent.serve().await;
    lent.coordinator.ready().await;
    assert!(lent.blob_bytes_sent().await >= 2 * first - first / 4);
}
