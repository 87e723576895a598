//! Compiled kernels: one pipeline per kernel and choice of its overrides, made when it is
//! first needed.

use std::sync::{Mutex, PoisonError};

use litemap::LiteMap;
use shaders::{Access, Kernel};

/// A kernel's overrides and their values.
pub(super) type Choice<'a> = &'a [(&'static str, u32)];

/// Pipelines by kernel and choice; the kernels' modules and layouts.
pub(super) struct Pipelines {
    device: wgpu::Device,
    made: Mutex<Made>,
    #[cfg(all(feature = "testing", not(target_arch = "wasm32")))]
    edit: Option<Edit>,
}

/// Another text for a kernel of this name and text.
#[cfg(all(feature = "testing", not(target_arch = "wasm32")))]
type Edit = Box<dyn Fn(&str, &str) -> String + Send + Sync>;

/// A kernel's name and its choice.
type PipelineKey = (&'static str, Vec<(&'static str, u32)>);

#[derive(Default)]
struct Made {
    modules: LiteMap<&'static str, (wgpu::ShaderModule, wgpu::BindGroupLayout)>,
    pipelines: LiteMap<PipelineKey, wgpu::ComputePipeline>,
}

impl Pipelines {
    pub(super) fn new(device: &wgpu::Device) -> Pipelines {
        Pipelines {
            device: device.clone(),
            made: Mutex::default(),
            #[cfg(all(feature = "testing", not(target_arch = "wasm32")))]
            edit: None,
        }
    }

    #[cfg(all(feature = "testing", not(target_arch = "wasm32")))]
    pub(super) fn edited(
        device: &wgpu::Device,
        edit: impl Fn(&str, &str) -> String + Send + Sync + 'static,
    ) -> Pipelines {
        Pipelines { edit: Some(Box::new(edit)), ..Pipelines::new(device) }
    }

    pub(super) fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// The pipeline of a kernel with these overrides, and its bind group's layout.
    pub(super) fn get(
        &self,
        kernel: &'static Kernel,
        choice: Choice<'_>,
    ) -> (wgpu::ComputePipeline, wgpu::BindGroupLayout) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let (module, layout) = made
            .modules
            .entry(kernel.name)
            .or_insert_with(|| (self.module(kernel), self.layout(kernel)))
            .clone();
        let pipeline = made
            .pipelines
            .entry((kernel.name, choice.to_vec()))
            .or_insert_with(|| self.compile(kernel, &module, &layout, choice))
            .clone();
        (pipeline, layout)
    }

    fn module(&self, kernel: &Kernel) -> wgpu::ShaderModule {
        #[cfg(all(feature = "testing", not(target_arch = "wasm32")))]
        if let Some(edit) = &self.edit {
            return self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(kernel.name),
                source: wgpu::ShaderSource::Wgsl(edit(kernel.name, &kernel.source()).into()),
            });
        }
        self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(kernel.name),
            source: wgpu::ShaderSource::Wgsl(kernel.source().into()),
        })
    }

    fn layout(&self, kernel: &Kernel) -> wgpu::BindGroupLayout {
        let entries: Vec<_> = kernel
            .bindings
            .iter()
            .map(|binding| wgpu::BindGroupLayoutEntry {
                binding: binding.number,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: match binding.access {
                        Access::Uniform => wgpu::BufferBindingType::Uniform,
                        Access::Read => wgpu::BufferBindingType::Storage { read_only: true },
                        Access::ReadWrite => wgpu::BufferBindingType::Storage { read_only: false },
                    },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(kernel.name),
            entries: &entries,
        })
    }

    fn compile(
        &self,
        kernel: &Kernel,
        module: &wgpu::ShaderModule,
        layout: &wgpu::BindGroupLayout,
        choice: Choice<'_>,
    ) -> wgpu::ComputePipeline {
        let layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(kernel.name),
            bind_group_layouts: &[Some(layout)],
            immediate_size: 0,
        });
        let constants: Vec<(&str, f64)> =
            choice.iter().map(|&(name, value)| (name, f64::from(value))).collect();
        self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: Some(&layout),
            module,
            entry_point: Some(kernel.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                // Every kernel writes its workgroup memory before it reads it.
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        })
    }
}
