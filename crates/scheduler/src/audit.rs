//! Audits: a stage's rows from position 0 on are replayed by somebody else and compared.
//!
//! The unit is a session's stage prefix. Its input and the rows that were answered are taken
//! from the activation log when the audit is begun, so that the log may forget them. A replay
//! is a session like any other (its own id, epoch, KV pages, steps), on a trusted worker that
//! holds the parts, or on others where none does: whoever is not trusted cannot tell it from
//! work. Ends are held by trusted workers only, so layers alone are audited.
//!
//! *Sampled* audits are drawn (`standing`) whenever a stage has doubled its rows, and at its
//! end. With full verification each stage has an audit that *follows* it, and logits wait
//! until it has caught up.

mod draws;
mod index;
mod replayers;
mod results;
mod room;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use protocol::{AssignmentId, Dtype, SessionId, Span, WorkerId};

use crate::event::{RequestId, Time};
use crate::known::Known;
use crate::log::Boundary;
use crate::session::{Phase, Session, Stage};
use crate::tracked::Tracked;
use crate::verdict::{Comparison, Finding};
use crate::{Config, Scheduler};
use index::AuditIndex;

/// An audit that finds nobody to replay it asks again after this.
const RETRY: Duration = Duration::from_millis(250);
/// A sampled audit that nobody could replay for this long is given up.
const PATIENCE: Duration = Duration::from_secs(120);
/// A sampled audit's turn comes as if its session had been served so many steps later.
const LOW_PRIORITY_STEPS: u64 = 32;

/// What is audited, and how much of it at once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Share of the work of keys without standing that is audited, 0 to 1; 0 turns sampled
    /// audits off altogether.
    pub newcomers: f64,
    /// Logits are given out only once every row behind them that an untrusted worker
    /// computed has been verified by a trusted one.
    pub full: bool,
    /// What draws hang on; nobody else may know it.
    pub secret: [u64; 2],
    /// Sampled audits at once, at most; further ones are not begun.
    pub audits_max: usize,
    /// Rows that sampled audits keep from the log, bytes; further ones are not begun. With
    /// full verification every session in flight keeps its own rows instead.
    pub bytes_max: u64,
    /// Longest prefix that a sampled audit replays, positions.
    pub rows_max: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            newcomers: 1.0,
            full: false,
            secret: [0, 0],
            audits_max: 64,
            bytes_max: 64 << 20,
            rows_max: 4096,
        }
    }
}

/// The audits under way, and what is known of keys.
#[derive(Debug, Default)]
pub(crate) struct Audits {
    next: u64,
    open: Tracked<u64, Audit>,
    index: AuditIndex,
    /// Those that have perhaps something to be done.
    due: BTreeSet<u64>,
    /// The replays under way, by their sessions.
    replays: BTreeMap<SessionId, u64>,
    /// Of keys that are here or were.
    pub(crate) standings: Known,
    /// Draws that began no audit although they should have, and audits that nobody replayed.
    missed: u64,
}

/// One stage's rows that are being verified.
#[derive(Debug)]
struct Audit {
    of: SessionId,
    /// Which rows of it.
    number: u64,
    worker: WorkerId,
    key: Arc<str>,
    class: Arc<str>,
    model: usize,
    span: Span,
    /// Keeps up with the session: full verification.
    follows: bool,
    /// The stage's input from position 0.
    input: Boundary,
    /// What was answered, from the first position that is not verified; as long as `input`.
    expected: Boundary,
    /// What the session's boundaries are in.
    dtypes: BTreeMap<u32, Dtype>,
    /// Rows before this one agreed.
    agreed: u32,
    /// And rows before this one were counted for the key.
    counted: u32,
    findings: Vec<Finding>,
    replay: Option<Replay>,
    /// Failures of its replays since one agreed.
    attempts: u32,
    begun: Time,
    /// Tries to find somebody who replays it.
    tries: u64,
    next_try: Time,
}

/// A replay under way.
#[derive(Debug)]
struct Replay {
    session: SessionId,
    key: Arc<str>,
    trusted: bool,
    how: Comparison,
    /// Rows before this one were compared.
    compared: u32,
    differs: Option<(u32, u64)>,
}

impl Audit {
    fn end(&self) -> u32 {
        self.expected.end()
    }

    /// Has rows to replay, and nobody who does.
    fn is_waiting(&self) -> bool {
        self.replay.is_none() && self.agreed < self.end()
    }

