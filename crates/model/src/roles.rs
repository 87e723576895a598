//! Which tensors each part of a model has, their shapes, and their names in GGUF.

use crate::limits::{
    CONTEXT_MAX, D_FF_MAX, D_MODEL_MAX, HEAD_DIM_MAX, HEADS_MAX, LAYERS_MAX, VOCAB_MAX,
};
use crate::manifest::{Architecture, Dims, Role};

const LLAMA_LAYER: [Role; 9] = [
    Role::AttnNorm,
    Role::AttnQ,
    Role::AttnK,
    Role::AttnV,
    Role::AttnOutput,
    Role::FfnNorm,
    Role::FfnGate,
    Role::FfnUp,
    Role::FfnDown,
];

const QWEN2_LAYER: [Role; 12] = [
    Role::AttnNorm,
    Role::AttnQ,
    Role::AttnQBias,
    Role::AttnK,
    Role::AttnKBias,
    Role::AttnV,
    Role::AttnVBias,
    Role::AttnOutput,
    Role::FfnNorm,
    Role::FfnGate,
    Role::FfnUp,
    Role::FfnDown,
];

impl Architecture {
    /// The name in GGUF's `general.architecture`, and the prefix of its metadata keys.
    pub const fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
        }
    }

    /// The architecture of that name.
    pub fn from_name(name: &str) -> Option<Architecture> {
        [Architecture::Llama, Architecture::Qwen2].into_iter().find(|a| a.name() == name)
    }

    /// The tensors of a layer, in the order of its blob.
    pub const fn layer_roles(self) -> &'static [Role] {
        match self {
            Architecture::Llama => &LLAMA_LAYER,
            Architecture::Qwen2 => &QWEN2_LAYER,
        }
    }
}

impl Role {
    /// `(R, C)`: output rows and input columns; a vector is `(1, length)`. Within
    /// [`crate::limits`] the products do not overflow.
    pub fn shape(self, dims: &Dims) -> (u32, u32) {
        let q = dims.heads * dims.head_dim;
        let kv = dims.kv_heads * dims.head_dim;
        match self {
            Role::TokenEmbedding | Role::Output => (dims.vocab, dims.d_model),
            Role::AttnNorm | Role::FfnNorm | Role::OutputNorm => (1, dims.d_model),
            Role::AttnQ => (q, dims.d_model),
            Role::AttnQBias => (1, q),
            Role::AttnK | Role::AttnV => (kv, dims.d_model),
            Role::AttnKBias | Role::AttnVBias => (1, kv),
            Role::AttnOutput => (dims.d_model, q),
            Role::FfnGate | Role::FfnUp => (dims.d_ff, dims.d_model),
            Role::FfnDown => (dims.d_model, dims.d_ff),
        }
    }

    /// True for norms and biases, which are F32 vectors.
    pub const fn is_vector(self) -> bool {
        match self {
            Role::AttnNorm
            | Role::FfnNorm
            | Role::OutputNorm
            | Role::AttnQBias
            | Role::AttnKBias
            | Role::AttnVBias => true,
            Role::TokenEmbedding
            | Role::AttnQ
            | Role::AttnK
            | Role::AttnV
            | Role::AttnOutput
            | Role::FfnGate
            | Role::FfnUp
            | Role::FfnDown
            | Role::Output => false,
        }
    }

    /// The tensor's name in a GGUF file; `layer` counts from 0 and matters only to the
    /// roles of a layer.
    pub fn gguf_name(self, layer: u32) -> String {
        let name = match self {
            Role::TokenEmbedding => return "token_embd.weight".to_owned(),
            Role::OutputNorm => return "output_norm.weight".to_owned(),
            Role::Output => return "output.weight".to_owned(),
            Role::AttnNorm => "attn_norm.weight",
            Role::AttnQ => "attn_q.weight",
            Role::AttnQBias => "attn_q.bias",
            Role::AttnK => "attn_k.weight",
            Role::AttnKBias => "attn_k.bias",
            Role::AttnV => "attn_v.weight",
            Role::AttnVBias => "attn_v.bias",
            Role::AttnOutput => "attn_output.weight",
            Role::FfnNorm => "ffn_norm.weight",
            Role::FfnGate => "ffn_gate.weight",
            Role::FfnUp => "ffn_up.weight",
            Role::FfnDown => "ffn_down.weight",
        };
        format!("blk.{layer}.{name}")
    }
}

impl Dims {
    /// Checks every number against [`crate::limits`] and against each other; says which
    /// does not fit.
    ///
    /// # Errors
    /// One sentence with the number and what is expected.
    pub fn check(&self) -> Result<(), String> {
        for (what, got, max) in [
            ("layers", self.layers, LAYERS_MAX),
            ("model width", self.d_model, D_MODEL_MAX),
            ("query heads", self.heads, HEADS_MAX),
            ("key/value heads", self.kv_heads, HEADS_MAX),
            ("head width", self.head_dim, HEAD_DIM_MAX),
            ("feed-forward width", self.d_ff, D_FF_MAX),
            ("vocabulary", self.vocab, VOCAB_MAX),
            ("context", self.context, CONTEXT_MAX),
        ] {
            if got == 0 || got > max {
                return Err(format!("{what} {got}, expected 1 to {max}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let (heads, kv_heads) = (self.heads, self.kv_heads);
            return Err(format!(
                "{heads} query heads and {kv_heads} key/value heads, expected a multiple"
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("head width {}, expected an even number", self.head_dim));
        }
        Ok(())
    }
}
