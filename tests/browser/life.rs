//! A tab among others: hidden, frozen, on battery, one of two, and one whose worker hangs.

use serde_json::{Value, json};

use crate::harness::{Events, machine, until};
use crate::lent::{LAYERS, Lent, request};
use crate::serving::MANIFEST_BYTES_MAX;

/// Tokens that take longer than a test lasts.
const ENDLESS: u32 = 1800;

/// The coordinator's words on a worker that it has not heard of for too long.
const SILENT: &str = "nothing came from it for";

/// A battery that the test plugs in and out.
const BATTERY: &str = "
    const battery = Object.assign(new EventTarget(), {charging: true, level: 0.5});
    navigator.getBattery = async () => battery;
    window.plug = (charging) => {
        battery.charging = charging;
        battery.dispatchEvent(new Event('chargingchange'));
    };";

/// A worker that never hears of a pause, and a browser that holds the page's own timer back.
const HANGS: &str = "
    const post = Worker.prototype.postMessage, wait = window.setTimeout;
    Worker.prototype.postMessage = function (said) {
        if (!String(said).includes('\"type\":\"pause\"')) return post.call(this, said);
    };
    window.setTimeout = (call, ms) => (ms === PAUSE_MS ? 0 : wait.call(window, call, ms));";

/// Writes down each phase that the page shows from now on.
const WATCH: &str = "
    window.phases = [];
    const status = document.querySelector('#status');
    new MutationObserver(() => phases.push(status.dataset.phase))
        .observe(status, {attributes: true});";

async fn begin(lent: &Lent) -> Events {
    let mut events = lent.coordinator.api.stream("/v1/completions", &request(ENDLESS)).await;
    goes_on(&mut events).await;
    events
}

async fn goes_on(events: &mut Events) {
    for _ in 0..4 {
        events.next().await.expect("the stream goes on");
    }
}

/// Waits until the fleet has one tab, marked as this.
async fn hidden_is(lent: &Lent, hidden: bool) {
    lent.coordinator
        .fleet_with(&format!("a tab is here, hidden: {hidden}"), |fleet| {
            let tab = fleet.workers().iter().find(|worker| worker["kind"] == "browser")?;
            (tab["hidden"] == hidden).then_some(())
        })
        .await;
}

async fn credit_is(lent: &Lent, credit: f64) {
    until(&format!("the credit is {credit}"), || async {
        let shown = lent.figure("credit").await;
        if shown == credit { Ok(()) } else { Err(shown.to_string()) }
    })
    .await;
}

/// Rows that the one tab has computed since it joined.
async fn rows(lent: &Lent) -> f64 {
    lent.tabs().await[0]["rows"].as_f64().expect("rows")
}

#[tokio::test]
async fn a_second_tab_waits_for_the_first_and_their_credit_is_one() {
    let _machine = machine().await;
    let lent = Lent::start("second").await;
    let first = lent.chrome.window().await;
    lent.open("?backend=wasm").await;
    lent.serve().await;
    lent.coordinator.ready().await;
    lent.generate(8).await.ok();
    let mut credit = rows(&lent).await * LAYERS as f64;
    credit_is(&lent, credit).await;
    let sent = lent.blob_bytes_sent().await;

    let second = lent.chrome.new_window().await;
    lent.open("?backend=wasm").await;
    lent.chrome.click("#start").await;
    lent.says("another tab of this browser works here already").await;
    lent.chrome.screenshot("second-tab").await;
    assert_eq!(lent.tabs().await.len(), 1);
    lent.chrome.switch(&first).await;
    lent.chrome.click("#start").await;
    lent.phase("paused").await;

    // Each goes on counting where the other one was.
    for (window, other) in [(&second, &first), (&first, &second)] {
        lent.chrome.switch(window).await;
        lent.phase("serving").await;
        lent.coordinator.ready().await;
        lent.generate(8).await.ok();
        credit += rows(&lent).await * LAYERS as f64;
        credit_is(&lent, credit).await;
        lent.chrome.switch(other).await;
        lent.chrome.click("#start").await;
        lent.says("another tab of this browser works here already").await;
        assert_eq!(lent.tabs().await.len(), 1);
        lent.chrome.switch(window).await;
        if window == &second {
            lent.chrome.click("#start").await;
            lent.phase("paused").await;
        }
    }
    lent.chrome.close_and_switch(&second).await;
    lent.phase("serving").await;
    lent.coordinator.ready().await;
    lent.generate(8).await.ok();
    let again = lent.blob_bytes_sent().await - sent;
    assert!(again <= MANIFEST_BYTES_MAX, "{again} bytes were fetched again");
}

