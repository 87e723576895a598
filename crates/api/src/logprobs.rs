//! Log probabilities, in the two shapes that OpenAI has for them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Alternatives per token that may be asked for.
pub const TOP_LOGPROBS_MAX: u32 = 20;
/// Stands for minus infinity, which JSON does not have.
pub const LOGPROB_MIN: f32 = -9999.0;

/// Of a chat completion's choice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatLogprobs {
    /// One per token.
    pub content: Vec<TokenLogprob>,
    /// Always `null`.
    pub refusal: Option<Vec<TokenLogprob>>,
}

/// A token and what else could have come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// Its text; what is no UTF-8 by itself is replaced.
    pub token: String,
    /// The natural logarithm of its probability, before temperature and cuts.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Option<Vec<u8>>,
    /// The most likely tokens, best first, as many as were asked for.
    pub top_logprobs: Vec<TopLogprob>,
}

/// One of the most likely tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopLogprob {
    /// As in [`TokenLogprob`].
    pub token: String,
    /// As in [`TokenLogprob`].
    pub logprob: f32,
    /// As in [`TokenLogprob`].
    pub bytes: Option<Vec<u8>>,
}

/// Of a completion's choice: lists of one entry per token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompletionLogprobs {
    /// Texts; what is no UTF-8 by itself is written `bytes:\xe2\x82`.
    pub tokens: Vec<String>,
    /// Natural logarithms of probabilities.
    pub token_logprobs: Vec<f32>,
    /// The most likely tokens and the one chosen.
    pub top_logprobs: Vec<BTreeMap<String, f32>>,
    /// Where the token begins in the choice's text, in characters.
    pub text_offset: Vec<u32>,
}
