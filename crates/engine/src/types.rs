//! The engine's interface in data: classes, segments, inputs, outputs, errors.

/// In which numerics a shard computes; hashes are compared only within one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// 8-bit activations, f16 KV cache: the default.
    Canonical1,
    /// f32 activations and KV cache.
    ExactF32,
}

impl Class {
    /// The name used on the wire and in flags.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Canonical1 => "canonical-1",
            Class::ExactF32 => "exact-f32",
        }
    }

    /// The class of that name.
    pub fn from_name(name: &str) -> Option<Class> {
        [Class::Canonical1, Class::ExactF32].into_iter().find(|c| c.name() == name)
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepError {
    /// The input's length or kind does not fit the segments and the shard.
    Shape(String),
    /// A segment starts beyond what the session's cache holds.
    Gap { session: u64, position: u32, held: u32 },
    /// No free KV page is left; nothing was computed.
    KvFull { session: u64, pages_needed: u32, pages_free: u32 },
    /// A value reached infinity or NaN: the session is over.
    NumericFault { session: u64, position: u32 },
    /// A token id at or above V.
    Token { session: u64, token: u32, vocab: u32 },
}
