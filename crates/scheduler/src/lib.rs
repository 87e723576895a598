//! Decides everything: which worker holds what, which way a session's rows go, what is
//! batched, what happens when a worker is lost.
//!
//! One state machine: [`Scheduler::handle`] takes an [`Event`], [`Scheduler::poll_action`]
//! drains what is to be done, [`Scheduler::next_deadline`] says when to send
//! [`Event::Tick`] and why. It knows nothing about sockets, files, text or threads; the
//! coordinator is a shell that turns those into events. All randomness is an argument,
//! all maps are ordered, so that one seed gives one history.

pub mod event;

pub use event::*;
