//! `POST /v1/generate`: a prompt as it is, and little around the answer. Ours.

use serde::{Deserialize, Serialize};

use crate::completion::{Prompt, take_prompt};
use crate::error::Invalid;
use crate::fields::Fields;
use crate::options::Options;
use crate::usage::{FinishReason, Usage};

/// Tokens wanted if the request does not say, and the context has room for them.
pub const GENERATE_TOKENS_DEFAULT: u32 = 128;

/// A text to continue.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GenerateRequest {
    /// The model's name; the server's default one if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What to continue, without a chat template.
    pub prompt: Prompt,
    /// How to choose tokens and when to end; the length is called `max_new_tokens` in JSON
    /// (`max_tokens` is taken too), and `n` must be 1.
    #[serde(flatten)]
    pub options: Options,
    /// Whether to stream.
    pub stream: bool,
}

impl GenerateRequest {
    /// Reads a request's body.
    ///
    /// # Errors
    /// The first thing wrong with it.
    pub fn parse(body: &[u8]) -> Result<GenerateRequest, Invalid> {
        let mut fields = Fields::of_body(body)?;
        let model = fields.string("model")?;
        let prompt = take_prompt(fields.require("prompt")?, "prompt")?;
        let options = Options::take(&mut fields, ["max_new_tokens", "max_tokens"])?;
        if options.choices() != 1 {
            let why = "this endpoint gives one choice; /v1/completions gives several.";
            return Err(Invalid::unsupported("n", why));
        }
        if fields.take("logprobs").is_some_and(|l| l != false) {
            let why = "this endpoint gives none; /v1/completions does.";
            return Err(Invalid::unsupported("logprobs", why));
        }
        let stream = fields.boolean("stream")?.unwrap_or(false);
        Ok(GenerateRequest { model, prompt, options, stream })
    }
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateResponse {
    /// What the model writes.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens used.
    pub usage: Usage,
}

/// One event of a streamed answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateEvent {
    /// What is new.
    pub text: String,
    /// In the last event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<FinishReason>,
    /// In the last event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}
