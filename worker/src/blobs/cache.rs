//! Blobs on disk: `blobs/<hash>`, shared by the workers of one machine.
//!
//! A blob is written as `<hash>.part`, locked while it is, and renamed once its hash
//! matched, so that a file with a hash for its name is always whole. What was used longest
//! ago goes first when the bound is reached.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use protocol::{BlobHash, BlobRef, CACHED_MAX};

use super::{BlobError, Keep, Kept, Verified};

const PART: &str = ".part";

/// A folder of blobs with a bound.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    bytes_max: u64,
    verified: Verified,
}

/// A file of the folder.
struct Entry {
    path: PathBuf,
    hash: BlobHash,
    is_part: bool,
    bytes: u64,
    used: SystemTime,
}

impl Cache {
    /// Opens or makes the folder.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(folder: impl Into<PathBuf>, bytes_max: u64) -> Result<Cache, BlobError> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(|error| BlobError::io(&folder, 0, error))?;
        Ok(Cache { folder, bytes_max, verified: Verified::default() })
    }

    /// Whole blobs, the most recently used first.
    pub fn list(&self) -> Vec<BlobHash> {
        listing(&self.folder)
    }

    fn path(&self, hash: &str) -> PathBuf {
        self.folder.join(hash)
    }

    /// A blob that is here, verified. One that is damaged is removed, and so not here.
    /// `progress` hears of bytes hashed.
    pub(super) fn find(
        &self,
        blob: &BlobRef,
        keep: Keep,
        progress: &dyn Fn(u64),
    ) -> Result<Option<Arc<Kept>>, BlobError> {
        let path = self.path(&blob.hash);
        let io = |error| BlobError::io(&path, blob.bytes, error);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        let damaged = |how: &dyn std::fmt::Display| {
            tracing::warn!("{how}; it is fetched again");
            fs::remove_file(&path).map_err(io).map(|()| None)
        };
        // Before memory is set aside for it: a damaged file may have any length.
        let got = file.metadata().map_err(io)?.len();
        if got != blob.bytes {
            return damaged(&format!("{} has {got} bytes of {}", path.display(), blob.bytes));
        }
        let bytes = match Kept::open(&file, keep) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => return Err(io(error)),
            Err(error) => return damaged(&format!("{} is not read: {error}", path.display())),
        };
        let from = || path.display().to_string();
        if let Err(error) = self.verified.check(blob, bytes.as_ref(), progress, from) {
            return damaged(&error);
        }
        // When it was last used is only a hint for eviction.
        let _ = file.set_modified(SystemTime::now());
        Ok(Some(Arc::new(bytes)))
    }

    /// The partial file of a blob, locked, with what an earlier attempt left in it; `None`
    /// while another worker fetches the same blob.
    pub(super) fn try_part(&self, hash: &str) -> Result<Option<File>, BlobError> {
        let path = self.part_path(hash);
        let io = |error| BlobError::io(&path, 0, error);
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false);
        let file = file.open(&path).map_err(io)?;
        match file.try_lock() {
            // Its holder may have renamed it in between: then the lock is on another file.
            Ok(()) if is_at(&file, &path) => Ok(Some(file)),
            Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(io(error)),
        }
    }

    /// How much of a blob is in its partial file.
    pub(super) fn part_bytes(&self, hash: &str) -> u64 {
        fs::metadata(self.part_path(hash)).map_or(0, |metadata| metadata.len())
    }

    pub(super) fn part_path(&self, hash: &str) -> PathBuf {
        self.path(&format!("{hash}{PART}"))
    }

    /// Gives a partial file whose hash matched its name.
    pub(super) fn finish(
        &self,
        blob: &BlobRef,
        part: &File,
        keep: Keep,
    ) -> Result<Arc<Kept>, BlobError> {
        let (from, to) = (self.part_path(&blob.hash), self.path(&blob.hash));
        let io = |error| BlobError::io(&from, blob.bytes, error);
        part.sync_all().map_err(io)?;
        fs::rename(&from, &to).map_err(io)?;
        #[cfg(unix)]
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(io)?;
        self.verified.known().insert(blob.hash.clone());
        Ok(Arc::new(Kept::open(part, keep).map_err(io)?))
    }

    /// Removes what was used longest ago until `needed` more bytes fit. `in_use` says which
    /// blobs this worker's shards have.
    pub(super) fn make_room(
        &self,
        needed: u64,
        in_use: impl Fn(&BlobHash) -> bool,
    ) -> Result<(), BlobError> {
        let mut entries = entries(&self.folder);
        entries.sort_by_key(|e| e.used);
        let mut total: u64 = entries.iter().map(|e| e.bytes).sum();
        for entry in entries {
            if total.saturating_add(needed) <= self.bytes_max {
                return Ok(());
            }
            if in_use(&entry.hash) || entry.is_part && is_locked(&entry.path) {
                continue;
            }
            match fs::remove_file(&entry.path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // Not worth failing for: the next one may go.
                Err(error) => {
                    tracing::warn!("cannot remove {}: {error}", entry.path.display());
                    continue;
                }
            }
            total -= entry.bytes;
        }
        if total.saturating_add(needed) <= self.bytes_max {
            return Ok(());
        }
        Err(BlobError::CacheFull { max: self.bytes_max, in_use: total, needed })
    }
}

