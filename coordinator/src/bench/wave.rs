//! Some sessions at once, from their requests to the last token.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use api::ErrorBody;
use reqwest::{Client, Url};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::task::JoinSet;

/// Longest time for one session.
const SESSION_WITHIN: Duration = Duration::from_secs(600);
/// Bytes of a line of a stream at most.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Bytes of an error's body that are read.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// What prompts are made of: in most vocabularies each is one token.
const WORDS: [&str; 16] = [
    "river", "stone", "light", "paper", "green", "house", "water", "table", "music", "north",
    "bread", "silver", "garden", "window", "summer", "letter",
];

/// What a wave asks for.
pub(super) struct Asked {
    pub(super) model: String,
    /// `weft.parallelism`, where it is not the default.
    pub(super) parallelism: Option<String>,
    pub(super) sessions: u32,
    /// Words of each prompt.
    pub(super) prompt: u32,
    /// Tokens of each answer.
    pub(super) tokens: u32,
    /// Makes the prompts those of no other wave, so that no KV cache is found again.
    pub(super) seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Measured {
    /// Tokens per second, all sessions together, while all of them decode.
    pub tokens_per_s: f64,
    /// From the requests to the first token, the median of all sessions, seconds.
    pub first_token_s: f64,
    /// Between two tokens of a session, the slowest of a hundred, seconds.
    pub gap_p99_s: f64,
}

/// One session.
struct Stream {
    /// When its pieces came, seconds since the requests.
    pieces_s: Vec<f64>,
    /// Tokens that they are.
    tokens: u32,
}

/// Runs a wave. The inner error is why the coordinator refuses such requests.
///
/// # Errors
/// The coordinator is not there, or an answer broke off.
pub(super) async fn wave(
    client: &Client,
    fleet: &Url,
    asked: &Asked,
) -> anyhow::Result<Result<Measured, String>> {
    let url = fleet.join("v1/completions").context("the address")?;
    let began = Instant::now();
    let mut running = JoinSet::new();
    for session in 0..asked.sessions {
        let request = client.post(url.clone()).timeout(SESSION_WITHIN);
        let request = request.header("content-type", "application/json");
        running.spawn(stream(request.body(body(asked, session).to_string()), began));
    }
    let mut streams = Vec::new();
    while let Some(ended) = running.join_next().await {
        match ended.context("a session's task")?? {
            Ok(stream) => streams.push(stream),
            // The others are dropped, and so cancelled.
            Err(refused) => return Ok(Err(refused)),
        }
    }
    measured(&streams).map(Ok)
}

/// The request of one session.
fn body(asked: &Asked, session: u32) -> Value {
    let mut state = asked.seed << 32 | u64::from(session);
    let words: Vec<&str> = (0..asked.prompt.max(1)).map(|_| WORDS[word(&mut state)]).collect();
    let mut body = json!({
        "model": asked.model,
        "prompt": words.join(" "),
        "max_tokens": asked.tokens,
        "temperature": 0,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    if let Some(parallelism) = &asked.parallelism {
        body["weft"] = Value::Object(Map::from_iter([("parallelism".into(), json!(parallelism))]));
    }
    body
}

/// SplitMix64's next number, as an index of [`WORDS`].
fn word(state: &mut u64) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut x = *state;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) % WORDS.len() as u64) as usize
}

/// An event of the stream, as far as it counts here.
#[derive(Deserialize)]
struct Piece {
    #[serde(default)]
    choices: Vec<Value>,
    usage: Option<Usage>,
    error: Option<api::ErrorDetail>,
}

#[derive(Deserialize)]
struct Usage {
    completion_tokens: u32,
}

