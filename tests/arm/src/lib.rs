//! The cases of `tests/kernels` and the goldens of the real model on AArch64.
//!
//! A crate of its own, since `tests` needs what only a whole machine has (GPUs, sockets):
//! this is run under an emulator, once as a processor with dot products and once as one
//! without.

#![cfg(all(test, target_arch = "aarch64"))]

#[path = "../../kernels/attention.rs"]
mod attention;
#[path = "../../kernels/crew.rs"]
mod crew;
#[path = "../../kernels/faults.rs"]
mod faults;
mod golden;
#[path = "../../kernels/guard.rs"]
mod guard;
#[path = "../../kernels/products.rs"]
mod products;
#[path = "../../kernels/rows.rs"]
mod rows;
#[path = "../../kernels/sessions.rs"]
mod sessions;
#[path = "../../kernels/shards.rs"]
mod shards;
#[path = "../../kernels/tiny.rs"]
mod tiny;
