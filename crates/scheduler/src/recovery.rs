//! Lost stages and KV that runs out: what is replaced, replayed, or given up for a while.

use std::collections::BTreeSet;

use protocol::{AssignmentId, Dtype, SessionId, Span, WorkerId};

use crate::Scheduler;
use crate::event::{Note, RequestError};
use crate::fleet::{describe, has_layers, pages_for};
use crate::session::{Session, Stage};

impl Scheduler {
    /// A worker is gone: its stages are holes from now on.
    pub(crate) fn lose_worker(&mut self, id: WorkerId, reason: &str) {
        let Some(worker) = self.workers.remove(&id) else { return };
        self.keys.remove(&worker.spec.key);
        self.audits.standings.leaves(&worker.spec.key);
        self.count_leave(id, worker.sort, worker.visit_at);
        let sessions = self.lose_stages(id, None) + self.dissolve_groups_of(id);
        self.note(Note::Lost { worker: id, reason: reason.to_owned(), sessions });
        self.place_soon();
    }

    /// A worker leaves in good order: nothing new for it, and its stages move at once.
    pub(crate) fn drain(&mut self, id: WorkerId, reason: String) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.draining = true;
        self.lose_stages(id, None);
        self.dissolve_groups_of(id);
        self.note(Note::Draining { worker: id, reason });
        self.place_soon();
    }

    /// Makes holes of all stages on a worker, or on one shard of it. Answers how many sessions
    /// in flight had one.
    pub(crate) fn lose_stages(&mut self, id: WorkerId, only: Option<AssignmentId>) -> usize {
        let lost = |(worker, assignment): (WorkerId, AssignmentId)| {
            worker == id && only.is_none_or(|only| only == assignment)
        };
        self.settle();
        let goes = |s: &Stage| s.holder.is_some_and(lost);
        for session in self.sessions_with(id) {
            let s = &self.sessions[&session];
            if s.is_live() && s.stages.iter().any(goes) {
                self.audit_rest(session);
            }
        }
        self.settle();
        // A worker that drains is still here; it will run no more of these sessions.
        if let Some(worker) = self.workers.get_mut(&id) {
            for (assignment, held) in &mut worker.held {
                if lost((id, *assignment)) {
                    held.pages.clear();
                }
            }
        }
        let mut hit = Vec::new();
        for session in self.sessions_with(id) {
            let session = self.sessions.get_mut(&session).expect("the index names who is here");
            let mut any = false;
            for stage in &mut session.stages {
                if stage.holder.is_some_and(lost) {
                    stage.holder = None;
                    (stage.done, stage.sent) = (0, 0);
                    any = true;
                }
            }
            if any {
                hit.push((session.id, session.is_live()));
            }
        }
        for &(id, live) in &hit {
            match live {
                // A finished session is kept only while its KV is whole.
                false => self.release(id),
                true => {
                    let session = self.sessions.get_mut(&id).expect("it was just there");
                    join_holes(session, self.models[session.model].spec.parts.len());
                    session.fence();
                    let missing = self.waits_for(id).unwrap_or_default();
                    self.note(Note::Waiting { session: id, missing });
                }
            }
        }
        hit.iter().filter(|(_, live)| *live).count()
    }

    /// Fills holes and brings back preempted sessions where that is possible now, the oldest
    /// first: those that changed, and all of them where something has `opened`.
    pub(crate) fn mend(&mut self, opened: bool) {
        let changed = std::mem::take(&mut self.due.mend);
        let broken = self.index.broken.iter().filter(|id| opened || changed.contains(id));
        let broken: Vec<SessionId> = broken.copied().collect();
        for id in broken {
            // One before it may have taken its KV, or ended it.
            if self.sessions.get(&id).is_some_and(Session::is_broken) {
                self.mend_session(id);
            }
        }
    }

    fn mend_session(&mut self, id: SessionId) {
        let session = &self.sessions[&id];
        let (model, positions, wish) = (session.model, session.positions() + 1, session.wish);
        let filled = if session.stages.is_empty() { None } else { self.fill_holes(id, positions) };
        // Where the holes alone cannot be filled, another way altogether may do.
        let keeps = filled.is_some();
        let stages = filled.or_else(|| self.find_whole(model, positions, &[], id.0, wish));
        let Some(stages) = stages else { return self.note_wanted(id, &[]) };
        if !self.reserve_or_evict(id, &stages, positions) {
            return self.note_wanted(id, &stages);
        }
        if !keeps {
            // Another way from the start: the old stages are let go once the new have room.
            self.let_go(id);
            let room = self.reserve(id, &stages, positions);
            assert!(room.is_ok(), "the room was there a moment ago: {room:?}");
        }
        let chosen = if keeps { Default::default() } else { self.dtypes_of(model, &stages) };
        let session = self.sessions.get_mut(&id).expect("it was just there");
        session.stages = stages;
        session.waits_for_room.clear();
        session.fix_dtypes(chosen);
        session.fix_exact();
        session.recoveries += 1;
        session.fence();
        session.rewind();
        let behind = session.stages.iter().filter(|s| s.layers && s.done < session.wanted());
        let rows = behind.map(|s| session.positions() - s.done).max().unwrap_or(0);
        self.note(Note::Recovered { session: id, rows });
    }

    /// A broken session could go on with these stages, or with none, if they had room.
    fn note_wanted(&mut self, id: SessionId, stages: &[Stage]) {
        let layered = stages.iter().filter(|s| s.layers);
        let wanted: Vec<AssignmentId> = layered.filter_map(|s| Some(s.holder?.1)).collect();
        // A session that is touched is looked at again: only for a change.
        if self.sessions[&id].waits_for_room != wanted
            && let Some(session) = self.sessions.get_mut(&id)
        {
            session.waits_for_room = wanted;
        }
    }

    /// The session's stages with every hole filled, or `None`.
    fn fill_holes(&mut self, id: SessionId, positions: u32) -> Option<Vec<Stage>> {
        let session = &self.sessions[&id];
        // A shard runs one range of layers for a session, so those in use are no way out.
        let mut used: Vec<AssignmentId> = session.layered_shards().collect();
        let (model, wish, old) = (session.model, session.wish, session.stages.clone());
        let mut stages = Vec::new();
        for stage in old {
            if stage.holder.is_some() {
                stages.push(stage);
                continue;
            }
            let found =
                self.find_wished(model, stage.span, positions, &used, id.0, wish.of_part())?;
            let layered = found.iter().filter(|s| s.layers);
            used.extend(layered.filter_map(|s| s.holder.map(|h| h.1)));
            stages.extend(found);
        }
        Some(stages).filter(|stages| self.is_granted(wish, model, stages))
    }

    /// A session needs one more position: pages for it are found, at the cost of cached
    /// sessions, then of the youngest in flight.
    pub(crate) fn grow(&mut self, id: SessionId) {
        loop {
            let Some(session) = self.sessions.get(&id) else { return };
            let (model, positions) = (session.model, session.positions() + 1);
            if session.stages.is_empty() || self.has_pages(session, positions) {
                return;
            }
            let (stages, request, wish) = (session.stages.clone(), session.request, session.wish);
            if self.reserve_or_evict(id, &stages, positions) {
                return;
            }
            let lacking = self.reserve(id, &stages, positions).unwrap_err();
            self.settle();
            let near: BTreeSet<SessionId> =
                lacking.iter().flat_map(|holder| self.sessions_with(holder.0)).collect();
            let shares = |id: &SessionId| {
                let s = &self.sessions[id];
                let mut holders = s.stages.iter().filter_map(|t| t.holder);
                s.is_live() && holders.any(|holder| lacking.contains(&holder))
            };
            let sharing: Vec<SessionId> = near.into_iter().filter(shares).collect();
            if sharing.len() > 1 {
                let youngest = sharing[sharing.len() - 1];
                self.preempt(youngest);
                if youngest == id {
                    return;
                }
                continue;
            }
            let whole = self.models[model].whole();
            if self.find_wished(model, whole, positions, &[], id.0, wish).is_some() {
                // Another shard is large enough: it goes on there.
                self.preempt(id);
                return;
            }
            let error = RequestError::TooLong {
                positions,
                limit: positions - 1,
                why: "the KV cache of the workers that are here".to_owned(),
            };
            self.refuse(request, error);
            return;
        }
    }

    /// Whether a session has the pages for so many positions already, on every stage.
    pub(crate) fn has_pages(&self, session: &Session, positions: u32) -> bool {
        let layered = session.stages.iter().filter(|s| s.layers).filter_map(|s| s.holder);
        let mut shards = layered.map(|(w, a)| self.workers.get(&w).and_then(|w| w.held.get(&a)));
        shards.all(|shard| {
            let pages = shard.and_then(|h| h.pages.get(&session.id)).copied();
            pages == Some(pages_for(positions))
        })
    }

    /// Takes a session's KV; it comes back from its log when there is room.
    pub(crate) fn preempt(&mut self, id: SessionId) {
        // Whoever goes on with it may fill the log anew.
        self.audit_rest(id);
        self.let_go(id);
        self.note(Note::Preempted { session: id });
    }

    /// Counts a failure that cost a session nothing but time. The worker of too many without
    /// a token in between is sent away.
    pub(crate) fn failed_once(&mut self, id: SessionId, worker: WorkerId, why: &str) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.attempts += 1;
        if session.attempts >= self.config.attempts_max {
            session.attempts = 0;
            self.dismiss(worker, &format!("it kept failing a session: {why}"), true);
        }
    }

    /// Drops logs until they fit: those of finished sessions first, then the largest. First
    /// what only a replay would need; if that is not enough, all: those sessions then run
    /// from their tokens again.
    pub(crate) fn trim_logs(&mut self) {
        self.settle();
        let logs = || self.sessions.values().filter(|s| self.is_log_bounded(s));
        let mut bytes = match self.config.audits.full {
            true => logs().map(Session::log_bytes).sum(),
            false => self.index.log_bytes,
        };
        if bytes <= self.config.log_bytes_max {
            return;
        }
        let mut order: Vec<(bool, u64, SessionId)> =
            logs().map(|s| (!s.is_live(), s.log_bytes(), s.id)).collect();
        order.sort();
        for everything in [false, true] {
            for (_, _, id) in order.iter().rev() {
                if bytes <= self.config.log_bytes_max {
                    return;
                }
                let session = self.sessions.get_mut(id).expect("it was just listed");
                let before = session.log_bytes();
                session.forget_log(everything);
                bytes -= before - session.log_bytes();
            }
        }
    }

    /// Whether a session's log counts towards the bound of all. Replays share the rows of
    /// their audits, which have a bound of their own; with full verification those of every
    /// session in flight are needed, and the number of sessions bounds them.
    pub(crate) fn is_log_bounded(&self, session: &Session) -> bool {
        !(session.is_audit() || self.config.audits.full && session.is_live())
    }

    /// What a session's hole is called in the event log.
    pub(crate) fn span_in_words(&self, model: usize, span: Span) -> String {
        let spec = &self.models[model].spec;
        format!("{} of {}", describe(spec, span), spec.name)
    }
}

/// Makes one hole of neighbouring ones, so that whatever covers both can fill it; but for those
/// that a lossy boundary parts, which is computed from what was rounded there.
fn join_holes(session: &mut Session, parts: usize) {
    let mut joined: Vec<Stage> = Vec::new();
    let exact = |stage: &Stage| session.dtype(stage.span.first) == Dtype::F32;
    for stage in session.stages.clone() {
        match joined.last_mut() {
            Some(last) if last.holder.is_none() && stage.holder.is_none() && exact(&stage) => {
                last.span.end = stage.span.end;
                last.layers = has_layers(last.span, parts);
            }
            _ => joined.push(stage),
        }
    }
    session.stages = joined;
}
