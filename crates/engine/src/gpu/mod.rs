//! The engine on GPUs, one for browsers (WebGPU) and for everything native (Vulkan, Metal,
//! DX12): class `wgsl-f32`.
//!
//! `device` opens an adapter, and `choice` picks the fastest variant of the `kernels` that
//! passes a test there.
//! `shard` is the contract, as [`crate::Shard`]'s but asynchronous: `weights` and `upload`
//! bring in the blobs, `kv` has the pages (whose bookkeeping is [`crate::kv`]'s), `plan` says
//! which kernels a part needs, `machine` runs passes, `pace` keeps submits short, `readback`
//! and `wait` bring results back. `benchmark` measures a device.
//!
//! A step uploads one buffer, makes one submit and reads one buffer back, where the device is
//! fast enough for that. Nothing here blocks; see [`block_on`] for callers that may.

mod benchmark;
mod buffers;
mod choice;
mod device;
mod error;
mod handle;
pub mod kernels;
mod kv;
mod machine;
mod pace;
mod plan;
mod readback;
mod shard;
mod upload;
mod wait;
mod weights;

pub use benchmark::{GpuBenchmark, benchmark, scratch_reserve};
pub use device::{AdapterDescription, Gpu, GpuChoice, GpuInfo, RejectedVariant};
pub use error::GpuError;
pub use shard::{GpuLimits, GpuShard};
#[cfg(not(target_arch = "wasm32"))]
pub use wait::block_on;
