//! The GPU kernels at real shapes: `cargo bench -p engine --features gpu,testing --bench gpu`,
//! and behind `--` what the kernels' names are to contain.
//!
//! Prints each kernel's time, what it moves, its bandwidth next to that of a plain copy, and
//! its arithmetic. On a software adapter only the small model is measured, unless asked for.

use std::time::Instant;

use engine::gpu::block_on;
use engine::gpu::kernels::{Variant, measure::measure_all};

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
            match block_on(measure_all(&device, &queue, variant, &filter, &now)) {
                Ok(results) => print(&results),
                Err(error) => println!("failed: {error}"),
            }
        }
    }
}

fn print(results: &[engine::gpu::kernels::measure::Measured]) {
    let rate = |bytes: u64, seconds: f64| bytes as f64 / seconds / 1e9;
    let copy = results.first().map_or(f64::NAN, |c| rate(c.bytes, c.seconds));
    println!("{:<44} {:>10} {:>9} {:>8} {:>7} {:>9}", "", "us", "MB", "GB/s", "of copy", "GFLOP/s");
    for r in results {
        let speed = rate(r.bytes, r.seconds);
        println!(
            "{:<44} {:>10.1} {:>9.2} {:>8.2} {:>6.0}% {:>9.1}",
            r.name,
            r.seconds * 1e6,
            r.bytes as f64 / 1e6,
            speed,
            100.0 * speed / copy,
            r.flops as f64 / r.seconds / 1e9
        );
    }
}
