//! The GPU kernels' launcher: a model's tensors and buffers become [`Op`]s, made once at
//! load and recorded for every step.
//!
//! An op chooses by the step's shape how it is computed: few rows through matrix-vector
//! kernels with everything fused that can be, many rows through tiled ones. A row's bits do
//! not depend on that choice, nor on what else is in the step: the shaders' headers define
//! one order of summation for each op.
//!
//! A decoding step takes per layer: norm; q|k|v with RoPE and append; attention; its splits
//! combined (from the second split on); output with the residual added; norm; gate|up with
//! SwiGLU; down with the residual added: 8 dispatches.

mod attention;
mod lab;
mod op;
mod pipelines;
mod products;
mod readback;
mod rows;
mod self_test;
mod step;
mod types;

pub mod cases;
#[cfg(feature = "testing")]
pub mod measure;

pub use attention::{kv_page_words, partials_bytes};
pub use op::Op;
pub use self_test::self_test;
pub use step::{StepData, StepRow, StepShape};
pub use types::*;

use std::sync::Arc;

use model::Layout;
use shaders::Kernel;

use op::{Dispatch, Groups, Way};
use pipelines::{Choice, Pipelines};

/// Steps of up to so many rows go through the matrix-vector kernels.
pub const MATVEC_ROWS_MAX: u32 = 16;

/// The kernels of one device, in one variant, for one model's shapes.
pub struct Kernels {
    pipelines: Arc<Pipelines>,
    variant: Variant,
    shapes: Shapes,
}

impl Kernels {
    /// Kernels on a device; they are compiled when an op first needs them.
    ///
    /// # Panics
    /// If the shapes are none that a manifest's checks let through.
    #[cfg_attr(
        target_arch = "wasm32",
        expect(clippy::arc_with_non_send_sync, reason = "a tab's device stays on its thread")
    )]
    pub fn new(device: &wgpu::Device, variant: Variant, shapes: Shapes) -> Kernels {
        check(&shapes);
        Kernels { pipelines: Arc::new(Pipelines::new(device)), variant, shapes }
    }

    /// Kernels whose texts are what `edit` makes of a kernel's name and text: broken ones, on
    /// which a test tries the self-test.
    ///
    /// # Panics
    /// As [`Kernels::new`].
    #[cfg(all(feature = "testing", not(target_arch = "wasm32")))]
    pub fn edited(
        device: &wgpu::Device,
        variant: Variant,
        shapes: Shapes,
        edit: impl Fn(&str, &str) -> String + Send + Sync + 'static,
    ) -> Kernels {
        check(&shapes);
        Kernels { pipelines: Arc::new(Pipelines::edited(device, edit)), variant, shapes }
    }

    /// The same kernels for another model, which shares what was compiled.
    ///
    /// # Panics
    /// As [`Kernels::new`].
    pub fn for_shapes(&self, shapes: Shapes) -> Kernels {
        check(&shapes);
        Kernels { pipelines: self.pipelines.clone(), variant: self.variant, shapes }
    }

    /// Another variant of them, which shares what was compiled.
    pub fn for_variant(&self, variant: Variant) -> Kernels {
        Kernels { pipelines: self.pipelines.clone(), variant, shapes: self.shapes }
    }

    /// Which instructions they use.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// The model's shapes.
    pub fn shapes(&self) -> &Shapes {
        &self.shapes
    }

    /// A dispatch of a kernel with its buffers.
    fn dispatch(
        &self,
        kernel: &'static Kernel,
        choice: Choice<'_>,
        params: &[u8],
        buffers: &[(u32, wgpu::BindingResource<'_>)],
        grid: [Groups; 3],
    ) -> Dispatch {
        let device = self.pipelines.device();
        let (pipeline, layout) = self.pipelines.get(kernel, choice);
        let uniform = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(kernel.name),
            size: params.len() as u64,
            usage: wgpu::BufferUsages::UNIFORM,
            mapped_at_creation: true,
        });
        if let Ok(mut view) = uniform.slice(..).get_mapped_range_mut() {
            view.copy_from_slice(params);
        }
        uniform.unmap();
        let mut entries =
            vec![wgpu::BindGroupEntry { binding: PARAMS, resource: uniform.as_entire_binding() }];
        entries.extend(buffers.iter().map(|(binding, resource)| wgpu::BindGroupEntry {
            binding: *binding,
            resource: resource.clone(),
        }));
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(kernel.name),
            layout: &layout,
            entries: &entries,
        });
        Dispatch { pipeline, bind_group, grid }
    }

    /// The range of a buffer that a kernel sees as words of 16 bytes, and where in it the
    /// `bytes` at `place` start, in bytes: ranges must start where the device allows it.
    fn bind<'a>(&self, place: &'a Place, bytes: u64) -> (wgpu::BindingResource<'a>, u64) {
        let align = u64::from(self.pipelines.device().limits().min_storage_buffer_offset_alignment);
        let start = place.offset_bytes / align * align;
        let end = (place.offset_bytes + bytes).next_multiple_of(16).min(place.buffer.size());
        let binding = wgpu::BufferBinding {
            buffer: &place.buffer,
            offset: start,
            size: std::num::NonZeroU64::new(end - start),
        };
        (wgpu::BindingResource::Buffer(binding), place.offset_bytes - start)
    }

    /// A piece of a matrix: its binding, and where it starts in that, in vec4s.
    fn bind_piece<'a>(
        &self,
        matrix: &GpuMatrix,
        piece: &'a Piece,
    ) -> (wgpu::BindingResource<'a>, u32) {
        let bytes = matrix
            .layout
            .matrix_bytes_u64(piece.rows, matrix.cols)
            .expect("a matrix's columns divide into its layout's cells");
        let (resource, start) = self.bind(&piece.place, bytes);
        (resource, (start / 16) as u32)
    }

    /// A vector: its binding, and where it starts in that, in elements.
    fn bind_vector<'a>(&self, vector: &'a GpuVector) -> (wgpu::BindingResource<'a>, u32) {
        let (resource, start) = self.bind(&vector.place, 4 * u64::from(vector.len));
        (resource, (start / 4) as u32)
    }
}

fn check(shapes: &Shapes) {
    assert!(shapes.kv_heads > 0 && shapes.heads.is_multiple_of(shapes.kv_heads));
    assert!(shapes.head_dim > 0 && shapes.head_dim.is_multiple_of(2));
}

/// The binding of every kernel's uniform.
const PARAMS: u32 = shaders::matvec::bindings::PARAMS;

/// The shaders' number of a layout.
const fn layout_number(layout: Layout) -> u32 {
    use shaders::matvec as m;
    match layout {
        Layout::Q4S => m::Q4S,
        Layout::Q4M => m::Q4M,
        Layout::Q4K => m::Q4K,
        Layout::Q5S => m::Q5S,
        Layout::Q6K => m::Q6K,
        Layout::Q8 => m::Q8,
        Layout::F16 => m::F16,
        Layout::F32 => m::F32,
    }
}

/// An op of one way for all steps.
fn always(rows: Rows, dispatches: Vec<Dispatch>) -> Op {
    Op { rows, ways: vec![any_shape(dispatches)] }
}

/// A way that fits all steps.
fn any_shape(dispatches: Vec<Dispatch>) -> Way {
    Way { rows_max: u32::MAX, keys_max: u32::MAX, dispatches }
}

/// A way for steps of few rows.
fn few_rows(rows_max: u32, dispatches: Vec<Dispatch>) -> Way {
    Way { rows_max, keys_max: u32::MAX, dispatches }
}
