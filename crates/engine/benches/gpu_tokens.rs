//! Decode and prefill tokens per second of the default model through WGSL, on every adapter:
//! `cargo bench -p engine --features gpu --bench gpu_tokens`, with `WEFT_TEST_MODELS` naming
//! the folder that holds smollm2-135m.gguf (`cargo xtask test` fetches it).
//!
//! Beside them what sets the floor: bytes per token over the bandwidth that the device's own
//! matvec reaches, and dispatches times what one costs.

use std::time::Instant;

use engine::gpu::{Gpu, GpuBenchmark, GpuChoice, GpuLimits, GpuShard, benchmark, block_on};
use engine::{Input, Segment};

#[path = "real/mod.rs"]
mod real;

use real::{Real, median};

const ROUNDS: usize = 5;
/// Tokens of a round: on a real GPU, and on one that is a CPU.
const DECODE_TOKENS: [u32; 2] = [128, 6];
const PREFILL_TOKENS: [u32; 2] = [512, 64];
const BATCH_STEPS: [u32; 2] = [32, 2];
const SESSIONS: u64 = 8;
/// Rows of a prefill that go in one step.
const CHUNK: u32 = 256;
/// As the benchmark at a worker's start.
const BUDGET_MS: f64 = 3000.0;

fn main() {
    let Some(real) = Real::open() else { return };
    let adapters = Gpu::adapters();
    if adapters.is_empty() {
        println!("SKIPPED: no GPU, and no software Vulkan");
    }
    for adapter in &adapters {
        let choice = GpuChoice { adapter: Some(adapter.index), allow_software: true };
        match block_on(Gpu::open(choice)) {
            Ok(gpu) => measure(&gpu, &real),
            Err(error) => println!("SKIPPED: {error}"),
        }
    }
}

fn measure(gpu: &Gpu, real: &Real) {
    println!("{:?}", gpu.info());
    let start = Instant::now();
    let found = block_on(benchmark(gpu, BUDGET_MS, || start.elapsed().as_secs_f64() * 1e3));
    println!("{found:?}");
    let mut shard = load(gpu, real);
    let plan = shard.plan(0..real.parts(), 1, 1);
    // All but the embedding's, the head's norm and its product.
    let layers = f64::from(real.parts() - 2);
    let dispatches = plan.lines().count();
    println!("decode: {dispatches} dispatches, about {:.1} a layer", dispatches as f64 / layers);
    println!("{:.0} MB on the device", shard.device_bytes() as f64 / 1e6);

    let (mut prefill, mut decode, mut batch) = (Vec::new(), Vec::new(), Vec::new());
    // The first round compiles the pipelines and is thrown away.
    for round in 0..=ROUNDS {
        let rates = one_round(&mut shard, usize::from(gpu.info().is_software));
        if round > 0 {
            prefill.push(rates[0]);
            decode.push(rates[1]);
            batch.push(rates[2]);
        }
    }
    let decode = median(&mut decode);
    println!(
        "prefill {:.1} tokens/s, decode {decode:.1} ({:.1} ms a token), {SESSIONS} sessions {:.1}",
        median(&mut prefill),
        1e3 / decode,
        median(&mut batch),
    );
    let floor = floor_s(&found, real, dispatches);
    println!("floor {:.1} ms a token: {:.0} % of it", floor * 1e3, 100.0 * floor * decode);
}

/// What a token takes at least, seconds, by the device's own figures.
fn floor_s(found: &GpuBenchmark, real: &Real, dispatches: usize) -> f64 {
    let bytes = real.token_bytes as f64 / found.bytes_per_s_1;
    bytes + dispatches as f64 * found.dispatch_us / 1e6 + found.readback_ms_p50 / 1e3
}

fn load(gpu: &Gpu, real: &Real) -> GpuShard {
    block_on(async {
        let limits = GpuLimits { kv_pages_max: 64 };
        let mut shard =
            GpuShard::new(gpu, &real.manifest, 0..real.parts(), limits).await.expect("room");
        for hash in shard.blobs() {
            let bytes = (*real.blobs[&hash]).as_ref();
            shard.write_blob(&hash, 0, bytes).expect("a blob of the model");
        }
        shard.finish().await.expect("all of it is there");
        shard
    })
}

/// Tokens per second of prefill, decode and eight sessions at once.
fn one_round(shard: &mut GpuShard, slow: usize) -> [f64; 3] {
    let rows = PREFILL_TOKENS[slow];
    let tokens: Vec<u32> = (0..rows).map(|i| 100 + i * 37 % 40_000).collect();
    let span = shard.span();
    let mut step = |segments: &[Segment], tokens: &[u32]| {
        block_on(shard.step(span.clone(), segments, Input::Tokens(tokens))).expect("a sound step");
    };
    let prefill = rate(rows, || {
        for (position, part) in (0..).step_by(CHUNK as usize).zip(tokens.chunks(CHUNK as usize)) {
            let chunk = part.len() as u32;
            let logits_rows = u32::from(position + chunk == rows);
            step(&[Segment { session: 1, position, rows: chunk, logits_rows }], part);
        }
    });
    let decode = rate(DECODE_TOKENS[slow], || {
        for i in 0..DECODE_TOKENS[slow] {
            let segment = Segment { session: 1, position: rows + i, rows: 1, logits_rows: 1 };
            step(&[segment], &tokens[..1]);
        }
    });
    let batch = rate(BATCH_STEPS[slow] * SESSIONS as u32, || {
        for position in 0..BATCH_STEPS[slow] {
            let segment = |session| Segment { session, position, rows: 1, logits_rows: 1 };
            let segments: Vec<_> = (2..2 + SESSIONS).map(segment).collect();
            step(&segments, &tokens[..SESSIONS as usize]);
        }
    });
    (1..2 + SESSIONS).for_each(|session| shard.release(session));
    [prefill, decode, batch]
}

fn rate(tokens: u32, run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    f64::from(tokens) / start.elapsed().as_secs_f64()
}
