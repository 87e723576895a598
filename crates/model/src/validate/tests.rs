//! A coordinator that lies is found out.

use super::*;
use crate::blobs::NoBlobs;
use crate::manifest::{Dims, RopePairs};
use crate::testing::TinyModel;
use crate::{Gguf, convert};

fn manifest(model: &TinyModel) -> Manifest {
    let file = model.to_bytes();
    convert(&Gguf::parse(&[&file]).expect("it parses"), "tiny", &mut NoBlobs).expect("it converts")
}

#[test]
fn its_own_bytes_are_read_back() {
    for model in [TinyModel::llama(1), TinyModel::qwen2(2)] {
        let manifest = manifest(&model);
        let bytes = manifest.to_bytes();
        assert_eq!(Manifest::from_bytes(&bytes).expect("its own bytes"), manifest);
        assert_eq!(manifest.rms_eps(), model.rms_eps);
    }
}

#[test]
fn helpers_count_bytes() {
    let manifest = manifest(&TinyModel::qwen2(1));
    assert_eq!(manifest.head_part(), 4);
    // K and V, 2 heads of 16, 2 or 4 bytes.
    assert_eq!(manifest.kv_bytes_per_position(KvType::F16), 128);
    assert_eq!(manifest.kv_bytes_per_position(KvType::F32), 256);
    let all: u64 = (0..5).map(|part| manifest.part_bytes(part)).sum();
    assert_eq!(manifest.span_bytes(0..5), all);
    assert_eq!(manifest.span_bytes(2..2), 0);
    // V 288 rows of 64 columns in Q8: 18 tiles of 2 cells.
    assert_eq!(manifest.part_bytes(0), 18 * 2 * 544);
}

/// One change makes it a lie.
fn check_lie(what: &str, change: impl FnOnce(&mut Manifest)) {
    let mut lie = manifest(&TinyModel::qwen2(1));
    change(&mut lie);
    let error = Manifest::from_bytes(&lie.to_bytes()).expect_err("a lie").to_string();
    assert!(error.contains(what), "no \"{what}\" in: {error}");
}

#[test]
fn lies_about_the_model_are_found() {
    check_lie("format is 2", |m| m.format = 2);
    check_lie("layout version is 9", |m| m.layout_version = 9);
    check_lie("name", |m| m.name = String::new());
    check_lie("epsilon", |m| m.rms_eps_bits = f32::NAN.to_bits());
    check_lie("layers 4294967295", |m| m.dims.layers = u32::MAX);
    check_lie("model width 0", |m| m.dims.d_model = 0);
    check_lie("feed-forward width", |m| m.dims.d_ff = u32::MAX);
    check_lie("a multiple", |m| m.dims.kv_heads = 3);
    check_lie("7 RoPE frequencies", |m| m.rope.inv_freq_bits.truncate(7));
    check_lie("outside (0, 1]", |m| m.rope.inv_freq_bits[3] = f64::INFINITY.to_bits());
    check_lie("6 parts, expected 5", |m| m.parts.push(m.parts[1].clone()));
    check_lie("3 parts", |m| m.parts.truncate(3));
    check_lie("5 parts, expected 6", |m| m.dims.layers = 4);
}

#[test]
fn lies_about_parts_are_found() {
    check_lie("part 1 has 0 blobs", |m| m.parts[1].blobs.clear());
    check_lie("part 4 has 1 blobs, expected 2", |m| m.parts[4].blobs.truncate(1));
    check_lie("part 2 has the tensors", |m| m.parts[2].blobs[0].tensors.swap(0, 1));
    check_lie("part 2 has the tensors", |m| {
        m.parts[2].blobs[0].tensors.pop();
    });
    check_lie("part 4 has the tensors", |m| m.parts[4].blobs.swap(0, 1));
    check_lie("part 0 has the tensors", |m| m.parts[0] = m.parts[1].clone());
    // An embedding as the head only if it is the embedding's own blob.
    check_lie("part 4 has the tensors", |m| {
        m.parts[4].blobs[1] = m.parts[0].blobs[0].clone();
        m.parts[4].blobs[1].hash = "0".repeat(64);
    });
}

#[test]
fn lies_about_blobs_are_found() {
    let layer = |m: &mut Manifest| m.parts[1].blobs[0].clone();
    let with = |change: fn(&mut Blob)| {
        move |m: &mut Manifest| {
            let mut blob = layer(m);
            change(&mut blob);
            m.parts[1].blobs[0] = blob;
        }
    };
    check_lie("hex digits", with(|b| b.hash.make_ascii_uppercase()));
    check_lie("hex digits", with(|b| b.hash.push('0')));
    check_lie("hex digits", with(|b| b.hash = "é".repeat(32)));
    check_lie("its tensors take", with(|b| b.bytes += 1));
    check_lie("its tensors take", with(|b| b.bytes = u64::MAX));
    check_lie("other offsets", with(|b| b.tensors[3].offset += 64));
    check_lie("other offsets", with(|b| b.tensors[3].offset = u64::MAX - 63));
    check_lie("rows and columns", with(|b| b.tensors[1].rows += 1));
    check_lie("rows and columns", with(|b| b.tensors[1].cols = 0));
    check_lie("as F16, expected F32", with(|b| b.tensors[0].layout = Layout::F16));
    check_lie("whole number of its cells", with(|b| b.tensors[1].layout = Layout::Q4K));
    check_lie("elsewhere it has", |m| m.parts[2].blobs[0].hash = m.parts[0].blobs[0].hash.clone());
}

#[test]
fn only_the_canonical_form_is_read() {
    let good = manifest(&TinyModel::llama(1)).to_bytes();
    let text = String::from_utf8(good.clone()).expect("JSON");
    let refused = |text: &str| Manifest::from_bytes(text.as_bytes()).expect_err("not canonical");
    let spaced = text.replacen(':', ": ", 1);
    assert!(matches!(refused(&spaced), ManifestError::NotCanonical { at: 10 }));
    let frequency = "3ff0000000000000";
    assert!(text.contains(frequency));
    for other in ["3FF0000000000000", "+3ff0000000000000"] {
        let other = text.replacen(frequency, other, 1);
        assert!(matches!(refused(&other), ManifestError::NotCanonical { .. }));
    }
    let more = text.replacen('{', "{\"more\":1,", 1);
    assert!(matches!(refused(&more), ManifestError::Json(_)));
    assert!(matches!(refused(&text[..text.len() - 1]), ManifestError::Json(_)));
    let huge = " ".repeat(MANIFEST_BYTES_MAX + 1);
    assert!(matches!(refused(&huge), ManifestError::TooLarge { .. }));
    let deep = "[".repeat(1 << 20);
    assert!(matches!(refused(&deep), ManifestError::Json(_)));
}

#[test]
fn the_largest_model_is_within_the_manifests_bound() {
    let model = manifest(&TinyModel::qwen2(1));
    let layer = model.parts[1].clone();
    let mut largest = model;
    largest.dims = Dims { layers: crate::limits::LAYERS_MAX, ..largest.dims };
    largest.rope.inv_freq_bits = vec![u64::MAX; crate::limits::HEAD_DIM_MAX as usize / 2];
    largest.rope.pairs = RopePairs::HalfSplit;
    let mut layer = layer;
    for tensor in &mut layer.blobs[0].tensors {
        (tensor.rows, tensor.cols, tensor.offset) = (u32::MAX, u32::MAX, u64::MAX);
    }
    largest.parts = vec![layer; crate::limits::LAYERS_MAX as usize + 2];
    assert!(largest.to_bytes().len() < MANIFEST_BYTES_MAX);
}
