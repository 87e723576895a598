//! One stay with the coordinator: from the first connection, over as many as it takes, until
//! the worker leaves. Turns what happens into the state machine's events, and its actions
//! into messages, fetches and commands.

use std::cell::RefCell;
use std::rc::Rc;

use api::{TabDevice, TabPhase, TabSettings};
use bytes::Bytes;
use protocol::{BlobHash, FromWorker, Reassembler, ToWorker, WorkerKind};
use shards::Shards;
use worker_core::{Action, Backoff, Config, Event, WorkerCore};

use super::compute::{Command, Compute};
use super::fetches::Fetches;
use super::inbox::{Happened, Inbox, SocketEvent};
use super::js;
use super::prepare::Ready;
use super::socket::{CONNECT_MS_MAX, SILENCE_MS_MAX, Socket};
use super::weights::Supply;
use crate::figures::Figures;
use crate::meter::Meter;
use crate::settings::{name, share, without_copies};
use crate::view::Holdings;

/// Steps that the worker takes at once: one is computed while the next is on its way.
const STEP_CREDITS: u32 = 2;
/// A connection that lasted so long was a good one, ms.
const GOOD_AFTER_MS: f64 = 5000.0;
/// Close codes that say that the other side may be back at once: normal, going away, restart.
const ORDERLY: [u16; 3] = [1000, 1001, 1012];

/// How a stay ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Over {
    /// The worker was told to leave, and has.
    Drained,
    /// The coordinator sent it away for good; in words.
    Dismissed(String),
}

/// How a connection ended.
enum End {
    Lost { reason: String, orderly: bool },
    Over(Over),
}

enum Link {
    /// Until then, ms.
    Waiting(f64),
    /// Since then, ms.
    Connecting(Socket, f64),
    /// With the frame in progress, and when anything came last, ms.
    Open(Socket, Reassembler, f64),
}

/// What everything of one tab shares.
#[derive(Clone)]
pub struct Shared {
    /// The queue of happenings.
    pub inbox: Inbox,
    /// Counts bytes.
    pub meter: Rc<Meter>,
    /// What the owner allows.
    pub settings: Rc<RefCell<TabSettings>>,
}

/// See the module's documentation.
pub struct Stay {
    start: u64,
    shared: Shared,
    /// What it works with.
    pub ready: Box<Ready>,
    /// Why it lends less than its owner does, in words.
    note: Option<String>,
    core: WorkerCore,
    compute: Compute,
    fetches: Fetches,
    holdings: Holdings,
    link: Link,
    connection: u64,
    backoff: Backoff,
    /// This connection was welcomed, ms.
    joined_ms: Option<f64>,
    /// Why there is no connection, in words.
    lost: String,
    /// Why it holds nothing, in the coordinator's words.
    idle: String,
    /// Why it leaves, in words.
    leaving: Option<String>,
    end: Option<End>,
    deadline_us: Option<u64>,
}

impl Stay {
    /// Begins to connect, lending so many bytes, and a note for people on why that is less than
    /// its owner lends. `connection` is a number that was not used before; later connections
    /// count on from it.
    pub fn begin(
        start: u64,
        connection: u64,
        shared: Shared,
        ready: Box<Ready>,
        (memory_bytes, note): (u64, Option<String>),
        hidden: bool,
    ) -> Stay {
        let settings = shared.settings.borrow().clone();
        let memory_bytes = without_copies(memory_bytes, ready.helpers);
        let share = share(&settings);
        let core = WorkerCore::new(Config {
            name: name(&settings),
            kind: WorkerKind::Browser,
            backend: ready.computer.backend().into(),
            device: ready.device.name.clone(),
            notes: ready.device.notes.iter().chain(&note).cloned().collect(),
            classes: ready.computer.classes(),
            memory_bytes,
            bytes_per_s: [ready.benchmark.bytes_per_s_1, ready.benchmark.bytes_per_s_8]
                .map(|rate| rate * share),
            step_credits: STEP_CREDITS,
            token: None,
        });
        let shards = Shards::new(ready.computer.clone(), memory_bytes);
        let (weights, inbox) = (ready.weights.clone(), shared.inbox.clone());
        let supply = Supply(weights.clone());
        let settings = shared.settings.clone();
        let compute = Compute::start(shards, supply, ready.helpers, settings, inbox.clone(), start);
        let mut stay = Stay {
            start,
            shared,
            ready,
            note,
            core,
            compute,
            fetches: Fetches::new(weights, inbox),
            holdings: Holdings::default(),
            link: Link::Waiting(0.0),
            connection,
            backoff: Backoff::default(),
            joined_ms: None,
            lost: String::new(),
            idle: String::new(),
            leaving: None,
            end: None,
            deadline_us: None,
        };
        if hidden {
            stay.core.handle(0, Event::Visibility { hidden });
        }
        stay.connect(js::now_ms());
        stay
    }

