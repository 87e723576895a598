//! Weights on their way into GPU buffers: blobs come in pieces of any size, in order.

use std::ops::Range;

use litemap::LiteMap;

use crate::types::LoadError;

use super::handle::Handle;

/// Writes to a buffer have to be of whole words.
const WORD: usize = 4;
/// Bytes handed to the device before it is made to take them: until then they are held
/// twice.
#[cfg(not(target_arch = "wasm32"))]
const STAGED_BYTES_MAX: u64 = 64 << 20;

/// A range of a blob that lies in a buffer.
struct Target {
    range: Range<u64>,
    buffer: wgpu::Buffer,
    /// Where it begins there.
    start: u64,
    /// Bytes of a word that is not complete yet.
    word: Vec<u8>,
}

impl Target {
    /// Writes the bytes that follow those written before; `at` counts from the range's start.
    fn write(&mut self, handle: &Handle, at: u64, mut bytes: &[u8]) {
        let end = at + bytes.len() as u64;
        let mut start = self.start + at - self.word.len() as u64;
        if !self.word.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(WORD - self.word.len()));
            self.word.extend_from_slice(head);
            bytes = rest;
            if self.word.len() == WORD {
                handle.queue.write_buffer(&self.buffer, start, &self.word);
                self.word.clear();
                start += WORD as u64;
            }
        }
        if self.word.is_empty() {
            let (words, tail) = bytes.split_at(bytes.len() / WORD * WORD);
            if !words.is_empty() {
                handle.queue.write_buffer(&self.buffer, start, words);
                start += words.len() as u64;
            }
            self.word.extend_from_slice(tail);
        }
        if end == self.range.end - self.range.start && !self.word.is_empty() {
            self.word.resize(WORD, 0);
            handle.queue.write_buffer(&self.buffer, start, &self.word);
            self.word.clear();
        }
    }
}

struct Blob {
    bytes: u64,
    received: u64,
    targets: Vec<Target>,
}

/// Which parts of which blobs go into which buffers, and what has arrived.
#[derive(Default)]
pub(crate) struct Upload {
    blobs: LiteMap<String, Blob>,
    staged: u64,
}

impl Upload {
    /// Wants `range` of a blob of `bytes` bytes in `buffer` from `start` on, a multiple of 4;
    /// the buffer has room for its end rounded up to one.
    pub(crate) fn want(
        &mut self,
        hash: &str,
        bytes: u64,
        range: Range<u64>,
        buffer: &wgpu::Buffer,
        start: u64,
    ) {
        let word = WORD as u64;
        assert!(start.is_multiple_of(word) && range.end <= bytes);
        assert!(buffer.size() >= start + (range.end - range.start).next_multiple_of(word));
        let blob = self.blobs.entry(hash.to_owned()).or_insert(Blob {
            bytes,
            received: 0,
            targets: Vec::new(),
        });
        blob.targets.push(Target { range, buffer: buffer.clone(), start, word: Vec::new() });
    }

    /// The blobs' hashes, each once.
    pub(crate) fn hashes(&self) -> Vec<String> {
        self.blobs.keys().cloned().collect()
    }

    /// Takes the next bytes of a blob.
    pub(crate) fn write(
        &mut self,
        handle: &Handle,
        hash: &str,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), LoadError> {
        let pieces = |reason| LoadError::BlobPieces { hash: hash.to_owned(), reason };
        let blob = self
            .blobs
            .get_mut(hash)
            .ok_or_else(|| pieces("this shard has nothing in it".to_owned()))?;
        if offset != blob.received {
            return Err(pieces(format!("bytes from {offset} on, expected {}", blob.received)));
        }
        let end = offset + bytes.len() as u64;
        if end > blob.bytes {
            let (hash, expected, got) = (hash.to_owned(), blob.bytes, end);
            return Err(LoadError::BlobLength { hash, expected, got });
        }
        for target in &mut blob.targets {
            let (from, to) = (offset.max(target.range.start), end.min(target.range.end));
            if from < to {
                let slice = &bytes[(from - offset) as usize..(to - offset) as usize];
                target.write(handle, from - target.range.start, slice);
            }
        }
        blob.received = end;
        self.staged += bytes.len() as u64;
        #[cfg(not(target_arch = "wasm32"))]
        if self.staged >= STAGED_BYTES_MAX {
            handle.queue.submit([]);
            handle.poll(std::time::Duration::from_secs(10));
            self.staged = 0;
        }
        match handle.lost() {
            Some(reason) => Err(LoadError::Device(reason)),
            None => Ok(()),
        }
    }

    /// The first blob that is not complete, if any.
    pub(crate) fn missing(&self) -> Option<LoadError> {
        let (hash, blob) = self.blobs.iter().find(|(_, blob)| blob.received < blob.bytes)?;
        let reason = format!("{} of its {} bytes were written", blob.received, blob.bytes);
        Some(LoadError::BlobPieces { hash: hash.clone(), reason })
    }
}
