//! Models as data: what a file holds, and what travels of it.
//!
//! GGUF in, a [`Manifest`] and content-addressed blobs out. A blob holds the tensors
//! of one *part* (the embedding, one layer, or the head) in a canonical [`Layout`].
//! This crate does no I/O of its own: callers hand it byte slices (mapped files) and
//! writers. It knows nothing about sockets, workers or text.

pub mod layout;
pub mod manifest;

pub use layout::Layout;
pub use manifest::Manifest;
