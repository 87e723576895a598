//! Blobs in memory, for small models and tests.

use std::collections::BTreeMap;
use std::io;

use crate::convert::BlobSink;
use crate::manifest::Blob;

/// A [`BlobSink`] that keeps all blobs, by hash.
#[derive(Clone, Debug, Default)]
pub struct MemoryBlobs {
    /// Complete blobs by their hash.
    pub by_hash: BTreeMap<String, Vec<u8>>,
    open: Vec<u8>,
}

impl BlobSink for MemoryBlobs {
    fn begin(&mut self, bytes: u64) -> io::Result<()> {
        self.open = Vec::with_capacity(usize::try_from(bytes).map_err(io::Error::other)?);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.open.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(&mut self, blob: &Blob) -> io::Result<()> {
        self.by_hash.insert(blob.hash.clone(), std::mem::take(&mut self.open));
        Ok(())
    }
}

/// A [`BlobSink`] that drops the bytes: for the manifest alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoBlobs;

impl BlobSink for NoBlobs {
    fn begin(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn write(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn finish(&mut self, _: &Blob) -> io::Result<()> {
        Ok(())
    }
}
