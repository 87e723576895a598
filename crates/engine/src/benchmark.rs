//! A worker's own benchmark: the real kernels at a model's real shapes.
//!
//! The weights are made up but lie as the model's do, so nothing needs to be fetched
//! first. So many layers are made that no cache holds them: decode reads each weight once.

use std::sync::Arc;

use model::Manifest;

use crate::shard::Shard;
use crate::types::*;

/// Bytes of synthetic weights, unless a single layer is larger or the model smaller.
const WEIGHTS_BYTES: u64 = 96 << 20;
/// Each byte of them: as f16 scales 0.065, as f32 gains 2.4e-12, so that nothing overflows
/// or becomes subnormal.
const WEIGHTS_FILL: u8 = 0x2c;
/// Rows of the prefill that is measured; the decodes continue behind it.
const PREFILL_ROWS: u32 = 64;
/// Sessions that decode in one step.
const SESSIONS: u64 = 8;
/// Samples of each figure, at most; the median counts.
const SAMPLES_MAX: usize = 7;

/// Seconds that one layer takes here, medians.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerTimes {
    /// One row of one session.
    pub decode_1_s: f64,
    /// A row each of eight sessions.
    pub decode_8_s: f64,
    /// 64 rows of one session.
    pub prefill_64_s: f64,
}

impl LayerTimes {
    /// Layers × tokens per second of one session that decodes: what placement weighs.
    pub fn layer_tokens_per_s(&self) -> f64 {
        1.0 / self.decode_1_s
    }
}

/// Measures layers of `manifest`'s shapes, as steps of a shard like any other.
///
/// `clock` gives seconds from any start. Each figure has at least one sample, and no new
/// one begins once `budget_s` has passed. Takes about 100 MiB of memory, or one layer's
/// weights where those are larger.
///
/// # Errors
/// As [`Shard::load`].
pub fn benchmark(
    manifest: &Manifest,
    class: Class,
    threads: u32,
    budget_s: f64,
    mut clock: impl FnMut() -> f64,
) -> Result<LayerTimes, LoadError> {
    let start = clock();
    manifest.validate().map_err(|error| LoadError::Manifest(error.to_string()))?;
    let layers = WEIGHTS_BYTES / manifest.part_bytes(1).max(1);
    let layers = layers.clamp(1, u64::from(manifest.dims.layers)) as u32;
    let span = 1..1 + layers;
    let synthetic = |hash: &str| -> Option<BlobBytes> {
        let blobs = manifest.blobs_of(span.clone());
        let blob = blobs.into_iter().find(|blob| blob.hash == hash)?;
        Some(Arc::new(vec![WEIGHTS_FILL; usize::try_from(blob.bytes).ok()?]))
    };
    let limits = Limits::new(2 * SESSIONS as u32, threads);
    let mut shard = Shard::load(manifest, span.clone(), class, synthetic, limits)?;
    let mut sample = |shard: &mut Shard, segments: &[Segment]| {
        let rows: u32 = segments.iter().map(|s| s.rows).sum();
        let len = rows as usize * manifest.dims.d_model as usize;
        let hidden: Vec<f32> = (0..len).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
        let from = clock();
        shard.step(segments, Input::Hidden(&hidden)).expect("made-up weights keep in range");
        let to = clock();
        ((to - from) / f64::from(layers), to - start < budget_s)
    };
    let segment = |session, position, rows| Segment { session, position, rows, logits_rows: 0 };
    let decode = |session| segment(session, PREFILL_ROWS, 1);
    let all: Vec<Segment> = (0..SESSIONS).map(decode).collect();
    let [mut prefill, mut one, mut eight] = [const { Vec::new() }; 3];
    for _ in 0..SAMPLES_MAX {
        prefill.push(sample(&mut shard, &[segment(0, 0, PREFILL_ROWS)]).0);
        for session in 1..SESSIONS {
            shard.fork(0, session, PREFILL_ROWS).expect("it was just filled");
        }
        eight.push(sample(&mut shard, &all).0);
        let (seconds, go_on) = sample(&mut shard, &[decode(0)]);
        one.push(seconds);
        if !go_on {
            break;
        }
    }
    let [decode_1_s, decode_8_s, prefill_64_s] = [one, eight, prefill].map(median);
    Ok(LayerTimes { decode_1_s, decode_8_s, prefill_64_s })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::testing::TinyModel;
    use model::{Gguf, blobs::NoBlobs};

    #[test]
    fn figures_come_from_the_clock_and_the_budget_ends_it() {
        let file = TinyModel::qwen2(1).to_bytes();
        let gguf = Gguf::parse(&[&file]).unwrap();
        let manifest = model::convert(&gguf, "tiny", &mut NoBlobs).unwrap();
        for class in [Class::Canonical1, Class::ExactF32] {
            // Every look at the clock is 3 s after the one before: a step of 3 layers
            // takes 1 s a layer.
            let mut looks = 0;
            let times = benchmark(&manifest, class, 2, 20.0, || {
                looks += 1;
                f64::from(looks) * 3.0
            })
            .unwrap();
            let second = LayerTimes { decode_1_s: 1.0, decode_8_s: 1.0, prefill_64_s: 1.0 };
            assert_eq!(times, second);
            assert_eq!(times.layer_tokens_per_s(), 1.0);
            assert_eq!(looks, 13, "the start, and two rounds of three samples");
        }
    }
}
