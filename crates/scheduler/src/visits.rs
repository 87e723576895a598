//! Looking at a worker again when time alone has changed what is thought of it: it has grown
//! older, or it was slow a while ago and nobody has asked it since.

use std::time::Duration;

use protocol::WorkerId;

use crate::Scheduler;
use crate::event::Time;
use crate::survival::{DeviceClass, Sort};

/// Workers looked at with one event at most; the others are looked at with the next ones.
const VISITS_MAX: usize = 8;
/// A worker that is slower than usual and is asked nothing for so long is thought halfway back
/// to its usual speed, so that it is tried again.
const FORGIVE_AFTER: Duration = Duration::from_secs(30);

impl Scheduler {
    /// Begins to count on a worker that came.
    pub(crate) fn begin_to_count(&mut self, id: WorkerId) {
        let now = self.now;
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.joined_at = now;
        worker.sort = DeviceClass::of(worker.spec.kind, false).map(Sort::new);
        if let Some(sort) = worker.sort {
            self.survival.enter(sort, now);
        }
        self.look_at(id);
    }

    /// Makes a worker's tab hidden or shown.
    pub(crate) fn set_hidden(&mut self, id: WorkerId, hidden: bool) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.hidden = hidden;
        let class = DeviceClass::of(worker.spec.kind, hidden);
        let sort = class.map(|class| Sort::new(class).at(self.now.since(worker.joined_at)));
        let old = std::mem::replace(&mut worker.sort, sort);
        self.recount(old, sort, false);
        self.look_at(id);
    }

    /// A worker is gone, and counted so.
    pub(crate) fn count_leave(&mut self, id: WorkerId, sort: Option<Sort>, visit: Option<Time>) {
        self.recount(sort, None, true);
        self.survival.visit(id, visit, None);
    }

    /// Looks at the workers whose time has come, some of them.
    pub(crate) fn visit_workers(&mut self) {
        for _ in 0..VISITS_MAX {
            let Some(id) = self.survival.due(self.now) else { return };
            self.look_at(id);
        }
    }

    /// Brings what time has changed up to date, and says when to look again.
    fn look_at(&mut self, id: WorkerId) {
        let now = self.now;
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let grown = worker.sort.map(|sort| sort.at(now.since(worker.joined_at)));
        let old = std::mem::replace(&mut worker.sort, grown);
        if worker.is_slowed() && worker.answered_at.plus(FORGIVE_AFTER) <= now {
            worker.forgive();
            worker.answered_at = now;
        }
        if old != grown {
            self.recount(old, grown, false);
        }
        let worker = self.workers.get_mut(&id).expect("it was just there");
        if let Some(sort) = worker.sort {
            worker.survives = self.survival.chance(sort);
        }
        self.plan_visit(id);
    }

    /// Says when to look at a worker again.
    pub(crate) fn plan_visit(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let birthday = worker.sort.and_then(Sort::until).map(|age| worker.joined_at.plus(age));
        let forgive = worker.is_slowed().then(|| worker.answered_at.plus(FORGIVE_AFTER));
        let at = birthday.into_iter().chain(forgive).min();
        let before = std::mem::replace(&mut worker.visit_at, at);
        if before != at {
            self.survival.visit(id, before, at);
        }
    }

    fn recount(&mut self, old: Option<Sort>, new: Option<Sort>, left: bool) {
        if let Some(old) = old {
            self.survival.exit(old, self.now, left);
        }
        if let Some(new) = new {
            self.survival.enter(new, self.now);
        }
    }
}
