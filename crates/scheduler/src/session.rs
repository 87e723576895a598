//! One generation in flight: its tokens, its route, its activation log.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use protocol::{AssignmentId, Dtype, SessionId, Span, WorkerId};

use crate::event::{RequestId, Time};
use crate::log::Boundary;
use crate::wish::Wish;

/// Entries of [`Session::authored`] kept; the oldest verified ones go first. With full
/// verification there is one more for each stage that was replaced before it was verified.
const AUTHORED_MAX: usize = 64;

/// A generation, in flight or kept for its KV.
#[derive(Clone, Debug)]
pub struct Session {
    /// Its name on the wire.
    pub id: SessionId,
    /// Its request.
    pub request: RequestId,
    /// Index of the model.
    pub model: usize,
    /// Prompt, then the chosen tokens.
    pub tokens: Vec<u32>,
    /// How many of them are the prompt's.
    pub prompt_len: u32,
    /// The fence: raised whenever anything sent so far must not count any more.
    pub epoch: u32,
    /// The route, in part order, without gaps; empty while preempted or not yet started.
    pub stages: Vec<Stage>,
    /// By part: the input of that part. Part 0's input are the tokens.
    pub boundaries: BTreeMap<u32, Boundary>,
    /// By part: what the input of that part is sent and logged in, from the session's first
    /// row to its last; see `links`. f32 where nothing is said.
    pub dtypes: BTreeMap<u32, Dtype>,
    /// What it does.
    pub phase: Phase,
    /// Stages replaced.
    pub recoveries: u32,
    /// Failures since the last token.
    pub attempts: u32,
    /// What an untrusted worker said of a value that nobody else has computed yet.
    pub overflow: Option<Overflow>,
    /// Highest step number it took part in, for fair turns.
    pub served: u64,
    /// Who gave which rows that it rests on, those of trusted workers left out.
    pub authored: Vec<Authored>,
    /// The number of the next of them.
    pub next_authored: u64,
    /// Its client takes long to choose the token that is due: nobody waits for it.
    pub dawdles: bool,
    /// What its request asks of its route.
    pub wish: Wish,
    /// While it is broken: the shards with layers that it would go on with if they had room.
    pub waits_for_room: Vec<AssignmentId>,
    /// While [`Phase::Verifying`]: the position whose logits are there, and they.
    pub withheld: Option<(u32, Bytes)>,
}

/// Rows of which a worker said that a value overflows there.
#[derive(Clone, Copy, Debug)]
pub struct Overflow {
    /// Who says so.
    pub worker: WorkerId,
    /// Through which parts.
    pub span: Span,
    /// First position.
    pub from: u32,
    /// One past the last position.
    pub to: u32,
}

/// Rows that one untrusted worker was the first to give, as one stage.
#[derive(Clone, Debug)]
pub struct Authored {
    /// Names just these rows of the session: a new one whenever some are computed anew.
    pub number: u64,
    /// The connection.
    pub worker: WorkerId,
    /// Its key.
    pub key: Arc<str>,
    /// What it computed in.
    pub class: Arc<str>,
    /// Through which parts.
    pub span: Span,
    /// First position.
    pub from: u32,
    /// One past the last position.
    pub to: u32,
    /// Positions before this one were verified.
    pub verified: u32,
    /// And have been counted for its key.
    pub credited: u32,
    /// Positions before this one were drawn for.
    pub drawn: u32,
    /// The next draw is when `to` reaches this.
    pub next_draw: u32,
    /// The log may have lost these rows or their input and been given others: nothing is added
    /// to them, and no audit of them is begun.
    pub sealed: bool,
}

/// What a session does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waits for the logits of its last token.
    Computing,
    /// Waits for the shell to choose a token.
    Sampling,
    /// A further choice of a request, until the first one's prompt is computed.
    Following,
    /// Has logits that are given out once the rows behind them are verified.
    Verifying,
    /// Not a client's: replays another session's rows.
    Auditing,
    /// Finished; its KV is kept for a next turn.
    Cached {
        /// Since when.
        since: Time,
    },
}

/// One stage of a route.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Who runs it; `None` after a loss, until a replacement is found.
    pub holder: Option<(WorkerId, AssignmentId)>,
    /// Which parts.
    pub span: Span,
    /// Positions whose result came back: what its KV holds.
    pub done: u32,
    /// Positions sent in this epoch.
    pub sent: u32,
    /// Whether it has a KV cache.
    pub layers: bool,
}

