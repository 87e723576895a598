//! One generation in flight: its tokens, its route, its activation log.

use std::collections::BTreeMap;

use protocol::{AssignmentId, SessionId, Span, WorkerId};

use crate::event::{RequestId, Time};
use crate::log::Boundary;

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
    /// What it does.
    pub phase: Phase,
    /// Stages replaced.
    pub recoveries: u32,
    /// Failures since the last token.
    pub attempts: u32,
    /// Where an untrusted worker said that a value overflowed, and which.
    pub overflow: Option<(u32, WorkerId)>,
    /// Highest step number it took part in, for fair turns.
    pub served: u64,
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
    /// Positions known.
    pub fn positions(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// In flight: not merely kept for its KV.
    pub fn is_live(&self) -> bool {
        !matches!(self.phase, Phase::Cached { .. })
    }

    /// In flight, and some part of the model runs nowhere for it: a stage was lost, or its KV
    /// was taken.
    pub fn is_broken(&self) -> bool {
        self.is_live()
            && self.phase != Phase::Following
            && (self.stages.is_empty() || self.stages.iter().any(|s| s.holder.is_none()))
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
            Phase::Sampling | Phase::Following | Phase::Cached { .. } => self.positions(),
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
            }
            // The stage before goes on where the boundary ends.
            let end = boundary.end();
            let before = &mut self.stages[i - 1];
            before.done = if before.layers { before.done.min(end) } else { end };
            before.sent = before.done;
        }
        let route: Vec<u32> = self.stages.iter().map(|s| s.span.first).collect();
        self.boundaries.retain(|part, _| route.contains(part) || self.stages.is_empty());
    }
}
