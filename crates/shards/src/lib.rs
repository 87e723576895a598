//! The shards that a worker holds, on whatever computes: the last step from
//! [`worker_core::Action`] to the engine, the same natively and in a browser tab.
//!
//! Knows nothing of sockets, files, threads or clocks: blobs come through a [`Source`], and
//! whoever calls decides where that happens and how long it may take.

pub mod benchmark;
mod held;
#[cfg(not(target_arch = "wasm32"))]
mod rank;
mod source;
mod spans;

pub use held::{Computer, LoadError, Shards};
pub use source::{Blobs, Source, SourceError, Take};
