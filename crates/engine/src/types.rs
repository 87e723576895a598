//! The engine's interface in data: classes, limits, segments, inputs, outputs, errors.

use std::sync::Arc;

use model::manifest::Role;

/// In which numerics a shard computes; hashes are compared only within one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// 8-bit activations, f16 KV cache: the default.
    Canonical1,
    /// f32 activations and KV cache.
    ExactF32,
    /// f32 activations, f16 KV cache, on a GPU: bits depend on the device, not on what else
    /// is in a step.
    WgslF32,
}

impl Class {
    /// The name used on the wire and in flags.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Canonical1 => "canonical-1",
            Class::ExactF32 => "exact-f32",
            Class::WgslF32 => "wgsl-f32",
        }
    }

    /// The class of that name.
    pub fn from_name(name: &str) -> Option<Class> {
        [Class::Canonical1, Class::ExactF32, Class::WgslF32].into_iter().find(|c| c.name() == name)
    }
}

/// A blob's bytes as the caller holds them: read, or mapped. Verified by the caller.
pub type BlobBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// What a shard may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// KV pages of [`crate::PAGE_POSITIONS`] positions that may exist at once, over all
    /// sessions; each is allocated when it is first needed. See [`crate::kv_page_bytes`].
    pub kv_pages_max: u32,
    /// Threads that compute, the caller's included; 0 counts as 1.
    pub threads: u32,
    /// The instruction set; all give the same bits.
    pub isa: crate::Isa,
}

impl Limits {
    /// That many pages and threads, on the best instruction set this machine has.
    pub fn new(kv_pages_max: u32, threads: u32) -> Limits {
        Limits { kv_pages_max, threads, isa: crate::Isa::best() }
    }
}

/// Rows of one session inside a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The session whose KV cache is read and appended to.
    pub session: u64,
    /// Position of the first row. KV beyond it is dropped first; a gap is an error.
    pub position: u32,
    /// Rows T of this segment, at least 1.
    pub rows: u32,
    /// How many trailing rows want logits (only where the shard holds the head; a shard
    /// without the head ignores it and returns every row's hidden state).
    pub logits_rows: u32,
}

/// A step's input, the segments' rows one after the other.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Token ids `[ΣT]`, for a shard that holds the embedding.
    Tokens(&'a [u32]),
    /// Hidden state `[ΣT, D]` f32, row-major.
    Hidden(&'a [f32]),
}

/// A step's output.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Hidden state `[ΣT, D]` f32, row-major, from a shard without the head.
    Hidden(Vec<f32>),
    /// Logits `[Σ logits_rows, V]` f32, row-major.
    Logits(Vec<f32>),
}

/// Why a step did not run. The shard is as it was, except that KV past a segment's
/// `position` may be gone: the step can be sent again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The input's length or kind does not fit the segments and the shard.
    #[error("the step does not fit the shard: {0}")]
    Shape(String),
    /// A segment starts beyond what the session's cache holds.
    #[error(
        "session {session} starts at position {position}, but only {held} are held here: replay it from {held}"
    )]
    Gap {
        /// The session.
        session: u64,
        /// Where the segment, or the fork's prefix, would start.
        position: u32,
        /// Positions that the cache holds.
        held: u32,
    },
    /// No free KV page is left; nothing was computed.
    #[error(
        "the KV cache is full: session {session} needs {pages_needed} more pages, {pages_free} are free: release a session first"
    )]
    KvFull {
        /// The first session that did not fit.
        session: u64,
        /// Pages that it needs on top of what it has.
        pages_needed: u32,
        /// Pages left for it.
        pages_free: u32,
    },
    /// A value reached infinity or NaN: the session is over.
    #[error(
        "session {session} overflowed at position {position}: its numbers left the range of f32 or f16"
    )]
    NumericFault {
        /// The session.
        session: u64,
        /// Position of the row.
        position: u32,
    },
    /// A token id at or above V.
    #[error("session {session} has token {token}, but the vocabulary ends at {vocab}")]
    Token {
        /// The session.
        session: u64,
        /// The token id.
        token: u32,
        /// V.
        vocab: u32,
    },
    /// The device failed or was lost; this shard takes no more steps.
    #[error("the GPU failed: {0}")]
    Device(String),
    /// The ranks of a tensor group could not exchange; this shard takes no more steps.
    #[error("the tensor group is broken: {0}")]
    Exchange(crate::tensor::ExchangeError),
}

/// Why a shard cannot be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The span is empty or reaches past the model's parts.
    #[error("parts {start}..{end} are no span of a model of {parts} parts")]
    Span {
        /// First part asked for.
        start: u32,
        /// One past the last.
        end: u32,
        /// Parts of the model: layers + 2.
        parts: u32,
    },
    /// The manifest contradicts itself or is of another version.
    #[error("the manifest cannot be run: {0}")]
    Manifest(String),
    /// A part lacks a tensor.
    #[error("part {part} has no tensor {role:?}")]
    TensorMissing {
        /// The part.
        part: u32,
        /// What is missing.
        role: Role,
    },
    /// A tensor's shape, layout or place is impossible.
    #[error("tensor {role:?} of part {part}: {reason}")]
    Tensor {
        /// The part.
        part: u32,
        /// Which tensor.
        role: Role,
        /// What is wrong with it.
        reason: String,
    },
    /// The caller has no bytes for a blob.
    #[error("blob {hash} is not here: fetch it first")]
    BlobMissing {
        /// Its hash.
        hash: String,
    },
    /// A blob's length differs from the manifest's.
    #[error("blob {hash} has {got} bytes, the manifest says {expected}")]
    BlobLength {
        /// Its hash.
        hash: String,
        /// Bytes according to the manifest.
        expected: u64,
        /// Bytes given.
        got: u64,
    },
    /// This backend does not compute in that class.
    #[error("a CPU shard does not compute in class {class}: load it on a GPU")]
    Class {
        /// The class's name.
        class: &'static str,
    },
    /// The device has no room for a buffer, or not for one so large.
    #[error("the GPU has no room for {what} ({bytes} bytes): {reason}")]
    OutOfMemory {
        /// What was to be kept there.
        what: String,
        /// Its size, or that of the largest piece.
        bytes: u64,
        /// What the device said.
        reason: String,
    },
    /// A blob's pieces did not arrive in order, or not all of them.
    #[error("blob {hash}: {reason}")]
    BlobPieces {
        /// Its hash.
        hash: String,
        /// Which bytes were expected and which came.
        reason: String,
    },
    /// The device failed or was lost.
    #[error("the GPU failed: {0}")]
    Device(String),
    /// The system gives no more memory.
    #[error("no memory for {bytes} bytes of weights: {reason}")]
    Memory {
        /// Bytes asked for.
        bytes: u64,
        /// What the system said.
        reason: String,
    },
    /// The layers cannot be divided so among the ranks of a tensor group.
    #[error("no tensor group: {0}")]
    Division(#[from] model::tensor::DivisionError),
    /// A rank that its group does not have.
    #[error("rank {rank} of a tensor group of {ranks}")]
    Rank {
        /// The rank.
        rank: usize,
        /// Ranks of the group, from 0.
        ranks: usize,
    },
    /// Only layers are divided among ranks.
    #[error(
        "a tensor group computes layers only: parts {start}..{end} have the embedding or the head"
    )]
    Ends {
        /// First part asked for.
        start: u32,
        /// One past the last.
        end: u32,
    },
    /// A compute thread would round otherwise than NUMERICS.md wants.
    #[error(
        "this thread's floating-point mode is changed ({0}): canonical results need round-to-nearest with subnormals kept"
    )]
    FloatEnvironment(String),
}
