//! The state machine's frame: greeting, leaving, and who handles which event.

use std::collections::VecDeque;

use litemap::LiteMap;
use protocol::{
    AssignmentId, BlobHash, Dtype, FromWorker, Hello, NAME_BYTES_MAX, NOTE_BYTES_MAX, NOTES_MAX,
    PROTOCOL_VERSION, ToWorker, challenge_bytes, clean_text, clean_text_to, invited_bytes,
};

use crate::assignments::{Blob, Held};
use crate::event::{Action, Config, Event};
use crate::limits::{DRAIN_QUIET_US, DRAIN_US_MAX};
use crate::steps::{Running, Waiting};

/// See the crate's documentation.
#[derive(Debug)]
pub struct WorkerCore {
    pub(crate) config: Config,
    phase: Phase,
    drain: Option<Drain>,
    /// Whether nobody sees the worker's tab.
    hidden: bool,
    pub(crate) assignments: LiteMap<AssignmentId, Held>,
    pub(crate) blobs: LiteMap<BlobHash, Blob>,
    /// What came in and touches shards, in order.
    pub(crate) waiting: VecDeque<Waiting>,
    pub(crate) running: Option<Running>,
    /// The last [`crate::ShardKey`] and [`crate::RunId`] given.
    pub(crate) last_key: u64,
    actions: VecDeque<Action>,
}

/// How far the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The coordinator's challenge has not come.
    Greeting,
    /// The hello is being signed.
    Signing,
    /// The hello was sent.
    Introduced,
    /// The coordinator said welcome.
    Joined,
    /// The connection is to be closed; nothing counts until it is.
    Closed,
}

/// Leaving.
#[derive(Clone, Debug)]
struct Drain {
    reason: String,
    /// When to go at the latest, µs.
    latest: u64,
    /// When to go if no step comes, µs.
    quiet: u64,
    done: bool,
}

impl WorkerCore {
    /// A worker that is about to connect.
    pub fn new(config: Config) -> WorkerCore {
        WorkerCore {
            config,
            phase: Phase::Greeting,
            drain: None,
            hidden: false,
            assignments: LiteMap::new(),
            blobs: LiteMap::new(),
            waiting: VecDeque::new(),
            running: None,
            last_key: 0,
            actions: VecDeque::new(),
        }
    }

    /// Takes an event at `now`, in µs since any origin.
    pub fn handle(&mut self, now: u64, event: Event) {
        match event {
            Event::Disconnected => self.disconnected(),
            Event::Drain { reason } => self.begin_drain(now, &reason),
            Event::Visibility { hidden } => self.visibility(hidden),
            Event::Tick => {}
            // What the coordinator asked for is void, so its outcomes are too.
            _ if self.phase == Phase::Closed => {}
            Event::Control(message) => self.control(message),
            Event::Frame(frame) => {
                if let Some(drain) = &mut self.drain {
                    drain.quiet = now.saturating_add(DRAIN_QUIET_US);
                }
                self.step_came(frame);
            }
            Event::Signed { public_key, signature, cached } => {
                self.signed(public_key, signature, cached);
            }
            Event::BlobProgress { hash, bytes } => self.blob_progress(&hash, bytes),
            Event::BlobReady { hash } => self.blob_ready(&hash),
            Event::BlobFailed { hash, reason } => self.blob_failed(&hash, &reason),
            Event::Loaded { shard, shape } => self.loaded(shard, shape),
            Event::LoadFailed { shard, reason } => self.load_failed(shard, &reason),
            Event::Broke { shard, reason } => self.broke(shard, &reason),
            Event::RunDone { run, compute_us, result } => self.run_done(run, compute_us, result),
        }
        self.advance();
        self.end_drain(now);
    }

    /// The next thing to do, if anything is left.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to send [`Event::Tick`], µs, and why.
    pub fn next_deadline(&self) -> Option<(u64, &'static str)> {
        let drain = self.drain.as_ref().filter(|d| !d.done)?;
        if self.outstanding() == 0 && drain.quiet < drain.latest {
            return Some((drain.quiet, "no step came since this worker said it leaves"));
        }
        Some((drain.latest, "the steps at hand took too long for a leaving worker"))
    }

    /// Whether the coordinator has taken the worker in.
    pub fn is_joined(&self) -> bool {
        self.phase == Phase::Joined
    }

    /// Steps that came and are not answered yet.
    pub fn outstanding(&self) -> usize {
        let waiting = self.waiting.iter().filter(|w| matches!(w, Waiting::Step(_))).count();
        waiting + usize::from(self.running.is_some())
    }

