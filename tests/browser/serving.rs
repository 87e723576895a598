//! A click, and the tab computes: on WebGPU and on WASM, with others, and after it was closed.

use serde_json::Value;

use crate::harness::{machine, until};
use crate::lent::{LAYERS, Lent, request};

/// Tokens of a generation that is interrupted: far more than are written until then.
const LONG: u32 = 1200;
/// Tokens that have come when it is.
const INTERRUPT_AFTER: usize = 8;
/// How far a token's log probability on a GPU may be from that of a CPU in the exact class. A
/// wrong kernel is off by whole units.
const LOGPROB_TOLERANCE: f64 = 0.1;
/// Nothing of the weights, but the manifest may be asked for again.
pub const MANIFEST_BYTES_MAX: u64 = 64 << 10;

/// What a native worker answers to a request, in the coordinator's first class.
async fn answered_natively(lent: &Lent, path: &str, body: &Value) -> Value {
    let mut native = lent.coordinator.worker("native", 256);
    lent.coordinator.ready().await;
    let answer = lent.coordinator.api.post(path, body).await.ok();
    native.kill_9();
    lent.coordinator
        .fleet_with("the native worker is gone", |fleet| {
            fleet.workers().iter().all(|worker| worker["kind"] != "native").then_some(())
        })
        .await;
    answer
}

pub async fn written_natively(lent: &Lent, tokens: u32) -> Value {
    answered_natively(lent, "/v1/completions", &request(tokens)).await
}

/// The same tokens with nearly the same log probabilities, up to the first where two tokens were
/// equally likely to within the tolerance.
#[track_caller]
pub fn assert_near(got: &Value, expected: &Value) {
    let of = |answer: &Value| -> Vec<(String, f64)> {
        let logprobs = &answer["choices"][0]["logprobs"];
        let tokens = logprobs["tokens"].as_array().expect("tokens").iter();
        let values = logprobs["token_logprobs"].as_array().expect("values").iter();
        let number = |value: &Value| value.as_f64().expect("a number");
        tokens.zip(values).map(|(token, value)| (token.to_string(), number(value))).collect()
    };
    let (got, expected) = (of(got), of(expected));
    assert_eq!(got.len(), expected.len());
    for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
        let off = (got.1 - expected.1).abs();
        println!("token {index}: {off:.4} off");
        assert!(off <= LOGPROB_TOLERANCE, "token {index}: {got:?}, natively {expected:?}");
        if got.0 != expected.0 {
            return;
        }
    }
}

pub fn text(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().expect("text")
}

#[tokio::test]
async fn a_click_is_enough_and_wasm_writes_what_a_native_worker_does() {
    let _machine = machine().await;
    let lent = Lent::start("wasm").await;
    let expected = written_natively(&lent, 24).await;
    lent.open("?backend=wasm").await;
    lent.serve().await;
    lent.coordinator.ready().await;
    let tabs = lent.tabs().await;
    assert_eq!(tabs.len(), 1, "{tabs:?}");
    assert_eq!(tabs[0]["shards"][0]["class"], "canonical-1", "{tabs:?}");

    let got = lent.generate(24).await.ok();
    assert_eq!(text(&got), text(&expected));
    assert_eq!(got["choices"][0]["logprobs"], expected["choices"][0]["logprobs"]);

    // What it gave is shown. The prompt's tokens count as well.
    let tokens = until("the figures show the tokens", || async {
        let tokens = lent.figure("tokens").await;
        if tokens >= 24.0 { Ok(tokens) } else { Err(tokens.to_string()) }
    })
    .await;
    let rows = lent.tabs().await[0]["rows"].as_f64().expect("rows");
    assert_eq!(tokens, rows, "the page counts as the coordinator does");
    assert_eq!(lent.figure("layers").await, LAYERS as f64);
    assert_eq!(lent.figure("credit").await, rows * LAYERS as f64);
    assert!(lent.figure("down").await > 0.0 && lent.figure("up").await > 0.0);
    assert!(lent.chrome.text("#device").await.contains("WASM"));
    lent.chrome.screenshot("serving-wasm").await;
    assert_eq!(lent.chrome.console("SEVERE").await, Vec::<String>::new());
}

