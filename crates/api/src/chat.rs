//! `POST /v1/chat/completions`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Invalid;
use crate::fields::{Fields, empty, invalid_value, too_long, wrong_type};
use crate::logprobs::{ChatLogprobs, TOP_LOGPROBS_MAX};
use crate::options::{Options, StreamOptions, take_stream};
use crate::usage::{FinishReason, Usage};

/// Messages of a conversation at most.
pub const MESSAGES_MAX: usize = 4096;

/// A conversation to continue.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ChatRequest {
    /// The model's name; the server's default one if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What was said so far, at least one message.
    pub messages: Vec<ChatMessage>,
    /// How to choose tokens and when to end.
    #[serde(flatten)]
    pub options: Options,
    /// Whether to answer with log probabilities.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub logprobs: bool,
    /// How many alternatives per token, with `logprobs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<u32>,
    /// Whether to stream.
    pub stream: bool,
    /// How to stream.
    #[serde(skip_serializing_if = "skip_stream_options")]
    pub stream_options: StreamOptions,
}

pub(crate) fn skip_stream_options(options: &StreamOptions) -> bool {
    *options == StreamOptions::default()
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// Who said it.
    pub role: Role,
    /// What was said; several text parts are joined by line breaks.
    pub content: String,
}

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Instructions; `developer` is read as this.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// Its name, as chat templates have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

impl ChatRequest {
    /// Reads a request's body.
    ///
    /// # Errors
    /// The first thing wrong with it.
    pub fn parse(body: &[u8]) -> Result<ChatRequest, Invalid> {
        let mut fields = Fields::of_body(body)?;
        let model = fields.string("model")?;
        let messages = take_messages(fields.require("messages")?)?;
        refuse_unsupported(&mut fields)?;
        let options = Options::take(&mut fields, ["max_completion_tokens", "max_tokens"])?;
        let logprobs = fields.boolean("logprobs")?.unwrap_or(false);
        let top_logprobs = fields.integer_in("top_logprobs", 0..=TOP_LOGPROBS_MAX)?;
        if top_logprobs.is_some() && !logprobs {
            let problem = "it is only allowed when 'logprobs' is true.";
            return Err(invalid_value("top_logprobs", problem));
        }
        let (stream, stream_options) = take_stream(&mut fields)?;
        Ok(ChatRequest { model, messages, options, logprobs, top_logprobs, stream, stream_options })
    }
}

/// Refuses what would change the answer and is not implemented.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), Invalid> {
    let no_tools = "this server does not call tools; leave it out or set 'tool_choice' to 'none'.";
    let choice = fields.take("tool_choice");
    let tools_off = choice.as_ref().is_some_and(|c| c == "none");
    if choice.as_ref().is_some_and(|c| c != "none" && c != "auto") {
        return Err(Invalid::unsupported("tool_choice", no_tools));
    }
    let some = |value: &Value| value.as_array().is_none_or(|list| !list.is_empty());
    if fields.take("tools").as_ref().is_some_and(some) && !tools_off {
        return Err(Invalid::unsupported("tools", no_tools));
    }
    let functions_off = fields.take("function_call").is_some_and(|c| c == "none");
    if fields.take("functions").as_ref().is_some_and(some) && !functions_off {
        return Err(Invalid::unsupported("functions", no_tools));
    }
    if let Some(format) = fields.take("response_format") {
        let mut inner = Fields::of_value(format, "response_format")?;
        if inner.string("type")?.is_some_and(|kind| kind != "text") {
            let why = "only the format 'text' is supported; ask for JSON in the prompt.";
            return Err(Invalid::unsupported("response_format", why));
        }
    }
    if let Some(modalities) = fields.take("modalities")
        && modalities.as_array().is_none_or(|list| list.iter().any(|m| m != "text"))
    {
        return Err(Invalid::unsupported("modalities", "only ['text'] is supported."));
    }
    if fields.take("audio").is_some() {
        return Err(Invalid::unsupported("audio", "this server answers with text only."));
    }
    if fields.take("web_search_options").is_some() {
        let why = "this server does not search the web.";
        return Err(Invalid::unsupported("web_search_options", why));
    }
    Ok(())
}

