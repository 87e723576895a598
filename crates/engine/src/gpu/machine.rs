//! Executes passes: uploads, encodes, submits, reads back.

use std::collections::VecDeque;
use std::ops::Range;

use model::Manifest;
use model::manifest::Dims;
use numerics::{PAGE_POSITIONS, POSITIONS_MAX};
use web_time::Instant;

use crate::kv::{PageCopy, PageTable};
use crate::steps::{Run, first_not_finite};
use crate::types::{Input, LoadError};

use super::buffers::{Allocator, Owned};
use super::device::Gpu;
use super::kernels::{
    Kernels, Rows, Scratch, Shapes, StepData, StepRow, StepShape, partials_bytes, row_stride,
};
use super::kv::KvPages;
use super::pace::Work;
use super::plan::Plan;
use super::readback::{Pending, Readback};
use super::weights::Weights;

/// Rows that go through the dispatches together; scratch memory is bounded by it, and a
/// longer step is several passes.
const PASS_ROWS_MAX: u32 = 256;
/// The same on the slowest device: fewer would read weights without using them.
const PASS_ROWS_MIN: u32 = 16;
/// Bytes of logits of one pass, unless a single row has more.
const LOGITS_BYTES_MAX: u64 = 16 << 20;
/// Passes whose results are on their way at once.
const PENDING_MAX: usize = 2;
/// Rows up to which a pass is a decode: it reads weights more than it multiplies.
const DECODE_ROWS_MAX: usize = 8;

/// What a shard needs to compute.
pub(crate) struct Machine {
    gpu: Gpu,
    plan: Plan,
    kv: KvPages,
    scratch: Scratch,
    readback: Readback,
    inv_freq: Vec<f64>,
    /// D and V.
    width: u32,
    vocab: u32,
    head_part: u32,
    kept_max: u32,
    /// The weights' too.
    buffers: Owned,
}

/// A machine's kernels and the buffers that they need beside the weights, not to be used yet.
pub(crate) struct Room {
    kernels: Kernels,
    kv: KvPages,
    scratch: Scratch,
    kept_max: u32,
}

/// A pass whose results are on their way.
struct Flight {
    pending: Pending,
    /// Its first row in the step.
    first_row: usize,
    rows: usize,
    /// Its rows that want logits.
    kept: Vec<u32>,
    /// Floats of hidden rows that come before the logits.
    hidden_len: usize,
    /// Whether the hidden rows are what the step gives.
    gives_hidden: bool,
}

/// A step on its way: where it is cut into submits.
struct Encoding {
    gpu: Gpu,
    encoder: wgpu::CommandEncoder,
    /// Work in the encoder, and how much one may hold.
    macs: f64,
    macs_max: f64,
}

impl Encoding {
    fn new(gpu: &Gpu, macs_max: f64) -> Encoding {
        Encoding { gpu: gpu.clone(), encoder: new_encoder(gpu), macs: 0.0, macs_max }
    }

    fn submit(&mut self) {
        let encoder = std::mem::replace(&mut self.encoder, new_encoder(&self.gpu));
        self.gpu.handle().queue.submit([encoder.finish()]);
        self.macs = 0.0;
    }
}

fn new_encoder(gpu: &Gpu) -> wgpu::CommandEncoder {
    gpu.handle().device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: None })
}

impl Room {
    /// Makes the buffers that parts of a checked manifest need beside their weights.
    ///
    /// # Errors
    /// [`LoadError::OutOfMemory`], or why these shapes cannot be computed.
    pub(crate) fn allocate(
        gpu: &Gpu,
        manifest: &Manifest,
        weights: &Weights,
        kv_pages_max: u32,
        allocator: &mut Allocator<'_>,
    ) -> Result<Room, LoadError> {
        let shapes = shapes(manifest);
        let kernels = gpu.kernels(shapes);
        if let Some(reason) = kernels.refused() {
            return Err(LoadError::Manifest(reason));
        }
        let kv = KvPages::allocate(&shapes, weights.layers.len(), kv_pages_max, allocator)?;
        let (layers, head) = (!weights.layers.is_empty(), weights.head.is_some());
        let holds = Holds { layers, head, kv_pages: kv_pages_max };
        let scratch = allocate_scratch(&shapes, &holds, allocator)?;
        Ok(Room { kernels, kv, scratch, kept_max: kept_max(&shapes) })
    }
}

