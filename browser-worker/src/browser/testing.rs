//! What tests in browsers call, in place of the worker.

use engine::gpu::kernels::{Variant, cases};
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
    let words = |error: &dyn std::fmt::Display| JsValue::from_str(&error.to_string());
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await;
    let adapter = adapter.map_err(|e| words(&e))?;
    let request = wgpu::DeviceDescriptor {
        required_features: adapter.features() & Variant::FEATURES,
        required_limits: adapter.limits(),
        ..Default::default()
    };
    let (device, queue) = adapter.request_device(&request).await.map_err(|e| words(&e))?;
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
    serde_json::to_string(&json!({ "variants": variants })).map_err(|e| words(&e))
}
