//! Turns messages, blobs and the compute thread's outcomes into the state machine's events,
//! and its actions into messages, fetches and commands.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use protocol::{Assignment, AssignmentId, BlobHash, BlobRef, FromWorker, RelayHeader, ToWorker};
use shards::Computer;
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use worker_core::{ASSIGNMENTS_MAX, Action, Config, Event, ShardKey, WorkerCore};

use crate::blobs::{BlobSource, Keep, Kept};
use crate::compute::{Command, Compute};
use crate::exchange::Seat;
use crate::identity::Identity;
use crate::link::{Down, Incoming, Link, Lost, Up};

/// Between reports of how far a blob is.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// What a worker is made of.
#[derive(Debug)]
pub struct Setup {
    /// What it says of itself, and its bounds.
    pub config: Config,
    /// Who it is.
    pub identity: Identity,
    /// Where weights come from.
    pub blobs: BlobSource,
    /// What computes.
    pub computer: Computer,
    /// Share of the time that it computes, 1 to 100: it rests after each step. The rates of
    /// [`Config::bytes_per_s`] are those without rests, and are said of the worker in this
    /// share.
    pub intensity_percent: u8,
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The connection is gone.
    Lost(Lost),
    /// One side ended it with a reason.
    Closed {
        /// In words.
        reason: String,
        /// Whether to connect again.
        retry: bool,
    },
    /// The worker's own compute thread is gone, or its GPU, so that it can never serve again.
    Broken,
    /// The worker was told to leave and has answered what it had.
    Drained,
}

/// A worker: one compute thread, its shards and blobs. Dropping it ends the thread.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    state: Mutex<State>,
    /// Told to leave: no more rests.
    leaving: AtomicBool,
    /// An end was decided or a deadline changed, on whatever thread.
    wake: Notify,
    origin: Instant,
    identity: Identity,
    blobs: BlobSource,
    keep: Keep,
    /// Places in tensor groups, by the group; see [`crate::exchange`].
    seats: Mutex<BTreeMap<AssignmentId, (ShardKey, Arc<Seat>)>>,
    runtime: tokio::runtime::Handle,
    this: std::sync::Weak<Shared>,
}

struct State {
    core: WorkerCore,
    compute: std_mpsc::Sender<Command>,
    /// Where messages go, while there is a connection.
    up: Option<mpsc::Sender<Up>>,
    end: Option<End>,
    /// Whether this connection got as far as the welcome.
    joined: bool,
    blob_token: String,
    cached: Vec<BlobHash>,
    wanted: BTreeMap<BlobHash, Wanted>,
    /// For the log.
    loads: BTreeMap<AssignmentId, LoadLog>,
    deadline: Option<u64>,
}

/// A blob that the core asked for.
struct Wanted {
    fetch: AbortHandle,
    bytes: Option<Arc<Kept>>,
    fetched_bytes: u64,
}

struct LoadLog {
    began: Instant,
    assignment: Assignment,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("blobs", &self.blobs).finish_non_exhaustive()
    }
}

