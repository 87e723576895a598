//! The home folder: model files, weight blobs, and which blobs a file became.
//!
//! ```text
//! WEFT_HOME/models/<name>/*.gguf       pulled models
//! WEFT_HOME/weights/<hash>             blobs (weights, manifests), named by their BLAKE3
//! WEFT_HOME/manifests/<key>.json       file identity -> its manifest's hash
//! WEFT_HOME/partial/                   downloads and conversions in progress
//! ```
//!
//! A model file is mapped, checked, and turned into blobs once. Nothing that stands under
//! its final name is ever changed: files are written under `partial/` and renamed.

mod convert;
mod gguf_file;
mod name;
mod serve_model;
mod tokenizer_data;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use convert::{Conversion, convert, is_converted};
pub use gguf_file::{GgufFiles, find_parts};
pub(crate) use gguf_file::{part_names, stem};
pub use name::{clean_name, unique_name};
pub use serve_model::{CANONICAL_1, CLASSES, EXACT_F32, ServedModel, WGSL_F32, prepare};

use etcetera::BaseStrategy;

/// What went wrong in the home folder, and where.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The platform has no data folder for this user.
    #[error("this user has no data folder: set WEFT_HOME or --home to where models are kept")]
    NoHome,
    /// No space is left.
    #[error(
        "the disk of {path} is full: {what} needs {needed_bytes} more bytes; free some, or set \
         WEFT_HOME or --home to another disk, and run the same command again"
    )]
    DiskFull {
        /// What was being written.
        what: String,
        /// Where.
        path: PathBuf,
        /// How many bytes it needs at least.
        needed_bytes: u64,
    },
    /// A file or folder could not be read or written.
    #[error("{action} {path}: {error}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A model's files are not what they should be.
    #[error("{path}: {problem}")]
    Files {
        /// Where.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A file is no sound GGUF.
    #[error("{path} is no sound GGUF file: {error}")]
    Gguf {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<model::gguf::GgufError>,
    },
    /// A model cannot be run, and why.
    #[error("{path}: {problem}")]
    Unsupported {
        /// Which.
        path: PathBuf,
        /// What is missing.
        problem: String,
    },
}

impl StoreError {
    /// An I/O error, told with what was tried.
    pub(crate) fn io(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(io::Error) -> StoreError + use<> {
        let path = path.to_owned();
        move |error| StoreError::Io { action, path, error }
    }

    /// An error while writing `what`, of which `needed_bytes` were still to come.
    pub(crate) fn write(what: &str, path: &Path, needed_bytes: u64, error: io::Error) -> Self {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                StoreError::DiskFull { what: what.to_owned(), path, needed_bytes }
            }
            _ => StoreError::Io { action: "cannot write", path, error },
        }
    }
}

/// The home folder.
#[derive(Clone, Debug)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// Opens the folder, made if it is not there; by default `weft` in the platform's data
    /// folder (`~/.local/share/weft` on Linux).
    ///
    /// # Errors
    /// [`StoreError::NoHome`], or the folders cannot be made.
    pub fn open(root: Option<PathBuf>) -> Result<Home, StoreError> {
        let home = Home { root: Home::locate(root)? };
        for folder in [home.models(), home.blobs(), home.manifests(), home.partial()] {
            fs::create_dir_all(&folder).map_err(StoreError::io("cannot make", &folder))?;
        }
        Ok(home)
    }

    /// Where the folder is or would be; nothing is made.
    ///
    /// # Errors
    /// [`StoreError::NoHome`].
    pub fn locate(root: Option<PathBuf>) -> Result<PathBuf, StoreError> {
        match root {
            Some(root) => Ok(root),
            None => {
                let base = etcetera::choose_base_strategy().map_err(|_| StoreError::NoHome)?;
                Ok(base.data_dir().join("weft"))
            }
        }
    }

    /// Pulled models, a folder each.
    pub fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    /// One pulled model's files.
    pub fn model(&self, name: &str) -> PathBuf {
        self.models().join(name)
    }

    /// Weights and manifests, named by their hash. Not the workers' cache (`blobs`), which is
    /// bounded and throws away what was not used for long.
    pub fn blobs(&self) -> PathBuf {
        self.root.join("weights")
    }

    /// Which files became which manifest.
    pub fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    /// What is being written.
    pub fn partial(&self) -> PathBuf {
        self.root.join("partial")
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_with_what_is_needed_and_where() {
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            let error = StoreError::write("the model", Path::new("here"), 123, kind.into());
            let text = error.to_string();
            assert!(text.contains("disk of here is full") && text.contains("123"), "{text}");
        }
        let other = io::ErrorKind::PermissionDenied.into();
        let error = StoreError::write("the model", Path::new("here"), 123, other);
        assert!(matches!(error, StoreError::Io { .. }), "{error}");
    }
}
