//! A model's blobs in a folder, made once, then read and verified as a worker does it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use engine::{BlobBytes, WeightMemory};
use model::convert::BlobSink;
use model::manifest::Blob;
use model::{Gguf, Manifest};

/// Written last: where it is, the blobs are.
const MANIFEST: &str = "manifest.json";

/// A model whose weights are in memory.
pub struct Stored {
    pub manifest: Manifest,
    pub blobs: BTreeMap<String, BlobBytes>,
}

impl Stored {
    /// Writes a GGUF file's blobs into `folder`, unless they are there.
    pub fn make(model: &Path, folder: &Path) -> io::Result<()> {
        if folder.join(MANIFEST).is_file() {
            return Ok(());
        }
        fs::create_dir_all(folder)?;
        let file = fs::read(model)?;
        let gguf = Gguf::parse(&[&file]).expect("a GGUF file");
        let mut sink = Sink { folder, file: None };
        let manifest = model::convert(&gguf, "stored", &mut sink).expect("a supported model");
        fs::write(folder.join(MANIFEST), manifest.to_bytes())
    }

    /// Reads the blobs in `folder` and hashes them, on so many threads.
    pub fn open(folder: &Path, threads: u32) -> io::Result<Stored> {
        let manifest = fs::read(folder.join(MANIFEST))?;
        let manifest = Manifest::from_bytes(&manifest).expect("our own manifest");
        let wanted = manifest.blobs_of(0..manifest.parts.len() as u32);
        let (next, blobs) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
        let verify = || -> io::Result<()> {
            while let Some(blob) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut memory = WeightMemory::new(blob.bytes as usize)?;
                File::open(folder.join(&blob.hash))?.read_exact(memory.as_mut())?;
                let hash = blake3::hash(memory.as_ref());
                assert_eq!(hash.to_hex().as_str(), blob.hash, "damaged weights");
                let bytes: BlobBytes = Arc::new(memory);
                blobs.lock().expect("no thread panicked").insert(blob.hash.clone(), bytes);
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(verify)).collect();
            verify()?;
            others.into_iter().try_for_each(|thread| thread.join().expect("it only hashes"))
        })?;
        let blobs = blobs.into_inner().expect("no thread panicked");
        Ok(Stored { manifest, blobs })
    }

    pub fn parts(&self) -> u32 {
        self.manifest.parts.len() as u32
    }
}

/// Writes each blob under the name of its hash.
struct Sink<'a> {
    folder: &'a Path,
    file: Option<(PathBuf, File)>,
}

impl BlobSink for Sink<'_> {
    fn begin(&mut self, _bytes: u64) -> io::Result<()> {
        let path = self.folder.join("partial");
        self.file = Some((path.clone(), File::create(path)?));
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.as_mut().expect("a blob has begun").1.write_all(bytes)
    }

    fn finish(&mut self, blob: &Blob) -> io::Result<()> {
        let (path, file) = self.file.take().expect("a blob has begun");
        drop(file);
        fs::rename(path, self.folder.join(&blob.hash))
    }
}
