//! Changes that wait to be written: numbers are added up per worker.

use std::collections::BTreeMap;

use protocol::{WorkerId, WorkerKind};

use super::LedgerError;
use crate::sockets::WORKERS_MAX;

/// Workers whose changes may wait; while so many do, nobody is let in. There are so many only
/// while the disk takes nothing.
pub const PENDING_KEYS_MAX: usize = 65_536;

/// What is added to a worker's record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Delta {
    /// Milliseconds connected.
    pub(super) present_ms: u64,
    /// Rows computed.
    pub(super) rows: u64,
    /// Rows × layers that were verified.
    pub(super) credit: u64,
}

/// A worker that came.
#[derive(Clone, Debug)]
pub(super) struct Visit {
    pub(super) worker: WorkerId,
    pub(super) key: String,
    pub(super) kind: WorkerKind,
    pub(super) joined_s: i64,
}

/// A worker that went.
#[derive(Clone, Debug)]
pub(super) struct Leaving {
    pub(super) worker: WorkerId,
    pub(super) left_s: i64,
    pub(super) reason: String,
}

/// What is to be written of one worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// Name and kind, where it has joined.
    pub(super) joined: Option<(String, WorkerKind)>,
    pub(super) delta: Delta,
    /// Agreements and disagreements, where there was an audit.
    pub(super) audited: Option<(u32, u32)>,
    pub(super) banned: bool,
    /// Why, if that was said.
    pub(super) banned_because: Option<String>,
}

/// What waits to be written.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    /// By key.
    pub(super) changes: BTreeMap<String, Change>,
    pub(super) joins: Vec<Visit>,
    pub(super) leaves: Vec<Leaving>,
}

impl Pending {
    /// A worker came.
    ///
    /// # Errors
    /// [`LedgerError::Full`]: there is a place left for every worker that may be connected,
    /// and its leave, but for no more.
    pub(super) fn join(&mut self, visit: Visit, name: String) -> Result<(), LedgerError> {
        let most = self.changes.len().max(self.joins.len()).max(self.leaves.len());
        if most + WORKERS_MAX >= PENDING_KEYS_MAX {
            return Err(LedgerError::Full);
        }
        let change = self.changes.entry(visit.key.clone()).or_default();
        change.joined = Some((name, visit.kind));
        self.joins.push(visit);
        Ok(())
    }

    /// A worker went.
    pub(super) fn leave(&mut self, leaving: Leaving) {
        self.leaves.push(leaving);
    }

    /// What is to be written of one worker. While the disk takes nothing, workers that are not
    /// waited for already are left out: `None`.
    pub(super) fn change(&mut self, key: &str) -> Option<&mut Change> {
        if !self.changes.contains_key(key) {
            if self.changes.len() >= PENDING_KEYS_MAX {
                return None;
            }
            self.changes.insert(key.to_owned(), Change::default());
        }
        self.changes.get_mut(key)
    }

    /// Adds to a worker's numbers.
    pub(super) fn add(&mut self, key: &str, delta: Delta) {
        if delta != Delta::default()
            && let Some(change) = self.change(key)
        {
            change.delta.add(delta);
        }
    }

    /// Nothing is to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.joins.is_empty() && self.leaves.is_empty()
    }

    /// Puts back what could not be written, before what has come since.
    pub(super) fn put_back(&mut self, mut earlier: Pending) {
        for (key, later) in std::mem::take(&mut self.changes) {
            let change = earlier.changes.entry(key).or_default();
            change.joined = later.joined.or(change.joined.take());
            change.delta.add(later.delta);
            change.audited = later.audited.or(change.audited);
            change.banned |= later.banned;
            change.banned_because = later.banned_because.or(change.banned_because.take());
        }
        earlier.joins.append(&mut self.joins);
        earlier.leaves.append(&mut self.leaves);
        *self = earlier;
    }
}

impl Delta {
    fn add(&mut self, more: Delta) {
        let Delta { present_ms, rows, credit } = more;
        self.present_ms = self.present_ms.saturating_add(present_ms);
        self.rows = self.rows.saturating_add(rows);
        self.credit = self.credit.saturating_add(credit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visit(id: u64) -> Visit {
        let key = format!("{id:064x}");
        Visit { worker: WorkerId(id), key, kind: WorkerKind::Native, joined_s: 0 }
    }

    fn rows(rows: u64) -> Delta {
        Delta { rows, ..Delta::default() }
    }

    #[test]
    fn a_burst_is_added_up_in_one_entry() {
        let mut pending = Pending::default();
        pending.join(visit(1), "a".into()).unwrap();
        for _ in 0..100_000 {
            pending.add(&visit(1).key, rows(2));
        }
        assert_eq!(pending.changes.len(), 1);
        assert_eq!(pending.changes[&visit(1).key].delta, rows(200_000));
    }

    #[test]
    fn what_could_not_be_written_is_written_with_what_came_since() {
        let mut earlier = Pending::default();
        earlier.join(visit(1), "a".into()).unwrap();
        earlier.add(&visit(1).key, rows(3));
        earlier.change(&visit(1).key).unwrap().audited = Some((7, 0));
        let mut pending = Pending::default();
        pending.join(visit(2), "b".into()).unwrap();
        pending.add(&visit(1).key, rows(4));
        pending.change(&visit(1).key).unwrap().audited = Some((0, 1));
        pending.put_back(earlier);
        let change = &pending.changes[&visit(1).key];
        assert_eq!((change.delta, change.audited), (rows(7), Some((0, 1))));
        assert_eq!(change.joined, Some(("a".into(), WorkerKind::Native)));
        let order: Vec<u64> = pending.joins.iter().map(|visit| visit.worker.0).collect();
        assert_eq!(order, [1, 2]);
    }

    #[test]
    fn strangers_are_refused_while_nothing_is_written_and_members_are_not() {
        let mut pending = Pending::default();
        let room = PENDING_KEYS_MAX - WORKERS_MAX;
        for id in 0..room as u64 {
            pending.join(visit(id), String::new()).unwrap();
        }
        let refused = pending.join(visit(u64::MAX), String::new());
        assert!(matches!(refused, Err(LedgerError::Full)));
        for id in 0..WORKERS_MAX as u64 {
            pending.add(&visit(id).key, rows(1));
            pending.leave(Leaving { worker: WorkerId(id), left_s: 0, reason: String::new() });
        }
        for id in room as u64..2 * PENDING_KEYS_MAX as u64 {
            pending.add(&visit(id).key, rows(1));
        }
        assert_eq!(pending.changes.len(), PENDING_KEYS_MAX);
    }
}