    fn control(&mut self, message: ToWorker) {
        match (self.phase, message) {
            (Phase::Greeting, ToWorker::Challenge { protocol, nonce }) => {
                if protocol != PROTOCOL_VERSION {
                    let reason = format!(
                        "the coordinator speaks protocol version {protocol}, this worker \
                         {PROTOCOL_VERSION}: update the older one"
                    );
                    return self.close(&reason, false);
                }
                self.phase = Phase::Signing;
                let message = match &self.config.token {
                    Some(token) => invited_bytes(protocol, &nonce, token),
                    None => challenge_bytes(protocol, &nonce),
                };
                self.act(Action::Sign { message });
            }
            (Phase::Introduced, ToWorker::Welcome { worker, blob_token, trusted }) => {
                self.phase = Phase::Joined;
                self.act(Action::Joined { worker, blob_token, trusted });
                if self.hidden {
                    self.act(Action::Send(FromWorker::Visibility { hidden: true }));
                }
                self.say_drain();
            }
            (_, ToWorker::Dismiss { reason, retry }) => self.close(&reason, retry),
            (_, ToWorker::Ping { nonce }) => self.act(Action::Send(FromWorker::Pong { nonce })),
            (Phase::Joined, ToWorker::Assign(assignment)) => self.assign(assignment),
            (Phase::Joined, ToWorker::Idle { reason }) => self.act(Action::Idle { reason }),
            (Phase::Joined, ToWorker::Unassign { assignment }) => self.unassign(assignment),
            (Phase::Joined, ToWorker::Fork { assignment, from, to, epoch, positions }) => {
                self.fork_came(assignment, from, to, epoch, positions);
            }
            (Phase::Joined, ToWorker::Truncate { assignment, session, epoch, positions }) => {
                self.truncate_came(assignment, session, epoch, positions);
            }
            (phase, message) => {
                self.violation(&format!("{} came while {}", name(&message), phase.doing()));
            }
        }
    }

    fn signed(&mut self, public_key: String, signature: String, cached: Vec<BlobHash>) {
        if self.phase != Phase::Signing {
            return;
        }
        self.phase = Phase::Introduced;
        let config = &self.config;
        let notes = config.notes.iter().take(NOTES_MAX);
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            public_key,
            signature,
            token: config.token.clone(),
            name: config.name.clone(),
            kind: config.kind,
            backend: config.backend.clone(),
            device: clean_text_to(&config.device, NAME_BYTES_MAX),
            notes: notes.map(|note| clean_text_to(note, NOTE_BYTES_MAX)).collect(),
            classes: config.classes.clone(),
            memory_bytes: config.memory_bytes,
            boundaries: Dtype::LOSSY.to_vec(),
            bytes_per_s: config.bytes_per_s,
            step_credits: config.step_credits,
            cached,
        };
        self.act(Action::Send(FromWorker::Hello(Box::new(hello))));
    }

    /// Everything that this connection asked for is over; the cache on disk stays.
    fn disconnected(&mut self) {
        self.running = None;
        self.waiting.clear();
        let ids: Vec<AssignmentId> = self.assignments.keys().copied().collect();
        for id in ids {
            self.drop_assignment(id);
        }
        self.phase = Phase::Greeting;
    }

    fn visibility(&mut self, hidden: bool) {
        let changed = std::mem::replace(&mut self.hidden, hidden) != hidden;
        // A coordinator that is joined later is told then.
        if changed && self.phase == Phase::Joined {
            self.act(Action::Send(FromWorker::Visibility { hidden }));
        }
    }

    fn begin_drain(&mut self, now: u64, reason: &str) {
        if self.drain.is_some() {
            return;
        }
        self.drain = Some(Drain {
            reason: clean_text(reason),
            latest: now.saturating_add(DRAIN_US_MAX),
            quiet: now.saturating_add(DRAIN_QUIET_US),
            done: false,
        });
        self.say_drain();
    }

    fn say_drain(&mut self) {
        if let (Phase::Joined, Some(drain)) = (self.phase, &self.drain) {
            let reason = drain.reason.clone();
            self.act(Action::Send(FromWorker::Drain { reason }));
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// Ends a drain whose work is done, or whose time is.
    fn end_drain(&mut self, now: u64) {
        let Some(drain) = self.drain.as_ref().filter(|d| !d.done) else { return };
        let nothing_held = self.phase != Phase::Joined || self.assignments.is_empty();
        let idle = || self.outstanding() == 0;
        if now >= drain.latest || (nothing_held || now >= drain.quiet) && idle() {
            self.act(Action::Drained);
            if let Some(drain) = &mut self.drain {
                drain.done = true;
            }
        }
    }

    pub(crate) fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    /// Ends the connection because the coordinator broke the protocol.
    pub(crate) fn violation(&mut self, what: &str) {
        self.close(&format!("the coordinator broke the protocol: {what}"), true);
    }

    fn close(&mut self, reason: &str, retry: bool) {
        if self.phase != Phase::Closed {
            self.phase = Phase::Closed;
            self.running = None;
            self.waiting.clear();
            self.act(Action::Close { reason: clean_text(reason), retry });
        }
    }
}

impl Phase {
    fn doing(self) -> &'static str {
        match self {
            Phase::Greeting => "the challenge was due",
            Phase::Signing | Phase::Introduced => "the welcome was due",
            Phase::Joined => "the worker had joined already",
            Phase::Closed => "the connection was closing",
        }
    }
}

fn name(message: &ToWorker) -> &'static str {
    match message {
        ToWorker::Challenge { .. } => "challenge",
        ToWorker::Welcome { .. } => "welcome",
        ToWorker::Assign(_) => "assign",
        ToWorker::Unassign { .. } => "unassign",
        ToWorker::Fork { .. } => "fork",
        ToWorker::Truncate { .. } => "truncate",
        ToWorker::Ping { .. } => "ping",
        ToWorker::Idle { .. } => "idle",
        ToWorker::Dismiss { .. } => "dismiss",
    }
}
