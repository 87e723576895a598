//! Text in, text out: tokenizer, chat template, sampling, stop rules.
//!
//! Plain data in, plain data out: knows nothing about files, sockets, time, threads or
//! randomness of its own (a seed is an argument), nor about any other crate of ours. Native
//! only: the tokenizer is heavy, and workers never see text.

mod bpe;
mod error;
mod pre_tokenizer;
mod spm;
mod tokenizer;
mod vocabulary;

pub use error::{Error, Fault, Result};
pub use pre_tokenizer::SUPPORTED as PRE_TOKENIZERS;
pub use tokenizer::{INPUT_BYTES_MAX, Special, Tokenizer};
pub use vocabulary::{TokenKind, TokenizerData, Vocabulary};
