//! How fast this machine works through weights: the real kernels, at a typical shape.

use std::sync::Arc;

use engine::{BlobBytes, Class, Input, Limits, Segment, Shard, WeightMemory};
use litemap::LiteMap;
use model::layout::{LAYOUT_VERSION, Layout, TENSOR_ALIGN};
use model::manifest::{
    Architecture, Blob, Dims, MANIFEST_FORMAT, Manifest, Part, Role, Rope, RopePairs, Tensor,
};

/// Each of the two measurements takes no longer, but for its first step.
const BUDGET_S: f64 = 0.3;
/// Steps that suffice.
const STEPS_MAX: u32 = 20;
/// A layer of a model of about 1B parameters; two of them exceed most caches.
const DIMS: Dims = Dims {
    layers: 2,
    d_model: 2048,
    heads: 32,
    kv_heads: 8,
    head_dim: 64,
    d_ff: 5632,
    vocab: 32,
    context: 256,
};

/// Weight bytes per second at 1 and at 8 rows a step, each byte counted once a step, in
/// 4-bit weights and canonical-1. `clock` gives seconds from any start.
///
/// # Errors
/// The engine does not run here; why, in words.
pub fn bytes_per_s(threads: u32, clock: impl Fn() -> f64) -> Result<[f64; 2], String> {
    let (manifest, blobs, weight_bytes) =
        synthetic().map_err(|e| format!("no memory for the benchmark: {e}"))?;
    let get = |hash: &str| blobs.get(hash).cloned();
    let span = 1..DIMS.layers + 1;
    let limits = Limits::new(16, threads);
    let shard = Shard::load(&manifest, span, Class::Canonical1, get, limits);
    let mut shard = shard.map_err(|e| format!("the benchmark cannot run: {e}"))?;
    let mut rate = |rows: u32| {
        let segments: Vec<Segment> = (0..u64::from(rows))
            .map(|session| Segment { session, position: 0, rows: 1, logits_rows: 0 })
            .collect();
        let width = DIMS.d_model as usize;
        let hidden: Vec<f32> = (0..rows as usize * width).map(|i| (i % 17) as f32 - 8.0).collect();
        let mut step = || shard.step(&segments, Input::Hidden(&hidden));
        step().map_err(|e| format!("the benchmark cannot run: {e}"))?;
        let (began, mut steps) = (clock(), 0);
        let mut fastest_s = f64::INFINITY;
        while steps == 0 || clock() - began < BUDGET_S && steps < STEPS_MAX {
            let began = clock();
            step().map_err(|e| format!("the benchmark cannot run: {e}"))?;
            fastest_s = fastest_s.min(clock() - began);
            steps += 1;
        }
        // Of what else ran here meanwhile the fastest step saw least.
        Ok::<f64, String>(weight_bytes as f64 / fastest_s.max(1e-9))
    };
    Ok([rate(1)?, rate(8)?])
}

/// A model whose layers hold any 4-bit numbers, small enough that no sum overflows; the
/// ends are there in name only.
fn synthetic() -> std::io::Result<(Manifest, LiteMap<String, BlobBytes>, u64)> {
    let mut blobs: LiteMap<_, _> = LiteMap::new();
    let mut weight_bytes = 0;
    let mut parts = vec![Part { blobs: vec![describe(&[Role::TokenEmbedding], 0)] }];
    for layer in 1..=DIMS.layers {
        let blob = describe(Architecture::Llama.layer_roles(), layer);
        weight_bytes += blob.bytes;
        let mut bytes = WeightMemory::new(blob.bytes as usize)?;
        fill(&blob, bytes.as_mut());
        blobs.insert(blob.hash.clone(), Arc::new(bytes) as BlobBytes);
        parts.push(Part { blobs: vec![blob] });
    }
    let (norm, head) = (&[Role::OutputNorm], &[Role::Output]);
    let last = DIMS.layers + 1;
    parts.push(Part { blobs: vec![describe(norm, last), describe(head, last + 1)] });
    let inv_freq = (1..=DIMS.head_dim / 2).map(|i| 1.0 / f64::from(i));
    let manifest = Manifest {
        format: MANIFEST_FORMAT,
        layout_version: LAYOUT_VERSION,
        name: "benchmark".into(),
        architecture: Architecture::Llama,
        dims: DIMS,
        rms_eps_bits: 1e-5f32.to_bits(),
        rope: Rope {
            pairs: RopePairs::Adjacent,
            inv_freq_bits: inv_freq.map(f64::to_bits).collect(),
        },
        parts,
    };
    Ok((manifest, blobs, weight_bytes))
}

/// A blob of such tensors, one after the other. Nobody checks its hash, which is a number:
/// its bytes never leave this module.
fn describe(roles: &[Role], number: u32) -> Blob {
    let mut end = 0;
    let mut tensors = Vec::new();
    for &role in roles {
        let (rows, cols) = role.shape(&DIMS);
        let layout = if rows == 1 { Layout::F32 } else { Layout::Q4M };
        let offset = u64::next_multiple_of(end, TENSOR_ALIGN as u64);
        let bytes = layout.matrix_bytes(rows as usize, cols as usize).unwrap_or(0);
        end = offset + bytes as u64;
        tensors.push(Tensor { role, layout, rows, cols, offset });
    }
    Blob { hash: format!("{number:064x}"), bytes: end, tensors }
}

/// Writes such a blob's `bytes`, which are zero.
fn fill(blob: &Blob, bytes: &mut [u8]) {
    for tensor in &blob.tensors {
        let (rows, cols) = (tensor.rows as usize, tensor.cols as usize);
        let length = tensor.layout.matrix_bytes(rows, cols).unwrap_or(0);
        let bytes = &mut bytes[tensor.offset as usize..][..length];
        let pattern = match tensor.layout {
            Layout::F32 => 1f32.to_le_bytes().to_vec(),
            _ => q4m_cell(),
        };
        bytes.chunks_mut(pattern.len()).for_each(|b| b.copy_from_slice(&pattern[..b.len()]));
    }
}

/// One cell of [`Layout::Q4M`]: all quants, scale 2⁻⁸, min −7.5 · 2⁻⁸.
fn q4m_cell() -> Vec<u8> {
    let quants = (0..=255u8).map(|i| i.wrapping_mul(37));
    let scale = [0x00, 0x1c].repeat(16); // f16 2^-8
    let min = [0x80, 0xa7].repeat(16); // f16 -7.5 * 2^-8
    quants.chain(scale).chain(min).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_kernels_give_rates() {
        let start = std::time::Instant::now();
        let [one, eight] = bytes_per_s(1, || start.elapsed().as_secs_f64()).unwrap();
        assert!(one > 1e6 && one < 1e13, "{one}");
        assert!(eight > 1e6 && eight < 1e13, "{eight}");
        assert!(eight <= one * 2.0, "eight rows cannot take half the time of one: {one} {eight}");
    }

    #[test]
    fn the_synthetic_cell_is_what_it_says() {
        assert_eq!(q4m_cell().len(), Layout::Q4M.cell_bytes());
        let (manifest, blobs, bytes) = synthetic().unwrap();
        manifest.validate().unwrap();
        assert_eq!(blobs.len(), DIMS.layers as usize);
        assert!(bytes > 40_000_000, "{bytes}");
    }
}
