//! The GPU kernels against `numerics`, on every adapter that wgpu finds here.
//!
//! The table of cases is `engine::gpu::kernels::cases`, the same that a browser runs.
//! WEFT_TEST_GPU_CASES runs those cases only whose name contains it.

use std::time::Instant;

use engine::gpu::kernels::{Kernels, Shapes, Variant, cases, self_test};
use model::manifest::RopePairs;

const NO_GPU: &str = "SKIPPED: no GPU, and no software Vulkan: install mesa-vulkan-drivers";

/// All adapters' devices, with the limits that every WebGPU has and the features that our
/// variants have a use for.
fn devices() -> Vec<(String, wgpu::Device, wgpu::Queue)> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = engine::gpu::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    let mut devices = Vec::new();
    for adapter in adapters {
        let name = format!("{} ({})", adapter.get_info().name, adapter.get_info().backend);
        let descriptor = wgpu::DeviceDescriptor {
            required_limits: wgpu::Limits::default(),
            required_features: adapter.features() & Variant::FEATURES,
            ..Default::default()
        };
        match engine::gpu::block_on(adapter.request_device(&descriptor)) {
            Ok((device, queue)) => devices.push((name, device, queue)),
            Err(error) => println!("SKIPPED: {name}: {error}"),
        }
    }
    devices
}

/// Shapes for kernels that are asked for others anyway.
const SHAPES: Shapes = Shapes {
    d_model: 4,
    heads: 1,
    kv_heads: 1,
    head_dim: 2,
    d_ff: 4,
    vocab: 4,
    pairs: RopePairs::Adjacent,
    rms_eps: 1e-5,
};

#[test]
fn all_cases() {
    let filter = std::env::var("WEFT_TEST_GPU_CASES").unwrap_or_default();
    let devices = devices();
    if devices.is_empty() {
        return println!("{NO_GPU}");
    }
    for (name, device, queue) in devices {
        let mut ran = 0;
        for variant in Variant::ALL {
            if let Some(reason) = variant.unsupported(&device) {
                println!("SKIPPED: {name}, {}: {reason}", variant.name());
                continue;
            }
            let start = Instant::now();
            let is_wanted = |name: &str| name.contains(&filter);
            let run = cases::run_all(&device, &queue, variant, &is_wanted);
            let results = engine::gpu::block_on(run);
            let failed: Vec<String> = results
                .iter()
                .filter_map(|r| r.outcome.as_ref().err().map(|e| format!("{}: {e}", r.name)))
                .collect();
            println!(
                "{name}, {}: {} cases in {:.1} s, errors up to {:.2} of their bounds",
                variant.name(),
                results.len(),
                start.elapsed().as_secs_f64(),
                results.iter().fold(0f32, |largest, r| largest.max(r.seen.error)),
            );
            assert!(failed.is_empty(), "{name}: {} failed\n{}", failed.len(), failed.join("\n"));
            ran += results.len();
            if filter.is_empty() {
                let names: Vec<String> = results.into_iter().map(|r| r.name).collect();
                assert_eq!(names, cases::names(variant), "each case of the table was run");
            } else {
                assert!(results.iter().all(|r| r.seen.values > 0), "each case compares something");
            }
        }
        assert!(ran > 0, "no case is named {filter}");
    }
}

#[test]
fn every_variant_passes_its_self_test_or_says_why() {
    let devices = devices();
    if devices.is_empty() {
        return println!("{NO_GPU}");
    }
    for (name, device, queue) in devices {
        let info = device.adapter_info();
        let (min, max) = (info.subgroup_min_size, info.subgroup_max_size);
        println!("{name}: subgroups of {min} to {max}");
        let base = Kernels::new(&device, Variant::Base, SHAPES);
        for variant in Variant::ALL {
            let start = Instant::now();
            let test = |kernels: Kernels| engine::gpu::block_on(self_test(&kernels, &queue));
            let result = test(base.for_variant(variant));
            let took = start.elapsed().as_secs_f64();
            let again = Instant::now();
            match variant.unsupported(&device) {
                Some(reason) => assert_eq!(result, Err(reason)),
                None => assert_eq!(test(base.for_variant(variant)), result),
            }
            let again = again.elapsed().as_secs_f64();
            println!("{name}, {}: {result:?} in {took:.3} s, {again:.3} compiled", variant.name());
            assert!(result.is_ok() || variant.unsupported(&device).is_some(), "{result:?}");
        }
    }
}

