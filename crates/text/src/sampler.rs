//! Chooses a token from a row of logits.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::exp::{exp, weigh};
use crate::random::{random_bits, unit};
use crate::sampling::SamplingParams;

/// How many of the most likely tokens are sorted first in search of `top_p`'s border; four
/// times as many each time that they do not reach it.
const NUCLEUS_FIRST: usize = 256;

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// Its id.
    pub token: u32,
    /// Its log-probability and its alternatives', if asked for.
    pub logprobs: Option<Logprobs>,
}

/// Natural logarithms of probabilities under the model's own distribution: the softmax of the
/// raw logits, before biases, penalties and temperature.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// The chosen token's.
    pub chosen: f32,
    /// The most likely tokens', most likely first, lowest id first among equals.
    pub top: Vec<(u32, f32)>,
}

/// Chooses the tokens of one answer.
///
/// In this order: `logit_bias` is added; `repetition_penalty` applies to tokens of prompt and
/// answer, `frequency_penalty` and `presence_penalty` to tokens of the answer (OpenAI's
/// definition); with temperature 0 the greatest logit wins, the lowest id among equals; else
/// each token weighs exp((logit − greatest) / temperature), with NUMERICS.md's exp; the `top_k`
/// heaviest stay (lower ids first among equals); of these the heaviest that together reach
/// `top_p` of their weight; of these the ones of at least `min_p` of the heaviest. Of what
/// stays, ids ascending, the first is chosen whose running sum of weights (in f64) exceeds
/// u·total, u in [0, 1) being [`random_bits`] of the seed, the choice and the position.
///
/// Pure: the same calls give the same tokens on every machine.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    vocabulary: usize,
    /// How often the answer has each token; 0 for those that only the prompt has.
    seen: BTreeMap<u32, u32>,
    /// `[V]` logits as changed by biases and penalties; reused.
    logits: Vec<f32>,
    /// Candidates as [`rank`]s; reused.
    ranks: Vec<u64>,
    /// `[V]` weights, of the candidates at least; reused.
    weights: Vec<f32>,
}

impl Sampler {
    /// For a vocabulary of `vocabulary` tokens.
    ///
    /// # Errors
    /// [`Error::BadParameter`] as [`SamplingParams::check`].
    pub fn new(params: SamplingParams, vocabulary: usize) -> Result<Self> {
        params.check(vocabulary)?;
        let (logits, ranks, weights) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Sampler { params, vocabulary, seen: BTreeMap::new(), logits, ranks, weights })
    }

    /// Tells it the prompt, for `repetition_penalty`.
    pub fn see_prompt(&mut self, prompt: &[u32]) {
        if self.params.repetition_penalty != 1.0 {
            for &token in prompt {
                self.seen.entry(token).or_insert(0);
            }
        }
    }

    /// Tells it a token of the answer: each one, in order, chosen here or replayed.
    pub fn accept(&mut self, token: u32) {
        let params = &self.params;
        let penalised = params.repetition_penalty != 1.0
            || params.frequency_penalty != 0.0
            || params.presence_penalty != 0.0;
        if penalised {
            *self.seen.entry(token).or_insert(0) += 1;
        }
    }

    /// Chooses a token. `logits` is `[V]` f32; `choice` numbers the request's answers (`n`),
    /// `position` the answer's tokens.
    ///
    /// # Errors
    /// [`Error::LogitsLength`], or [`Error::NonFiniteLogit`] if any logit is not finite.
    pub fn choose(&mut self, logits: &[f32], choice: u32, position: u64) -> Result<Chosen> {
        if logits.len() != self.vocabulary {
            return Err(Error::LogitsLength { expected: self.vocabulary, got: logits.len() });
        }
        check_finite(logits)?;
        let token = if self.changes_logits() {
            let mut changed = std::mem::take(&mut self.logits);
            changed.clear();
            changed.extend_from_slice(logits);
            self.apply_biases_and_penalties(&mut changed);
            let token = self.pick(&changed, choice, position);
            self.logits = changed;
            token
        } else {
            self.pick(logits, choice, position)
        };
        let logprobs =
            self.params.logprobs.map(|count| self.logprobs(logits, token, count as usize));
        Ok(Chosen { token, logprobs })
    }

    fn changes_logits(&self) -> bool {
        !self.params.logit_bias.is_empty() || !self.seen.is_empty()
    }

    fn apply_biases_and_penalties(&self, logits: &mut [f32]) {
        let params = &self.params;
        for (&token, &bias) in &params.logit_bias {
            logits[token as usize] += bias;
        }
        for (&token, &count) in &self.seen {
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            if *logit > 0.0 {
                *logit /= params.repetition_penalty;
            } else {
                *logit *= params.repetition_penalty;
            }
            if count > 0 {
                *logit -= count as f32 * params.frequency_penalty + params.presence_penalty;
            }
            *logit = logit.clamp(f32::MIN, f32::MAX);
        }
    }

    fn pick(&mut self, logits: &[f32], choice: u32, position: u64) -> u32 {
        let best = argmax(logits);
        let params = &self.params;
        if params.temperature == 0.0 || params.top_k == 1 {
            return best;
        }
        let (greatest, temperature) = (logits[best as usize], params.temperature);
        let min_p = f64::from(params.min_p);
        let (ranks, weights) = (&mut self.ranks, &mut self.weights);
        ranks.clear();
        let k = params.top_k as usize;
        let cut = k > 0 && k < logits.len();
        if cut || params.top_p < 1.0 {
            ranks.extend(logits.iter().enumerate().map(|(id, &logit)| rank(id as u32, logit)));
        }
        if cut {
            ranks.select_nth_unstable(k - 1);
            ranks.truncate(k);
            weights.resize(logits.len(), 0.0);
            for &candidate in ranks.iter() {
                let token = token_of(candidate) as usize;
                weights[token] = exp((logits[token] - greatest) / temperature);
            }
        } else {
            weigh(logits, greatest, temperature, weights);
        }
        let weight = |token: u32| f64::from(weights[token as usize]);
        if params.top_p < 1.0 {
            keep_nucleus(ranks, params.top_p, weight);
        }
        if ranks.is_empty() {
            let stays = |&token: &u32| weight(token) >= min_p;
            return draw((0..logits.len() as u32).filter(stays), weight, params, choice, position);
        }
        ranks.retain(|&rank| weight(token_of(rank)) >= min_p);
        ranks.sort_unstable_by_key(|&rank| token_of(rank));
        draw(ranks.iter().map(|&rank| token_of(rank)), weight, params, choice, position)
    }

    /// For reporting only, so libm's ln will do.
    fn logprobs(&mut self, logits: &[f32], token: u32, count: usize) -> Logprobs {
        let greatest = logits[argmax(logits) as usize];
        weigh(logits, greatest, 1.0, &mut self.weights);
        let total: f64 = self.weights.iter().map(|&weight| f64::from(weight)).sum();
        let log_total = f64::from(greatest) + total.ln();
        let logprob = |token: u32| (f64::from(logits[token as usize]) - log_total) as f32;
        let ranks = &mut self.ranks;
        ranks.clear();
        if count > 0 {
            ranks.extend(logits.iter().enumerate().map(|(id, &logit)| rank(id as u32, logit)));
            if count < ranks.len() {
                ranks.select_nth_unstable(count - 1);
                ranks.truncate(count);
            }
            ranks.sort_unstable();
        }
        let top = ranks.iter().map(|&rank| (token_of(rank), logprob(token_of(rank)))).collect();
        Logprobs { chosen: logprob(token), top }
    }
}

