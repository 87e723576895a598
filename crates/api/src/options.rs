//! What every generation can be asked for.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::error::Invalid;
use crate::fields::{Fields, empty, invalid_value, name_of, too_long, wrong_type};
use crate::weft::WeftOptions;

/// Choices of a request at most.
pub const CHOICES_MAX: u32 = 16;
/// Stop strings of a request at most.
pub const STOPS_MAX: usize = 16;
/// Bytes of a stop string at most.
pub const STOP_BYTES_MAX: usize = 1024;
/// Entries of `logit_bias` at most.
pub const LOGIT_BIASES_MAX: usize = 1024;
/// Seconds after which a request that has not finished fails, if it does not say.
pub const TIMEOUT_DEFAULT_S: f64 = 300.0;
/// What it may say at most.
pub const TIMEOUT_MAX_S: f64 = 3600.0;
/// What it may say at least.
pub const TIMEOUT_MIN_S: f64 = 0.001;

/// How to choose tokens and when to end. What is `None` has the server's default. The ranges
/// of the sampling parameters are the sampler's to check.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Options {
    /// Tokens wanted per choice at most; the endpoint's default if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Choices wanted, 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<u32>,
    /// Strings that end a choice; they are not part of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Divides the logits; 0 is greedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Keeps the likeliest tokens that together reach this probability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Keeps the K likeliest tokens; 0 keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// Keeps tokens at least this likely relative to the likeliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// The same seed and request give the same answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Lowers a token's logit for each time it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f32>,
    /// Lowers a token's logit once it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f32>,
    /// Divides (or multiplies) the logits of tokens that came, prompt included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// Added to tokens' logits, by id.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub logit_bias: BTreeMap<u32, f32>,
    /// Seconds after which the request fails if it has not finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<f64>,
    /// What it asks of its route.
    #[serde(skip_serializing_if = "WeftOptions::is_default")]
    pub weft: WeftOptions,
}

impl Options {
    /// Takes the options out of a request; `max_names` are the names that the length goes by,
    /// which must not contradict each other.
    pub(crate) fn take(fields: &mut Fields, max_names: [&str; 2]) -> Result<Options, Invalid> {
        let [newer, older] = max_names;
        let limits =
            (fields.integer_in(newer, 1..=u32::MAX)?, fields.integer_in(older, 1..=u32::MAX)?);
        if let (Some(a), Some(b)) = limits
            && a != b
        {
            let problem = format!("'{newer}' says {a}, '{older}' says {b}: set one of them.");
            return Err(invalid_value(older, &problem));
        }
        let single = |x: Option<f64>| x.map(|x| x as f32);
        Ok(Options {
            max_tokens: limits.0.or(limits.1),
            n: fields.integer_in("n", 1..=CHOICES_MAX)?,
            stop: take_stop(fields)?,
            temperature: single(fields.decimal("temperature")?),
            top_p: single(fields.decimal("top_p")?),
            top_k: take_top_k(fields)?,
            min_p: single(fields.decimal("min_p")?),
            seed: fields.bits64("seed")?,
            frequency_penalty: single(fields.decimal("frequency_penalty")?),
            presence_penalty: single(fields.decimal("presence_penalty")?),
            repetition_penalty: single(fields.decimal("repetition_penalty")?),
            logit_bias: take_logit_bias(fields)?,
            timeout: fields.decimal_in("timeout", TIMEOUT_MIN_S..=TIMEOUT_MAX_S)?,
            weft: WeftOptions::take(fields)?,
        })
    }

    /// Choices wanted.
    pub fn choices(&self) -> u32 {
        self.n.unwrap_or(1)
    }
}

/// Whether and how to stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StreamOptions {
    /// A last chunk with the usage.
    pub include_usage: bool,
}

/// Takes `stream` and `stream_options`: `None` if it is not to be streamed.
pub(crate) fn take_stream(fields: &mut Fields) -> Result<(bool, StreamOptions), Invalid> {
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let mut include_usage = false;
    if let Some(value) = fields.take("stream_options") {
        let mut inner = Fields::of_value(value, "stream_options")?;
        include_usage = inner.boolean("include_usage")?.unwrap_or(false);
        if !stream {
            let problem = "it is only allowed when 'stream' is true.";
            return Err(invalid_value("stream_options", problem));
        }
    }
    Ok((stream, StreamOptions { include_usage }))
}

fn take_stop(fields: &mut Fields) -> Result<Vec<String>, Invalid> {
    let list = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(one @ Value::String(_)) => vec![one],
        Some(other) => {
            return Err(wrong_type("stop", "a string or an array of strings", &other));
        }
    };
    if list.len() > STOPS_MAX {
        return Err(too_long("stop", "array", STOPS_MAX, list.len()));
    }
    let string = |(i, value): (usize, Value)| match value {
        Value::String(s) if s.is_empty() => Err(empty(&format!("stop[{i}]"), "string")),
        Value::String(s) if s.len() > STOP_BYTES_MAX => {
            Err(too_long(&format!("stop[{i}]"), "string", STOP_BYTES_MAX, s.len()))
        }
        Value::String(s) => Ok(s),
        other => Err(wrong_type(&format!("stop[{i}]"), "a string", &other)),
    };
    list.into_iter().enumerate().map(string).collect()
}

/// Some clients say -1 for no limit.
fn take_top_k(fields: &mut Fields) -> Result<Option<u32>, Invalid> {
    match fields.take("top_k") {
        None => Ok(None),
        Some(value) if value.as_i64() == Some(-1) => Ok(Some(0)),
        Some(value) => match value.as_u64() {
            Some(k) => Ok(Some(u32::try_from(k).unwrap_or(u32::MAX))),
            None => Err(wrong_type("top_k", "an integer, 0 or more", &value)),
        },
    }
}

fn take_logit_bias(fields: &mut Fields) -> Result<BTreeMap<u32, f32>, Invalid> {
    let map = match fields.take("logit_bias") {
        None => return Ok(BTreeMap::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong_type("logit_bias", "an object", &other)),
    };
    if map.len() > LOGIT_BIASES_MAX {
        return Err(too_long("logit_bias", "array", LOGIT_BIASES_MAX, map.len()));
    }
    let entry = |(key, value): (String, Value)| {
        let Ok(token) = key.parse::<u32>() else {
            return Err(invalid_value("logit_bias", "its keys must be token ids."));
        };
        match value.as_f64() {
            Some(bias) => Ok((token, bias as f32)),
            None => Err(invalid_value(
                "logit_bias",
                &format!(
                    "the bias of token {token} must be a decimal, but it is {}.",
                    name_of(&value)
                ),
            )),
        }
    };
    map.into_iter().map(entry).collect()
}
