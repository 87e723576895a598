//! What a device can do: the real kernels at real shapes, in under three seconds.
//!
//! Rates come from slopes, the time of much work less that of little, so that what a submit
//! and a readback cost is not counted as computing. Several matrices take turns, so that no
//! cache holds the weights of a fast device. Work grows until it can be timed and no submit
//! takes longer than a frame or two. No figure is to be believed beyond a burst: live steps
//! correct it.

use model::Layout;
use model::manifest::RopePairs;

use super::buffers::Owned;
use super::device::Gpu;
use super::handle::Handle;
use super::kernels::{
    Epilogue, GpuMatrix, GpuVector, Kernels, Op, Piece, Place, Rows, Scratch, Shapes, StepData,
    StepRow, StepShape, row_stride,
};
use super::readback::Readback;

/// What was measured. Figures that could not be are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GpuBenchmark {
    /// Weight bytes per second at one row, by slope.
    pub bytes_per_s_1: f64,
    /// The same at 8 rows, each byte counted once.
    pub bytes_per_s_8: f64,
    /// Multiply-adds of the prefill matmul at 64 rows, 10⁹ per second.
    pub gmacs_per_s: f64,
    /// One dispatch, µs, by slope.
    pub dispatch_us: f64,
    /// A small buffer from submit to mapped, ms: median.
    pub readback_ms_p50: f64,
    /// The same, 95th percentile.
    pub readback_ms_p95: f64,
    /// Memory that was really allocated and read back, bytes, less [`scratch_reserve`]: what
    /// weights and KV caches may take.
    pub memory_bytes: u64,
    /// How long all of it took, ms.
    pub took_ms: f64,
}

impl GpuBenchmark {
    /// Why such a device cannot be lent, if it cannot: what computes nothing in time, or
    /// wrongly, has no rate, and one without memory holds nothing.
    pub fn problem(&self) -> Option<&'static str> {
        let is_rate = |rate: f64| rate.is_finite() && rate > 0.0;
        if !is_rate(self.bytes_per_s_1) || !is_rate(self.bytes_per_s_8) {
            return Some("it computed wrongly, or not at all, when it was measured");
        }
        (self.memory_bytes == 0).then_some("no memory could be had of it")
    }
}

/// Shares of the budget after which a part of the benchmark begins nothing new.
const READBACK_UNTIL: f64 = 0.15;
const MATVEC_UNTIL: f64 = 0.45;
const MATVEC_8_UNTIL: f64 = 0.65;
const MATMUL_UNTIL: f64 = 0.8;
const DISPATCH_UNTIL: f64 = 0.9;

/// Times a small buffer is read back.
const READBACKS: usize = 20;
/// Its size, bytes.
const READBACK_BYTES: u64 = 16 << 10;
/// Buffers of the memory test.
const MEMORY_BUFFERS: u64 = 16;

/// The layout of the weights: Q4_1 files, SmolLM2's.
const LAYOUT: Layout = Layout::Q4M;
/// Rows and columns of a matrix, for slow devices and for fast ones (an 8B model's width).
const SIDES: [u32; 2] = [1024, 4096];
/// Matrices that take turns.
const MATRICES: usize = 16;
/// The same where variants are timed: they differ in what they compute, not in what they read.
const CHOICE_MATRICES: usize = 4;
/// Rows of a matrix and of a step, for a variant's prefill.
const CHOICE_ROWS: u32 = 256;
const CHOICE_PREFILL_ROWS: u32 = 32;
/// Times that variants take turns, at most and at least.
const CHOICE_ROUNDS: u32 = 6;
const CHOICE_ROUNDS_MIN: u32 = 2;
/// So many dispatches of a variant as take this long, ms, at most so many.
const CHOICE_MS: f64 = 3.0;
const CHOICE_DISPATCHES_MAX: usize = 512;
/// Each byte of them: scales and mins of 0.065 as f16, quants of 12 and 2 by turns.
const FILL: u8 = 0x2c;
/// The mean weight that makes, d·7 + m.
const WEIGHT: f64 = 0.065_185_546_875 * 8.0;
/// Every activation.
const ACTIVATION: f32 = 0.015_625;
/// Rows of the prefill.
const PREFILL_ROWS: u32 = 64;
/// The larger of a slope's two works may take this long, ms.
const SUBMIT_MS: f64 = 40.0;
/// A device is fast that needs less for a small matrix, ms.
const FAST_MS: f64 = 0.5;
/// Dispatches of the smaller work, at most.
const DISPATCHES_MAX: usize = 128;
/// The larger work is so many times the smaller one.
const LARGER: usize = 4;
/// Samples of each work; the fastest counts.
const SAMPLES: usize = 5;

