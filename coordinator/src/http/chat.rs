//! `POST /v1/chat/completions`.

use std::sync::Arc;

use api::{
    AnswerMessage, ChatChoice, ChatChunk, ChatChunkChoice, ChatDelta, ChatLogprobs, ChatRequest,
    ChatResponse, FinishReason, Role, Usage,
};
use axum::extract::{Request, State};
use axum::response::Response;

use super::answer::{Head, Shape, Whole, answer, json, json_body};
use super::body::read_json;
use super::failure::Failure;
use super::generation::{Delta, TokenInfo};
use super::plan::{Source, plan};
use super::state::{AppState, Model};
use super::tokens::chat_logprobs;

/// Continues a conversation.
pub(super) async fn chat_completions(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, Failure> {
    let place = state.enter()?;
    let request = ChatRequest::parse(&read_json(request).await?)?;
    let model = state.model(request.model.as_deref())?;
    let source = Source::Chat(request.messages);
    let logprobs = request.logprobs.then(|| request.top_logprobs.unwrap_or(0));
    let plan = plan(&state, model.clone(), source, request.options, None, logprobs).await?;
    let shape = ChatShape {
        head: Head::new("chatcmpl-", &plan),
        model,
        logprobs: request.logprobs,
        include_usage: request.stream_options.include_usage,
    };
    answer(&state, plan, shape, request.stream, place).await
}

struct ChatShape {
    head: Head,
    model: Arc<Model>,
    logprobs: bool,
    include_usage: bool,
}

impl ChatShape {
    fn chunk(&self, choices: Vec<ChatChunkChoice>, usage: Option<Usage>) -> String {
        json(&ChatChunk {
            id: self.head.id.clone(),
            object: "chat.completion.chunk".to_owned(),
            created: self.head.created,
            model: self.head.model.clone(),
            system_fingerprint: self.head.fingerprint.clone(),
            choices,
            usage: self.include_usage.then_some(usage),
        })
    }

    fn choice_chunk(
        &self,
        index: u32,
        delta: ChatDelta,
        logprobs: Option<ChatLogprobs>,
        finish_reason: Option<FinishReason>,
    ) -> String {
        self.chunk(vec![ChatChunkChoice { index, delta, logprobs, finish_reason }], None)
    }

    fn logprobs(&self, tokens: &[TokenInfo]) -> Option<ChatLogprobs> {
        self.logprobs.then(|| chat_logprobs(self.model.tokenizer.vocabulary(), tokens))
    }
}

impl Shape for ChatShape {
    fn opening(&mut self, choice: u32) -> Option<String> {
        let delta = ChatDelta { role: Some(Role::Assistant), content: Some(String::new()) };
        Some(self.choice_chunk(choice, delta, None, None))
    }

    fn delta(&mut self, delta: Delta) -> Vec<String> {
        let mut chunks = Vec::new();
        if !(delta.text.is_empty() && delta.tokens.is_empty()) {
            let logprobs = self.logprobs(&delta.tokens);
            let content = ChatDelta { role: None, content: Some(delta.text) };
            chunks.push(self.choice_chunk(delta.choice, content, logprobs, None));
        }
        if delta.finished.is_some() {
            let empty = ChatDelta::default();
            chunks.push(self.choice_chunk(delta.choice, empty, None, delta.finished));
        }
        chunks
    }

    fn closing(&mut self, usage: Usage) -> Option<String> {
        self.include_usage.then(|| self.chunk(Vec::new(), Some(usage)))
    }

    fn whole(&mut self, choices: Vec<Whole>, usage: Usage) -> Response {
        let choice = |(index, whole): (u32, Whole)| ChatChoice {
            index,
            logprobs: self.logprobs(&whole.tokens),
            message: AnswerMessage { role: Role::Assistant, content: whole.text, refusal: None },
            finish_reason: whole.finished.unwrap_or(FinishReason::Stop),
        };
        json_body(ChatResponse {
            id: self.head.id.clone(),
            object: "chat.completion".to_owned(),
            created: self.head.created,
            model: self.head.model.clone(),
            choices: (0..).zip(choices).map(choice).collect(),
            usage,
            system_fingerprint: self.head.fingerprint.clone(),
        })
    }
}
