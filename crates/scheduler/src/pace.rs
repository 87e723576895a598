//! When a worker's next step goes out: a step reads its weights once for all its rows, so rows
//! that can go together had better wait for each other, as long as that costs less.
//!
//! 1. While a step is computed the next one waits until it would reach the worker as that one
//!    ends: what comes meanwhile goes along. Where the way there is nothing beside the step, and
//!    no other worker has a part in the route, it waits for the answer.
//! 2. A decode waits while tokens are being chosen for others of its *anchor*, for a share of
//!    what a token takes. Who needs longer to choose is waited for no more.
//! 3. Of an anchor's decodes no more go together than leave each worker of their route a share.
//!
//! A session's anchor is the worker that runs most parts for it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use protocol::WorkerId;

use crate::Scheduler;
use crate::event::Time;
use crate::session::{Phase, Session};
use crate::steps::Waiting;

/// A way of less than this share of a step is not worth a second step on it.
const HOP_SHARE: f64 = 0.05;
/// By how much a step is to be early, at a timer's precision.
const EARLY_S: f64 = 0.001;
/// How long decodes wait for those that tokens are chosen for: a share of a token's time.
const CHOOSING_SHARE: f64 = 0.25;
/// And no longer than this.
const CHOOSING_MAX: Duration = Duration::from_millis(5);
/// Until when an anchor's decodes waited is forgotten after this, if nothing came of it.
const FORGET: Duration = Duration::from_secs(1);

/// Who waits, and until when.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// By anchor: when its decodes wait no more for those that tokens are chosen for.
    choosing: BTreeMap<WorkerId, Time>,
    /// When workers that rows wait for are looked at again.
    again: BTreeSet<(Time, WorkerId)>,
}

impl Pace {
    /// When the next worker is to be looked at again.
    pub(crate) fn next(&self) -> Option<Time> {
        self.again.first().map(|(at, _)| *at)
    }
}

/// What a session's tokens take.
struct Route {
    /// Of all stages, seconds.
    token_s: f64,
    /// Workers that could be busy at once, weighed by what they do.
    workers: usize,
}

/// What a worker's next step waits for.
enum Wait {
    Answer,
    Until(Time),
}

impl Scheduler {
    /// Has workers looked at again whose rows have waited for as long as they were to.
    pub(crate) fn pass_pace(&mut self) {
        while let Some(&(at, worker)) = self.pace.again.first().filter(|(at, _)| *at <= self.now) {
            self.pace.again.remove(&(at, worker));
            self.due.send.insert(worker);
            self.pace.choosing.retain(|_, until| until.plus(FORGET) > self.now);
        }
    }

    /// Those of a worker's rows, of one stage, that go now, which may be none.
    pub(crate) fn rows_due(&mut self, worker: WorkerId, rows: Vec<Waiting>) -> Vec<Waiting> {
        let Some(first) = rows.first() else { return rows };
        match self.wait_of(worker, &self.sessions[&first.session]) {
            Some(Wait::Answer) => return Vec::new(),
            Some(Wait::Until(at)) => {
                self.pace.again.insert((at, worker));
                return Vec::new();
            }
            None if first.stage > 0 => return rows,
            None => {}
        }
        let (decodes, prompts): (Vec<Waiting>, Vec<Waiting>) =
            rows.into_iter().partition(|row| row.to - row.from == 1);
        let mut by_anchor: BTreeMap<Option<WorkerId>, Vec<Waiting>> = BTreeMap::new();
        for row in decodes {
            by_anchor.entry(self.sessions[&row.session].anchor()).or_default().push(row);
        }
        let (mut due, mut held) = (Vec::new(), false);
        for (anchor, mut rows) in by_anchor {
            if let Some(anchor) = anchor {
                let choosing = self.index.choosing.get(&anchor).copied().unwrap_or(0);
                let together = rows.len() as u32 + choosing;
                let route = self.route_of(&self.sessions[&rows[0].session], together);
                let share = self.index.anchored(anchor).div_ceil(route.workers);
                if rows.len() < share && choosing > 0 && self.waits_for_choice(anchor, &route) {
                    self.pace.again.insert((self.pace.choosing[&anchor], worker));
                    held = true;
                    continue;
                }
                self.pace.choosing.remove(&anchor);
                rows.truncate(share.max(1));
            }
            due.append(&mut rows);
        }
        // A prompt takes long: it does not go ahead of decodes that wait for a moment.
        if !held {
            due.extend(prompts);
        }
        due
    }

    /// What a worker waits for that computes already, before it is sent rows of a session.
    fn wait_of(&self, worker: WorkerId, session: &Session) -> Option<Wait> {
        let w = &self.workers[&worker];
        let last = w.in_flight.values().next_back()?;
        let way_s = w.hop_s + last.wire_s;
        if way_s < HOP_SHARE * last.predicted_s && self.route_of(session, 1).workers == 1 {
            return Some(Wait::Answer);
        }
        let left = (last.expected_s - way_s - EARLY_S).max(0.0);
        let at = last.sent_at.plus(Duration::from_secs_f64(left));
        (at > self.now).then_some(Wait::Until(at))
    }

    /// Whether an anchor's decodes still wait for those that tokens are chosen for.
    fn waits_for_choice(&mut self, anchor: WorkerId, route: &Route) -> bool {
        let share = Duration::from_secs_f64(CHOOSING_SHARE * route.token_s).min(CHOOSING_MAX);
        let until = *self.pace.choosing.entry(anchor).or_insert(self.now.plus(share));
        if self.now < until {
            return true;
        }
        for id in self.sessions_with(anchor) {
            let late = |s: &Session| s.phase == Phase::Sampling && s.anchor() == Some(anchor);
            if self.sessions.get(&id).is_some_and(late) {
                self.sessions.get_mut(&id).expect("it was found").dawdles = true;
            }
        }
        false
    }

    fn route_of(&self, session: &Session, rows: u32) -> Route {
        let mut by_worker: BTreeMap<WorkerId, f64> = BTreeMap::new();
        for stage in &session.stages {
            let Some((id, _)) = stage.holder else { continue };
            let Some(worker) = self.workers.get(&id) else { continue };
            let work = self.models[session.model].work_bytes(stage.span);
            *by_worker.entry(id).or_default() += worker.compute_s(work, rows);
        }
        let token_s: f64 = by_worker.values().sum();
        let longest = by_worker.values().copied().fold(0.0, f64::max);
        let workers = if longest > 0.0 { (token_s / longest).round() as usize } else { 1 };
        Route { token_s, workers: workers.max(1) }
    }
}
