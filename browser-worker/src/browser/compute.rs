//! The task that owns the shards and executes, in order, what touches them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use api::TabSettings;
use engine::{BlobBytes, Class, Shard};
use litemap::LiteMap;
use protocol::{Assignment, SessionId};
use shards::{LoadError, Shards, Source, SourceError};
use worker_core::{Event, Run, ShardKey};

use super::helpers::{Helper, hire};
use super::inbox::{Happened, Inbox};
use super::js;
use super::weights::Supply;
use crate::settings::rest_ms;

/// Between two looks at whether the shards are at hand, ms.
const LOOK_MS: f64 = 10.0;
/// A rest ends so soon after the worker is told to leave, ms.
const REST_SLICE_MS: f64 = 50.0;

/// Something to do with a shard; see the [`worker_core::Action`] of that name.
pub enum Command {
    /// Load.
    Load(ShardKey, Assignment),
    /// Run a step.
    Run(Run),
    /// Fork a session: from, to, positions.
    Fork(ShardKey, SessionId, SessionId, u32),
    /// Truncate a session.
    Truncate(ShardKey, SessionId, u32),
    /// Release a session.
    Release(ShardKey, SessionId),
    /// Unload.
    Unload(ShardKey),
}

/// The task's handle.
pub struct Compute(Rc<Shared>);

struct Shared {
    queue: RefCell<VecDeque<Command>>,
    waker: RefCell<Option<Waker>>,
    /// Begin nothing further and end.
    stop: Cell<bool>,
    /// No more rests.
    hurry: Cell<bool>,
    /// The shards, while none of them is at work.
    shards: RefCell<Option<Shards>>,
    /// By shard, those on the CPU that share their work.
    hired: RefCell<LiteMap<ShardKey, Hired>>,
    settings: Rc<RefCell<TabSettings>>,
    inbox: Inbox,
    start: u64,
}

impl Compute {
    /// Begins. Outcomes go to `inbox`, as of that start. Each shard on the CPU gets `helpers`.
    pub fn start(
        shards: Shards,
        supply: Supply,
        helpers: usize,
        settings: Rc<RefCell<TabSettings>>,
        inbox: Inbox,
        start: u64,
    ) -> Compute {
        let shared = Rc::new(Shared {
            queue: RefCell::default(),
            waker: RefCell::default(),
            stop: Cell::new(false),
            hurry: Cell::new(false),
            shards: RefCell::new(Some(shards)),
            hired: RefCell::default(),
            settings,
            inbox,
            start,
        });
        wasm_bindgen_futures::spawn_local(run(shared.clone(), supply, helpers));
        Compute(shared)
    }

    /// Has something done after what was asked for before.
    pub fn command(&self, command: Command) {
        self.0.queue.borrow_mut().push_back(command);
        self.0.wake();
    }

    /// No more rests between steps.
    pub fn hurry(&self) {
        self.0.hurry.set(true);
    }

    /// What became of the helpers, in words.
    pub fn notes(&self) -> Vec<String> {
        self.0.hired.borrow().values().filter_map(Hired::note).collect()
    }

    /// Begins nothing further, drops the shards, and then says [`Happened::ComputeEnded`].
    pub fn stop(&self) {
        self.0.stop.set(true);
        self.0.wake();
    }
}

