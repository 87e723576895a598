//! Whole answers: texts, finish reasons, usage, seeds, log probabilities.

use serde_json::json;

use super::*;

#[tokio::test]
async fn a_chat_is_answered() {
    let tokens = [pieces(&["Hel", "lo", "▁wor", "ld"]), vec![END]].concat();
    let mut server = Server::start(vec![Play { cached_tokens: 3, ..says(&tokens) }]).await;
    let answer = server.chat(r#","model":"m""#).await.ok();
    assert_eq!(
        answer,
        json!({
            "id": "chatcmpl-*",
            "object": "chat.completion",
            "created": "*",
            "model": "m",
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": "Hello world", "refusal": null},
                "logprobs": null,
                "finish_reason": "stop",
            }],
            "usage": {
                "prompt_tokens": 8,
                "completion_tokens": 5,
                "total_tokens": 13,
                "prompt_tokens_details": {"cached_tokens": 3},
            },
            "system_fingerprint": "fp_test",
        })
    );
    let Told::Submitted { submit, .. } = server.told().await else { panic!("a submission") };
    let prompt: Vec<u32> = "user:hi;".bytes().map(byte).collect();
    assert_eq!((submit.model.as_str(), submit.prompt), ("m", prompt));
    assert_eq!((submit.choices, submit.max_new_tokens), (1, CONTEXT - 8));
    let seconds = submit.timeout.as_secs_f64();
    assert!((290.0..=300.0).contains(&seconds), "{seconds} s of the default 300");
}

#[tokio::test]
async fn each_token_is_told_to_the_driver_and_the_last_one_ends_the_choice() {
    let mut server = Server::start(vec![says(&pieces(&["Hel", "lo", "!"]))]).await;
    let answer = server.chat(r#","max_tokens":3,"timeout":7"#).await.ok();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let Told::Submitted { request: mine, submit } = server.told().await else {
        panic!("a submission")
    };
    assert_eq!(submit.max_new_tokens, 3);
    assert!(submit.timeout.as_secs_f64() <= 7.0);
    for wanted in pieces(&["Hel", "lo"]) {
        let told = server.told().await;
        assert!(
            matches!(told, Told::Sampled { choice: 0, token, .. } if token == wanted),
            "{told:?}"
        );
    }
    let told = server.told().await;
    assert!(matches!(told, Told::Finished { choice: 0, request } if request == mine), "{told:?}");
}

#[tokio::test]
async fn choices_share_their_prompt_and_are_counted_together() {
    let choices = [pieces(&["Hel", "lo"]), vec![piece("!"), END], pieces(&["EN", "D"])];
    let mut server = Server::start(vec![says_each(&[&choices[0], &choices[1], &choices[2]])]).await;
    let answer = server.chat(r#","n":3,"max_tokens":2"#).await.ok();
    let told: Vec<_> = answer["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| {
            (c["index"].as_u64(), c["message"]["content"].as_str(), c["finish_reason"].as_str())
        })
        .collect();
    let choice = |i, text, finish| (Some(i), Some(text), Some(finish));
    assert_eq!(
        told,
        [choice(0, "Hello", "length"), choice(1, "!", "stop"), choice(2, "END", "length")]
    );
    assert_eq!(answer["usage"]["prompt_tokens"], 8);
    assert_eq!(answer["usage"]["completion_tokens"], 6);
    let Told::Submitted { submit, .. } = server.told().await else { panic!("a submission") };
    assert_eq!(submit.choices, 3);
}

