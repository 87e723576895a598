//! What is accepted, and what is refused with which words.

use super::*;
use crate::limits::CONTEXT_MAX;
use crate::manifest::{Architecture, Dims, RopePairs};
use crate::rope::inverse_frequencies;
use crate::testing::{Entry, GgufWriter, TinyModel};

fn accepted(file: &GgufWriter) -> Config {
    let bytes = file.to_bytes();
    check_supported(&Gguf::parse(&[&bytes]).expect("it parses")).expect("it is supported")
}

fn refused(file: &GgufWriter) -> Unsupported {
    let bytes = file.to_bytes();
    check_supported(&Gguf::parse(&[&bytes]).expect("it parses")).expect_err("not supported")
}

/// One change to a good llama file gives one error that has these words.
fn check_refusal(change: impl FnOnce(&mut GgufWriter), expected: &[&str]) {
    let mut file = TinyModel::llama(1).writer();
    change(&mut file);
    let error = refused(&file).to_string();
    for words in expected {
        assert!(error.contains(words), "no \"{words}\" in: {error}");
    }
}

fn set(key: &'static str, entry: Entry) -> impl FnOnce(&mut GgufWriter) {
    move |file| {
        file.set(key, entry);
    }
}

#[test]
fn both_families_are_read() {
    for (model, pairs) in
        [(TinyModel::llama(1), RopePairs::Adjacent), (TinyModel::qwen2(2), RopePairs::HalfSplit)]
    {
        let config = accepted(&model.writer());
        assert_eq!(config.architecture, model.architecture);
        assert_eq!(config.dims, model.dims);
        assert_eq!(config.rms_eps, model.rms_eps);
        assert_eq!(config.tied, model.tied);
        assert_eq!(config.rope.pairs, pairs);
        let expected = inverse_frequencies(model.rope_base, 16);
        assert!(config.rope.inv_freq().eq(expected));
    }
}

#[test]
fn what_a_file_may_leave_out_has_its_default() {
    let model = TinyModel::llama(1);
    let mut file = model.writer();
    for key in ["attention.key_length", "attention.value_length", "rope.dimension_count"] {
        file.unset(&format!("llama.{key}"));
    }
    file.unset("llama.rope.freq_base");
    assert_eq!(accepted(&file).dims, model.dims);
    assert!(accepted(&file).rope.inv_freq().eq(inverse_frequencies(10_000.0, 16)));
    file.set("llama.context_length", Entry::U64(1 << 20));
    assert_eq!(accepted(&file).dims.context, CONTEXT_MAX);
}

#[test]
fn a_head_width_of_its_own_is_kept() {
    let mut model = TinyModel::llama(1);
    model.dims = Dims { heads: 2, kv_heads: 1, head_dim: 48, ..model.dims };
    assert_eq!(accepted(&model.writer()).dims, model.dims);
}

#[test]
fn features_that_we_lack_are_named() {
    let u32 = Entry::U32;
    check_refusal(set("llama.expert_count", u32(8)), &["experts (MoE)", "llama.expert_count"]);
    check_refusal(set("llama.attention.sliding_window", u32(128)), &["sliding-window"]);
    check_refusal(set("llama.rope.scaling.type", Entry::Str("yarn".into())), &["\"yarn\""]);
    check_refusal(set("llama.logit_scale", Entry::F32(0.5)), &["scaled logits"]);
    check_refusal(set("llama.attention.causal", Entry::Bool(false)), &["not causal"]);
    check_refusal(
        set("general.architecture", Entry::Str("mamba".into())),
        &["architecture \"mamba\" is not supported, only llama and qwen2 are"],
    );
    // Neutral values change nothing.
    let mut file = TinyModel::llama(1).writer();
    file.set("llama.expert_count", u32(0))
        .set("llama.attention.sliding_window", u32(512))
        .set("llama.logit_scale", Entry::F32(1.0))
        .set("llama.rope.scaling.type", Entry::Str("none".into()));
    accepted(&file);
}

