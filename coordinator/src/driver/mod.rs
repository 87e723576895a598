//! The event loop around the scheduler.
//!
//! One task owns the [`scheduler::Scheduler`]. What happens comes in through a [`Handle`];
//! what is to be done goes out to each worker's bounded queue and each request's bounded
//! channel. Nothing here ever waits for a worker or a client: whoever's queue is full is
//! lost (a worker) or cancelled (a request).

mod handle;
mod notes;
mod relays;
mod run;
#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod tests;

pub use handle::{DriverGone, Handle, OUTBOX_MAX, RequestEvent, Submission, Submit};
pub use notes::{Entry, NOTES_MAX};
pub use run::start;
