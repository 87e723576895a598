//! A real model in the module's memory: goldens and measurements.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::{BlobBytes, Class, Input, Isa, Limits, Output, Segment, Shard};
use model::{Gguf, Manifest, MemoryBlobs};
use numerics::choice::argmax;
use serde_json::Value;

/// KV pages: 16 sessions of a page, or one of 1024 positions.
const PAGES: u32 = 16;
/// Rows of a prefill that go in one step.
const CHUNK: u32 = 256;

/// The converted file, and the shard that was loaded last.
pub struct Real {
    manifest: Manifest,
    blobs: BTreeMap<String, BlobBytes>,
    shard: Option<Shard>,
    /// What session 1 holds, and its next token.
    position: u32,
    next: u32,
}

impl Real {
    pub fn open(file: Vec<u8>) -> Real {
        let mut sink = MemoryBlobs::default();
        let manifest = {
            let gguf = Gguf::parse(&[&file]).expect("a GGUF file");
            model::convert(&gguf, "real", &mut sink).expect("a supported model")
        };
        let share = |bytes: Vec<u8>| -> BlobBytes { Arc::new(bytes) };
        let blobs = sink.by_hash.into_iter().map(|(hash, bytes)| (hash, share(bytes))).collect();
        Real { manifest, blobs, shard: None, position: 0, next: 0 }
    }

    fn shard(&self, class: Class, isa: Isa) -> Shard {
        let limits = Limits { isa, ..Limits::new(PAGES, 1) };
        let span = 0..self.manifest.parts.len() as u32;
        let blobs = |hash: &str| self.blobs.get(hash).cloned();
        Shard::load(&self.manifest, span, class, blobs, limits).expect("it loads")
    }

    /// A line for each class and case that met its hashes.
    pub fn meet_golden(&mut self, json: &[u8]) -> Vec<String> {
        let golden: Value = serde_json::from_slice(json).expect("JSON");
        let mut met = Vec::new();
        for class in [Class::Canonical1, Class::ExactF32] {
            self.load(class, Isa::best());
            for case in golden["cases"].as_array().expect("cases") {
                let (id, want) = (&case["id"], &case[class.name()]);
                let prompt = ids(&case["prompt_tokens"]);
                self.position = 0;
                let mut logits = self.feed(&prompt);
                assert_eq!(hash(&logits), want["hash_prompt"], "{} {id}", class.name());
                let mut chosen = Vec::new();
                for n in 0..32 {
                    if n == 8 {
                        assert_eq!(hash(&logits), want["hash_after_8"], "{} {id}", class.name());
                    }
                    chosen.push(argmax(&logits).expect("a vocabulary") as u32);
                    logits = self.feed(&chosen[n..]);
                }
                assert_eq!(chosen, ids(&want["greedy_32"]), "{} {id}", class.name());
                met.push(format!("{} {id}: {} tokens and 32 more", class.name(), prompt.len()));
            }
        }
        met
    }

    pub fn load(&mut self, class: Class, isa: Isa) {
        self.shard = None; // its pages, before there are new ones
        self.shard = Some(self.shard(class, isa));
        self.position = 0;
    }

    /// Feeds session 1; the last token's logits.
    fn feed(&mut self, tokens: &[u32]) -> Vec<f32> {
        let (position, rows) = (self.position, tokens.len() as u32);
        let segment = Segment { session: 1, position, rows, logits_rows: 1 };
        self.position += rows;
        self.step(&[segment], tokens)
    }

    fn step(&mut self, segments: &[Segment], tokens: &[u32]) -> Vec<f32> {
        let shard = self.shard.as_mut().expect("a shard was loaded");
        match shard.step(segments, Input::Tokens(tokens)).expect("a sound step") {
            Output::Logits(logits) => logits,
            Output::Hidden(_) => unreachable!("the shard has the head"),
        }
    }

    pub fn prefill(&mut self, rows: u32) {
        self.position = 0;
        let tokens: Vec<u32> = (0..rows).map(|i| 100 + i * 37 % 40_000).collect();
        let mut logits = Vec::new();
        for chunk in tokens.chunks(CHUNK as usize) {
            logits = self.feed(chunk);
        }
        self.next = argmax(&logits).expect("a vocabulary") as u32;
    }

    pub fn decode(&mut self, tokens: u32) {
        for _ in 0..tokens {
            let logits = self.feed(&[self.next]);
            self.next = argmax(&logits).expect("a vocabulary") as u32;
        }
    }

    pub fn batch(&mut self, sessions: u32, position: u32) {
        let segment =
            |session| Segment { session: u64::from(session), position, rows: 1, logits_rows: 1 };
        let segments: Vec<Segment> = (1..=sessions).map(segment).collect();
        let tokens: Vec<u32> = (0..sessions).map(|i| 100 + i * 37).collect();
        self.step(&segments, &tokens);
    }

    pub fn bytes_per_token(&self) -> f64 {
        self.manifest.span_bytes(1..self.manifest.parts.len() as u32) as f64
    }
}

fn ids(value: &Value) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().expect("a token id") as u32;
    value.as_array().expect("a list of token ids").iter().map(id).collect()
}

/// FNV-1a 64 over the little-endian bits of all logits.
fn hash(logits: &[f32]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in logits.iter().flat_map(|x| x.to_bits().to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:016x}")
}
