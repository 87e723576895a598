//! The model that is measured, and the median.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use engine::{BlobBytes, WeightMemory};
use model::{Gguf, Manifest, MemoryBlobs};

/// A model that was converted in memory.
pub struct Real {
    pub name: String,
    pub manifest: Manifest,
    pub blobs: BTreeMap<String, BlobBytes>,
    /// Bytes of weights that a token reads: all but the embedding, of which it needs a row.
    pub token_bytes: u64,
}

impl Real {
    /// The model that `WEFT_BENCH_MODEL` names (else smollm2-135m) in the folder that
    /// `WEFT_TEST_MODELS` names; `None`, and a line that says so, where that is not set.
    pub fn open() -> Option<Real> {
        let Some(folder) = std::env::var_os("WEFT_TEST_MODELS") else {
            println!("SKIPPED: WEFT_TEST_MODELS names no folder of models");
            return None;
        };
        let name = std::env::var("WEFT_BENCH_MODEL").unwrap_or_else(|_| "smollm2-135m".into());
        let real = Real::read(&Path::new(&folder).join(format!("{name}.gguf")), name);
        println!(
            "{}: {:.1} MB of weights read per token",
            real.name,
            real.token_bytes as f64 / 1e6
        );
        Some(real)
    }

    /// The model in a GGUF file.
    pub fn read(path: &Path, name: String) -> Real {
        let file = std::fs::read(path).expect("the model's file");
        let gguf = Gguf::parse(&[&file]).expect("a GGUF file");
        let mut sink = MemoryBlobs::default();
        let manifest = model::convert(&gguf, &name, &mut sink).expect("a supported model");
        // As a worker holds them.
        let share = |bytes: Vec<u8>| {
            let mut memory = WeightMemory::new(bytes.len()).expect("enough memory");
            memory.as_mut().copy_from_slice(&bytes);
            Arc::new(memory) as BlobBytes
        };
        let blobs = sink.by_hash.into_iter().map(|(hash, bytes)| (hash, share(bytes))).collect();
        let token_bytes = manifest.span_bytes(1..manifest.parts.len() as u32);
        Real { name, manifest, blobs, token_bytes }
    }

    pub fn parts(&self) -> u32 {
        self.manifest.parts.len() as u32
    }
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