impl Machine {
    /// The ops of the parts from `first` on of a checked manifest, over buffers that are
    /// there: `buffers` owns the weights' and the room's.
    pub(crate) fn new(
        gpu: &Gpu,
        manifest: &Manifest,
        first: u32,
        weights: &Weights,
        room: Room,
        buffers: Owned,
    ) -> Machine {
        let Room { kernels, kv, scratch, kept_max } = room;
        let shapes = kernels.shapes();
        Machine {
            gpu: gpu.clone(),
            plan: Plan::compile(first, weights, &kernels, &kv, &scratch),
            kv,
            scratch,
            readback: Readback::new(gpu.handle()),
            inv_freq: manifest.rope.inv_freq_bits.iter().map(|&b| f64::from_bits(b)).collect(),
            width: shapes.d_model,
            vocab: shapes.vocab,
            head_part: manifest.head_part(),
            kept_max,
            buffers,
        }
    }

    /// The dispatches of one pass, one a line; see [`super::GpuShard::plan`].
    pub(crate) fn describe(&self, span: &Range<u32>, rows: u32, keys_max: u32) -> String {
        self.plan.describe(span, &StepShape { rows, kept_rows: rows.min(1), keys_max })
    }

    /// Rows of a pass through `span`, so that no op of it exceeds what a submit may hold, and
    /// rows of it that want logits; the longest session then has `keys_max` positions.
    pub(crate) fn rows_max(
        &self,
        span: &Range<u32>,
        has_head: bool,
        keys_max: u32,
    ) -> (usize, usize) {
        let submit = self.gpu.pace().submit_macs_max(Work::Prefill);
        let fits = |rows| (submit / self.plan.macs_largest(span, rows, keys_max)) as u32;
        let rows = fits(Rows::All) / PASS_ROWS_MIN * PASS_ROWS_MIN;
        let kept_max = if has_head {
            let decode = (DECODE_ROWS_MAX as u32).min(self.kept_max);
            fits(Rows::Kept).clamp(decode, self.kept_max) as usize
        } else {
            usize::MAX
        };
        (rows.clamp(PASS_ROWS_MIN, PASS_ROWS_MAX) as usize, kept_max)
    }

    /// Bytes of all buffers.
    pub(crate) fn device_bytes(&self) -> u64 {
        self.buffers.bytes()
    }

    /// Runs passes over the parts `span` after the copies of pages that `table` asked for;
    /// the output of all rows. The inner error is a row of the step that is not finite, the
    /// outer one a device that failed.
    ///
    /// All that changes the KV cache is submitted in order, so a caller that stops waiting
    /// loses results only.
    pub(crate) async fn run(
        &mut self,
        span: &Range<u32>,
        copies: &[PageCopy],
        passes: &[Vec<Run>],
        table: &PageTable,
        input: Input<'_>,
    ) -> Result<Result<Vec<f32>, usize>, String> {
        let rows: usize = passes.iter().flatten().map(|run| run.rows).sum();
        let work = if rows <= DECODE_ROWS_MAX { Work::Decode } else { Work::Prefill };
        let (start, mut macs) = (Instant::now(), 0.0);
        if !copies.is_empty() {
            let mut encoder = new_encoder(&self.gpu);
            self.kv.copy(&mut encoder, copies, self.plan.layers_of(span));
            self.gpu.handle().queue.submit([encoder.finish()]);
        }
        let mut output = Vec::new();
        let mut flights = VecDeque::new();
        let mut first_row = 0;
        for runs in passes {
            let rows: usize = runs.iter().map(|run| run.rows).sum();
            let (flight, pass_macs) =
                self.launch(span, runs, first_row..first_row + rows, table, input, work);
            macs += pass_macs;
            flights.push_back(flight);
            first_row += rows;
            if flights.len() == PENDING_MAX
                && let Some(flight) = flights.pop_front()
                && let Err(row) = self.land(flight, &mut output).await?
            {
                return Ok(Err(row));
            }
        }
        for flight in flights {
            if let Err(row) = self.land(flight, &mut output).await? {
                return Ok(Err(row));
            }
        }
        self.gpu.pace().learn(work, macs, start.elapsed().as_secs_f64());
        Ok(Ok(output))
    }

