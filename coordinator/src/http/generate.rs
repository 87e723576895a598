//! `POST /v1/generate`.

use api::{
    FinishReason, GENERATE_TOKENS_DEFAULT, GenerateEvent, GenerateRequest, GenerateResponse, Usage,
};
use axum::extract::{Request, State};
use axum::response::Response;

use super::answer::{Shape, Whole, answer, json, json_body};
use super::body::read_json;
use super::failure::Failure;
use super::generation::Delta;
use super::plan::{Source, plan};
use super::state::AppState;

/// Continues a text as it is, with little around the answer.
pub(super) async fn generate(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, Failure> {
    let place = state.enter()?;
    let request = GenerateRequest::parse(&read_json(request).await?)?;
    let model = state.model(request.model.as_deref())?;
    let source = Source::Prompts(vec![request.prompt]);
    let length = Some(GENERATE_TOKENS_DEFAULT);
    let plan = plan(&state, model, source, request.options, length, None).await?;
    answer(&state, plan, GenerateShape { finish_reason: None }, request.stream, place).await
}

struct GenerateShape {
    /// Kept for the last event of a stream.
    finish_reason: Option<FinishReason>,
}

impl Shape for GenerateShape {
    fn opening(&mut self, _choice: u32) -> Option<String> {
        None
    }

    fn delta(&mut self, delta: Delta) -> Vec<String> {
        self.finish_reason = delta.finished;
        let event = GenerateEvent { text: delta.text, finish_reason: None, usage: None };
        if event.text.is_empty() { Vec::new() } else { vec![json(&event)] }
    }

    fn closing(&mut self, usage: Usage) -> Option<String> {
        let finish_reason = self.finish_reason;
        Some(json(&GenerateEvent { text: String::new(), finish_reason, usage: Some(usage) }))
    }

    fn whole(&mut self, mut choices: Vec<Whole>, usage: Usage) -> Response {
        let Whole { text, finished, .. } = choices.pop().unwrap_or_default();
        let finish_reason = finished.unwrap_or(FinishReason::Stop);
        json_body(GenerateResponse { text, finish_reason, usage })
    }
}
