//! Blobs over HTTP: hashed while they arrive, resumed where they broke off.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use protocol::{BlobHash, BlobRef};
use reqwest::{Client, StatusCode, Url, header};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};

use super::cache::Cache;
use super::{BlobError, Fetched, Keep, Kept, blocking};

/// How often a blob is tried.
pub const ATTEMPTS_MAX: u32 = 5;
/// Blobs fetched at once.
pub(super) const FETCHES_MAX: usize = 4;
/// Pieces that may wait for the disk.
const PIECES_MAX: usize = 16;
/// No byte for so long: the attempt has failed.
const STALL_MAX: Duration = Duration::from_secs(20);
/// No byte from another worker that fetches the same blob for so long: it has failed, too.
/// Longer than all attempts that may stall.
const OTHERS_STALL_MAX: Duration = Duration::from_secs(120);
/// Between attempts, times their number; and between looks at what another worker fetches.
const PAUSE: Duration = Duration::from_millis(200);
/// Read from disk at a time when an earlier attempt's bytes are hashed.
const BUFFER_BYTES: usize = 1 << 20;

type Progress = Arc<dyn Fn(u64) + Send + Sync>;
/// What was given out, and so may be a shard's.
type Given = Vec<(BlobHash, Weak<Kept>)>;

/// The cache, and the coordinator behind it.
#[derive(Debug)]
pub struct Http {
    pub(super) cache: Arc<Cache>,
    client: Client,
    base: Url,
    slots: Semaphore,
    given: Arc<Mutex<Given>>,
}

/// What is wanted, and how.
pub(super) struct Order<'a> {
    pub(super) blob: &'a BlobRef,
    /// What the coordinator lets it in by.
    pub(super) token: &'a str,
    pub(super) keep: Keep,
    /// Hears of bytes so far.
    pub(super) progress: Progress,
}

/// Why one attempt failed.
enum Failure {
    /// Another may succeed.
    Again(String),
    /// None will.
    Final(BlobError),
}

impl From<BlobError> for Failure {
    fn from(error: BlobError) -> Failure {
        Failure::Final(error)
    }
}

impl Http {
    /// Fetches from `{base}v1/blobs/{hash}`; `base` ends with a slash.
    pub fn new(cache: Cache, client: Client, base: Url) -> Http {
        let slots = Semaphore::new(FETCHES_MAX);
        Http { cache: Arc::new(cache), client, base, slots, given: Arc::default() }
    }

    pub(super) async fn fetch(&self, order: Order<'_>) -> Result<Fetched, BlobError> {
        let _slot = self.slots.acquire().await;
        let fetched = match self.find(&order).await? {
            Some(bytes) => Fetched { bytes, fetched_bytes: 0 },
            None => self.download(&order).await?,
        };
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.retain(|(_, bytes)| bytes.strong_count() > 0);
        given.push((order.blob.hash.clone(), Arc::downgrade(&fetched.bytes)));
        Ok(fetched)
    }

    async fn find(&self, order: &Order<'_>) -> Result<Option<Arc<Kept>>, BlobError> {
        let (cache, blob, keep) = (self.cache.clone(), order.blob.clone(), order.keep);
        let progress = order.progress.clone();
        blocking(move || cache.find(&blob, keep, &*progress)).await
    }