    /// What computes, for its owner, as it turned out.
    pub fn device(&self) -> TabDevice {
        let mut device = self.ready.device.clone();
        device.notes.extend(self.note.clone());
        device.notes.extend(self.compute.notes());
        device
    }

    /// The last connection's number.
    pub fn connection(&self) -> u64 {
        self.connection
    }

    fn connect(&mut self, now_ms: f64) {
        self.connection += 1;
        self.joined_ms = None;
        match Socket::open(self.connection, &self.shared.inbox, &self.shared.meter) {
            Ok(socket) => self.link = Link::Connecting(socket, now_ms),
            Err(reason) => {
                // As if it had not been reached.
                self.link = Link::Waiting(now_ms);
                self.end = Some(End::Lost { reason, orderly: false });
            }
        }
    }

    /// A socket did something.
    pub fn socket(&mut self, connection: u64, event: SocketEvent, figures: &mut Figures) {
        if connection != self.connection {
            return; // an earlier one
        }
        let now = js::now_ms();
        match (event, &mut self.link) {
            (SocketEvent::Opened, Link::Connecting(..)) => {
                let link = std::mem::replace(&mut self.link, Link::Waiting(now));
                if let Link::Connecting(socket, _) = link {
                    self.link = Link::Open(socket, Reassembler::new(), now);
                }
            }
            (SocketEvent::Text(json), Link::Open(_, _, heard)) => {
                *heard = now;
                match ToWorker::from_json(&json) {
                    Ok(message) => {
                        self.holdings.heard(&message);
                        self.handle(Event::Control(message), figures);
                    }
                    Err(error) => self.lose(error.to_string()),
                }
            }
            (SocketEvent::Binary(chunk), Link::Open(_, frames, heard)) => {
                *heard = now;
                match frames.push(Bytes::from(chunk)) {
                    Ok(Some(frame)) => self.handle(Event::Frame(frame), figures),
                    Ok(None) => {}
                    Err(error) => self.lose(error.to_string()),
                }
            }
            (SocketEvent::Drained, Link::Open(socket, ..)) => {
                if let Err(reason) = socket.look_again() {
                    self.lose(reason);
                }
            }
            (SocketEvent::Closed { code, reason }, _) => {
                let orderly = ORDERLY.contains(&code);
                let reason = match reason.as_str() {
                    "" if self.joined_ms.is_some() => "the connection broke off".into(),
                    "" => "the coordinator cannot be reached".into(),
                    reason => reason.to_owned(),
                };
                if self.end.is_none() {
                    self.end = Some(End::Lost { reason, orderly });
                }
            }
            (
                SocketEvent::Opened
                | SocketEvent::Text(_)
                | SocketEvent::Binary(_)
                | SocketEvent::Drained,
                _,
            ) => {}
        }
    }

    /// A fetch ended.
    pub fn fetched(
        &mut self,
        connection: u64,
        hash: BlobHash,
        result: Result<(), String>,
        figures: &mut Figures,
    ) {
        if connection != self.connection {
            return;
        }
        self.fetches.ended(connection, &hash);
        let event = match result {
            Ok(()) => Event::BlobReady { hash },
            Err(reason) => Event::BlobFailed { hash, reason },
        };
        self.handle(event, figures);
    }

    /// A fetch goes on.
    pub fn progress(&mut self, connection: u64, hash: BlobHash, bytes: u64, figures: &mut Figures) {
        if connection == self.connection {
            self.handle(Event::BlobProgress { hash, bytes }, figures);
        }
    }

