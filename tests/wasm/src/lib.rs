//! The cases of `tests/kernels` and the goldens of the real model, run inside WASM.
//!
//! A plain module: it imports nothing, and a few lines of JavaScript (`run.mjs`) call its
//! exports in Node or in a browser. What a case says, its panic included, is in the log.

#![cfg(target_arch = "wasm32")]
// A test that is missing in `CASES` is dead code here.
#![deny(dead_code)]

mod cases;
mod exports;
mod real;

#[path = "../../kernels/attention.rs"]
mod attention;
#[path = "../../kernels/crew.rs"]
mod crew;
#[path = "../../kernels/faults.rs"]
mod faults;
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
