//! Requests are read as leniently as OpenAI reads them, and refused as clearly.

use std::collections::BTreeMap;

use api::{
    ChatMessage, ChatRequest, CompletionRequest, GenerateRequest, Invalid, Options, Parallelism,
    Prompt, Role, StreamOptions, WeftOptions,
};

/// A chat request with these fields besides its messages.
fn chat(fields: &str) -> Result<ChatRequest, Invalid> {
    let comma = if fields.is_empty() { "" } else { "," };
    let body = format!(r#"{{"messages":[{{"role":"user","content":"hi"}}]{comma}{fields}}}"#);
    ChatRequest::parse(body.as_bytes())
}

fn completion(fields: &str) -> Result<CompletionRequest, Invalid> {
    CompletionRequest::parse(format!("{{{fields}}}").as_bytes())
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Invalid>, param: &str, code: &str, says: &str) {
    let error = result.expect_err("it should be refused");
    assert_eq!(error.param.as_deref().unwrap_or(""), param, "{error}");
    assert_eq!(error.code.unwrap_or(""), code, "{error}");
    assert!(error.message.contains(says), "{error} does not say {says:?}");
}

#[test]
fn the_least_request_is_enough_and_null_is_absent() {
    let least = chat("").unwrap();
    assert_eq!(least.messages, [ChatMessage { role: Role::User, content: "hi".into() }]);
    assert_eq!((least.model.as_deref(), least.stream, least.logprobs), (None, false, false));
    assert_eq!(least.options, Options::default());
    let nulls = r#""model":null,"stop":null,"n":null,"seed":null,"temperature":null,
        "logit_bias":null,"stream":null,"stream_options":null,"tools":null,"max_tokens":null,
        "response_format":null,"top_logprobs":null,"audio":null,"top_k":null"#;
    assert_eq!(chat(nulls).unwrap(), least);
}

#[test]
fn unknown_fields_are_ignored() {
    let extra = r#""user":"u","metadata":{"a":"b"},"store":true,"service_tier":"auto",
        "parallel_tool_calls":true,"no_such_field":[1,{"x":null}]"#;
    assert_eq!(chat(extra).unwrap(), chat("").unwrap());
}

#[test]
fn every_option_is_read() {
    let read = chat(
        r#""model":"m","max_completion_tokens":7,"n":3,"stop":["a","b"],"temperature":1,
        "top_p":0.5,"top_k":40,"min_p":0.05,"seed":-1,"frequency_penalty":0.25,
        "presence_penalty":-0.5,"repetition_penalty":1.5,"logit_bias":{"5":-100,"7":2.5},
        "timeout":1.5,"weft":{"nodes":2,"trust":"trusted-only","parallelism":"layer"},
        "logprobs":true,"top_logprobs":2,"stream":true,
        "stream_options":{"include_usage":true,"include_obfuscation":false}"#,
    );
    let expected = ChatRequest {
        model: Some("m".into()),
        messages: vec![ChatMessage { role: Role::User, content: "hi".into() }],
        options: Options {
            max_tokens: Some(7),
            n: Some(3),
            stop: vec!["a".into(), "b".into()],
            temperature: Some(1.0),
            top_p: Some(0.5),
            top_k: Some(40),
            min_p: Some(0.05),
            seed: Some(u64::MAX),
            frequency_penalty: Some(0.25),
            presence_penalty: Some(-0.5),
            repetition_penalty: Some(1.5),
            logit_bias: BTreeMap::from([(5, -100.0), (7, 2.5)]),
            timeout: Some(1.5),
            weft: WeftOptions {
                nodes: Some(2),
                trusted_only: true,
                parallelism: Parallelism::Pipeline,
            },
        },
        logprobs: true,
        top_logprobs: Some(2),
        stream: true,
        stream_options: StreamOptions { include_usage: true },
    };
    assert_eq!(read.unwrap(), expected);
}

#[test]
fn a_request_that_a_client_writes_is_read_back_the_same() {
    let body = r#""max_tokens":9,"stop":"x","seed":18446744073709551615,"logprobs":true,
        "top_logprobs":0,"stream":true,"stream_options":{"include_usage":true},"min_p":0.1,
        "weft":{"nodes":3,"trust":"trusted-only","parallelism":"hybrid"}"#;
    let request = chat(body).unwrap();
    let written = serde_json::to_vec(&request).unwrap();
    assert_eq!(ChatRequest::parse(&written).unwrap(), request);

    let request = completion(r#""prompt":[[1,2],[3]],"n":2,"logprobs":3,"top_k":-1"#).unwrap();
    let written = serde_json::to_vec(&request).unwrap();
    assert_eq!(CompletionRequest::parse(&written).unwrap(), request);

    let request = GenerateRequest::parse(br#"{"prompt":"p","max_new_tokens":4}"#).unwrap();
    let written = serde_json::to_vec(&request).unwrap();
    assert_eq!(GenerateRequest::parse(&written).unwrap(), request);
}

#[test]
fn what_is_asked_of_the_fleet_is_read_or_refused_by_name() {
    let weft = |fields: &str| chat(&format!(r#""weft":{{{fields}}}"#)).map(|r| r.options.weft);
    assert_eq!(weft("").unwrap(), WeftOptions::default());
    assert_eq!(weft(r#""trust":"any","nodes":null"#).unwrap(), WeftOptions::default());
    let kinds = ["auto", "none", "pipeline", "layer", "tensor", "hybrid"];
    let read = kinds.map(|kind| weft(&format!(r#""parallelism":"{kind}""#)).unwrap().parallelism);
    use Parallelism::{Auto, Hybrid, None, Pipeline, Tensor};
    assert_eq!(read, [Auto, None, Pipeline, Pipeline, Tensor, Hybrid]);
    refused(chat(r#""weft":3"#), "weft", "invalid_type", "expected an object");
    refused(weft(r#""nodes":0"#), "weft.nodes", "integer_below_min_value", ">= 1");
    refused(weft(r#""nodes":"all""#), "weft.nodes", "invalid_type", "an integer");
    refused(weft(r#""trust":"me""#), "weft.trust", "invalid_value", "'trusted-only'");
    refused(weft(r#""parallelism":"ring""#), "weft.parallelism", "invalid_value", "'hybrid'");
    refused(weft(r#""node":1"#), "weft.node", "invalid_value", "no such option");
}

#[test]
fn a_stop_string_may_stand_alone() {
    assert_eq!(chat(r#""stop":"END""#).unwrap().options.stop, ["END"]);
    assert_eq!(chat(r#""stop":[]"#).unwrap().options.stop, Vec::<String>::new());
    refused(chat(r#""stop":5"#), "stop", "invalid_type", "but got an integer");
    refused(chat(r#""stop":["a",5]"#), "stop[1]", "invalid_type", "expected a string");
    refused(chat(r#""stop":"""#), "stop[0]", "empty_string", "empty");
    let many = format!(r#""stop":{:?}"#, ["x"; 17]);
    refused(chat(&many), "stop", "array_above_max_length", "16");
    let long = format!(r#""stop":{:?}"#, "x".repeat(1025));
    refused(chat(&long), "stop[0]", "string_above_max_length", "1025");
}

#[test]
fn both_names_of_the_length_are_taken() {
    assert_eq!(chat(r#""max_tokens":5"#).unwrap().options.max_tokens, Some(5));
    assert_eq!(chat(r#""max_completion_tokens":5"#).unwrap().options.max_tokens, Some(5));
    let both = r#""max_tokens":5,"max_completion_tokens":5"#;
    assert_eq!(chat(both).unwrap().options.max_tokens, Some(5));
    let contradiction = r#""max_tokens":5,"max_completion_tokens":6"#;
    refused(chat(contradiction), "max_tokens", "invalid_value", "set one of them");
}

#[test]
fn content_may_come_in_parts() {
    let parts = br#"{"messages":[
        {"role":"developer","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
        {"role":"assistant","content":[{"type":"refusal","refusal":"no"}],"tool_calls":[]}]}"#;
    let read = ChatRequest::parse(parts).unwrap().messages;
    assert_eq!(read[0], ChatMessage { role: Role::System, content: "a\nb".into() });
    assert_eq!(read[1], ChatMessage { role: Role::Assistant, content: "no".into() });
}

#[test]
fn bad_messages_are_named() {
    let case = |messages: &str, param: &str, code: &str, says: &str| {
        let body = format!(r#"{{"messages":{messages}}}"#);
        refused(ChatRequest::parse(body.as_bytes()), param, code, says);
    };
    refused(ChatRequest::parse(b"{}"), "messages", "missing_required_parameter", "messages");
    case("[]", "messages", "empty_array", "empty");
    case("\"hi\"", "messages", "invalid_type", "expected an array");
    case("[5]", "messages[0]", "invalid_type", "expected an object");
    case(r#"[{"content":"x"}]"#, "messages[0].role", "missing_required_parameter", "role");
    let ok = r#"{"role":"user","content":"x"}"#;
    let case_2 = |message: &str, param: &str, code: &str, says: &str| {
        case(&format!("[{ok},{message}]"), param, code, says);
    };
    let content = "messages[1].content";
    case_2(r#"{"role":"king","content":"x"}"#, "messages[1].role", "invalid_value", "'user'");
    case_2(r#"{"role":"tool","content":"x"}"#, "messages[1].role", "invalid_value", "tools");
    case_2(r#"{"role":"user"}"#, content, "missing_required_parameter", "content");
    case_2(r#"{"role":"user","content":7}"#, content, "invalid_type", "a string");
    case_2(r#"{"role":"user","content":[]}"#, content, "empty_array", "empty");
    case_2(
        r#"{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}"#,
        "messages[1].content[0].type",
        "invalid_value",
        "'text'",
    );
    case_2(
        r#"{"role":"assistant","content":"","tool_calls":[{"id":"c"}]}"#,
        "messages[1].tool_calls",
        "unsupported_parameter",
        "tools",
    );
}

#[test]
fn what_would_change_the_answer_is_not_ignored() {
    let unsupported = |fields: &str, param: &str| {
        refused(chat(fields), param, "unsupported_parameter", param);
    };
    unsupported(r#""tools":[{"type":"function"}]"#, "tools");
    unsupported(r#""tools":[{"type":"function"}],"tool_choice":"auto""#, "tools");
    unsupported(r#""tools":[{"type":"function"}],"tool_choice":"required""#, "tool_choice");
    unsupported(r#""functions":[{"name":"f"}]"#, "functions");
    unsupported(r#""response_format":{"type":"json_schema"}"#, "response_format");
    unsupported(r#""response_format":{"type":"json_object"}"#, "response_format");
    unsupported(r#""modalities":["text","audio"]"#, "modalities");
    unsupported(r#""audio":{"voice":"a"}"#, "audio");
    unsupported(r#""web_search_options":{}"#, "web_search_options");
    let same = r#""tools":[{"type":"function"}],"tool_choice":"none","modalities":["text"],
        "response_format":{"type":"text"}"#;
    assert_eq!(chat(same).unwrap(), chat("").unwrap());

    let unsupported = |fields: &str, param: &str| {
        let fields = format!(r#""prompt":"p",{fields}"#);
        refused(completion(&fields), param, "unsupported_parameter", param);
    };
    unsupported(r#""suffix":"s""#, "suffix");
    unsupported(r#""best_of":2"#, "best_of");
    unsupported(r#""echo":true,"logprobs":1"#, "echo");
    assert!(completion(r#""prompt":"p","best_of":2,"n":2,"suffix":"","echo":true"#).is_ok());
}

#[test]
fn types_and_ranges_are_named() {
    refused(chat(r#""temperature":"hot""#), "temperature", "invalid_type", "expected a decimal");
    refused(chat(r#""n":1.5"#), "n", "invalid_type", "but got a decimal");
    refused(chat(r#""n":0"#), "n", "integer_below_min_value", ">= 1, but got 0");
    refused(chat(r#""n":17"#), "n", "integer_above_max_value", "<= 16, but got 17");
    refused(chat(r#""max_tokens":-3"#), "max_tokens", "integer_below_min_value", "-3");
    refused(chat(r#""stream":"yes""#), "stream", "invalid_type", "expected a boolean");
    refused(chat(r#""seed":1e40"#), "seed", "invalid_type", "64 bits");
    refused(chat(r#""timeout":0"#), "timeout", "decimal_below_min_value", "0.001");
    refused(chat(r#""timeout":9e9"#), "timeout", "decimal_above_max_value", "3600");
    refused(chat(r#""top_k":-2"#), "top_k", "invalid_type", "0 or more");
    refused(chat(r#""logit_bias":{"a":1}"#), "logit_bias", "invalid_value", "token ids");
    refused(chat(r#""logit_bias":{"1":"x"}"#), "logit_bias", "invalid_value", "token 1");
    refused(chat(r#""top_logprobs":2"#), "top_logprobs", "invalid_value", "'logprobs'");
    let too_many = r#""logprobs":true,"top_logprobs":21"#;
    refused(chat(too_many), "top_logprobs", "integer_above_max_value", "20");
    let usage = r#""stream_options":{"include_usage":true}"#;
    refused(chat(usage), "stream_options", "invalid_value", "'stream' is true");
    let usage = r#""stream":true,"stream_options":{"include_usage":1}"#;
    refused(chat(usage), "stream_options.include_usage", "invalid_type", "boolean");
}

#[test]
fn prompts_come_in_four_shapes() {
    let prompts = |json: &str| completion(&format!(r#""prompt":{json}"#)).unwrap().prompts;
    let text = |s: &str| Prompt::Text(s.into());
    assert_eq!(prompts(r#""a""#), [text("a")]);
    assert_eq!(prompts(r#"["a","b"]"#), [text("a"), text("b")]);
    assert_eq!(prompts("[1,2]"), [Prompt::Tokens(vec![1, 2])]);
    assert_eq!(prompts("[[1],[2,3]]"), [Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]);

    let case = |json: &str, param: &str, code: &str| {
        refused(completion(&format!(r#""prompt":{json}"#)), param, code, param);
    };
    refused(completion(""), "prompt", "missing_required_parameter", "prompt");
    case("[]", "prompt", "empty_array");
    case("{}", "prompt", "invalid_type");
    case("[1,\"a\"]", "prompt[1]", "invalid_type");
    case("[1,-2]", "prompt[1]", "invalid_type");
    case("[\"a\",[]]", "prompt[1]", "empty_array");
    case("[[1,4294967296]]", "prompt[0][1]", "invalid_type");
    let many = format!(r#"{:?}"#, ["x"; 17]);
    case(&many, "prompt", "array_above_max_length");
    refused(completion(r#""prompt":["a","b"],"n":9"#), "n", "invalid_value", "16 in all");
}

#[test]
fn generate_gives_one_choice() {
    let parse = |body: &str| GenerateRequest::parse(body.as_bytes());
    let read = parse(r#"{"prompt":"p"}"#).unwrap();
    let short = parse(r#"{"prompt":"p","max_new_tokens":3}"#).unwrap();
    assert_eq!((read.options.max_tokens, short.options.max_tokens), (None, Some(3)));
    let one = parse(r#"{"prompt":"p","n":1,"logprobs":false}"#).unwrap();
    assert_eq!((one.options.choices(), one.prompt), (1, read.prompt));
    refused(parse(r#"{"prompt":"p","n":2}"#), "n", "unsupported_parameter", "/v1/completions");
    refused(parse(r#"{"prompt":"p","logprobs":1}"#), "logprobs", "unsupported_parameter", "one");
    refused(parse("{}"), "prompt", "missing_required_parameter", "prompt");
}

#[test]
fn broken_bodies_say_where() {
    let case = |body: &[u8], says: &str| refused(ChatRequest::parse(body), "", "", says);
    case(b"", "line 1 column 0");
    case(b"{\"messages\": [\n  {\"role\" \"user\"}]}", "line 2 column");
    case(b"[1]", "must be a JSON object, but it is an array");
    case(b"{\"a\":\"\xff\"}", "line 1");
    case(b"{} x", "trailing characters");
    case(b"{\"temperature\":1e999}", "number out of range");
    let deep = [b"{\"a\":".as_slice(), &[b'['; 100_000]].concat();
    case(&deep, "recursion limit exceeded");
}
