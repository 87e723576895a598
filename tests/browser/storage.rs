//! What the browser keeps, keeps not, or takes away.

use serde_json::{Value, json};

use crate::harness::{machine, until};
use crate::lent::{Lent, request};
use crate::serving::{MANIFEST_BYTES_MAX, text, written_natively};

/// Room for the key and the figures, but for no layer.
const QUOTA_BYTES: u64 = 50_000;

async fn disk_problem(lent: &Lent, words: &str) {
    let script =
        format!("return document.querySelector('#disk-problem').textContent.includes({words:?})");
    lent.chrome.wait(&format!("the page says '{words}' of the disk"), &script).await;
}

#[tokio::test]
async fn without_room_on_disk_it_serves_from_memory_and_what_is_evicted_is_fetched_again() {
    let _machine = machine().await;
    let lent = Lent::start("quota").await;
    let origin = format!("http://{}", lent.coordinator.address);
    let expected = written_natively(&lent, 8).await;
    let before = lent.blob_bytes_sent().await;
    lent.open("?backend=wasm").await;
    let quota = json!({"origin": origin, "quotaSize": QUOTA_BYTES});
    lent.chrome.devtools("Storage.overrideQuotaForOrigin", &quota).await;
    lent.serve().await;
    lent.coordinator.ready().await;
    disk_problem(&lent, "the browser grants this page no more disk space").await;
    assert_eq!(text(&lent.generate(8).await.ok()), text(&expected));
    lent.chrome.screenshot("quota").await;

    // More room: the next visit keeps them.
    lent.chrome.devtools("Storage.overrideQuotaForOrigin", &json!({"origin": origin})).await;
    lent.open("?backend=wasm").await;
    lent.serve().await;
    lent.coordinator.ready().await;
    let kept = lent.figure_bytes("disk").await;
    assert!(kept > 0.0);
    let sent = lent.blob_bytes_sent().await;
    assert!(sent > before);

    // The browser takes all of it away between two visits.
    lent.chrome.open("about:blank").await;
    lent.tabs_are(0).await;
    let all = json!({"origin": origin, "storageTypes": "all"});
    lent.chrome.devtools("Storage.clearDataForOrigin", &all).await;
    lent.open("?backend=wasm").await;
    lent.serve().await;
    lent.coordinator.ready().await;
    assert_eq!(text(&lent.generate(8).await.ok()), text(&expected));
    assert_eq!(lent.figure_bytes("disk").await, kept, "it is kept again");
    let again = lent.blob_bytes_sent().await - sent;
    assert!(again as f64 > 0.9 * kept, "{again} bytes of {kept} were fetched again");
    assert_eq!(lent.chrome.console("SEVERE").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_lower_disk_limit_holds_as_soon_as_nothing_is_in_use() {
    let _machine = machine().await;
    let lent = Lent::start("disk-limit").await;
    lent.open("?backend=wasm").await;
    // As an earlier visit that ended in the middle of a download would leave it.
    let stray = "return (async () => {
        const top = await navigator.storage.getDirectory();
        const weft = await top.getDirectoryHandle('weft', {create: true});
        const blobs = await weft.getDirectoryHandle('blobs', {create: true});
        const file = await blobs.getFileHandle('0'.repeat(64) + '.part', {create: true});
        const stream = await file.createWritable();
        await stream.write(new Uint8Array(1000));
        await stream.close();
        return true;
    })()";
    assert_eq!(lent.chrome.script(stray).await, true);
    lent.serve().await;
    lent.coordinator.ready().await;
    let files = "return (async () => {
        const top = await navigator.storage.getDirectory();
        const weft = await top.getDirectoryHandle('weft');
        const blobs = await weft.getDirectoryHandle('blobs');
        const names = [];
        for await (const name of blobs.keys()) names.push(name);
        return names;
    })()";
    let names = lent.chrome.script(files).await;
    let names: Vec<&str> =
        names.as_array().expect("names").iter().filter_map(Value::as_str).collect();
    assert!(!names.is_empty() && !names.iter().any(|name| name.ends_with(".part")), "{names:?}");

    lent.chrome.script("document.querySelector('#controls').open = true").await;
    lent.chrome.choose("#disk", "nothing").await;
    disk_problem(&lent, "in use: they go when they no longer are").await;
    lent.chrome.screenshot("disk-limit").await;
    lent.generate(4).await.ok();
    lent.chrome.click("#start").await;
    lent.phase("paused").await;
    let empty = "return document.querySelector('#figure-disk').textContent === '0 B'";
    lent.chrome.wait("the page says that nothing is on disk", empty).await;
    until("nothing is", || async {
        let left = lent.chrome.script(files).await;
        if left == json!([]) { Ok(()) } else { Err(left.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn a_private_window_serves_like_any_other() {
    let _machine = machine().await;
    let lent = Lent::start_with("private", &["--embedded", "ends"], &["--incognito"]).await;
    lent.open("?backend=wasm").await;
    lent.serve().await;
    lent.coordinator.ready().await;
    let answer = lent.coordinator.api.post("/v1/completions", &request(8)).await.ok();
    assert!(!text(&answer).is_empty());
    let sent = lent.blob_bytes_sent().await;
    // Chromium keeps files as long as a private window lives.
    assert!(lent.figure_bytes("disk").await > 0.0);
    // What it keeps is not fetched again.
    lent.open("?backend=wasm").await;
    lent.serve().await;
    lent.coordinator.ready().await;
    let again = lent.blob_bytes_sent().await - sent;
    assert!(again <= MANIFEST_BYTES_MAX, "{again} bytes were fetched again");
    assert_eq!(lent.chrome.console("SEVERE").await, Vec::<String>::new());
}
