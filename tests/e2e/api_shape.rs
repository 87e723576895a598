//! The endpoints as an application sees them, on one coordinator with its embedded worker.

use serde_json::{Value, json};

use crate::harness::{Coordinator, LAYERS, MODEL, Written, alone, machine, request};

/// The prompt of the golden case `raw1_capital` and what canonical-1 makes of it, greedily.
fn golden() -> (Value, Vec<u32>) {
    let golden = tests::golden("canonical1_smollm2.json");
    let case = &golden["cases"][0];
    assert_eq!(case["id"], "raw1_capital");
    let greedy = case["canonical-1"]["greedy_32"].as_array().expect("token ids");
    let greedy = greedy.iter().map(|id| id.as_u64().expect("an id") as u32).collect();
    (case["prompt_tokens"].clone(), greedy)
}

/// The text of token ids, by the tokenizer in the model's file.
fn text_of(ids: &[u32]) -> String {
    let bytes = std::fs::read(tests::required_model()).expect("the model's file");
    let gguf = model::Gguf::parse(&[&bytes]).expect("a GGUF file");
    let tokens: Vec<&str> = gguf.get_str_array("tokenizer.ggml.tokens").expect("tokens").collect();
    let mut bytes = Vec::new();
    for id in ids {
        for character in tokens[*id as usize].chars() {
            bytes.push(byte_of(character));
        }
    }
    String::from_utf8(bytes).expect("whole characters")
}

/// Byte-level BPE spells each byte as a printable character: most as themselves, the others
/// as the characters from U+0100 on, in their order (GPT-2's `bytes_to_unicode`).
fn byte_of(character: char) -> u8 {
    let as_itself = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let code = u32::from(character);
    if let Ok(byte) = u8::try_from(code) {
        assert!(as_itself(byte), "{character:?} spells no byte");
        return byte;
    }
    let others: Vec<u8> = (0..=255).filter(|b| !as_itself(*b)).collect();
    others[(code - 256) as usize]
}

#[tokio::test]
async fn the_endpoints_answer_as_the_openai_api_does() {
    let _machine = machine().await;
    let coordinator = Coordinator::start("api", &[]).await;
    let api = &coordinator.api;
    assert_eq!(api.get("/healthz").await.status, 200);
    coordinator.ready().await;

    let models = api.get("/v1/models").await.ok();
    assert_eq!(models["object"], "list");
    assert_eq!(models["data"][0]["id"], MODEL);
    assert_eq!(models["data"][0]["object"], "model");
    assert_eq!(api.get(&format!("/v1/models/{MODEL}")).await.ok()["id"], MODEL);

    let fleet = coordinator.fleet().await;
    let seen = &fleet.0["models"][0];
    assert_eq!((&seen["name"], &seen["layers"]), (&json!(MODEL), &json!(LAYERS)));
    assert_eq!(seen["covered"], true);
    assert_eq!(fleet.workers().len(), 1);
    assert_eq!(fleet.workers()[0]["kind"], "embedded");
    assert_eq!(fleet.workers()[0]["backend"], "cpu");
    assert!(fleet.workers()[0]["layer_tokens_per_s"].as_f64().is_some_and(|rate| rate > 0.0));

    // Greedy text is the golden's, from token ids and from the text that they stand for.
    let (prompt, greedy) = golden();
    let expected = text_of(&greedy);
    for prompt in [prompt, json!("The capital of France is")] {
        let body = json!({"model": MODEL, "prompt": prompt, "max_tokens": 32, "temperature": 0,
            "logprobs": 1});
        let answer = api.post("/v1/completions", &body).await.ok();
        assert_eq!(answer["object"], "text_completion");
        assert_eq!(answer["choices"][0]["text"], expected.as_str());
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        let counts = (&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]);
        assert_eq!(counts, (&json!(5), &json!(32)), "{}", answer["usage"]);
        let logprobs = &answer["choices"][0]["logprobs"];
        assert_eq!(logprobs["tokens"].as_array().map(Vec::len), Some(32));
    }
    let body = json!({"prompt": "The capital of France is", "max_new_tokens": 32,
        "temperature": 0});
    let answer = api.post("/v1/generate", &body).await.ok();
    assert_eq!(answer["text"], expected.as_str());
    assert_eq!(answer["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 32);
}

#[tokio::test]
async fn a_stream_says_what_the_whole_answer_says() {
    let _machine = machine().await;
    let alone = alone().await;
    let coordinator = Coordinator::start("stream", &[]).await;
    coordinator.ready().await;
    let mut body = request(3);
    body["stream_options"] = json!({"include_usage": true});
    let mut events = coordinator.api.stream("/v1/chat/completions", &body).await;
    let all = events.rest().await;
    assert!(events.done, "[DONE] ends it");
    let mut written = Written::nothing();
    let first = &all[0];
    assert_eq!(first["object"], "chat.completion.chunk");
    assert_eq!(first["choices"][0]["delta"]["role"], "assistant");
    for event in &all {
        assert_eq!(event["id"], first["id"], "one id in all chunks");
        written.add(event);
    }
    assert_eq!(written, alone[3]);
    let last = all.last().expect("an event");
    assert_eq!(last["choices"], json!([]), "the chunk with the usage has no choice");
    let usage = &last["usage"];
    let total = usage["prompt_tokens"].as_u64().zip(usage["completion_tokens"].as_u64());
    assert_eq!(usage["total_tokens"].as_u64(), total.map(|(a, b)| a + b), "{usage}");
    assert!(all[..all.len() - 1].iter().all(|event| event["usage"].is_null()));

    // Without being asked, a stream says nothing of usage.
    let mut events = coordinator.api.stream("/v1/chat/completions", &request(3)).await;
    assert!(events.rest().await.iter().all(|event| event.get("usage").is_none()));

    // A stop string ends the text before it.
    let text = &alone[3].text;
    let stop: String = text.chars().skip(4).take(5).collect();
    let mut body = request(3);
    body["stop"] = json!([stop]);
    let answer = coordinator.api.post("/v1/chat/completions", &body).await.ok();
    let written = Written::of(&answer, 0);
    assert_eq!(written.text, text.split(&stop).next().unwrap_or_default());
    assert_eq!(written.finish_reason, "stop");

    let body = json!({"prompt": "Once upon a time", "max_new_tokens": 12, "temperature": 0});
    let whole = coordinator.api.post("/v1/generate", &body).await.ok();
    let mut events = coordinator.api.stream("/v1/generate", &body).await;
    let all = events.rest().await;
    let text: String = all.iter().filter_map(|event| event["text"].as_str()).collect();
    assert_eq!(whole["text"], text.as_str());
    assert_eq!(all.last().expect("an event")["finish_reason"], "length");
}