impl Shared {
    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// The next command; `None` once it is to stop.
    async fn next(&self) -> Option<Command> {
        poll_fn(|context| {
            if self.stop.get() {
                return Poll::Ready(None);
            }
            match self.queue.borrow_mut().pop_front() {
                Some(command) => Poll::Ready(Some(command)),
                None => {
                    *self.waker.borrow_mut() = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Gives a shard helpers, beside the queue: it is computed by one thread until they hold
    /// their shares.
    async fn hire(self: Rc<Self>, shard: ShardKey, wanted: usize, gone: Rc<Cell<bool>>) {
        let stop = || self.stop.get() || gone.get();
        let with = |take: &mut dyn FnMut(&Shard)| {
            let shards = self.shards.borrow();
            let whole = shards.as_ref().and_then(|shards| shards.whole(shard));
            whole.map(take).is_some()
        };
        let (mut crew, helpers) = match hire(wanted, &with, &stop).await {
            Ok((crew, helpers)) => (Some(Box::new(crew)), helpers),
            Err(_) if stop() => return,
            Err(reason) => {
                js::warn(&format!("one thread: {reason}"));
                if let Some(hired) = self.hired.borrow_mut().get_mut(&shard) {
                    hired.alone = Some(reason);
                }
                return;
            }
        };
        while let Some(ready) = crew.take() {
            if stop() {
                return;
            }
            match self.shards.borrow_mut().as_mut() {
                Some(shards) => shards.take_on(shard, ready),
                None => crew = Some(ready),
            }
            if crew.is_some() {
                js::sleep(LOOK_MS).await;
            }
        }
        if let Some(hired) = self.hired.borrow_mut().get_mut(&shard) {
            hired.helpers = helpers;
        }
    }

    fn tell(&self, event: Event, worked_ms: Option<(f64, f64)>) {
        self.inbox.push(Happened::Computed { start: self.start, event, worked_ms });
    }

    /// Rests after computing for that long.
    async fn rest(&self, computed_ms: f64) {
        let began = js::now_ms();
        loop {
            let due = rest_ms(computed_ms, &self.settings.borrow());
            let left = due - (js::now_ms() - began);
            if left <= 0.0 || self.stop.get() || self.hurry.get() {
                return;
            }
            js::sleep(left.min(REST_SLICE_MS)).await;
        }
    }
}

/// The helpers of a shard; they end with it.
#[derive(Default)]
struct Hired {
    helpers: Vec<Helper>,
    /// Why there are none, in words.
    alone: Option<String>,
    /// Set once the shard is.
    gone: Rc<Cell<bool>>,
}

impl Drop for Hired {
    fn drop(&mut self) {
        self.gone.set(true);
    }
}

impl Hired {
    fn note(&self) -> Option<String> {
        if let Some(reason) = &self.alone {
            return Some(format!("one thread after all: {reason}"));
        }
        let all = self.helpers.len();
        let problems: Vec<String> = self.helpers.iter().filter_map(Helper::problem).collect();
        if let Some(reason) = problems.last() {
            return Some(format!("{} of {all} helpers failed: {reason}", problems.len()));
        }
        let helped = self.helpers.iter().filter(|helper| helper.has_helped()).count();
        (helped > 0).then(|| format!("{helped} of {all} helpers have taken part"))
    }
}

/// Weights, until the worker is to leave.
struct Until<'a>(&'a mut Supply, &'a Shared);

impl Until<'_> {
    fn check(&self) -> Result<(), String> {
        if self.1.stop.get() { Err("the worker is leaving".into()) } else { Ok(()) }
    }
}

impl Source for Until<'_> {
    async fn whole(&mut self, hash: &str) -> Result<BlobBytes, SourceError> {
        self.check()?;
        self.0.whole(hash).await
    }

    async fn pieces(
        &mut self,
        hash: &str,
        take: &mut dyn FnMut(u64, &[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        self.check()?;
        let shared = self.1;
        let mut take = |at, piece: &[u8]| match shared.stop.get() {
            true => Err("the worker is leaving".to_owned()),
            false => take(at, piece),
        };
        self.0.pieces(hash, &mut take).await
    }
}

async fn run(shared: Rc<Shared>, mut supply: Supply, helpers: usize) {
    while let Some(command) = shared.next().await {
        if let Command::Run(_) = command {
            // A pause that came meanwhile is seen before the step begins.
            js::yield_now().await;
            if shared.stop.get() {
                break;
            }
        }
        let Some(mut shards) = shared.shards.take() else { break };
        match command {
            Command::Load(shard, assignment) => {
                let mut source = Until(&mut supply, &shared);
                match shards.load(shard, &assignment, &mut source).await {
                    Ok(shape) => {
                        shared.tell(Event::Loaded { shard, shape }, None);
                        if helpers > 0 && assignment.class == Class::Canonical1.name() {
                            let hired = Hired::default();
                            let hire = shared.clone().hire(shard, helpers, hired.gone.clone());
                            shared.hired.borrow_mut().insert(shard, hired);
                            wasm_bindgen_futures::spawn_local(hire);
                        }
                    }
                    Err(error) => {
                        let reason = error.to_string();
                        shared.tell(Event::LoadFailed { shard, reason: reason.clone() }, None);
                        if let LoadError::NoRoom(_) = error {
                            shared.inbox.push(Happened::NoRoom { start: shared.start, reason });
                        }
                    }
                }
            }
            Command::Run(run) => {
                let began = js::now_ms();
                let result = shards.run(&run).await;
                let ended = js::now_ms();
                shared.shards.replace(Some(shards));
                // Before the answer: whoever waits for it sees how fast this worker is.
                shared.rest(ended - began).await;
                let compute_us = ((js::now_ms() - began) * 1000.0) as u32;
                let event = Event::RunDone { run: run.id, compute_us, result };
                shared.tell(event, Some((began, ended)));
                continue;
            }
            Command::Fork(shard, from, to, positions) => shards.fork(shard, from, to, positions),
            Command::Truncate(shard, session, positions) => {
                shards.truncate(shard, session, positions);
            }
            Command::Release(shard, session) => shards.release(shard, session),
            Command::Unload(shard) => {
                shards.unload(shard);
                shared.hired.borrow_mut().remove(&shard);
            }
        }
        shared.shards.replace(Some(shards));
    }
    drop(shared.shards.take());
    shared.hired.borrow_mut().clear();
    shared.inbox.push(Happened::ComputeEnded { start: shared.start });
}