impl Session {
    /// One that has no tokens and no route yet.
    pub fn new(id: SessionId, request: RequestId, model: usize, phase: Phase) -> Session {
        Session {
            id,
            request,
            model,
            tokens: Vec::new(),
            prompt_len: 0,
            epoch: 1,
            stages: Vec::new(),
            boundaries: BTreeMap::new(),
            dtypes: BTreeMap::new(),
            phase,
            recoveries: 0,
            attempts: 0,
            overflow: None,
            served: 0,
            authored: Vec::new(),
            next_authored: 0,
            dawdles: false,
            wish: Wish::default(),
            waits_for_room: Vec::new(),
            withheld: None,
        }
    }

    /// Positions known.
    pub fn positions(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// A client's and in flight: not merely kept for its KV.
    pub fn is_live(&self) -> bool {
        !self.is_cached() && !self.is_audit()
    }

    /// Finished, and kept for its KV.
    pub fn is_cached(&self) -> bool {
        matches!(self.phase, Phase::Cached { .. })
    }

    /// A replay of another one's rows.
    pub fn is_audit(&self) -> bool {
        self.phase == Phase::Auditing
    }

    /// In flight, and some part of the model runs nowhere for it: a stage was lost, or its KV
    /// was taken.
    pub fn is_broken(&self) -> bool {
        self.is_live()
            && self.phase != Phase::Following
            && (self.stages.is_empty() || self.stages.iter().any(|s| s.holder.is_none()))
    }

    /// What the boundary before a part is in.
    pub fn dtype(&self, part: u32) -> Dtype {
        self.dtypes.get(&part).copied().unwrap_or(Dtype::F32)
    }

    /// Bytes in its log.
    pub fn log_bytes(&self) -> u64 {
        self.boundaries.values().map(Boundary::bytes).sum()
    }

    /// Positions whose input to the stage is known.
    pub fn available(&self, stage: usize) -> u32 {
        match self.stages[stage].span.first {
            0 => self.positions(),
            part => self.boundaries.get(&part).map_or(0, Boundary::end),
        }
    }

    /// The rows `from..to` that a stage can be sent now. `skip_replay` leaves out those whose
    /// output is known (see [`crate::Sabotage`]).
    pub fn rows_waiting(&self, i: usize, skip_replay: bool) -> Option<(u32, u32)> {
        let stage = &self.stages[i];
        let mut from = stage.sent;
        if skip_replay {
            let boundary = self.boundaries.get(&stage.span.end);
            from = from.max(boundary.map_or(self.wanted(), Boundary::end));
        }
        let to = self.available(i);
        if from >= to {
            return None;
        }
        if stage.layers || i == 0 {
            return Some((from, to));
        }
        // The head alone runs only the row that is wanted.
        let whole = self.phase == Phase::Computing && to == self.positions();
        whole.then_some((to - 1, to))
    }

    /// The worker that runs most parts for it.
    pub fn anchor(&self) -> Option<WorkerId> {
        let held = self.stages.iter().filter(|s| s.holder.is_some());
        held.max_by_key(|s| s.span.end - s.span.first)?.holder.map(|(worker, _)| worker)
    }

    /// The parts that nobody runs for it.
    pub fn holes(&self) -> Vec<Span> {
        self.stages.iter().filter(|s| s.holder.is_none()).map(|s| s.span).collect()
    }

    /// The shards that hold KV of it.
    pub fn layered_shards(&self) -> impl Iterator<Item = AssignmentId> + '_ {
        let layered = self.stages.iter().filter(|s| s.layers);
        layered.filter_map(|s| s.holder.map(|(_, assignment)| assignment))
    }

    /// A new fence: whatever is in flight no longer counts and is sent again.
    pub fn fence(&mut self) {
        self.epoch += 1;
        for stage in &mut self.stages {
            stage.sent = stage.done;
        }
    }

    /// Drops the part of its log that only a replay would need, or `everything`.
    pub fn forget_log(&mut self, everything: bool) {
        for (part, boundary) in &mut self.boundaries {
            let reader = self.stages.iter().find(|s| s.span.first == *part);
            let needed = reader.filter(|_| !everything).map_or(u32::MAX, |s| s.done);
            boundary.forget_before(needed.min(boundary.end()));
        }
    }

    /// Position of the row whose logits are wanted next.
    pub fn wanted(&self) -> u32 {
        match self.phase {
            Phase::Computing => self.positions().saturating_sub(1),
            Phase::Sampling
            | Phase::Verifying
            | Phase::Auditing
            | Phase::Following
            | Phase::Cached { .. } => self.positions(),
        }
    }

