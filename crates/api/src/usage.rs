//! Token counts and why a generation ended.

use serde::{Deserialize, Serialize};

/// Tokens that a request used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of its prompt (of all prompts together).
    pub prompt_tokens: u32,
    /// Tokens chosen, over all choices.
    pub completion_tokens: u32,
    /// Both.
    pub total_tokens: u32,
    /// More on the prompt's.
    pub prompt_tokens_details: PromptTokensDetails,
}

/// More on a prompt's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptTokensDetails {
    /// Those whose KV cache was there already and that were not computed again.
    pub cached_tokens: u32,
}

impl Usage {
    /// From its parts.
    pub fn new(prompt_tokens: u32, completion_tokens: u32, cached_tokens: u32) -> Usage {
        Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended its text, or a stop string came.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
}
