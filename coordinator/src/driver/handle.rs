//! The rest of the program's side of the driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use protocol::WorkerId;
use scheduler::{Event, FleetView, RequestError, RequestId, Wish, WorkerSpec};
use tokio::sync::{mpsc, oneshot};
use worker::Down;

use super::notes::{Entry, Notes};
use super::relays::Relays;

/// Messages that may wait for a worker's socket. Step credits bound the frames among them;
/// a worker that lets this many pile up is lost.
pub const OUTBOX_MAX: usize = 1024;
/// Inputs that may wait for the driver; who sends more waits.
pub(super) const INPUTS_MAX: usize = 1024;
/// Events of a request that may wait for it, on top of two per choice. There is never more
/// than one row of logits per choice, since the next needs the answer to the last.
const EVENTS_SPARE: usize = 4;

/// The driver has stopped: the coordinator is going down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator is shutting down")]
pub struct DriverGone;

/// What the driver is told. May wait in a bounded queue.
pub(super) enum Input {
    /// A client wants a generation.
    Submit { request: RequestId, submit: Submit, events: mpsc::Sender<RequestEvent> },
    /// A worker was welcomed; what is for it goes to `outbox`.
    Join { spec: WorkerSpec, outbox: mpsc::Sender<Down> },
    /// Something else that the scheduler wants to know.
    Event(Event),
    /// Someone asks what the fleet looks like.
    View(oneshot::Sender<FleetView>),
}

/// What a request answers the driver. Its queue has no bound of its own, so that dropping a
/// [`Submission`] never waits; it holds at most an answer per row of logits handed out, an
/// end per choice and one cancel.
pub(super) enum Answer {
    Sampled { request: RequestId, choice: u32, token: u32 },
    Finish { request: RequestId, choice: u32 },
    Cancel { request: RequestId },
}

/// A clonable way to reach the driver.
#[derive(Clone)]
pub struct Handle {
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) answers: mpsc::UnboundedSender<Answer>,
    pub(super) next_id: Arc<AtomicU64>,
    pub(super) notes: Notes,
    pub(super) relays: Relays,
}

/// A generation to run.
#[derive(Clone, Debug)]
pub struct Submit {
    /// Which model, by name.
    pub model: String,
    /// Prompt token ids, at least one.
    pub prompt: Vec<u32>,
    /// How many continuations (`n`), at least one; they share the prompt's KV cache.
    pub choices: u32,
    /// Tokens wanted per choice at most.
    pub max_new_tokens: u32,
    /// When it fails if it has not finished, from now.
    pub timeout: Duration,
    /// What it asks of its route.
    pub wish: Wish,
}

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum RequestEvent {
    /// It was admitted.
    Started {
        /// Prompt tokens whose KV was there already.
        cached_tokens: u32,
    },
    /// Choose a token, then [`Submission::sampled`] or [`Submission::finish`].
    Logits {
        /// Of which choice, from 0.
        choice: u32,
        /// Position of the row that they came from; the token chosen gets the next.
        position: u32,
        /// `[V]` f32, little-endian.
        logits: Bytes,
    },
    /// It ended without finishing; nothing more comes.
    Refused(RequestError),
}

impl Handle {
    /// Submits a generation. Refusals come as [`RequestEvent::Refused`].
    ///
    /// # Errors
    /// If the driver has stopped.
    pub async fn submit(&self, submit: Submit) -> Result<Submission, DriverGone> {
        let request = RequestId(self.fresh_id());
        let room = 2 * submit.choices as usize + EVENTS_SPARE;
        let (sender, events) = mpsc::channel(room);
        // Made first: if this future is dropped while it waits, the request is cancelled.
        let submission = Submission { request, events, answers: self.answers.clone() };
        let input = Input::Submit { request, submit, events: sender };
        self.inputs.send(input).await.map_err(|_| DriverGone)?;
        Ok(submission)
    }

    /// What the fleet looks like now; empty if the driver has stopped.
    pub async fn view(&self) -> FleetView {
        let (sender, view) = oneshot::channel();
        let _ = self.inputs.send(Input::View(sender)).await;
        view.await.unwrap_or_default()
    }

    /// What was noted lately, the oldest first.
    pub fn notes(&self) -> Vec<Entry> {
        self.notes.entries()
    }

    /// Passes a piece that a worker sent on to the other ranks of its tensor group. A member
    /// that does not take what is sent to it is lost.
    ///
    /// # Errors
    /// What was wrong with the piece, in words: the connection that it came from is over.
    pub async fn relay(&self, from: WorkerId, piece: &Bytes) -> Result<(), String> {
        for worker in self.relays.pass_on(from, piece)? {
            let reason =
                format!("its connection is stuck: {OUTBOX_MAX} messages of its group wait for it");
            // If the driver has stopped, all connections end.
            let _ = self.event(Event::Leave { worker, reason }).await;
        }
        Ok(())
    }

    /// An id for a new connection of a worker.
    pub fn fresh_worker(&self) -> WorkerId {
        WorkerId(self.fresh_id())
    }

    /// Lets a welcomed worker in. Its messages go to `outbox`, which is dropped when the
    /// worker is dismissed or lost; whoever carries them tells [`Event::Leave`] at the end.
    ///
    /// # Errors
    /// If the driver has stopped.
    pub async fn join(
        &self,
        spec: WorkerSpec,
        outbox: mpsc::Sender<Down>,
    ) -> Result<(), DriverGone> {
        self.inputs.send(Input::Join { spec, outbox }).await.map_err(|_| DriverGone)
    }

    /// Tells the scheduler what a worker said, or what became of it.
    ///
    /// # Errors
    /// If the driver has stopped.
    pub async fn event(&self, event: Event) -> Result<(), DriverGone> {
        self.inputs.send(Input::Event(event)).await.map_err(|_| DriverGone)
    }

    /// Never the same twice.
    fn fresh_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

/// A generation in flight. Dropping it cancels what is left of it, at once.
#[derive(Debug)]
pub struct Submission {
    /// Its name in the fleet view.
    pub request: RequestId,
    /// What happens to it. Closed without [`RequestEvent::Refused`] while choices are
    /// unfinished: the driver stopped.
    pub events: mpsc::Receiver<RequestEvent>,
    pub(super) answers: mpsc::UnboundedSender<Answer>,
}

impl Submission {
    /// The next event; `None` once the driver has stopped.
    pub async fn recv(&mut self) -> Option<RequestEvent> {
        self.events.recv().await
    }

    /// Answers a choice's logits with the token chosen; its next logits follow.
    pub fn sampled(&self, choice: u32, token: u32) {
        let _ = self.answers.send(Answer::Sampled { request: self.request, choice, token });
    }

    /// Ends a choice: it has all it wants. Others go on.
    pub fn finish(&self, choice: u32) {
        let _ = self.answers.send(Answer::Finish { request: self.request, choice });
    }
}

impl Drop for Submission {
    fn drop(&mut self) {
        // Closed before the cancel is sent: should the submission itself still wait in its
        // queue, the driver sees that nobody wants it any more.
        self.events.close();
        let _ = self.answers.send(Answer::Cancel { request: self.request });
    }
}
