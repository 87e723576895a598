//! A GGUF model as blobs in the home folder, made once.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::UNIX_EPOCH;

use model::convert::{BlobSink, ConvertError};
use model::layout::LAYOUT_VERSION;
use model::manifest::{Blob, MANIFEST_FORMAT, Manifest};
use protocol::BlobRef;
use serde::{Deserialize, Serialize};

use super::{GgufFiles, Home, StoreError};
use crate::random;

/// Bytes gathered before they are written to a blob's file.
const BUFFER_BYTES: usize = 1 << 20;
/// Raised when [`Record`]'s meaning changes.
const RECORD_FORMAT: u32 = 1;

/// A model's blobs, all there.
#[derive(Clone, Debug)]
pub struct Conversion {
    /// What the blobs hold.
    pub manifest: Manifest,
    /// The manifest's own blob.
    pub manifest_blob: BlobRef,
    /// Whether an earlier run had made them.
    pub reused: bool,
}

/// Remembers what a file became, under a name made of the file's identity.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format: u32,
    /// The files, for people.
    files: Vec<PathBuf>,
    manifest: BlobRef,
}

/// Gives the blobs of a model that [`model::check_supported`] accepted, converting it unless
/// an earlier run did: every blob is there at its full size and with its hash.
/// A run that was killed leaves nothing under a final name that is not whole; the next
/// begins anew. Memory stays within a matrix's size, whatever the model's.
///
/// # Errors
/// The disk is full, or files cannot be read or written.
pub fn convert(home: &Home, files: &GgufFiles, name: &str) -> Result<Conversion, StoreError> {
    // One at a time: whoever comes second finds the first one's blobs.
    let lock_path = home.partial().join("convert.lock");
    let lock = File::create(&lock_path).map_err(StoreError::io("cannot make", &lock_path))?;
    lock.lock().map_err(StoreError::io("cannot lock", &lock_path))?;

    let record_path = record_path(home, &identity(files, name)?);
    if let Some(conversion) = reuse(home, &record_path) {
        match damaged(home, &conversion.manifest) {
            None => return Ok(conversion),
            Some(path) => tracing::warn!(
                path = %path.display(), "weights on the disk are damaged: converting the model anew"
            ),
        }
    }
    clear_partial_blobs(home)?;
    let gguf = files.parse()?;
    let mut sink = FolderSink { home, current: None, failed_at: None };
    let manifest = model::convert(&gguf, name, &mut sink).map_err(|error| match error {
        ConvertError::Sink(error) => {
            let (path, needed) = sink.failed_at.unwrap_or((home.blobs(), files.bytes()));
            StoreError::write("converting the model", &path, needed, error)
        }
        ConvertError::Unsupported(_) | ConvertError::Name { .. } => {
            StoreError::Unsupported { path: files.first(), problem: error.to_string() }
        }
    })?;
    let bytes = manifest.to_bytes();
    let hash = blake3::hash(&bytes).to_hex().to_string();
    let manifest_blob = BlobRef { hash, bytes: bytes.len() as u64 };
    write_whole(home, &home.blobs().join(&manifest_blob.hash), &bytes)?;
    let record = Record {
        format: RECORD_FORMAT,
        files: files.paths().to_vec(),
        manifest: manifest_blob.clone(),
    };
    let json = serde_json::to_vec_pretty(&record).expect("strings and numbers only");
    write_whole(home, &record_path, &json)?;
    Ok(Conversion { manifest, manifest_blob, reused: false })
}

/// Whether [`convert`] would find that an earlier run did it.
pub fn is_converted(home: &Home, path: &Path, name: &str) -> bool {
    let identity = GgufFiles::open(path).and_then(|files| identity(&files, name));
    identity.is_ok_and(|identity| reuse(home, &record_path(home, &identity)).is_some())
}

fn record_path(home: &Home, identity: &str) -> PathBuf {
    home.manifests().join(format!("{identity}.json"))
}

/// The files' paths, lengths and times of change, the model's name and the versions of our
/// formats, as one hash: if none of them changed, the blobs are the same.
fn identity(files: &GgufFiles, name: &str) -> Result<String, StoreError> {
    let mut text = format!("weft conversion {MANIFEST_FORMAT} {LAYOUT_VERSION} {name:?}\n");
    for path in files.paths() {
        let real = path.canonicalize().map_err(StoreError::io("cannot find", path))?;
        let metadata = real.metadata().map_err(StoreError::io("cannot look at", path))?;
        let changed = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let changed = changed.unwrap_or_default().as_nanos();
        text.push_str(&format!("{real:?} {} {changed}\n", metadata.len()));
    }
    Ok(blake3::hash(text.as_bytes()).to_hex().to_string())
}

