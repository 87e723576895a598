//! Runs one shard: a contiguous range of a model's parts, with its KV cache.
//!
//! Knows nothing about sockets, sessions' owners or text. See `Shard` for the contract.

mod types;

pub use types::*;
