//! The GPU kernels at real shapes: `cargo bench -p engine --features gpu,testing --bench gpu`,
//! and behind `--` what the kernels' names are to contain.
//!
//! Prints each kernel's time, what it moves, its bandwidth next to that of a plain copy, and
//! its arithmetic. On a software adapter only the small model is measured, unless asked for.

use std::time::Instant;

use engine::gpu::block_on;
use engine::gpu::kernels::{
    Variant,
    measure::{Measured, measure_all},
};

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_default();
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    if adapters.is_empty() {
        println!("SKIPPED: no GPU, and no software Vulkan");
    }
    for adapter in adapters {
        let info = adapter.get_info();
        let descriptor =
            wgpu::DeviceDescriptor { required_limits: adapter.limits(), ..Default::default() };
        let (device, queue) = match block_on(adapter.request_device(&descriptor)) {
            Ok(opened) => opened,
            Err(error) => {
                println!("SKIPPED: {}: {error}", info.name);
                continue;
            }
        };
        for variant in Variant::ALL {
            if variant.unsupported(&device).is_some() {
                continue;
            }
            println!("{} ({}), {}", info.name, info.backend, variant.name());
            let start = Instant::now();
            let now = || start.elapsed().as_secs_f64();
            println!(
                "{:<44} {:>10} {:>9} {:>8} {:>8} {:>9}",
                "", "us", "MB", "GB/s", "of copy", "GFLOP/s"
            );
            let mut copy = None;
            let mut report = |r: &Measured| print(r, *copy.get_or_insert(rate(r)));
            let done = measure_all(&device, &queue, variant, &filter, &now, &mut report);
            if let Err(error) = block_on(done) {
                println!("failed: {error}");
            }
        }
    }
}

/// GB/s.
fn rate(r: &Measured) -> f64 {
    r.bytes as f64 / r.seconds / 1e9
}

fn print(r: &Measured, copy: f64) {
    println!(
        "{:<44} {:>10.1} {:>9.2} {:>8.2} {:>7.0}% {:>9.1}",
        r.name,
        r.seconds * 1e6,
        r.bytes as f64 / 1e6,
        rate(r),
        100.0 * rate(r) / copy,
        r.flops as f64 / r.seconds / 1e9
    );
}
