//! A shard on a GPU: loading, sessions, and the contract of its steps.

use std::ops::Range;

use litemap::LiteMap;
use model::Manifest;

use crate::kv::PageTable;
use crate::steps::{StepShape, fault_at, passes};
use crate::types::{Class, Input, LoadError, Output, Segment, StepError};
use crate::weights::check_manifest;

use super::buffers::{Allocator, binding_bytes_max};
use super::device::Gpu;
use super::machine::{Machine, Room, scratch_bytes};
use super::upload::Upload;
use super::weights::Weights;

/// What a shard may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuLimits {
    /// KV pages of [`crate::PAGE_POSITIONS`] positions over all sessions; they are allocated
    /// at once. See [`crate::kv_page_bytes`].
    pub kv_pages_max: u32,
}

/// A contiguous range of a model's parts on a GPU, with the KV cache of its sessions; of
/// class [`Class::WgslF32`].
///
/// On one device an output's bits depend only on the weights and on each session's own rows:
/// not on spans, on what else is in a step, or on how rows are cut into steps.
///
/// It is made empty ([`GpuShard::new`]), filled ([`GpuShard::write_blob`]) and checked
/// ([`GpuShard::finish`]); then it takes steps.
pub struct GpuShard {
    gpu: Gpu,
    span: Range<u32>,
    /// L, D, V.
    layers: u32,
    width: usize,
    vocab: u32,
    upload: Upload,
    is_complete: bool,
    machine: Machine,
    table: PageTable,
    /// Through which layers each session runs: its KV is of those alone.
    homes: LiteMap<u64, Range<u32>>,
}

impl GpuShard {
    /// Makes room for the parts `span` of `manifest` and for the KV cache.
    ///
    /// # Errors
    /// What is wrong with the manifest or the span; [`LoadError::OutOfMemory`] names the
    /// buffer that did not fit; [`LoadError::Device`] if the device is lost.
    pub async fn new(
        gpu: &Gpu,
        manifest: &Manifest,
        span: Range<u32>,
        limits: GpuLimits,
    ) -> Result<GpuShard, LoadError> {
        GpuShard::allocate(gpu, manifest, span, limits, binding_bytes_max(gpu.limits())).await
    }

    /// [`GpuShard::new`] on a device whose kernels see at most `piece_bytes_max` bytes of a
    /// matrix: larger ones are cut.
    ///
    /// # Errors
    /// As [`GpuShard::new`].
    #[cfg(feature = "testing")]
    pub async fn new_in_pieces(
        gpu: &Gpu,
        manifest: &Manifest,
        span: Range<u32>,
        limits: GpuLimits,
        piece_bytes_max: u64,
    ) -> Result<GpuShard, LoadError> {
        GpuShard::allocate(gpu, manifest, span, limits, piece_bytes_max).await
    }

    async fn allocate(
        gpu: &Gpu,
        manifest: &Manifest,
        span: Range<u32>,
        limits: GpuLimits,
        piece_bytes_max: u64,
    ) -> Result<GpuShard, LoadError> {
        if let Some(reason) = gpu.lost() {
            return Err(LoadError::Device(reason));
        }
        check_manifest(manifest, &span)?;
        let mut allocator = Allocator::new(gpu.handle());
        let mut upload = Upload::default();
        let made =
            Weights::allocate(manifest, span.clone(), piece_bytes_max, &mut allocator, &mut upload)
                .and_then(|weights| {
                    let pages_max = limits.kv_pages_max;
                    let room = Room::allocate(gpu, manifest, &weights, pages_max, &mut allocator)?;
                    Ok((weights, room))
                });
        let settled = allocator.settle().await;
        let ((weights, room), buffers) = (made?, settled?);
        let machine = Machine::new(gpu, manifest, span.start, &weights, room, buffers);
        Ok(GpuShard {
            gpu: gpu.clone(),
            span,
            layers: manifest.dims.layers,
            width: manifest.dims.d_model as usize,
            vocab: manifest.dims.vocab,
            upload,
            is_complete: false,
            machine,
            table: PageTable::new(limits.kv_pages_max),
            homes: LiteMap::new(),
        })
    }

    /// The hashes of the blobs that it needs, each once.
    pub fn blobs(&self) -> Vec<String> {
        self.upload.hashes()
    }

    /// Takes the next bytes of a blob: pieces of any size, in ascending order, of one blob
    /// after the other or by turns. Verified by the caller.
    ///
    /// # Errors
    /// [`LoadError::BlobPieces`] if they are not the next ones, [`LoadError::BlobLength`] if
    /// they are too many, [`LoadError::Device`].
    pub fn write_blob(&mut self, hash: &str, offset: u64, bytes: &[u8]) -> Result<(), LoadError> {
        self.upload.write(self.gpu.handle(), hash, offset, bytes)
    }

    /// Checks that all blobs are here and waits until the device has them.
    ///
    /// # Errors
    /// [`LoadError::BlobPieces`] for the first blob that is not complete,
    /// [`LoadError::Device`].
    pub async fn finish(&mut self) -> Result<(), LoadError> {
        if let Some(missing) = self.upload.missing() {
            return Err(missing);
        }
        self.gpu.handle().idle().await.map_err(LoadError::Device)?;
        self.is_complete = true;
        Ok(())
    }

    /// The parts that it holds.
    pub fn span(&self) -> Range<u32> {
        self.span.clone()
    }

    /// The numerics it computes in.
    pub fn class(&self) -> Class {
        Class::WgslF32
    }

    /// Bytes on the device: weights, KV cache and scratch.
    pub fn device_bytes(&self) -> u64 {
        self.machine.device_bytes()
    }

