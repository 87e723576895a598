//! What replays answer, what their audits find together, and what follows from it.

use bytes::Bytes;
use protocol::{Dtype, SessionId, Span, WorkerId};

use super::Replay;
use super::draws::next_draw;
use crate::Scheduler;
use crate::event::Note;
use crate::session::{Session, Stage};
use crate::verdict::{Comparison, Finding, Verdict, digest, judge};

impl Scheduler {
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
    pub(super) fn credit(&mut self, of: SessionId, at: usize, key: &str, span: Span, agreed: bool) {
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
}
