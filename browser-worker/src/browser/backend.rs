//! What computes: a GPU that passes its tests, else WASM, and why.

use api::{TabBackend, TabDevice};
use engine::crew::HELPERS_MAX;
use shards::Computer;

use super::helpers::{self, Helper};
use super::js;

/// Times that a GPU may be lost before WASM computes instead.
#[cfg(feature = "gpu")]
const GPU_LOSSES_MAX: usize = 3;

/// What computes.
pub struct Choice {
    /// The same for the engine.
    pub computer: Computer,
    /// The same for its owner.
    pub device: TabDevice,
    /// Beside this thread, where that is the CPU.
    pub helpers: Vec<Helper>,
}

/// Opens what the owner asked for, or else the best; whatever does not work is passed over,
/// which the device's notes then say. `losses` says why the GPU was lost so far. The CPU is
/// used by so many `threads` in all, if so many start.
pub async fn choose(
    asked: Option<TabBackend>,
    threads: u32,
    losses: &[String],
    cancelled: &dyn Fn() -> bool,
) -> Choice {
    let mut notes = Vec::new();
    match asked {
        Some(TabBackend::Wasm) => notes.push("WASM was asked for".to_owned()),
        Some(TabBackend::Webgpu) | None => {
            match open_gpu(asked == Some(TabBackend::Webgpu), losses).await {
                Ok((computer, device)) => return Choice { computer, device, helpers: Vec::new() },
                Err(reason) => notes.push(format!("WebGPU is not used: {reason}")),
            }
        }
    }
    let wanted = (threads.max(1) as usize - 1).min(HELPERS_MAX);
    let isolated = js::get(&js::scope(), "crossOriginIsolated").is_truthy();
    let (helpers, problem) = match wanted {
        0 => (Vec::new(), None),
        _ if !isolated => {
            (Vec::new(), Some("this page may not share memory between threads".to_owned()))
        }
        _ => helpers::start(wanted, cancelled).await,
    };
    let threads = helpers.len() + 1;
    if let Some(problem) = problem.filter(|_| helpers.len() < wanted) {
        notes.push(format!("{threads} of {} threads: {problem}", wanted + 1));
    }
    let simd = match (cfg!(target_feature = "relaxed-simd"), cfg!(target_feature = "simd128")) {
        (true, _) => " relaxed SIMD",
        (false, true) => " SIMD",
        (false, false) => "",
    };
    let s = if threads == 1 { "" } else { "s" };
    let name = format!("WASM{simd}, {threads} thread{s}");
    let device = TabDevice { backend: TabBackend::Wasm, name, notes };
    Choice { computer: Computer::Cpu { threads: 1 }, device, helpers }
}

#[cfg(not(feature = "gpu"))]
async fn open_gpu(_forced: bool, _losses: &[String]) -> Result<(Computer, TabDevice), String> {
    Err("this worker was built without it".into())
}

#[cfg(feature = "gpu")]
async fn open_gpu(forced: bool, losses: &[String]) -> Result<(Computer, TabDevice), String> {
    use engine::gpu::{Gpu, GpuChoice};

    if losses.len() >= GPU_LOSSES_MAX
        && let Some(last) = losses.last()
    {
        return Err(format!("the GPU was lost {} times, lastly: {last}", losses.len()));
    }
    let adapter = adapter().await?;
    if adapter.is_software && !forced {
        let name = &adapter.name;
        return Err(format!("{name} only emulates a GPU on the CPU, where WASM is faster"));
    }
    let choice = GpuChoice { adapter: None, allow_software: forced };
    let gpu = Gpu::open(choice).await.map_err(|error| error.to_string())?;
    let mut notes = Vec::new();
    if adapter.is_software {
        notes.push("a software adapter, used because WebGPU was asked for".to_owned());
    }
    let info = gpu.info();
    notes.extend(info.rejected.iter().map(|r| format!("not {}: {}", r.variant, r.reason)));
    if let Some(last) = losses.last() {
        notes.push(format!("opened again after it was lost: {last}"));
    }
    let name = format!("{}, {}", adapter.name, info.variant);
    let device = TabDevice { backend: TabBackend::Webgpu, name, notes };
    Ok((Computer::Gpu(gpu), device))
}

/// What a browser says of the adapter that it would give.
#[cfg(feature = "gpu")]
struct Adapter {
    name: String,
    is_software: bool,
}

/// # Errors
/// There is none; why, in words.
#[cfg(feature = "gpu")]
async fn adapter() -> Result<Adapter, String> {
    use js_sys::{Object, Promise, Reflect};
    use wasm_bindgen::JsValue;
    use wasm_bindgen_futures::JsFuture;

    let gpu = js::get(&js::navigator(), "gpu");
    let Some(request) = js::method(&gpu, "requestAdapter") else {
        return Err(match js::get(&js::scope(), "isSecureContext").is_truthy() {
            true => "this browser has no WebGPU".into(),
            false => "it needs a page that came over HTTPS or from this machine".into(),
        });
    };
    let options = Object::new();
    let _ = Reflect::set(&options, &"powerPreference".into(), &"high-performance".into());
    let asked = request.call1(&gpu, &options).map_err(|e| js::text(&e))?;
    let adapter = JsFuture::from(Promise::resolve(&asked)).await.map_err(|e| js::text(&e))?;
    if adapter.is_null() || adapter.is_undefined() {
        return Err("the browser gives no adapter (perhaps its driver is blocked)".into());
    }
    let info = js::get(&adapter, "info");
    let text = |key| js::get(&info, key).as_string().filter(|text| !text.is_empty());
    let name = text("description").or_else(|| text("device")).or_else(|| {
        let vendor = text("vendor")?;
        Some(text("architecture").map_or(vendor.clone(), |kind| format!("{vendor} {kind}")))
    });
    let fallback = |object: &JsValue| js::get(object, "isFallbackAdapter").is_truthy();
    let software = ["swiftshader", "llvmpipe", "lavapipe", "basic render"];
    let says = |name: &str| software.iter().any(|word| name.to_ascii_lowercase().contains(word));
    let named = [text("description"), text("architecture"), text("device")];
    let is_software =
        fallback(&info) || fallback(&adapter) || named.into_iter().flatten().any(|n| says(&n));
    Ok(Adapter { name: name.unwrap_or_else(|| "the browser's GPU".into()), is_software })
}
