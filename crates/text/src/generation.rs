//! One generation: from chosen tokens to shown text, until it is finished.

use crate::detokenizer::Detokenizer;
use crate::error::{Error, Result};
use crate::stop::StopMatcher;
use crate::vocabulary::Vocabulary;

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop string, or a token that ends a text.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
}

impl FinishReason {
    /// The API's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

/// When a generation ends.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StopRules {
    /// Stop strings, not part of the shown text.
    pub stop: Vec<String>,
    /// Tokens to generate at most; without it the context is the bound.
    pub max_tokens: Option<u32>,
    /// Goes on after tokens that end a text, for benchmarks and tests.
    pub ignore_end: bool,
}

/// What one token led to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// Text to show now; may be empty while it could become a stop string or a character.
    pub text_delta: String,
    /// Set once, with the last step.
    pub finished: Option<FinishReason>,
}

/// The state between a session's tokens and its client's text.
#[derive(Debug, Clone)]
pub struct Generation {
    detokenizer: Detokenizer,
    stops: StopMatcher,
    tokens_max: u32,
    tokens: u32,
    ignore_end: bool,
    finished: Option<FinishReason>,
}

impl Generation {
    /// For a prompt of `prompt_tokens` in a context of `context_tokens` positions.
    ///
    /// # Errors
    /// [`Error::BadParameter`] for bad stop strings, `max_tokens` of 0, or a prompt that is
    /// empty or leaves no room for a single token.
    pub fn new(rules: &StopRules, prompt_tokens: u32, context_tokens: u32) -> Result<Self> {
        if rules.max_tokens == Some(0) {
            return Err(Error::BadParameter {
                name: "max_tokens",
                problem: "0, expected 1 or more".into(),
            });
        }
        if prompt_tokens == 0 || prompt_tokens >= context_tokens {
            return Err(Error::BadParameter {
                name: "prompt",
                problem: format!(
                    "{prompt_tokens} tokens, expected 1 to {} (the model's context is {context_tokens})",
                    context_tokens.saturating_sub(1)
                ),
            });
        }
        let room = context_tokens - prompt_tokens;
        Ok(Generation {
            detokenizer: Detokenizer::default(),
            stops: StopMatcher::new(&rules.stop)?,
            tokens_max: rules.max_tokens.unwrap_or(room).min(room),
            tokens: 0,
            ignore_end: rules.ignore_end,
            finished: None,
        })
    }

    /// Takes the next chosen token.
    ///
    /// # Errors
    /// [`Error::UnknownToken`].
    ///
    /// # Panics
    /// If the generation is already finished: a caller's bug.
    pub fn push(&mut self, vocabulary: &Vocabulary, token: u32) -> Result<Step> {
        assert!(self.finished.is_none(), "a token after the generation finished");
        let bytes = vocabulary.text_bytes(token)?;
        self.tokens += 1;
        if vocabulary.is_end(token) && !self.ignore_end {
            return Ok(self.end(String::new(), FinishReason::Stop));
        }
        let whole = self.detokenizer.push(bytes);
        let (text_delta, stopped) = self.stops.push(&whole);
        if stopped {
            self.finished = Some(FinishReason::Stop);
        } else if self.tokens == self.tokens_max {
            return Ok(self.end(text_delta, FinishReason::Length));
        }
        Ok(Step { text_delta, finished: self.finished })
    }

    /// Ends it where it is, for want of room: gives what was held back.
    ///
    /// # Panics
    /// If the generation is already finished: a caller's bug.
    pub fn cut_off(&mut self) -> Step {
        assert!(self.finished.is_none(), "a generation that finished is cut off");
        self.end(String::new(), FinishReason::Length)
    }

    fn end(&mut self, mut text_delta: String, reason: FinishReason) -> Step {
        let (more, stopped) = self.stops.push(&self.detokenizer.finish());
        text_delta += &more;
        text_delta += &self.stops.finish();
        self.finished = Some(if stopped { FinishReason::Stop } else { reason });
        Step { text_delta, finished: self.finished }
    }

    /// Tokens taken so far, the one that ended the text included.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Tokens it may take at most.
    pub fn tokens_max(&self) -> u32 {
        self.tokens_max
    }

    /// Why it ended, once it has.
    pub fn finished(&self) -> Option<FinishReason> {
        self.finished
    }
}
