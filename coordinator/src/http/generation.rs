//! One prompt's choices, token by token: logits in, sampled, text out.

use std::collections::VecDeque;
use std::sync::Arc;

use api::{FinishReason, Usage};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::failure::Failure;
use super::plan::{Plan, Start};
use super::state::Model;
use crate::driver::{Handle, RequestEvent, Submission, Submit};
use scheduler::{RequestError, Wish};

/// What a client has not read yet, at most, over all choices; generation waits for it.
pub(super) const PROGRESS_MAX: usize = 64;

/// What becomes of a plan. The channel ends after as many `Done` as it has prompts, or after
/// `Failed`; if it ends before, nobody read it until the deadline.
#[derive(Debug)]
pub(super) enum Progress {
    /// More of a choice.
    Delta(Delta),
    /// All choices of one prompt have ended.
    Done(Usage),
    /// The whole request has.
    Failed(Failure),
}

/// More of a choice.
#[derive(Debug)]
pub(super) struct Delta {
    /// Over all prompts: prompt × choices per prompt + choice.
    pub choice: u32,
    /// May be empty.
    pub text: String,
    /// If asked for: of the tokens that begin in the text shown up to here, each told once.
    pub tokens: Vec<TokenInfo>,
    /// With its last one.
    pub finished: Option<FinishReason>,
}

/// A chosen token and the likeliest ones.
#[derive(Clone, Debug)]
pub(super) struct TokenInfo {
    pub token: u32,
    pub logprob: f32,
    /// Most likely first.
    pub top: Vec<(u32, f32)>,
    /// Where it begins in the choice's text, characters.
    pub offset: u32,
    /// And bytes.
    begins: usize,
}

/// Generates all that is planned. Dropping the receiver cancels it, at once.
pub(super) fn start(driver: &Handle, plan: Plan) -> mpsc::Receiver<Progress> {
    let (sender, receiver) = mpsc::channel(PROGRESS_MAX);
    let firsts = (0..).step_by(plan.choices as usize);
    for ((prompt, start), first) in plan.prompts.into_iter().zip(plan.starts).zip(firsts) {
        let run = Run {
            model: plan.model.clone(),
            prompt_tokens: prompt.len() as u32,
            cached_tokens: 0,
            choices: vec![Choice::new(start); plan.choices as usize],
            first,
            logits: Vec::new(),
            deadline: plan.deadline,
            wish: plan.wish,
        };
        tokio::spawn(run.finish(driver.clone(), prompt, sender.clone()));
    }
    receiver
}

/// One prompt's choices.
struct Run {
    model: Arc<Model>,
    prompt_tokens: u32,
    cached_tokens: u32,
    choices: Vec<Choice>,
    /// The first choice's number over all prompts.
    first: u32,
    /// `[V]`, reused.
    logits: Vec<f32>,
    deadline: Instant,
    wish: Wish,
}

impl Run {
    async fn finish(mut self, driver: Handle, prompt: Vec<u32>, progress: mpsc::Sender<Progress>) {
        // When the client has gone, this future is dropped, and with it the submission.
        let last = tokio::select! {
            biased;
            () = progress.closed() => return,
            last = self.generate(driver, prompt, &progress) => last,
        };
        let last = last.unwrap_or_else(Progress::Failed);
        let _ = timeout_at(self.deadline, progress.send(last)).await;
    }

    async fn generate(
        &mut self,
        driver: Handle,
        prompt: Vec<u32>,
        progress: &mpsc::Sender<Progress>,
    ) -> Result<Progress, Failure> {
        let submit = Submit {
            model: self.model.name.clone(),
            prompt,
            choices: self.choices.len() as u32,
            max_new_tokens: self.choices[0].start.generation.tokens_max(),
            timeout: self.deadline.saturating_duration_since(Instant::now()),
            wish: self.wish,
        };
        let mut submission = driver.submit(submit).await?;
        while self.choices.iter().any(Choice::is_open) {
            let deltas = match submission.recv().await {
                None => return Err(crate::driver::DriverGone.into()),
                Some(RequestEvent::Started { cached_tokens }) => {
                    self.cached_tokens = cached_tokens;
                    continue;
                }
                Some(RequestEvent::Logits { choice, logits, .. }) => {
                    self.read_logits(&logits);
                    self.sample(&submission, choice)?.into_iter().collect()
                }
                Some(RequestEvent::Refused(error)) => self.refused(error)?,
            };
            for delta in deltas {
                let sent = timeout_at(self.deadline, progress.send(Progress::Delta(delta))).await;
                sent.map_err(|_| Failure::slow_reader())?.map_err(|_| Failure::internal())?;
            }
        }
        let completion_tokens = self.choices.iter().map(|c| c.start.generation.tokens()).sum();
        Ok(Progress::Done(Usage::new(self.prompt_tokens, completion_tokens, self.cached_tokens)))
    }

