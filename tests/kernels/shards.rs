//! Shards against the reference: classes, instruction sets, threads, splits.

use engine::{Class, Input, Isa, Limits, LoadError, kv_page_bytes};
use model::manifest::Role;
use model::testing::TinyModel;

use crate::tiny::{PAGES, Tiny, expected, feed, models, same_bits, segment, values};

const CLASSES: [Class; 2] = [Class::Canonical1, Class::ExactF32];

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn whole_models_equal_the_reference() {
    for (name, tiny) in models() {
        let model = tiny.reference();
        let tokens = tiny.tokens(1, 140);
        for class in CLASSES {
            let want = expected(&model, class, &tokens);
            for isa in Isa::available() {
                for threads in [1, 2, 3] {
                    let mut shard = tiny.shard(0..tiny.parts(), class, isa, threads);
                    let got = feed(&mut shard, 1, 0, &tokens);
                    let what = format!("{name}, {class:?}, {isa:?}, {threads} threads");
                    same_bits(&got, &want.logits, &what);
                    assert_eq!(shard.positions(1), 140);
                    assert_eq!(shard.kv_pages_free(), PAGES - 3);
                }
            }
        }
    }
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn every_split_gives_the_reference_s_boundaries() {
    for (name, tiny) in models() {
        let model = tiny.reference();
        let tokens = tiny.tokens(2, 70);
        let segments = [segment(1, 0, tokens.len())];
        for class in CLASSES {
            let want = expected(&model, class, &tokens);
            for cut in 1..tiny.parts() {
                let mut first = tiny.shard(0..cut, class, Isa::best(), 1);
                let mut second = tiny.shard(cut..tiny.parts(), class, Isa::best(), 2);
                let what = format!("{name}, {class:?}, cut at {cut}");
                let boundary =
                    values(&mut first, &segments, Input::Tokens(&tokens)).expect("a sound step");
                same_bits(&boundary, &want.boundaries[cut as usize - 1], &what);
                let logits =
                    values(&mut second, &segments, Input::Hidden(&boundary)).expect("a sound step");
                same_bits(&logits, &want.logits, &what);
            }
            // Each part by itself.
            let mut row = None;
            for part in 0..tiny.parts() {
                let mut shard = tiny.shard(part..part + 1, class, Isa::best(), 1);
                let input = row.as_deref().map_or(Input::Tokens(&tokens), Input::Hidden);
                row = Some(values(&mut shard, &segments, input).expect("a sound step"));
            }
            same_bits(&row.expect("parts"), &want.logits, name);
        }
    }
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn ends_alone_keep_no_cache_and_take_any_position() {
    let tiny = Tiny::new(&TinyModel::qwen2(4));
    let tokens = tiny.tokens(3, 5);
    let mut embedding = tiny.shard(0..1, Class::Canonical1, Isa::best(), 1);
    let far = [segment(9, 4_000_000_000, 5)];
    let hidden = values(&mut embedding, &far, Input::Tokens(&tokens)).expect("a sound step");
    assert_eq!((embedding.positions(9), embedding.kv_pages_free()), (0, PAGES));
    let mut head = tiny.shard(tiny.parts() - 1..tiny.parts(), Class::Canonical1, Isa::best(), 1);
    let logits = values(&mut head, &far, Input::Hidden(&hidden)).expect("a sound step");
    assert_eq!(logits.len(), 5 * tiny.manifest.dims.vocab as usize);
    assert_eq!(head.fork(1, 2, 77), Ok(()));
    head.truncate(1, 0);
    head.release(1);
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn the_plan_of_a_model_is_as_written() {
    let tiny = Tiny::new(&TinyModel::qwen2(5));
    let shard = tiny.shard(2..5, Class::Canonical1, Isa::best(), 1);
    let layer = |i: u32| {
        format!(
            "\
Normed = norm Hidden, {i}.AttnNorm
blocks = quantise Normed
product Normed: Query = {i}.AttnQ + {i}.AttnQBias, Key = {i}.AttnK + {i}.AttnKBias, Value = {i}.AttnV + {i}.AttnVBias
rope Query
rope Key
kv[{i}] append Key, Value
Mixed = attention Query, kv[{i}]
blocks = quantise Mixed
product Mixed: Branch = {i}.AttnOutput
Hidden += Branch
Normed = norm Hidden, {i}.FfnNorm
blocks = quantise Normed
product Normed: Gate = {i}.FfnGate, Up = {i}.FfnUp
Gate = silu(Gate) * Up
blocks = quantise Gate
product Gate: Branch = {i}.FfnDown
Hidden += Branch
"
        )
    };
    let head = "\
check Hidden
select rows that want logits
Normed = norm Hidden, OutputNorm
blocks = quantise Normed
product Normed: Logits = Output
check Logits
";
    assert_eq!(shard.plan(), layer(0) + &layer(1) + head);
    let exact = tiny.shard(0..2, Class::ExactF32, Isa::best(), 1);
    let plan = exact.plan();
    assert!(plan.starts_with("Hidden = embed TokenEmbedding\nNormed = norm Hidden, 0.AttnNorm\n"));
    assert!(!plan.contains("quantise"), "exact-f32 quantises nothing:\n{plan}");
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn what_cannot_be_loaded_is_named() {
    let tiny = Tiny::new(&TinyModel::llama(6));
    let load = |tiny: &Tiny, span| tiny.load(span, Class::Canonical1, Limits::new(4, 1)).err();
    let parts = tiny.parts();
    for (start, end) in [(0, parts + 1), (2, 2), (parts, parts)] {
        assert_eq!(load(&tiny, start..end), Some(LoadError::Span { start, end, parts }));
    }
    let hash = tiny.manifest.parts[1].blobs[0].hash.clone();
    let without = |change: &dyn Fn(&mut Tiny)| {
        let mut tiny = Tiny::new(&TinyModel::llama(6));
        change(&mut tiny);
        load(&tiny, 0..parts)
    };
    let missing = without(&|tiny| drop(tiny.blobs.remove(&hash)));
    assert_eq!(missing, Some(LoadError::BlobMissing { hash: hash.clone() }));
    let short = without(&|tiny| {
        tiny.blobs.insert(hash.clone(), std::sync::Arc::new(vec![0; 12]));
    });
    let expected = tiny.manifest.parts[1].blobs[0].bytes;
    assert_eq!(short, Some(LoadError::BlobLength { hash: hash.clone(), expected, got: 12 }));
    let version = without(&|tiny| tiny.manifest.layout_version += 1);
    assert!(matches!(version, Some(LoadError::Manifest(_))), "{version:?}");
    let role = without(&|tiny| tiny.manifest.parts[1].blobs[0].tensors[0].role = Role::FfnUp);
    assert!(matches!(role, Some(LoadError::Manifest(_))), "{role:?}");
    let offset = without(&|tiny| tiny.manifest.parts[1].blobs[0].tensors[1].offset = u64::MAX - 63);
    assert!(matches!(offset, Some(LoadError::Manifest(_))), "{offset:?}");
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn page_bytes_count_the_span_s_layers() {
    let tiny = Tiny::new(&TinyModel::llama(7)); // 3 layers, 2 kv heads of 16
    let bytes = |span, class| kv_page_bytes(&tiny.manifest, span, class);
    assert_eq!(bytes(0..5, Class::Canonical1), 3 * 64 * 2 * 2 * 16 * 2);
    assert_eq!(bytes(2..3, Class::ExactF32), 64 * 2 * 2 * 16 * 4);
    assert_eq!(bytes(0..1, Class::Canonical1), 0);
    assert_eq!(bytes(4..5, Class::Canonical1), 0);
}
