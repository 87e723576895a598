//! A shard that a route may enter and leave anywhere: one engine shard for each range of
//! parts that steps really use, over the same mapped weights.
//!
//! A session runs the same parts of a shard each time, so its KV lies in one of them. Pages
//! are allocated when they are first needed and the coordinator admits sessions by the
//! assignment's pages whatever parts they use, so the parts together stay within that.

use engine::{Class, Input, Limits, LoadError, Output, Segment, Shard, StepError};
use litemap::LiteMap;
use model::Manifest;
use protocol::Span;

use crate::source::Blobs;

/// Ranges of parts in use at once; past it one without sessions goes.
const SPANS_MAX: usize = 16;

/// The engine's shards of one assignment.
pub(crate) struct SpanShards {
    manifest: Manifest,
    /// The assignment's.
    whole: Span,
    class: Class,
    blobs: Blobs,
    limits: Limits,
    shards: LiteMap<Span, Shard>,
    /// Where each session's KV lies.
    homes: LiteMap<u64, Span>,
}

impl SpanShards {
    /// Loads the whole span, which checks everything that a part of it needs.
    pub(crate) fn load(
        manifest: Manifest,
        span: Span,
        class: Class,
        blobs: Blobs,
        limits: Limits,
    ) -> Result<SpanShards, LoadError> {
        let (shards, homes) = (LiteMap::new(), LiteMap::new());
        let mut loaded = SpanShards { manifest, whole: span, class, blobs, limits, shards, homes };
        loaded.shard(span)?;
        Ok(loaded)
    }

    fn shard(&mut self, span: Span) -> Result<&mut Shard, LoadError> {
        if !self.shards.contains_key(&span) {
            if self.shards.len() >= SPANS_MAX {
                let homes = &self.homes;
                // The whole stays: with it its helpers would go.
                let whole = &self.whole;
                let unused = |s: &&Span| *s != whole && !homes.values().any(|home| home == *s);
                if let Some(unused) = self.shards.keys().find(unused).copied() {
                    self.shards.remove(&unused);
                }
            }
            let get = |hash: &str| self.blobs.get(hash).cloned();
            let parts = span.first..span.end;
            let shard = Shard::load(&self.manifest, parts, self.class, get, self.limits)?;
            self.shards.insert(span, shard);
        }
        let parts = self.manifest.parts.len() as u32;
        let missing = LoadError::Span { start: span.first, end: span.end, parts };
        self.shards.get_mut(&span).ok_or(missing)
    }

    /// The engine's shard of the whole span.
    pub(crate) fn whole(&self) -> Option<&Shard> {
        self.shards.get(&self.whole)
    }

    /// As [`Shard::take_on`], for the steps that go through the whole span.
    pub(crate) fn take_on(&mut self, crew: Box<dyn engine::crew::Crew>) {
        if let Some(shard) = self.shards.get_mut(&self.whole) {
            shard.take_on(crew);
        }
    }

    /// As [`Shard::step`], through the parts of `span`, which lie within the assignment's.
    pub(crate) fn step(
        &mut self,
        span: Span,
        segments: &[Segment],
        input: Input<'_>,
    ) -> Result<Output, StepError> {
        let head = self.manifest.dims.layers + 1;
        if span.first < head && span.end > 1 {
            for s in segments {
                self.homes.insert(s.session, span);
            }
        }
        let shard = self.shard(span).map_err(|error| StepError::Shape(error.to_string()))?;
        shard.step(segments, input)
    }

    /// As [`Shard::fork`]; `to` holds nothing yet.
    pub(crate) fn fork(&mut self, from: u64, to: u64, positions: u32) -> Result<(), StepError> {
        let home = self.homes.get(&from).copied();
        let gap = StepError::Gap { session: from, position: positions, held: 0 };
        let home = home.ok_or_else(|| gap.clone())?;
        self.shards.get_mut(&home).ok_or(gap)?.fork(from, to, positions)?;
        self.homes.insert(to, home);
        Ok(())
    }

    /// As [`Shard::truncate`].
    pub(crate) fn truncate(&mut self, session: u64, positions: u32) {
        let home = self.homes.get(&session);
        if let Some(shard) = home.and_then(|home| self.shards.get_mut(home)) {
            shard.truncate(session, positions);
        }
    }

    /// As [`Shard::release`].
    pub(crate) fn release(&mut self, session: u64) {
        let home = self.homes.remove(&session);
        if let Some(shard) = home.and_then(|home| self.shards.get_mut(&home)) {
            shard.release(session);
        }
    }
}
