//! What a model is, as far as a worker needs to know: shapes, and blobs by hash.
//!
//! A manifest is itself a blob (canonical JSON, see [`Manifest::to_bytes`]) and immutable:
//! new weights are a new manifest. A model's *parts* are numbered `0` the embedding,
//! `1..=layers` the layers, `layers + 1` the final norm and head; a shard is a
//! contiguous range of parts.

use serde::{Deserialize, Serialize};

use crate::layout::Layout;

/// Raised when the JSON's meaning changes.
pub const MANIFEST_FORMAT: u32 = 1;

/// One model's shapes and blobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_FORMAT`].
    pub format: u32,
    /// [`crate::layout::LAYOUT_VERSION`].
    pub layout_version: u32,
    /// The name that the operator gave the model.
    pub name: String,
    /// The family that decides the graph.
    pub architecture: Architecture,
    /// Shapes.
    pub dims: Dims,
    /// RMS norm epsilon, as the bits of its f32 (bits, so that JSON cannot change them).
    pub rms_eps_bits: u32,
    /// Rotary position embedding.
    pub rope: Rope,
    /// The parts, `layers + 2` of them: embedding, layers, head.
    pub parts: Vec<Part>,
}

/// Model families that the engine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// llama, SmolLM2, Mistral and their kin.
    Llama,
    /// Qwen2 and Qwen2.5: q/k/v biases, half-split RoPE.
    Qwen2,
}

/// Shapes; the letters are the glossary's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dims {
    /// Number of layers, L.
    pub layers: u32,
    /// Model width, D.
    pub d_model: u32,
    /// Query heads, H.
    pub heads: u32,
    /// Key/value heads, K; divides H.
    pub kv_heads: u32,
    /// Width of one head; even.
    pub head_dim: u32,
    /// Feed-forward width, F.
    pub d_ff: u32,
    /// Vocabulary, V.
    pub vocab: u32,
    /// Longest sequence the model was made for, positions.
    pub context: u32,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rope {
    /// Which elements of a head form pairs.
    pub pairs: RopePairs,
    /// f64 bits of the inverse frequencies, `head_dim / 2` of them, scaling applied; hex
    /// strings, because JSON numbers cannot carry 64 bits.
    #[serde(with = "hex_u64s")]
    pub inv_freq_bits: Vec<u64>,
}

/// Which elements of a head form pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopePairs {
    /// (0, 1), (2, 3), ...: llama files.
    Adjacent,
    /// (0, hd/2), (1, hd/2 + 1), ...: qwen2 files.
    HalfSplit,
}

/// The embedding, one layer, or the head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Where its tensors lie. A tied head names the embedding's blob again.
    pub blobs: Vec<Blob>,
}

/// An immutable piece of weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// BLAKE3 of the bytes, 64 lower-case hex digits.
    pub hash: String,
    /// Length, bytes.
    pub bytes: u64,
    /// What it holds.
    pub tensors: Vec<Tensor>,
}

/// One tensor inside a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tensor {
    /// What it is for.
    pub role: Role,
    /// How its bytes lie.
    pub layout: Layout,
    /// Output rows R; 1 for a vector.
    pub rows: u32,
    /// Input columns C; a vector's length.
    pub cols: u32,
    /// Start inside the blob, a multiple of [`crate::layout::TENSOR_ALIGN`].
    pub offset: u64,
}

/// What a tensor is for. Matrices are `[out, in]`; norms and biases are F32 vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// `[V, D]`, part 0; also the head where they are tied.
    TokenEmbedding,
    /// `[D]`, before attention.
    AttnNorm,
    /// `[H·hd, D]`.
    AttnQ,
    /// `[H·hd]`.
    AttnQBias,
    /// `[K·hd, D]`.
    AttnK,
    /// `[K·hd]`.
    AttnKBias,
    /// `[K·hd, D]`.
    AttnV,
    /// `[K·hd]`.
    AttnVBias,
    /// `[D, H·hd]`.
    AttnOutput,
    /// `[D]`, before the MLP.
    FfnNorm,
    /// `[F, D]`.
    FfnGate,
    /// `[F, D]`.
    FfnUp,
    /// `[D, F]`.
    FfnDown,
    /// `[D]`, last part.
    OutputNorm,
    /// `[V, D]`, last part, where the head is not tied.
    Output,
}

mod hex_u64s {
    use serde::{Deserialize, Deserializer, Serializer, de::Error, ser::SerializeSeq};

    pub fn serialize<S: Serializer>(bits: &[u64], s: S) -> Result<S::Ok, S::Error> {
        let mut seq = s.serialize_seq(Some(bits.len()))?;
        for b in bits {
            seq.serialize_element(&format!("{b:016x}"))?;
        }
        seq.end()
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u64>, D::Error> {
        let texts = Vec::<String>::deserialize(d)?;
        texts.iter().map(|t| u64::from_str_radix(t, 16).map_err(D::Error::custom)).collect()
    }
}

impl Manifest {
    /// The bytes whose BLAKE3 names this manifest: compact JSON, fields in declared order.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest has only strings, numbers and lists")
    }
}