#[test]
fn numbers_that_do_not_fit_are_named() {
    let u32 = Entry::U32;
    let kv_heads = "llama.attention.head_count_kv";
    check_refusal(set(kv_heads, u32(3)), &["4 query heads and 3 key/value heads"]);
    check_refusal(set(kv_heads, u32(0)), &["key/value heads 0, expected 1 to"]);
    check_refusal(set(kv_heads, Entry::I32s(vec![2; 3])), &[kv_heads, "one unsigned"]);
    check_refusal(set("llama.attention.key_length", u32(15)), &["head width 15", "even"]);
    check_refusal(set("llama.rope.dimension_count", u32(8)), &["RoPE width 8", "head width 16"]);
    check_refusal(set("llama.block_count", u32(0)), &["layers 0, expected 1 to 1024"]);
    check_refusal(set("llama.block_count", u32(u32::MAX)), &["layers 4294967295"]);
    check_refusal(set("llama.rope.freq_base", Entry::F32(0.5)), &["rope.freq_base", "at least 1"]);
    check_refusal(set("llama.rope.freq_base", Entry::F32(f32::NAN)), &["one finite number"]);
    let eps = "llama.attention.layer_norm_rms_epsilon";
    check_refusal(set(eps, Entry::F32(-1.0)), &[eps, "(0, 1)"]);
    check_refusal(
        set("tokenizer.ggml.tokens", Entry::Strs(vec!["a".into()])),
        &["1 tokens and an embedding of 288 rows"],
    );
}

#[test]
fn everything_that_is_missing_is_in_one_error() {
    check_refusal(
        |file| {
            file.unset("llama.feed_forward_length").unset("llama.context_length");
            file.tensor_mut("blk.1.ffn_up.weight").ggml_type = GgmlType::Other(11);
            file.tensor_mut("blk.2.ffn_up.weight").ggml_type = GgmlType::Other(11);
            file.tensor_mut("blk.2.ffn_gate.weight").ggml_type = GgmlType::Other(9999);
        },
        &[
            "\"llama.feed_forward_length\" is missing",
            "\"llama.context_length\" is missing",
            "Q3_K is not supported (2 tensors, the first \"blk.1.ffn_up.weight\")",
            "number 9999",
        ],
    );
    check_refusal(
        |file| {
            file.remove_tensor("blk.0.attn_q.weight").remove_tensor("output_norm.weight");
        },
        &["\"blk.0.attn_q.weight\" is missing", "\"output_norm.weight\" is missing"],
    );
    let mut empty = GgufWriter::default();
    assert_eq!(refused(&empty).problems.len(), 1);
    empty.set("general.architecture", Entry::Str("qwen2".into()));
    assert!(refused(&empty).problems.len() >= 6);
}

#[test]
fn a_long_list_of_problems_is_cut_and_counted() {
    let mut file = TinyModel::llama(1).writer();
    file.set("llama.block_count", Entry::U32(13));
    let error = refused(&file);
    assert_eq!((error.problems.len(), error.more), (PROBLEMS_MAX, 10 * 9 - PROBLEMS_MAX));
    assert!(error.to_string().ends_with("and 66 more"));
}

#[test]
fn tensors_of_other_shapes_and_places_are_refused() {
    check_refusal(
        |file| file.tensor_mut("blk.0.ffn_up.weight").dims = vec![96, 64],
        &["\"blk.0.ffn_up.weight\" is [96, 64], expected [64, 96]"],
    );
    check_refusal(
        |file| file.tensor_mut("blk.0.attn_norm.weight").dims = vec![32, 2],
        &["\"blk.0.attn_norm.weight\" is [32, 2], expected [64]"],
    );
    check_refusal(
        |file| {
            file.tensor("blk.0.attn_q.bias", &[64], GgmlType::F32, vec![0; 256]);
        },
        &["\"blk.0.attn_q.bias\" has no place in the llama graph"],
    );
    check_refusal(
        |file| {
            let norm = file.tensor_mut("output_norm.weight");
            (norm.ggml_type, norm.data) = (GgmlType::Q8_0, vec![0; 68]);
        },
        &["\"output_norm.weight\" is Q8_0, expected F32 or F16"],
    );
    let mut qwen2 = TinyModel::qwen2(1).writer();
    qwen2.remove_tensor("blk.1.attn_k.bias");
    assert!(refused(&qwen2).to_string().contains("\"blk.1.attn_k.bias\" is missing"));
}

