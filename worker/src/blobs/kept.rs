//! How a blob's bytes are kept while a shard has them.

use std::fs::File;
use std::io::{self, Read, Seek};

use engine::WeightMemory;
use memmap2::Mmap;

/// How a worker keeps its blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// In memory made for weights that a processor reads again and again.
    Copied,
    /// Where their files are mapped, for a GPU, which reads them once.
    Mapped,
}

/// A blob's bytes.
pub enum Kept {
    /// See [`Keep::Copied`].
    Copied(WeightMemory),
    /// See [`Keep::Mapped`].
    Mapped(Mmap),
}

impl Kept {
    /// The bytes of a blob's file.
    ///
    /// # Errors
    /// The file cannot be read, or there is no memory for it.
    pub(super) fn open(mut file: &File, keep: Keep) -> io::Result<Kept> {
        if keep == Keep::Mapped {
            // SAFETY: a blob's file never changes once it has its name: caches write under
            // another name and rename, and eviction removes the name only. Somebody who
            // rewrites the files of this user's own folder by hand can change the bytes under
            // the map; nothing here relies on them for memory safety, only for results.
            return Ok(Kept::Mapped(unsafe { Mmap::map(file) }?));
        }
        let bytes = usize::try_from(file.metadata()?.len());
        let mut memory = WeightMemory::new(bytes.map_err(|_| io::ErrorKind::OutOfMemory)?)?;
        file.rewind()?;
        file.read_exact(memory.as_mut())?;
        Ok(Kept::Copied(memory))
    }
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        match self {
            Kept::Copied(memory) => memory.as_ref(),
            Kept::Mapped(map) => map,
        }
    }
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = if matches!(self, Kept::Copied(_)) { "copied" } else { "mapped" };
        write!(f, "{} bytes, {how}", self.as_ref().len())
    }
}
