//! The GPU kernels at real shapes: `cargo bench -p engine --features gpu,testing --bench gpu`,
//! and behind `--` what the kernels' names are to contain.
//!
//! Prints each kernel's time, what it moves, its bandwidth next to that of a plain copy, and
//! its arithmetic; in the end the times of all variants side by side. On a software adapter
//! only the small model is measured, unless asked for.

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
        let descriptor = wgpu::DeviceDescriptor {
            required_limits: adapter.limits(),
            required_features: adapter.features() & Variant::FEATURES,
            ..Default::default()
        };
        let (device, queue) = match block_on(adapter.request_device(&descriptor)) {
            Ok(opened) => opened,
            Err(error) => {
                println!("SKIPPED: {}: {error}", info.name);
                continue;
            }
        };
        let mut all = Vec::new();
        for variant in Variant::ALL {
            if let Some(reason) = variant.unsupported(&device) {
                println!("{} ({}), not {}: {reason}", info.name, info.backend, variant.name());
                continue;
            }
            println!("{} ({}), {}", info.name, info.backend, variant.name());
            let start = Instant::now();
            let now = || start.elapsed().as_secs_f64();
            println!(
                "{:<44} {:>10} {:>9} {:>8} {:>8} {:>9}",
                "", "us", "MB", "GB/s", "of copy", "GFLOP/s"
            );
            let software = info.device_type == wgpu::DeviceType::Cpu;
            let mut copy = None;
            let mut measured = Vec::new();
            let mut report = |r: &Measured| {
                print(r, *copy.get_or_insert(rate(r)));
                measured.push(r.clone());
            };
            let done = measure_all(&device, &queue, variant, &filter, software, &now, &mut report);
            if let Err(error) = block_on(done) {
                println!("failed: {error}");
            }
            all.push((variant, measured));
        }
        side_by_side(&all);
    }
}

/// Each kernel's time with each variant, us, and how many times as fast as the first one it is.
fn side_by_side(all: &[(Variant, Vec<Measured>)]) {
    let Some((_, first)) = all.first() else { return };
    print!("{:<44}", "us");
    all.iter().for_each(|(variant, _)| print!(" {:>18}", variant.name()));
    println!();
    for base in first {
        print!("{:<44}", base.name);
        for (_, measured) in all {
            match measured.iter().find(|r| r.name == base.name) {
                Some(r) => {
                    print!(" {:>10.1} ({:>4.2}x)", r.seconds * 1e6, base.seconds / r.seconds)
                }
                None => print!(" {:>18}", "-"),
            }
        }
        println!();
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