    /// The session that replays it.
    fn replay_session(&self, id: SessionId, holder: (WorkerId, AssignmentId)) -> Session {
        let stage = Stage { holder: Some(holder), span: self.span, done: 0, sent: 0, layers: true };
        // No client's request has that number.
        let nobody = RequestId(u64::MAX);
        Session {
            stages: vec![stage],
            boundaries: [(self.span.first, self.input.clone())].into(),
            dtypes: self.dtypes.clone(),
            attempts: self.attempts,
            ..Session::new(id, nobody, self.model, Phase::Auditing)
        }
    }
}

impl Audits {
    /// Bytes that sampled audits keep.
    pub(crate) fn bytes(&self) -> u64 {
        let sampled = self.open.values().filter(|a| !a.follows);
        sampled.map(|a| a.input.bytes() + a.expected.bytes()).sum()
    }

    /// Draws that began no audit although they should have, and audits that nobody replayed.
    pub(crate) fn missed(&self) -> u64 {
        self.missed
    }
}

impl Scheduler {
    /// Takes what an audit needs from the log. Answers whether the log still had it.
    fn open_audit(&mut self, id: SessionId, at: usize, follows: bool) -> bool {
        let session = &self.sessions[&id];
        let entry = &session.authored[at];
        let to = if follows { entry.to } else { entry.to.min(self.config.audits.rows_max) };
        let from = entry.verified;
        if entry.sealed {
            return false;
        }
        let Some(input) = session.boundaries.get(&entry.span.first) else { return false };
        let Some(output) = session.boundaries.get(&entry.span.end) else { return false };
        let Some(rows) = output.rows(from, to) else { return false };
        if input.start() > 0 || input.end() < to {
            return false;
        }
        let mut input = input.clone();
        input.truncate(to);
        let mut expected = Boundary::starting_at(from);
        expected.append(rows, output.row_bytes());
        let audit = Audit {
            of: id,
            number: entry.number,
            worker: entry.worker,
            key: entry.key.clone(),
            class: entry.class.clone(),
            model: session.model,
            span: entry.span,
            follows,
            input,
            expected,
            dtypes: session.dtypes.clone(),
            agreed: from,
            counted: entry.credited,
            findings: Vec::new(),
            replay: None,
            attempts: 0,
            begun: self.now,
            tries: 0,
            next_try: self.now,
        };
        self.audits.open.insert(self.audits.next, audit);
        self.audits.next += 1;
        true
    }

    /// Full verification: the audit of a stage is given the stage's new rows, or begun.
    fn follow(&mut self, id: SessionId, at: usize) {
        let Some(audit) = self.follower(id, self.sessions[&id].authored[at].number) else {
            if !self.open_audit(id, at, true) {
                self.start_over(id);
            }
            return;
        };
        let session = &self.sessions[&id];
        let entry = &session.authored[at];
        let audit = self.audits.open.get_mut(&audit).expect("it was found");
        let (from, to) = (audit.end(), entry.to);
        let rows = |part: u32| session.boundaries.get(&part)?.rows(from, to);
        let width = self.models[session.model].spec.d_model as usize;
        let row_bytes = |part: u32| session.dtype(part).row_bytes(width);
        let (input_bytes, output_bytes) = (row_bytes(entry.span.first), row_bytes(entry.span.end));
        let (Some(input), Some(output)) = (rows(entry.span.first), rows(entry.span.end)) else {
            self.start_over(id);
            return;
        };
        audit.input.append(input.clone(), input_bytes);
        audit.expected.append(output, output_bytes);
        let (first, replay) = (audit.span.first, audit.replay.as_ref().map(|r| r.session));
        let replay = replay.and_then(|replay| self.sessions.get_mut(&replay));
        if let Some(boundary) = replay.and_then(|replay| replay.boundaries.get_mut(&first)) {
            boundary.append(input, input_bytes);
        }
    }

    /// The audit that follows these rows of a session.
    fn follower(&mut self, id: SessionId, number: u64) -> Option<u64> {
        let audits = self.audits.of_session(id);
        let same = |audit: &u64| {
            let a = &self.audits.open[audit];
            a.follows && a.number == number
        };
        audits.into_iter().find(same)
    }

    /// The log lacks what verifying would need: the session is computed from its tokens again.
    fn start_over(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.roll_back(0, 0);
        session.authored.clear();
        session.fence();
        session.rewind();
    }

    /// Begins the replays that wait, where somebody can take them, and closes the audits that
    /// nothing hangs on.
    pub(crate) fn run_audits(&mut self) {
        for id in self.audits.take_due(self.now) {
            self.tend(id);
        }
    }