/// The most that is set aside for scratch, bytes: shards of a model 4096 wide need so much
/// ([`super::GpuShard::scratch_bytes`]).
const SCRATCH_BYTES_MAX: u64 = 192 << 20;
/// Of little memory this part: what holds few layers holds those of a small model.
const SCRATCH_SHARE: u64 = 8;
/// What a scheduler counts by itself for a shard's scratch, bytes.
const SCRATCH_BYTES_COUNTED: u64 = 8 << 20;

/// What is to be set aside of a device's memory, bytes, for what shards need besides weights
/// and KV caches and a fleet does not count.
pub fn scratch_reserve(memory_bytes: u64) -> u64 {
    let needed = (memory_bytes / SCRATCH_SHARE).min(SCRATCH_BYTES_MAX);
    needed.saturating_sub(SCRATCH_BYTES_COUNTED)
}

/// Measures a device. `clock` gives milliseconds from any start. Each part keeps to its share
/// of `budget_ms` once it has one sample; what the device failed at stays 0.
pub async fn benchmark(gpu: &Gpu, budget_ms: f64, clock: impl Fn() -> f64) -> GpuBenchmark {
    let start = clock();
    let until = |share: f64| start + budget_ms * share;
    let mut found = GpuBenchmark::default();
    if let Some((p50, p95)) = readback_ms(gpu, &clock, until(READBACK_UNTIL)).await {
        (found.readback_ms_p50, found.readback_ms_p95) = (p50, p95);
    }
    // A failure leaves the rest at 0; whoever asked looks at `Gpu::lost`.
    let _ = kernels(gpu, &clock, &until, &mut found).await;
    let memory = memory_bytes(gpu, &clock, until(1.0)).await;
    found.memory_bytes = memory - scratch_reserve(memory);
    found.took_ms = clock() - start;
    found
}

async fn kernels(
    gpu: &Gpu,
    clock: &impl Fn() -> f64,
    until: &impl Fn(f64) -> f64,
    found: &mut GpuBenchmark,
) -> Option<()> {
    let (handle, of_gpu) = (gpu.handle(), gpu.kernels(Lab::shapes()));
    let mut lab = Lab::new(handle, &of_gpu, SIDES[0], MATRICES).await?;
    if lab.is_fast(clock).await? {
        // Where there is no room for the large ones, the small ones have to do.
        if let Some(large) = Lab::new(handle, &of_gpu, SIDES[1], MATRICES).await {
            lab = large;
        }
    }
    let ops = lab.products();
    lab.step(1);
    let bytes = lab.matrix_bytes as f64;
    let ms = lab.slope_ms(&ops, clock, until(MATVEC_UNTIL)).await?;
    lab.check(lab.side).await?;
    found.bytes_per_s_1 = bytes / ms * 1e3;
    lab.step(8);
    let ms = lab.slope_ms(&ops, clock, until(MATVEC_8_UNTIL)).await?;
    lab.check(lab.side).await?;
    found.bytes_per_s_8 = bytes / ms * 1e3;
    // As many rows of the matrix as take a few milliseconds, if those 8 rows cost what 8
    // times one does.
    let rows = f64::from(lab.side) * (SUBMIT_MS / 8.0) / (ms * f64::from(PREFILL_ROWS / 8));
    let rows = (rows.min(f64::from(lab.side)) as u32 / 64 * 64).max(64);
    let part = [lab.product(&lab.matrix(0, rows))];
    lab.step(PREFILL_ROWS);
    let ms = lab.slope_ms(&part, clock, until(MATMUL_UNTIL)).await?;
    lab.check(rows).await?;
    let macs = f64::from(PREFILL_ROWS) * f64::from(rows) * f64::from(lab.side);
    found.gmacs_per_s = macs / ms * 1e-6;
    lab.step(1);
    let tiny = [lab.tiny()];
    found.dispatch_us = lab.slope_ms(&tiny, clock, until(DISPATCH_UNTIL)).await? * 1e3;
    Some(())
}

/// Matrices and activations of a device under test.
pub(super) struct Lab<'a> {
    handle: &'a Handle,
    kernels: Kernels,
    scratch: Scratch,
    readback: Readback,
    weights: Vec<wgpu::Buffer>,
    /// Those and the scratch.
    _buffers: Owned,
    side: u32,
    matrix_bytes: u64,
    /// Rows of a step.
    rows: u32,
}

impl<'a> Lab<'a> {
    /// Shapes of kernels that are not for a model yet.
    pub(super) fn shapes() -> Shapes {
        shapes_of(SIDES[0])
    }

