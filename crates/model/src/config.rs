//! From GGUF metadata to shapes, epsilon and RoPE.

use crate::check::{Problem, Problems};
use crate::gguf::{GgmlType, Gguf, Value};
use crate::limits::CONTEXT_MAX;
use crate::manifest::{Architecture, Dims, Role, Rope, RopePairs};
use crate::rope::inverse_frequencies;

/// Llama 3's factors of the inverse frequencies: `[hd / 2]` F32.
pub(crate) const ROPE_FREQS: &str = "rope_freqs.weight";
/// `rope.freq_base` where a file does not say (llama.cpp's default).
const ROPE_BASE_DEFAULT: f32 = 10_000.0;

/// What a model is, as far as its graph needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The family that decides the graph.
    pub architecture: Architecture,
    /// Shapes.
    pub dims: Dims,
    /// RMS norm epsilon.
    pub rms_eps: f32,
    /// Rotary position embedding, scaling applied.
    pub rope: Rope,
    /// True if the embedding is also the head.
    pub tied: bool,
}

/// Reads the metadata under the architecture's prefix, noting problems.
struct Keys<'g, 'a> {
    gguf: &'g Gguf<'a>,
    prefix: &'static str,
}

impl<'a> Keys<'_, 'a> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.gguf.get(&self.name(key))
    }

    /// An optional entry; one that does not `read` is a problem.
    fn optional<T>(
        &self,
        problems: &mut Problems,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&Value<'a>) -> Option<T>,
    ) -> Option<T> {
        let value = self.get(key)?;
        let read = read(value);
        if read.is_none() {
            problems.add(Problem::Metadata { key: self.name(key), expected });
        }
        read
    }

    fn u32(&self, problems: &mut Problems, key: &str) -> Option<u32> {
        self.optional(problems, key, "one unsigned 32-bit number", Value::as_u32)
    }

    fn f32(&self, problems: &mut Problems, key: &str) -> Option<f32> {
        let finite = |v: &Value<'_>| v.as_f32().filter(|x| x.is_finite());
        self.optional(problems, key, "one finite number", finite)
    }

    fn required<T>(&self, problems: &mut Problems, key: &str, read: Option<T>) -> Option<T> {
        if self.get(key).is_none() {
            problems.add(Problem::MissingMetadata { key: self.name(key) });
        }
        read
    }

    fn required_u32(&self, problems: &mut Problems, key: &str) -> Option<u32> {
        let read = self.u32(problems, key);
        self.required(problems, key, read)
    }
}

impl Config {
    /// Reads the configuration, noting every problem; `None` where a problem leaves
    /// nothing to go on with.
    pub(crate) fn read(gguf: &Gguf<'_>, problems: &mut Problems) -> Option<Config> {
        let Some(name) = gguf.get_str("general.architecture") else {
            problems.add(Problem::MissingMetadata { key: "general.architecture".to_owned() });
            return None;
        };
        let Some(architecture) = Architecture::from_name(name) else {
            problems.add(Problem::Architecture { got: shorten(name) });
            return None;
        };
        let keys = Keys { gguf, prefix: architecture.name() };
        let dims = read_dims(&keys, problems);
        let rms_eps = read_eps(&keys, problems);
        refuse_features(&keys, problems, dims.as_ref());
        let rope = dims.and_then(|dims| read_rope(&keys, problems, architecture, &dims));
        let tied = gguf.tensor(&Role::Output.gguf_name(0)).is_none();
        Some(Config { architecture, dims: dims?, rms_eps: rms_eps?, rope: rope?, tied })
    }
}

/// At most 64 characters of a file's string, for messages.
fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