/// What an earlier run made, if all of it is still there.
fn reuse(home: &Home, record_path: &Path) -> Option<Conversion> {
    let record: Record = serde_json::from_slice(&fs::read(record_path).ok()?).ok()?;
    let bytes = fs::read(home.blobs().join(&record.manifest.hash)).ok()?;
    let whole = record.format == RECORD_FORMAT
        && blake3::hash(&bytes).to_hex().as_str() == record.manifest.hash;
    let manifest = Manifest::from_bytes(&bytes).ok().filter(|_| whole)?;
    let parts = 0..u32::try_from(manifest.parts.len()).ok()?;
    let there = |blob: &&Blob| {
        let length = fs::metadata(home.blobs().join(&blob.hash)).map(|m| m.len());
        length.is_ok_and(|length| length == blob.bytes)
    };
    let all = manifest.blobs_of(parts).iter().all(there);
    all.then_some(Conversion { manifest, manifest_blob: record.manifest, reused: true })
}

/// The first blob found whose bytes no longer have its hash. Reads all of them, on all cores:
/// about what loading the weights costs, which are then in the system's cache.
fn damaged(home: &Home, manifest: &Manifest) -> Option<PathBuf> {
    let parts = 0..u32::try_from(manifest.parts.len()).unwrap_or(u32::MAX);
    let blobs = manifest.blobs_of(parts);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let look = || {
        while let Some(blob) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let path = home.blobs().join(&blob.hash);
            let mut hasher = blake3::Hasher::new();
            let read = File::open(&path).and_then(|file| io::copy(&mut &file, &mut hasher));
            if read.is_err() || hasher.finalize().to_hex().as_str() != blob.hash {
                return Some(path);
            }
        }
        None
    };
    thread::scope(|scope| {
        let looking: Vec<_> = (0..threads).map(|_| scope.spawn(look)).collect();
        let found = looking.into_iter().map(|one| one.join().expect("hashing does not panic"));
        found.flatten().next()
    })
}

/// Removes what killed conversions left. Only the holder of the lock may.
fn clear_partial_blobs(home: &Home) -> Result<(), StoreError> {
    let folder = home.partial();
    for entry in fs::read_dir(&folder).map_err(StoreError::io("cannot list", &folder))? {
        let path = entry.map_err(StoreError::io("cannot list", &folder))?.path();
        if path.extension().is_some_and(|extension| extension == "blob") {
            fs::remove_file(&path).map_err(StoreError::io("cannot remove", &path))?;
        }
    }
    Ok(())
}

/// Writes a small file under its final name at once or not at all.
fn write_whole(home: &Home, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let partial = home.partial().join(format!("{}.blob", random::hex::<8>()));
    let write = || -> io::Result<()> {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&partial);
        StoreError::write("a manifest", path, bytes.len() as u64, error)
    })
}

/// Writes each blob under a temporary name and renames it once its hash is known.
struct FolderSink<'h> {
    home: &'h Home,
    current: Option<Partial>,
    /// Where writing failed, and how many bytes the blob has.
    failed_at: Option<(PathBuf, u64)>,
}

struct Partial {
    path: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
}

impl FolderSink<'_> {
    fn note<T>(&mut self, path: &Path, bytes: u64, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() {
            let _ = fs::remove_file(path);
            self.failed_at = Some((path.to_owned(), bytes));
        }
        result
    }
}

impl BlobSink for FolderSink<'_> {
    fn begin(&mut self, bytes: u64) -> io::Result<()> {
        let path = self.home.partial().join(format!("{}.blob", random::hex::<8>()));
        let file = File::create(&path);
        let file = self.note(&path, bytes, file)?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        self.current = Some(Partial { path, file, bytes });
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let partial = self.current.as_mut().expect("a blob has begun");
        let result = partial.file.write_all(bytes);
        let (path, bytes) = (partial.path.clone(), partial.bytes);
        self.note(&path, bytes, result)
    }

    fn finish(&mut self, blob: &Blob) -> io::Result<()> {
        let Partial { path, file, bytes } = self.current.take().expect("a blob has begun");
        let target = self.home.blobs().join(&blob.hash);
        let result = (|| {
            let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.sync_all()?;
            fs::rename(&path, &target)
        })();
        self.note(&path, bytes, result)
    }
}
