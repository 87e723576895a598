//! What can go wrong with text, and whose fault it is.

use thiserror::Error;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Every error of this crate; [`Error::fault`] says whom it concerns.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum Error {
    /// The file's tokenizer is of a kind that this crate does not know.
    #[error("the model file's {key} is {got:?}, which is not supported (supported: {supported})")]
    Unsupported {
        /// The metadata key.
        key: &'static str,
        /// What the file says.
        got: String,
        /// What is supported, comma-separated.
        supported: String,
    },
    /// The file's tokenizer metadata contradicts itself or passes a bound.
    #[error("the model file's tokenizer is broken: {key}: {problem}")]
    BadVocabulary {
        /// The metadata key.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The chat template does not compile.
    #[error("the model file's chat template is broken: {problem}")]
    BadTemplate {
        /// The template engine's message.
        problem: String,
    },
    /// A text to tokenize is too long.
    #[error("the text has {got} bytes, the limit is {limit}: shorten the prompt")]
    InputTooLong {
        /// Bytes given.
        got: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The pre-tokenizer's regex engine gave up on the text.
    #[error(
        "the text cannot be split into words (at byte {at} of {bytes}): break up its long runs"
    )]
    InputTooComplex {
        /// Where the engine stopped.
        at: usize,
        /// Length of the piece it worked on.
        bytes: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocabulary} tokens")]
    UnknownToken {
        /// The id.
        id: u32,
        /// V.
        vocabulary: usize,
    },
    /// The chat template refused the messages (`raise_exception`).
    #[error("the model's chat template refused the messages: {message}")]
    TemplateRefused {
        /// What the template said.
        message: String,
    },
    /// The chat template failed on these messages.
    #[error("the model's chat template failed on these messages: {problem}")]
    TemplateFailed {
        /// The template engine's message.
        problem: String,
    },
    /// The chat template passed one of its bounds.
    #[error("the model's chat template passed its limit of {limit} {what}")]
    TemplateLimit {
        /// What was counted.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// A request parameter is out of its range.
    #[error("{name}: {problem}")]
    BadParameter {
        /// The parameter, as the API names it.
        name: &'static str,
        /// What is allowed and what was given.
        problem: String,
    },
    /// The model gave a logit that is not a finite number.
    #[error("the model's logit for token {token} is {value}: its numbers overflowed")]
    NonFiniteLogit {
        /// The token's id.
        token: u32,
        /// The logit.
        value: f32,
    },
    /// Logits of another length than the vocabulary.
    #[error("the model gave {got} logits, the vocabulary has {expected} tokens")]
    LogitsLength {
        /// V.
        expected: usize,
        /// What came.
        got: usize,
    },
}

/// Whom an [`enum@Error`] concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The model's file: refuse it before anything is loaded.
    File,
    /// The request: answer with status 400.
    Request,
    /// The computation: end the session with an error.
    Numbers,
}

impl Error {
    /// Whom this error concerns.
    pub fn fault(&self) -> Fault {
        match self {
            Error::Unsupported { .. } | Error::BadVocabulary { .. } | Error::BadTemplate { .. } => {
                Fault::File
            }
            Error::InputTooLong { .. }
            | Error::InputTooComplex { .. }
            | Error::UnknownToken { .. }
            | Error::TemplateRefused { .. }
            | Error::TemplateFailed { .. }
            | Error::TemplateLimit { .. }
            | Error::BadParameter { .. } => Fault::Request,
            Error::NonFiniteLogit { .. } | Error::LogitsLength { .. } => Fault::Numbers,
        }
    }
}
