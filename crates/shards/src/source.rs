//! Where the bytes of blobs come from when a shard is loaded.

use std::collections::BTreeMap;

use engine::BlobBytes;
use protocol::BlobHash;

/// Bytes handed on at once by [`Blobs`].
const PIECE_BYTES: usize = 4 << 20;

/// Takes a piece of a blob: its offset and its bytes.
pub type Take<'a> = &'a mut dyn FnMut(u64, &[u8]) -> Result<(), String>;

/// Verified blobs, by hash. Errors are in words.
#[expect(async_fn_in_trait, reason = "a worker loads on one thread")]
pub trait Source {
    /// All of a blob, to be kept as long as the shard is.
    async fn whole(&mut self, hash: &str) -> Result<BlobBytes, String>;

    /// The same in ascending pieces of any size, none of which is kept: for weights that go
    /// to a device of their own.
    async fn pieces(&mut self, hash: &str, take: Take<'_>) -> Result<(), String>;
}

/// Blobs that are in memory, or mapped.
pub type Blobs = BTreeMap<BlobHash, BlobBytes>;

impl Source for Blobs {
    async fn whole(&mut self, hash: &str) -> Result<BlobBytes, String> {
        self.get(hash).cloned().ok_or_else(|| format!("blob {hash} is not here"))
    }

    async fn pieces(&mut self, hash: &str, take: Take<'_>) -> Result<(), String> {
        let blob = self.whole(hash).await?;
        let mut offset = 0;
        for piece in (*blob).as_ref().chunks(PIECE_BYTES) {
            take(offset, piece)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }
}
