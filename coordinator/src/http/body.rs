//! Reads a request's body, bounded in bytes and time.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};

use super::failure::Failure;

/// Bytes of a request's body at most: twice the longest text that is tokenized, since JSON
/// writes a character of 3 bytes in up to 6.
pub(super) const BODY_BYTES_MAX: usize = 2 * text::INPUT_BYTES_MAX + (64 << 10);
/// A body that has not come by then is not waited for.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The body of a JSON request.
///
/// # Errors
/// 415 for another content type (so that a page of another origin cannot post here without
/// the browser asking us first), 413 past [`BODY_BYTES_MAX`], 408 if it does not come.
pub(super) async fn read_json(request: Request) -> Result<Bytes, Failure> {
    if !is_json(request.headers()) {
        let message = "The content type of your request must be application/json \
                       (curl: -H 'Content-Type: application/json').";
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(Failure::request(status, "unsupported_content_type", message.to_owned()));
    }
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    if length.is_some_and(|length| length > BODY_BYTES_MAX as u64) {
        return Err(too_large());
    }
    let read = axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX);
    match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) => Err(match is_length_limit(&error) {
            true => too_large(),
            false => {
                let message = "The body of your request could not be read to its end.";
                Failure::request(StatusCode::BAD_REQUEST, "incomplete_body", message.to_owned())
            }
        }),
        Err(_) => {
            let message = format!("The body of your request did not come within {BODY_TIMEOUT:?}.");
            Err(Failure::request(StatusCode::REQUEST_TIMEOUT, "body_timeout", message))
        }
    }
}

fn too_large() -> Failure {
    let message = format!(
        "The body of your request is too large: at most {BODY_BYTES_MAX} bytes are allowed."
    );
    Failure::request(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
}

/// `application/json`, or another type that is written in JSON.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()) else {
        return false;
    };
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json"
        || essence.strip_prefix("application/").is_some_and(|kind| kind.ends_with("+json"))
}

/// Whether a body was cut off at its limit, rather than by its connection.
fn is_length_limit(error: &axum::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if inner.to_string() == "length limit exceeded" {
            return true;
        }
        source = inner.source();
    }
    false
}
