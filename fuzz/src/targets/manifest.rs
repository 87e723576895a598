//! Manifests, which a worker reads from a coordinator that it need not trust.

use std::hint::black_box;

use model::blobs::NoBlobs;
use model::manifest::Role;
use model::testing::TinyModel;
use model::validate::{KvType, ManifestError};
use model::{Gguf, Manifest, convert};

use super::Target;
use crate::mutate::{Form, Seed};

pub struct ManifestTarget;

impl Target for ManifestTarget {
    fn name(&self) -> &'static str {
        "manifest"
    }

    fn corpus(&self) -> Vec<Seed> {
        [TinyModel::llama(1), TinyModel::qwen2(2)]
            .map(|mut model| {
                model.dims.layers = 1;
                let file = model.to_bytes();
                let gguf = Gguf::parse(&[&file]).expect("a tiny model parses");
                let manifest = convert(&gguf, "fuzz", &mut NoBlobs).expect("and converts");
                let bytes = manifest.to_bytes();
                Seed { head_bytes: bytes.len(), pieces: vec![bytes], form: Form::Json }
            })
            .to_vec()
    }

    fn accepted(&self) -> &'static str {
        "read"
    }

    fn feed(&self, input: &[Vec<u8>]) -> &'static str {
        let bytes = input.first().map_or(&[][..], Vec::as_slice);
        let manifest = match Manifest::from_bytes(bytes) {
            Ok(manifest) => manifest,
            Err(error) => {
                black_box(error.to_string());
                return match error {
                    ManifestError::Json(_) | ManifestError::TooLarge { .. } => "refused as JSON",
                    ManifestError::NotCanonical { .. } => "refused as not canonical",
                    ManifestError::Version { .. } | ManifestError::Inconsistent { .. } => {
                        "refused as inconsistent"
                    }
                };
            }
        };
        assert_eq!(manifest.to_bytes(), bytes);
        let parts = manifest.head_part() + 1;
        let sum: u64 = (0..parts).map(|part| manifest.part_bytes(part)).sum();
        assert!(manifest.span_bytes(0..parts) <= sum);
        assert!(manifest.tensor(parts - 1, Role::Output).is_some());
        black_box(manifest.kv_bytes_per_position(KvType::F32));
        "read"
    }

    fn heap_bytes_max(&self, input_bytes: usize) -> usize {
        // Text to structure and back: a few times the text.
        (64 << 10) + 8 * input_bytes
    }
}
