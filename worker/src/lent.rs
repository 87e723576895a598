//! What this machine lends: the CPU or GPUs, opened, tested and measured.

use crate::machine;
use crate::options::{Backend, Options, memory_default};
use shards::Computer;

/// Something that computes, as it will introduce itself.
#[derive(Clone, Debug)]
pub struct Lent {
    /// What computes.
    pub computer: Computer,
    /// Its name, for people.
    pub device: String,
    /// Why not something faster, for people.
    pub notes: Vec<String>,
    /// See [`worker_core::Config::bytes_per_s`].
    pub bytes_per_s: [f64; 2],
    /// Memory lent, bytes.
    pub memory_bytes: u64,
    /// Where that number comes from, in words.
    pub memory_reason: String,
    /// Tells this one from the others of this process; empty if it is the only one.
    pub suffix: String,
}

/// Opens and measures what the options ask for. Takes seconds and blocks.
///
/// # Errors
/// Nothing of that kind works here; why, in words.
pub fn choose(options: &Options) -> Result<Vec<Lent>, String> {
    match options.backend {
        Backend::Cpu => Ok(vec![cpu(options, Vec::new())?]),
        Backend::Wgpu if options.gpus.is_empty() => Ok(vec![gpu(options, None)?]),
        Backend::Wgpu => {
            let several = options.gpus.len() > 1;
            let open = |&index: &u32| {
                let mut lent = gpu(options, Some(index))?;
                if several {
                    lent.suffix = format!("-gpu{index}");
                }
                Ok(lent)
            };
            options.gpus.iter().map(open).collect()
        }
        Backend::Auto => match gpu(options, None) {
            Ok(lent) => Ok(vec![lent]),
            Err(reason) => Ok(vec![cpu(options, vec![reason])?]),
        },
    }
}

fn cpu(options: &Options, notes: Vec<String>) -> Result<Lent, String> {
    let threads = options.threads;
    let bytes_per_s = machine::bytes_per_s(threads)?;
    let (memory_bytes, memory_reason) = match options.memory_bytes {
        Some(bytes) => (bytes, "as told".to_owned()),
        None => memory_default(machine::memory_available()),
    };
    let computer = Computer::Cpu { threads };
    let device = format!("{threads} threads, {:?}", engine::Isa::best());
    let suffix = String::new();
    Ok(Lent { computer, device, notes, bytes_per_s, memory_bytes, memory_reason, suffix })
}

#[cfg(not(feature = "gpu"))]
fn gpu(_: &Options, _: Option<u32>) -> Result<Lent, String> {
    Err("this program was built without GPU support (feature gpu)".to_owned())
}

/// Opens an adapter; a software one only if it is named.
#[cfg(feature = "gpu")]
fn gpu(options: &Options, adapter: Option<u32>) -> Result<Lent, String> {
    use engine::gpu::{self, Gpu, GpuChoice};

    let choice = GpuChoice { adapter, allow_software: adapter.is_some() };
    let gpu = gpu::block_on(Gpu::open(choice)).map_err(|error| error.to_string())?;
    let info = gpu.info();
    let start = std::time::Instant::now();
    let clock = || start.elapsed().as_secs_f64() * 1e3;
    let measured = gpu::block_on(gpu::benchmark(&gpu, BENCHMARK_MS, clock));
    if let Some(reason) = gpu.lost() {
        return Err(format!("{}: {reason}", info.name));
    }
    if let Some(problem) = measured.problem() {
        return Err(format!("{}: {problem}", info.name));
    }
    let (memory_bytes, memory_reason) = match options.memory_bytes {
        Some(bytes) => {
            let reserve = gpu::scratch_reserve(bytes);
            (bytes - reserve, format!("as told, less {} MiB for steps", reserve >> 20))
        }
        None => {
            let reason = "what could be had of it in a test, less what steps need";
            (measured.memory_bytes, reason.to_owned())
        }
    };
    let mut notes = vec![format!("{} kernels are {}", info.variant, info.variant_reason)];
    notes.extend(info.rejected.iter().map(|r| format!("not {}: {}", r.variant, r.reason)));
    Ok(Lent {
        device: format!("{} ({}, {} kernels)", info.name, info.backend, info.variant),
        notes,
        bytes_per_s: [measured.bytes_per_s_1, measured.bytes_per_s_8],
        memory_bytes,
        memory_reason,
        suffix: String::new(),
        computer: Computer::Gpu(gpu),
    })
}

/// What a GPU's benchmark may take, ms.
#[cfg(feature = "gpu")]
const BENCHMARK_MS: f64 = 3000.0;

/// A line for each GPU adapter that there is.
pub fn list_gpus() -> Vec<String> {
    #[cfg(feature = "gpu")]
    {
        let adapters = engine::gpu::Gpu::adapters();
        let line = |a: &engine::gpu::AdapterDescription| {
            format!("{}: {} ({}, {})", a.index, a.name, a.backend, a.device_type)
        };
        adapters.iter().map(line).collect()
    }
    #[cfg(not(feature = "gpu"))]
    Vec::new()
}
