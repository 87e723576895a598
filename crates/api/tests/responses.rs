//! Answers have OpenAI's shape to the letter.

use api::*;
use serde_json::json;

#[test]
fn errors() {
    let invalid = ChatRequest::parse(br#"{"messages":[]}"#).unwrap_err();
    let body = ErrorBody { error: invalid.into_detail() };
    assert_eq!(
        serde_json::to_value(&body).unwrap(),
        json!({"error": {
            "message": "Invalid 'messages': empty array. Expected one of length 1 at least.",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "empty_array",
        }})
    );
    let body = ErrorBody { error: Invalid::body("x").into_detail() };
    let text =
        r#"{"error":{"message":"x","type":"invalid_request_error","param":null,"code":null}}"#;
    assert_eq!(serde_json::to_string(&body).unwrap(), text);
    assert_eq!(serde_json::from_str::<ErrorBody>(text).unwrap(), body);
}

#[test]
fn chat_chunks() {
    let chunk = |delta, finish_reason, usage| ChatChunk {
        id: "chatcmpl-1".into(),
        object: "chat.completion.chunk".into(),
        created: 5,
        model: "m".into(),
        system_fingerprint: Some("fp_1".into()),
        choices: vec![ChatChunkChoice { index: 0, delta, logprobs: None, finish_reason }],
        usage,
    };
    let text = |c: &ChatChunk| serde_json::to_string(c).unwrap();
    let head = r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":5,"model":"m","system_fingerprint":"fp_1","choices":[{"index":0,"#;
    let first = ChatDelta { role: Some(Role::Assistant), content: Some(String::new()) };
    assert_eq!(
        text(&chunk(first, None, None)),
        format!(
            r#"{head}"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}]}}"#
        )
    );
    let last = chunk(ChatDelta::default(), Some(FinishReason::Length), Some(None));
    assert_eq!(
        text(&last),
        format!(r#"{head}"delta":{{}},"logprobs":null,"finish_reason":"length"}}],"usage":null}}"#)
    );
    let usage = ChatChunk { choices: vec![], usage: Some(Some(Usage::new(3, 2, 1))), ..last };
    assert!(text(&usage).ends_with(
        r#""choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":1}}}"#
    ));
    assert_eq!(serde_json::from_str::<ChatChunk>(&text(&usage)).unwrap(), usage);
}
