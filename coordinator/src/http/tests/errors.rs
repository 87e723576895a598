//! Every mistake has its status, its code and its parameter.

use scheduler::Doing;

use super::*;

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

#[tokio::test]
async fn bad_requests_are_refused_by_name() {
    let server = Server::start(Vec::new()).await;
    let long = "x".repeat(CONTEXT as usize);
    let cases = [
        ("/v1/chat/completions", "{\n \"messages\": [,]}".into(), None, None, "line 2 column"),
        (
            "/v1/chat/completions",
            "{}".into(),
            Some("messages"),
            Some("missing_required_parameter"),
            "messages",
        ),
        (
            "/v1/chat/completions",
            r#"{"messages":[{"role":"user","content":"refuse"}]}"#.into(),
            Some("messages"),
            Some("invalid_value"),
            "no",
        ),
        (
            "/v1/chat/completions",
            format!(r#"{{"messages":[{{"role":"user","content":"{long}"}}]}}"#),
            Some("messages"),
            Some("context_length_exceeded"),
            "maximum context length is 64 tokens, but your prompt has 70 tokens",
        ),
        (
            "/v1/completions",
            r#"{"prompt":"abcd","max_tokens":61}"#.into(),
            Some("prompt"),
            Some("context_length_exceeded"),
            "you requested 65 tokens (4 in the prompt, 61 in the completion)",
        ),
        (
            "/v1/completions",
            r#"{"prompt":"a","temperature":2.5}"#.into(),
            Some("temperature"),
            Some("invalid_value"),
            "2.5",
        ),
        (
            "/v1/completions",
            r#"{"prompt":"a","logit_bias":{"999":1}}"#.into(),
            Some("logit_bias"),
            Some("invalid_value"),
            "999",
        ),
        (
            "/v1/completions",
            r#"{"prompt":[5,266]}"#.into(),
            Some("prompt"),
            Some("invalid_value"),
            "266",
        ),
        (
            "/v1/completions",
            r#"{"prompt":""}"#.into(),
            Some("prompt"),
            Some("empty_prompt"),
            "empty",
        ),
        (
            "/v1/generate",
            r#"{"prompt":["a"]}"#.into(),
            Some("prompt[0]"),
            Some("invalid_type"),
            "token id",
        ),
        (
            "/v1/generate",
            r#"{"prompt":"a","stream":1}"#.into(),
            Some("stream"),
            Some("invalid_type"),
            "boolean",
        ),
    ];
    for (path, body, param, code, says) in cases {
        for streamed in [false, true] {
            let body = match streamed {
                true if body.contains("stream") => continue,
                true => body.replacen('{', "{\"stream\":true,", 1).replace(",}", "}"),
                false => body.clone(),
            };
            let message = server.post(path, body).await.refused(400, INVALID, param, code);
            assert!(message.contains(says), "{message:?} does not say {says:?}");
        }
    }
}

#[tokio::test]
async fn the_longest_that_fits_is_let_in() {
    let fits = Play { then: Then::Stop, ..says(&[END]) };
    let server = Server::start(vec![fits.clone(), fits]).await;
    server.complete(r#""prompt":"abcd","max_tokens":60"#).await.ok();
    let longest = "x".repeat(CONTEXT as usize - 1);
    server.complete(&format!(r#""prompt":"{longest}""#)).await.ok();
}

#[tokio::test]
async fn unknown_models_paths_and_methods() {
    let server = Server::start(Vec::new()).await;
    let answer = server.chat(r#","model":"gpt-9""#).await;
    let message = answer.refused(404, INVALID, Some("model"), Some("model_not_found"));
    assert!(message.contains("gpt-9") && message.contains("org/other"), "{message}");
    let answer = server.get("/v1/models/none").await;
    answer.refused(404, INVALID, Some("model"), Some("model_not_found"));
    let message =
        server.get("/v1/assistants").await.refused(404, INVALID, None, Some("unknown_url"));
    assert!(message.contains("GET /v1/assistants"), "{message}");
    let answer = server.get("/v1/chat/completions").await;
    answer.refused(405, INVALID, None, Some("method_not_allowed"));
    assert_eq!(answer.headers["allow"], "POST");
}

#[tokio::test]
async fn only_json_of_bounded_size_is_read() {
    let server = Server::start(vec![says(&[END])]).await;
    let url = format!("http://{}/v1/completions", server.address);
    let body = r#"{"prompt":"a"}"#;
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp"] {
        let request = server.client.post(&url).header("content-type", kind).body(body);
        let answer = server.send(request).await;
        answer.refused(415, INVALID, None, Some("unsupported_content_type"));
    }
    let kind = "Application/JSON; charset=utf-8";
    server.send(server.client.post(&url).header("content-type", kind).body(body)).await.ok();

    let deep = "[".repeat(1 << 20);
    let message = server.post("/v1/completions", deep).await.refused(400, INVALID, None, None);
    assert!(message.contains("recursion limit"), "{message}");
}

#[tokio::test]
async fn a_body_past_its_bound_is_refused_by_its_length_and_by_its_bytes() {
    use axum::http::Request;

    let max = super::super::body::BODY_BYTES_MAX;
    for (bytes, announced) in [(0, max + 1), (max + 1, 0)] {
        let mut request = Request::post("/").header("content-type", "application/json");
        if announced > 0 {
            request = request.header("content-length", announced);
        }
        let request = request.body(vec![b' '; bytes].into()).unwrap();
        let failure = super::super::body::read_json(request).await.unwrap_err();
        assert_eq!(failure.status, 413);
        assert!(failure.detail.message.contains(&max.to_string()), "{:?}", failure.detail);
    }
    let request = Request::post("/").header("content-type", "application/json");
    let request = request.body(vec![b' '; max].into()).unwrap();
    assert_eq!(super::super::body::read_json(request).await.unwrap().len(), max);
}

#[tokio::test]
async fn what_the_scheduler_refuses_has_its_status() {
    let deadline = |doing| RequestError::Deadline { waited_s: 300, doing };
    let cases = [
        (
            RequestError::NoModel { model: "m".into() },
            404,
            INVALID,
            "model_not_found",
            "not served",
        ),
        (
            RequestError::Busy { waiting: 9, retry_after_s: 5 },
            429,
            "rate_limit_error",
            "rate_limit_exceeded",
            "9 requests",
        ),
        (
            RequestError::TooManyChoices { choices: 9, limit: 8 },
            400,
            INVALID,
            "invalid_value",
            "n is 9, and at most 8",
        ),
        (
            RequestError::TooLong { positions: 9, limit: 8, why: "the KV cache".into() },
            400,
            INVALID,
            "context_length_exceeded",
            "9 positions and at most 8",
        ),
        (
            deadline(Doing::WaitingFor("layers 3 to 7 of m".into())),
            503,
            SERVER,
            "not_ready_in_time",
            "layers 3 to 7",
        ),
        (deadline(Doing::WaitingForPlace), 503, SERVER, "not_ready_in_time", "a place"),
        (deadline(Doing::Generating), 504, SERVER, "deadline_exceeded", "after 300 s generating"),
        (
            RequestError::NoRoute { field: "weft.nodes", why: "no route has 1".to_owned() },
            400,
            INVALID,
            "no_such_route",
            "weft.nodes cannot be granted",
        ),
        (RequestError::Numeric { position: 4 }, 500, SERVER, "numeric_overflow", "position 4"),
    ];
    for (error, status, kind, code, says) in cases {
        let play = refuses(error.clone());
        let server = Server::start(vec![play.clone(), play]).await;
        for fields in ["", r#","stream":true"#] {
            let answer = server.chat(fields).await;
            let param = match error {
                RequestError::NoModel { .. } => Some("model"),
                RequestError::TooManyChoices { .. } => Some("n"),
                RequestError::NoRoute { field, .. } => Some(field),
                _ => None,
            };
            let message = answer.refused(status, kind, param, Some(code));
            assert!(message.contains(says), "{message:?} does not say {says:?}");
            let retry = answer.headers.get("retry-after").map(|v| v.to_str().unwrap().to_owned());
            assert_eq!(retry.as_deref(), (status == 429).then_some("5"));
        }
    }
}

#[tokio::test]
async fn a_failure_late_in_a_whole_answer_has_its_status_too() {
    let late = RequestError::Deadline { waited_s: 300, doing: Doing::Generating };
    let play = Play { then: Then::Refuse(late), ..says(&pieces(&["Hel"])) };
    let server =
        Server::start(vec![play, Play { choices: vec![vec![Row::Nan]], ..says(&[]) }]).await;
    server.chat("").await.refused(504, SERVER, None, Some("deadline_exceeded"));
    let message = server.chat("").await.refused(500, SERVER, None, Some("numeric_overflow"));
    assert!(message.contains("overflowed"), "{message}");
}

#[tokio::test]
async fn a_driver_that_stops_is_told_of() {
    let stops = Play { then: Then::Stop, ..says(&[]) };
    let server = Server::start(vec![stops]).await;
    for _ in 0..2 {
        let answer = server.chat("").await;
        answer.refused(503, SERVER, None, Some("shutting_down"));
    }
}

#[tokio::test]
async fn more_requests_than_places_are_sent_away() {
    let (handle, _script) = scripted();
    let state = AppState::new(handle, vec![model("m")]);
    let places: Vec<_> = (0..super::super::REQUESTS_MAX).map(|_| state.enter().unwrap()).collect();
    let failure = state.enter().unwrap_err();
    assert_eq!((failure.status.as_u16(), failure.retry_after_s), (429, Some(2)));
    drop(places);
    assert!(state.enter().is_ok());
}
