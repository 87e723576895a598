//! Models as data: what a file holds, and what travels of it.
//!
//! GGUF in, a [`Manifest`] and content-addressed blobs out: [`Gguf::parse`] reads the
//! files, [`check_supported`] says whether they can be run, [`convert()`] writes the blobs.
//! A blob holds tensors of one *part* (the embedding, one layer, or the head) in a
//! canonical [`Layout`]; [`dequant`] reads one back. This crate does no I/O of its own:
//! callers hand it byte slices (mapped files) and sinks. It knows nothing about sockets,
//! workers or text.

pub mod blobs;
pub mod check;
pub mod config;
pub mod convert;
pub mod dequant;
pub mod f16;
pub mod gguf;
pub mod layout;
pub mod limits;
pub mod manifest;
pub mod repack;
mod roles;
pub mod rope;
pub mod tensor;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod validate;

pub use blobs::MemoryBlobs;
pub use check::check_supported;
pub use config::Config;
pub use convert::{BlobSink, convert};
pub use gguf::Gguf;
pub use layout::Layout;
pub use manifest::Manifest;
pub use validate::{KvType, ManifestError};
