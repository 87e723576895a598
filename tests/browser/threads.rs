//! Several cores of one tab: helper Web Workers share the rows, end with the work, also while they
//! sleep, and are done without where they cannot be had. And the modules that a tab may compute with.

use std::ops::RangeInclusive;

use serde_json::{Value, json};

use crate::altered::Altered;
use crate::harness::{machine, until};
use crate::lent::Lent;
use crate::serving::{text, written_natively};

/// Tokens of a generation.
const TOKENS: u32 = 24;

/// A worker that hears of no pause while the page is `deaf`.
const DEAF: &str = "
    const post = Worker.prototype.postMessage;
    Worker.prototype.postMessage = function (said, ...rest) {
        if (!window.deaf || !String(said).includes('\"type\":\"pause\"'))
            return post.call(this, said, ...rest);
    };";

/// Web Workers of the page, those that other workers started included, which compute.
async fn web_workers(lent: &Lent) -> usize {
    let targets = lent.chrome.devtools("Target.getTargets", &json!({})).await;
    let targets = targets["targetInfos"].as_array().expect("a list");
    let workers = || targets.iter().filter(|target| target["type"] == "worker");
    let named = |t: &Value| t["url"].as_str().is_some_and(|url| url.contains("/worker.js"));
    let chiefs: Vec<&Value> = workers().filter(|t| named(t)).map(|t| &t["targetId"]).collect();
    // Of one that another worker started the browser may say no address.
    workers().filter(|t| named(t) || chiefs.contains(&&t["parentId"])).count()
}

/// Waits until there are so many.
async fn web_workers_are(lent: &Lent, count: usize) {
    web_workers_within(lent, count..=count).await;
}

async fn web_workers_within(lent: &Lent, counts: RangeInclusive<usize>) {
    until(&format!("there are {counts:?} Web Workers"), || async {
        let there = web_workers(lent).await;
        let notes = lent.chrome.text("#device-notes").await;
        let wrong = Err(format!("{there}; the page notes {notes:?}"));
        if counts.contains(&there) { Ok(()) } else { wrong }
    })
    .await;
}

/// Chooses so many threads on the open page, whatever this machine has, and serves.
async fn serve_with(lent: &Lent, threads: u32) {
    lent.chrome.script("document.querySelector('#controls').open = true").await;
    lent.chrome.choose("#threads", &threads.to_string()).await;
    lent.serve().await;
    lent.coordinator.ready().await;
}

/// A generation writes what is expected, with the same probabilities.
async fn assert_writes(lent: &Lent, expected: &Value) {
    let got = lent.generate(TOKENS).await.ok();
    assert_eq!(text(&got), text(expected));
    assert_eq!(got["choices"][0]["logprobs"], expected["choices"][0]["logprobs"]);
}

/// Generates until every one of so many helpers has computed something: however busy the machine
/// is, its chief takes back only what a helper has not begun.
async fn all_have_helped(lent: &Lent, helpers: usize, expected: &Value) {
    let note = format!("{helpers} of {helpers} helpers have taken part");
    until(&note, || async {
        assert_writes(lent, expected).await;
        let notes = lent.chrome.text("#device-notes").await;
        if notes.contains(&note) { Ok(()) } else { Err(notes) }
    })
    .await;
}

/// Clicks on Pause; the helpers end.
async fn pause(lent: &Lent) {
    lent.chrome.click("#start").await;
    lent.phase("paused").await;
    web_workers_are(lent, 1).await;
}

async fn four_cores(lent: &Lent) {
    let cores = json!({"hardwareConcurrency": 4});
    lent.chrome.devtools("Emulation.setHardwareConcurrencyOverride", &cores).await;
}

#[tokio::test]
async fn any_number_of_threads_writes_what_a_native_worker_does_and_pause_ends_the_helpers() {
    let _machine = machine().await;
    let lent = Lent::start("threads").await;
    let expected = written_natively(&lent, TOKENS).await;
    four_cores(&lent).await;
    lent.open("?backend=wasm").await;
    let chosen = lent.chrome.script("return document.querySelector('#threads').value").await;
    assert_eq!(chosen, "2", "half of the cores by themselves");
    for threads in [3, 2, 1] {
        serve_with(&lent, threads).await;
        let device = lent.chrome.text("#device").await;
        let s = if threads == 1 { "" } else { "s" };
        assert!(device.contains(&format!("{threads} thread{s}")), "{device}");
        web_workers_are(&lent, threads as usize).await;
        match threads {
            1 => assert_writes(&lent, &expected).await,
            _ => all_have_helped(&lent, threads as usize - 1, &expected).await,
        }
        assert_eq!(web_workers(&lent).await, threads as usize, "nobody was given up");
        pause(&lent).await;
    }
    assert_eq!(lent.chrome.console("SEVERE").await, Vec::<String>::new());
}

