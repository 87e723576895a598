//! The one queue of everything that happens to a tab.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use api::{TabPhase, ToTab};
use protocol::BlobHash;
use shards::SourceError;
use worker_core::Event;

use super::prepare::Ready;

/// Happenings that may wait; a coordinator that sends more at once is hung up on.
pub const INBOX_MAX: usize = 8192;

/// What happened.
pub enum Happened {
    /// The page said something.
    Page(ToTab),
    /// Preparations go on.
    Preparing {
        /// Of which start.
        start: u64,
        /// What is being done.
        phase: TabPhase,
        /// In words.
        detail: String,
    },
    /// Preparations are over; an error is in words.
    Prepared {
        /// Of which start.
        start: u64,
        /// What they gave.
        result: Result<Box<Ready>, String>,
    },
    /// A socket.
    Socket {
        /// Which connection.
        connection: u64,
        /// What of it.
        event: SocketEvent,
    },
    /// A blob is here, or cannot be had.
    Fetched {
        /// By which connection.
        connection: u64,
        /// Which.
        hash: BlobHash,
        /// Why not.
        result: Result<(), SourceError>,
    },
    /// So much of a blob is here.
    Progress {
        /// By which connection.
        connection: u64,
        /// Which.
        hash: BlobHash,
        /// Bytes.
        bytes: u64,
    },
    /// The compute task has an outcome.
    Computed {
        /// Of which start.
        start: u64,
        /// The outcome.
        event: Event,
        /// When it began and ended to compute, ms; rests are not in it.
        worked_ms: Option<(f64, f64)>,
    },
    /// There is no room for a shard, although less than what is lent was asked for;
    /// [`Event::LoadFailed`] came before.
    NoRoom {
        /// Of which start.
        start: u64,
        /// In words.
        reason: String,
    },
    /// What was given is written down, as well as that can be, before a worker that failed says
    /// so: it is ended then.
    Saved {
        /// After which start.
        start: u64,
        /// Why it failed, in words.
        failure: String,
    },
    /// The compute task has ended and let its shards go.
    ComputeEnded {
        /// Of which start.
        start: u64,
    },
    /// A deadline may have come.
    Deadline {
        /// Of which start.
        start: u64,
    },
    /// A few times a second while it works.
    Tick,
    /// All data is deleted; an error is in words.
    Forgotten(Result<u64, String>),
}

/// What a socket does.
pub enum SocketEvent {
    /// It is open.
    Opened,
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Vec<u8>),
    /// It is closed, or never opened.
    Closed {
        /// The close code.
        code: u16,
        /// The peer's reason, if it gave one.
        reason: String,
    },
    /// Something waits to be sent and there may be room.
    Drained,
}

/// The queue. Clones are the same one.
#[derive(Clone, Default)]
pub struct Inbox(Rc<Inner>);

#[derive(Default)]
struct Inner {
    queue: RefCell<VecDeque<Happened>>,
    waker: RefCell<Option<Waker>>,
}

impl Inbox {
    /// Adds one.
    pub fn push(&self, happened: Happened) {
        self.0.queue.borrow_mut().push_back(happened);
        if let Some(waker) = self.0.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.0.queue.borrow().len()
    }

    /// The next one.
    pub async fn next(&self) -> Happened {
        poll_fn(|context| match self.0.queue.borrow_mut().pop_front() {
            Some(happened) => Poll::Ready(happened),
            None => {
                *self.0.waker.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}