    /// What variants are timed with: few matrices, as large as the device is fast.
    pub(super) async fn for_choice(
        handle: &'a Handle,
        base: &Kernels,
        clock: &impl Fn() -> f64,
    ) -> Option<Lab<'a>> {
        let mut lab = Lab::new(handle, base, SIDES[0], CHOICE_MATRICES).await?;
        if lab.is_fast(clock).await?
            && let Some(large) = Lab::new(handle, base, SIDES[1], CHOICE_MATRICES).await
        {
            lab = large;
        }
        Some(lab)
    }

    /// What a token costs with each of these kernels, ms: one row's product and a row's share
    /// of a prefill's; NaN where the device refuses them. The way there and back is spread over
    /// many dispatches. They take turns, and the fastest of a few rounds counts: a machine that
    /// does something else in between is no reason against the one whose turn it is.
    pub(super) async fn token_ms(
        &mut self,
        all: &[Kernels],
        clock: &impl Fn() -> f64,
        until: f64,
    ) -> Option<Vec<f64>> {
        /// Rows of a step: a token of an answer, and some of a prompt.
        const ROWS: [u32; 2] = [1, CHOICE_PREFILL_ROWS];
        let mut ops = Vec::new();
        let mut best = Vec::new();
        for kernels in all {
            self.kernels = kernels.for_shapes(shapes_of(self.side));
            let of = [self.products(), vec![self.product(&self.matrix(0, CHOICE_ROWS))]];
            // The first use compiles, and is slow.
            let device = &self.handle.device;
            let refused = device.push_error_scope(wgpu::ErrorFilter::Validation);
            let broken = device.push_error_scope(wgpu::ErrorFilter::Internal);
            for (ops, rows) in of.iter().zip(ROWS) {
                self.step(rows);
                self.once_ms(ops, 1, clock).await?;
            }
            let works = [broken.pop().await, refused.pop().await].iter().all(Option::is_none);
            best.push(if works { [f64::MAX; 2] } else { [f64::NAN; 2] });
            ops.push(of);
        }
        // As many dispatches as a variant can be told from another by.
        let mut dispatches = [1; 2];
        for (which, rows) in ROWS.into_iter().enumerate() {
            self.step(rows);
            let n = &mut dispatches[which];
            while *n < CHOICE_DISPATCHES_MAX
                && self.once_ms(&ops[0][which], *n, clock).await? < CHOICE_MS
            {
                *n *= 2;
            }
        }
        for round in 0..CHOICE_ROUNDS {
            if round >= CHOICE_ROUNDS_MIN && clock() > until {
                break;
            }
            for (which, rows) in ROWS.into_iter().enumerate() {
                self.step(rows);
                for (ops, best) in ops.iter().zip(&mut best).filter(|(_, best)| !best[0].is_nan()) {
                    let n = dispatches[which];
                    let took = self.once_ms(&ops[which], n, clock).await? / n as f64;
                    best[which] = best[which].min(took);
                }
            }
        }
        let share = f64::from(self.side / CHOICE_ROWS) / f64::from(CHOICE_PREFILL_ROWS);
        Some(best.into_iter().map(|[one, many]| one + many * share).collect())
    }

    /// Whether a matrix is too small to keep the device busy.
    async fn is_fast(&mut self, clock: &impl Fn() -> f64) -> Option<bool> {
        let ops = self.products();
        self.step(1);
        self.once_ms(&ops, 1, clock).await?; // the first use compiles
        let little = self.once_ms(&ops, 1, clock).await?;
        let more = self.once_ms(&ops, LARGER, clock).await?;
        Some((more - little) / ((LARGER - 1) as f64) < FAST_MS)
    }

    /// `None` if there is no room for it.
    async fn new(
        handle: &'a Handle,
        kernels: &Kernels,
        side: u32,
        matrices: usize,
    ) -> Option<Lab<'a>> {
        let shapes = shapes_of(side);
        let matrix_bytes = LAYOUT.matrix_bytes_u64(side, side).expect("whole cells");
        let rows = u64::from(PREFILL_ROWS * row_stride(side)) * 4;
        let mut buffers = Owned::default();
        let mut weights = Vec::new();
        for _ in 0..matrices {
            weights.push(buffers.keep(storage_if_room(handle, matrix_bytes).await?));
        }
        let [normed, gate] = [
            buffers.keep(storage_if_room(handle, rows).await?),
            buffers.keep(storage_if_room(handle, rows).await?),
        ];
        let mut encoder = handle.device.create_command_encoder(&Default::default());
        handle.queue.write_buffer(&weights[0], 0, &vec![FILL; matrix_bytes as usize]);
        for buffer in &weights[1..] {
            encoder.copy_buffer_to_buffer(&weights[0], 0, buffer, 0, matrix_bytes);
        }
        handle.queue.submit([encoder.finish()]);
        let mut small = |bytes| buffers.keep(storage(handle, bytes));
        let unused = small(16);
        let scratch = Scratch {
            hidden: small(u64::from(row_stride(side)) * 4),
            step: small(StepData::bytes_max(PREFILL_ROWS, 1, shapes.head_dim)),
            normed,
            gate,
            query: unused.clone(),
            key: unused.clone(),
            value: unused.clone(),
            mixed: unused.clone(),
            up: unused.clone(),
            logits: unused.clone(),
            partials: unused,
        };
        let x = ACTIVATION.to_le_bytes().repeat((PREFILL_ROWS * row_stride(side)) as usize);
        handle.queue.write_buffer(&scratch.normed, 0, &x);
        Some(Lab {
            handle,
            kernels: kernels.for_shapes(shapes),
            scratch,
            readback: Readback::new(handle),
            weights,
            _buffers: buffers,
            side,
            matrix_bytes,
            rows: 0,
        })
    }

    /// The first `rows` rows of a matrix.
    fn matrix(&self, i: usize, rows: u32) -> GpuMatrix {
        let place = Place { buffer: self.weights[i].clone(), offset_bytes: 0 };
        let pieces = vec![Piece { place, first_row: 0, rows }];
        GpuMatrix { layout: LAYOUT, rows, cols: self.side, pieces }
    }

    fn product(&self, matrix: &GpuMatrix) -> Op {
        let (x, y) = (&self.scratch.normed, &self.scratch.gate);
        self.kernels.product(matrix, x, y, &Epilogue::Store, Rows::All, &self.scratch)
    }

    fn products(&self) -> Vec<Op> {
        (0..self.weights.len()).map(|i| self.product(&self.matrix(i, self.side))).collect()
    }

    /// The least that a dispatch can be: the norm of a short row.
    fn tiny(&self) -> Op {
        let place = Place { buffer: self.weights[0].clone(), offset_bytes: 0 };
        self.kernels.rms_norm(&GpuVector { place, len: 64 }, Rows::All, &self.scratch)
    }

    /// From now on steps are of so many rows.
    fn step(&mut self, rows: u32) {
        let row = StepRow { position: 0, session: 0, token: 0 };
        let rows_of = vec![row; rows as usize];
        let data = StepData { rows: rows_of, page_tables: vec![vec![0]], kept: vec![] };
        let bytes: Vec<u8> = data.words(&[]).iter().flat_map(|w| w.to_le_bytes()).collect();
        self.handle.queue.write_buffer(&self.scratch.step, 0, &bytes);
        self.rows = rows;
    }

    /// How long `n` dispatches of these ops by turns take, and the way there and back.
    async fn once_ms(&mut self, ops: &[Op], n: usize, clock: &impl Fn() -> f64) -> Option<f64> {
        let shape = StepShape { rows: self.rows, kept_rows: 0, keys_max: 1 };
        let start = clock();
        let mut encoder = self.handle.device.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        for op in ops.iter().cycle().take(n) {
            op.record(&mut pass, &shape);
        }
        drop(pass);
        fetch(self.handle, &mut self.readback, encoder, &self.scratch.gate, 0, 4).await?;
        Some(clock() - start)
    }

    /// What one of these dispatches takes, ms, by slope.
    async fn slope_ms(&mut self, ops: &[Op], clock: &impl Fn() -> f64, until: f64) -> Option<f64> {
        self.once_ms(ops, 1, clock).await?; // the first use of a kernel is slow
        let mut n = 1;
        let (mut little, mut much) = (f64::MAX, f64::MAX);
        let mut samples = 0;
        while samples < SAMPLES && (samples == 0 || clock() < until) {
            little = little.min(self.once_ms(ops, n, clock).await?);
            let larger = self.once_ms(ops, LARGER * n, clock).await?;
            much = much.min(larger);
            samples += 1;
            // Until the work is long enough to be told from the way there and back.
            if n < DISPATCHES_MAX && larger < SUBMIT_MS / 4.0 && clock() < until {
                n = (n * 2).min(DISPATCHES_MAX);
                (little, much, samples) = (f64::MAX, f64::MAX, 0);
            }
        }
        let slope = (much - little) / ((LARGER - 1) * n) as f64;
        // A machine in turmoil: what it took in all is a bound.
        Some(if slope > 0.0 { slope } else { much / (LARGER * n) as f64 })
    }

    /// `None` unless the last product of a matrix of so many rows is right: a device that
    /// does nothing is fast.
    async fn check(&mut self, matrix_rows: u32) -> Option<()> {
        let want = WEIGHT * f64::from(ACTIVATION) * f64::from(self.side);
        let last = u64::from((self.rows - 1) * row_stride(matrix_rows) + matrix_rows - 1);
        for at in [0, 4 * last] {
            let encoder = self.handle.device.create_command_encoder(&Default::default());
            let (readback, y) = (&mut self.readback, &self.scratch.gate);
            let got = f64::from(fetch(self.handle, readback, encoder, y, at, 4).await?[0]);
            let error = (got - want).abs();
            if error.is_nan() || error > want * 1e-3 {
                return None;
            }
        }
        Some(())
    }
}

