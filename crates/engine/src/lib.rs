//! Runs one shard: a contiguous range of a model's parts, with its KV cache.
//!
//! Knows nothing about sockets, sessions' owners or text. See [`Shard`] for the contract.
//!
//! `steps` checks what comes in, `kv` keeps the sessions' keys and values, `plan` turns a
//! span of parts into commands, `run` executes them, `cpu` holds the kernels;
//! `benchmark` measures them at a model's shapes; `crew` lets several instances share them.
//! `tensor` divides a span's layers among several shards; `gpu` is the same on GPUs.

mod benchmark;
mod cpu;
pub mod crew;
#[cfg(feature = "gpu")]
pub mod gpu;
mod kv;
mod memory;
mod plan;
mod pool;
mod run;
mod shard;
mod steps;
pub mod tensor;
#[cfg(feature = "testing")]
pub mod testing;
mod types;
mod weights;

pub use benchmark::{LayerTimes, benchmark};
pub use cpu::Isa;
pub use memory::WeightMemory;
pub use numerics::PAGE_POSITIONS;
pub use shard::{Shard, kv_page_bytes};
pub use steps::{STEP_LOGITS_ROWS_MAX, STEP_ROWS_MAX};
pub use types::*;