impl Worker {
    /// Starts the compute thread. Call it within a tokio runtime.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(mut setup: Setup) -> std::io::Result<Worker> {
        let share = f64::from(setup.intensity_percent.clamp(1, 100)) / 100.0;
        setup.config.bytes_per_s = setup.config.bytes_per_s.map(|rate| rate * share);
        let (compute, commands) = std_mpsc::channel();
        let memory_bytes = setup.config.memory_bytes;
        let (computer, intensity_percent) = (setup.computer, setup.intensity_percent);
        let is_cpu = matches!(computer, Computer::Cpu { .. });
        let shared = Arc::new_cyclic(|this| Shared {
            state: Mutex::new(State {
                core: WorkerCore::new(setup.config),
                compute,
                up: None,
                end: None,
                joined: false,
                blob_token: String::new(),
                cached: Vec::new(),
                wanted: BTreeMap::new(),
                loads: BTreeMap::new(),
                deadline: None,
            }),
            leaving: AtomicBool::new(false),
            wake: Notify::new(),
            origin: Instant::now(),
            identity: setup.identity,
            blobs: setup.blobs,
            keep: if is_cpu { Keep::Copied } else { Keep::Mapped },
            seats: Mutex::new(BTreeMap::new()),
            runtime: tokio::runtime::Handle::current(),
            this: this.clone(),
        });
        let weak = Arc::downgrade(&shared);
        std::thread::Builder::new().name("compute".into()).spawn(move || {
            let compute = Compute { computer, intensity_percent, memory_bytes };
            let ran = catch_unwind(AssertUnwindSafe(|| compute.run(&commands, &weak)));
            match ran {
                Ok(Ok(())) => return,
                Ok(Err(reason)) => tracing::error!("cannot compute any more: {reason}"),
                // The panic has been told.
                Err(_) => {}
            }
            if let Some(shared) = weak.upgrade() {
                shared.end(&mut shared.state(), End::Broken);
            }
        })?;
        Ok(Worker { shared })
    }

    /// Serves a coordinator in this process until the connection ends. One at a time.
    pub async fn serve(&self, link: Link) -> End {
        self.serve_from(link.to_coordinator, link.from_coordinator).await.0
    }

    /// Leaves in good order: no new work, the steps at hand answered, then [`End::Drained`].
    pub fn drain(&self, reason: &str) {
        self.shared.leaving.store(true, Ordering::Relaxed);
        self.shared.handle(Event::Drain { reason: reason.into() });
    }

    /// Serves one connection; also tells whether the coordinator took the worker in.
    pub(crate) async fn serve_from(
        &self,
        up: mpsc::Sender<Up>,
        mut from_coordinator: impl Incoming,
    ) -> (End, bool) {
        let blobs = self.shared.blobs.clone();
        let cached = tokio::task::spawn_blocking(move || blobs.cached()).await.unwrap_or_default();
        {
            let mut state = self.shared.state();
            // A drain that ended without a connection still counts, and so does a failure.
            let stays = |end: &End| matches!(end, End::Drained | End::Broken);
            state.end = state.end.take().filter(stays);
            (state.up, state.cached, state.joined) = (Some(up), cached, false);
        }
        let end = loop {
            let (end, deadline) = {
                let mut state = self.shared.state();
                (state.take_end(), state.deadline)
            };
            if let Some(end) = end {
                break end;
            }
            tokio::select! {
                biased;
                () = self.shared.wake.notified() => {}
                message = from_coordinator.next() => match message {
                    Ok(Down::Control(message)) => self.shared.handle(Event::Control(message)),
                    Ok(Down::Frame(frame)) => self.shared.handle(Event::Frame(frame)),
                    Ok(Down::Relay(piece)) => self.shared.relay_came(&piece),
                    Err(lost) => break End::Lost(lost),
                },
                () = self.shared.until(deadline) => self.shared.handle(Event::Tick),
            }
        };
        self.shared.handle(Event::Disconnected);
        let mut state = self.shared.state();
        state.up = None;
        // Dropping the blobs may take a moment, but nobody is connected now.
        state.wanted.clear();
        state.loads.clear();
        (end, state.joined)
    }

    /// Waits for the end of a drain that was begun without a connection.
    pub(crate) async fn drained(&self) {
        while self.shared.state().end != Some(End::Drained) {
            self.shared.wake.notified().await;
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    async fn until(&self, deadline_us: Option<u64>) {
        match deadline_us {
            Some(us) => {
                tokio::time::sleep_until((self.origin + Duration::from_micros(us)).into()).await;
            }
            None => std::future::pending().await,
        }
    }

    /// Takes an event and does what follows from it. Called from the connection, from
    /// fetches and from the compute thread; the lock keeps the actions in order.
    pub(crate) fn handle(&self, event: Event) {
        if let Event::Control(ToWorker::Unassign { assignment }) = &event {
            // A step of its group that is being computed has no peers any more.
            self.end_seats(|_, seat| seat.assignment == *assignment);
            self.state().loads.remove(assignment);
        }
        let mut state = self.state();
        let now = u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX);
        if let Event::Control(ToWorker::Assign(assignment)) = &event
            && state.loads.len() < ASSIGNMENTS_MAX
        {
            let (began, assignment) = (Instant::now(), assignment.clone());
            state.loads.insert(assignment.id, LoadLog { began, assignment });
        }
        state.core.handle(now, event);
        while let Some(action) = state.core.poll_action() {
            self.act(&mut state, now, action);
        }
        if state.end.is_some() {
            self.wake.notify_one();
        }
        let deadline = state.core.next_deadline().map(|(at, _)| at);
        if deadline != state.deadline {
            state.deadline = deadline;
            self.wake.notify_one();
        }
    }

    fn act(&self, state: &mut State, now: u64, action: Action) {
        match action {
            Action::Sign { message } => {
                let public_key = self.identity.public_key();
                let signature = self.identity.sign(&message);
                let cached = std::mem::take(&mut state.cached);
                state.core.handle(now, Event::Signed { public_key, signature, cached });
            }
            Action::Joined { worker, blob_token, trusted } => {
                let trust = if trusted { "trusted" } else { "not trusted with text" };
                tracing::info!("joined as worker {worker}, {trust}");
                (state.blob_token, state.joined) = (blob_token, true);
            }
            Action::Send(message) => {
                state.log(&message);
                self.send(state, Up::Control(message));
            }
            Action::SendFrame(frame) => self.send(state, Up::Frame(frame)),
            Action::Fetch { blob, shared_out } => self.fetch(state, blob, shared_out),
            Action::Forget(hash) => {
                if let Some(wanted) = state.wanted.remove(&hash) {
                    wanted.fetch.abort();
                }
            }
            Action::Load { shard, assignment } => {
                let hashes = assignment.blobs.iter().chain([&assignment.manifest]).map(|b| &b.hash);
                let kept =
                    |hash: &BlobHash| Some((hash.clone(), state.wanted.get(hash)?.bytes.clone()?));
                let blobs = hashes.filter_map(kept).collect();
                let seat = assignment.tensor.as_ref().map(|tensor| {
                    let seat = Arc::new(Seat::new(assignment.id, tensor));
                    self.seats().insert(tensor.group, (shard, seat.clone()));
                    seat
                });
                state.command(Command::Load { shard, assignment, blobs, seat });
            }
            Action::Run(run) => state.command(Command::Run(run)),
            Action::Fork { shard, from, to, positions } => {
                state.command(Command::Fork { shard, from, to, positions });
            }
            Action::Truncate { shard, session, positions } => {
                state.command(Command::Truncate { shard, session, positions });
            }
            Action::Release { shard, session } => {
                state.command(Command::Release { shard, session });
            }
            Action::Unload { shard } => {
                self.end_seats(|key, _| key == shard);
                state.command(Command::Unload { shard });
            }
            Action::Idle { reason } => tracing::info!("holds nothing: {reason}"),
            Action::Close { reason, retry } => self.end(state, End::Closed { reason, retry }),
            Action::Drained => self.end(state, End::Drained),
        }
    }

    fn end(&self, state: &mut State, end: End) {
        state.end = Some(end);
        self.wake.notify_one();
    }

    fn send(&self, state: &mut State, message: Up) {
        let Some(up) = &state.up else { return };
        if up.try_send(message).is_err() && state.end.is_none() {
            let reason = "the coordinator takes no messages".to_string();
            self.end(state, End::Closed { reason, retry: true });
        }
    }

    fn seats(&self) -> MutexGuard<'_, BTreeMap<AssignmentId, (ShardKey, Arc<Seat>)>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends such places in tensor groups; who waits for their peers waits no more.
    fn end_seats(&self, which: impl Fn(ShardKey, &Seat) -> bool) {
        self.seats().retain(|_, (shard, seat)| {
            let ends = which(*shard, seat);
            if ends {
                seat.end("its tensor group is over");
            }
            !ends
        });
    }

    /// Hands a piece from another rank to whom it is for; what is for nobody is dropped.
    fn relay_came(&self, piece: &Bytes) {
        let Ok(header) = RelayHeader::decode(piece) else {
            return tracing::warn!("a relayed piece that is none came and was dropped");
        };
        let Some((shard, seat)) = self.seats().get(&header.group).cloned() else { return };
        if let Some(order) = seat.push(header.rank, piece) {
            self.state().command(Command::Follow { shard, seat, order });
        }
    }

    /// Sends a piece to the other ranks of its group, from the compute thread.
    ///
    /// # Errors
    /// Why it cannot be sent, in words.
    pub(crate) fn relay_up(&self, seat: &Seat, piece: Bytes) -> Result<(), String> {
        let state = self.state();
        // Under the lock: what ends with a connection is not said on the next one.
        if let Some(reason) = seat.ended() {
            return Err(reason);
        }
        let up = state.up.as_ref().ok_or("the connection is gone")?;
        up.try_send(Up::Relay(piece)).map_err(|_| "the coordinator takes no messages".to_owned())
    }

    /// Has a blob fetched; its outcome comes back as an event, unless it was forgotten.
    fn fetch(&self, state: &mut State, blob: BlobRef, shared_out: bool) {
        let Some(shared) = self.this.upgrade() else { return };
        let (hash, token) = (blob.hash.clone(), state.blob_token.clone());
        let reporter = Reporter { shared: self.this.clone(), hash: hash.clone() };
        let last = Mutex::new(Instant::now());
        let progress = move |bytes| {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.elapsed() >= PROGRESS_EVERY {
                *last = Instant::now();
                reporter.report(bytes);
            }
        };
        // A rank copies its share out of the layers, and the rest takes no memory.
        let keep = if shared_out { Keep::Mapped } else { self.keep };
        let task = self.runtime.spawn(async move {
            let fetched = shared.blobs.fetch(&blob, &token, keep, progress).await;
            let hash = blob.hash;
            {
                let mut state = shared.state();
                let is_this = |w: &&mut Wanted| w.fetch.id() == tokio::task::id();
                // Forgotten meanwhile, and perhaps wanted anew by another connection.
                let Some(wanted) = state.wanted.get_mut(&hash).filter(is_this) else { return };
                if let Ok(fetched) = &fetched {
                    wanted.bytes = Some(fetched.bytes.clone());
                    wanted.fetched_bytes = fetched.fetched_bytes;
                }
            }
            let event = match fetched {
                Ok(_) => Event::BlobReady { hash },
                Err(error) => Event::BlobFailed { hash, reason: error.to_string() },
            };
            shared.handle(event);
        });
        let fetch = task.abort_handle();
        state.wanted.insert(hash, Wanted { fetch, bytes: None, fetched_bytes: 0 });
    }
}

