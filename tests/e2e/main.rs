//! Real processes on loopback: the coordinator and workers as a person would start them,
//! driven over HTTP, killed at every stage.
//!
//! Each test has the machine for itself ([`harness::machine`]); every wait is for something
//! that can be seen from outside, and has a deadline.

#![cfg(unix)]

mod api_shape;
mod bad_input;
mod boundaries;
mod chaos;
mod gpu;
mod harness;
mod invites;
mod liar;
mod lost_workers;
mod network;
mod restart;
mod sessions;
mod signals;
mod split;
mod tensor;
mod tls;