/// What the launcher may give an override, by its name.
const CHOICES: [(&str, &[u32]); 16] = [
    ("LAYOUT", &[0, 1, 2, 3, 4, 5, 6, 7]),
    ("LAYOUT_UP", &[0, 1, 2, 3, 4, 5, 6, 7]),
    ("LAYOUT_K", &[0, 1, 2, 3, 4, 5, 6, 7]),
    ("LAYOUT_V", &[0, 1, 2, 3, 4, 5, 6, 7]),
    ("EPILOGUE", &[0, 1, 2]),
    ("ROWS_AT", &[0, 1]),
    ("COLUMNS", &[1, 4]),
    ("THREADS", &[64, 8]),
    ("IN_SUBGROUP", &[0, 1]),
    ("PAIRS", &[0, 1]),
    ("BIASED", &[0, 1]),
    ("GATHER", &[0, 1]),
    ("SPLIT", &[0, 1]),
    ("ROWS", &[1, 2, 4, 8]),
    ("QUADS", &[1, 2, 3, 4]),
    ("HEAD_DIM", &[2, 64, 80, 128]),
];

/// naga checks a text once when it is built, before it knows what its overrides are. Here with
/// each value of each of them, the others at their first and at their last one; no GPU is asked.
#[test]
fn every_choice_of_overrides_is_valid() {
    use naga::back::pipeline_constants::process_overrides;
    use naga::valid::{Capabilities, ValidationFlags, Validator};

    let values = |name: &str| {
        let found = CHOICES.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("what may {name} be?")).1
    };
    let mut checked = 0;
    for kernel in shaders::ALL {
        let module = naga::front::wgsl::parse_str(&kernel.source()).expect("it was built");
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
        let info = validator.validate(&module).expect("it was built");
        for name in kernel.overrides {
            for &value in values(name) {
                for is_last in [false, true] {
                    let other = |name: &str| {
                        let values = values(name);
                        values[if is_last { values.len() - 1 } else { 0 }]
                    };
                    let choice: Vec<(String, f64)> = kernel
                        .overrides
                        .iter()
                        .map(|o| (o.to_string(), if o == name { value } else { other(o) }.into()))
                        .collect();
                    let constants = choice.iter().cloned().collect();
                    let entry = Some((naga::ShaderStage::Compute, kernel.entry));
                    let made = process_overrides(&module, &info, entry, &constants);
                    assert!(made.is_ok(), "{} with {choice:?}: {:?}", kernel.name, made.err());
                    checked += 1;
                }
            }
        }
    }
    println!("{checked} choices of {} kernels", shaders::ALL.len());
}

/// Widths of vectors that lavapipe can be told to use, bits: its subgroups are of 4, 8 and 16.
const LAVAPIPE_BITS: [u32; 3] = [128, 256, 512];

#[test]
fn subgroups_may_be_of_4_8_or_16() {
    let is_lavapipe = |(name, ..): &(String, _, _)| name.contains("llvmpipe");
    if !devices().iter().any(is_lavapipe) {
        return println!("SKIPPED: no lavapipe, whose subgroups can be had in several sizes");
    }
    for bits in LAVAPIPE_BITS {
        // It asks once in a process.
        let this = std::env::current_exe().expect("this program's path");
        let test = "every_variant_passes_its_self_test_or_says_why";
        let ran = std::process::Command::new(this)
            .args(["--exact", test, "--nocapture"])
            .env("LP_NATIVE_VECTOR_WIDTH", bits.to_string())
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&ran.stdout);
        println!("{said}");
        assert!(ran.status.success(), "{bits} bits: {}", String::from_utf8_lossy(&ran.stderr));
        let size = bits / 32;
        let wanted = format!("subgroups of {size} to {size}");
        assert!(said.contains(&wanted), "{bits} bits: not {wanted}");
    }
}

/// A kernel, what is wrong with it then, a text of it, and what stands there instead.
type Break = (&'static str, &'static str, &'static str, &'static str);