async fn stream(
    request: reqwest::RequestBuilder,
    began: Instant,
) -> anyhow::Result<Result<Stream, String>> {
    let mut answer = request.send().await.context("a request")?;
    let status = answer.status();
    if !status.is_success() {
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await? {
            body.extend_from_slice(&piece);
            if body.len() > ERROR_BYTES_MAX {
                break;
            }
        }
        let said = serde_json::from_slice::<ErrorBody>(&body);
        return Ok(Err(said.map_or_else(|_| format!("status {status}"), |b| b.error.message)));
    }
    let mut stream = Stream { pieces_s: Vec::new(), tokens: 0 };
    let mut line = Vec::new();
    while let Some(bytes) = answer.chunk().await.context("a stream")? {
        let now = began.elapsed().as_secs_f64();
        for &byte in bytes.iter() {
            if byte != b'\n' {
                line.push(byte);
                if line.len() > LINE_BYTES_MAX {
                    bail!("a line of a stream has more than {LINE_BYTES_MAX} bytes");
                }
                continue;
            }
            let event = std::mem::take(&mut line);
            match event.strip_prefix(b"data:").map(<[u8]>::trim_ascii) {
                None => continue,
                Some(b"[DONE]") => return Ok(Ok(stream)),
                Some(json) => {
                    let piece: Piece = serde_json::from_slice(json).context("a stream's event")?;
                    if let Some(error) = piece.error {
                        return Ok(Err(error.message));
                    }
                    match piece.usage {
                        Some(usage) => stream.tokens = usage.completion_tokens,
                        None if !piece.choices.is_empty() => stream.pieces_s.push(now),
                        None => {}
                    }
                }
            }
        }
    }
    bail!("a stream broke off after {} pieces", stream.pieces_s.len())
}

/// A wave's figures. Decoding is counted from when every session has its first piece until the
/// first of them ends; where they never all run at once, from the first piece to the last.
fn measured(streams: &[Stream]) -> anyhow::Result<Measured> {
    if streams.iter().any(|stream| stream.pieces_s.len() < 2) {
        bail!("a session ended after less than two tokens: try another --prompt");
    }
    let firsts = || streams.iter().map(|stream| stream.pieces_s[0]);
    let lasts = || streams.iter().map(|stream| stream.pieces_s[stream.pieces_s.len() - 1]);
    let (mut from, mut to) = (firsts().fold(0.0, f64::max), lasts().fold(f64::MAX, f64::min));
    if from >= to {
        (from, to) = (firsts().fold(f64::MAX, f64::min), lasts().fold(0.0, f64::max));
    }
    let tokens_within = |stream: &Stream| {
        let within = stream.pieces_s.iter().filter(|&&at| from < at && at <= to).count();
        within as f64 * f64::from(stream.tokens) / stream.pieces_s.len() as f64
    };
    let gaps = streams.iter().flat_map(|s| s.pieces_s.windows(2).map(|pair| pair[1] - pair[0]));
    let mut gaps: Vec<f64> = gaps.collect();
    gaps.sort_by(f64::total_cmp);
    Ok(Measured {
        tokens_per_s: streams.iter().map(tokens_within).sum::<f64>() / (to - from).max(1e-9),
        first_token_s: super::report::median(firsts().collect()),
        gap_p99_s: gaps[(gaps.len() * 99 / 100).min(gaps.len() - 1)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream_of(pieces_s: &[f64], tokens: u32) -> Stream {
        Stream { pieces_s: pieces_s.to_vec(), tokens }
    }

    #[test]
    fn decoding_is_counted_while_all_sessions_run() {
        let one = stream_of(&[1.0, 2.0, 3.0, 4.0], 4);
        // Its pieces are two tokens each.
        let other = stream_of(&[2.0, 3.0, 4.0, 5.0], 8);
        let found = measured(&[one, other]).unwrap();
        // From 2 to 4: two tokens and four.
        assert_eq!(found.tokens_per_s, 3.0);
        assert_eq!(found.first_token_s, 1.5);
        assert_eq!(found.gap_p99_s, 1.0);
    }

    #[test]
    fn sessions_that_wait_for_each_other_are_counted_from_end_to_end() {
        let found = measured(&[stream_of(&[1.0, 2.0], 2), stream_of(&[3.0, 5.0], 2)]).unwrap();
        // From 1 to 5: all but the first.
        assert_eq!(found.tokens_per_s, 0.75);
        assert!(measured(&[stream_of(&[1.0], 1)]).is_err());
    }

    #[test]
    fn no_two_prompts_are_alike_and_the_default_goes_without_the_option() {
        let asked = |seed, parallelism: Option<&str>| Asked {
            model: "m".into(),
            parallelism: parallelism.map(str::to_owned),
            sessions: 2,
            prompt: 8,
            tokens: 4,
            seed,
        };
        let prompts = [(1, 0), (1, 1), (2, 0)].map(|(seed, session)| {
            body(&asked(seed, None), session)["prompt"].as_str().unwrap().to_owned()
        });
        assert_eq!(prompts[0].split(' ').count(), 8);
        assert!(prompts[0] != prompts[1] && prompts[0] != prompts[2] && prompts[1] != prompts[2]);
        assert!(body(&asked(1, None), 0).get("weft").is_none());
        assert_eq!(body(&asked(1, Some("none")), 0)["weft"]["parallelism"], "none");
    }
}
