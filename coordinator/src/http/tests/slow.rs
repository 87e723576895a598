//! A client that reads slowly holds up its own generation only, until its deadline; one that
//! waits is told that the server still works.

use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use futures_util::StreamExt;
use tokio::time::timeout;

use super::super::chat::chat_completions;
use super::super::generation::PROGRESS_MAX;
use super::*;

/// A streamed chat, without a socket between.
async fn streamed(state: AppState, fields: &str) -> axum::response::Response {
    let body =
        format!(r#"{{"stream":true,"messages":[{{"role":"user","content":"hi"}}]{fields}}}"#);
    let request = Request::post("/").header("content-type", "application/json");
    let request = request.body(Body::from(body)).unwrap();
    chat_completions(State(state), request).await.expect("a stream")
}

/// A model with room for many tokens.
fn roomy() -> Model {
    Model { context: 10_000, ..model("m") }
}

#[tokio::test(start_paused = true)]
async fn generation_waits_for_its_reader_until_the_deadline() {
    let (handle, script) = scripted();
    let (sender, mut told) = mpsc::unbounded_channel();
    tokio::spawn(play(script, vec![says(&vec![piece("!"); 9_000])], sender));
    let state = AppState::new(handle, vec![roomy()]);
    let response = streamed(state, r#","timeout":600"#).await;

    // Nobody reads: with the clock paused, a timeout means that nothing can go on.
    let mut sampled = 0;
    while let Ok(Some(what)) = timeout(Duration::from_secs(60), told.recv()).await {
        sampled += usize::from(matches!(what, Told::Sampled { .. }));
    }
    assert!(sampled >= PROGRESS_MAX, "it filled the stream's buffer: {sampled}");
    assert!(sampled <= PROGRESS_MAX + 2, "and then waited: {sampled}");

    let cancelled = timeout(Duration::from_secs(600), told.recv()).await;
    assert!(matches!(cancelled, Ok(Some(Told::Cancelled { .. }))), "{cancelled:?}");
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    let body = String::from_utf8(body.to_vec()).unwrap();
    let last = body.trim_end().rsplit("data: ").next().unwrap();
    let last: Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["error"]["code"], "deadline_exceeded");
    assert!(!body.contains("[DONE]"));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_waits_says_that_it_lives() {
    let (handle, script) = scripted();
    let (sender, _told) = mpsc::unbounded_channel();
    tokio::spawn(play(script, vec![says(&[])], sender));
    let state = AppState::new(handle, vec![roomy()]);
    let response = streamed(state, "").await;
    assert_eq!(response.status(), 200);
    let mut body = response.into_body().into_data_stream();
    for _ in 0..3 {
        assert_eq!(body.next().await.unwrap().unwrap(), ":\n\n");
    }
}