fn read_dims(keys: &Keys<'_, '_>, problems: &mut Problems) -> Option<Dims> {
    let layers = keys.required_u32(problems, "block_count");
    let d_model = keys.required_u32(problems, "embedding_length");
    let heads = keys.required_u32(problems, "attention.head_count");
    let d_ff = keys.required_u32(problems, "feed_forward_length");
    let context = keys.required_u32(problems, "context_length");
    let kv_heads = keys.u32(problems, "attention.head_count_kv").or(heads);
    let key_length = keys.u32(problems, "attention.key_length");
    let value_length = keys.u32(problems, "attention.value_length").or(key_length);
    let rope_dims = keys.u32(problems, "rope.dimension_count");
    let vocab = read_vocab(keys.gguf, problems);

    let (d_model, heads) = (d_model?, heads?);
    let head_dim = match key_length {
        Some(length) => length,
        None if heads > 0 && d_model.is_multiple_of(heads) => d_model / heads,
        None => {
            let what = format!("model width {d_model} that {heads} heads do not divide, without a");
            problems.add(Problem::Shapes { what: format!("{what} attention.key_length") });
            return None;
        }
    };
    for (what, width) in [("attention.value_length", value_length), ("RoPE width", rope_dims)] {
        if let Some(got) = width.filter(|width| *width != head_dim) {
            let what = format!("{what} {got}, expected the head width {head_dim}");
            problems.add(Problem::Shapes { what });
        }
    }
    let context = context?.min(CONTEXT_MAX);
    let (layers, kv_heads, d_ff, vocab) = (layers?, kv_heads?, d_ff?, vocab?);
    let dims = Dims { layers, d_model, heads, kv_heads, head_dim, d_ff, vocab, context };
    match dims.check() {
        Ok(()) => Some(dims),
        Err(what) => {
            problems.add(Problem::Shapes { what });
            None
        }
    }
}

/// The vocabulary is what the embedding has rows for, and the tokenizer must agree.
fn read_vocab(gguf: &Gguf<'_>, problems: &mut Problems) -> Option<u32> {
    let name = Role::TokenEmbedding.gguf_name(0);
    let Some(embedding) = gguf.tensor(&name) else {
        problems.add(Problem::MissingTensor { name });
        return None;
    };
    let rows = embedding.dims().get(1).copied().unwrap_or(0);
    if let Some(tokens) = gguf.get_str_array("tokenizer.ggml.tokens")
        && tokens.len() as u64 != rows
    {
        let what = format!("{} tokens and an embedding of {rows} rows", tokens.len());
        problems.add(Problem::Shapes { what });
    }
    u32::try_from(rows).ok()
}

fn read_eps(keys: &Keys<'_, '_>, problems: &mut Problems) -> Option<f32> {
    let key = "attention.layer_norm_rms_epsilon";
    let eps = keys.f32(problems, key);
    let eps = keys.required(problems, key, eps)?;
    if eps > 0.0 && eps < 1.0 {
        return Some(eps);
    }
    problems.add(Problem::Metadata { key: keys.name(key), expected: "a number in (0, 1)" });
    None
}

/// Refuses what would change the graph and what we do not compute.
fn refuse_features(keys: &Keys<'_, '_>, problems: &mut Problems, dims: Option<&Dims>) {
    let mut refuse = |key: &str, feature: &'static str, neutral: &dyn Fn(&Value<'_>) -> bool| {
        if keys.get(key).is_some_and(|value| !neutral(value)) {
            problems.add(Problem::Feature { feature, key: keys.name(key) });
        }
    };
    let zero = |v: &Value<'_>| v.as_u64() == Some(0) || v.as_f32() == Some(0.0);
    let one = |v: &Value<'_>| v.as_f32() == Some(1.0);
    refuse("expert_count", "experts (MoE)", &zero);
    refuse("expert_used_count", "experts (MoE)", &zero);
    refuse("attention.sliding_window", "sliding-window attention", &|v| {
        let wide = |window| dims.is_some_and(|d| window >= u64::from(d.context));
        v.as_u64().is_some_and(|window| window == 0 || wide(window))
    });
    refuse("attention.causal", "attention that is not causal", &|v| v.as_bool() == Some(true));
    refuse("attention.clamp_kqv", "clamped q, k and v", &zero);
    refuse("attention.max_alibi_bias", "ALiBi", &zero);
    refuse("attn_logit_softcapping", "soft-capped attention", &zero);
    refuse("final_logit_softcapping", "soft-capped logits", &zero);
    refuse("attention.scale", "another attention scale", &zero);
    refuse("logit_scale", "scaled logits", &one);
    refuse("embedding_scale", "scaled embeddings", &one);
    refuse("residual_scale", "scaled residuals", &one);
    refuse("use_parallel_residual", "parallel residuals", &|v| v.as_bool() == Some(false));
    refuse("pooling_type", "pooled embeddings", &zero);
    refuse("rope.scaling.attn_factor", "attention scaled by RoPE", &one);
    refuse("rope.scaling.yarn_log_multiplier", "YaRN", &zero);
}

