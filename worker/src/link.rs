//! What passes between a worker and its coordinator, whatever carries it.

use bytes::Bytes;
use protocol::{Frame, FromWorker, ToWorker};
use tokio::sync::mpsc;

/// Messages that may wait to be sent; a coordinator that lets more pile up is gone.
pub const UP_QUEUE_MAX: usize = 1024;
/// Messages that may wait to be handled, in process: as many as for a worker on a socket.
pub const DOWN_QUEUE_MAX: usize = 1024;

/// From the worker.
#[derive(Clone, Debug)]
pub enum Up {
    /// A control message.
    Control(FromWorker),
    /// The answer to a step.
    Frame(Frame),
    /// A piece of what a tensor group's ranks send each other; see [`protocol::relay`].
    Relay(Bytes),
}

/// From the coordinator.
#[derive(Clone, Debug)]
pub enum Down {
    /// A control message.
    Control(ToWorker),
    /// A step.
    Frame(Frame),
    /// A piece that another rank of a tensor group sent.
    Relay(Bytes),
}

/// A worker's end of a connection within the process: no JSON, no chunks. Dropping the
/// coordinator's end disconnects.
#[derive(Debug)]
pub struct Link {
    /// What the worker sends.
    pub to_coordinator: mpsc::Sender<Up>,
    /// What it receives.
    pub from_coordinator: mpsc::Receiver<Down>,
}

impl Link {
    /// A worker's end, and the coordinator's: what it sends, and what it receives.
    pub fn pair() -> (Link, mpsc::Sender<Down>, mpsc::Receiver<Up>) {
        let (to_coordinator, from_worker) = mpsc::channel(UP_QUEUE_MAX);
        let (to_worker, from_coordinator) = mpsc::channel(DOWN_QUEUE_MAX);
        (Link { to_coordinator, from_coordinator }, to_worker, from_worker)
    }
}

/// Where a worker's messages come from.
pub(crate) trait Incoming {
    /// The next message, or why there will be none.
    fn next(&mut self) -> impl Future<Output = Result<Down, Lost>> + Send;
}

/// A connection that ended without a word of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Why, in words.
    pub reason: String,
    /// The other side closed it in good order, so that it may be back at once.
    pub orderly: bool,
}

impl Incoming for mpsc::Receiver<Down> {
    async fn next(&mut self) -> Result<Down, Lost> {
        let gone = || Lost { reason: "the coordinator's end was dropped".into(), orderly: true };
        self.recv().await.ok_or_else(gone)
    }
}