    async fn download(&self, order: &Order<'_>) -> Result<Fetched, BlobError> {
        let (blob, progress) = (order.blob, &order.progress);
        let (mut bytes, mut grew) = (0, Instant::now());
        let part = loop {
            if let Some(part) = self.cache.try_part(&blob.hash)? {
                break part;
            }
            // Another worker of this machine fetches the same blob: so it arrives here too.
            let now = self.cache.part_bytes(&blob.hash);
            if now > bytes {
                (bytes, grew) = (now, Instant::now());
                progress(bytes);
            } else if grew.elapsed() > OTHERS_STALL_MAX {
                return Err(BlobError::Stuck { path: self.cache.part_path(&blob.hash) });
            }
            sleep(PAUSE).await;
            if let Some(bytes) = self.find(order).await? {
                return Ok(Fetched { bytes, fetched_bytes: 0 });
            }
        };
        // It may have been finished between the look and the lock.
        if let Some(bytes) = self.find(order).await? {
            return Ok(Fetched { bytes, fetched_bytes: 0 });
        }
        self.make_room(blob.bytes).await?;
        let mut fetched_bytes = 0;
        let mut attempt = 1;
        loop {
            let failure = match self.attempt(order, &part, &mut fetched_bytes).await {
                Ok(bytes) => return Ok(Fetched { bytes, fetched_bytes }),
                Err(failure) => failure,
            };
            let hash = blob.hash.clone();
            match failure {
                // A resumed file may have been damaged before: once more, from the start.
                Failure::Final(BlobError::WrongHash { .. }) if attempt == 1 => {}
                Failure::Final(error) => return Err(error),
                Failure::Again(reason) if attempt == ATTEMPTS_MAX => {
                    return Err(BlobError::Network { hash, reason });
                }
                Failure::Again(reason) => {
                    tracing::warn!("blob {hash}: {reason}, attempt {attempt} of {ATTEMPTS_MAX}");
                }
            }
            sleep(PAUSE * attempt).await;
            attempt += 1;
        }
    }

    async fn make_room(&self, needed: u64) -> Result<(), BlobError> {
        let (cache, given) = (self.cache.clone(), self.given.clone());
        blocking(move || {
            let given = given.lock().unwrap_or_else(PoisonError::into_inner);
            let is_used = |hash: &BlobHash| {
                given.iter().any(|(used, bytes)| used == hash && bytes.strong_count() > 0)
            };
            cache.make_room(needed, is_used)
        })
        .await
    }

    /// One request, from where the partial file ends.
    async fn attempt(
        &self,
        order: &Order<'_>,
        part: &File,
        fetched_bytes: &mut u64,
    ) -> Result<Arc<Kept>, Failure> {
        let Order { blob, keep, ref progress, .. } = *order;
        let path = self.cache.part_path(&blob.hash);
        let io = |error| BlobError::io(&path, blob.bytes, error);
        let bytes = blob.bytes;
        let file = part.try_clone().map_err(io)?;
        let (writer_path, told) = (path.clone(), progress.clone());
        let mut writer = blocking(move || {
            Writer::resume(file, bytes, &*told)
                .map_err(|error| BlobError::io(&writer_path, bytes, error))
        })
        .await?;
        if writer.at < bytes {
            let response = self.request(order, writer.at).await?;
            if response.status() != StatusCode::PARTIAL_CONTENT {
                writer.restart().map_err(io)?;
            }
            let start = writer.at;
            let (received, outcome) = receive(response, writer, bytes, progress.clone()).await;
            writer = received.map_err(io)?;
            *fetched_bytes += writer.at - start;
            outcome.map_err(Failure::Again)?;
        }
        let got = writer.hasher.finalize().to_hex().to_string();
        if got != blob.hash {
            writer.restart().map_err(io)?;
            let (hash, from) = (blob.hash.clone(), self.base.to_string());
            return Err(BlobError::WrongHash { hash, got, from }.into());
        }
        let (cache, blob, part) = (self.cache.clone(), blob.clone(), part.try_clone().map_err(io)?);
        Ok(blocking(move || cache.finish(&blob, &part, keep)).await?)
    }