fn read_rope(
    keys: &Keys<'_, '_>,
    problems: &mut Problems,
    architecture: Architecture,
    dims: &Dims,
) -> Option<Rope> {
    let base = keys.f32(problems, "rope.freq_base").unwrap_or(ROPE_BASE_DEFAULT);
    if base < 1.0 {
        let key = keys.name("rope.freq_base");
        problems.add(Problem::Metadata { key, expected: "a number that is at least 1" });
        return None;
    }
    let mut inv_freq = inverse_frequencies(base, dims.head_dim);
    let divisors = read_scaling(keys, problems, &inv_freq)?;
    for (frequency, divisor) in inv_freq.iter_mut().zip(divisors) {
        *frequency /= divisor;
    }
    let pairs = match architecture {
        Architecture::Llama => RopePairs::Adjacent,
        Architecture::Qwen2 => RopePairs::HalfSplit,
    };
    let rope = Rope::new(pairs, &inv_freq);
    if rope.is_none() {
        let what = "RoPE frequencies after scaling, expected all in (0, 1]".to_owned();
        problems.add(Problem::Shapes { what });
    }
    rope
}

/// What the inverse frequencies are divided by.
fn read_scaling(
    keys: &Keys<'_, '_>,
    problems: &mut Problems,
    inv_freq: &[f64],
) -> Option<Vec<f64>> {
    let kind = keys.optional(problems, "rope.scaling.type", "a string", Value::as_str);
    let factor = keys.f32(problems, "rope.scaling.factor");
    let old_factor = keys.f32(problems, "rope.scale_linear");
    let mut divisors = match kind {
        Some("none") => vec![1.0; inv_freq.len()],
        // As llama.cpp reads it: linear where no type is given, and 0 means unscaled.
        None | Some("linear") => {
            let factor = factor.or(old_factor).filter(|f| *f != 0.0).unwrap_or(1.0);
            vec![f64::from(factor); inv_freq.len()]
        }
        // Files made by llama.cpp carry the factors as a tensor and no type.
        Some("llama3") if keys.gguf.tensor(ROPE_FREQS).is_some() => vec![1.0; inv_freq.len()],
        Some("llama3") => read_llama3(keys, problems, factor, inv_freq)?,
        Some(other) => {
            problems.add(Problem::RopeScaling { got: shorten(other) });
            return None;
        }
    };
    if let Some(tensor) = keys.gguf.tensor(ROPE_FREQS) {
        if tensor.ggml_type != GgmlType::F32 || tensor.dims() != [inv_freq.len() as u64] {
            problems.add(Problem::Tensor {
                name: ROPE_FREQS.to_owned(),
                got: format!("{} {:?}", tensor.ggml_type, tensor.dims()),
                expected: format!("F32 [{}]", inv_freq.len()),
            });
            return None;
        }
        for (divisor, bytes) in divisors.iter_mut().zip(tensor.data().chunks_exact(4)) {
            *divisor *= f64::from(f32::from_le_bytes(bytes.try_into().expect("4 bytes")));
        }
    }
    Some(divisors)
}

/// Llama 3's rule where a file gives its parameters instead of the factors: wavelengths
/// below `original / high` stay, those above `original / low` are divided by `factor`, and
/// between them 1/divisor goes smoothly from 1 to 1/factor. All in f64.
fn read_llama3(
    keys: &Keys<'_, '_>,
    problems: &mut Problems,
    factor: Option<f32>,
    inv_freq: &[f64],
) -> Option<Vec<f64>> {
    let factor = keys.required(problems, "rope.scaling.factor", factor);
    let mut number = |key: &str| {
        let read = keys.f32(problems, key);
        keys.required(problems, key, read).map(f64::from)
    };
    let low = number("rope.scaling.low_freq_factor");
    let high = number("rope.scaling.high_freq_factor");
    let original = keys.required_u32(problems, "rope.scaling.original_context_length");
    let (factor, low, high) = (f64::from(factor?), low?, high?);
    let original = f64::from(original?);
    if !(factor >= 1.0 && low > 0.0 && high > low) {
        let what = format!("Llama-3 RoPE scaling with factor {factor}, low {low}, high {high}");
        problems.add(Problem::Shapes { what });
        return None;
    }
    let divisor = |frequency: &f64| {
        let turns = original * frequency / std::f64::consts::TAU;
        if turns > high {
            1.0
        } else if turns < low {
            factor
        } else {
            let smooth = (turns - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    Some(inv_freq.iter().map(divisor).collect())
}
