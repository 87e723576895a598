//! Files of the Hugging Face Hub.
//!
//! One `HEAD` tells a file's length and, for a large one, its SHA-256 (`x-linked-etag`); one
//! `GET` with a range fetches what is missing. This is the Hub's plain HTTP interface, used
//! directly: the `hf-hub` crate (1.0) does not resume, and follows the redirect that drops
//! the hash.

use std::fs;
use std::time::Duration;

use reqwest::{Client, Response, StatusCode, header, redirect};
use tokio::io::AsyncWriteExt;

use super::progress::Progress;
use super::{Expected, PullError, Target};
use crate::store::StoreError;

/// The Hub itself; the environment's `HF_ENDPOINT` names a mirror.
pub const ENDPOINT: &str = "https://huggingface.co";
/// How long a connection may take to be made.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How long the other side may send nothing.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Redirects followed at most.
const REDIRECTS_MAX: usize = 10;

/// A way to the Hub.
pub struct Hub {
    endpoint: String,
    token: Option<String>,
    /// Stays on the Hub: its answers, not its storage's, have the hash.
    asking: Client,
    fetching: Client,
}

/// What the Hub says of a file.
struct About {
    bytes: Option<u64>,
    sha256: Option<String>,
}

impl Hub {
    /// The Hub at `endpoint`, asked with `token` if there is one.
    ///
    /// # Panics
    /// If this machine's TLS cannot be set up.
    pub fn new(endpoint: &str, token: Option<String>) -> Hub {
        let builder = || {
            Client::builder()
                .user_agent(concat!("weft/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT_WITHIN)
                .read_timeout(SILENCE_MAX)
        };
        let same_host = redirect::Policy::custom(|attempt| {
            let stays = attempt.previous().last().is_some_and(|last| {
                (last.host_str(), last.port()) == (attempt.url().host_str(), attempt.url().port())
            });
            match stays && attempt.previous().len() <= REDIRECTS_MAX {
                true => attempt.follow(),
                false => attempt.stop(),
            }
        });
        let built = "TLS and the client's settings are sound";
        Hub {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token,
            asking: builder().redirect(same_host).build().expect(built),
            fetching: builder()
                .redirect(redirect::Policy::limited(REDIRECTS_MAX))
                .build()
                .expect(built),
        }
    }

    /// The Hub as the environment has it: `HF_ENDPOINT`, `HF_TOKEN`.
    ///
    /// # Panics
    /// As [`Hub::new`].
    pub fn from_env() -> Hub {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Hub::new(&set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()), set("HF_TOKEN"))
    }

    /// Fetches a file, or the rest of it, and verifies it against what was expected, or else
    /// against what the Hub says.
    pub(super) async fn download(
        &self,
        repo: &str,
        file: &str,
        target: &Target,
        expected: &Expected,
    ) -> Result<(), PullError> {
        let url = format!("{}/{repo}/resolve/main/{}", self.endpoint, encode_path(file));
        let about = self.about(&url).await?;
        if let (Some(pinned), Some(got)) = (&expected.sha256, &about.sha256)
            && pinned != got
        {
            let (expected, got) = (pinned.clone(), got.clone());
            return Err(PullError::WrongHash { what: url, expected, got });
        }
        let expected = Expected {
            bytes: expected.bytes.or(about.bytes),
            sha256: expected.sha256.clone().or(about.sha256),
        };
        let resumed = self.fetch(&url, target, &expected).await?;
        match target.finish(&expected).await {
            // The part that was here may have been another file's: once more, from nothing.
            Err(PullError::WrongHash { .. }) if resumed => {
                self.fetch(&url, target, &expected).await?;
                target.finish(&expected).await
            }
            result => result,
        }
    }

    async fn about(&self, url: &str) -> Result<About, PullError> {
        let response = self.send(url, self.asking.head(url)).await?;
        let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let status = response.status();
        if !status.is_success() && !status.is_redirection() {
            return Err(refused(url, status));
        }
        let length = if status.is_success() { text("content-length") } else { None };
        let tag = text("x-linked-etag").map(|tag| tag.trim_start_matches("W/").trim_matches('"'));
        let is_sha256 = |tag: &&str| tag.len() == 64 && tag.bytes().all(|b| b.is_ascii_hexdigit());
        Ok(About {
            bytes: text("x-linked-size").or(length).and_then(|text| text.parse().ok()),
            sha256: tag.filter(is_sha256).map(str::to_ascii_lowercase),
        })
    }

    /// Appends what is missing to the partial file; true if some of it was there before.
    async fn fetch(
        &self,
        url: &str,
        target: &Target,
        expected: &Expected,
    ) -> Result<bool, PullError> {
        let partial = &target.partial;
        let mut have = fs::metadata(partial).map_or(0, |metadata| metadata.len());
        if expected.bytes.is_some_and(|bytes| have > bytes) {
            have = 0;
        }
        if have > 0 && expected.bytes == Some(have) {
            return Ok(true);
        }
        let mut request = self.fetching.get(url);
        if have > 0 {
            request = request.header(header::RANGE, format!("bytes={have}-"));
        }
        let mut response = self.send(url, request).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if have > 0 => {}
            StatusCode::OK => have = 0,
            StatusCode::RANGE_NOT_SATISFIABLE if have > 0 => return Ok(true),
            status => return Err(refused(url, status)),
        }
        let total = expected.bytes.or(response.content_length().map(|rest| have + rest));
        let name = target.path.file_name().unwrap_or_default().to_string_lossy();
        let mut progress = Progress::new(&name, total, have);
        let mut options = tokio::fs::OpenOptions::new();
        options.create(true).append(have > 0).write(true).truncate(have == 0);
        let mut file =
            options.open(partial).await.map_err(StoreError::io("cannot open", partial))?;
        let mut done = have;
        let full = |error, done: u64| {
            let needed = total.map_or(0, |total| total.saturating_sub(done));
            PullError::from(StoreError::write("the model", partial, needed, error))
        };
        let broke = loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break None,
                Err(error) => break Some(network(url, &error)),
            };
            if total.is_some_and(|total| done + chunk.len() as u64 > total) {
                let why = format!("it sends more than the {} bytes announced", total.unwrap_or(0));
                drop(file);
                let _ = fs::remove_file(partial);
                return Err(PullError::Refused { url: url.to_owned(), why });
            }
            file.write_all(&chunk).await.map_err(|error| full(error, done))?;
            done += chunk.len() as u64;
            progress.add(chunk.len() as u64);
        };
        // Also when it broke off: what has arrived is kept.
        file.flush().await.map_err(|error| full(error, done))?;
        file.sync_all().await.map_err(|error| full(error, done))?;
        progress.finish();
        if let Some(error) = broke {
            return Err(error);
        }
        if let Some(total) = total
            && done < total
        {
            let why = format!("the connection ended after {done} of {total} bytes");
            return Err(PullError::Network { url: url.to_owned(), why });
        }
        Ok(have > 0)
    }

    async fn send(
        &self,
        url: &str,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, PullError> {
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        request.send().await.map_err(|error| network(url, &error))
    }
}

/// The innermost cause says most: the outer errors say "error sending request".
fn network(url: &str, error: &reqwest::Error) -> PullError {
    let first: &dyn std::error::Error = error;
    let causes = std::iter::successors(Some(first), |error| error.source());
    let why = causes.last().map_or_else(String::new, ToString::to_string);
    PullError::Network { url: url.to_owned(), why }
}

fn refused(url: &str, status: StatusCode) -> PullError {
    if status.is_server_error() {
        return PullError::Network { url: url.to_owned(), why: format!("it answers {status}") };
    }
    let meaning = match status {
        StatusCode::NOT_FOUND => "no such repository or file",
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "no such repository, or not for everyone: set HF_TOKEN if you have access"
        }
        StatusCode::TOO_MANY_REQUESTS => "too many requests: try again later",
        _ => "unexpected",
    };
    PullError::Refused { url: url.to_owned(), why: format!("it answers {status}: {meaning}") }
}

/// A path in a URL: what is not plain is percent-encoded, slashes stay.
fn encode_path(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    let encode = |b: u8| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") };
    path.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_encoded_for_urls() {
        assert_eq!(encode_path("a/b c%ü.gguf"), "a/b%20c%25%C3%BC.gguf");
    }
}
