//! `POST /v1/completions`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::chat::skip_stream_options;
use crate::error::Invalid;
use crate::fields::{Fields, empty, invalid_value, token, too_long, wrong_type};
use crate::logprobs::{CompletionLogprobs, TOP_LOGPROBS_MAX};
use crate::options::{CHOICES_MAX, Options, StreamOptions, take_stream};
use crate::usage::{FinishReason, Usage};

/// Prompts of a request at most.
pub const PROMPTS_MAX: usize = 16;
/// Token ids of one prompt at most; what fits a model's context is far less.
pub const PROMPT_TOKENS_MAX: usize = 1 << 20;
/// Tokens wanted per choice if the request does not say, and the context has room for them.
pub const COMPLETION_TOKENS_DEFAULT: u32 = 16;

/// Texts to continue.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CompletionRequest {
    /// The model's name; the server's default one if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// At least one; each gets `n` choices.
    #[serde(rename = "prompt")]
    pub prompts: Vec<Prompt>,
    /// How to choose tokens and when to end.
    #[serde(flatten)]
    pub options: Options,
    /// Whether to put the prompt before each choice's text.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub echo: bool,
    /// Log probabilities with this many alternatives per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u32>,
    /// Whether to stream.
    pub stream: bool,
    /// How to stream.
    #[serde(skip_serializing_if = "skip_stream_options")]
    pub stream_options: StreamOptions,
}

/// A text, or the tokens of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Prompt {
    /// To be tokenized; special tokens in it are parsed.
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
}

impl CompletionRequest {
    /// Reads a request's body.
    ///
    /// # Errors
    /// The first thing wrong with it.
    pub fn parse(body: &[u8]) -> Result<CompletionRequest, Invalid> {
        let mut fields = Fields::of_body(body)?;
        let model = fields.string("model")?;
        let prompts = take_prompts(fields.require("prompt")?)?;
        let options = Options::take(&mut fields, ["max_tokens", "max_completion_tokens"])?;
        let logprobs = fields.integer_in("logprobs", 0..=TOP_LOGPROBS_MAX)?;
        let echo = fields.boolean("echo")?.unwrap_or(false);
        if echo && logprobs.is_some() {
            let why = "together with 'logprobs' it would need the prompt's, which this server \
                       does not compute; leave one of them out.";
            return Err(Invalid::unsupported("echo", why));
        }
        if fields.string("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
            let why = "this server does not fill in the middle.";
            return Err(Invalid::unsupported("suffix", why));
        }
        let best_of = fields.integer_in("best_of", 1..=u32::MAX)?;
        if best_of.is_some_and(|best_of| best_of != options.choices()) {
            let why = "only the value of 'n' is supported.";
            return Err(Invalid::unsupported("best_of", why));
        }
        if prompts.len() * options.choices() as usize > CHOICES_MAX as usize {
            let problem = format!(
                "{} prompts with {} choices each are more than {CHOICES_MAX} in all: send several \
                 requests.",
                prompts.len(),
                options.choices(),
            );
            return Err(invalid_value("n", &problem));
        }
        let (stream, stream_options) = take_stream(&mut fields)?;
        Ok(CompletionRequest { model, prompts, options, echo, logprobs, stream, stream_options })
    }
}

/// A string, a list of strings, a list of tokens, or a list of lists of tokens.
fn take_prompts(value: Value) -> Result<Vec<Prompt>, Invalid> {
    let list = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(list) => list,
        other => {
            let expected = "a string, an array of strings, or an array of token ids";
            return Err(wrong_type("prompt", expected, &other));
        }
    };
    match list.first() {
        None => Err(empty("prompt", "array")),
        Some(Value::Number(_)) => Ok(vec![Prompt::Tokens(take_tokens(list, "prompt")?)]),
        Some(_) if list.len() > PROMPTS_MAX => {
            Err(too_long("prompt", "array", PROMPTS_MAX, list.len()))
        }
        Some(_) => {
            let prompt = |(i, value)| take_prompt(value, &format!("prompt[{i}]"));
            list.into_iter().enumerate().map(prompt).collect()
        }
    }
}

pub(crate) fn take_prompt(value: Value, name: &str) -> Result<Prompt, Invalid> {
    match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(list) => Ok(Prompt::Tokens(take_tokens(list, name)?)),
        other => Err(wrong_type(name, "a string or an array of token ids", &other)),
    }
}

fn take_tokens(list: Vec<Value>, name: &str) -> Result<Vec<u32>, Invalid> {
    if list.is_empty() {
        return Err(empty(name, "array"));
    }
    if list.len() > PROMPT_TOKENS_MAX {
        return Err(too_long(name, "array", PROMPT_TOKENS_MAX, list.len()));
    }
    list.iter().enumerate().map(|(i, v)| token(v, &format!("{name}[{i}]"))).collect()
}

/// A whole answer, or one event of a streamed one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionResponse {
    /// `cmpl-...`
    pub id: String,
    /// `text_completion`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// The first prompt's choices, then the next's. In a stream one, or none in the event
    /// with the usage.
    pub choices: Vec<CompletionChoice>,
    /// Tokens used. In a stream, if it was asked for: `null` in all events but the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// Changes when the model's weights or the numerics change.
    pub system_fingerprint: Option<String>,
}

/// One choice, or what is new in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionChoice {
    /// What the model writes.
    pub text: String,
    /// From 0: the prompt's index × `n` + which choice of it.
    pub index: u32,
    /// If they were asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// Why it ended; `null` in a stream's events before.
    pub finish_reason: Option<FinishReason>,
}
