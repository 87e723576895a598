//! The GPU kernels against `numerics`, on every adapter that wgpu finds here.
//!
//! The table of cases is `engine::gpu::kernels::cases`, the same that a browser runs.
//! WEFT_TEST_GPU_CASES runs those cases only whose name contains it.

use std::time::Instant;

use engine::gpu::kernels::{Variant, cases, self_test};
const NO_GPU: &str = "SKIPPED: no GPU, and no software Vulkan: install mesa-vulkan-drivers";

/// All adapters' devices, with the limits that every WebGPU has.
fn devices() -> Vec<(String, wgpu::Device, wgpu::Queue)> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = engine::gpu::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    let mut devices = Vec::new();
    for adapter in adapters {
        let name = format!("{} ({})", adapter.get_info().name, adapter.get_info().backend);
        let descriptor = wgpu::DeviceDescriptor {
            required_limits: wgpu::Limits::default(),
            ..Default::default()
        };
        match engine::gpu::block_on(adapter.request_device(&descriptor)) {
            Ok((device, queue)) => devices.push((name, device, queue)),
            Err(error) => println!("SKIPPED: {name}: {error}"),
        }
    }
    devices
}

#[test]
fn all_cases() {
    let filter = std::env::var("WEFT_TEST_GPU_CASES").unwrap_or_default();
    let devices = devices();
    if devices.is_empty() {
        return println!("{NO_GPU}");
    }
    for (name, device, queue) in devices {
        let start = Instant::now();
        let results = engine::gpu::block_on(cases::run_all(&device, &queue, &filter));
        let failed: Vec<String> = results
            .iter()
            .filter_map(|r| r.outcome.as_ref().err().map(|e| format!("{}: {e}", r.name)))
            .collect();
        println!("{name}: {} cases in {:.1} s", results.len(), start.elapsed().as_secs_f64());
        assert!(!results.is_empty(), "no case is named {filter}");
        assert!(failed.is_empty(), "{name}: {} failed\n{}", failed.len(), failed.join("\n"));
    }
}

#[test]
fn every_variant_passes_its_self_test_or_says_why() {
    let devices = devices();
    if devices.is_empty() {
        return println!("{NO_GPU}");
    }
    for (name, device, queue) in devices {
        for variant in Variant::ALL {
            let start = Instant::now();
            let result = engine::gpu::block_on(self_test(&device, &queue, variant));
            let took = start.elapsed().as_secs_f64();
            println!("{name}, {}: {result:?} in {took:.2} s", variant.name());
            match variant.unsupported(&device) {
                Some(reason) => assert_eq!(result, Err(reason)),
                None => assert_eq!(result, Ok(())),
            }
        }
    }
}