#[tokio::test]
async fn a_seed_makes_the_answer_repeatable() {
    let flat = Play { choices: vec![vec![Row::Flat; 12]; 2], ..says(&[]) };
    let server = Server::start(vec![flat; 5]).await;
    let mut texts = Vec::new();
    for seed in [r#","seed":7"#, r#","seed":7"#, r#","seed":8"#, "", ""] {
        let fields =
            format!(r#""prompt":"hi","n":2,"max_tokens":12,"logit_bias":{{"{END}":-100}}{seed}"#);
        let answer = server.complete(&fields).await.ok();
        texts.push([0, 1].map(|i| answer["choices"][i]["text"].clone()));
    }
    assert_eq!(texts[0], texts[1], "the same seed");
    for (a, b) in [(0, 2), (0, 3), (3, 4)] {
        assert_ne!(texts[a], texts[b], "different seeds, or none");
    }
    assert_ne!(texts[0][0], texts[0][1], "two choices");
}

#[tokio::test]
async fn chat_logprobs_come_with_their_tokens() {
    let tokens = [pieces(&["Hel"]), vec![byte(0xc3), byte(0xa9), END]].concat();
    let server = Server::start(vec![says(&tokens), says(&tokens)]).await;
    let fields = r#","logprobs":true,"top_logprobs":2"#;
    let answer = server.chat(fields).await.ok();
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["refusal"], Value::Null);
    let content = logprobs["content"].as_array().unwrap().clone();
    let bytes: Vec<_> = content.iter().map(|t| t["bytes"].clone()).collect();
    assert_eq!(bytes, [json!([72, 101, 108]), json!([0xc3]), json!([0xa9])], "without the end");
    assert_eq!(content[0]["token"], "Hel");
    assert_eq!(content[1]["token"], "\u{fffd}");
    for token in &content {
        assert!(token["logprob"].as_f64().unwrap().abs() < 1e-3, "{token}");
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!((top.len(), &top[0]["bytes"]), (2, &token["bytes"]));
        let second = top[1]["logprob"].as_f64().unwrap();
        assert!((second + 50.0).abs() < 1e-3, "{token}");
    }

    let streamed = server.chat(&format!(r#"{fields},"stream":true"#)).await;
    let mut collected = Vec::new();
    for event in streamed.events() {
        let Ok(chunk) = serde_json::from_str::<api::ChatChunk>(&event.replace(":*", ":0")) else {
            continue;
        };
        let logprobs = chunk.choices.into_iter().filter_map(|c| c.logprobs);
        collected.extend(logprobs.flat_map(|l| l.content));
    }
    assert_eq!(serde_json::to_value(collected).unwrap(), Value::Array(content));
}

#[tokio::test]
async fn tokens_of_a_stop_string_have_no_logprobs() {
    let server = Server::start(vec![says(&pieces(&["Hel", "EN", "D"]))]).await;
    let answer = server.chat(r#","logprobs":true,"stop":"END""#).await.ok();
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let tokens: Vec<_> = content.iter().map(|t| t["token"].as_str().unwrap()).collect();
    assert_eq!(tokens, ["Hel"]);
    assert_eq!(content[0]["top_logprobs"], json!([]));
}

#[tokio::test]
async fn a_full_kv_cache_ends_a_choice_at_its_length() {
    let full = RequestError::TooLong { positions: 20, limit: 19, why: "the cache".into() };
    let play = Play { then: Then::Refuse(full), ..says(&pieces(&["Hel", "EN"])) };
    let server = Server::start(vec![play]).await;
    let answer = server.chat(r#","stop":"END""#).await.ok();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["choices"][0]["message"]["content"], "HelEN");
    assert_eq!(answer["usage"]["completion_tokens"], 2);
}

#[tokio::test]
async fn generate_answers_three_fields() {
    let tokens = [pieces(&["Hel", "lo"]), vec![END]].concat();
    let mut server = Server::start(vec![says(&tokens)]).await;
    let answer = server.post("/v1/generate", r#"{"prompt":"hi","max_new_tokens":9}"#).await;
    assert_eq!(
        answer.json(),
        json!({
            "text": "Hello",
            "finish_reason": "stop",
            "usage": {
                "prompt_tokens": 2,
                "completion_tokens": 3,
                "total_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
        })
    );
    let Told::Submitted { submit, .. } = server.told().await else { panic!("a submission") };
    assert_eq!((submit.prompt, submit.max_new_tokens), (vec![byte(b'h'), byte(b'i')], 9));
}
