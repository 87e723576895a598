//! A driver that does what a test says, for the tests of what is built on it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use scheduler::{FleetView, RequestId};
use tokio::sync::mpsc;

use super::handle::{Answer, Handle, INPUTS_MAX, Input, RequestEvent, Submit};
use super::notes::Notes;
use super::relays::Relays;

/// The driver's end of a [`Handle`].
pub(crate) struct Script {
    inputs: mpsc::Receiver<Input>,
    answers: mpsc::UnboundedReceiver<Answer>,
    /// Where the events of the requests in flight go.
    pub events: BTreeMap<RequestId, mpsc::Sender<RequestEvent>>,
    /// What `Handle::view` gives.
    pub view: FleetView,
}

/// What a request did.
#[derive(Debug)]
pub(crate) enum Told {
    Submitted { request: RequestId, submit: Submit },
    Sampled { request: RequestId, choice: u32, token: u32 },
    Finished { request: RequestId, choice: u32 },
    Cancelled { request: RequestId },
}

/// A handle and what is behind it.
pub(crate) fn scripted() -> (Handle, Script) {
    let (inputs, inputs_end) = mpsc::channel(INPUTS_MAX);
    let (answers, answers_end) = mpsc::unbounded_channel();
    let next_id = Arc::new(AtomicU64::new(1));
    let handle =
        Handle { inputs, answers, next_id, notes: Notes::default(), relays: Relays::default() };
    let (events, view) = (BTreeMap::new(), FleetView::default());
    (handle, Script { inputs: inputs_end, answers: answers_end, events, view })
}

impl Script {
    /// The next thing that a request does; views are answered on the way. `None` when all
    /// handles are gone.
    pub async fn next(&mut self) -> Option<Told> {
        loop {
            let input = tokio::select! {
                biased;
                Some(answer) = self.answers.recv() => return Some(told(answer)),
                input = self.inputs.recv() => input?,
            };
            match input {
                Input::Submit { request, submit, events } => {
                    self.events.insert(request, events);
                    return Some(Told::Submitted { request, submit });
                }
                Input::View(view) => {
                    let _ = view.send(self.view.clone());
                }
                Input::Join { .. } | Input::Event(_) => panic!("no worker speaks to a script"),
            }
        }
    }

    /// Sends an event to a request, if it is still there.
    pub async fn send(&self, request: RequestId, event: RequestEvent) {
        let _ = self.events[&request].send(event).await;
    }
}

fn told(answer: Answer) -> Told {
    match answer {
        Answer::Sampled { request, choice, token } => Told::Sampled { request, choice, token },
        Answer::Finish { request, choice } => Told::Finished { request, choice },
        Answer::Cancel { request } => Told::Cancelled { request },
    }
}
