//! Opening a GPU: adapter, device, kernels.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wgpu::{Backend, DeviceType};

use super::choice::{self, Chosen};
use super::error::GpuError;
use super::handle::Handle;
use super::kernels::{Kernels, Shapes, Variant};
use super::pace::Pace;

/// Which adapter to open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuChoice {
    /// Its index in [`Gpu::adapters`]; `None` takes the best one, and is all that a browser
    /// has.
    pub adapter: Option<u32>,
    /// Whether one that computes on the CPU will do.
    pub allow_software: bool,
}

/// An adapter that could be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterDescription {
    /// Its index, for [`GpuChoice::adapter`].
    pub index: u32,
    /// Its name, for people.
    pub name: String,
    /// `vulkan`, `metal`, `dx12`.
    pub backend: String,
    /// `discrete`, `integrated`, `virtual`, `software`, `other`.
    pub device_type: String,
    /// Whether it computes on the CPU.
    pub is_software: bool,
}

/// What was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInfo {
    /// The adapter's name, for people.
    pub name: String,
    /// The driver's name and version; empty in a browser.
    pub driver: String,
    /// `vulkan`, `metal`, `dx12`, `webgpu`.
    pub backend: String,
    /// As [`AdapterDescription::device_type`].
    pub device_type: String,
    /// Whether it computes on the CPU.
    pub is_software: bool,
    /// The kernel variant in use.
    pub variant: String,
    /// Why that one, in words.
    pub variant_reason: String,
    /// Variants that are not used, and why.
    pub rejected: Vec<RejectedVariant>,
    /// Largest range of a buffer that a kernel can see, bytes.
    pub binding_bytes_max: u64,
    /// Largest buffer, bytes.
    pub buffer_bytes_max: u64,
}

/// A kernel variant that is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedVariant {
    /// Its name.
    pub variant: String,
    /// Why not: a feature that lacks, a self-test that failed, or another one is faster.
    pub reason: String,
}

/// A device with its compiled and tested kernels; clones share it.
#[derive(Clone)]
pub struct Gpu {
    inner: Arc<Inner>,
}

struct Inner {
    handle: Handle,
    limits: wgpu::Limits,
    info: GpuInfo,
    /// Of some shapes: what is compiled once serves all.
    kernels: Kernels,
    pace: Mutex<Pace>,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("info", &self.inner.info).finish_non_exhaustive()
    }
}

impl Gpu {
    /// What there is to open. A browser does not say.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn adapters() -> Vec<AdapterDescription> {
        let adapters = super::wait::block_on(instance().enumerate_adapters(BACKENDS));
        (0..).zip(&adapters).map(|(index, adapter)| describe(index, &adapter.get_info())).collect()
    }

    /// Opens a GPU and tests the variants of the kernels that it can run; of those that
    /// compute correctly the fastest is used. Takes a second or so.
    ///
    /// # Errors
    /// A [`GpuError`]; the CPU then has to do.
    #[cfg_attr(
        target_arch = "wasm32",
        expect(clippy::arc_with_non_send_sync, reason = "a tab's device stays on its thread")
    )]
    pub async fn open(choice: GpuChoice) -> Result<Gpu, GpuError> {
        let adapter = find(choice).await?;
        let described = adapter.get_info();
        let name = adapter_name(&described);
        let is_software = described.device_type == DeviceType::Cpu;
        if is_software && !choice.allow_software {
            return Err(GpuError::Software { name });
        }
        let limits = adapter.limits();
        let request = wgpu::DeviceDescriptor {
            label: Some("engine"),
            // What variants have a use for.
            required_features: adapter.features() & Variant::FEATURES,
            required_limits: limits.clone(),
            experimental_features: wgpu::ExperimentalFeatures::disabled(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            trace: wgpu::Trace::Off,
        };
        let (device, queue) = adapter
            .request_device(&request)
            .await
            .map_err(|error| GpuError::Device { name: name.clone(), reason: error.to_string() })?;
        let handle = Handle::new(device, queue);
        let Chosen { kernels, reason, rejected } = choice::choose(&handle, &name).await?;
        let info = GpuInfo {
            driver: format!("{} {}", described.driver, described.driver_info).trim().to_owned(),
            backend: backend_name(described.backend),
            device_type: type_name(described.device_type).to_owned(),
            is_software,
            variant: kernels.variant().name().to_owned(),
            variant_reason: reason,
            rejected,
            binding_bytes_max: super::buffers::binding_bytes_max(&limits),
            buffer_bytes_max: limits.max_buffer_size,
            name,
        };
        Ok(Gpu {
            inner: Arc::new(Inner { handle, limits, info, kernels, pace: Mutex::new(Pace::new()) }),
        })
    }

    /// What was opened.
    pub fn info(&self) -> &GpuInfo {
        &self.inner.info
    }

    /// Why the device takes no more work, if it does not: then every shard on it is lost,
    /// and it has to be opened again.
    pub fn lost(&self) -> Option<String> {
        self.inner.handle.lost()
    }

    /// Waits until the device has done what it was given. In a browser, giving a busy device
    /// much more blocks the whole worker.
    ///
    /// # Errors
    /// The device is lost; why, in words.
    pub async fn idle(&self) -> Result<(), String> {
        self.inner.handle.idle().await
    }

    /// Gives the device up, for all clones: what a driver's reset does too.
    pub fn destroy(&self) {
        self.inner.handle.device.destroy();
        self.inner.handle.fail("it was given up".to_owned());
    }

    pub(crate) fn limits(&self) -> &wgpu::Limits {
        &self.inner.limits
    }

    /// The kernels for a model's shapes, which a manifest's checks let through.
    pub(crate) fn kernels(&self, shapes: Shapes) -> Kernels {
        self.inner.kernels.for_shapes(shapes)
    }

    /// How fast it is thought to be, by all shards on it. Not to be held over an await.
    pub(crate) fn pace(&self) -> MutexGuard<'_, Pace> {
        self.inner.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.inner.handle
    }
}

