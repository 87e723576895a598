//! What kernels work on: matrices and vectors in buffers, shapes, variants.

use model::Layout;

/// Rows of activations lie at a stride of whole vec4s: `width` rounded up to 4 floats.
pub const fn row_stride(width: u32) -> u32 {
    width.next_multiple_of(4)
}

/// A range of a buffer that holds a tensor or some rows of one, in canonical layout.
#[derive(Clone, Debug)]
pub struct Place {
    /// The buffer, with usage `STORAGE`; its size is a multiple of 16.
    pub buffer: wgpu::Buffer,
    /// Where it starts, a multiple of [`model::layout::TENSOR_ALIGN`].
    pub offset_bytes: u64,
}

/// Some rows of a matrix.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Where they lie.
    pub place: Place,
    /// The first of them; a multiple of 16.
    pub first_row: u32,
    /// How many; a multiple of 16, but for the matrix's last piece.
    pub rows: u32,
}

/// A matrix `[rows, cols]`; in several pieces where one would exceed what a kernel can see
/// of a buffer. One piece is one dispatch.
#[derive(Clone, Debug)]
pub struct GpuMatrix {
    /// How the pieces' bytes lie.
    pub layout: Layout,
    /// Output rows R.
    pub rows: u32,
    /// Input columns C.
    pub cols: u32,
    /// Its rows, ascending, without gaps.
    pub pieces: Vec<Piece>,
}

/// A vector of f32: a gain, or biases.
#[derive(Clone, Debug)]
pub struct GpuVector {
    /// Where it lies.
    pub place: Place,
    /// Its length.
    pub len: u32,
}

/// A model's shapes, as far as kernels need them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shapes {
    /// D.
    pub d_model: u32,
    /// H.
    pub heads: u32,
    /// K; divides H.
    pub kv_heads: u32,
    /// hd; even.
    pub head_dim: u32,
    /// F.
    pub d_ff: u32,
    /// V.
    pub vocab: u32,
    /// Which elements of a head RoPE turns together.
    pub pairs: model::manifest::RopePairs,
    /// The RMS norms' epsilon.
    pub rms_eps: f32,
}

/// Which rows a kernel works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rows {
    /// All T rows of the step.
    All,
    /// The T' rows that want logits, already gathered.
    Kept,
}

/// What a product does with its result.
#[derive(Clone, Debug)]
pub enum Epilogue {
    /// `y = W·x`.
    Store,
    /// `y = W·x + b`; `b` starts at element `first` of the vector.
    Bias {
        /// Biases.
        vector: GpuVector,
        /// Where this matrix's begin.
        first: u32,
    },
    /// `y = y + W·x`.
    Add,
}

/// Which instructions the kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// f32, no optional feature, 16 KiB of workgroup memory, 256 invocations: runs on
    /// everything that has WebGPU.
    Base,
    /// Few rows' products add up their lanes through subgroups, of any size from 4 on, and
    /// without waiting where all have 16 invocations. The results are those of `Base`, to the
    /// bit. Not in a browser: wgpu's WebGPU backend has no name for that feature.
    Subgroups,
    /// `Base` for adapters that compute on the CPU: an invocation adds up rows by itself,
    /// without workgroup memory or waiting, with few columns and with many. The results are
    /// those of `Base`, to the bit.
    Serial,
}

impl Variant {
    /// All.
    pub const ALL: [Variant; 3] = [Variant::Base, Variant::Subgroups, Variant::Serial];
    /// What they need of a device beyond every WebGPU, where it has it.
    pub const FEATURES: wgpu::Features = wgpu::Features::SUBGROUP;

    /// Its name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Variant::Base => "base",
            Variant::Subgroups => "subgroups",
            Variant::Serial => "serial",
        }
    }

    /// Invocations of a workgroup of the matrix-vector kernels.
    pub(super) const fn lane_threads(self) -> u32 {
        match self {
            Variant::Base | Variant::Subgroups => 64,
            Variant::Serial => 8,
        }
    }

    /// Why this device does not run it, if it does not.
    pub fn unsupported(self, device: &wgpu::Device) -> Option<String> {
        let device_type = device.adapter_info().device_type;
        if self == Variant::Serial && device_type != wgpu::DeviceType::Cpu {
            return Some("it is for adapters that compute on the CPU".to_owned());
        }
        if self == Variant::Subgroups && !device.features().contains(wgpu::Features::SUBGROUP) {
            return Some(match cfg!(target_arch = "wasm32") {
                true => "wgpu does not offer subgroups in browsers".to_owned(),
                false => "the adapter has no subgroups".to_owned(),
            });
        }
        let limits = device.limits();
        let needs = [
            ("workgroup memory", limits.max_compute_workgroup_storage_size, 16 << 10),
            ("invocations", limits.max_compute_invocations_per_workgroup, 256),
            ("storage buffers", limits.max_storage_buffers_per_shader_stage, 8),
        ];
        let lack = needs.into_iter().find(|(_, has, needs)| has < needs);
        lack.map(|(what, has, needs)| format!("{has} {what}, {} needs {needs}", self.name()))
    }
}

/// The buffers that a pass's rows go through, each `[rows, width]` f32 with rows at
/// [`row_stride`]; the buffers' sizes decide how many rows a pass may have.
#[derive(Clone, Debug)]
pub struct Scratch {
    /// The residual stream `[T, D]`.
    pub hidden: wgpu::Buffer,
    /// Its normed copy `[T, D]`, or `[T', D]` before the head.
    pub normed: wgpu::Buffer,
    /// `[T, H·hd]`.
    pub query: wgpu::Buffer,
    /// `[T, K·hd]`; for passes of many rows.
    pub key: wgpu::Buffer,
    /// `[T, K·hd]`; for passes of many rows.
    pub value: wgpu::Buffer,
    /// Attention's output `[T, H·hd]`.
    pub mixed: wgpu::Buffer,
    /// `[T, F]`.
    pub gate: wgpu::Buffer,
    /// `[T, F]`; for passes of many rows.
    pub up: wgpu::Buffer,
    /// `[T', V]`.
    pub logits: wgpu::Buffer,
    /// Attention of each split; [`super::partials_bytes`].
    pub partials: wgpu::Buffer,
    /// What changes from step to step; [`super::StepData`].
    pub step: wgpu::Buffer,
}
