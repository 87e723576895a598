//! One round of measurements over HTTP.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// Sessions at once.
pub const SESSIONS: [usize; 3] = [1, 4, 8];
/// What native programs are asked for.
pub const NATIVE: Load = Load { decoded: 128, short_prompt: 16, long_prompt: 512 };
/// Token ids of prompts lie in this range: ordinary ones of any vocabulary.
const IDS: std::ops::Range<u64> = 1000..9000;
/// Tokens that would end a text early, of the default model.
const ENDS: [&str; 2] = ["0", "2"];
/// Longest time for one request.
const REQUEST_MAX: Duration = Duration::from_secs(300);

/// How much is asked for, tokens.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// That each session decodes.
    pub decoded: usize,
    /// Of a session's prompt while decoding is measured.
    pub short_prompt: usize,
    /// Of the prompt whose prefill is measured.
    pub long_prompt: usize,
}

/// What one round gave.
#[derive(Clone, Debug)]
pub struct Round {
    /// Tokens per second of all sessions together, for each of [`SESSIONS`].
    pub decode: [f64; 3],
    /// Prompt tokens per second, one session.
    pub prefill: f64,
    /// Seconds from the request to its first token, with the short prompt, one session.
    pub first_token_s: f64,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c] = self.decode;
        let (prefill, first_ms) = (self.prefill, self.first_token_s * 1e3);
        write!(f, "decode {a:.1} {b:.1} {c:.1}, prefill {prefill:.0}, first token {first_ms:.1} ms")
    }
}

/// Measures once. No two prompts begin alike, so no KV cache is found again.
pub fn measure(address: &str, round: u64, load: &Load) -> Result<Round> {
    let mut prompts = Prompts { state: round.wrapping_mul(0x9e37_79b9).wrapping_add(1) };
    let mut decode = [0.0; 3];
    let mut first_token_s = 0.0;
    for (rate, sessions) in decode.iter_mut().zip(SESSIONS) {
        let started = Instant::now();
        let (measured, first) = decode_of(address, &mut prompts, sessions, load)?;
        *rate = measured;
        if sessions == 1 {
            first_token_s = (first - started).as_secs_f64();
        }
    }
    let long = body(prompts.next(load.long_prompt), 1);
    let started = Instant::now();
    let (first, _) = stream(address, &long)?;
    let prefill = load.long_prompt as f64 / (first - started).as_secs_f64();
    Ok(Round { decode, prefill, first_token_s })
}

/// Tokens per second of so many sessions at once. What `round` numbers begins with prompts of
/// its own.
pub fn measure_decode(address: &str, round: u64, sessions: usize, load: &Load) -> Result<f64> {
    let mut prompts = Prompts { state: round.wrapping_mul(0x9e37_79b9).wrapping_add(2) };
    Ok(decode_of(address, &mut prompts, sessions, load)?.0)
}

/// The same, and when the first token came.
fn decode_of(
    address: &str,
    prompts: &mut Prompts,
    sessions: usize,
    load: &Load,
) -> Result<(f64, Instant)> {
    let bodies: Vec<Value> =
        (0..sessions).map(|_| body(prompts.next(load.short_prompt), load.decoded)).collect();
    let runs = std::thread::scope(|scope| {
        let runs: Vec<_> =
            bodies.iter().map(|body| scope.spawn(move || stream(address, body))).collect();
        runs.into_iter()
            .map(|run| run.join().expect("it does not panic"))
            .collect::<Result<Vec<_>>>()
    })?;
    let first = runs.iter().map(|run| run.0).min().context("a run")?;
    let last = runs.iter().map(|run| run.1).max().context("a run")?;
    Ok(((sessions * (load.decoded - 1)) as f64 / (last - first).as_secs_f64(), first))
}

/// Pseudo-random token ids (SplitMix64), the same in every run.
struct Prompts {
    state: u64,
}

impl Prompts {
    fn next(&mut self, tokens: usize) -> Vec<u64> {
        let mut id = || {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut x = self.state;
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            IDS.start + (x ^ (x >> 31)) % (IDS.end - IDS.start)
        };
        (0..tokens).map(|_| id()).collect()
    }
}

fn body(prompt: Vec<u64>, tokens: usize) -> Value {
    let never: serde_json::Map<String, Value> =
        ENDS.iter().map(|id| ((*id).to_owned(), json!(-100))).collect();
    json!({
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "logit_bias": never,
        "stream": true,
        "stream_options": {"include_usage": true},
    })
}

/// Runs one request; when its first token came and when its last.
fn stream(address: &str, body: &Value) -> Result<(Instant, Instant)> {
    let response = agent()
        .post(format!("{address}/v1/completions"))
        .header("content-type", "application/json")
        .send(body.to_string())?;
    let status = response.status();
    let mut lines = BufReader::new(response.into_body().into_reader()).lines();
    ensure!(status == 200, "{status}: {:?}", lines.next());
    let (mut first, mut last, mut usage) = (None, None, Value::Null);
    for line in lines {
        let line = line?;
        let Some(data) = line.strip_prefix("data:") else { continue };
        if data.trim() == "[DONE]" {
            let wanted = &body["max_tokens"];
            ensure!(&usage["completion_tokens"] == wanted, "it ended early: {usage}");
            return first.zip(last).context("no token came");
        }
        let now = Instant::now();
        let event: Value = serde_json::from_str(data)?;
        ensure!(event.get("error").is_none(), "{event}");
        if event["usage"].is_object() {
            usage = event["usage"].clone();
        } else {
            first.get_or_insert(now);
            last = Some(now);
        }
    }
    anyhow::bail!("the stream broke off")
}

/// `GET` as JSON.
pub fn get(address: &str, path: &str) -> Result<Value> {
    let text = agent().get(format!("{address}{path}")).call()?.body_mut().read_to_string()?;
    serde_json::from_str(&text).with_context(|| format!("{path}: {text}"))
}

pub fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(REQUEST_MAX))
        .http_status_as_error(false)
        .build();
    config.new_agent()
}