fn shapes_of(side: u32) -> Shapes {
    Shapes {
        d_model: side,
        heads: 1,
        kv_heads: 1,
        head_dim: 32,
        d_ff: side,
        vocab: side,
        pairs: RopePairs::Adjacent,
        rms_eps: 1e-5,
    }
}

/// From submit to mapped: median and 95th percentile, ms.
async fn readback_ms(gpu: &Gpu, clock: &impl Fn() -> f64, until: f64) -> Option<(f64, f64)> {
    let handle = gpu.handle();
    let mut readback = Readback::new(handle);
    let mut owned = Owned::default();
    let source = owned.keep(storage(handle, READBACK_BYTES));
    let mut samples = Vec::new();
    while samples.len() < READBACKS && (samples.is_empty() || clock() < until) {
        let start = clock();
        let encoder = handle.device.create_command_encoder(&Default::default());
        fetch(handle, &mut readback, encoder, &source, 0, READBACK_BYTES).await?;
        samples.push(clock() - start);
    }
    samples.sort_by(f64::total_cmp);
    let at = |percent: usize| samples[(samples.len() * percent / 100).min(samples.len() - 1)];
    Some((at(50), at(95)))
}

/// Bytes that could be had at once, cleared, and the last word read back.
async fn memory_bytes(gpu: &Gpu, clock: &impl Fn() -> f64, until: f64) -> u64 {
    let handle = gpu.handle();
    let mut readback = Readback::new(handle);
    let share = memory_bytes_max(&gpu.info().device_type) / MEMORY_BUFFERS;
    let bytes = share.min(super::buffers::binding_bytes_max(gpu.limits()));
    let mut buffers = Owned::default();
    let mut had = 0;
    while had < MEMORY_BUFFERS && (had == 0 || clock() < until) {
        let Some(buffer) = storage_if_room(handle, bytes).await else { break };
        let buffer = buffers.keep(buffer);
        let mut encoder = handle.device.create_command_encoder(&Default::default());
        encoder.clear_buffer(&buffer, 0, None);
        match fetch(handle, &mut readback, encoder, &buffer, bytes - 4, 4).await {
            Some(words) if words == [0.0] => had += 1,
            Some(_) | None => break,
        }
    }
    had * bytes
}