#[tokio::test]
async fn hidden_it_goes_on_less_reliably_and_frozen_or_unwanted_it_leaves() {
    let _machine = machine().await;
    let lent = Lent::start("hidden").await;
    lent.chrome.before_each_page(BATTERY).await;
    let tab = lent.chrome.window().await;
    lent.open("?backend=wasm").await;
    lent.serve().await;
    lent.coordinator.ready().await;
    let mut events = begin(&lent).await;
    hidden_is(&lent, false).await;

    let other = lent.chrome.new_window().await;
    hidden_is(&lent, true).await;
    goes_on(&mut events).await;
    lent.chrome.switch(&tab).await;
    hidden_is(&lent, false).await;

    // On battery.
    lent.chrome.script("plug(false)").await;
    lent.phase("held").await;
    lent.says("on battery").await;
    lent.tabs_are(0).await;
    lent.chrome.screenshot("on-battery").await;
    lent.chrome.script("plug(true)").await;
    lent.phase("serving").await;
    goes_on(&mut events).await;

    // Frozen by the browser, and thawed.
    let state = |state: &str| json!({"state": state});
    lent.chrome.script(WATCH).await;
    lent.chrome.devtools("Page.setWebLifecycleState", &state("frozen")).await;
    lent.tabs_are(0).await;
    lent.chrome.devtools("Page.setWebLifecycleState", &state("active")).await;
    lent.phase("serving").await;
    goes_on(&mut events).await;
    let log = lent.coordinator.process.log();
    let words = ["in time", SILENT];
    let late = log.iter().find(|line| words.iter().any(|words| line.contains(words)));
    assert_eq!(late, None, "it was seen to leave at once");
    let phases = lent.chrome.script("return phases").await;
    assert!(phases.as_array().expect("a list").contains(&json!("held")), "{phases}");

    // Hidden, as its owner does not want it.
    lent.chrome.script("document.querySelector('#controls').open = true").await;
    lent.chrome.click("#hidden").await;
    lent.chrome.switch(&other).await;
    lent.tabs_are(0).await;
    lent.chrome.switch(&tab).await;
    lent.phase("serving").await;
    hidden_is(&lent, false).await;
    goes_on(&mut events).await;
}

#[tokio::test]
async fn a_worker_that_hangs_is_ended_also_while_nobody_looks() {
    let _machine = machine().await;
    let lent = Lent::start("hangs").await;
    let hangs = HANGS.replace("PAUSE_MS", &web::donor::PAUSE_MS_MAX.to_string());
    lent.chrome.before_each_page(&hangs).await;
    let tab = lent.chrome.window().await;
    let url = format!("http://{}/?backend=wasm", lent.coordinator.address);
    lent.open_with(&url, &json!({"stop_when_hidden": true})).await;
    lent.serve().await;
    lent.coordinator.ready().await;
    let mut events = begin(&lent).await;
    let given = until("the page shows what it gave", || async {
        let tokens = lent.figure("tokens").await;
        if tokens > 0.0 { Ok(tokens) } else { Err(tokens.to_string()) }
    })
    .await;
    let other = lent.chrome.new_window().await;
    lent.tabs_are(0).await;
    assert_ne!(other, tab);
    lent.chrome.switch(&tab).await;
    lent.phase("serving").await;
    goes_on(&mut events).await;
    let tokens = lent.figure("tokens").await;
    assert!(tokens > given, "the new worker counts on: {tokens}, {given} before");
    let console: Vec<Value> =
        lent.chrome.console("SEVERE").await.into_iter().map(Value::from).collect();
    assert_eq!(console, Vec::<Value>::new());
}
