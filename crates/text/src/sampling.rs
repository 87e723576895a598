//! What a request says about choosing tokens, checked.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Entries of `logit_bias` at most.
pub const LOGIT_BIAS_MAX: usize = 1024;
/// Alternatives reported per token at most, as OpenAI allows.
pub const TOP_LOGPROBS_MAX: usize = 20;
/// The greatest `repetition_penalty`.
pub const REPETITION_PENALTY_MAX: f32 = 10.0;

/// How tokens are chosen. [`crate::Sampler`] says in which order these apply.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 to 2; 0 takes the most likely token, the lowest id among equals.
    pub temperature: f32,
    /// Keeps the k most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// 0 to 1: keeps the most likely tokens until they have this much probability together.
    pub top_p: f32,
    /// 0 to 1: keeps tokens at least this likely, relative to the most likely one.
    pub min_p: f32,
    /// Above 0, to [`REPETITION_PENALTY_MAX`]; 1 does nothing. Divides the positive logits of
    /// tokens that the prompt or the answer has, and multiplies their negative ones.
    pub repetition_penalty: f32,
    /// −2 to 2: taken off a token's logit for each time that the answer has it.
    pub frequency_penalty: f32,
    /// −2 to 2: taken off the logits of tokens that the answer has.
    pub presence_penalty: f32,
    /// −100 to 100, added to the logits of these tokens.
    pub logit_bias: BTreeMap<u32, f32>,
    /// What the random numbers depend on; the same seed gives the same answer.
    pub seed: u64,
    /// The number of alternatives to report with each token's log-probability, 0 to
    /// [`TOP_LOGPROBS_MAX`]; `None` reports nothing.
    pub logprobs: Option<u32>,
}

impl Default for SamplingParams {
    /// OpenAI's defaults, with seed 0.
    fn default() -> Self {
        SamplingParams {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

impl SamplingParams {
    /// Checks every parameter against its range, for a vocabulary of `vocabulary` tokens.
    ///
    /// # Errors
    /// [`Error::BadParameter`], naming the first that is out of its range.
    pub fn check(&self, vocabulary: usize) -> Result<()> {
        within("temperature", self.temperature, 0.0, 2.0)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        within("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        let repetition = self.repetition_penalty;
        if !(repetition > 0.0 && repetition <= REPETITION_PENALTY_MAX) {
            let problem =
                format!("{repetition}, expected above 0 and at most {REPETITION_PENALTY_MAX}");
            return Err(Error::BadParameter { name: "repetition_penalty", problem });
        }
        if self.logit_bias.len() > LOGIT_BIAS_MAX {
            let problem =
                format!("{} tokens, expected at most {LOGIT_BIAS_MAX}", self.logit_bias.len());
            return Err(Error::BadParameter { name: "logit_bias", problem });
        }
        for (&id, &bias) in &self.logit_bias {
            within("logit_bias", bias, -100.0, 100.0)?;
            if id as usize >= vocabulary {
                let problem = format!("token {id}, but the model has {vocabulary} tokens");
                return Err(Error::BadParameter { name: "logit_bias", problem });
            }
        }
        if let Some(count) = self.logprobs.filter(|&count| count as usize > TOP_LOGPROBS_MAX) {
            let problem = format!("{count}, expected 0 to {TOP_LOGPROBS_MAX}");
            return Err(Error::BadParameter { name: "top_logprobs", problem });
        }
        Ok(())
    }
}

fn within(name: &'static str, value: f32, low: f32, high: f32) -> Result<()> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    let problem = format!("{value}, expected {low} to {high}");
    Err(Error::BadParameter { name, problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_parameter_is_refused_by_name_outside_its_range() {
        let ok = SamplingParams::default();
        ok.check(10).unwrap();
        let bias = |id, value| BTreeMap::from([(id, value)]);
        let cases = [
            ("temperature", SamplingParams { temperature: 2.1, ..ok.clone() }),
            ("temperature", SamplingParams { temperature: f32::NAN, ..ok.clone() }),
            ("top_p", SamplingParams { top_p: -0.1, ..ok.clone() }),
            ("min_p", SamplingParams { min_p: 1.1, ..ok.clone() }),
            ("frequency_penalty", SamplingParams { frequency_penalty: -2.5, ..ok.clone() }),
            ("presence_penalty", SamplingParams { presence_penalty: 3.0, ..ok.clone() }),
            ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..ok.clone() }),
            ("repetition_penalty", SamplingParams { repetition_penalty: 11.0, ..ok.clone() }),
            ("logit_bias", SamplingParams { logit_bias: bias(3, 101.0), ..ok.clone() }),
            ("logit_bias", SamplingParams { logit_bias: bias(10, 1.0), ..ok.clone() }),
            ("top_logprobs", SamplingParams { logprobs: Some(21), ..ok.clone() }),
        ];
        for (name, params) in cases {
            let error = params.check(10).unwrap_err();
            assert!(error.to_string().starts_with(name), "{error}");
            assert_eq!(error.fault(), crate::Fault::Request);
        }
        let edges = SamplingParams {
            temperature: 2.0,
            top_p: 0.0,
            min_p: 1.0,
            frequency_penalty: -2.0,
            logit_bias: bias(9, -100.0),
            logprobs: Some(20),
            ..ok
        };
        edges.check(10).unwrap();
    }
}
