//! A loaded shard: the engine's whole contract.

use std::ops::Range;

use model::Manifest;

use crate::types::*;

/// A contiguous range of a model's parts, ready to compute, with the KV cache of its
/// sessions.
pub struct Shard {
    class: Class,
}

impl Shard {
    /// Binds the parts `span` of `manifest` (0 the embedding, `1..=layers` the layers,
    /// `layers + 1` the head) to their blobs and starts the threads.
    ///
    /// `blobs` gives the verified bytes of a hash, or `None` where they are missing; it is
    /// asked once per blob of each part in the span.
    pub fn load(
        _manifest: &Manifest,
        _span: Range<u32>,
        class: Class,
        _blobs: impl FnMut(&str) -> Option<BlobBytes>,
        _limits: Limits,
    ) -> Result<Shard, LoadError> {
        Ok(Shard { class })
    }

    /// The numerics this shard computes in.
    pub fn class(&self) -> Class {
        self.class
    }

    /// Runs the segments' rows through every part of the span. A session is made by its
    /// first segment at position 0; each session may occur once in a step.
    pub fn step(&mut self, _segments: &[Segment], _input: Input<'_>) -> Result<Output, StepError> {
        Err(StepError::Shape("the engine is not built yet".into()))
    }

    /// Makes `to` hold the first `positions` of `from`, sharing its pages; what `to` held
    /// before is released.
    pub fn fork(&mut self, _from: u64, _to: u64, _positions: u32) -> Result<(), StepError> {
        Ok(())
    }

    /// Drops what `session` holds beyond `positions`; holding less already is no error.
    pub fn truncate(&mut self, _session: u64, _positions: u32) {}

    /// Forgets a session; unknown ones are no error.
    pub fn release(&mut self, _session: u64) {}

    /// Positions that `session` holds here; 0 for an unknown one.
    pub fn positions(&self, _session: u64) -> u32 {
        0
    }

    /// KV pages that are not in use.
    pub fn kv_pages_free(&self) -> u32 {
        0
    }
}

/// Bytes of one KV page of [`crate::PAGE_POSITIONS`] positions for all layers of `span`.
pub fn kv_page_bytes(manifest: &Manifest, span: Range<u32>, class: Class) -> u64 {
    let d = &manifest.dims;
    let layers = span.end.min(d.layers + 1).saturating_sub(span.start.max(1));
    let width = match class {
        Class::Canonical1 => 2,
        Class::ExactF32 => 4,
    };
    let position = 2 * u64::from(d.kv_heads) * u64::from(d.head_dim) * width;
    u64::from(layers) * crate::PAGE_POSITIONS as u64 * position
}
