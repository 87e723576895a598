//! The composed classes against the textbook.

use model::testing::TinyModel;
use model::{Gguf, Manifest, MemoryBlobs};
use reference::{Class, Model, forward, plain};

fn open(tiny: &TinyModel) -> (Manifest, MemoryBlobs) {
    let file = tiny.to_bytes();
    let gguf = Gguf::parse(&[&file]).expect("a GGUF file");
    let mut blobs = MemoryBlobs::default();
    let manifest = model::convert(&gguf, "tiny", &mut blobs).expect("a supported model");
    (manifest, blobs)
}

/// Largest distance of two logit matrices, in units of the logits' spread.
fn distance(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let all = || a.iter().flatten().zip(b.iter().flatten());
    let max = all().map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    let squares: f64 = b.iter().flatten().map(|x| f64::from(*x).powi(2)).sum();
    max / (squares / all().count() as f64).sqrt()
}

#[test]
fn exact_is_the_textbook_up_to_rounding_and_canonical_up_to_its_8_bits() {
    for tiny in [TinyModel::llama(1), TinyModel::qwen2(2)] {
        let (manifest, blobs) = open(&tiny);
        let model = Model::new(&manifest, |hash| &blobs.by_hash[hash]);
        let tokens: Vec<u32> = (0..150).map(|i| (i * 53 + 7) % manifest.dims.vocab).collect();
        let plain = plain::logits(&model, &tokens);
        let exact = forward::forward(&model, Class::ExactF32, &tokens).expect("finite");
        let canonical = forward::forward(&model, Class::Canonical1, &tokens).expect("finite");
        // Rounding of 2⁻²⁴ over some hundred operations in a row, against 2⁻⁸ per block.
        let (near, far) = (distance(&exact.logits, &plain), distance(&canonical.logits, &plain));
        assert!(near < 1e-4, "exact-f32 is {near} from the textbook");
        assert!(far < 0.5 && far > 1e-4, "canonical-1 is {far} from the textbook");
    }
}

#[test]
fn a_prefix_gives_the_same_bits() {
    let (manifest, blobs) = open(&TinyModel::llama(3));
    let model = Model::new(&manifest, |hash| &blobs.by_hash[hash]);
    let tokens: Vec<u32> = (0..70).map(|i| (i * 31) % manifest.dims.vocab).collect();
    for class in [Class::Canonical1, Class::ExactF32] {
        let whole = forward::forward(&model, class, &tokens).expect("finite");
        let prefix = forward::forward(&model, class, &tokens[..20]).expect("finite");
        assert_eq!(whole.logits[..20], prefix.logits);
    }
}
