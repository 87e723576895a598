//! Runs one shard: a contiguous range of a model's parts, with its KV cache.
//!
//! Knows nothing about sockets, sessions' owners or text. See [`Shard`] for the contract.

mod cpu;
mod shard;
mod types;

pub use cpu::Isa;
pub use numerics::PAGE_POSITIONS;
pub use shard::{Shard, kv_page_bytes};
pub use types::*;
