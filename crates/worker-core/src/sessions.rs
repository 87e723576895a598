//! What a shard knows of its sessions: the newest epoch, and the positions held.

use std::collections::VecDeque;

use litemap::LiteMap;
use protocol::{Segment, SessionId, Span, Status};

use crate::limits::{EPOCHS_KEPT_MAX, SESSIONS_MAX};

/// The sessions of one shard.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    records: LiteMap<SessionId, Record>,
    /// Records without KV, the oldest first, each with its stamp; an entry whose record has
    /// another stamp by now says nothing.
    without_kv: VecDeque<(SessionId, u64)>,
    stamp: u64,
    with_kv: usize,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    /// The newest epoch seen.
    epoch: u32,
    /// What is in the KV cache.
    kv: Option<Kv>,
    stamp: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kv {
    positions: u32,
    /// The layers that have it.
    layers: Span,
}

/// Whether a segment may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Run,
    /// It may, but the session's KV (of other layers) goes first.
    RunAfresh,
    /// It may not; with [`Status::Gap`], so many positions are held.
    Refuse(Status, u32),
}

impl Sessions {
    /// Remembers that `epoch` of a session was seen, so that older rows are dropped even
    /// where they wait already.
    pub(crate) fn see(&mut self, session: SessionId, epoch: u32) {
        if let Some(record) = self.records.get_mut(&session) {
            record.epoch = record.epoch.max(epoch);
        } else {
            self.records.insert(session, Record { epoch, kv: None, stamp: 0 });
            self.lost_kv(session);
        }
    }

    /// Whether a message of `epoch` comes too late.
    pub(crate) fn is_stale(&self, session: SessionId, epoch: u32) -> bool {
        self.records.get(&session).is_some_and(|r| epoch < r.epoch)
    }

    /// Whether one more session may have KV.
    pub(crate) fn has_room(&self) -> bool {
        self.with_kv < SESSIONS_MAX
    }

    /// Positions held.
    pub(crate) fn positions(&self, session: SessionId) -> u32 {
        self.kv(session).map_or(0, |kv| kv.positions)
    }

    fn kv(&self, session: SessionId) -> Option<Kv> {
        self.records.get(&session)?.kv
    }

    /// Judges a segment that wants to run through `layers` (none: it keeps no KV).
    pub(crate) fn judge(&self, segment: &Segment, layers: Option<Span>) -> Verdict {
        if self.is_stale(segment.session, segment.epoch) {
            return Verdict::Refuse(Status::Stale, 0);
        }
        let Some(layers) = layers else { return Verdict::Run };
        let kv = self.kv(segment.session);
        let moved = kv.is_some_and(|kv| kv.layers != layers);
        let held = kv.filter(|_| !moved).map_or(0, |kv| kv.positions);
        if segment.position > held {
            return Verdict::Refuse(Status::Gap, held);
        }
        match kv {
            Some(_) if moved => Verdict::RunAfresh,
            Some(_) => Verdict::Run,
            None if !self.has_room() => Verdict::Refuse(Status::KvFull, 0),
            None => Verdict::Run,
        }
    }

    /// Records that a session holds `positions` in `layers` from now on.
    pub(crate) fn hold(&mut self, session: SessionId, positions: u32, layers: Span) {
        let record = self.records.entry(session).or_insert(Record { epoch: 0, kv: None, stamp: 0 });
        self.with_kv += usize::from(record.kv.is_none());
        record.kv = Some(Kv { positions, layers });
    }

    /// Records that a session holds at most `positions`; true if it held more.
    pub(crate) fn cut(&mut self, session: SessionId, positions: u32) -> bool {
        let Some(record) = self.records.get_mut(&session) else { return false };
        match &mut record.kv {
            Some(kv) if kv.positions > positions => {
                kv.positions = positions;
                true
            }
            Some(_) | None => false,
        }
    }

    /// Records that a session's KV is gone; true if it had any. Its epoch is remembered.
    pub(crate) fn release(&mut self, session: SessionId) -> bool {
        let had_kv = self.records.get_mut(&session).is_some_and(|r| r.kv.take().is_some());
        if had_kv {
            self.with_kv -= 1;
            self.lost_kv(session);
        }
        had_kv
    }