    /// Bytes that a shard of the parts `span` of a checked manifest needs besides its weights
    /// and its KV cache: what the rows of a pass go through.
    pub fn scratch_bytes(manifest: &Manifest, span: &Range<u32>, limits: GpuLimits) -> u64 {
        scratch_bytes(manifest, span, limits.kv_pages_max)
    }

    /// The dispatches of one pass of `rows` rows, the last of which wants logits, through
    /// `span`, one a line; the longest session then has `keys` positions.
    pub fn plan(&self, span: Range<u32>, rows: u32, keys: u32) -> String {
        self.machine.describe(&span, rows, keys)
    }

    /// Runs the segments' rows through the parts `span`, any range within the shard's. Takes
    /// token ids where it begins with part 0, else hidden states; gives logits where it ends
    /// with the head, else hidden states. A session is made by its first segment at position
    /// 0 and keeps to the layers of that step; each session may occur once in a step.
    ///
    /// Dropped midway, the future leaves the shard as an error would.
    ///
    /// # Errors
    /// As [`crate::Shard::step`]; [`StepError::Device`] once the device failed.
    pub async fn step(
        &mut self,
        span: Range<u32>,
        segments: &[Segment],
        input: Input<'_>,
    ) -> Result<Output, StepError> {
        if let Some(reason) = self.gpu.lost() {
            return Err(StepError::Device(reason));
        }
        let shape = self.check_span(&span)?;
        shape.check(segments, input)?;
        let layers = self.layers_of(&span);
        let copies = if layers.is_empty() {
            Vec::new()
        } else {
            self.check_homes(&layers, segments)?;
            self.table.reserve(segments)?
        };
        let mut reserved = Reserved {
            table: &mut self.table,
            segments: if layers.is_empty() { &[] } else { segments },
            is_kept: false,
        };
        let keys_max = segments.iter().map(|s| s.position + s.rows).max().unwrap_or(0);
        let (rows_max, kept_max) = self.machine.rows_max(&span, shape.has_head, keys_max);
        let passes = passes(segments, rows_max, kept_max);
        let done = self
            .machine
            .run(&span, &copies, &passes, reserved.table, input)
            .await
            .map_err(StepError::Device)?;
        let values = done.map_err(|row| fault_at(segments, row))?;
        reserved.is_kept = true;
        drop(reserved);
        for s in segments.iter().filter(|_| !layers.is_empty()) {
            self.homes.insert(s.session, layers.clone());
        }
        Ok(if shape.has_head { Output::Logits(values) } else { Output::Hidden(values) })
    }

    /// Makes `to` hold the first `positions` of `from`, sharing its pages; what `to` held
    /// before is released. A shard without layers has nothing to do.
    ///
    /// # Errors
    /// [`StepError::Gap`] if `from` holds fewer.
    pub fn fork(&mut self, from: u64, to: u64, positions: u32) -> Result<(), StepError> {
        if self.layers_of(&self.span).is_empty() {
            return Ok(());
        }
        self.table.fork(from, to, positions)?;
        if let Some(home) = self.homes.get(&from).cloned() {
            self.homes.insert(to, home);
        }
        self.forget_empty(to);
        Ok(())
    }

    /// Drops what `session` holds beyond `positions`; holding less already is no error.
    pub fn truncate(&mut self, session: u64, positions: u32) {
        self.table.truncate(session, positions);
        self.forget_empty(session);
    }

    /// Forgets a session; unknown ones are no error.
    pub fn release(&mut self, session: u64) {
        self.truncate(session, 0);
    }

    /// Positions that `session` holds here; 0 for an unknown one, and always where there
    /// are no layers.
    pub fn positions(&self, session: u64) -> u32 {
        self.table.positions(session)
    }

    /// KV pages that are not in use; `kv_pages_max` where there are no layers.
    pub fn kv_pages_free(&self) -> u32 {
        self.table.pages_free()
    }

    fn forget_empty(&mut self, session: u64) {
        if self.table.positions(session) == 0 {
            self.homes.remove(&session);
        }
    }

    /// The parts of `span` that are layers.
    fn layers_of(&self, span: &Range<u32>) -> Range<u32> {
        let start = span.start.max(1);
        start..span.end.min(self.layers + 1).max(start)
    }

    fn check_span(&self, span: &Range<u32>) -> Result<StepShape, StepError> {
        if !self.is_complete {
            return Err(StepError::Shape("its weights are not all here".to_owned()));
        }
        if span.is_empty() || span.start < self.span.start || span.end > self.span.end {
            let (Range { start, end }, held) = (span, &self.span);
            return Err(StepError::Shape(format!(
                "parts {start}..{end}, but {}..{} are here",
                held.start, held.end
            )));
        }
        Ok(StepShape {
            has_embedding: span.start == 0,
            has_layers: !self.layers_of(span).is_empty(),
            has_head: span.end > self.layers + 1,
            width: self.width,
            vocab: self.vocab,
        })
    }

    /// A session that comes through other layers than before holds nothing of those.
    fn check_homes(&self, layers: &Range<u32>, segments: &[Segment]) -> Result<(), StepError> {
        let elsewhere = |s: &&Segment| {
            s.position > 0 && self.homes.get(&s.session).is_some_and(|home| home != layers)
        };
        match segments.iter().find(elsewhere) {
            None => Ok(()),
            Some(&Segment { session, position, .. }) => {
                Err(StepError::Gap { session, position, held: 0 })
            }
        }
    }
}

/// Pages taken for a step: unless it is kept, the sessions are as before it.
struct Reserved<'a> {
    table: &'a mut PageTable,
    segments: &'a [Segment],
    is_kept: bool,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        for s in self.segments {
            if self.is_kept {
                self.table.commit(s.session, s.position + s.rows);
            } else {
                self.table.truncate(s.session, s.position);
            }
        }
    }
}
