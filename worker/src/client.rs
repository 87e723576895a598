//! Joining a coordinator, and joining it again.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::backoff::Backoff;
use crate::link::UP_QUEUE_MAX;
use crate::shell::{End, Worker};
use crate::socket::{self, ConnectError};

/// How long the last messages of a connection may take.
const GOODBYE_WITHIN: Duration = Duration::from_secs(2);
/// A connection that lasted so long was a good one.
const GOOD_AFTER: Duration = Duration::from_secs(5);

/// Why a worker gave up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The coordinator sent it away for good.
    #[error("the coordinator says: {0}")]
    Dismissed(String),
    /// The worker cannot compute any more.
    #[error("it can compute no more, for the reason told above: start the worker again")]
    Broken,
    /// There is no coordinator that this worker could join.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// Serves the coordinator at `url` until the worker has drained. A lost connection is made
/// again, at once if the coordinator had closed it in good order, else after a while.
///
/// # Errors
/// The coordinator dismissed the worker for good; or what answers at `url` will not do, and
/// did not let the worker in before.
pub async fn run(
    worker: &Worker,
    url: &Url,
    tls: Option<Arc<rustls::ClientConfig>>,
) -> Result<(), ClientError> {
    let mut backoff = Backoff::default();
    let mut joined_before = false;
    loop {
        let connected = tokio::select! {
            connected = socket::connect(url, tls.clone()) => connected,
            () = worker.drained() => return Ok(()),
        };
        let (reader, writer) = match connected {
            Ok(halves) => halves,
            Err(error @ ConnectError::Unfit { .. }) if !joined_before => return Err(error.into()),
            Err(error) => {
                let wait = backoff.next_wait(random());
                tracing::warn!("{error}; trying again in {:.1} s", wait.as_secs_f64());
                tokio::select! {
                    () = sleep(wait) => continue,
                    () = worker.drained() => return Ok(()),
                }
            }
        };
        let (up, messages) = mpsc::channel(UP_QUEUE_MAX);
        let mut writing = tokio::spawn(writer.run(messages));
        let began = Instant::now();
        let (end, joined) = worker.serve_from(up, reader).await;
        // What was said last is still sent: the queue is closed, so the writer ends by itself.
        match timeout(GOODBYE_WITHIN, &mut writing).await {
            Ok(Ok(Err(reason))) => tracing::warn!("sending failed: {reason}"),
            Ok(_) => {}
            Err(_) => writing.abort(),
        }
        joined_before |= joined;
        // Being let in and thrown out again at once must not become a busy loop.
        let was_good = joined && began.elapsed() >= GOOD_AFTER;
        if was_good {
            backoff.reset();
        }
        let (reason, at_once) = match end {
            End::Drained => return Ok(()),
            End::Broken => return Err(ClientError::Broken),
            End::Closed { reason, retry: false } => return Err(ClientError::Dismissed(reason)),
            End::Closed { reason, retry: true } => (reason, was_good),
            End::Lost(lost) => (lost.reason, was_good && lost.orderly),
        };
        let wait = if at_once { Duration::ZERO } else { backoff.next_wait(random()) };
        tracing::warn!("disconnected: {reason}; joining again in {:.1} s", wait.as_secs_f64());
        tokio::select! {
            () = sleep(wait) => {}
            () = worker.drained() => return Ok(()),
        }
    }
}

fn random() -> u32 {
    // Without random numbers all workers wait equally long, which still works.
    getrandom::u32().unwrap_or(0)
}
