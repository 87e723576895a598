//! The task that owns the scheduler.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use protocol::{SessionId, ToWorker, WorkerId, clean_text};
use scheduler::{Action, Config, Event, ModelSpec, Note, Request, RequestId, Scheduler, Time};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use worker::Down;

use super::handle::{Answer, Handle, INPUTS_MAX, Input, RequestEvent};
use super::notes::Notes;
use super::relays::Relays;
use crate::ledger::Ledger;
use crate::random;

/// Answers handled at most before the other inputs have their turn.
const ANSWERS_AT_ONCE_MAX: usize = 64;
/// When nothing is due: how long to sleep before looking again.
const IDLE: Duration = Duration::from_secs(3600);

/// Starts the driver with these models. It runs until every [`Handle`] is dropped; should it
/// panic, the join handle says so and all channels close. What its workers do is written into
/// `ledger`, if there is one.
pub fn start(
    mut config: Config,
    models: Vec<ModelSpec>,
    ledger: Option<Ledger>,
) -> (Handle, JoinHandle<()>) {
    // Nobody can foresee what is audited, not even from one start to the next.
    config.audits.secret = [random::word(), random::word()];
    let (inputs, input_queue) = mpsc::channel(INPUTS_MAX);
    let (answers, answer_queue) = mpsc::unbounded_channel();
    let notes = Notes::default();
    let relays = Relays::default();
    let handle = Handle {
        inputs,
        answers,
        next_id: Arc::new(AtomicU64::new(1)),
        notes: notes.clone(),
        relays: relays.clone(),
    };
    let mut driver = Driver {
        origin: Instant::now(),
        scheduler: Scheduler::new(config),
        workers: HashMap::new(),
        requests: HashMap::new(),
        sessions: HashMap::new(),
        due: VecDeque::new(),
        notes,
        relays,
        ledger,
    };
    for model in models {
        driver.handle(Event::AddModel(model));
    }
    (handle, tokio::spawn(driver.run(input_queue, answer_queue)))
}

struct Driver {
    /// [`Time`] counts from here.
    origin: Instant,
    scheduler: Scheduler,
    workers: HashMap<WorkerId, mpsc::Sender<Down>>,
    requests: HashMap<RequestId, Live>,
    /// Which choice of which request a session is.
    sessions: HashMap<SessionId, (RequestId, u32)>,
    /// Events that carrying out actions gave rise to: a worker lost, a request cancelled.
    due: VecDeque<Event>,
    notes: Notes,
    /// The tensor groups that there are.
    relays: Relays,
    ledger: Option<Ledger>,
}

/// A request that has not ended.
struct Live {
    events: mpsc::Sender<RequestEvent>,
    /// One per choice, once it has started; `None` where the choice has finished.
    sessions: Vec<Option<SessionId>>,
}

