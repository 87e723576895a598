//! The real default model, and which instruction sets were found.
//!
//! An emulator takes a fifth of a second per token, so that only the prompts and eight tokens
//! behind each are computed in `canonical-1`, and the shortest prompt in `exact-f32`.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::{BlobBytes, Class, Input, Isa, Limits, Output, Segment, Shard};
use model::{Gguf, Manifest, MemoryBlobs};
use numerics::choice::argmax;
use serde_json::Value;

/// The sets that this processor must turn out to have, as Rust's debug form of them.
const ISAS_ENV: &str = "WEFT_EXPECT_ISAS";
/// The folder of test models.
const MODELS_ENV: &str = "WEFT_TEST_MODELS";
const GOLDEN: &[u8] = include_bytes!("../../golden/canonical1_smollm2.json");
/// KV pages: the longest prompt has 200 tokens.
const PAGES: u32 = 8;

#[test]
fn the_processor_has_the_expected_instruction_sets() {
    let found = format!("{:?}", Isa::available());
    println!("instruction sets: {found}");
    match std::env::var(ISAS_ENV) {
        Ok(expected) => assert_eq!(found, expected),
        Err(_) => println!("SKIPPED: {ISAS_ENV} does not say what this processor has"),
    }
}

#[test]
fn the_real_model_meets_its_hashes() {
    let folder = std::env::var(MODELS_ENV).expect("WEFT_TEST_MODELS names the models' folder");
    let path = std::path::Path::new(&folder).join("smollm2-135m.gguf");
    let file = std::fs::read(&path).expect("the default model's file");
    let gguf = Gguf::parse(&[&file]).expect("a GGUF file");
    let mut sink = MemoryBlobs::default();
    let manifest = model::convert(&gguf, "golden", &mut sink).expect("a supported model");
    let share = |bytes: Vec<u8>| -> BlobBytes { Arc::new(bytes) };
    let blobs: BTreeMap<String, BlobBytes> =
        sink.by_hash.into_iter().map(|(hash, bytes)| (hash, share(bytes))).collect();
    let golden: Value = serde_json::from_slice(GOLDEN).expect("JSON");
    let mut cases: Vec<&Value> = golden["cases"].as_array().expect("cases").iter().collect();
    cases.sort_by_key(|case| case["prompt_tokens"].as_array().map(Vec::len));
    for case in &cases {
        meet(&manifest, &blobs, Class::Canonical1, case, 8);
    }
    meet(&manifest, &blobs, Class::ExactF32, cases[0], 0);
}

/// Meets the hash after the prompt, and the one after 8 more tokens if `more` is that.
fn meet(
    manifest: &Manifest,
    blobs: &BTreeMap<String, BlobBytes>,
    class: Class,
    case: &Value,
    more: usize,
) {
    let (id, want) = (&case["id"], &case[class.name()]);
    let span = 0..manifest.parts.len() as u32;
    let limits = Limits::new(PAGES, 2);
    let mut shard = Shard::load(manifest, span, class, |hash| blobs.get(hash).cloned(), limits)
        .expect("it loads");
    let mut tokens: Vec<u32> = case["prompt_tokens"]
        .as_array()
        .expect("a list of token ids")
        .iter()
        .map(|id| id.as_u64().expect("a token id") as u32)
        .collect();
    let mut logits = feed(&mut shard, 0, &tokens);
    assert_eq!(hash(&logits), want["hash_prompt"], "{} {id}", class.name());
    for _ in 0..more {
        tokens.push(argmax(&logits).expect("a vocabulary") as u32);
        let last = tokens.len() - 1;
        logits = feed(&mut shard, last as u32, &tokens[last..]);
    }
    if more == 8 {
        assert_eq!(hash(&logits), want["hash_after_8"], "{} {id}", class.name());
    }
}

/// Feeds `tokens` from `position` on; the last one's logits.
fn feed(shard: &mut Shard, position: u32, tokens: &[u32]) -> Vec<f32> {
    let segment = Segment { session: 1, position, rows: tokens.len() as u32, logits_rows: 1 };
    match shard.step(&[segment], Input::Tokens(tokens)).expect("a sound step") {
        Output::Logits(logits) => logits,
        Output::Hidden(_) => panic!("the shard has the head"),
    }
}

/// FNV-1a 64 over the little-endian bits of all logits.
fn hash(logits: &[f32]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in logits.iter().flat_map(|x| x.to_bits().to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:016x}")
}
