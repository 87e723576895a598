//! Answers: one body, or a stream of server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::{FinishReason, Usage};
use axum::http::HeaderValue;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Json, Response};
use futures_util::stream;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, timeout};

use super::failure::Failure;
use super::generation::{Delta, Progress, TokenInfo, start};
use super::plan::Plan;
use super::state::AppState;

/// A stream's head waits this long for the first text, so that errors until then have their
/// status; later ones are events of the stream.
const HEAD_WAIT_MAX: Duration = Duration::from_secs(30);
/// A comment goes out when nothing else did for this long.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Ends a stream that did not fail.
const DONE: &str = "[DONE]";

/// How an endpoint says what was generated. Streams call `opening` once per choice before its
/// first delta, then `delta`, at last `closing`.
pub(super) trait Shape: Send + 'static {
    /// The event that begins a choice, if there is one.
    fn opening(&mut self, choice: u32) -> Option<String>;
    /// The events for more of a choice.
    fn delta(&mut self, delta: Delta) -> Vec<String>;
    /// The event at the end, if there is one.
    fn closing(&mut self, usage: Usage) -> Option<String>;
    /// The whole answer as one body.
    fn whole(&mut self, choices: Vec<Whole>, usage: Usage) -> Response;
}

/// A choice from its beginning to its end.
#[derive(Debug, Default)]
pub(super) struct Whole {
    pub text: String,
    pub tokens: Vec<TokenInfo>,
    pub finished: Option<FinishReason>,
}

/// What all answers to a request have in common.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub id: String,
    pub created: u64,
    pub model: String,
    pub fingerprint: Option<String>,
}

impl Head {
    /// With a new id that begins with `prefix`.
    pub fn new(prefix: &str, plan: &Plan) -> Head {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Head {
            id: format!("{prefix}{}", crate::random::hex::<12>()),
            created: now.map_or(0, |d| d.as_secs()),
            model: plan.model.name.clone(),
            fingerprint: Some(plan.model.fingerprint.clone()),
        }
    }
}

/// Generates what is planned and answers in `shape`; `place` is held until the end.
pub(super) async fn answer(
    state: &AppState,
    plan: Plan,
    shape: impl Shape,
    streamed: bool,
    place: OwnedSemaphorePermit,
) -> Result<Response, Failure> {
    let reader = Reader {
        prompts_open: plan.prompts.len(),
        usage: Usage::default(),
        deadline: plan.deadline,
        choices: plan.prompts.len() * plan.choices as usize,
        progress: start(&state.driver, plan),
    };
    match streamed {
        true => stream(reader, shape, place).await,
        false => collect(reader, shape, place).await,
    }
}

/// Reads a generation's progress to its end.
struct Reader {
    progress: mpsc::Receiver<Progress>,
    prompts_open: usize,
    choices: usize,
    usage: Usage,
    deadline: Instant,
}

impl Reader {
    /// The next delta; `None` at the good end, when the usage is complete.
    async fn next(&mut self) -> Result<Option<Delta>, Failure> {
        while self.prompts_open > 0 {
            match self.progress.recv().await {
                Some(Progress::Delta(delta)) => return Ok(Some(delta)),
                Some(Progress::Done(usage)) => {
                    self.prompts_open -= 1;
                    self.usage = sum(self.usage, usage);
                }
                Some(Progress::Failed(failure)) => return Err(failure),
                None if Instant::now() >= self.deadline => return Err(Failure::slow_reader()),
                None => return Err(Failure::internal()),
            }
        }
        Ok(None)
    }
}

fn sum(a: Usage, b: Usage) -> Usage {
    Usage::new(
        a.prompt_tokens + b.prompt_tokens,
        a.completion_tokens + b.completion_tokens,
        a.prompt_tokens_details.cached_tokens + b.prompt_tokens_details.cached_tokens,
    )
}

async fn collect(
    mut reader: Reader,
    mut shape: impl Shape,
    _place: OwnedSemaphorePermit,
) -> Result<Response, Failure> {
    let mut choices: Vec<Whole> = Vec::new();
    choices.resize_with(reader.choices, Whole::default);
    while let Some(delta) = reader.next().await? {
        let whole = &mut choices[delta.choice as usize];
        whole.text.push_str(&delta.text);
        whole.tokens.extend(delta.tokens);
        whole.finished = delta.finished;
    }
    Ok(shape.whole(choices, reader.usage))
}

async fn stream(
    mut reader: Reader,
    shape: impl Shape,
    place: OwnedSemaphorePermit,
) -> Result<Response, Failure> {
    let first = match timeout(HEAD_WAIT_MAX, reader.next()).await {
        Ok(first) => Some(first?),
        Err(_) => None,
    };
    let mut events = Events {
        opened: vec![false; reader.choices],
        reader,
        shape,
        queue: VecDeque::new(),
        ended: false,
        _place: place,
    };
    if let Some(first) = first {
        events.push(Ok(first));
    }
    let events = stream::unfold(events, |mut events| async {
        let event = events.next().await?;
        Some((Ok::<Event, Infallible>(Event::default().data(event)), events))
    });
    let mut response =
        Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    // Some proxies hold a stream back unless they are told not to.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// The events of a stream.
struct Events<S> {
    reader: Reader,
    shape: S,
    /// Those of the last progress.
    queue: VecDeque<String>,
    opened: Vec<bool>,
    ended: bool,
    _place: OwnedSemaphorePermit,
}

impl<S: Shape> Events<S> {
    async fn next(&mut self) -> Option<String> {
        while self.queue.is_empty() && !self.ended {
            let progress = self.reader.next().await;
            self.push(progress);
        }
        self.queue.pop_front()
    }

    fn push(&mut self, progress: Result<Option<Delta>, Failure>) {
        match progress {
            Ok(Some(delta)) => {
                if !std::mem::replace(&mut self.opened[delta.choice as usize], true) {
                    self.queue.extend(self.shape.opening(delta.choice));
                }
                self.queue.extend(self.shape.delta(delta));
            }
            Ok(None) => {
                self.queue.extend(self.shape.closing(self.reader.usage));
                self.queue.push_back(DONE.to_owned());
                self.ended = true;
            }
            Err(failure) => {
                self.queue.push_back(json(&failure.body()));
                self.ended = true;
            }
        }
    }
}

/// As JSON on one line.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("the API's types can be written as JSON")
}

/// As a whole body.
pub(super) fn json_body(value: impl Serialize) -> Response {
    Json(value).into_response()
}
