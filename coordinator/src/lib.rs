//! The coordinator: a shell that turns sockets, timers and HTTP requests into scheduler
//! events, and the scheduler's actions into messages.
//!
//! The path of one token: [`http`] takes the request, [`driver`] hands it to the scheduler
//! and its steps to the workers' queues, [`sockets`] and [`embedded`] carry them, the logits
//! come back the same way to [`http`], which samples and streams. It decides nothing about
//! the fleet itself: that is the `scheduler` crate's.

pub mod admin;
pub mod bench;
pub mod blobs;
pub mod cli;
pub mod config;
pub mod driver;
pub mod embedded;
pub mod http;
pub mod ledger;
pub mod plan;
pub mod pull;
mod random;
pub mod serve;
pub mod server;
pub mod sockets;
pub mod store;
