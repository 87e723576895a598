//! The native worker: holds a shard of a model and computes steps for a coordinator.
//!
//! [`Worker`] is the machine's side: one compute thread, the blobs, and the pure
//! [`worker_core::WorkerCore`] that decides everything. [`Worker::serve`] connects it to a
//! coordinator in the same process through a [`Link`]; [`client::run`] does so over a
//! WebSocket and comes back when the connection is lost.
//!
//! ```text
//! socket or channel ──> serve ──> WorkerCore ──> compute thread ──> Shards
//!        ^                            │  └─────> blobs: cache, HTTP
//!        └────────────────────────────┘
//! ```

pub mod blobs;
pub mod client;
mod compute;
mod exchange;
pub mod identity;
pub mod lent;
pub mod link;
pub mod machine;
pub mod options;
mod shell;
pub mod socket;

pub use blobs::{BlobError, BlobSource};
pub use identity::Identity;
pub use link::{Down, Link, Up};
pub use shards::Computer;
pub use shell::{End, Setup, Worker};
pub use worker_core::backoff;