    /// Uploads and submits one pass, the step's rows `rows`; its multiply-adds.
    fn launch(
        &mut self,
        span: &Range<u32>,
        runs: &[Run],
        rows: Range<usize>,
        table: &PageTable,
        input: Input<'_>,
        work: Work,
    ) -> (Flight, f64) {
        let has_head = span.end > self.head_part;
        let tokens = match input {
            Input::Tokens(tokens) => Some(&tokens[rows.clone()]),
            Input::Hidden(hidden) => {
                let width = self.width as usize;
                let hidden = &hidden[rows.start * width..rows.end * width];
                self.upload_rows(hidden);
                None
            }
        };
        let has_layers = !self.plan.layers_of(span).is_empty();
        let data = step_data(runs, tokens, has_head, has_layers.then_some(table));
        let shape = data.shape();
        let queue = &self.gpu.handle().queue;
        queue.write_buffer(&self.scratch.step, 0, &le_bytes(&data.words(&self.inv_freq)));

        let mut encoding = Encoding::new(&self.gpu, self.gpu.pace().submit_macs_max(work));
        let mut macs = 0.0;
        let mut ops = self.plan.ops(span).peekable();
        while ops.peek().is_some() {
            // A compute pass for what goes into this submit.
            let mut pass = encoding.encoder.begin_compute_pass(&Default::default());
            while let Some(next) = ops.peek() {
                let cost = next.macs(&shape);
                if encoding.macs > 0.0 && encoding.macs + cost > encoding.macs_max {
                    break;
                }
                next.op.record(&mut pass, &shape);
                encoding.macs += cost;
                macs += cost;
                ops.next();
            }
            drop(pass);
            if ops.peek().is_some() {
                encoding.submit();
            }
        }
        drop(ops);
        let flight = self.fetch(encoding, &shape, rows.start, data.kept, has_head);
        (flight, macs)
    }

    /// Ends a pass: copies out what it gives, and the hidden rows that give no logits, for
    /// they have to be finite too.
    fn fetch(
        &mut self,
        mut encoding: Encoding,
        shape: &StepShape,
        first_row: usize,
        kept: Vec<u32>,
        has_head: bool,
    ) -> Flight {
        let rows = shape.rows as usize;
        let wants_hidden = !has_head || kept.len() < rows;
        let hidden_len = if wants_hidden { rows * row_stride(self.width) as usize } else { 0 };
        let logits_len = if has_head { kept.len() * row_stride(self.vocab) as usize } else { 0 };
        let (hidden_bytes, logits_bytes) = (4 * hidden_len as u64, 4 * logits_len as u64);
        let bytes = hidden_bytes + logits_bytes;
        let buffer = self.readback.take(bytes);
        let encoder = &mut encoding.encoder;
        if hidden_bytes > 0 {
            encoder.copy_buffer_to_buffer(&self.scratch.hidden, 0, &buffer, 0, hidden_bytes);
        }
        if logits_bytes > 0 {
            let logits = &self.scratch.logits;
            encoder.copy_buffer_to_buffer(logits, 0, &buffer, hidden_bytes, logits_bytes);
        }
        encoding.submit();
        let pending = self.readback.map(buffer, bytes);
        Flight { pending, first_row, rows, kept, hidden_len, gives_hidden: !has_head }
    }

    /// Waits for a pass and appends what it gave; the inner error is its first row, counted
    /// in the step, that is not finite.
    async fn land(
        &mut self,
        flight: Flight,
        output: &mut Vec<f32>,
    ) -> Result<Result<(), usize>, String> {
        let Flight { pending, first_row, rows, kept, hidden_len, gives_hidden } = flight;
        let values = self.readback.finish(pending).await?;
        let (hidden, logits) = values.split_at(hidden_len);
        let stride = row_stride(self.width) as usize;
        for (row, x) in hidden.chunks_exact(stride).take(rows).enumerate() {
            let x = &x[..self.width as usize];
            if first_not_finite(x).is_some() {
                return Ok(Err(first_row + row));
            }
            if gives_hidden {
                output.extend_from_slice(x);
            }
        }
        for (&row, x) in kept.iter().zip(logits.chunks_exact(row_stride(self.vocab) as usize)) {
            let x = &x[..self.vocab as usize];
            if first_not_finite(x).is_some() {
                return Ok(Err(first_row + row as usize));
            }
            output.extend_from_slice(x);
        }
        Ok(Ok(()))
    }

    /// Writes hidden rows, each at its stride.
    fn upload_rows(&self, hidden: &[f32]) {
        let (width, stride) = (self.width as usize, row_stride(self.width) as usize);
        let bytes = if width == stride {
            le_bytes_f32(hidden)
        } else {
            let mut padded = vec![0.0; hidden.len() / width * stride];
            for (to, from) in padded.chunks_exact_mut(stride).zip(hidden.chunks_exact(width)) {
                to[..width].copy_from_slice(from);
            }
            le_bytes_f32(&padded)
        };
        self.gpu.handle().queue.write_buffer(&self.scratch.hidden, 0, &bytes);
    }
}

/// A model's shapes as the kernels want them.
fn shapes(manifest: &Manifest) -> Shapes {
    let Dims { d_model, heads, kv_heads, head_dim, d_ff, vocab, .. } = manifest.dims;
    let (pairs, rms_eps) = (manifest.rope.pairs, manifest.rms_eps());
    Shapes { d_model, heads, kv_heads, head_dim, d_ff, vocab, pairs, rms_eps }
}