/// Where adapters are looked for: not OpenGL, which has no compute worth it.
const BACKENDS: wgpu::Backends = wgpu::Backends::PRIMARY;

fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: BACKENDS,
        flags: wgpu::InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    })
}

#[cfg(target_arch = "wasm32")]
async fn find(choice: GpuChoice) -> Result<wgpu::Adapter, GpuError> {
    if let Some(index @ 1..) = choice.adapter {
        return Err(GpuError::AdapterIndex { index, found: 1 });
    }
    let options = wgpu::RequestAdapterOptions {
        power_preference: wgpu::PowerPreference::HighPerformance,
        ..Default::default()
    };
    instance()
        .request_adapter(&options)
        .await
        .map_err(|error| GpuError::NoAdapter(error.to_string()))
}

#[cfg(not(target_arch = "wasm32"))]
async fn find(choice: GpuChoice) -> Result<wgpu::Adapter, GpuError> {
    let mut adapters = instance().enumerate_adapters(BACKENDS).await;
    let found = adapters.len();
    if let Some(index) = choice.adapter {
        return if (index as usize) < found {
            Ok(adapters.swap_remove(index as usize))
        } else {
            Err(GpuError::AdapterIndex { index, found: found as u32 })
        };
    }
    let rank = |adapter: &wgpu::Adapter| match adapter.get_info().device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    };
    let best = adapters.into_iter().min_by_key(rank);
    best.ok_or_else(|| GpuError::NoAdapter("no driver offers one".to_owned()))
}

#[cfg(not(target_arch = "wasm32"))]
fn describe(index: u32, info: &wgpu::AdapterInfo) -> AdapterDescription {
    AdapterDescription {
        index,
        name: adapter_name(info),
        backend: backend_name(info.backend),
        device_type: type_name(info.device_type).to_owned(),
        is_software: info.device_type == DeviceType::Cpu,
    }
}

fn adapter_name(info: &wgpu::AdapterInfo) -> String {
    match (info.name.as_str(), info.device_type) {
        ("", DeviceType::Cpu) => "the browser's software adapter".to_owned(),
        ("", _) => "the browser's GPU".to_owned(),
        (name, _) => name.to_owned(),
    }
}

fn backend_name(backend: Backend) -> String {
    match backend {
        Backend::Dx12 => "dx12".to_owned(),
        Backend::BrowserWebGpu => "webgpu".to_owned(),
        Backend::Noop | Backend::Vulkan | Backend::Metal | Backend::Gl => {
            format!("{backend:?}").to_ascii_lowercase()
        }
    }
}

fn type_name(device_type: DeviceType) -> &'static str {
    match device_type {
        DeviceType::Other => "other",
        DeviceType::IntegratedGpu => "integrated",
        DeviceType::DiscreteGpu => "discrete",
        DeviceType::VirtualGpu => "virtual",
        DeviceType::Cpu => "software",
    }
}