/// What the memory test tries for: enough to begin with, and nothing that would make a
/// desktop swap. More is had when a shard is assigned that needs it.
fn memory_bytes_max(device_type: &str) -> u64 {
    match device_type {
        "discrete" => 4 << 30,
        "software" => 512 << 20,
        _ => 1 << 30,
    }
}

fn storage(handle: &Handle, bytes: u64) -> wgpu::Buffer {
    use wgpu::BufferUsages as Usage;
    handle.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("benchmark"),
        size: bytes,
        usage: Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST,
        mapped_at_creation: false,
    })
}

async fn storage_if_room(handle: &Handle, bytes: u64) -> Option<wgpu::Buffer> {
    let scope = handle.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let buffer = storage(handle, bytes);
    scope.pop().await.is_none().then_some(buffer)
}

/// Submits an encoder and waits for some floats of a buffer; `None` if the device failed.
async fn fetch(
    handle: &Handle,
    readback: &mut Readback,
    mut encoder: wgpu::CommandEncoder,
    source: &wgpu::Buffer,
    offset: u64,
    bytes: u64,
) -> Option<Vec<f32>> {
    let buffer = readback.take(bytes);
    encoder.copy_buffer_to_buffer(source, offset, &buffer, 0, bytes);
    handle.queue.submit([encoder.finish()]);
    let pending = readback.map(buffer, bytes);
    readback.finish(pending).await.ok()
}