/// Rows of a pass that want logits, at most.
fn kept_max(shapes: &Shapes) -> u32 {
    let logits_bytes = 4 * u64::from(row_stride(shapes.vocab));
    (LOGITS_BYTES_MAX / logits_bytes).clamp(1, u64::from(PASS_ROWS_MAX)) as u32
}

/// What a shard holds, as far as its scratch depends on it.
struct Holds {
    layers: bool,
    head: bool,
    kv_pages: u32,
}

/// Names and bytes of the buffers that rows go through, in the order of [`Scratch`]'s fields;
/// what a shard has no use for is as small as can be.
fn scratch_sizes(shapes: &Shapes, holds: &Holds) -> [(&'static str, u64); 11] {
    let rows_of = |rows: u32, width: u32, is_used: bool| {
        if is_used { 4 * u64::from(rows) * u64::from(row_stride(width)) } else { 0 }
    };
    let &Holds { layers, head, kv_pages } = holds;
    let rows = PASS_ROWS_MAX;
    let (query, kv) = (shapes.heads * shapes.head_dim, shapes.kv_heads * shapes.head_dim);
    let pages = if layers { kv_pages } else { 0 };
    let keys_max = pages.saturating_mul(PAGE_POSITIONS as u32).min(POSITIONS_MAX);
    // The rows of a pass may all be of different sessions, or share one of any length.
    let entries = rows.saturating_mul(keys_max.div_ceil(PAGE_POSITIONS as u32) + 1);
    [
        ("hidden states", rows_of(rows, shapes.d_model, true)),
        ("normed states", rows_of(rows, shapes.d_model, layers || head)),
        ("queries", rows_of(rows, query, layers)),
        ("keys", rows_of(rows, kv, layers)),
        ("values", rows_of(rows, kv, layers)),
        ("mixed", rows_of(rows, query, layers)),
        ("gate", rows_of(rows, shapes.d_ff, layers)),
        ("up", rows_of(rows, shapes.d_ff, layers)),
        ("logits", rows_of(kept_max(shapes), shapes.vocab, head)),
        ("attention's splits", partials_bytes(shapes, keys_max)),
        ("step", StepData::bytes_max(rows, entries, shapes.head_dim)),
    ]
}

/// See [`super::GpuShard::scratch_bytes`].
pub(crate) fn scratch_bytes(manifest: &Manifest, span: &Range<u32>, kv_pages: u32) -> u64 {
    let shapes = shapes(manifest);
    let head_part = manifest.head_part();
    let layers = span.start.max(1) < span.end.min(head_part);
    let holds = Holds { layers, head: span.contains(&head_part), kv_pages };
    let page = if layers { KvPages::page_bytes(&shapes) } else { 0 };
    let sizes = scratch_sizes(&shapes, &holds);
    sizes.iter().map(|&(_, bytes)| super::buffers::bytes_of(bytes)).sum::<u64>() + page
}

fn allocate_scratch(
    shapes: &Shapes,
    holds: &Holds,
    allocator: &mut Allocator<'_>,
) -> Result<Scratch, LoadError> {
    let mut made = Vec::new();
    for (what, bytes) in scratch_sizes(shapes, holds) {
        made.push(allocator.storage(what, bytes)?);
    }
    let made: [wgpu::Buffer; 11] = made.try_into().expect("one for each size");
    let [hidden, normed, query, key, value, mixed, gate, up, logits, partials, step] = made;
    Ok(Scratch { hidden, normed, query, key, value, mixed, gate, up, logits, partials, step })
}

/// What a pass is, for the kernels.
fn step_data(
    runs: &[Run],
    tokens: Option<&[u32]>,
    has_head: bool,
    table: Option<&PageTable>,
) -> StepData {
    let mut data = StepData::default();
    for (session, run) in runs.iter().enumerate() {
        data.page_tables.push(table.map_or(Vec::new(), |t| t.pages(run.session).to_vec()));
        for i in 0..run.rows {
            data.rows.push(StepRow {
                // Without layers a position may be any, and is not looked at.
                position: if table.is_some() { run.position + i as u32 } else { 0 },
                session: session as u32,
                token: tokens.map_or(0, |tokens| tokens[run.start + i]),
            });
        }
        if has_head {
            let end = run.start + run.rows;
            data.kept.extend((end - run.logits_rows..end).map(|row| row as u32));
        }
    }
    data
}

fn le_bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn le_bytes_f32(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}
