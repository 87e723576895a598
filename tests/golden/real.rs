//! The real models as the golden tests use them.
#![allow(dead_code, reason = "each test program uses its part of it")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use engine::tensor::{Exchange, TensorShare};
use engine::{BlobBytes, Class, Limits, LoadError, Shard};
use model::{Gguf, Manifest, MemoryBlobs};
use text::TokenizerData;

/// A converted model in memory.
pub struct Model {
    manifest: Manifest,
    blobs: BTreeMap<String, BlobBytes>,
}

impl Model {
    pub fn open(path: &Path) -> Model {
        let file = std::fs::read(path).expect("the model's file");
        let gguf = Gguf::parse(&[&file]).expect("a GGUF file");
        let mut sink = MemoryBlobs::default();
        let manifest = model::convert(&gguf, "golden", &mut sink).expect("a supported model");
        let share = |bytes: Vec<u8>| -> BlobBytes { Arc::new(bytes) };
        let blobs = sink.by_hash.into_iter().map(|(hash, bytes)| (hash, share(bytes))).collect();
        Model { manifest, blobs }
    }

    pub fn parts(&self) -> u32 {
        self.manifest.parts.len() as u32
    }

    pub fn shard(&self, span: Range<u32>, class: Class, threads: u32) -> Shard {
        let blobs = |hash: &str| self.blobs.get(hash).cloned();
        Shard::load(&self.manifest, span, class, blobs, Limits::new(16, threads)).expect("it loads")
    }
}

impl Model {
    /// A rank's shard of the layers.
    pub fn rank(
        &self,
        class: Class,
        share: &TensorShare,
        link: Box<dyn Exchange>,
    ) -> Result<Shard, LoadError> {
        let blobs = |hash: &str| self.blobs.get(hash).cloned();
        let (span, limits) = (1..self.parts() - 1, Limits::new(16, 1));
        Shard::load_rank(&self.manifest, span, class, blobs, limits, share, link)
    }
}

/// A file's tokenizer, as the coordinator reads it.
pub fn tokenizer_data(path: &Path) -> TokenizerData {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let gguf = Gguf::parse(&[&bytes]).unwrap();
    let strings = |key: &str| -> Vec<String> {
        gguf.get_str_array(key).map(|array| array.map(str::to_owned).collect()).unwrap_or_default()
    };
    TokenizerData {
        model: gguf.get_str("tokenizer.ggml.model").unwrap().to_owned(),
        pre: gguf.get_str("tokenizer.ggml.pre").map(str::to_owned),
        tokens: strings("tokenizer.ggml.tokens"),
        token_types: gguf
            .get_i32_array("tokenizer.ggml.token_type")
            .map(|array| array.collect())
            .unwrap_or_default(),
        scores: gguf
            .get_f32_array("tokenizer.ggml.scores")
            .map(|array| array.collect())
            .unwrap_or_default(),
        merges: strings("tokenizer.ggml.merges"),
        bos: gguf.get_u32("tokenizer.ggml.bos_token_id"),
        eos: gguf.get_u32("tokenizer.ggml.eos_token_id"),
        eot: gguf.get_u32("tokenizer.ggml.eot_token_id"),
        eom: gguf.get_u32("tokenizer.ggml.eom_token_id"),
        unknown: gguf.get_u32("tokenizer.ggml.unknown_token_id"),
        padding: gguf.get_u32("tokenizer.ggml.padding_token_id"),
        add_bos: gguf.get_bool("tokenizer.ggml.add_bos_token"),
        add_eos: gguf.get_bool("tokenizer.ggml.add_eos_token"),
        add_space_prefix: gguf.get_bool("tokenizer.ggml.add_space_prefix"),
        chat_template: gguf.get_str("tokenizer.chat_template").map(str::to_owned),
    }
}
