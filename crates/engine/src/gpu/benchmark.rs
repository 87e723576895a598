//! What a device can do: the real kernels at real shapes, in under three seconds.
//!
//! Rates come from slopes, the time of much work less that of little, so that what a submit
//! and a readback cost is not counted as computing. No figure is to be believed beyond a
//! burst: live steps correct it.

use super::device::Gpu;
use super::handle::Handle;
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
    /// Memory that was really allocated and read back, bytes.
    pub memory_bytes: u64,
    /// How long all of it took, ms.
    pub took_ms: f64,
}

/// Times a small buffer is read back.
const READBACKS: usize = 20;
/// Its size, bytes.
const READBACK_BYTES: u64 = 16 << 10;
/// One buffer of the memory test, bytes.
const MEMORY_BUFFER_BYTES: u64 = 64 << 20;
/// All of them: more is allocated only when a shard is assigned.
const MEMORY_BYTES_MAX: u64 = 512 << 20;

/// From submit to mapped: median and 95th percentile, ms.
async fn readback_ms(gpu: &Gpu, clock: &impl Fn() -> f64, until: f64) -> Option<(f64, f64)> {
    let handle = gpu.handle();
    let mut readback = Readback::new(handle);
    let source = storage(handle, READBACK_BYTES);
    let mut samples = Vec::new();
    for _ in 0..READBACKS {
        let start = clock();
        if start >= until && !samples.is_empty() {
            break;
        }
        read(handle, &mut readback, &source, 0, READBACK_BYTES).await?;
        samples.push(clock() - start);
    }
    samples.sort_by(f64::total_cmp);
    Some((samples[samples.len() / 2], samples[(samples.len() * 95 / 100).min(samples.len() - 1)]))
}

/// Bytes that could be had at once, cleared, and the last word read back.
async fn memory_bytes(gpu: &Gpu, clock: &impl Fn() -> f64, until: f64) -> u64 {
    let handle = gpu.handle();
    let mut readback = Readback::new(handle);
    let bytes = MEMORY_BUFFER_BYTES.min(super::buffers::binding_bytes_max(gpu.limits()));
    let mut buffers = Vec::new();
    while (buffers.len() as u64 + 1) * bytes <= MEMORY_BYTES_MAX && clock() < until {
        let scope = handle.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = storage(handle, bytes);
        if scope.pop().await.is_some() {
            break;
        }
        let mut encoder = handle.device.create_command_encoder(&Default::default());
        encoder.clear_buffer(&buffer, 0, None);
        handle.queue.submit([encoder.finish()]);
        match read(handle, &mut readback, &buffer, bytes - 4, 4).await {
            Some(words) if words == [0.0] => buffers.push(buffer),
            Some(_) | None => break,
        }
    }
    let total = buffers.len() as u64 * bytes;
    buffers.iter().for_each(wgpu::Buffer::destroy);
    total
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

/// Some floats of a buffer; `None` if the device failed.
async fn read(
    handle: &Handle,
    readback: &mut Readback,
    source: &wgpu::Buffer,
    offset: u64,
    bytes: u64,
) -> Option<Vec<f32>> {
    let buffer = readback.take(bytes);
    let mut encoder = handle.device.create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(source, offset, &buffer, 0, bytes);
    handle.queue.submit([encoder.finish()]);
    let pending = readback.map(buffer, bytes);
    readback.finish(pending).await.ok()
}

/// Measures a device. `clock` gives milliseconds from any start; nothing new is begun once
/// `budget_ms` have passed, and each part keeps to its share of it.
pub async fn benchmark(gpu: &Gpu, budget_ms: f64, clock: impl Fn() -> f64) -> GpuBenchmark {
    let start = clock();
    let mut found = GpuBenchmark::default();
    if let Some((p50, p95)) = readback_ms(gpu, &clock, start + budget_ms * 0.15).await {
        (found.readback_ms_p50, found.readback_ms_p95) = (p50, p95);
    }
    found.memory_bytes = memory_bytes(gpu, &clock, start + budget_ms).await;
    found.took_ms = clock() - start;
    found
}