impl Driver {
    async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        mut answers: mpsc::UnboundedReceiver<Answer>,
    ) {
        let timer = tokio::time::sleep(IDLE);
        tokio::pin!(timer);
        loop {
            let due = self.scheduler.next_deadline().map(|(at, _why)| at);
            let wake = self.origin + due.map_or(self.origin.elapsed() + IDLE, to_duration);
            timer.as_mut().reset(wake);
            tokio::select! {
                biased;
                Some(answer) = answers.recv() => {
                    self.answer(answer);
                    for _ in 1..ANSWERS_AT_ONCE_MAX {
                        let Ok(answer) = answers.try_recv() else { break };
                        self.answer(answer);
                    }
                    // So that a flood of answers cannot keep the workers' messages waiting.
                    if let Ok(input) = inputs.try_recv() {
                        self.input(input);
                    }
                }
                input = inputs.recv() => match input {
                    Some(input) => self.input(input),
                    None => return,
                },
                keys = lifted(self.ledger.as_ref()) => {
                    for key in keys {
                        tracing::info!(key, "a ban was lifted");
                        self.handle(Event::Unban { key });
                    }
                }
                () = &mut timer => self.handle(Event::Tick),
            }
        }
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// Tells the scheduler, then does all that it wants done.
    fn handle(&mut self, event: Event) {
        self.due.push_back(event);
        while let Some(event) = self.due.pop_front() {
            let now = self.now();
            self.scheduler.handle(now, event);
            while let Some(action) = self.scheduler.poll_action() {
                self.act(action);
            }
        }
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Submit { request, submit, events } => {
                if events.is_closed() {
                    return; // cancelled while it waited
                }
                self.requests.insert(request, Live { events, sessions: Vec::new() });
                let deadline = self.now().plus(submit.timeout);
                self.handle(Event::Submit(Request {
                    id: request,
                    model: submit.model,
                    prompt: submit.prompt,
                    choices: submit.choices,
                    max_new_tokens: submit.max_new_tokens,
                    deadline,
                    wish: submit.wish,
                }));
            }
            Input::Join { spec, outbox } => {
                self.workers.insert(spec.id, outbox);
                self.handle(Event::Join(spec));
            }
            Input::Event(event) => {
                let answered = match &event {
                    Event::Result { worker, .. } => Some(*worker),
                    _ => None,
                };
                let rows =
                    |driver: &Driver| answered.map_or(0, |worker| driver.scheduler.rows_of(worker));
                let before = rows(self);
                if let Event::Leave { worker, .. } = &event {
                    self.workers.remove(worker);
                }
                self.handle(event);
                // None are left to see if this answer cost the worker its place.
                let computed = rows(self).saturating_sub(before);
                if let (Some(ledger), Some(worker), 1..) = (&self.ledger, answered, computed) {
                    ledger.computed(worker, computed);
                }
            }
            Input::View(sender) => {
                // The asker may be gone: nothing to do then.
                let _ = sender.send(self.scheduler.view());
            }
        }
    }

    fn answer(&mut self, answer: Answer) {
        match answer {
            Answer::Sampled { request, choice, token } => {
                if let Some(session) = self.session(request, choice) {
                    self.handle(Event::Sampled { session, token });
                }
            }
            Answer::Finish { request, choice } => {
                let Some(session) = self.session(request, choice) else { return };
                self.sessions.remove(&session);
                if let Some(live) = self.requests.get_mut(&request) {
                    live.sessions[choice as usize] = None;
                    if live.sessions.iter().all(Option::is_none) {
                        self.requests.remove(&request);
                    }
                }
                self.handle(Event::Finish { session });
            }
            Answer::Cancel { request } => {
                // Every submission ends with a cancel; those that finished are not here.
                if self.forget(request) {
                    self.handle(Event::Cancel { request });
                }
            }
        }
    }

    /// The session of an unfinished choice.
    fn session(&self, request: RequestId, choice: u32) -> Option<SessionId> {
        *self.requests.get(&request)?.sessions.get(choice as usize)?
    }

    /// Drops what is known of a request; false if nothing was.
    fn forget(&mut self, request: RequestId) -> bool {
        let Some(live) = self.requests.remove(&request) else { return false };
        for session in live.sessions.into_iter().flatten() {
            self.sessions.remove(&session);
        }
        true
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Control { worker, message } => self.send(worker, Down::Control(message)),
            Action::Step { worker, frame } => self.send(worker, Down::Frame(frame)),
            Action::Dismiss { worker, reason, retry } => {
                tracing::warn!(%worker, %reason, retry, "dismissing a worker");
                let reason = clean_text(&reason);
                self.send(worker, Down::Control(ToWorker::Dismiss { reason, retry }));
                // The queue closes behind the message, and then the socket.
                self.workers.remove(&worker);
            }
            Action::Group { group, members } => {
                let outbox = |id| self.workers.get(&id).map(mpsc::Sender::downgrade);
                self.relays.form(group, members.into_iter().map(|id| (id, outbox(id))));
            }
            Action::Ungroup { group } => self.relays.dissolve(group),
            Action::Started { request, sessions, cached_tokens } => {
                for (choice, session) in (0..).zip(&sessions) {
                    self.sessions.insert(*session, (request, choice));
                }
                if let Some(live) = self.requests.get_mut(&request) {
                    live.sessions = sessions.into_iter().map(Some).collect();
                }
                self.tell(request, RequestEvent::Started { cached_tokens });
            }
            Action::Sample { session, position, logits } => {
                if let Some(&(request, choice)) = self.sessions.get(&session) {
                    self.tell(request, RequestEvent::Logits { choice, position, logits });
                }
            }
            Action::Refused { request, error } => {
                self.tell(request, RequestEvent::Refused(error));
                self.forget(request);
            }
            Action::Standing { key, standing } => {
                if let Some(ledger) = &self.ledger {
                    ledger.audited(&key, standing.agreements, standing.disagreements);
                    if standing.banned {
                        ledger.banned(&key, None);
                    }
                }
            }
            Action::Verified { key, model: _, layers, rows } => {
                if let Some(ledger) = &self.ledger {
                    ledger.verified(&key, u64::from(layers) * u64::from(rows));
                }
            }
            Action::Note(note) => {
                if let (Some(ledger), Note::Banned { key, reason }) = (&self.ledger, &note) {
                    ledger.banned(key, Some(reason));
                }
                self.notes.push(&note);
            }
        }
    }

    /// Queues a message for a worker; a worker that is too slow to take it is lost.
    fn send(&mut self, worker: WorkerId, message: Down) {
        let Some(outbox) = self.workers.get(&worker) else { return };
        let reason = match outbox.try_send(message) {
            Ok(()) => return,
            Err(TrySendError::Full(_)) => {
                format!("its connection is stuck: {} messages wait for it", outbox.max_capacity())
            }
            Err(TrySendError::Closed(_)) => "its connection is closed".into(),
        };
        self.workers.remove(&worker);
        self.due.push_back(Event::Leave { worker, reason });
    }

    /// Tells a request something. Its queue has room for all that can be outstanding.
    fn tell(&mut self, request: RequestId, event: RequestEvent) {
        let Some(live) = self.requests.get(&request) else { return };
        match live.events.try_send(event) {
            Ok(()) => {}
            // Its submission was dropped: the cancel is on its way.
            Err(TrySendError::Closed(_)) => {}
            Err(TrySendError::Full(_)) => {
                tracing::error!(request = request.0, "a request's events overflowed: cancelled");
                self.forget(request);
                self.due.push_back(Event::Cancel { request });
            }
        }
    }
}

/// Keys whose bans an operator has lifted.
async fn lifted(ledger: Option<&Ledger>) -> Vec<String> {
    match ledger {
        Some(ledger) => ledger.lifted().await,
        None => std::future::pending().await,
    }
}

fn to_duration(time: Time) -> Duration {
    Duration::from_micros(time.0)
}