    /// `[V]` f32, little-endian.
    fn read_logits(&mut self, bytes: &[u8]) {
        let (words, _) = bytes.as_chunks::<4>();
        self.logits.clear();
        self.logits.extend(words.iter().map(|word| f32::from_le_bytes(*word)));
    }

    /// Chooses a choice's next token and tells the driver at once; `None` if there is nothing
    /// to show yet.
    fn sample(&mut self, submission: &Submission, choice: u32) -> Result<Option<Delta>, Failure> {
        let vocabulary = self.model.tokenizer.vocabulary();
        let this = &mut self.choices[choice as usize];
        let position = u64::from(this.start.generation.tokens());
        // One seed serves all prompts: the same prompt twice is sampled as two choices are.
        let chosen = this.start.sampler.choose(&self.logits, self.first + choice, position)?;
        this.start.sampler.accept(chosen.token);
        let step = this.start.generation.push(vocabulary, chosen.token)?;
        match step.finished {
            None => submission.sampled(choice, chosen.token),
            Some(_) => submission.finish(choice),
        }
        let ends_text = step.finished.is_some() && vocabulary.is_end(chosen.token);
        if let Some(logprobs) = chosen.logprobs.filter(|_| !ends_text) {
            this.log(chosen.token, logprobs, vocabulary.text_bytes(chosen.token)?);
        }
        this.shown += step.text_delta.len();
        let stop_string = step.finished == Some(text::FinishReason::Stop) && !ends_text;
        let tokens = this.tokens_shown(step.finished.is_some() && !stop_string);
        let silent = step.text_delta.is_empty() && tokens.is_empty() && step.finished.is_none();
        Ok((!silent).then(|| Delta {
            choice: self.first + choice,
            text: step.text_delta,
            tokens,
            finished: step.finished.map(finish_reason),
        }))
    }

    /// A request that ran out of KV cache after it began has reached its length; any other
    /// refusal fails it.
    fn refused(&mut self, error: RequestError) -> Result<Vec<Delta>, Failure> {
        let began = self.choices.iter().any(|c| c.start.generation.tokens() > 0);
        if !(began && matches!(error, RequestError::TooLong { .. })) {
            return Err(error.into());
        }
        let mut deltas = Vec::new();
        for (choice, this) in (self.first..).zip(&mut self.choices) {
            if this.is_open() {
                let step = this.start.generation.cut_off();
                deltas.push(Delta {
                    choice,
                    text: step.text_delta,
                    tokens: this.tokens_shown(true),
                    finished: step.finished.map(finish_reason),
                });
            }
        }
        Ok(deltas)
    }
}

/// One choice.
#[derive(Clone)]
struct Choice {
    start: Start,
    /// Bytes of text shown.
    shown: usize,
    /// Bytes and characters of all tokens so far.
    bytes: usize,
    chars: u32,
    /// Tokens of which nothing is shown yet.
    held: VecDeque<TokenInfo>,
}

impl Choice {
    fn new(start: Start) -> Choice {
        Choice { start, shown: 0, bytes: 0, chars: 0, held: VecDeque::new() }
    }

    fn is_open(&self) -> bool {
        self.start.generation.finished().is_none()
    }

    /// Notes a token's log-probability, to be told with its text.
    fn log(&mut self, token: u32, logprobs: text::Logprobs, bytes: &[u8]) {
        let is_start = |b: &u8| b & 0xc0 != 0x80;
        // A token that goes on with a character begins where that one does.
        let inside = bytes.first().is_some_and(|b| !is_start(b));
        self.held.push_back(TokenInfo {
            token,
            logprob: logprobs.chosen,
            top: logprobs.top,
            offset: self.chars - u32::from(inside && self.chars > 0),
            begins: self.bytes,
        });
        self.bytes += bytes.len();
        self.chars += bytes.iter().filter(|b| is_start(b)).count() as u32;
    }

    /// The tokens that begin in the text shown so far, or all.
    fn tokens_shown(&mut self, all: bool) -> Vec<TokenInfo> {
        let shown = self.shown;
        let count = self.held.iter().take_while(|t| all || t.begins < shown).count();
        self.held.drain(..count).collect()
    }
}

fn finish_reason(reason: text::FinishReason) -> FinishReason {
    match reason {
        text::FinishReason::Stop => FinishReason::Stop,
        text::FinishReason::Length => FinishReason::Length,
    }
}