fn take_messages(value: Value) -> Result<Vec<ChatMessage>, Invalid> {
    let Value::Array(list) = value else {
        return Err(wrong_type("messages", "an array of objects", &value));
    };
    if list.is_empty() {
        return Err(empty("messages", "array"));
    }
    if list.len() > MESSAGES_MAX {
        return Err(too_long("messages", "array", MESSAGES_MAX, list.len()));
    }
    let message = |(i, value)| take_message(value, &format!("messages[{i}]"));
    list.into_iter().enumerate().map(message).collect()
}

fn take_message(value: Value, path: &str) -> Result<ChatMessage, Invalid> {
    let mut fields = Fields::of_value(value, path)?;
    let name = fields.name("role");
    let role = match fields.require("role")? {
        Value::String(role) => role,
        other => return Err(wrong_type(&name, "a string", &other)),
    };
    let role = match role.as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" | "function" => {
            let problem = "this server does not call tools, so it takes no results of theirs.";
            return Err(invalid_value(&name, problem));
        }
        _ => {
            let problem = "supported are 'system', 'developer', 'user' and 'assistant'.";
            return Err(invalid_value(&name, problem));
        }
    };
    for key in ["tool_calls", "function_call"] {
        let calls = fields.take(key);
        if calls.is_some_and(|c| c.as_array().is_none_or(|list| !list.is_empty())) {
            let why = "this server does not call tools.";
            return Err(Invalid::unsupported(&fields.name(key), why));
        }
    }
    let name = fields.name("content");
    let content = match fields.require("content")? {
        Value::String(text) => text,
        Value::Array(parts) => join_parts(parts, &name)?,
        other => return Err(wrong_type(&name, "a string or an array of parts", &other)),
    };
    Ok(ChatMessage { role, content })
}

fn join_parts(parts: Vec<Value>, path: &str) -> Result<String, Invalid> {
    if parts.is_empty() {
        return Err(empty(path, "array"));
    }
    let text = |(i, part)| -> Result<String, Invalid> {
        let path = format!("{path}[{i}]");
        let mut fields = Fields::of_value(part, &path)?;
        let name = fields.name("type");
        let key = match fields.require("type")?.as_str() {
            Some("text") => "text",
            Some("refusal") => "refusal",
            _ => {
                let problem = "only parts of type 'text' are supported by this model.";
                return Err(invalid_value(&name, problem));
            }
        };
        let name = fields.name(key);
        match fields.require(key)? {
            Value::String(text) => Ok(text),
            other => Err(wrong_type(&name, "a string", &other)),
        }
    };
    let texts: Result<Vec<String>, Invalid> = parts.into_iter().enumerate().map(text).collect();
    Ok(texts?.join("\n"))
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatResponse {
    /// `chatcmpl-...`
    pub id: String,
    /// `chat.completion`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// What was asked for, in the order of their indices.
    pub choices: Vec<ChatChoice>,
    /// Tokens used.
    pub usage: Usage,
    /// Changes when the model's weights or the numerics change.
    pub system_fingerprint: Option<String>,
}

/// One choice of a whole answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatChoice {
    /// From 0.
    pub index: u32,
    /// What the model says.
    pub message: AnswerMessage,
    /// If they were asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// What the model says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerMessage {
    /// `assistant`.
    pub role: Role,
    /// The text.
    pub content: String,
    /// Always `null`.
    pub refusal: Option<String>,
}

/// One event of a streamed answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatChunk {
    /// `chatcmpl-...`, the same in all chunks.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: String,
    /// Seconds since 1970, the same in all chunks.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// As in [`ChatResponse`].
    pub system_fingerprint: Option<String>,
    /// One, or none in the chunk with the usage.
    pub choices: Vec<ChatChunkChoice>,
    /// If it was asked for: `null` in all chunks but the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// One choice's part of a chunk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatChunkChoice {
    /// From 0.
    pub index: u32,
    /// What is new.
    pub delta: ChatDelta,
    /// Of the tokens in the delta, if asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// In its last chunk.
    pub finish_reason: Option<FinishReason>,
}

/// What is new in a choice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatDelta {
    /// In the first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// More text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}
