//! Text in, text out: tokenizer, chat template, sampling, stop rules.
//!
//! Plain data in, plain data out: knows nothing about files, sockets, time, threads or
//! randomness of its own (a seed is an argument), nor about any other crate of ours. Native
//! only: the tokenizer is heavy, and workers never see text.

mod bounds;
mod bpe;
mod chat_template;
mod detokenizer;
mod error;
mod exp;
mod generation;
mod pre_tokenizer;
mod random;
mod sampler;
mod sampling;
mod spm;
mod stop;
mod strftime;
mod tojson;
mod tokenizer;
mod vocabulary;

pub use chat_template::{ChatTemplate, MESSAGES_MAX, Message, TEMPLATE_BYTES_MAX};
pub use detokenizer::Detokenizer;
pub use error::{Error, Fault, Result};
pub use generation::{FinishReason, Generation, Step, StopRules};
pub use pre_tokenizer::SUPPORTED as PRE_TOKENIZERS;
pub use random::random_bits;
pub use sampler::{Chosen, Logprobs, Sampler};
pub use sampling::{LOGIT_BIAS_MAX, REPETITION_PENALTY_MAX, SamplingParams, TOP_LOGPROBS_MAX};
pub use stop::{STOP_BYTES_MAX, STOP_STRINGS_MAX, StopMatcher};
pub use tokenizer::{INPUT_BYTES_MAX, Special, Tokenizer};
pub use vocabulary::{
    MERGES_MAX, SPECIAL_TOKENS_MAX, TOKEN_BYTES_MAX, TokenKind, TokenizerData, VOCABULARY_MAX,
    Vocabulary,
};
