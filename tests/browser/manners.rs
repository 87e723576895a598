//! What the owner says goes: pause, finish, the cap on data, deleting.

use serde_json::json;

use crate::harness::{Fleet, machine, until};
use crate::lent::{Lent, request};

/// From the press on Pause to the page's word that nothing runs, by the page's clock, ms: a
/// worker that has not said so by then is ended.
const PAUSE_MS_MAX: f64 = 1000.0;
/// The page itself may be late by so much on a busy machine, ms.
const LATE_MS_MAX: f64 = 1000.0;
/// Tokens that take far longer than a test lasts.
const ENDLESS: u32 = 1500;
/// Looks at the fleet, in the time of each of which many steps would run.
const LOOKS: usize = 60;
/// Bytes down and up together: the probe and the layers fit, and many tokens' hidden states, but
/// neither direction reaches it alone.
const CAP_BYTES: u64 = 2_500_000;
/// The most by which the page's figures may exceed it: the chunk that reaches it, and half of the
/// last digit shown of each direction.
const CAP_SLACK_BYTES: f64 = (protocol::CHUNK_BYTES_MAX + 50_000 + 500) as f64;
/// The probe and one or two layers fit.
const SMALL_CAP_BYTES: u64 = 900_000;

/// Waits until a generation has come to layers that nobody holds; gives the tokens it has.
async fn stands(lent: &Lent) -> u64 {
    lent.coordinator
        .fleet_with("the generation waits for layers", |fleet| {
            fleet.sessions().first()?["waiting_for"].is_string().then(|| tokens(fleet))
        })
        .await
}

fn tokens(fleet: &Fleet) -> u64 {
    fleet.sessions().first().expect("a generation")["tokens"].as_u64().expect("a count")
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
    let took = "
        const status = document.querySelector('#status'), pressed = performance.now();
        window.took = new Promise((done) => new MutationObserver(() => {
            if (status.dataset.phase === 'paused') done(performance.now() - pressed);
        }).observe(status, {attributes: true}));
        document.querySelector('#start').click();";
    lent.chrome.script(took).await;
    let took = lent.chrome.script("return window.took").await.as_f64().expect("a time");
    assert!(took < PAUSE_MS_MAX + LATE_MS_MAX, "it took {took} ms");

    // The coordinator's view: the tab is gone, and the generation does not move.
    let written = stands(&lent).await;
    let given = lent.figure("tokens").await;
    assert!(given > 0.0);
    for _ in 0..LOOKS {
        let fleet = lent.coordinator.fleet().await;
        assert_eq!(tokens(&fleet), written, "no step was taken since");
        let browser = |worker: &&serde_json::Value| worker["kind"] == "browser";
        let in_flight = fleet.workers().iter().find(browser).map(|tab| &tab["steps_in_flight"]);
        assert!(in_flight.is_none_or(|steps| *steps == 0), "{fleet:?}");
    }
    lent.tabs_are(0).await;
    lent.chrome.screenshot("paused").await;
    assert!(lent.chrome.text("#start").await.starts_with("Start"));
    assert_eq!(lent.figure("tokens").await, given, "the page counts none either");
    assert_eq!(lent.figure("layers").await, 0.0);
    assert_eq!(lent.figure("busy").await, 0.0);

    // The same generation goes on when the owner lets it.
    lent.serve().await;
    assert!(events.next().await.is_some(), "the stream goes on");
}

#[tokio::test]
async fn the_data_cap_counts_both_directions_and_stops_it() {
    let _machine = machine().await;
    let lent = Lent::start("cap").await;
    let url = format!("http://{}/?backend=wasm", lent.coordinator.address);
    lent.open_with(&url, &json!({"data_bytes": CAP_BYTES})).await;
    lent.serve().await;
    lent.coordinator.ready().await;
    let mut events = lent.coordinator.api.stream("/v1/completions", &request(ENDLESS)).await;
    lent.phase("paused").await;
    let said = lent.chrome.text("#detail").await;
    assert!(said.contains("the data cap of 2.5 MB is reached"), "{said}");
    lent.tabs_are(0).await;
    let written = stands(&lent).await;
    assert!(written > 0, "it served until then");
    let (down, up) = (lent.figure_bytes("down").await, lent.figure_bytes("up").await);
    let cap = CAP_BYTES as f64;
    assert!(down < cap && up < cap && up > 0.0, "{down} down, {up} up");
    assert!((0.9 * cap..cap + CAP_SLACK_BYTES).contains(&(down + up)), "{down} down, {up} up");
    lent.chrome.screenshot("data-cap").await;

    // Pressed again, it only says so again.
    lent.chrome.click("#start").await;
    until("the page says that the cap is reached", || async {
        let (phase, said) = (lent.shown_phase().await, lent.chrome.text("#detail").await);
        let refused = phase == "paused" && said.contains("raise it to go on");
        if refused { Ok(()) } else { Err(format!("{phase}: {said}")) }
    })
    .await;
    assert_eq!(lent.tabs().await.len(), 0);
    assert_eq!(tokens(&lent.coordinator.fleet().await), written);

    lent.chrome.script("document.querySelector('#controls').open = true").await;
    lent.chrome.choose("#data", "no cap").await;
    lent.serve().await;
    for _ in 0..4 {
        events.next().await.expect("the stream goes on");
    }
    stands_no_longer(&lent, written).await;
}

#[tokio::test]
async fn layers_that_do_not_fit_the_data_cap_are_not_fetched() {
    let _machine = machine().await;
    let lent = Lent::start("small-cap").await;
    let url = format!("http://{}/?backend=wasm", lent.coordinator.address);
    lent.open_with(&url, &json!({"data_bytes": SMALL_CAP_BYTES})).await;
    lent.chrome.click("#start").await;
    lent.phase("paused").await;
    let said = lent.chrome.text("#detail").await;
    assert!(said.contains("0.9 MB is reached") && said.contains("the next layers are"), "{said}");
    let (down, up) = (lent.figure_bytes("down").await, lent.figure_bytes("up").await);
    assert!(down + up <= SMALL_CAP_BYTES as f64, "{down} down, {up} up");
    lent.tabs_are(0).await;
}

/// Waits until the generation has more tokens than these.
async fn stands_no_longer(lent: &Lent, written: u64) {
    lent.coordinator
        .fleet_with("the generation goes on", |fleet| (tokens(fleet) > written).then_some(()))
        .await;
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
