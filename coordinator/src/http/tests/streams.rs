//! Streams have OpenAI's shape, to the byte.

use super::*;

const HEAD: &str = r#"{"id":"chatcmpl-*","object":"chat.completion.chunk","created":*,"model":"m","system_fingerprint":"fp_test","choices":["#;

/// A chunk of a chat stream.
fn chunk(index: u32, delta: &str, finish_reason: &str, tail: &str) -> String {
    format!(
        r#"{HEAD}{{"index":{index},"delta":{delta},"logprobs":null,"finish_reason":{finish_reason}}}]{tail}}}"#
    )
}

#[tokio::test]
async fn a_chat_is_streamed_to_the_byte() {
    let tokens = [pieces(&["Hel", "lo", "▁wor", "ld"]), vec![END]].concat();
    let server = Server::start(vec![Play { cached_tokens: 5, ..says(&tokens) }]).await;
    let answer = server.chat(r#","stream":true,"stream_options":{"include_usage":true}"#).await;
    let usage = r#","usage":null"#;
    let expected = [
        chunk(0, r#"{"role":"assistant","content":""}"#, "null", usage),
        chunk(0, r#"{"content":"Hel"}"#, "null", usage),
        chunk(0, r#"{"content":"lo"}"#, "null", usage),
        chunk(0, r#"{"content":" wor"}"#, "null", usage),
        chunk(0, r#"{"content":"ld"}"#, "null", usage),
        chunk(0, "{}", r#""stop""#, usage),
        format!(
            r#"{HEAD}],"usage":{{"prompt_tokens":8,"completion_tokens":5,"total_tokens":13,"prompt_tokens_details":{{"cached_tokens":5}}}}}}"#
        ),
        "[DONE]".to_owned(),
    ];
    assert_eq!(answer.events(), expected);
    assert_eq!(answer.headers["cache-control"], "no-cache");
    assert_eq!(answer.headers["x-accel-buffering"], "no");
}

#[tokio::test]
async fn without_usage_no_chunk_speaks_of_it() {
    let server = Server::start(vec![says(&pieces(&["!", "!"]))]).await;
    let answer = server.chat(r#","stream":true,"max_tokens":2"#).await;
    let expected = [
        chunk(0, r#"{"role":"assistant","content":""}"#, "null", ""),
        chunk(0, r#"{"content":"!"}"#, "null", ""),
        chunk(0, r#"{"content":"!"}"#, "null", ""),
        chunk(0, "{}", r#""length""#, ""),
        "[DONE]".to_owned(),
    ];
    assert_eq!(answer.events(), expected);
}

#[tokio::test]
async fn a_stop_string_across_tokens_is_never_shown() {
    let tokens = pieces(&["Hel", "EN", "EN", "D", "lo"]);
    let server = Server::start(vec![says(&tokens), says(&tokens)]).await;
    let answer = server.chat(r#","stream":true,"stop":"END""#).await;
    let expected = [
        chunk(0, r#"{"role":"assistant","content":""}"#, "null", ""),
        chunk(0, r#"{"content":"Hel"}"#, "null", ""),
        chunk(0, r#"{"content":"EN"}"#, "null", ""),
        chunk(0, "{}", r#""stop""#, ""),
        "[DONE]".to_owned(),
    ];
    assert_eq!(answer.events(), expected);
    let whole = server.chat(r#","stop":["x","END"]"#).await.ok();
    assert_eq!(whole["choices"][0]["message"]["content"], "HelEN");
    assert_eq!(whole["usage"]["completion_tokens"], 4);
}

#[tokio::test]
async fn half_a_character_waits_for_its_other_half() {
    let tokens = [byte(0xc3), byte(0xa9), byte(0xf0), END];
    let server = Server::start(vec![says(&tokens)]).await;
    let answer = server.chat(r#","stream":true"#).await;
    let expected = [
        chunk(0, r#"{"role":"assistant","content":""}"#, "null", ""),
        chunk(0, r#"{"content":"é"}"#, "null", ""),
        chunk(0, r#"{"content":"�"}"#, "null", ""),
        chunk(0, "{}", r#""stop""#, ""),
        "[DONE]".to_owned(),
    ];
    assert_eq!(answer.events(), expected);
}

#[tokio::test]
async fn each_choice_begins_and_ends_by_itself() {
    let choices = [pieces(&["Hel", "lo"]), pieces(&["!", "D"])];
    let server = Server::start(vec![says_each(&[&choices[0], &choices[1]])]).await;
    let answer = server.chat(r#","stream":true,"n":2,"max_tokens":2"#).await;
    let events = answer.events();
    for (index, texts) in [(0, ["Hel", "lo"]), (1, ["!", "D"])] {
        let mine: Vec<&String> =
            events.iter().filter(|e| e.contains(&format!(r#""index":{index}"#))).collect();
        let text = |i: usize| chunk(index, &format!(r#"{{"content":"{}"}}"#, texts[i]), "null", "");
        let begin = chunk(index, r#"{"role":"assistant","content":""}"#, "null", "");
        let end = chunk(index, "{}", r#""length""#, "");
        assert_eq!(mine, [&begin, &text(0), &text(1), &end]);
    }
    assert_eq!(events.len(), 9);
    assert_eq!(events[8], "[DONE]");
}

#[tokio::test]
async fn a_failure_amid_a_stream_is_its_last_event() {
    let overflow = Then::Refuse(RequestError::Numeric { position: 9 });
    let server = Server::start(vec![
        Play { then: overflow, ..says(&pieces(&["Hel"])) },
        Play { then: Then::Stop, ..says(&pieces(&["Hel"])) },
    ])
    .await;
    let begin = [
        chunk(0, r#"{"role":"assistant","content":""}"#, "null", ""),
        chunk(0, r#"{"content":"Hel"}"#, "null", ""),
    ];
    for code in ["numeric_overflow", "shutting_down"] {
        let events = server.chat(r#","stream":true"#).await.events();
        assert_eq!(events[..2], begin);
        let last: Value = serde_json::from_str(&events[2]).unwrap();
        assert_eq!(
            (&last["error"]["type"], &last["error"]["code"]),
            (&"server_error".into(), &code.into())
        );
        assert_eq!(events.len(), 3);
    }
}

#[tokio::test]
async fn a_completion_is_streamed_to_the_byte() {
    let server = Server::start(vec![says(&pieces(&["Hel", "lo"]))]).await;
    let fields = r#""prompt":"hi","max_tokens":2,"stream":true,"echo":true,
        "stream_options":{"include_usage":true}"#;
    let chunk = |text: &str, finish_reason: &str| {
        format!(
            r#"{{"id":"cmpl-*","object":"text_completion","created":*,"model":"m","choices":[{{"text":"{text}","index":0,"logprobs":null,"finish_reason":{finish_reason}}}],"usage":null,"system_fingerprint":"fp_test"}}"#
        )
    };
    let usage = r#"{"id":"cmpl-*","object":"text_completion","created":*,"model":"m","choices":[],"usage":{"prompt_tokens":2,"completion_tokens":2,"total_tokens":4,"prompt_tokens_details":{"cached_tokens":0}},"system_fingerprint":"fp_test"}"#;
    let expected = [
        chunk("hi", "null"),
        chunk("Hel", "null"),
        chunk("lo", "null"),
        chunk("", r#""length""#),
        usage.to_owned(),
        "[DONE]".to_owned(),
    ];
    assert_eq!(server.complete(fields).await.events(), expected);
}

#[tokio::test]
async fn generate_streams_little_around_the_text() {
    let tokens = [pieces(&["Hel", "lo"]), vec![END]].concat();
    let server = Server::start(vec![says(&tokens)]).await;
    let answer = server.post("/v1/generate", r#"{"prompt":"hi","stream":true}"#).await;
    let expected = [
        r#"{"text":"Hel"}"#,
        r#"{"text":"lo"}"#,
        r#"{"text":"","finish_reason":"stop","usage":{"prompt_tokens":2,"completion_tokens":3,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":0}}}"#,
        "[DONE]",
    ];
    assert_eq!(answer.events(), expected);
}