    /// The layers in which a session has KV.
    pub(crate) fn layers(&self, session: SessionId) -> Option<Span> {
        self.kv(session).map(|kv| kv.layers)
    }

    /// Files a session among those without KV, and forgets the oldest of them past the bound.
    fn lost_kv(&mut self, session: SessionId) {
        self.stamp += 1;
        if let Some(record) = self.records.get_mut(&session) {
            record.stamp = self.stamp;
            self.without_kv.push_back((session, self.stamp));
        }
        while self.without_kv.len() > EPOCHS_KEPT_MAX {
            let Some((oldest, stamp)) = self.without_kv.pop_front() else { break };
            let forgotten = |r: &Record| r.kv.is_none() && r.stamp == stamp;
            if self.records.get(&oldest).is_some_and(forgotten) {
                self.records.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYERS: Span = Span { first: 1, end: 4 };

    fn judge(sessions: &Sessions, session: u64, epoch: u32, position: u32) -> Verdict {
        let (session, status) = (SessionId(session), Status::Ok);
        let segment = Segment { session, epoch, position, rows: 1, logits_rows: 1, status };
        sessions.judge(&segment, Some(LAYERS))
    }

    #[test]
    fn a_released_session_keeps_its_fence() {
        let mut sessions = Sessions::default();
        sessions.see(SessionId(1), 5);
        sessions.hold(SessionId(1), 10, LAYERS);
        assert_eq!(judge(&sessions, 1, 5, 10), Verdict::Run);
        assert_eq!(judge(&sessions, 1, 5, 11), Verdict::Refuse(Status::Gap, 10));
        assert!(sessions.release(SessionId(1)));
        assert!(!sessions.release(SessionId(1)));
        assert_eq!(judge(&sessions, 1, 4, 0), Verdict::Refuse(Status::Stale, 0));
        assert_eq!(judge(&sessions, 1, 5, 1), Verdict::Refuse(Status::Gap, 0));
        assert_eq!(judge(&sessions, 1, 5, 0), Verdict::Run);
    }

    #[test]
    fn records_are_bounded_on_both_sides() {
        let mut sessions = Sessions::default();
        for id in 0..SESSIONS_MAX as u64 {
            sessions.see(SessionId(id), 1);
            sessions.hold(SessionId(id), 1, LAYERS);
        }
        let one_more = SESSIONS_MAX as u64;
        assert_eq!(judge(&sessions, one_more, 1, 0), Verdict::Refuse(Status::KvFull, 0));
        assert_eq!(judge(&sessions, 0, 1, 1), Verdict::Run);
        for id in 0..3 * EPOCHS_KEPT_MAX as u64 {
            sessions.see(SessionId(one_more + id), 1);
        }
        assert!(sessions.records.len() <= SESSIONS_MAX + EPOCHS_KEPT_MAX);
        assert!(sessions.without_kv.len() <= EPOCHS_KEPT_MAX);
        assert_eq!(sessions.positions(SessionId(0)), 1, "KV is never forgotten");
    }

    #[test]
    fn the_same_session_may_come_and_go_without_growing_anything() {
        let mut sessions = Sessions::default();
        for epoch in 0..3 * EPOCHS_KEPT_MAX as u32 {
            sessions.see(SessionId(1), epoch);
            sessions.hold(SessionId(1), 1, LAYERS);
            assert!(sessions.release(SessionId(1)));
        }
        assert!(sessions.without_kv.len() <= EPOCHS_KEPT_MAX);
        assert_eq!((sessions.records.len(), sessions.with_kv), (1, 0));
        let newest = 3 * EPOCHS_KEPT_MAX as u32 - 1;
        assert_eq!(judge(&sessions, 1, newest - 1, 0), Verdict::Refuse(Status::Stale, 0));
    }

    #[test]
    fn kv_of_other_layers_does_not_count() {
        let mut sessions = Sessions::default();
        sessions.see(SessionId(1), 1);
        sessions.hold(SessionId(1), 10, Span { first: 2, end: 4 });
        assert_eq!(judge(&sessions, 1, 1, 10), Verdict::Refuse(Status::Gap, 0));
        assert_eq!(judge(&sessions, 1, 1, 0), Verdict::RunAfresh);
    }
}
