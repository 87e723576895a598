//! A worker's own state machine, the same in the native program, in a browser tab, inside
//! the coordinator and in the simulation.
//!
//! [`WorkerCore::handle`] takes an [`Event`], [`WorkerCore::poll_action`] drains what is to
//! be done, in order, [`WorkerCore::next_deadline`] says when to send [`Event::Tick`]. It
//! greets the coordinator, has blobs fetched and shards loaded, answers steps, and leaves in
//! good order. It knows nothing about sockets, files, clocks, keys or threads, and of a
//! payload nothing but its length.
//!
//! One run is out at a time, and everything that touches a shard (load, run, fork, truncate,
//! release, unload) leaves here in the order in which it is to be executed. So the record of
//! what each session holds is exact, and the engine never sees a gap, an older epoch or a
//! session of an assignment that is over.

mod assignments;
pub mod backoff;
mod core;
mod event;
mod limits;
mod sessions;
mod steps;

pub use backoff::Backoff;
pub use core::WorkerCore;
pub use event::*;
pub use limits::*;