    /// Asks for the blob from `start` on; the answer's length is checked.
    async fn request(&self, order: &Order<'_>, start: u64) -> Result<reqwest::Response, Failure> {
        let Order { blob, token, .. } = *order;
        let hash = blob.hash.clone();
        let url = self.base.join(&format!("v1/blobs/{hash}"));
        let url = url.map_err(|error| Failure::Again(error.to_string()))?;
        let mut request = self.client.get(url).bearer_auth(token);
        if start > 0 {
            request = request.header(header::RANGE, format!("bytes={start}-"));
        }
        let again = |error: reqwest::Error| Failure::Again(plain(&error));
        let response = timeout(STALL_MAX, request.send()).await;
        let response = response.map_err(|_| Failure::Again("no answer".into()))?.map_err(again)?;
        let status = response.status();
        let expected = match status {
            StatusCode::OK => blob.bytes,
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(header::CONTENT_RANGE);
                let range = range.and_then(|v| v.to_str().ok()).unwrap_or_default();
                let due = format!("bytes {start}-{}/{}", blob.bytes - 1, blob.bytes);
                if range != due {
                    return Err(Failure::Again(format!("range {range:?} came, {due:?} was due")));
                }
                blob.bytes - start
            }
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                return Err(Failure::Again(format!("the coordinator answers {status}")));
            }
            status => return Err(BlobError::Refused { hash, status: status.to_string() }.into()),
        };
        match response.content_length() {
            Some(got) if got != expected => {
                let from = self.base.to_string();
                Err(BlobError::WrongLength { hash, expected, got, from }.into())
            }
            _ => Ok(response),
        }
    }
}

/// Writes a response's body as it comes. Gives the writer back, and how it went.
async fn receive(
    mut response: reqwest::Response,
    mut writer: Writer,
    bytes_max: u64,
    progress: Progress,
) -> (io::Result<Writer>, Result<(), String>) {
    let mut left = bytes_max.saturating_sub(writer.at);
    let (pieces, mut waiting) = mpsc::channel::<Bytes>(PIECES_MAX);
    let disk = tokio::task::spawn_blocking(move || {
        while let Some(piece) = waiting.blocking_recv() {
            writer.write(&piece)?;
            progress(writer.at);
        }
        Ok(writer)
    });
    let outcome = loop {
        match timeout(STALL_MAX, response.chunk()).await {
            Ok(Ok(Some(piece))) => {
                let Some(rest) = left.checked_sub(piece.len() as u64) else {
                    break Err("more bytes came than were announced".into());
                };
                left = rest;
                if pieces.send(piece).await.is_err() {
                    break Ok(()); // the disk failed, and says so itself
                }
            }
            Ok(Ok(None)) => break Ok(()),
            Ok(Err(error)) => break Err(plain(&error)),
            Err(_) => break Err(format!("nothing came for {} s", STALL_MAX.as_secs())),
        }
    };
    drop(pieces);
    let writer = disk.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    let short = matches!(&writer, Ok(writer) if writer.at < bytes_max);
    match outcome {
        Ok(()) if short => (writer, Err("the connection broke off".into())),
        outcome => (writer, outcome),
    }
}

/// The innermost reason: reqwest's own text only says that a request failed.
fn plain(error: &reqwest::Error) -> String {
    let mut reason: &dyn std::error::Error = error;
    while let Some(source) = reason.source() {
        reason = source;
    }
    reason.to_string()
}

/// A partial file and the hash of what it holds.
struct Writer {
    file: File,
    hasher: blake3::Hasher,
    at: u64,
}

impl Writer {
    /// Hashes what an earlier attempt left. More than `bytes` of it cannot be right.
    fn resume(mut file: File, bytes: u64, progress: &dyn Fn(u64)) -> io::Result<Writer> {
        if file.metadata()?.len() > bytes {
            file.set_len(0)?;
        }
        file.rewind()?;
        let (mut hasher, mut at) = (blake3::Hasher::new(), 0);
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(Writer { file, hasher, at }),
                n => {
                    hasher.update(&buffer[..n]);
                    at += n as u64;
                    progress(at);
                }
            }
        }
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hasher.reset();
        self.at = 0;
        Ok(())
    }

    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.hasher.update(piece);
        self.file.write_all(piece)?;
        self.at += piece.len() as u64;
        Ok(())
    }
}
