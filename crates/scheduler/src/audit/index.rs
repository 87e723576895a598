//! What would else be searched for among the open audits: those of a session, those that wait
//! for somebody, and those that have perhaps something to be done.

use std::collections::{BTreeMap, BTreeSet};

use protocol::SessionId;

use super::{Audit, Audits};
use crate::event::Time;

/// What one audit adds to the index.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    of: SessionId,
    /// When it is to be tried again, if nobody replays it.
    waits: Option<Time>,
}

/// A function of the audits that are open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AuditIndex {
    entries: BTreeMap<u64, Entry>,
    /// By the session whose rows they verify.
    of: BTreeSet<(SessionId, u64)>,
    /// Those that nobody replays, by when they are to be tried again.
    waits: BTreeSet<(Time, u64)>,
}

impl AuditIndex {
    fn set(&mut self, id: u64, new: Option<&Audit>) {
        if let Some(old) = self.entries.remove(&id) {
            self.of.remove(&(old.of, id));
            old.waits.map(|at| self.waits.remove(&(at, id)));
        }
        if let Some(audit) = new {
            let waits = audit.is_waiting().then_some(audit.next_try);
            self.of.insert((audit.of, id));
            self.waits.extend(waits.map(|at| (at, id)));
            self.entries.insert(id, Entry { of: audit.of, waits });
        }
    }
}

impl Audits {
    /// Brings the index up to date with what was touched, which is due from now on.
    pub(crate) fn settle(&mut self) {
        for id in self.open.take_touched() {
            self.index.set(id, self.open.get(&id));
            self.due.insert(id);
        }
    }

    /// A session changed: so may what is to be done for the audits of its rows, and for the one
    /// that it replays for.
    pub(crate) fn session_touched(&mut self, session: SessionId) {
        self.settle();
        let of = self.index.of.range((session, 0)..=(session, u64::MAX));
        self.due.extend(of.map(|(_, id)| *id));
        self.due.extend(self.replays.get(&session));
    }

    /// The audits that have perhaps something to be done now, each once.
    pub(super) fn take_due(&mut self, now: Time) -> BTreeSet<u64> {
        self.settle();
        let mut due = std::mem::take(&mut self.due);
        due.extend(self.index.waits.range(..=(now, u64::MAX)).map(|(_, id)| *id));
        due
    }

    /// The audits of a session's rows.
    pub(super) fn of_session(&mut self, session: SessionId) -> Vec<u64> {
        self.settle();
        let of = self.index.of.range((session, 0)..=(session, u64::MAX));
        of.map(|(_, id)| *id).collect()
    }

    /// When an audit is to be tried again.
    pub(crate) fn next_try(&self) -> Option<Time> {
        self.index.waits.first().map(|(at, _)| *at)
    }

    /// What must hold of the index once it is settled.
    ///
    /// # Panics
    /// If it does not.
    pub(super) fn check_index(&self) {
        let mut fresh = AuditIndex::default();
        self.open.iter().for_each(|(id, audit)| fresh.set(*id, Some(audit)));
        assert_eq!(self.index, fresh, "the index of audits is wrong");
    }
}
