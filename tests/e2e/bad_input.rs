//! What is wrong is refused with a clear error, and hurts nobody else.

use std::path::Path;

use model::testing::{Entry, TinyModel};
use serde_json::json;

use crate::harness::{Coordinator, MODEL, Scratch, Written, alone, machine, request};

/// Bytes of a request that no server need read.
const OVERSIZED_BYTES: u64 = 1 << 40;

#[tokio::test]
async fn bad_requests_are_refused_and_good_ones_still_served() {
    let _machine = machine().await;
    let alone = alone().await;
    let coordinator = Coordinator::start("bad", &[]).await;
    coordinator.ready().await;
    let api = &coordinator.api;
    let chat = "/v1/chat/completions";

    for bytes in [&b"{\"model\": "[..], b"", b"[1, 2]", b"\xff\xfe", &b"{\"a\":".repeat(100_000)] {
        let answer = api.post_bytes(chat, bytes.to_vec()).await;
        assert_eq!(answer.status, 400, "{}", answer.text);
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    }
    let answer = coordinator.announce(chat, OVERSIZED_BYTES).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");

    let mut unknown = request(0);
    unknown["model"] = json!("gpt-17");
    let error = api.post(chat, &unknown).await.error(404, "model_not_found");
    assert!(error["message"].as_str().is_some_and(|m| m.contains("gpt-17")), "{error}");

    let long = json!({"model": MODEL, "prompt": vec![504; 9000], "max_tokens": 1});
    let error = api.post("/v1/completions", &long).await.error(400, "context_length_exceeded");
    let message = error["message"].as_str().unwrap_or_default();
    assert!(message.contains("9000") && message.contains("8192"), "it has the numbers: {message}");

    let no_token = json!({"model": MODEL, "prompt": [49_152], "max_tokens": 1});
    assert_eq!(api.post("/v1/completions", &no_token).await.status, 400);
    for (field, value) in [
        ("temperature", json!(-1)),
        ("temperature", json!("hot")),
        ("top_p", json!(1.5)),
        ("n", json!(0)),
        ("n", json!(1000)),
        ("max_tokens", json!(-5)),
        ("messages", json!([])),
        ("messages", json!([{"role": "alien", "content": "hello"}])),
        ("stop", json!([1])),
        ("timeout", json!(-1)),
    ] {
        let mut body = request(0);
        body[field] = value.clone();
        let answer = api.post(chat, &body).await;
        assert_eq!(answer.status, 400, "{field} = {value}: {}", answer.text);
        let error = &answer.json()["error"];
        let param = error["param"].as_str().unwrap_or_default();
        assert!(param.starts_with(field), "{field} = {value}: {error}");
    }
    assert_eq!(api.get("/v1/nothing").await.status, 404);
    assert_eq!(api.get(chat).await.status, 405);

    let answer = api.post(chat, &request(0)).await;
    assert_eq!(Written::of(&answer.ok(), 0), alone[0], "nobody else is hurt");
    assert_eq!(coordinator.fleet().await.sessions().len(), 0);
}

/// `coordinator serve --model FILE` must end with an error that names the file and says this.
async fn refused(file: &Path, says: &str) {
    let mut process = Coordinator::start_bare(&[], file);
    let status = process.ended().await;
    assert_eq!(status.code(), Some(1));
    let name = file.file_name().and_then(|name| name.to_str()).expect("a name");
    let error = process.line_with("error:").await;
    assert!(error.contains(name) && error.contains(says), "{error}");
}

#[tokio::test]
async fn files_that_cannot_be_run_are_refused_before_anything_is_loaded() {
    let _machine = machine().await;
    let scratch = Scratch::new("files");
    let write = |name: &str, bytes: &[u8]| {
        let path = scratch.path(name);
        std::fs::write(&path, bytes).expect("a file");
        path
    };
    let real = std::fs::read(tests::required_model()).expect("the model's file");
    refused(&write("truncated.gguf", &real[..real.len() / 2]), "").await;
    refused(&write("header.gguf", &real[..100_000]), "").await;
    refused(&write("empty.gguf", b""), "").await;
    refused(&write("page.gguf", b"<!DOCTYPE html><title>not found</title>"), "GGUF").await;

    let mut tiny = TinyModel::llama(1).writer();
    tiny.set("general.architecture", Entry::Str("mamba".to_owned()));
    refused(&write("mamba.gguf", &tiny.to_bytes()), "mamba").await;
    let missing = scratch.path("missing.gguf");
    refused(&missing, "").await;
}
