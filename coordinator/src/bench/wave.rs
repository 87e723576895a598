//! Some sessions at once, from their requests to the last token.

use std::time::{Duration, Instant};

use api::ErrorBody;
use reqwest::{Client, Url};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::task::JoinSet;

use super::report::median;

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
    /// Tokens of all sessions, over the time from the requests to the last token, per second.
    pub tokens_per_s: f64,
    /// Tokens of one session over the time from its first to its last, the median, per second.
    pub each_per_s: f64,
    /// From the request to the first token, the median, seconds.
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

/// Runs a wave.
///
/// # Errors
/// Why there are no figures: the coordinator refuses such requests, or is gone.
pub(super) async fn wave(client: &Client, fleet: &Url, asked: &Asked) -> Result<Measured, String> {
    let url = fleet.join("v1/completions").map_err(|error| error.to_string())?;
    let began = Instant::now();
    let mut running = JoinSet::new();
    for session in 0..asked.sessions {
        let request = client.post(url.clone()).timeout(SESSION_WITHIN);
        let request = request.header("content-type", "application/json");
        running.spawn(stream(request.body(body(asked, session).to_string()), began));
    }
    let mut streams = Vec::new();
    // At the first that fails the others are dropped, and so cancelled.
    while let Some(ended) = running.join_next().await {
        streams.push(ended.map_err(|error| error.to_string())??);
    }
    measured(&streams)
}

/// The request of one session.
fn body(asked: &Asked, session: u32) -> Value {
    let mut state = asked.seed ^ u64::from(session).rotate_left(32);
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

/// One session, from its request on.
async fn stream(request: reqwest::RequestBuilder, began: Instant) -> Result<Stream, String> {
    let lost = |error: reqwest::Error| error.to_string();
    let mut answer = request.send().await.map_err(lost)?;
    let status = answer.status();
    if !status.is_success() {
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(lost)? {
            body.extend_from_slice(&piece);
            if body.len() > ERROR_BYTES_MAX {
                break;
            }
        }
        let said = serde_json::from_slice::<ErrorBody>(&body);
        return Err(said.map_or_else(|_| format!("status {status}"), |b| b.error.message));
    }
    let mut stream = Stream { pieces_s: Vec::new(), tokens: 0 };
    let mut line = Vec::new();
    while let Some(bytes) = answer.chunk().await.map_err(lost)? {
        let now = began.elapsed().as_secs_f64();
        for &byte in bytes.iter() {
            if byte != b'\n' {
                line.push(byte);
                if line.len() > LINE_BYTES_MAX {
                    return Err(format!("a line of a stream has over {LINE_BYTES_MAX} bytes"));
                }
                continue;
            }
            let event = std::mem::take(&mut line);
            match event.strip_prefix(b"data:").map(<[u8]>::trim_ascii) {
                None => continue,
                Some(b"[DONE]") => return Ok(stream),
                Some(json) => {
                    let piece: Piece = serde_json::from_slice(json).map_err(|e| e.to_string())?;
                    if let Some(error) = piece.error {
                        return Err(error.message);
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
    Err(format!("a stream broke off after {} pieces", stream.pieces_s.len()))
}

/// A wave's figures; a session that ended with its first piece counts in the rate of all only.
fn measured(streams: &[Stream]) -> Result<Measured, String> {
    let longer: Vec<&Stream> = streams.iter().filter(|s| s.pieces_s.len() > 1).collect();
    if longer.is_empty() {
        return Err("every session ended with its first token: try another --prompt".to_owned());
    }
    let last = |stream: &Stream| stream.pieces_s.last().copied().unwrap_or_default();
    let tokens: f64 = streams.iter().map(|stream| f64::from(stream.tokens)).sum();
    let ended = streams.iter().map(last).fold(0.0, f64::max);
    // A piece may be several tokens: what comes after the first is in proportion.
    let rate = |stream: &&Stream| {
        let share = 1.0 - 1.0 / stream.pieces_s.len() as f64;
        f64::from(stream.tokens) * share / (last(stream) - stream.pieces_s[0]).max(1e-9)
    };
    let gaps = longer.iter().flat_map(|s| s.pieces_s.windows(2).map(|pair| pair[1] - pair[0]));
    let mut gaps: Vec<f64> = gaps.collect();
    gaps.sort_by(f64::total_cmp);
    Ok(Measured {
        tokens_per_s: tokens / ended.max(1e-9),
        each_per_s: median(longer.iter().map(rate).collect()),
        first_token_s: median(longer.iter().map(|stream| stream.pieces_s[0]).collect()),
        gap_p99_s: gaps[gaps.len() * 99 / 100],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream_of(pieces_s: &[f64], tokens: u32) -> Stream {
        Stream { pieces_s: pieces_s.to_vec(), tokens }
    }

    #[test]
    fn all_tokens_count_from_the_requests_on_and_each_session_from_its_first_token() {
        let one = stream_of(&[1.0, 2.0, 3.0, 4.0], 4);
        // Its pieces are two tokens each.
        let other = stream_of(&[2.0, 3.0, 4.0, 5.0], 8);
        let short = stream_of(&[1.0], 1);
        let found = measured(&[one, other, short]).unwrap();
        assert_eq!(found.tokens_per_s, 13.0 / 5.0);
        assert_eq!(found.each_per_s, 1.5);
        assert_eq!(found.first_token_s, 1.5);
        assert_eq!(found.gap_p99_s, 1.0);
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