    /// Leaves in good order: no new work, the steps at hand answered.
    pub fn drain(&mut self, reason: &str, figures: &mut Figures) {
        if self.leaving.is_none() {
            self.leaving = Some(reason.to_owned());
            self.compute.hurry();
            self.handle(Event::Drain { reason: reason.into() }, figures);
        }
    }

    /// Begins no further step, says so, and hangs up. [`Happened::ComputeEnded`] follows.
    pub fn halt(&mut self, reason: &str, figures: &mut Figures) {
        self.compute.stop();
        self.drain(reason, figures);
        if let Link::Open(socket, ..) = &self.link {
            socket.close(reason);
        }
        self.fetches.forget_all();
        self.holdings.clear();
        self.link = Link::Waiting(f64::INFINITY);
        self.connection += 1;
    }

    /// Lets go of what it held once its stay is over. [`Happened::ComputeEnded`] follows.
    pub fn close(&mut self) {
        self.halt("left in good order", &mut Figures::default());
    }

    /// Gives back what it worked with.
    pub fn into_ready(self) -> Box<Ready> {
        self.ready
    }

    /// A few times a second.
    pub fn tick(&mut self, slept_ms: Option<f64>, figures: &mut Figures) {
        let now = js::now_ms();
        if let Some(ms) = slept_ms {
            self.backoff.reset();
            self.lose(format!("the machine slept for {:.0} s", ms / 1000.0));
        }
        match &self.link {
            Link::Waiting(until) if now >= *until && self.end.is_none() => self.connect(now),
            Link::Connecting(_, since) if now - since > CONNECT_MS_MAX => {
                self.lose("the coordinator does not answer".into());
            }
            Link::Open(_, _, heard) if now - heard > SILENCE_MS_MAX => {
                self.lose(format!("nothing came for {} s", SILENCE_MS_MAX / 1000.0));
            }
            Link::Waiting(_) | Link::Connecting(..) | Link::Open(..) => {}
        }
        self.handle(Event::Tick, figures);
    }

    fn lose(&mut self, reason: String) {
        if self.end.is_none() {
            self.end = Some(End::Lost { reason, orderly: false });
        }
    }

    /// Takes an event and does what follows from it.
    pub fn handle(&mut self, event: Event, figures: &mut Figures) {
        if let Event::Loaded { shard, shape } = &event {
            self.holdings.loaded(*shard, shape.layers);
        }
        let now_ms = js::now_ms();
        let now = (now_ms * 1000.0) as u64;
        self.core.handle(now, event);
        while let Some(action) = self.core.poll_action() {
            self.act(now, action, figures);
        }
        let deadline = self.core.next_deadline().map(|(at, _)| at);
        if deadline != self.deadline_us {
            self.deadline_us = deadline;
            self.wake_at(deadline, now_ms);
        }
    }

    fn wake_at(&self, deadline_us: Option<u64>, now_ms: f64) {
        let Some(deadline) = deadline_us else { return };
        let (inbox, start) = (self.shared.inbox.clone(), self.start);
        let wait_ms = deadline as f64 / 1000.0 - now_ms + 1.0;
        wasm_bindgen_futures::spawn_local(async move {
            js::sleep(wait_ms).await;
            inbox.push(Happened::Deadline { start });
        });
    }

