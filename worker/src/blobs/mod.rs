//! Where a worker's blobs come from: its disk cache and the coordinator, or the
//! coordinator's own folder.

mod cache;
mod download;
mod kept;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use protocol::{BlobHash, BlobRef};
use tokio::sync::Semaphore;

pub use cache::Cache;
pub use download::{ATTEMPTS_MAX, Http};
pub use kept::{Keep, Kept};

/// Hashed between two reports.
const HASH_BYTES: usize = 1 << 20;

/// Why a blob cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The bytes are not what their name says.
    #[error("blob {hash}: what came from {from} hashes to {got}: it was not kept")]
    WrongHash {
        /// What it must hash to.
        hash: BlobHash,
        /// What it hashes to.
        got: BlobHash,
        /// Whose mistake it is.
        from: String,
    },
    /// The length is not what was announced.
    #[error("blob {hash} has {got} bytes at {from}, {expected} were announced")]
    WrongLength {
        /// Which.
        hash: BlobHash,
        /// Announced.
        expected: u64,
        /// There.
        got: u64,
        /// Where.
        from: String,
    },
    /// The coordinator does not give it.
    #[error("blob {hash}: the coordinator answers {status}")]
    Refused {
        /// Which.
        hash: BlobHash,
        /// The HTTP status.
        status: String,
    },
    /// The coordinator cannot be reached.
    #[error("blob {hash}: {reason} ({ATTEMPTS_MAX} attempts)")]
    Network {
        /// Which.
        hash: BlobHash,
        /// The last failure.
        reason: String,
    },
    /// Another process has the blob's partial file and gets nowhere.
    #[error("{path} is locked by another worker that gets nowhere with it: end that one")]
    Stuck {
        /// The partial file.
        path: PathBuf,
    },
    /// No space is left.
    #[error(
        "the disk is full: no room for {path} ({bytes} bytes); make room or choose another --home"
    )]
    DiskFull {
        /// What was to be written.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The cache may not grow that far.
    #[error(
        "the cache is bounded at {max} bytes, {in_use} of them are in use, and a blob needs \
         {needed} more: raise --cache-mib"
    )]
    CacheFull {
        /// The bound.
        max: u64,
        /// In use by shards.
        in_use: u64,
        /// The blob.
        needed: u64,
    },
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl BlobError {
    fn io(path: &Path, bytes: u64, error: io::Error) -> BlobError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                BlobError::DiskFull { path: path.into(), bytes }
            }
            _ => BlobError::Io { path: path.into(), error },
        }
    }
}

/// A verified blob.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Its bytes.
    pub bytes: Arc<Kept>,
    /// Bytes that came over the network for it; 0 if it was here.
    pub fetched_bytes: u64,
}

/// Where blobs come from.
#[derive(Clone, Debug)]
pub enum BlobSource {
    /// A folder of files named by their hash: the coordinator's own.
    Folder(Arc<Folder>),
    /// The cache on disk, then the coordinator.
    Http(Arc<Http>),
}

impl BlobSource {
    /// The blobs of a folder, which nothing is added to.
    pub fn folder(path: impl Into<PathBuf>) -> BlobSource {
        let (verified, slots) = (Verified::default(), Semaphore::new(download::FETCHES_MAX));
        BlobSource::Folder(Arc::new(Folder { path: path.into(), verified, slots }))
    }

    /// What is there without fetching, the most recently used first, up to
    /// [`protocol::CACHED_MAX`]. Reads a folder.
    pub fn cached(&self) -> Vec<BlobHash> {
        match self {
            BlobSource::Folder(folder) => cache::listing(&folder.path),
            BlobSource::Http(http) => http.cache.list(),
        }
    }

    /// Has a blob here, verified. `progress` hears of bytes so far.
    ///
    /// # Errors
    /// Every [`BlobError`].
    pub async fn fetch(
        &self,
        blob: &BlobRef,
        token: &str,
        keep: Keep,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<Fetched, BlobError> {
        match self {
            BlobSource::Folder(folder) => {
                let (folder, blob) = (folder.clone(), blob.clone());
                let _slot = folder.slots.acquire().await;
                let here = folder.clone();
                let bytes = blocking(move || here.open(&blob, keep, &progress)).await?;
                Ok(Fetched { bytes, fetched_bytes: 0 })
            }
            BlobSource::Http(http) => {
                let progress = Arc::new(progress);
                http.fetch(download::Order { blob, token, keep, progress }).await
            }
        }
    }
}

/// A folder of blobs that somebody else keeps.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    verified: Verified,
    /// Of as many blobs as are read at once.
    slots: Semaphore,
}

impl Folder {
    fn open(
        &self,
        blob: &BlobRef,
        keep: Keep,
        progress: &dyn Fn(u64),
    ) -> Result<Arc<Kept>, BlobError> {
        let path = self.path.join(&blob.hash);
        let io = |error| BlobError::io(&path, blob.bytes, error);
        let bytes = File::open(&path).and_then(|file| Kept::open(&file, keep)).map_err(io)?;
        let from = || path.display().to_string();
        self.verified.check(blob, bytes.as_ref(), progress, from)?;
        Ok(Arc::new(bytes))
    }
}

/// The blobs whose hash was checked by this process: once is enough.
#[derive(Debug, Default)]
struct Verified(Mutex<HashSet<BlobHash>>);

impl Verified {
    /// Checks length and hash, or remembers that they were.
    fn check(
        &self,
        blob: &BlobRef,
        bytes: &[u8],
        progress: &dyn Fn(u64),
        from: impl Fn() -> String,
    ) -> Result<(), BlobError> {
        let (hash, expected, got) = (blob.hash.clone(), blob.bytes, bytes.len() as u64);
        if got != expected {
            return Err(BlobError::WrongLength { hash, expected, got, from: from() });
        }
        if self.known().contains(&hash) {
            return Ok(());
        }
        let (mut hasher, mut hashed) = (blake3::Hasher::new(), 0);
        for piece in bytes.chunks(HASH_BYTES) {
            hasher.update(piece);
            hashed += piece.len() as u64;
            progress(hashed);
        }
        let got = hasher.finalize().to_hex().to_string();
        if got != hash {
            return Err(BlobError::WrongHash { hash, got, from: from() });
        }
        self.known().insert(hash);
        Ok(())
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashSet<BlobHash>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs what blocks on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
) -> Result<T, BlobError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(BlobError::Io { path: PathBuf::new(), error: io::Error::other(error) }),
    }
}
