//! A model that lies on a GPU and on a CPU at once: on whatever adapter there is, software
//! ones too.

use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Coordinator, Process, Written, alone, binary, machine, request, stream_of};
use crate::split::mib_for;

/// Where CPU and GPU choose different tokens, the two are closer than this: the limit that
/// canonical-1 has against llama.cpp's f32 logits (tests/golden).
const MARGIN_MAX: f64 = 0.6;
/// Log probabilities of one token differ by no more, for the same reason.
const LOGPROB_MAX: f64 = 0.6;
/// Tokens asked for: a software adapter takes its time.
const TOKENS: u64 = 10;
/// Tokens that have come when a worker is killed.
const KILL_AFTER: usize = 3;

/// The first adapter's number; `None`, said aloud, where there is none.
fn adapter() -> Option<String> {
    let listed = Command::new(binary("worker")).arg("--list-gpus").output().expect("it runs");
    assert!(listed.status.success(), "{listed:?}");
    let listed = String::from_utf8(listed.stdout).expect("text");
    let number = listed.split_once(':').map(|(number, _)| number.to_owned());
    if number.is_none() {
        println!("SKIPPED: no GPU adapter here, not even a software one (Vulkan)");
    }
    number
}

/// A coordinator whose layers lie on a GPU worker and a CPU worker.
async fn mixed(name: &str, adapter: &str) -> (Coordinator, Process, Process) {
    let coordinator = Coordinator::start(name, &["--embedded", "ends"]).await;
    let gpu = coordinator.worker_with("gpu", mib_for(8), &["--gpu", adapter]);
    let cpu = coordinator.worker("cpu", mib_for(24));
    let fleet = coordinator.ready_over(2).await;
    fleet.assert_each_needed();
    let worker = |name: &str| {
        let found = fleet.workers().iter().find(|w| w["name"] == name);
        found.unwrap_or_else(|| panic!("{name} is not in {fleet:?}")).clone()
    };
    assert_eq!(worker("gpu")["backend"], "wgpu");
    assert_eq!(worker("gpu")["shards"][0]["class"], "wgsl-f32");
    assert_eq!(worker("cpu")["shards"][0]["class"], "canonical-1");
    assert!(worker("gpu")["device"].as_str().is_some_and(|d| !d.is_empty()), "{fleet:?}");
    (coordinator, gpu, cpu)
}

fn short_request(index: usize) -> Value {
    let mut body = request(index);
    body["max_tokens"] = json!(TOKENS);
    body
}

/// Greedy choices as the numerics allow: the same, until two tokens are about as likely.
#[track_caller]
fn assert_close(written: &Written, alone: &Written) {
    assert_eq!(written.tokens.len(), TOKENS as usize, "{}", written.text);
    for (mixed, cpu) in written.tokens.iter().zip(&alone.tokens) {
        let logprob = |token: &Value| token["logprob"].as_f64().expect("a log probability");
        if mixed["token"] != cpu["token"] {
            let top = cpu["top_logprobs"].as_array().expect("the likeliest");
            let other = top.iter().find(|t| t["token"] == mixed["token"]);
            let other = other.unwrap_or_else(|| panic!("{mixed} is not near {cpu}"));
            let margin = logprob(cpu) - logprob(other);
            assert!(margin < MARGIN_MAX, "{mixed} in place of {cpu}");
            return;
        }
        assert!((logprob(mixed) - logprob(cpu)).abs() < LOGPROB_MAX, "{mixed}, {cpu}");
    }
}

#[tokio::test]
async fn a_gpu_and_a_cpu_share_a_model_and_losing_either_loses_no_token() {
    let _machine = machine().await;
    let Some(adapter) = adapter() else { return };
    let alone = alone().await;
    let (coordinator, mut gpu, _cpu) = mixed("gpu-lost", &adapter).await;
    let answer = coordinator.api.post("/v1/chat/completions", &short_request(0)).await;
    assert_close(&Written::of(&answer.ok(), 0), &alone[0]);

    let mut events = coordinator.api.stream("/v1/chat/completions", &short_request(1)).await;
    let mut written = Written::nothing();
    stream_of(&mut events, &mut written, KILL_AFTER).await;
    let _spare = coordinator.worker("spare", mib_for(10));
    gpu.kill_9();
    for event in events.rest().await {
        written.add(&event);
    }
    assert!(events.done);
    assert_close(&written, &alone[1]);
}

#[tokio::test]
async fn a_gpu_takes_over_from_a_lost_cpu() {
    let _machine = machine().await;
    let Some(adapter) = adapter() else { return };
    let alone = alone().await;
    let coordinator = Coordinator::start("gpu-heir", &["--embedded", "ends"]).await;
    let mut few = coordinator.worker("few", mib_for(4));
    let _most = coordinator.worker("most", mib_for(27));
    coordinator.ready_over(2).await.assert_each_needed();
    let mut events = coordinator.api.stream("/v1/chat/completions", &short_request(5)).await;
    let mut written = Written::nothing();
    stream_of(&mut events, &mut written, KILL_AFTER).await;
    few.kill_9();
    let _gpu = coordinator.worker_with("gpu", mib_for(4), &["--gpu", &adapter]);
    for event in events.rest().await {
        written.add(&event);
    }
    assert!(events.done);
    assert_close(&written, &alone[5]);
}
