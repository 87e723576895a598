//! Lost stages and KV that runs out: what is replaced, replayed, or given up for a while.

use protocol::{AssignmentId, SessionId, Span, WorkerId};

use crate::Scheduler;
use crate::event::{Note, RequestError};
use crate::fleet::{describe, has_layers, pages_for};
use crate::routing::{self, Way};
use crate::session::{Session, Stage};

/// How much dearer a shard counts whose KV cache would have to be cleared first.
const FULL_PENALTY: f64 = 4.0;

impl Scheduler {
    /// A worker is gone: its stages are holes from now on.
    pub(crate) fn lose_worker(&mut self, id: WorkerId, reason: &str) {
        if self.workers.remove(&id).is_none() {
            return;
        }
        let sessions = self.lose_stages(|holder| holder.0 == id);
        self.note(Note::Lost { worker: id, reason: reason.to_owned(), sessions });
        self.place_soon();
    }

    /// A worker leaves in good order: nothing new for it, and its stages move at once.
    pub(crate) fn drain(&mut self, id: WorkerId, reason: String) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.draining = true;
        self.lose_stages(|holder| holder.0 == id);
        self.note(Note::Draining { worker: id, reason });
        self.place_soon();
    }

    /// Makes holes of all stages whose holder `lost` names. Answers how many sessions in
    /// flight had one.
    pub(crate) fn lose_stages(&mut self, lost: impl Fn((WorkerId, AssignmentId)) -> bool) -> usize {
        let goes = |s: &Stage| s.holder.is_some_and(&lost);
        let hit = self.sessions.values().filter(|s| s.is_live() && s.stages.iter().any(goes));
        let hit: Vec<SessionId> = hit.map(|s| s.id).collect();
        hit.into_iter().for_each(|id| self.audit_rest(id));
        // A worker that drains is still here; it will run no more of these sessions.
        for (worker, w) in &mut self.workers {
            for (assignment, held) in &mut w.held {
                if lost((*worker, *assignment)) {
                    held.pages.clear();
                }
            }
        }
        let mut hit = Vec::new();
        for session in self.sessions.values_mut() {
            let mut any = false;
            for stage in &mut session.stages {
                if stage.holder.is_some_and(&lost) {
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
    /// first.
    pub(crate) fn mend(&mut self) {
        let broken = self.sessions.values().filter(|s| s.is_broken());
        let broken: Vec<SessionId> = broken.map(|s| s.id).collect();
        for id in broken {
            self.mend_session(id);
        }
    }

    fn mend_session(&mut self, id: SessionId) {
        let session = &self.sessions[&id];
        let positions = session.positions() + 1;
        let filled = match session.stages.is_empty() {
            true => None,
            false => self.fill_holes(session, positions),
        };
        let whole = self.models[session.model].whole();
        // Where the holes alone cannot be filled, another way altogether may do.
        let keeps = filled.is_some();
        let Some(stages) = filled.or_else(|| self.find_route(session.model, whole, positions, &[]))
        else {
            return;
        };
        let candidate = Session { stages, ..session.clone() };
        if !self.reserve_or_evict(&candidate, positions) {
            return;
        }
        if !keeps {
            // Another way from the start: the old stages are let go once the new have room.
            self.let_go(id);
            let room = self.reserve(id, &candidate.stages, positions);
            assert!(room.is_ok(), "the room was there a moment ago: {room:?}");
        }
        let session = self.sessions.get_mut(&id).expect("it was just there");
        session.stages = candidate.stages;
        session.recoveries += 1;
        session.fence();
        session.rewind();
        let behind = session.stages.iter().filter(|s| s.layers && s.done < session.wanted());
        let rows = behind.map(|s| session.positions() - s.done).max().unwrap_or(0);
        self.note(Note::Recovered { session: id, rows });
    }

    /// The session's stages with every hole filled, or `None`.
    fn fill_holes(&self, session: &Session, positions: u32) -> Option<Vec<Stage>> {
        // A shard runs one range of layers for a session, so those in use are no way out.
        let mut used: Vec<AssignmentId> = session.layered_shards().collect();
        let mut stages = Vec::new();
        for stage in &session.stages {
            match stage.holder {
                Some(_) => stages.push(stage.clone()),
                None => {
                    let found = self.find_route(session.model, stage.span, positions, &used)?;
                    let layered = found.iter().filter(|s| s.layers);
                    used.extend(layered.filter_map(|s| s.holder.map(|h| h.1)));
                    stages.extend(found);
                }
            }
        }
        Some(stages)
    }

    /// The best way through `range` now, over shards that could ever hold `positions`,
    /// `not` those named for layers.
    pub(crate) fn find_route(
        &self,
        model: usize,
        range: Span,
        positions: u32,
        not: &[AssignmentId],
    ) -> Option<Vec<Stage>> {
        let spec = &self.models[model].spec;
        let parts = spec.parts.len();
        let mut ways = Vec::new();
        for (worker_id, worker) in self.workers.iter().filter(|(_, w)| !w.draining) {
            let others = self.sessions_on(*worker_id);
            for (assignment, shard) in &worker.held {
                if shard.model != model || !shard.ready {
                    continue;
                }
                let mut span = shard.span;
                let layers = has_layers(span, parts);
                let fits = shard.kv_pages >= pages_for(positions);
                if layers && (!fits || not.contains(assignment)) {
                    // Its ends may still serve.
                    let ends = [(0, 1), (parts as u32 - 1, parts as u32)];
                    for (first, end) in ends {
                        if span.first <= first && end <= span.end {
                            let span = Span { first, end };
                            let holder = (*worker_id, *assignment);
                            ways.push(self.way(holder, span, model, others, 1.0));
                        }
                    }
                    continue;
                }
                span = shard.span;
                let full = layers && shard.pages_free() < pages_for(positions);
                let penalty = if full { FULL_PENALTY } else { 1.0 };
                ways.push(self.way((*worker_id, *assignment), span, model, others, penalty));
            }
        }
        let legs = routing::route(&ways, range, parts)?;
        let stage = |(holder, span)| Stage {
            holder: Some(holder),
            span,
            done: 0,
            sent: 0,
            layers: has_layers(span, parts),
        };
        Some(legs.into_iter().map(stage).collect())
    }

    /// Sessions in flight that have layers on a worker.
    fn sessions_on(&self, worker: WorkerId) -> u32 {
        let here = |s: &&Session| {
            let mut layered = s.stages.iter().filter(|t| t.layers).filter_map(|t| t.holder);
            layered.any(|holder| holder.0 == worker)
        };
        self.sessions.values().filter(|s| s.is_live()).filter(here).count() as u32
    }

    fn way(
        &self,
        holder: (WorkerId, AssignmentId),
        span: Span,
        model: usize,
        others: u32,
        penalty: f64,
    ) -> Way {
        let worker = &self.workers[&holder.0];
        let parts = &self.models[model].spec.parts[span.first as usize..span.end as usize];
        let seconds = |bytes: u64| worker.token_s(bytes, others) * penalty;
        Way {
            holder,
            span,
            part_s: parts.iter().map(|p| seconds(p.work_bytes)).collect(),
            hop_s: worker.hop_s / worker.survival(),
        }
    }

    /// A session needs one more position: pages for it are found, at the cost of cached
    /// sessions, then of the youngest in flight.
    pub(crate) fn grow(&mut self, id: SessionId) {
        loop {
            let Some(session) = self.sessions.get(&id).cloned() else { return };
            let positions = session.positions() + 1;
            if session.stages.is_empty() || self.reserve_or_evict(&session, positions) {
                return;
            }
            let lacking = self.reserve(id, &session.stages, positions).unwrap_err();
            let shares = |s: &&Session| {
                s.is_live()
                    && s.stages.iter().any(|t| t.holder.is_some_and(|h| lacking.contains(&h.1)))
            };
            let youngest = self.sessions.values().filter(shares).map(|s| s.id).max();
            let alone = self.sessions.values().filter(shares).count() <= 1;
            let whole = self.models[session.model].whole();
            let elsewhere = || self.find_route(session.model, whole, positions, &[]).is_some();
            match youngest {
                _ if alone && elsewhere() => {
                    // Another shard is large enough: it goes on there.
                    self.preempt(id);
                    return;
                }
                _ if alone => {
                    let error = RequestError::TooLong {
                        positions,
                        limit: positions - 1,
                        why: "the KV cache of the workers that are here".to_owned(),
                    };
                    self.refuse(session.request, error);
                    return;
                }
                Some(other) => self.preempt(other),
                None => return,
            }
            if youngest == Some(id) {
                return;
            }
        }
    }

    /// Takes a session's KV; it comes back from its log when there is room.
    pub(crate) fn preempt(&mut self, id: SessionId) {
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
        // Replays share the rows of their audits, which have a bound of their own.
        let logs = || self.sessions.values().filter(|s| !s.is_audit());
        let mut bytes: u64 = logs().map(Session::log_bytes).sum();
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

    /// What a session's hole is called in the event log.
    pub(crate) fn span_in_words(&self, model: usize, span: Span) -> String {
        let spec = &self.models[model].spec;
        format!("{} of {}", describe(spec, span), spec.name)
    }
}

/// Makes one hole of neighbouring ones, so that whatever covers both can fill it.
fn join_holes(session: &mut Session, parts: usize) {
    let mut joined: Vec<Stage> = Vec::new();
    for stage in session.stages.drain(..) {
        match joined.last_mut() {
            Some(last) if last.holder.is_none() && stage.holder.is_none() => {
                last.span.end = stage.span.end;
                last.layers = has_layers(last.span, parts);
            }
            _ => joined.push(stage),
        }
    }
    session.stages = joined;
}