/// Ways to break each kernel: some that any test would see, and some that only these would.
const BREAKS: [Break; 37] = [
    ("matvec", "a wrong sign", "y[at] = value;", "y[at] = -value;"),
    ("matvec", "zeros", "y[at] = value;", "y[at] = 0.0;"),
    ("matvec", "no addition", "value += y[at];", "value = value;"),
    ("matvec", "no barrier", "workgroupBarrier();", ""),
    ("matvec", "another order", "[at + lane * 4u + ", "[at + (15u - lane) * 4u + "),
    ("matvec", "a row too far", "if (row < params.rows) {", "if (row <= params.rows) {"),
    ("matmul", "a wrong sign", "y[at] = value;", "y[at] = -value;"),
    ("matmul", "zeros", "y[at] = value;", "y[at] = 0.0;"),
    ("matmul", "no barrier", "workgroupBarrier();", ""),
    ("matmul", "a lane left out", "t0 += a0;", "if (lane != 3u) { t0 += a0; }"),
    ("matmul_serial", "zeros", "y[at] = value;", "y[at] = 0.0;"),
    ("matmul_serial", "no addition", "value += y[at];", "value = value;"),
    ("matmul_serial", "a lane left out", "t = add(t, a);", "if (lane != 3u) { t = add(t, a); }"),
    ("matmul_serial", "the wrong half", "tile, quad + 1u,", "tile, quad,"),
    ("matvec_subgroups", "zeros", "y[at] = value;", "y[at] = 0.0;"),
    ("matvec_subgroups", "no barrier", "workgroupBarrier();", ""),
    ("matvec_subgroups", "the wrong neighbour", "yw, v.xz, odd), 1u)", "yw, v.xz, odd), 2u)"),
    ("matvec_subgroups", "another order", "(sum + part.x) + part.y", "(sum + part.y) + part.x"),
    ("gate_up_subgroups", "zeros", "= inner[i];", "= 0.0;"),
    ("gate_up_subgroups", "no barrier", "workgroupBarrier();", ""),
    ("qkv_subgroups", "turned the other way", "-(v.y * t.y)", "v.y * t.y"),
    ("gate_up", "no silu", "silu(total(0u, thread, column))", "total(0u, thread, column)"),
    ("gate_up", "zeros", "= inner[i];", "= 0.0;"),
    ("gate_up", "no barrier", "workgroupBarrier();", ""),
    ("qkv", "turned the other way", "-(v.y * t.y)", "v.y * t.y"),
    ("qkv", "no bias", "a += biases(matrix, row, rows);", ""),
    ("qkv", "no values", "append_value(t, params.kv_heads, head, params.head_dim, pair, v);", ""),
    ("qkv", "another place", "PAGE_KEYS + position %", "PAGE_KEYS + (position + 1u) %"),
    ("rope_append", "turned the other way", "-(v.y * t.y)", "v.y * t.y"),
    ("rope_append", "zeros", "return pack2x16float(", "return 0u * pack2x16float("),
    ("swiglu", "no product", "silu(gate[at]) * up[at]", "silu(gate[at])"),
    ("embed", "another row", "(row % TILE_ROWS) / 4u", "(row % TILE_ROWS) / 8u"),
    ("rms_norm", "no gain", "* gain[params.gain_at + i]", ""),
    ("rms_norm", "no barrier", "workgroupBarrier();", ""),
    ("attention", "the future", "let own = vec4<u32>(key) <", "let own = vec4<u32>(key) <="),
    ("attention", "no factor", "s[n] * params.factor", "s[n]"),
    ("combine", "a split left out", "var split = 1u;", "var split = 2u;"),
];

#[test]
fn a_broken_kernel_fails_its_self_test() {
    let devices = devices();
    if devices.is_empty() {
        return println!("{NO_GPU}");
    }
    for kernel in shaders::ALL {
        let is_broken = BREAKS.iter().any(|(name, ..)| *name == kernel.name);
        assert!(is_broken, "{} is never broken", kernel.name);
    }
    for (name, device, queue) in devices {
        for (kernel, what, from, to) in BREAKS {
            let edit = move |name: &str, text: &str| {
                if name != kernel {
                    return text.to_owned();
                }
                assert!(text.contains(from), "{kernel} has no {from}");
                text.replace(from, to)
            };
            let variant = match kernel {
                _ if kernel.ends_with("_subgroups") => Variant::Subgroups,
                "matmul_serial" => Variant::Serial,
                _ => Variant::Base,
            };
            if let Some(reason) = variant.unsupported(&device) {
                println!("SKIPPED: {name}: {kernel}, {what}: {reason}");
                continue;
            }
            let kernels = Kernels::edited(&device, variant, SHAPES, edit);
            let result = engine::gpu::block_on(self_test(&kernels, &queue));
            let said = result.expect_err(&format!("{name}: {kernel}, {what}: it passed"));
            println!("{kernel}, {what}: {said}");
            let is_numeric =
                ["element", "word", "cache", "finite"].iter().any(|w| said.contains(w));
            assert!(is_numeric, "{name}: {kernel}, {what}: refused for another reason: {said}");
        }
    }
}