    fn tend(&mut self, id: u64) {
        let Some(audit) = self.audits.open.get(&id) else { return };
        let over = match audit.follows {
            true => {
                let session = self.sessions.get(&audit.of).filter(|s| s.is_live());
                session.is_none_or(|s| s.entry(audit.number).is_none())
            }
            false => audit.replay.is_none() && self.now.since(audit.begun) >= PATIENCE,
        };
        if over {
            self.audits.missed += u64::from(!audit.follows);
            self.close_audit(id);
            return;
        }
        if let Some(replay) = &audit.replay {
            let (session, positions) = (replay.session, audit.input.end());
            // Only one that follows grows; and it keeps no pages while its session waits for some.
            let rests = audit.follows && audit.agreed == audit.end();
            let waits = rests && self.sessions.get(&audit.of).is_some_and(Session::is_broken);
            let grows = audit.follows;
            let replaying = self.sessions.get(&session);
            let runs = replaying.is_some_and(|s| s.stages.iter().any(|t| t.holder.is_some()));
            if runs && !grows {
                return;
            }
            let of = audit.of;
            let has_pages = replaying.is_some_and(|s| self.has_pages(s, positions));
            let stages = replaying.map(|s| s.stages.clone()).unwrap_or_default();
            if runs && !waits && (has_pages || self.make_room(of, session, &stages, positions)) {
                return;
            }
            // Whoever replayed is gone, or has no room for more.
            self.stop_replay(id);
        }
        if self.audits.open[&id].is_waiting() && self.audits.open[&id].next_try <= self.now {
            self.begin_replay(id);
        }
    }

    fn begin_replay(&mut self, id: u64) {
        let audit = self.audits.open.get_mut(&id).expect("it was found");
        audit.next_try = self.now.plus(RETRY);
        audit.tries += 1;
        let audit = &self.audits.open[&id];
        let Some((holder, how)) = self.find_replayer(audit) else { return };
        let (session, positions) = (SessionId(self.next_session), audit.input.end());
        let (of, follows) = (audit.of, audit.follows);
        let mut replay = audit.replay_session(session, holder);
        // It waits its turn: one that begins is not the one that waits the longest.
        replay.served = self.next_step + lag(&replay, &self.config);
        self.audits.replays.insert(session, id);
        let room = match follows {
            true => self.make_room(of, session, &replay.stages, positions),
            false => self.reserve(session, &replay.stages, positions).is_ok(),
        };
        if !room {
            self.audits.replays.remove(&session);
            return;
        }
        self.next_session += 1;
        let spec = &self.workers[&holder.0].spec;
        let (key, trusted) = (spec.key.as_str().into(), spec.trusted);
        let audit = self.audits.open.get_mut(&id).expect("it was found");
        let compared = audit.expected.start();
        audit.replay = Some(Replay { session, key, trusted, how, compared, differs: None });
        self.sessions.insert(session, replay);
    }

    /// Logits are there and wait for the rows behind them: each of those has an audit.
    pub(crate) fn withhold(&mut self, id: SessionId, position: u32, logits: Bytes) {
        let session = self.sessions.get_mut(&id).expect("it was found");
        session.phase = Phase::Verifying;
        session.withheld = Some((position, logits));
        for at in 0..session.authored.len() {
            let entry = &self.sessions[&id].authored[at];
            let (number, verified) = (entry.number, entry.verified >= entry.to);
            if verified || self.follower(id, number).is_some() {
                continue;
            }
            if !self.open_audit(id, at, true) {
                self.start_over(id);
                return;
            }
        }
    }

    /// Logits that waited for the rows behind them go out, if those are verified.
    fn give_withheld(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.withheld.as_ref().is_some_and(|(position, _)| session.is_verified(position + 1))
        {
            let (position, logits) = session.withheld.take().expect("it was just there");
            self.give_logits(id, position, logits);
        }
    }

    fn stop_replay(&mut self, id: u64) {
        let Some(audit) = self.audits.open.get_mut(&id) else { return };
        if let Some(replay) = audit.replay.take() {
            // A worker that keeps failing replays does not begin with a clean slate each time.
            audit.attempts = self.sessions.get(&replay.session).map_or(0, |s| s.attempts);
            self.audits.replays.remove(&replay.session);
            self.release(replay.session);
        }
    }

    fn close_audit(&mut self, id: u64) {
        self.stop_replay(id);
        self.audits.open.remove(&id);
    }
}

/// By how many steps a session that took part in one gives way to the others.
pub(crate) fn lag(session: &Session, config: &Config) -> u64 {
    // Logits wait for replays that follow.
    if session.is_audit() && !config.audits.full { LOW_PRIORITY_STEPS } else { 0 }
}
