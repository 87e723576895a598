//! What is looked up instead of searched for: who is overdue, which sessions lost a stage, who
//! has something to send, which shards hold a part, and what speed stands behind it.
//!
//! Every index is a function of the workers and the sessions that are here.
//! `Scheduler::settle` brings them up to date by looking only at what was touched, and
//! `Scheduler::check_invariants` compares them with what a fresh look at everything gives.

mod parts;
mod sessions;
mod workers;

use std::collections::{BTreeMap, BTreeSet};

use protocol::{SessionId, WorkerId};

use crate::Scheduler;
use crate::event::Time;
use crate::fleet::Worker;
use crate::session::Session;
pub(crate) use parts::{Holder, ModelIndex, PartIndex, Shard, scatter};
use sessions::SessionEntry;
use workers::WorkerEntry;

/// Why a worker has a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Late {
    /// A step of it is overdue then.
    Step,
    /// A shard that it loads makes no progress until then.
    Load,
}

/// Everything that is derived from workers and sessions.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Index {
    session_entries: BTreeMap<SessionId, SessionEntry>,
    worker_entries: BTreeMap<WorkerId, WorkerEntry>,
    /// Sessions in flight.
    pub live: usize,
    /// Those of them that have a route.
    pub routed: usize,
    /// Bytes of all activation logs.
    pub log_bytes: u64,
    /// Sessions in flight that lack a stage.
    pub broken: BTreeSet<SessionId>,
    /// Finished sessions kept for their KV, the longest unused first.
    pub cached: BTreeSet<(Time, SessionId)>,
    /// By worker: sessions that have a stage there.
    pub on: BTreeMap<WorkerId, BTreeSet<SessionId>>,
    /// By worker: sessions that have rows for it.
    pub waiting: BTreeMap<WorkerId, BTreeSet<SessionId>>,
    /// By worker: sessions in flight that have layers there.
    load: BTreeMap<WorkerId, u32>,
    /// By worker: sessions in flight whose anchor it is.
    anchored: BTreeMap<WorkerId, u32>,
    /// Those of them that tokens are being chosen for.
    pub choosing: BTreeMap<WorkerId, u32>,
    /// The first deadline of each worker that has one.
    pub deadlines: BTreeSet<(Time, WorkerId, Late)>,
    /// Workers that hold nothing, may be given something, and were not told why they are not.
    pub untold: BTreeSet<WorkerId>,
    /// Those that were.
    pub told: BTreeSet<WorkerId>,
    /// Workers that may hold the ends and do not drain.
    pub trusted: BTreeSet<WorkerId>,
    /// Workers that do not drain, and what they lend.
    pub lent: Lent,
    /// Workers with shards that load.
    pub loading: usize,
    /// By model.
    pub models: Vec<ModelIndex>,
}

/// What all workers lend together that do not drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lent {
    pub workers: usize,
    /// Bytes.
    pub memory: u64,
    /// Bytes that may be used for layers.
    pub layers: u64,
}

/// What changes of the index call for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Due {
    /// Workers that have perhaps something to be sent.
    pub send: BTreeSet<WorkerId>,
    /// Sessions that lack a stage and changed.
    pub mend: BTreeSet<SessionId>,
    /// Something became free or ready: what could not be routed may find a way.
    pub opened: bool,
    /// A request came.
    pub submitted: bool,
}

impl Index {
    /// Sessions in flight that have layers on a worker.
    pub fn load(&self, worker: WorkerId) -> u32 {
        self.load.get(&worker).copied().unwrap_or(0)
    }

    /// Sessions in flight whose anchor a worker is.
    pub fn anchored(&self, worker: WorkerId) -> usize {
        self.anchored.get(&worker).copied().unwrap_or(0) as usize
    }

    /// Sessions in flight of a model.
    pub fn live_of(&self, model: usize) -> usize {
        self.models[model].live
    }
}

impl Scheduler {
    /// Brings the indexes up to date with what was touched.
    pub(crate) fn settle(&mut self) {
        self.audits.settle();
        if self.sessions.is_touched() {
            let skip_replay = self.config.sabotage.skip_replay;
            for id in self.sessions.take_touched() {
                self.audits.session_touched(id);
                let entry = self.sessions.get(&id).map(|s| SessionEntry::of(s, skip_replay));
                for worker in self.index.set_session(id, entry, &mut self.due) {
                    self.workers.touch(worker);
                }
            }
        }
        if self.workers.is_touched() {
            for id in self.workers.take_touched() {
                let load = self.index.load(id);
                let entry = self.workers.get(&id).map(|w| self.worker_entry(w, load));
                self.index.set_worker(id, entry, &mut self.due);
            }
        }
    }

    /// The index that a look at everything gives.
    pub(crate) fn fresh_index(&self) -> Index {
        let parts = self.models.iter().map(|m| ModelIndex::new(m.spec.parts.len()));
        let mut index = Index { models: parts.collect(), ..Index::default() };
        let mut due = Due::default();
        let skip_replay = self.config.sabotage.skip_replay;
        for (id, session) in self.sessions.iter() {
            index.set_session(*id, Some(SessionEntry::of(session, skip_replay)), &mut due);
        }
        for (id, worker) in self.workers.iter() {
            let entry = self.worker_entry(worker, index.load(*id));
            index.set_worker(*id, Some(entry), &mut due);
        }
        index
    }

    fn worker_entry(&self, worker: &Worker, load: u32) -> WorkerEntry {
        WorkerEntry::of(worker, load, |model| &self.models[model])
    }

    /// The sessions that have a stage on a worker, in order.
    pub(crate) fn sessions_with(&self, worker: WorkerId) -> Vec<SessionId> {
        self.index.on.get(&worker).into_iter().flatten().copied().collect()
    }

    /// The sessions that lack a stage, in order.
    pub(crate) fn broken(&self) -> impl Iterator<Item = &Session> {
        self.index.broken.iter().map(|id| &self.sessions[id])
    }
}

/// Puts a value into the set of a key, or takes it out; no set is kept empty.
fn put<K: Ord, V: Ord>(sets: &mut BTreeMap<K, BTreeSet<V>>, key: K, value: V) {
    sets.entry(key).or_default().insert(value);
}

fn take<K: Ord, V: Ord>(sets: &mut BTreeMap<K, BTreeSet<V>>, key: K, value: &V) {
    if let Some(set) = sets.get_mut(&key) {
        set.remove(value);
        if set.is_empty() {
            sets.remove(&key);
        }
    }
}

/// Changes a count; none is kept at zero.
fn count<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K, up: bool) {
    match (counts.get_mut(&key), up) {
        (Some(n), true) => *n += 1,
        (None, true) => drop(counts.insert(key, 1)),
        (Some(n), false) if *n > 1 => *n -= 1,
        (Some(_), false) => drop(counts.remove(&key)),
        (None, false) => panic!("a count below zero"),
    }
}