/// Keeps the heaviest candidates that together have at least `top_p` of all their weight, and
/// never less than one.
fn keep_nucleus(ranks: &mut Vec<u64>, top_p: f32, weight: impl Fn(u32) -> f64) {
    // A sum over all in one fixed order, whatever order the selection left them in.
    ranks.sort_unstable_by_key(|&rank| token_of(rank));
    let total: f64 = ranks.iter().map(|&rank| weight(token_of(rank))).sum();
    let wanted = f64::from(top_p) * total;
    let mut sorted = 0;
    let mut sum = 0.0;
    let mut step = NUCLEUS_FIRST;
    while sorted < ranks.len() {
        let rest = &mut ranks[sorted..];
        let count = step.min(rest.len());
        if count < rest.len() {
            rest.select_nth_unstable(count - 1);
        }
        rest[..count].sort_unstable();
        for (index, &rank) in rest[..count].iter().enumerate() {
            sum += weight(token_of(rank));
            if sum >= wanted {
                ranks.truncate(sorted + index + 1);
                return;
            }
        }
        sorted += count;
        step *= 4;
    }
}

/// Chooses among `tokens` (ids ascending) by their weights.
fn draw(
    tokens: impl Iterator<Item = u32> + Clone,
    weight: impl Fn(u32) -> f64,
    params: &SamplingParams,
    choice: u32,
    position: u64,
) -> u32 {
    let total: f64 = tokens.clone().map(&weight).sum();
    let border = unit(random_bits(params.seed, choice, position)) * total;
    let mut sum = 0.0;
    let mut last = 0;
    for token in tokens {
        let w = weight(token);
        if w > 0.0 {
            last = token;
        }
        sum += w;
        if sum > border {
            return token;
        }
    }
    // u < 1, but u·total may round up to total.
    last
}

/// The greatest logit's token, the lowest id among equals.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

/// Orders candidates: greater logits come first, then lower ids. −0 equals 0.
fn rank(token: u32, logit: f32) -> u64 {
    let bits = (logit + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(!ascending) << 32 | u64::from(token)
}

fn token_of(rank: u64) -> u32 {
    rank as u32
}

fn check_finite(logits: &[f32]) -> Result<()> {
    let greatest = logits.iter().fold(0, |most: u32, x| most.max(x.to_bits() & 0x7fff_ffff));
    if greatest < f32::INFINITY.to_bits() {
        return Ok(());
    }
    let token = logits.iter().position(|x| !x.is_finite()).unwrap_or(0);
    Err(Error::NonFiniteLogit { token: token as u32, value: logits[token] })
}