#[tokio::test]
async fn helpers_that_sleep_end_with_a_tab_that_is_frozen_and_with_a_worker_that_hangs() {
    let _machine = machine().await;
    let lent = Lent::start("asleep").await;
    let expected = written_natively(&lent, TOKENS).await;
    four_cores(&lent).await;
    lent.chrome.before_each_page(DEAF).await;
    lent.open("?backend=wasm").await;
    serve_with(&lent, 3).await;
    all_have_helped(&lent, 2, &expected).await;

    // They sleep until the next order, which does not come. The page may have ended their chief.
    let state = |state: &str| json!({"state": state});
    lent.chrome.devtools("Page.setWebLifecycleState", &state("frozen")).await;
    lent.tabs_are(0).await;
    web_workers_within(&lent, 0..=1).await;
    lent.chrome.devtools("Page.setWebLifecycleState", &state("active")).await;
    lent.phase("serving").await;
    lent.coordinator.ready().await;
    web_workers_are(&lent, 3).await;
    all_have_helped(&lent, 2, &expected).await;

    // Their chief is ended, since it does not answer, and can end nobody.
    lent.chrome.script("window.deaf = true").await;
    lent.chrome.click("#start").await;
    lent.tabs_are(0).await;
    lent.chrome.script("window.deaf = false").await;
    lent.phase("paused").await;
    web_workers_within(&lent, 0..=1).await;
    serve_with(&lent, 3).await;
    web_workers_are(&lent, 3).await;
    all_have_helped(&lent, 2, &expected).await;
}

#[tokio::test]
async fn a_tab_takes_relaxed_simd_where_there_is_some_and_the_plain_module_writes_the_same() {
    let _machine = machine().await;
    let lent = Lent::start("modules").await;
    let expected = written_natively(&lent, TOKENS).await;
    four_cores(&lent).await;
    for (query, device) in [
        ("?backend=wasm", "WASM relaxed SIMD, 2 threads"),
        ("?backend=wasm&simd=128", "WASM SIMD, 2 threads"),
    ] {
        lent.open(query).await;
        serve_with(&lent, 2).await;
        let shown = lent.chrome.text("#device").await;
        assert!(shown.contains(device), "{query}: {shown}");
        assert_writes(&lent, &expected).await;
    }
    assert_eq!(lent.chrome.console("SEVERE").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_browser_that_refuses_the_relaxed_module_gets_the_plain_one() {
    let _machine = machine().await;
    let lent = Lent::start("refused").await;
    let expected = written_natively(&lent, TOKENS).await;
    let altered = Altered::start(
        &lent.coordinator.address,
        &[("GET /worker/relaxed/", "GET /worker/missing/")],
    )
    .await;
    lent.open_at(&altered.url("?backend=wasm")).await;
    serve_with(&lent, 1).await;
    let shown = lent.chrome.text("#device").await;
    assert!(shown.contains("WASM SIMD, 1 thread"), "{shown}");
    assert_writes(&lent, &expected).await;
}

#[tokio::test]
async fn without_isolation_or_helpers_one_thread_computes_and_the_page_says_why() {
    let _machine = machine().await;
    let lent = Lent::start("one-thread").await;
    let expected = written_natively(&lent, TOKENS).await;
    four_cores(&lent).await;
    for (from, to, why) in [
        // Not isolated: nothing may be shared.
        ("cross-origin-embedder-policy", "x-rosso-riginoembedderopolic", "may not share memory"),
        // The helper's code is not there.
        ("GET /worker/worker.js?helper", "GET /worker/wo_ker.js?helper", "helper"),
    ] {
        let altered = Altered::start(&lent.coordinator.address, &[(from, to)]).await;
        lent.open_at(&altered.url("?backend=wasm")).await;
        serve_with(&lent, 2).await;
        let shown = lent.chrome.text("#device").await;
        assert!(shown.contains("1 thread"), "{shown}");
        let page = lent.chrome.text("main").await;
        assert!(page.contains(why) && page.contains("1 of 2 threads"), "{why}: {page}");
        assert_writes(&lent, &expected).await;
    }
}