    fn act(&mut self, now: u64, action: Action, figures: &mut Figures) {
        match action {
            Action::Sign { message } => {
                let public_key = self.ready.identity.public_key();
                let signature = self.ready.identity.sign(&message);
                let cached = self.ready.weights.cached();
                self.core.handle(now, Event::Signed { public_key, signature, cached });
            }
            Action::Joined { worker: _, blob_token, trusted: _ } => {
                self.ready.weights.set_token(blob_token);
                self.joined_ms = Some(now as f64 / 1000.0);
                self.idle.clear();
            }
            Action::Send(message) => self.send(message),
            Action::SendFrame(frame) => {
                let layers = self.holdings.layers(frame.assignment).unwrap_or(0);
                figures.answered(now as f64 / 1000.0, &frame, layers);
                let sent = match &mut self.link {
                    Link::Open(socket, ..) => socket.send_frame(frame),
                    Link::Waiting(_) | Link::Connecting(..) => Ok(()),
                };
                if let Err(reason) = sent {
                    self.lose(reason);
                }
            }
            Action::Fetch { blob, .. } => self.fetches.want(self.connection, blob),
            Action::Forget(hash) => self.fetches.forget(&hash),
            Action::Load { shard, assignment } => {
                self.holdings.loading(shard, assignment.id);
                self.compute.command(Command::Load(shard, assignment));
            }
            Action::Run(run) => self.compute.command(Command::Run(run)),
            Action::Fork { shard, from, to, positions } => {
                self.compute.command(Command::Fork(shard, from, to, positions));
            }
            Action::Truncate { shard, session, positions } => {
                self.compute.command(Command::Truncate(shard, session, positions));
            }
            Action::Release { shard, session } => {
                self.compute.command(Command::Release(shard, session));
            }
            Action::Unload { shard } => {
                self.holdings.unloaded(shard);
                self.compute.command(Command::Unload(shard));
            }
            Action::Idle { reason } => self.idle = reason,
            Action::Close { reason, retry: true } => self.lose(reason),
            Action::Close { reason, retry: false } => {
                self.end = Some(End::Over(Over::Dismissed(reason)));
            }
            Action::Drained => self.end = Some(End::Over(Over::Drained)),
        }
    }

    fn send(&mut self, message: FromWorker) {
        self.holdings.said(&message);
        let sent = match &mut self.link {
            Link::Open(socket, ..) => socket.send(&message),
            Link::Waiting(_) | Link::Connecting(..) => Ok(()),
        };
        if let Err(reason) = sent {
            self.lose(reason);
        }
    }

    /// Draws the consequences of a connection's end, after everything else was handled.
    pub fn settle(&mut self, figures: &mut Figures) -> Option<Over> {
        let (reason, orderly) = match self.end.take()? {
            End::Over(over) => return Some(over),
            End::Lost { reason, orderly } => (reason, orderly),
        };
        let now = js::now_ms();
        // Being let in and thrown out again at once must not become a busy loop.
        let was_good = self.joined_ms.is_some_and(|joined| now - joined >= GOOD_AFTER_MS);
        if was_good {
            self.backoff.reset();
        }
        let wait_ms = match was_good && orderly {
            true => 0.0,
            // Without random numbers all workers wait equally long, which still works.
            false => {
                let random = getrandom::u32().unwrap_or(0);
                self.backoff.next_wait(random).as_secs_f64() * 1000.0
            }
        };
        js::warn(&format!("disconnected: {reason}; joining again in {:.1} s", wait_ms / 1000.0));
        if let Link::Open(socket, ..) = &self.link {
            socket.close(&reason);
        }
        self.lost = reason;
        self.joined_ms = None;
        self.link = Link::Waiting(now + wait_ms);
        // Numbers of fetches that still end are those of a connection that is gone.
        self.connection += 1;
        self.handle(Event::Disconnected, figures);
        self.fetches.forget_all();
        self.holdings.clear();
        match self.end.take() {
            Some(End::Over(over)) => Some(over),
            Some(End::Lost { .. }) | None => None,
        }
    }

    /// What it is doing, and more about it in words.
    pub fn phase(&self) -> (TabPhase, String) {
        if let Some(reason) = &self.leaving {
            return (TabPhase::Finishing, reason.clone());
        }
        match &self.link {
            Link::Waiting(until) => {
                let wait_s = ((until - js::now_ms()) / 1000.0).max(0.0).ceil();
                (TabPhase::Connecting, format!("{}; trying again in {wait_s} s", self.lost))
            }
            Link::Open(..) if self.joined_ms.is_some() => match self.holdings.phase() {
                TabPhase::Idle => (TabPhase::Idle, self.idle.clone()),
                phase => (phase, String::new()),
            },
            Link::Connecting(..) | Link::Open(..) => (TabPhase::Connecting, String::new()),
        }
    }

    /// What it holds.
    pub fn holdings(&self) -> &Holdings {
        &self.holdings
    }
}