    /// Makes sure that each stage can get the rows it lacks: where the log does not have
    /// them, the stage before runs them again. Call after changing the route or a stage's
    /// `done`, with a new fence.
    pub fn rewind(&mut self) {
        let wanted = self.wanted();
        for i in (1..self.stages.len()).rev() {
            let stage = &mut self.stages[i];
            if !stage.layers {
                // The head alone needs the one row that is to be sampled; the others passed.
                stage.done = wanted;
                stage.sent = wanted;
            }
            let boundary = self.boundaries.entry(stage.span.first).or_default();
            if boundary.start() > stage.done || (stage.layers && boundary.end() < stage.done) {
                *boundary = Boundary::starting_at(stage.done);
                let part = stage.span.first;
                seal(&mut self.authored, |rows| rows == part);
            }
            // The stage before goes on where the boundary ends.
            let end = boundary.end();
            let before = &mut self.stages[i - 1];
            before.done = if before.layers { before.done.min(end) } else { end };
            before.sent = before.done;
        }
        let route: Vec<u32> = self.stages.iter().map(|s| s.span.first).collect();
        if !route.is_empty() {
            self.boundaries.retain(|part, _| route.contains(part));
            // A replay of some parts has a boundary behind its last one as well.
            let end = self.stages.last().map(|s| s.span.end);
            self.dtypes.retain(|part, _| route.contains(part) || Some(*part) == end);
            // What stage 0 reads are the tokens, which no boundary holds.
            let held = |part: u32| part == 0 || route.contains(&part);
            seal(&mut self.authored, |part| !held(part));
        }
    }

    /// A worker gave rows `from..to` of a stage that the log did not have: where that is
    /// recorded, if it goes on from what it gave before. Rows that the log had once stay
    /// recorded as well: what comes after them rests on them.
    pub fn author_more(
        &mut self,
        worker: WorkerId,
        span: Span,
        from: u32,
        to: u32,
    ) -> Option<usize> {
        let goes_on =
            |e: &Authored| !e.sealed && e.worker == worker && e.span == span && e.to == from;
        let at = self.authored.iter().rposition(goes_on)?;
        self.authored[at].to = to;
        Some(at)
    }

    /// Records rows that go on from nothing, under a number of their own, and answers where.
    /// Where there are too many records the oldest goes, but for those that are not
    /// verified if `keeps` says so.
    pub fn author(&mut self, mut rows: Authored, keeps: bool) -> usize {
        rows.number = self.next_authored;
        self.next_authored += 1;
        if self.authored.len() >= AUTHORED_MAX {
            let verified = self.authored.iter().position(|e| e.verified >= e.to);
            if let Some(at) = verified.or(Some(0).filter(|_| !keeps)) {
                self.authored.remove(at);
            }
        }
        self.authored.push(rows);
        self.authored.len() - 1
    }

    /// Rows from `position` on of the boundary before `part` are thrown away, with all that
    /// rests on them.
    pub fn cut_authored(&mut self, part: u32, position: u32) {
        for entry in &mut self.authored {
            if entry.span.end == part && entry.to > position {
                entry.number = self.next_authored;
                self.next_authored += 1;
                entry.to = position.max(entry.from);
                entry.verified = entry.verified.min(entry.to);
                entry.drawn = entry.drawn.min(entry.to);
            }
        }
        self.authored.retain(|e| e.from < e.to);
    }

    /// A copy's rows so far are drawn for and counted where they were given first.
    pub fn leave_audits_to_original(&mut self) {
        for entry in &mut self.authored {
            entry.drawn = entry.to;
            entry.credited = entry.to;
        }
    }

    /// Where the rows of that number are recorded.
    pub fn entry(&self, number: u64) -> Option<usize> {
        self.authored.iter().position(|e| e.number == number)
    }

    /// Whether all rows before `position` that need it were verified.
    pub fn is_verified(&self, position: u32) -> bool {
        self.authored.iter().all(|e| e.verified >= e.to.min(position))
    }

    /// Throws away the rows from `position` on that come out before `part` or later. Call
    /// [`Session::fence`] and [`Session::rewind`] afterwards.
    pub fn roll_back(&mut self, part: u32, position: u32) {
        for (_, boundary) in self.boundaries.range_mut(part..) {
            boundary.truncate(position);
        }
        for stage in self.stages.iter_mut().filter(|s| s.span.end > part) {
            stage.done = stage.done.min(position);
        }
        let parts: Vec<u32> = self.authored.iter().map(|e| e.span.end).collect();
        for later in parts.into_iter().filter(|later| *later >= part) {
            self.cut_authored(later, position);
        }
        self.withheld = None;
        if self.phase == Phase::Verifying {
            self.phase = Phase::Computing;
        }
    }
}

/// Seals the records of rows that a boundary in `lost` held, or their input.
fn seal(authored: &mut [Authored], lost: impl Fn(u32) -> bool) {
    for entry in authored.iter_mut().filter(|e| lost(e.span.first) || lost(e.span.end)) {
        entry.sealed = true;
    }
}
