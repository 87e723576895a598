//! `POST /v1/completions`.

use std::sync::Arc;

use api::{
    COMPLETION_TOKENS_DEFAULT, CompletionChoice, CompletionLogprobs, CompletionRequest,
    CompletionResponse, FinishReason, Prompt, Usage,
};
use axum::extract::{Request, State};
use axum::response::Response;

use super::answer::{Head, Shape, Whole, answer, json, json_body};
use super::body::read_json;
use super::failure::Failure;
use super::generation::{Delta, TokenInfo};
use super::plan::{Plan, Source, plan};
use super::state::{AppState, Model};
use super::tokens::completion_logprobs;

/// Continues texts as they are.
pub(super) async fn completions(
    State(state): State<AppState>,
    request: Request,
) -> Result<Response, Failure> {
    let place = state.enter()?;
    let request = CompletionRequest::parse(&read_json(request).await?)?;
    let model = state.model(request.model.as_deref())?;
    let texts: Vec<Option<String>> = request.prompts.iter().map(text_of).collect();
    let source = Source::Prompts(request.prompts);
    let length = Some(COMPLETION_TOKENS_DEFAULT);
    let plan =
        plan(&state, model.clone(), source, request.options, length, request.logprobs).await?;
    let echo = match request.echo {
        true => echoes(&plan, texts)?,
        false => vec![String::new(); plan.prompts.len()],
    };
    let shape = CompletionShape {
        head: Head::new("cmpl-", &plan),
        model,
        choices_per_prompt: plan.choices,
        echo,
        logprobs: request.logprobs.is_some(),
        include_usage: request.stream_options.include_usage,
    };
    answer(&state, plan, shape, request.stream, place).await
}

fn text_of(prompt: &Prompt) -> Option<String> {
    match prompt {
        Prompt::Text(text) => Some(text.clone()),
        Prompt::Tokens(_) => None,
    }
}

/// What to put before each prompt's choices.
fn echoes(plan: &Plan, texts: Vec<Option<String>>) -> Result<Vec<String>, Failure> {
    let echo = |(text, tokens): (Option<String>, &Vec<u32>)| match text {
        Some(text) => Ok(text),
        None => Ok(plan.model.tokenizer.decode(tokens)?),
    };
    texts.into_iter().zip(&plan.prompts).map(echo).collect()
}

struct CompletionShape {
    head: Head,
    model: Arc<Model>,
    choices_per_prompt: u32,
    /// Before the choices of each prompt.
    echo: Vec<String>,
    logprobs: bool,
    include_usage: bool,
}

impl CompletionShape {
    fn echo(&self, choice: u32) -> &str {
        &self.echo[(choice / self.choices_per_prompt) as usize]
    }

    /// Only without an echo, so the choice's own text is all that offsets count.
    fn logprobs(&self, tokens: &[TokenInfo]) -> Option<CompletionLogprobs> {
        let vocabulary = self.model.tokenizer.vocabulary();
        self.logprobs.then(|| completion_logprobs(vocabulary, tokens))
    }

    fn response(
        &self,
        choices: Vec<CompletionChoice>,
        usage: Option<Option<Usage>>,
    ) -> CompletionResponse {
        CompletionResponse {
            id: self.head.id.clone(),
            object: "text_completion".to_owned(),
            created: self.head.created,
            model: self.head.model.clone(),
            choices,
            usage,
            system_fingerprint: self.head.fingerprint.clone(),
        }
    }

    fn chunk(&self, choice: CompletionChoice) -> String {
        json(&self.response(vec![choice], self.include_usage.then_some(None)))
    }
}

impl Shape for CompletionShape {
    fn opening(&mut self, index: u32) -> Option<String> {
        let text = self.echo(index).to_owned();
        let choice = CompletionChoice { text, index, logprobs: None, finish_reason: None };
        (!choice.text.is_empty()).then(|| self.chunk(choice))
    }

    fn delta(&mut self, delta: Delta) -> Vec<String> {
        let index = delta.choice;
        let mut chunks = Vec::new();
        if !(delta.text.is_empty() && delta.tokens.is_empty()) {
            let logprobs = self.logprobs(&delta.tokens);
            let choice =
                CompletionChoice { text: delta.text, index, logprobs, finish_reason: None };
            chunks.push(self.chunk(choice));
        }
        if let Some(finish_reason) = delta.finished {
            let (text, logprobs) = (String::new(), None);
            let finish_reason = Some(finish_reason);
            chunks.push(self.chunk(CompletionChoice { text, index, logprobs, finish_reason }));
        }
        chunks
    }

    fn closing(&mut self, usage: Usage) -> Option<String> {
        self.include_usage.then(|| json(&self.response(Vec::new(), Some(Some(usage)))))
    }

    fn whole(&mut self, choices: Vec<Whole>, usage: Usage) -> Response {
        let choice = |(index, whole): (u32, Whole)| CompletionChoice {
            text: format!("{}{}", self.echo(index), whole.text),
            index,
            logprobs: self.logprobs(&whole.tokens),
            finish_reason: Some(whole.finished.unwrap_or(FinishReason::Stop)),
        };
        let choices = (0..).zip(choices).map(choice).collect();
        json_body(self.response(choices, Some(Some(usage))))
    }
}