fn is_locked(path: &Path) -> bool {
    File::open(path).is_ok_and(|f| matches!(f.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Whether the open file is the one at that path.
fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let identity = |m: fs::Metadata| (m.dev(), m.ino());
        let (open, there) = (file.metadata().map(identity), fs::metadata(path).map(identity));
        open.ok().zip(there.ok()).is_some_and(|(open, there)| open == there)
    }
    #[cfg(not(unix))]
    {
        // An open file cannot be renamed away there.
        let _ = (file, path);
        true
    }
}

/// Blobs and partial blobs of a folder; other files are none of our business.
fn entries(folder: &Path) -> Vec<Entry> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files
        .filter_map(|file| {
            let name = file.file_name().into_string().ok()?;
            let hash = name.strip_suffix(PART).unwrap_or(&name).to_string();
            if hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            let metadata = file.metadata().ok().filter(fs::Metadata::is_file)?;
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let is_part = hash.len() != name.len();
            Some(Entry { path: file.path(), hash, is_part, bytes: metadata.len(), used })
        })
        .collect()
}

/// The whole blobs of a folder, the most recently used first, as many as a hello names.
pub(super) fn listing(folder: &Path) -> Vec<BlobHash> {
    let mut entries = entries(folder);
    entries.retain(|e| !e.is_part);
    entries.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.hash.cmp(&b.hash)));
    entries.into_iter().map(|e| e.hash).take(CACHED_MAX).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use super::*;

    fn blob(bytes: &[u8]) -> BlobRef {
        BlobRef { hash: blake3::hash(bytes).to_hex().to_string(), bytes: bytes.len() as u64 }
    }

    /// Writes a blob and sets when it was last used.
    fn keep(cache: &Cache, bytes: &[u8], used_s: u64) -> BlobRef {
        let blob = blob(bytes);
        let mut part = cache.try_part(&blob.hash).unwrap().unwrap();
        part.write_all(bytes).unwrap();
        assert_eq!(cache.finish(&blob, &part, Keep::Copied).unwrap().as_ref().as_ref(), bytes);
        part.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(used_s)).unwrap();
        blob
    }

    #[test]
    fn a_blob_is_found_again_and_counts_as_used() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), 1000).unwrap();
        let old = keep(&cache, b"old", 10);
        let new = keep(&cache, b"new", 20);
        assert_eq!(cache.list(), [new.hash.clone(), old.hash.clone()]);
        let reopened = Cache::open(folder.path(), 1000).unwrap();
        assert_eq!(
            reopened.find(&old, Keep::Mapped, &|_| {}).unwrap().unwrap().as_ref().as_ref(),
            b"old"
        );
        assert_eq!(reopened.list(), [old.hash, new.hash]);
        assert!(cache.find(&blob(b"never seen"), Keep::Copied, &|_| {}).unwrap().is_none());
    }

    #[test]
    fn a_damaged_blob_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), 1000).unwrap();
        let blob = keep(&cache, b"weights", 10);
        fs::write(folder.path().join(&blob.hash), b"weightz").unwrap();
        assert!(
            Cache::open(folder.path(), 1000)
                .unwrap()
                .find(&blob, Keep::Mapped, &|_| {})
                .unwrap()
                .is_none()
        );
        assert!(!folder.path().join(&blob.hash).exists());
        let short = keep(&cache, b"short", 10);
        fs::write(folder.path().join(&short.hash), b"shor").unwrap();
        assert!(
            cache.find(&short, Keep::Copied, &|_| {}).unwrap().is_none(),
            "even if it was verified before"
        );
        // More than any machine's memory, of which nothing is written.
        let long = keep(&cache, b"long", 10);
        let grown = File::options().write(true).open(folder.path().join(&long.hash)).unwrap();
        grown.set_len(1 << 41).unwrap();
        assert!(cache.find(&long, Keep::Copied, &|_| {}).unwrap().is_none(), "it is not even read");
        assert!(!folder.path().join(&long.hash).exists());
    }

    #[test]
    fn what_was_used_longest_ago_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), 10).unwrap();
        let a = keep(&cache, b"aaaa", 10);
        let b = keep(&cache, b"bbb", 30);
        let c = keep(&cache, b"ccc", 20);
        fs::write(folder.path().join("README"), b"not a blob, not ours to remove").unwrap();
        cache.make_room(1, |hash| *hash == a.hash).unwrap();
        assert_eq!(cache.list(), [b.hash.clone(), a.hash.clone()], "c was the oldest not in use");
        let _ = c;
        cache.make_room(10, |_| false).unwrap();
        assert!(cache.list().is_empty());
        assert!(folder.path().join("README").exists());
        let b = keep(&cache, b"bbb", 30);
        let error = cache.make_room(8, |hash| *hash == b.hash).unwrap_err();
        assert!(matches!(error, BlobError::CacheFull { max: 10, in_use: 3, needed: 8 }), "{error}");
    }

    #[test]
    fn one_worker_fetches_while_the_other_waits() {
        let folder = tempfile::tempdir().unwrap();
        let one = Cache::open(folder.path(), 1000).unwrap();
        let two = Cache::open(folder.path(), 1000).unwrap();
        let blob = blob(b"shared");
        let mut part = one.try_part(&blob.hash).unwrap().unwrap();
        assert!(two.try_part(&blob.hash).unwrap().is_none());
        part.write_all(b"shared").unwrap();
        assert_eq!(two.part_bytes(&blob.hash), 6, "the other one sees it grow");
        two.make_room(997, |_| false).unwrap_err();
        assert!(one.part_path(&blob.hash).exists(), "a part that grows is not evicted");
        one.finish(&blob, &part, Keep::Mapped).unwrap();
        drop(part);
        assert_eq!(
            two.find(&blob, Keep::Copied, &|_| {}).unwrap().unwrap().as_ref().as_ref(),
            b"shared"
        );
    }
}
