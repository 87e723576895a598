//! What the index holds of one session.

use protocol::{SessionId, WorkerId};

use super::{Due, Index, count, put, take};
use crate::event::Time;
use crate::session::{Phase, Session};

/// What one session adds to the index.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SessionEntry {
    model: usize,
    live: bool,
    routed: bool,
    broken: bool,
    cached_since: Option<Time>,
    log_bytes: u64,
    /// Workers with a stage of it, each once.
    on: Vec<WorkerId>,
    /// Those that hold layers of it while it is in flight.
    loads: Vec<WorkerId>,
    /// Those that it has rows for.
    waits: Vec<WorkerId>,
    /// Its anchor while it is in flight.
    anchor: Option<WorkerId>,
    /// A token is being chosen for it, and is waited for.
    chooses: bool,
}

impl SessionEntry {
    pub fn of(session: &Session, skip_replay: bool) -> SessionEntry {
        let live = session.is_live();
        let distinct = |which: &dyn Fn(usize) -> bool| {
            let stages = session.stages.iter().enumerate().filter(|(i, _)| which(*i));
            let mut workers: Vec<WorkerId> =
                stages.filter_map(|(_, s)| s.holder.map(|h| h.0)).collect();
            workers.sort();
            workers.dedup();
            workers
        };
        SessionEntry {
            model: session.model,
            live,
            routed: live && !session.stages.is_empty(),
            broken: session.is_broken(),
            cached_since: match session.phase {
                Phase::Cached { since } => Some(since),
                Phase::Computing
                | Phase::Sampling
                | Phase::Following
                | Phase::Verifying
                | Phase::Auditing => None,
            },
            // Replays share the rows of their audits, which have a bound of their own.
            log_bytes: if session.is_audit() { 0 } else { session.log_bytes() },
            on: distinct(&|_| true),
            loads: distinct(&|i| live && session.stages[i].layers),
            anchor: session.anchor().filter(|_| live),
            chooses: session.phase == Phase::Sampling && !session.dawdles,
            waits: distinct(&|i| {
                !session.is_cached() && session.rows_waiting(i, skip_replay).is_some()
            }),
        }
    }
}

impl Index {
    /// Replaces what the index holds of a session. Answers the workers whose load changed.
    pub(super) fn set_session(
        &mut self,
        id: SessionId,
        new: Option<SessionEntry>,
        due: &mut Due,
    ) -> Vec<WorkerId> {
        let old = self.session_entries.remove(&id);
        if let Some(entry) = &new {
            due.send.extend(&entry.waits);
            if entry.broken {
                due.mend.insert(id);
            }
        }
        // Room or a place may have become free.
        let lost = |is: fn(&SessionEntry) -> bool| {
            old.as_ref().is_some_and(is) && !new.as_ref().is_some_and(is)
        };
        let gained_cached = new.as_ref().is_some_and(|e| e.cached_since.is_some());
        due.opened |= lost(|e| e.live) || lost(|e| e.broken) || gained_cached;
        let mut reloaded = Vec::new();
        if old != new {
            for (entry, other, up) in [(&old, &new, false), (&new, &old, true)] {
                let Some(entry) = entry else { continue };
                self.count_session(id, entry, up);
                self.list_session(id, entry, other.as_ref(), up);
                if other.as_ref().is_none_or(|o| o.loads != entry.loads) {
                    reloaded.extend(&entry.loads);
                }
            }
        }
        if let Some(entry) = new {
            self.session_entries.insert(id, entry);
        }
        reloaded
    }

    fn count_session(&mut self, id: SessionId, entry: &SessionEntry, up: bool) {
        let change = |n: &mut usize, is: bool| match (is, up) {
            (false, _) => {}
            (true, true) => *n += 1,
            (true, false) => *n -= 1,
        };
        change(&mut self.live, entry.live);
        change(&mut self.routed, entry.routed);
        change(&mut self.models[entry.model].live, entry.live);
        if let Some(anchor) = entry.anchor {
            count(&mut self.anchored, anchor, up);
            if entry.chooses {
                count(&mut self.choosing, anchor, up);
            }
        }
        let cached = entry.cached_since.map(|since| (since, id));
        if up {
            self.log_bytes += entry.log_bytes;
            self.broken.extend(entry.broken.then_some(id));
            self.cached.extend(cached);
        } else {
            self.log_bytes -= entry.log_bytes;
            self.broken.remove(&id);
            if let Some(cached) = cached {
                self.cached.remove(&cached);
            }
        }
    }

    /// Adds a session to its workers' lists or takes it out, leaving alone what is the same in
    /// the `other` entry.
    fn list_session(
        &mut self,
        id: SessionId,
        entry: &SessionEntry,
        other: Option<&SessionEntry>,
        up: bool,
    ) {
        let differs =
            |list: fn(&SessionEntry) -> &Vec<WorkerId>| other.map(list) != Some(list(entry));
        let lists = [
            (&mut self.on, &entry.on, differs(|e| &e.on)),
            (&mut self.waiting, &entry.waits, differs(|e| &e.waits)),
        ];
        for (sets, workers, _) in lists.into_iter().filter(|(_, _, differs)| *differs) {
            for worker in workers {
                match up {
                    true => put(sets, *worker, id),
                    false => take(sets, *worker, &id),
                }
            }
        }
        if differs(|e| &e.loads) {
            entry.loads.iter().for_each(|worker| count(&mut self.load, *worker, up));
        }
    }
}
