//! What tests in browsers call, in place of the worker.

use engine::gpu::kernels::cases;
use wasm_bindgen::prelude::*;

/// Opens a GPU, a software one if there is no other, and runs the kernels' cases whose name
/// contains `filter`. Gives a JSON list of `{"name": "...", "problem": null or "..."}`.
///
/// # Errors
/// There is no GPU; in words.
#[wasm_bindgen]
pub async fn run_kernel_cases(filter: String) -> Result<String, JsValue> {
    let words = |error: &dyn std::fmt::Display| JsValue::from_str(&error.to_string());
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await;
    let adapter = adapter.map_err(|e| words(&e))?;
    let request =
        wgpu::DeviceDescriptor { required_limits: adapter.limits(), ..Default::default() };
    let (device, queue) = adapter.request_device(&request).await.map_err(|e| words(&e))?;
    let results = cases::run_all(&device, &queue, &filter).await;
    let list: Vec<serde_json::Value> = results
        .into_iter()
        .map(|case| serde_json::json!({ "name": case.name, "problem": case.outcome.err() }))
        .collect();
    serde_json::to_string(&list).map_err(|e| words(&e))
}
