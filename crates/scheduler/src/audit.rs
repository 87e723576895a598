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

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use protocol::{AssignmentId, Dtype, SessionId, Span, WorkerId};

use crate::event::{Note, RequestId, Time};
use crate::fleet::pages_for;
use crate::known::Known;
use crate::log::Boundary;
use crate::session::{Phase, Session, Stage};
use crate::tracked::Tracked;
use crate::verdict::{Comparison, Finding, Verdict, digest, judge};
use crate::{Config, Scheduler};
use draws::next_draw;
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

    /// Pages for a replay that logits wait for: cached sessions give theirs up, then younger
    /// replays, then the youngest in flight. The oldest session always gets on. Where all of
    /// those together are too little nobody gives up anything, which would be for nothing.
    fn make_room(
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

    /// A replay gave rows from `position` on.
    pub(crate) fn replay_answered(&mut self, session: SessionId, position: u32, rows: &Bytes) {
        let Some(&id) = self.audits.replays.get(&session) else { return };
        let Some(audit) = self.audits.open.get_mut(&id) else { return };
        let width = self.models[audit.model].spec.d_model as usize;
        let dtype = audit.dtypes.get(&audit.span.end).copied().unwrap_or(Dtype::F32);
        let row_bytes = dtype.row_bytes(width);
        let answered = position + (rows.len() / row_bytes) as u32;
        let Some(replay) = audit.replay.as_mut() else { return };
        let (from, to) = (replay.compared.max(position), answered.min(audit.expected.end()));
        if from < to {
            let offset = |p: u32| (p - position) as usize * row_bytes;
            let got = &rows[offset(from)..offset(to)];
            let expected = audit.expected.rows(from, to).expect("they are kept");
            let differs = replay.how.first_difference(&expected, got, dtype, width);
            let secret = self.config.audits.secret;
            replay.differs = differs.filter(|_| !self.config.sabotage.skip_comparison).map(|row| {
                let at = row as usize * row_bytes;
                (from + row, digest(secret, &got[at..at + row_bytes]))
            });
            replay.compared = to;
        }
        if replay.differs.is_some() || replay.compared >= audit.expected.end() {
            self.replay_done(id);
        }
    }

    /// A replay says that a value overflows where the audited worker saw none. Answers
    /// whether the session is a replay.
    pub(crate) fn replay_overflowed(&mut self, session: SessionId, position: u32) -> bool {
        let Some(&id) = self.audits.replays.get(&session) else { return false };
        let replay = self.audits.open.get_mut(&id).and_then(|a| a.replay.as_mut());
        if let Some(replay) = replay {
            let secret = self.config.audits.secret;
            replay.differs = Some((position.max(replay.compared), digest(secret, b"overflow")));
            self.replay_done(id);
        }
        true
    }

    /// A replay is over: what do the audit's replays say together?
    fn replay_done(&mut self, id: u64) {
        let audit = self.audits.open.get_mut(&id).expect("it was found");
        let replay = audit.replay.as_ref().expect("it was found");
        let Replay { trusted, how, differs, .. } = *replay;
        audit.findings.push(Finding { key: replay.key.clone(), trusted, differs });
        let verdict = judge(&audit.findings, how == Comparison::Bits);
        if let Some((position, _)) = differs {
            let (session, key) = (audit.of, audit.key.to_string());
            let by = replay.key.to_string();
            self.note(Note::Disagreed { key, by, session, position });
        }
        match verdict {
            // It goes on with the rows to come.
            Verdict::Right if self.audits.open[&id].follows && differs.is_none() => {
                self.verified(id);
            }
            Verdict::Right => {
                self.stop_replay(id);
                self.verified(id);
                if !self.audits.open.get(&id).is_some_and(|a| a.follows) {
                    self.close_audit(id);
                }
            }
            Verdict::More => {
                self.stop_replay(id);
                // At once: until this is settled, a liar lies on.
                self.audits.open.get_mut(&id).expect("it was found").next_try = self.now;
            }
            Verdict::Unclear => {
                let (of, follows) = (self.audits.open[&id].of, self.audits.open[&id].follows);
                self.close_audit(id);
                if follows {
                    self.start_over(of);
                }
            }
            Verdict::Wrong { position } => self.found_wrong(id, position, how),
        }
    }

    /// An audit agreed: its rows are verified, which is good for the key's standing.
    fn verified(&mut self, id: u64) {
        let audit = self.audits.open.get_mut(&id).expect("it was found");
        let (of, to, follows) = (audit.of, audit.end(), audit.follows);
        let (key, span, from) = (audit.key.clone(), audit.span, audit.expected.start());
        let number = audit.number;
        audit.agreed = to;
        audit.findings.clear();
        audit.attempts = 0;
        audit.expected.forget_before(to);
        let at = self.sessions.get_mut(&of).and_then(|s| {
            let at = s.entry(number)?;
            s.authored[at].verified = s.authored[at].verified.max(to);
            Some(at)
        });
        match at {
            Some(at) => {
                // One that follows agrees as often as a sampled one would be drawn.
                let e = &mut self.sessions.get_mut(&of).expect("it was found").authored[at];
                let due = !follows || e.verified >= e.next_draw;
                if follows && due {
                    e.next_draw = next_draw(e.verified, e.next_draw);
                }
                if due {
                    self.credit(of, at, &key, span, true);
                }
            }
            // The session is over, or goes another way.
            None => {
                let audit = &self.audits.open[&id];
                let (model, rows) = (audit.model, to.saturating_sub(from.max(audit.counted)));
                // What goes another way is counted there.
                let rows = if self.sessions.contains_key(&of) { 0 } else { rows };
                self.count_verified(&key, model, span, rows, !follows);
                self.counted(of, number, to);
            }
        }
        self.give_withheld(of);
    }

    /// Counts what was verified of a stage since it was counted last.
    fn credit(&mut self, of: SessionId, at: usize, key: &str, span: Span, agreed: bool) {
        let session = self.sessions.get_mut(&of).expect("it was found");
        let (model, entry) = (session.model, &mut session.authored[at]);
        let rows = entry.verified.saturating_sub(entry.credited);
        entry.credited = entry.credited.max(entry.verified);
        let (number, to) = (entry.number, entry.credited);
        self.counted(of, number, to);
        if rows > 0 || agreed {
            self.count_verified(key, model, span, rows, agreed);
        }
    }

    /// Rows before `to` were counted: other audits of them count no more than what follows.
    fn counted(&mut self, of: SessionId, number: u64, to: u32) {
        for id in self.audits.of_session(of) {
            let audit = &self.audits.open[&id];
            if audit.number == number && audit.counted < to {
                self.audits.open.get_mut(&id).expect("it was found").counted = to;
            }
        }
    }

    /// A worker's rows are wrong from `position` on.
    fn found_wrong(&mut self, id: u64, position: u32, how: Comparison) {
        let audit = &self.audits.open[&id];
        let (of, number, key) = (audit.of, audit.number, audit.key.clone());
        let (worker, span) = (audit.worker, audit.span);
        self.close_audit(id);
        // What is right before it counts as verified: the session keeps it.
        let session = self.sessions.get_mut(&of);
        let same = session.is_some_and(|s| {
            let at = s.entry(number);
            if let Some(at) = at {
                s.authored[at].verified = s.authored[at].verified.max(position);
            }
            at.is_some()
        });
        let out = self.count_disagreement(&key);
        match how {
            Comparison::Bits => self.ban(&key, "its answers differ from those of two replays"),
            Comparison::Within(_) if out => {
                self.ban(&key, "its answers were outside their class's band once too often");
            }
            // A finished one is not kept for what rests on them.
            Comparison::Within(_) if same && !self.sessions[&of].is_live() => self.release(of),
            // The session goes on with somebody else, if there is anyone.
            Comparison::Within(_) if same => {
                self.redo(of, &key);
                self.leave_stage(of, worker, span);
            }
            Comparison::Within(_) => {}
        }
    }

    /// Closes what is under way about a key that is out, and has everything that rests on
    /// rows of it that nobody verified computed again.
    pub(crate) fn forget_work(&mut self, key: &str) {
        let open = self.audits.open.iter();
        let moot: Vec<u64> = open.filter(|(_, a)| *a.key == *key).map(|(id, _)| *id).collect();
        moot.into_iter().for_each(|id| self.close_audit(id));
        let rests = |s: &&Session| s.authored.iter().any(|e| *e.key == *key && e.verified < e.to);
        let resting: Vec<SessionId> = self.sessions.values().filter(rests).map(|s| s.id).collect();
        for id in resting {
            match self.sessions[&id].is_live() {
                true => self.redo(id, key),
                false => self.release(id),
            }
        }
    }

    /// Throws away what rests on rows of `key` that are not verified, behind a new fence.
    fn redo(&mut self, id: SessionId, key: &str) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let wrong = session.authored.iter().filter(|e| *e.key == *key && e.verified < e.to);
        let wrong: Vec<(u32, u32)> = wrong.map(|e| (e.span.end, e.verified)).collect();
        for (part, position) in wrong {
            session.roll_back(part, position);
        }
        session.fence();
        session.rewind();
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

    /// Takes one stage of a session from its worker.
    fn leave_stage(&mut self, id: SessionId, worker: WorkerId, span: Span) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let its = |s: &&mut Stage| s.span == span && s.holder.is_some_and(|h| h.0 == worker);
        let mut left = Vec::new();
        for stage in session.stages.iter_mut().filter(its) {
            left.push(stage.clone());
            stage.holder = None;
            (stage.done, stage.sent) = (0, 0);
        }
        session.fence();
        let epoch = session.epoch;
        self.forget_stages(id, epoch, left);
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
