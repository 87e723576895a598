//! Where the bytes of blobs come from when a shard is loaded.

use engine::BlobBytes;
use litemap::LiteMap;
use protocol::BlobHash;

/// Bytes handed on at once by [`Blobs`].
const PIECE_BYTES: usize = 4 << 20;

/// Takes a piece of a blob: its offset and its bytes.
pub type Take<'a> = &'a mut dyn FnMut(u64, &[u8]) -> Result<(), String>;

/// Why a blob is not given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// There is no memory for it, although it was lent.
    #[error("{0}")]
    NoRoom(String),
    /// Something else, in words.
    #[error("{0}")]
    Other(String),
}

impl From<String> for SourceError {
    fn from(reason: String) -> SourceError {
        SourceError::Other(reason)
    }
}

/// Verified blobs, by hash.
#[expect(async_fn_in_trait, reason = "a worker loads on one thread")]
pub trait Source {
    /// All of a blob, to be kept as long as the shard is.
    async fn whole(&mut self, hash: &str) -> Result<BlobBytes, SourceError>;

    /// The same in ascending pieces of any size, none of which is kept: for weights that go
    /// to a device of their own. Errors are in words.
    async fn pieces(&mut self, hash: &str, take: Take<'_>) -> Result<(), String>;
}

/// Blobs that are in memory, or mapped.
pub type Blobs = LiteMap<BlobHash, BlobBytes>;

impl Source for Blobs {
    async fn whole(&mut self, hash: &str) -> Result<BlobBytes, SourceError> {
        self.get(hash).cloned().ok_or_else(|| format!("blob {hash} is not here").into())
    }

    async fn pieces(&mut self, hash: &str, take: Take<'_>) -> Result<(), String> {
        let blob = self.whole(hash).await.map_err(|error| error.to_string())?;
        let mut offset = 0;
        for piece in (*blob).as_ref().chunks(PIECE_BYTES) {
            take(offset, piece)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }
}
