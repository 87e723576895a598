//! Small synthetic models, their shards, and what the reference says of them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use engine::{BlobBytes, Class, Input, Isa, Limits, LoadError, Output, Segment, Shard, StepError};
use model::gguf::GgmlType;
use model::manifest::{Architecture, Dims, Role};
use model::testing::TinyModel;
use model::{Gguf, Manifest, MemoryBlobs};
use reference::forward::Forward;

/// KV pages of the shards that these tests load.
pub const PAGES: u32 = 24;

/// A model with its blobs.
pub struct Tiny {
    pub manifest: Manifest,
    pub blobs: BTreeMap<String, BlobBytes>,
    bytes: BTreeMap<String, Vec<u8>>,
}

impl Tiny {
    pub fn new(model: &TinyModel) -> Tiny {
        let file = model.to_bytes();
        let gguf = Gguf::parse(&[&file]).expect("a GGUF file");
        let mut sink = MemoryBlobs::default();
        let manifest = model::convert(&gguf, "tiny", &mut sink).expect("a supported model");
        let share = |bytes: &Vec<u8>| -> BlobBytes { Arc::new(bytes.clone()) };
        let blobs = sink.by_hash.iter().map(|(hash, bytes)| (hash.clone(), share(bytes))).collect();
        Tiny { manifest, blobs, bytes: sink.by_hash }
    }

    pub fn parts(&self) -> u32 {
        self.manifest.parts.len() as u32
    }

    pub fn load(&self, span: Range<u32>, class: Class, limits: Limits) -> Result<Shard, LoadError> {
        Shard::load(&self.manifest, span, class, |hash| self.blobs.get(hash).cloned(), limits)
    }

    pub fn shard(&self, span: Range<u32>, class: Class, isa: Isa, threads: u32) -> Shard {
        let limits = Limits { isa, ..Limits::new(PAGES, threads) };
        self.load(span, class, limits).expect("it loads")
    }

    /// All parts on the best instruction set, one thread.
    pub fn whole(&self, class: Class) -> Shard {
        self.shard(0..self.parts(), class, Isa::best(), 1)
    }

    pub fn reference(&self) -> reference::Model {
        reference::Model::new(&self.manifest, |hash| &self.bytes[hash])
    }

    /// Tokens that look random.
    pub fn tokens(&self, seed: u32, n: usize) -> Vec<u32> {
        let mix = |i: u32| (i + 1).wrapping_mul(2_654_435_761).rotate_left(7 + seed % 13);
        (0..n as u32).map(|i| (mix(i * 31 + seed) >> 8) % self.manifest.dims.vocab).collect()
    }
}

/// What the reference computes for `tokens`.
pub fn expected(model: &reference::Model, class: Class, tokens: &[u32]) -> Forward {
    let class = match class {
        Class::Canonical1 => reference::Class::Canonical1,
        Class::ExactF32 => reference::Class::ExactF32,
        Class::WgslF32 => panic!("the reference computes what a GPU is compared with"),
    };
    reference::forward::forward(model, class, tokens).expect("finite")
}

pub fn segment(session: u64, position: u32, rows: usize) -> Segment {
    Segment { session, position, rows: rows as u32, logits_rows: rows as u32 }
}

/// A step whose output's kind does not matter.
pub fn values(
    shard: &mut Shard,
    segments: &[Segment],
    input: Input<'_>,
) -> Result<Vec<f32>, StepError> {
    shard.step(segments, input).map(|output| match output {
        Output::Hidden(values) | Output::Logits(values) => values,
    })
}

/// Feeds tokens to one session and returns the logits of all of them.
pub fn feed(shard: &mut Shard, session: u64, position: u32, tokens: &[u32]) -> Vec<f32> {
    let segment = segment(session, position, tokens.len());
    values(shard, &[segment], Input::Tokens(tokens)).expect("a sound step")
}

pub fn same_bits(got: &[f32], want: &[Vec<f32>], what: &str) {
    let want: Vec<f32> = want.iter().flatten().copied().collect();
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        assert_eq!(got.to_bits(), want.to_bits(), "{what}: element {i}: {got} and {want}");
    }
}

/// The models that everything is tried on: both families, each tensor type, odd shapes.
pub fn models() -> Vec<(&'static str, Tiny)> {
    let dims = |d_model, heads, kv_heads, head_dim, d_ff, vocab| Dims {
        layers: 2,
        d_model,
        heads,
        kv_heads,
        head_dim,
        d_ff,
        vocab,
        context: 512,
    };
    let untokenised = |tiny: TinyModel| TinyModel { tokenizer: false, ..tiny };
    let q4_1 = |role, _| if role == Role::TokenEmbedding { GgmlType::Q8_0 } else { GgmlType::Q4_1 };
    let mixed = |role, layer| match (role, layer) {
        (Role::TokenEmbedding, _) => GgmlType::Q6K,
        (Role::Output, _) => GgmlType::Q8_0,
        (Role::AttnV | Role::FfnDown, 0) => GgmlType::Q6K,
        (Role::AttnQ | Role::AttnK, _) => GgmlType::Q5_0,
        (Role::AttnOutput, 1) => GgmlType::Q4_0,
        (Role::FfnUp, 1) => GgmlType::F16,
        _ => GgmlType::Q4K,
    };
    let ragged = |role, _| match role {
        Role::TokenEmbedding | Role::FfnGate | Role::AttnV => GgmlType::F16,
        _ => GgmlType::F32,
    };
    let llama = TinyModel::llama(11);
    let qwen2 = TinyModel::qwen2(12);
    vec![
        ("llama, Q4_1, tied Q8_0", Tiny::new(&TinyModel { matrix_type: q4_1, ..llama.clone() })),
        ("qwen2, Q8_0, own head", Tiny::new(&qwen2)),
        (
            "qwen2, all kinds",
            Tiny::new(&untokenised(TinyModel {
                matrix_type: mixed,
                dims: dims(256, 4, 2, 64, 512, 131),
                ..qwen2.clone()
            })),
        ),
        (
            "llama, floats of odd widths",
            Tiny::new(&untokenised(TinyModel {
                matrix_type: ragged,
                dims: dims(42, 3, 1, 14, 50, 37),
                tied: false,
                ..llama.clone()
            })),
        ),
        (
            "llama, Q5_0, 7 query heads per kv head",
            Tiny::new(&untokenised(TinyModel {
                matrix_type: |_, _| GgmlType::Q5_0,
                dims: dims(96, 14, 2, 32, 160, 49),
                architecture: Architecture::Llama,
                ..llama
            })),
        ),
    ]
}
