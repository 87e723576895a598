//! What this tab can do, measured after the owner's click: the real kernels, the network,
//! memory really allocated. Under three seconds in all, unless helpers keep it waiting. With
//! helpers the rates are the sum of what each measures by itself: a step, whose attention stays
//! on one core and whose products end when the last helper has answered, is slower.

use api::TabBenchmark;
use shards::Computer;

use super::download::room;
use super::helpers::{self, Helper};
use super::http::{self, Cancel};
use super::js;
use crate::meter::Meter;

/// Round trips that are measured; the first, which also connects, does not count.
const PINGS: usize = 6;
/// No further ping after so long, ms.
const PINGS_MS_MAX: f64 = 600.0;
/// Bytes asked for to measure the way down.
const PROBE_BYTES: u64 = 512 << 10;
/// What has come after so long suffices, ms.
const PROBE_MS_MAX: f64 = 600.0;
/// Most memory that is tried before there is something to put there, bytes.
const MEMORY_BYTES_MAX: u64 = 128 << 20;
/// After so long less memory is tried, ms.
const MEMORY_BY_MS: f64 = 2000.0;
/// What measuring a GPU may take, ms.
#[cfg(feature = "gpu")]
const GPU_MS_MAX: f64 = 1500.0;
/// One byte of each page is written.
const PAGE_BYTES: usize = 4096;

/// Measures everything that `computer`, with `helpers` beside it, and this connection have.
///
/// # Errors
/// The engine does not run here; why, in words.
pub async fn run(
    computer: &Computer,
    helpers: &[Helper],
    memory_bytes_max: u64,
    meter: &Meter,
    cancel: &Cancel,
) -> Result<TabBenchmark, String> {
    let began = js::now_ms();
    let mut figures = TabBenchmark {
        rtt_ms_p50: round_trip_ms(meter, cancel).await.unwrap_or_default(),
        down_bytes_per_s: down_bytes_per_s(meter, cancel).await.unwrap_or_default(),
        ..TabBenchmark::default()
    };
    if !cancel.is_cancelled() {
        engine(computer, helpers, &mut figures, cancel).await?;
        js::yield_now().await;
    }
    if !cancel.is_cancelled() && matches!(computer, Computer::Cpu { .. }) {
        // On a busy machine the rest may have taken its time already.
        let late = js::now_ms() - began > MEMORY_BY_MS;
        let most = if late { MEMORY_BYTES_MAX / 8 } else { MEMORY_BYTES_MAX };
        figures.memory_bytes = memory_bytes(memory_bytes_max.min(most));
    }
    figures.took_ms = js::now_ms() - began;
    Ok(figures)
}

async fn engine(
    computer: &Computer,
    helpers: &[Helper],
    figures: &mut TabBenchmark,
    cancel: &Cancel,
) -> Result<(), String> {
    match computer {
        Computer::Cpu { threads } => {
            let clock = || js::now_ms() / 1000.0;
            let own = async { shards::benchmark::bytes_per_s(*threads, clock) };
            let stop = || cancel.is_cancelled();
            [figures.bytes_per_s_1, figures.bytes_per_s_8] =
                helpers::measure(helpers, own, &stop).await?;
        }
        #[cfg(feature = "gpu")]
        Computer::Gpu(gpu) => {
            let measured = engine::gpu::benchmark(gpu, GPU_MS_MAX, js::now_ms).await;
            if let Some(reason) = gpu.lost() {
                return Err(format!("the GPU was lost while it was measured: {reason}"));
            }
            if let Some(problem) = measured.problem() {
                return Err(format!("the GPU: {problem}"));
            }
            figures.bytes_per_s_1 = measured.bytes_per_s_1;
            figures.bytes_per_s_8 = measured.bytes_per_s_8;
            figures.gmacs_per_s = measured.gmacs_per_s;
            figures.dispatch_us = measured.dispatch_us;
            figures.readback_ms_p50 = measured.readback_ms_p50;
            figures.readback_ms_p95 = measured.readback_ms_p95;
            figures.memory_bytes = measured.memory_bytes;
        }
    }
    Ok(())
}

/// The median; `None` if the coordinator does not answer.
async fn round_trip_ms(meter: &Meter, cancel: &Cancel) -> Option<f64> {
    let start = js::now_ms();
    let mut times = Vec::new();
    for ping in 0..=PINGS {
        let began = js::now_ms();
        let mut answer = http::get("/healthz", &[], cancel).await.ok()?;
        answer.drain(meter).await.ok()?;
        if ping > 0 {
            times.push(js::now_ms() - began);
        }
        if ping > 0 && js::now_ms() - start > PINGS_MS_MAX {
            break;
        }
    }
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied()
}

/// From the first piece on; `None` if the coordinator has no probe.
async fn down_bytes_per_s(meter: &Meter, cancel: &Cancel) -> Option<f64> {
    let path = format!("/v1/worker/probe?bytes={PROBE_BYTES}");
    let began = js::now_ms();
    let mut answer = http::get(&path, &[], cancel).await.ok()?;
    if answer.status != 200 {
        return None;
    }
    let mut bytes = 0;
    while let Some(piece) = answer.piece(meter).await.ok()? {
        bytes += piece.len();
        if js::now_ms() - began > PROBE_MS_MAX || meter.is_exhausted() {
            break;
        }
    }
    answer.abandon();
    Some(bytes as f64 / ((js::now_ms() - began) / 1000.0).max(1e-4))
}

/// How much of it can be had, written and read back.
fn memory_bytes(wanted: u64) -> u64 {
    let mut wanted = wanted;
    while wanted > 1 << 20 {
        if let Ok(mut memory) = room(wanted) {
            memory.resize(wanted as usize, 0u8);
            memory.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 0xa5);
            let intact = memory.iter().step_by(PAGE_BYTES).all(|byte| *byte == 0xa5);
            if intact {
                return wanted;
            }
        }
        wanted /= 2;
    }
    0
}
