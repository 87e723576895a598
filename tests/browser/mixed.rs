//! One model over a tab on WebGPU, a tab on WASM and a native worker.

use model::manifest::Dims;
use model::testing::TinyModel;
use serde_json::json;

use crate::harness::machine;
use crate::lent::{EXACT, Lent, request, tiny_model};
use crate::serving::{assert_near, written_natively};

/// Memory that each of the three lends: room for four of the nine layers, so that none of them
/// can be spared.
const MEMORY_MIB: u64 = 24;

/// A model whose layers are large against what a worker needs besides.
fn model() -> TinyModel {
    let dims = Dims {
        layers: 9,
        d_model: 512,
        heads: 8,
        kv_heads: 4,
        head_dim: 64,
        d_ff: 1536,
        vocab: 288,
        context: 512,
    };
    TinyModel { dims, ..tiny_model() }
}

#[tokio::test]
async fn tabs_on_webgpu_and_wasm_and_a_native_worker_share_one_model() {
    let _machine = machine().await;
    let lent = Lent::start_model("mixed", &model(), &EXACT).await;
    let expected = written_natively(&lent, 8).await;
    let port = lent.coordinator.address.rsplit(':').next().expect("a port").to_owned();
    // One worker per origin: these are two.
    let pages = [("127.0.0.1", "webgpu"), ("localhost", "wasm")];
    for (index, (host, backend)) in pages.into_iter().enumerate() {
        if index > 0 {
            lent.chrome.new_window().await;
        }
        let url = format!("http://{host}:{port}/?backend={backend}");
        lent.open_at(&url).await;
        let settings = json!({"memory_bytes": MEMORY_MIB << 20, "name": backend});
        let keep = format!("localStorage.setItem('weft-settings-1', JSON.stringify({settings}))");
        lent.chrome.script(&keep).await;
        lent.open_at(&url).await;
        lent.chrome.click("#start").await;
        lent.tabs_are(index + 1).await;
    }
    let _native = lent.coordinator.worker("native", MEMORY_MIB);
    let fleet = lent.coordinator.ready_over(3).await;
    let names: Vec<String> = fleet.holders().into_iter().map(|holder| holder.name).collect();
    for name in ["webgpu", "wasm", "native"] {
        assert!(names.iter().any(|holder| holder == name), "{name} holds layers: {names:?}");
    }
    let got = lent.coordinator.api.post("/v1/completions", &request(8)).await.ok();
    assert_near(&got, &expected);
    for worker in lent.coordinator.fleet().await.workers() {
        assert!(worker["rows"].as_u64() > Some(0), "each of them computes: {worker}");
    }
    lent.chrome.screenshot("mixed").await;
}