#[test]
fn trailing_ones_do_not_matter() {
    let mut file = TinyModel::llama(1).writer();
    file.tensor_mut("blk.0.attn_norm.weight").dims = vec![64, 1];
    file.tensor_mut("blk.0.ffn_up.weight").dims = vec![64, 96, 1];
    accepted(&file);
}

fn scaled(change: impl FnOnce(&mut GgufWriter)) -> Vec<f64> {
    let mut file = TinyModel::llama(1).writer();
    change(&mut file);
    let config = accepted(&file);
    assert_eq!(config.architecture, Architecture::Llama);
    config.rope.inv_freq().collect()
}

#[test]
fn linear_scaling_divides() {
    let plain = inverse_frequencies(10_000.0, 16);
    let eighth: Vec<f64> = plain.iter().map(|f| f / 8.0).collect();
    let factor = |file: &mut GgufWriter| {
        file.set("llama.rope.scaling.factor", Entry::F32(8.0));
    };
    assert_eq!(scaled(factor), eighth);
    let typed = |file: &mut GgufWriter| {
        file.set("llama.rope.scaling.type", Entry::Str("linear".into()));
        factor(file);
    };
    assert_eq!(scaled(typed), eighth);
    assert_eq!(scaled(set("llama.rope.scale_linear", Entry::F32(8.0))), eighth);
    let off = |file: &mut GgufWriter| {
        file.set("llama.rope.scaling.type", Entry::Str("none".into()));
        factor(file);
    };
    assert_eq!(scaled(off), plain);
    // Faster turning than one radian a position is beyond what RoPE's reduction promises.
    check_refusal(set("llama.rope.scaling.factor", Entry::F32(0.5)), &["in (0, 1]"]);
}

#[test]
fn llama3_factors_divide() {
    let plain = inverse_frequencies(10_000.0, 16);
    let factors: Vec<f32> = (1..=8).map(|i| i as f32).collect();
    let data: Vec<u8> = factors.iter().flat_map(|f| f.to_le_bytes()).collect();
    let tensor = |file: &mut GgufWriter| {
        file.tensor(ROPE_FREQS, &[8], GgmlType::F32, data.clone());
    };
    let divided: Vec<f64> = plain.iter().zip(&factors).map(|(f, by)| f / f64::from(*by)).collect();
    assert_eq!(scaled(tensor), divided);
    check_refusal(
        |file| {
            file.tensor(ROPE_FREQS, &[4], GgmlType::F32, vec![0; 16]);
        },
        &["rope_freqs.weight", "expected F32 [8]"],
    );
    check_refusal(
        |file| {
            file.tensor(ROPE_FREQS, &[8], GgmlType::F32, vec![0; 32]);
        },
        &["in (0, 1]"],
    );
}

#[test]
fn llama3_parameters_give_the_published_factors() {
    // Llama 3.2's: high frequencies stay, low ones are divided by 32, between them smooth.
    let parameters = |file: &mut GgufWriter| {
        let key = |name: &str| format!("llama.rope.scaling.{name}");
        file.set(&key("type"), Entry::Str("llama3".into()))
            .set(&key("factor"), Entry::F32(32.0))
            .set(&key("low_freq_factor"), Entry::F32(1.0))
            .set(&key("high_freq_factor"), Entry::F32(4.0))
            .set(&key("original_context_length"), Entry::U32(8192));
    };
    let plain = inverse_frequencies(10_000.0, 16);
    let ours = scaled(parameters);
    let mut kinds = [0; 3];
    for (plain, ours) in plain.iter().zip(&ours) {
        let wavelength = std::f64::consts::TAU / plain;
        let divisor = plain / ours;
        let kind = if wavelength < 8192.0 / 4.0 {
            assert_eq!(divisor, 1.0);
            0
        } else if wavelength > 8192.0 {
            assert_eq!(divisor, 32.0);
            2
        } else {
            assert!(divisor > 1.0 && divisor < 32.0);
            1
        };
        kinds[kind] += 1;
    }
    // Base 1e4 at 8 pairs: wavelengths 6.28·10^(i/2), 6.28e3 in the middle, 1.99e4 beyond.
    assert_eq!(kinds, [6, 1, 1]);
    check_refusal(
        |file| {
            parameters(file);
            file.unset("llama.rope.scaling.low_freq_factor");
        },
        &["\"llama.rope.scaling.low_freq_factor\" is missing"],
    );
}
