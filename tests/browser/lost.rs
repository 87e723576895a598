//! The network goes, the coordinator, the GPU or its memory: the tab comes back by itself.

use serde_json::{Value, json};

use crate::between::Between;
use crate::harness::{Events, machine};
use crate::lent::{Lent, request};
use crate::serving::{MANIFEST_BYTES_MAX, text};

/// Tokens of a generation that is interrupted, and that have come by then.
const TOKENS: u32 = 200;
const INTERRUPT_AFTER: usize = 8;

/// Keeps a worker's GPU devices, and destroys them when the page asks for it.
const DESTROY: &str = "
    const devices = [], ask = GPUAdapter.prototype.requestDevice;
    GPUAdapter.prototype.requestDevice = async function (...given) {
        devices.push(await ask.apply(this, given));
        return devices.at(-1);
    };
    new BroadcastChannel('lose').onmessage = () => devices.forEach((device) => device.destroy());";

/// The first buffers that a worker makes after it has joined do not fit.
const NO_ROOM: &str = "
    const { pushErrorScope: push, popErrorScope: pop } = GPUDevice.prototype;
    const filters = [];
    let full = false, sockets = 0;
    GPUDevice.prototype.pushErrorScope = function (filter) {
        filters.push(filter);
        return push.call(this, filter);
    };
    GPUDevice.prototype.popErrorScope = async function () {
        const filter = filters.pop(), error = await pop.call(this);
        if (!full || filter !== 'out-of-memory') return error;
        full = false;
        return new GPUOutOfMemoryError('there is less than was lent');
    };
    self.WebSocket = class extends WebSocket {
        constructor(...given) {
            super(...given);
            full = sockets++ === 0;
        }
    };";

/// The beginning of a generation.
async fn begin(lent: &Lent, tokens: u32) -> (Events, String) {
    let mut events = lent.coordinator.api.stream("/v1/completions", &request(tokens)).await;
    let mut written = String::new();
    for _ in 0..INTERRUPT_AFTER {
        written.push_str(text(&events.next().await.expect("the stream goes on")));
    }
    (events, written)
}

async fn end((mut events, mut written): (Events, String)) -> String {
    for event in events.rest().await {
        written.push_str(text(&event));
    }
    written
}

/// Waits until a generation has come to layers that nobody holds.
async fn waits(lent: &Lent) {
    lent.coordinator
        .fleet_with("the generation waits for layers", |fleet| {
            fleet.sessions().first()?["waiting_for"].is_string().then_some(())
        })
        .await;
}

#[tokio::test]
async fn without_a_network_or_a_coordinator_it_joins_again_with_what_it_has() {
    let _machine = machine().await;
    let mut lent = Lent::start("network").await;
    let between = Between::start(&lent.coordinator.address, "").await;
    lent.open_at(&format!("http://{}/?backend=wasm", between.address)).await;
    lent.serve().await;
    lent.coordinator.ready().await;
    let expected = text(&lent.generate(TOKENS).await.ok()).to_owned();
    let fetched = lent.blob_bytes_sent().await;

    let begun = begin(&lent, TOKENS).await;
    between.cut();
    lent.tabs_are(0).await;
    lent.phase("connecting").await;
    lent.says("trying again").await;
    waits(&lent).await;
    lent.chrome.screenshot("cut-off").await;
    between.lead_to(&lent.coordinator.address);
    assert_eq!(end(begun).await, expected, "as if it had never been cut off");
    lent.phase("serving").await;
    let again = lent.blob_bytes_sent().await - fetched;
    assert!(again <= MANIFEST_BYTES_MAX, "{again} bytes were fetched again");

    let given = lent.figure("tokens").await;
    lent.restart_coordinator("network-again").await;
    between.lead_to(&lent.coordinator.address);
    lent.coordinator.ready().await;
    assert_eq!(text(&lent.generate(TOKENS).await.ok()), expected);
    let again = lent.blob_bytes_sent().await;
    assert!(again <= MANIFEST_BYTES_MAX, "{again} bytes were fetched from the new one");
    lent.phase("serving").await;
    assert!(lent.figure("tokens").await >= given, "it counts on");
}

#[tokio::test]
async fn a_lost_gpu_is_opened_again_without_a_reload() {
    let _machine = machine().await;
    let lent = Lent::start("lost-gpu").await;
    let between = Between::start(&lent.coordinator.address, DESTROY).await;
    lent.open_at(&format!("http://{}/?backend=webgpu", between.address)).await;
    lent.serve().await;
    lent.coordinator.ready().await;
    let expected = text(&lent.generate(24).await.ok()).to_owned();
    let before = lent.tabs().await[0]["id"].clone();
    lent.chrome.script("window.same = true").await;

    let begun = begin(&lent, 24).await;
    lent.chrome.script("new BroadcastChannel('lose').postMessage('')").await;
    assert_eq!(end(begun).await, expected, "the same kernels on the same rows");
    lent.phase("serving").await;
    let notes = lent.chrome.text("#device-notes").await;
    assert!(notes.contains("opened again after it was lost"), "{notes}");
    let tab = lent.tabs().await[0].clone();
    assert_ne!(tab["id"], before, "it has left and joined");
    assert_eq!(tab["backend"], "webgpu");
    assert!(tab["notes"].to_string().contains("after it was lost"), "the fleet shows it: {tab}");
    assert_eq!(lent.chrome.script("return window.same").await, true, "the page is the same");
    lent.chrome.screenshot("lost-gpu").await;
}

#[tokio::test]
async fn a_gpu_with_less_room_than_was_lent_lends_less() {
    let _machine = machine().await;
    let lent = Lent::start("no-room").await;
    let between = Between::start(&lent.coordinator.address, NO_ROOM).await;
    let url = format!("http://{}/?backend=webgpu", between.address);
    lent.open_with(&url, &json!({"memory_bytes": 64 << 20})).await;
    lent.serve().await;
    lent.coordinator.ready().await;
    let tab = lent.tabs().await[0].clone();
    assert_eq!(tab["memory_bytes"], 32 << 20, "{tab}");
    assert_eq!(tab["backend"], "webgpu");
    let notes = lent.chrome.text("#device-notes").await;
    assert!(notes.contains("lends 32 of 64 MiB"), "{notes}");
    let said = lent.coordinator.process.log();
    let dismissed = said.iter().any(|line| line.contains("the GPU has no room for"));
    assert!(dismissed, "the coordinator was told why: {said:?}");
    let answer: Value = lent.generate(8).await.ok();
    assert!(!text(&answer).is_empty());
    lent.chrome.screenshot("less-memory").await;
}