/// Tells the core how far a blob is.
struct Reporter {
    shared: std::sync::Weak<Shared>,
    hash: BlobHash,
}

impl Reporter {
    fn report(&self, bytes: u64) {
        if let Some(shared) = self.shared.upgrade() {
            shared.handle(Event::BlobProgress { hash: self.hash.clone(), bytes });
        }
    }
}

impl State {
    /// How the connection ended, if it did; a broken worker stays so.
    fn take_end(&mut self) -> Option<End> {
        let end = self.end.take();
        self.end = end.clone().filter(|end| *end == End::Broken);
        end
    }

    fn command(&mut self, command: Command) {
        // The thread ends only when this sender is dropped, or by a panic of our own.
        if self.compute.send(command).is_err() {
            self.end = Some(End::Broken);
        }
    }

    fn log(&mut self, message: &FromWorker) {
        match message {
            FromWorker::Ready { assignment } => {
                let Some(load) = self.loads.remove(assignment) else { return };
                let Assignment { blobs, span, model, .. } = &load.assignment;
                let wanted = blobs.iter().filter_map(|b| self.wanted.get(&b.hash));
                let fetched: u64 = wanted.map(|w| w.fetched_bytes).sum();
                let cached = load.assignment.weight_bytes().saturating_sub(fetched);
                tracing::info!(
                    "holds parts {} to {} of {model}: {:.1} MB fetched, {:.1} MB cached, {} ms",
                    span.first,
                    span.end - 1,
                    fetched as f64 / 1e6,
                    cached as f64 / 1e6,
                    load.began.elapsed().as_millis(),
                );
            }
            FromWorker::Failed { assignment, reason } => {
                self.loads.remove(assignment);
                tracing::warn!("assignment {assignment} failed: {reason}");
            }
            FromWorker::Drain { reason } => tracing::info!("leaving: {reason}"),
            FromWorker::Hello(_)
            | FromWorker::Progress { .. }
            | FromWorker::Visibility { .. }
            | FromWorker::Pong { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_its_compute_thread_a_worker_serves_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let setup = Setup {
            config: Config {
                name: "otter".into(),
                kind: protocol::WorkerKind::Native,
                backend: "cpu".into(),
                device: String::new(),
                notes: Vec::new(),
                classes: vec![],
                memory_bytes: 0,
                bytes_per_s: [1.0; 2],
                step_credits: 1,
                token: None,
            },
            identity: Identity::ephemeral().unwrap(),
            blobs: BlobSource::folder(folder.path()),
            computer: Computer::Cpu { threads: 1 },
            intensity_percent: 100,
        };
        let worker = Worker::start(setup).unwrap();
        {
            let mut state = worker.shared.state();
            state.compute = std_mpsc::channel().0;
            state.command(Command::Unload { shard: ShardKey(1) });
        }
        let (link, _to_worker, _from_worker) = Link::pair();
        assert_eq!(worker.serve(link).await, End::Broken);
        // And not by another connection either.
        let (link, _to_worker, _from_worker) = Link::pair();
        assert_eq!(worker.serve(link).await, End::Broken);
    }
}
