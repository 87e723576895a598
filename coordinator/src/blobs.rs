//! `GET /v1/blobs/{hash}`: weights, for joined workers only.
//!
//! A blob is immutable, so its hash is its entity tag and ranges need no more care. It is
//! streamed from the folder; memory does not grow with it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::TryStreamExt;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

/// Bytes read from the file at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// The bearer tokens of live connections.
#[derive(Clone, Default)]
pub struct Tokens(Arc<Mutex<HashSet<String>>>);

/// One connection's token; it is worth nothing once this is dropped.
pub struct Grant {
    tokens: Tokens,
    token: String,
}

impl Tokens {
    /// A new random token.
    pub fn grant(&self) -> Grant {
        let token = crate::random::hex::<32>();
        self.live().insert(token.clone());
        Grant { tokens: self.clone(), token }
    }

    fn allow(&self, headers: &HeaderMap) -> bool {
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = value.and_then(|value| value.split_once(' '));
        token.is_some_and(|(scheme, token)| {
            scheme.eq_ignore_ascii_case("bearer") && self.live().contains(token.trim())
        })
    }

    fn live(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Grant {
    /// The token itself.
    pub fn token(&self) -> &str {
        &self.token
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.tokens.live().remove(&self.token);
    }
}

/// How many bytes of blobs have gone out since the start.
#[derive(Clone, Default)]
pub struct Sent(Arc<AtomicU64>);

impl Sent {
    /// Bytes handed to connections.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

#[derive(Clone)]
struct Blobs {
    folder: Arc<Path>,
    tokens: Tokens,
    sent: Sent,
}

/// `GET` and `HEAD /v1/blobs/{hash}` from `folder`, where each file's name is its hash;
/// what goes out is counted in `sent`.
pub fn router(folder: PathBuf, tokens: Tokens, sent: Sent) -> Router {
    let state = Blobs { folder: folder.into(), tokens, sent };
    Router::new().route("/v1/blobs/{hash}", get(blob)).with_state(state)
}

async fn blob(
    State(blobs): State<Blobs>,
    UrlPath(hash): UrlPath<String>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    if !blobs.tokens.allow(&headers) {
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
        let reason = "blobs are for joined workers: send the welcome's blob_token as bearer\n";
        return (StatusCode::UNAUTHORIZED, challenge, reason).into_response();
    }
    // Also what keeps the path inside the folder.
    if hash.len() != 64 || !hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return (StatusCode::BAD_REQUEST, "a blob's name is 64 lower-case hex digits\n")
            .into_response();
    }
    match answer(&blobs, &hash, &method, &headers).await {
        Ok(response) => response,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            (StatusCode::NOT_FOUND, "no such blob\n").into_response()
        }
        Err(error) => {
            tracing::error!(%error, hash, "a blob could not be read");
            (StatusCode::INTERNAL_SERVER_ERROR, "the blob could not be read\n").into_response()
        }
    }
}

async fn answer(
    blobs: &Blobs,
    hash: &str,
    method: &Method,
    headers: &HeaderMap,
) -> std::io::Result<Response> {
    let mut file = tokio::fs::File::open(blobs.folder.join(hash)).await?;
    let total = file.metadata().await?.len();
    let tag = format!("\"{hash}\"");
    let fixed = [
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::CACHE_CONTROL, "private, max-age=31536000, immutable".to_owned()),
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::ETAG, tag.clone()),
    ];
    let is_tag = |value: &HeaderValue| value.as_bytes() == tag.as_bytes();
    if headers.get(header::IF_NONE_MATCH).is_some_and(is_tag) {
        return Ok((StatusCode::NOT_MODIFIED, fixed).into_response());
    }
    let ranged = headers.get(header::IF_RANGE).is_none_or(is_tag);
    let range = headers.get(header::RANGE).filter(|_| ranged).and_then(|v| v.to_str().ok());
    let (status, start, end) = match range.map_or(Range::Whole, |range| parse_range(range, total)) {
        Range::Whole => (StatusCode::OK, 0, total),
        Range::Part { start, end } => (StatusCode::PARTIAL_CONTENT, start, end),
        Range::Outside => {
            let span = [(header::CONTENT_RANGE, format!("bytes */{total}"))];
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, fixed, span).into_response());
        }
    };
    let body = if *method == Method::HEAD {
        Body::empty()
    } else {
        file.seek(std::io::SeekFrom::Start(start)).await?;
        let bytes = ReaderStream::with_capacity(file.take(end - start), BUFFER_BYTES);
        let sent = blobs.sent.clone();
        Body::from_stream(bytes.inspect_ok(move |bytes| sent.add(bytes.len())))
    };
    let mut response = (status, fixed, body).into_response();
    let mut set = |name, value: String| {
        let value = HeaderValue::from_str(&value).expect("digits and ASCII words");
        response.headers_mut().insert(name, value);
    };
    set(header::CONTENT_LENGTH, (end - start).to_string());
    if status == StatusCode::PARTIAL_CONTENT {
        set(header::CONTENT_RANGE, format!("bytes {start}-{}/{total}", end - 1));
    }
    Ok(response)
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    /// No range, or one that may be ignored (several, another unit, not understood).
    Whole,
    /// From `start` to before `end`; not empty.
    Part {
        start: u64,
        end: u64,
    },
    Outside,
}

/// RFC 9110, 14.1.2: one range of bytes.
fn parse_range(value: &str, total: u64) -> Range {
    let Some((first, last)) = value.strip_prefix("bytes=").and_then(|r| r.split_once('-')) else {
        return Range::Whole;
    };
    let (start, end) = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(start), Ok(last)) if start <= last => (start, last.saturating_add(1).min(total)),
        (Ok(start), Err(_)) if last.trim().is_empty() => (start, total),
        (Err(_), Ok(count)) if first.trim().is_empty() => (total.saturating_sub(count), total),
        _ => return Range::Whole,
    };
    if start < end { Range::Part { start, end } } else { Range::Outside }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_clipped_to_the_blob() {
        let part = |start, end| Range::Part { start, end };
        for (value, expected) in [
            ("bytes=0-0", part(0, 1)),
            ("bytes=2-", part(2, 10)),
            ("bytes=2-99", part(2, 10)),
            ("bytes=-3", part(7, 10)),
            ("bytes=-99", part(0, 10)),
            ("bytes=10-", Range::Outside),
            ("bytes=-0", Range::Outside),
            ("bytes=3-2", Range::Whole),
            ("bytes=0-1,4-5", Range::Whole),
            ("lines=0-1", Range::Whole),
            ("bytes=x-y", Range::Whole),
        ] {
            assert_eq!(parse_range(value, 10), expected, "{value}");
        }
        assert_eq!(parse_range("bytes=0-", 0), Range::Outside);
        assert_eq!(parse_range("bytes=0-18446744073709551615", 10), part(0, 10));
    }
}