#[tokio::test]
async fn webgpu_serves_within_the_tolerance_of_its_class() {
    let _machine = machine().await;
    let lent = Lent::start_exact("webgpu").await;
    let expected = written_natively(&lent, 12).await;
    lent.open("?backend=webgpu").await;
    lent.chrome.click("#start").await;
    lent.phase("serving").await;
    lent.coordinator.ready().await;
    let tabs = lent.tabs().await;
    assert_eq!(tabs[0]["shards"][0]["class"], "wgsl-f32", "{tabs:?}");
    assert!(lent.chrome.text("#device").await.contains("WebGPU"));

    let got = lent.generate(12).await.ok();
    assert_near(&got, &expected);
    lent.chrome.script("document.querySelector('#benchmark').open = true").await;
    let benchmark = lent.chrome.text("#benchmark").await;
    assert!(
        benchmark.contains("One dispatch") && benchmark.contains("Reading back"),
        "{benchmark}"
    );
    lent.chrome.screenshot("serving-webgpu").await;
    assert_eq!(lent.chrome.console("SEVERE").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_tab_closed_in_mid_generation_loses_nothing() {
    let _machine = machine().await;
    let lent = Lent::start("closed").await;
    let expected = written_natively(&lent, LONG).await;
    let other = lent.chrome.window().await;
    lent.chrome.new_window().await;
    lent.open("?backend=wasm").await;
    lent.chrome.script("document.querySelector('#controls').open = true").await;
    // Slow enough that the generation lasts until the other worker is there.
    lent.chrome
        .script(
            "const slider = document.querySelector('#intensity');
        slider.value = 25; slider.dispatchEvent(new Event('input'))",
        )
        .await;
    lent.serve().await;
    lent.coordinator.ready().await;

    let tab = lent.tabs().await[0]["id"].clone();
    let mut events = lent.coordinator.api.stream("/v1/completions", &request(LONG)).await;
    let mut written = String::new();
    for _ in 0..INTERRUPT_AFTER {
        let event = events.next().await.expect("the stream goes on");
        written.push_str(text(&event));
    }
    let _native = lent.coordinator.worker("native", 256);
    lent.coordinator
        .fleet_with("the other worker has joined", |fleet| {
            let session = fleet.sessions().first().expect("it is still being written");
            let route = session["route"].as_array().expect("a route");
            assert!(
                route.iter().any(|stage| stage["worker"] == tab),
                "the tab computes it: {route:?}"
            );
            fleet.workers().iter().any(|worker| worker["name"] == "native").then_some(())
        })
        .await;
    lent.chrome.close_and_switch(&other).await;
    for event in events.rest().await {
        written.push_str(text(&event));
    }
    assert_eq!(written, text(&expected), "as if the tab had never been closed");
    lent.tabs_are(0).await;
}

#[tokio::test]
async fn opened_again_it_takes_its_layers_from_the_disk() {
    let _machine = machine().await;
    let lent = Lent::start("warm").await;
    lent.open("?backend=wasm").await;
    lent.serve().await;
    lent.coordinator.ready().await;
    let expected = lent.generate(8).await.ok();
    let first = lent.blob_bytes_sent().await;
    let weights = lent.tabs().await[0]["shards"][0]["weight_bytes"].as_u64().expect("bytes");
    assert!(first >= weights, "{first} bytes were sent for {weights} of weights");
    assert!(lent.figure("disk").await > 0.0);

    // Closed, as far as the page's code can tell, and opened again.
    lent.open("?backend=wasm").await;
    lent.serve().await;
    lent.coordinator.ready().await;
    assert_eq!(text(&lent.generate(8).await.ok()), text(&expected));
    let again = lent.blob_bytes_sent().await - first;
    assert!(again <= MANIFEST_BYTES_MAX, "{again} bytes were sent again");
}

#[tokio::test]
async fn the_real_model_writes_a_few_tokens_through_a_tab() {
    let _machine = machine().await;
    let lent = Lent::start_real("real").await;
    let body = serde_json::json!({
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 8,
        "logprobs": true,
    });
    let path = "/v1/chat/completions";
    let expected = answered_natively(&lent, path, &body).await;
    lent.open("?backend=wasm").await;
    lent.serve().await;
    lent.coordinator.ready().await;
    let got = lent.coordinator.api.post(path, &body).await.ok();
    assert_eq!(got["choices"], expected["choices"], "to the last digit");
    lent.chrome.screenshot("serving-real").await;
}
