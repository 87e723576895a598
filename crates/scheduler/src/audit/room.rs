//! Pages for replays, and what gives its own up for somebody else's.

use protocol::{AssignmentId, SessionId, WorkerId};

use super::RETRY;
use crate::Scheduler;
use crate::fleet::pages_for;
use crate::session::{Session, Stage};

impl Scheduler {
    /// Pages for a replay that logits wait for: cached sessions give theirs up, then younger
    /// replays, then the youngest in flight. The oldest session always gets on. Where all of
    /// those together are too little nobody gives up anything, which would be for nothing.
    pub(super) fn make_room(
        &mut self,
        of: SessionId,
        replay: SessionId,
        stages: &[Stage],
        positions: u32,
    ) -> bool {
        if self.reserve(replay, stages, positions).is_ok() {
            return true;
        }
        let Some(holder) = stages[0].holder else { return false };
        let younger = |s: &Session| s.is_live() && s.id > of;
        if !self.could_free(replay, &[holder], positions, younger) {
            return false;
        }
        while !self.reserve_or_evict(replay, stages, positions) {
            self.settle();
            let near = self.sessions_with(holder.0).into_iter().map(|id| &self.sessions[&id]);
            let there =
                |s: &&Session| s.stages.iter().any(|t| t.layers && t.holder == Some(holder));
            let sharing = near.filter(|s| younger(s)).filter(there);
            let Some(youngest) = sharing.map(|s| s.id).max() else { return false };
            self.preempt(youngest);
        }
        true
    }

    /// Whether each of `shards` would have pages for a session if everything gave its pages up
    /// that does: cached sessions, replays that make way for it, and what `others` says.
    pub(crate) fn could_free(
        &self,
        id: SessionId,
        shards: &[(WorkerId, AssignmentId)],
        positions: u32,
        others: impl Fn(&Session) -> bool,
    ) -> bool {
        shards.iter().all(|(worker, assignment)| {
            let shard = self.workers.get(worker).and_then(|w| w.held.get(assignment));
            shard.is_none_or(|shard| {
                let gives = |other: &SessionId| {
                    let session = self.sessions.get(other);
                    let audit = self.audits.replays.get(other);
                    *other == id
                        || session.is_some_and(|s| s.is_cached() || others(s))
                        || audit.is_some_and(|audit| self.gives_way(*audit, id))
                };
                let kept = shard.pages.iter().filter(|(other, _)| !gives(other));
                let kept: u32 = kept.map(|(_, pages)| *pages).sum();
                shard.kv_pages.saturating_sub(kept) >= pages_for(positions)
            })
        })
    }

    /// Whether an audit's replay gives its pages up for a session: a sampled one, or one that
    /// a younger session waits for. Nothing older than what the session is or replays for
    /// gives way to it, but for what has nothing to do.
    fn gives_way(&self, audit: u64, session: SessionId) -> bool {
        let me = self.audits.replays.get(&session).copied();
        let age = me.map_or(session, |id| self.audits.open[&id].of);
        let a = &self.audits.open[&audit];
        let rests = a.of == age && Some(audit) != me && a.agreed == a.end();
        !a.follows || a.of > age || rests
    }

    /// Stops a replay on one of `shards` that gives way to `session`, so that it finds room
    /// there: a sampled one, or the one that the youngest session waits for.
    pub(crate) fn evict_replay(
        &mut self,
        session: SessionId,
        shards: &[(WorkerId, AssignmentId)],
    ) -> bool {
        let held = shards.iter().filter_map(|(worker, assignment)| {
            self.workers.get(worker).and_then(|w| w.held.get(assignment))
        });
        let there = held.flat_map(|shard| shard.pages.keys());
        let found = there
            .filter_map(|replay| self.audits.replays.get(replay).copied())
            .filter(|id| self.gives_way(*id, session))
            .max_by_key(|id| (!self.audits.open[id].follows, self.audits.open[id].of, *id));
        if let Some(id) = found {
            self.stop_replay(id);
            let next_try = self.now.plus(RETRY);
            self.audits.open.get_mut(&id).expect("it was found").next_try = next_try;
        }
        found.is_some()
    }
}
