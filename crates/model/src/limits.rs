//! Bounds on what a model may be. A file or manifest beyond one is refused, never clipped.

/// Layers L.
pub const LAYERS_MAX: u32 = 1024;
/// Model width D.
pub const D_MODEL_MAX: u32 = 1 << 16;
/// Query heads H.
pub const HEADS_MAX: u32 = 1024;
/// Width of one head.
pub const HEAD_DIM_MAX: u32 = 1024;
/// Feed-forward width F.
pub const D_FF_MAX: u32 = 1 << 20;
/// Vocabulary V.
pub const VOCAB_MAX: u32 = 1 << 21;
/// Positions: RoPE's range reduction is exact below this. The one bound that clips: a model
/// made for longer sequences runs up to here.
pub const CONTEXT_MAX: u32 = 131_072;
/// Bytes of a model's name.
pub const NAME_BYTES_MAX: usize = 128;
/// Bytes of a manifest's JSON.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// Problems that one refusal lists by name; the rest are counted.
pub const PROBLEMS_MAX: usize = 24;

/// Parts of one GGUF model.
pub const GGUF_PARTS_MAX: usize = 1024;
/// Metadata entries of one GGUF file.
pub const GGUF_METADATA_MAX: u64 = 1 << 14;
/// Tensors of one GGUF model, all parts together.
pub const GGUF_TENSORS_MAX: u64 = 1 << 16;
/// Bytes of a metadata key (the format's own bound).
pub const GGUF_KEY_BYTES_MAX: u64 = (1 << 16) - 1;
/// Bytes of a metadata string.
pub const GGUF_STRING_BYTES_MAX: u64 = 1 << 24;
/// Elements of a metadata array.
pub const GGUF_ARRAY_MAX: u64 = 1 << 23;
/// Bytes of a tensor's name (the format's own bound).
pub const GGUF_NAME_BYTES_MAX: u64 = 64;
/// Dimensions of a tensor (the format's own bound).
pub const GGUF_DIMS_MAX: u32 = 4;
/// `general.alignment`, bytes.
pub const GGUF_ALIGNMENT_MAX: u32 = 1 << 20;
