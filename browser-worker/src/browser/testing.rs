//! What tests in browsers call, in place of the worker.

use engine::gpu::kernels::{Variant, cases, measure};
use serde_json::{Value, json};
use wasm_bindgen::prelude::*;

/// Opens a GPU, a software one if there is no other, and runs the kernels' cases, but for
/// [`cases::NATIVE_ONLY`]. Gives, as JSON,
/// `{"variants": [{"name", "problem", "ms", "cases": [{"name", "values", "error",
/// "guard_words", "problem"}]}]}`; problems are null or words, see [`cases::Seen`] for the figures.
///
/// # Errors
/// There is no GPU; in words.
#[wasm_bindgen]
pub async fn run_kernel_cases() -> Result<String, JsValue> {
    let (device, queue) = open().await?;
    let mut variants = Vec::new();
    for variant in Variant::ALL {
        let start = super::js::now_ms();
        let is_wanted =
            |name: &str| !cases::NATIVE_ONLY.iter().any(|(part, _)| name.contains(part));
        let results = cases::run_all(&device, &queue, variant, &is_wanted).await;
        let ms = super::js::now_ms() - start;
        let cases: Vec<Value> = results
            .into_iter()
            .map(|case| {
                json!({
                    "name": case.name,
                    "values": case.seen.values,
                    "error": case.seen.error,
                    "guard_words": case.seen.guard_words,
                    "problem": case.outcome.err(),
                })
            })
            .collect();
        let problem = variant.unsupported(&device);
        let name = variant.name();
        variants.push(json!({ "name": name, "problem": problem, "ms": ms, "cases": cases }));
    }
    Ok(json!({ "variants": variants }).to_string())
}

/// Measures the kernels whose name contains `filter`, of each variant that such a GPU has, with
/// no more work than suits a software one:
/// `[{"name", "seconds", "bytes", "flops"}]` as JSON, see [`measure::Measured`].
///
/// # Errors
/// There is no GPU, or it failed; in words.
#[wasm_bindgen]
pub async fn measure_kernels(filter: String) -> Result<String, JsValue> {
    let (device, queue) = open().await?;
    let mut rows: Vec<Value> = Vec::new();
    let now = || super::js::now_ms() / 1e3;
    for variant in Variant::ALL {
        if variant.unsupported(&device).is_some() {
            continue;
        }
        let mut report = |found: &measure::Measured| {
            let name = format!("{}, {}", found.name, variant.name());
            let (seconds, bytes, flops) = (found.seconds, found.bytes, found.flops);
            rows.push(json!({"name": name, "seconds": seconds, "bytes": bytes, "flops": flops}));
        };
        let done = measure::measure_all(&device, &queue, variant, &filter, true, &now, &mut report);
        done.await.map_err(|e| words(&e))?;
    }
    Ok(Value::from(rows).to_string())
}

/// A software GPU if there is no other.
async fn open() -> Result<(wgpu::Device, wgpu::Queue), JsValue> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await;
    let adapter = adapter.map_err(|e| words(&e))?;
    let request = wgpu::DeviceDescriptor {
        required_features: adapter.features() & Variant::FEATURES,
        required_limits: adapter.limits(),
        ..Default::default()
    };
    adapter.request_device(&request).await.map_err(|e| words(&e))
}

fn words(error: &dyn std::fmt::Display) -> JsValue {
    JsValue::from_str(&error.to_string())
}
