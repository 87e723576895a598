//! Whether a variant computes correctly on this device: asked before it is used.

use model::Layout;
use model::dequant::Matrix;
use model::manifest::RopePairs;
use numerics::f16::{f16_to_f32, f32_to_f16};
use numerics::product::f32_dot;

use super::lab::{Lab, Random};
use super::{Epilogue, Kernels, Rows, Shapes, StepData, StepRow, Variant, kv_page_words};

/// Largest error, relative to the sum of the terms' sizes, of what is computed in f32; wrong
/// kernels are off by far more.
const ERROR_MAX: f32 = 1e-5;

/// A matrix that has all row quads, some lanes twice, and subnormal scales.
const PRODUCT: (u32, u32) = (32, 256);
/// Rows of its steps, the largest first: each is computed in another way, or its last group of
/// rows is full.
const PRODUCT_STEPS: [usize; 4] = [20, 16, 4, 1];
/// Heads that share one K/V head, their width, and keys: two splits and a half.
const ATTENTION: (u32, u32, u32) = (3, 32, 300);

/// Runs seeded products and an attention with this variant and compares them with what the
/// CPU says; also that a row's bits are the same in steps of few rows and of 20.
///
/// # Errors
/// Says which kernel gave what, where something else was right, or how the device failed.
pub async fn self_test(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    variant: Variant,
) -> Result<(), String> {
    if let Some(reason) = variant.unsupported(device) {
        return Err(reason);
    }
    let lab = Lab { device, queue, variant };
    for layout in [Layout::Q4M, Layout::Q6K] {
        product(&lab, layout).await.map_err(|e| format!("{layout:?} product: {e}"))?;
    }
    attention(&lab).await.map_err(|e| format!("attention: {e}"))
}

fn step(positions: std::ops::Range<u32>, table: Vec<u32>) -> StepData {
    let row = |position| StepRow { position, session: 0, token: 0 };
    StepData { rows: positions.map(row).collect(), page_tables: vec![table], kept: vec![] }
}

/// The first value that is off, if any.
fn compare(got: &[f32], want: &[f32], sizes: &[f32]) -> Result<(), String> {
    for (i, ((&got, &want), &size)) in got.iter().zip(want).zip(sizes).enumerate() {
        let error = (got - want).abs();
        if error.is_nan() || error > ERROR_MAX * size {
            return Err(format!("value {i} is {got}, not {want}"));
        }
    }
    Ok(())
}

fn shapes(d_model: u32, vocab: u32, heads: u32, head_dim: u32) -> Shapes {
    let (pairs, rms_eps) = (RopePairs::Adjacent, 1e-5);
    Shapes { d_model, heads, kv_heads: 1, head_dim, d_ff: 4, vocab, pairs, rms_eps }
}

async fn product(lab: &Lab<'_>, layout: Layout) -> Result<(), String> {
    let (rows, cols) = PRODUCT;
    let (r, c, t) = (rows as usize, cols as usize, PRODUCT_STEPS[0]);
    let mut random = Random::new(1);
    let bytes = random.matrix(layout, rows, cols);
    let x = random.floats(t * c);
    let shapes = shapes(cols, rows, 1, 2);
    let kernels = Kernels::new(lab.device, lab.variant, shapes);
    let matrix = lab.matrix(layout, rows, cols, &bytes, rows);
    let mut results = Vec::new();
    for count in PRODUCT_STEPS {
        let scratch = lab.scratch(&shapes, count as u32, 64);
        let (x_buffer, y) = (&scratch.normed, &scratch.logits);
        let op = kernels.product(&matrix, x_buffer, y, &Epilogue::Store, Rows::All, &scratch);
        lab.write_rows(x_buffer, c, &x[..count * c]);
        lab.run(&[&op], &step(0..count as u32, vec![]), &[], &scratch);
        results.push(lab.rows(y, r, count).await?);
    }
    let weights = Matrix::new(layout, r, c, &bytes).map_err(|e| e.to_string())?;
    let mut row = vec![0.0; c];
    let (mut want, mut sizes) = (vec![0.0; t * r], vec![0.0; t * r]);
    for i in 0..r {
        weights.dequant_row(i, &mut row);
        for (j, x) in x.chunks_exact(c).enumerate() {
            want[j * r + i] = f32_dot(&row, x);
            sizes[j * r + i] = row.iter().zip(x).map(|(w, x)| (w * x).abs()).sum();
        }
    }
    compare(&results[0], &want, &sizes)?;
    PRODUCT_STEPS
        .iter()
        .zip(&results)
        .try_for_each(|(&count, result)| same(result, &results[0][..count * r], count))
}

async fn attention(lab: &Lab<'_>) -> Result<(), String> {
    let (heads, hd, keys) = ATTENTION;
    let shapes = shapes(4, 4, heads, hd);
    let (width, t) = ((heads * hd) as usize, 20u32);
    let pages = keys.div_ceil(64);
    let mut random = Random::new(2);
    let mut words = vec![0u32; (pages * kv_page_words(&shapes)) as usize];
    let n = (keys * hd) as usize;
    let (mut k, mut v) = (vec![0.0; n], vec![0.0; n]);
    for i in 0..n {
        let (position, element) = (i / hd as usize, i % hd as usize);
        let start = position / 64 * kv_page_words(&shapes) as usize;
        let (slot, pair) = (position % 64, element / 2);
        let value_at = start + 32 * hd as usize + slot * (hd as usize / 2) + pair;
        for (out, at) in [(&mut k, start + 64 * pair + slot), (&mut v, value_at)] {
            let half = f32_to_f16(random.unit()).map_err(|_| "a number is out of range")?;
            out[i] = f16_to_f32(half);
            words[at] |= u32::from(half) << (16 * (element % 2));
        }
    }
    let kv = lab.kv(&shapes, pages);
    lab.write_words(&kv, &words);
    let queries = random.floats(t as usize * width);
    let kernels = Kernels::new(lab.device, lab.variant, shapes);
    let mut results = Vec::new();
    for count in [t, 1] {
        let scratch = lab.scratch(&shapes, count, keys);
        let op = kernels.attention(&kv, &scratch);
        lab.write_rows(&scratch.query, width, &queries[(t - count) as usize * width..]);
        lab.run(&[&op], &step(keys - count..keys, (0..pages).collect()), &[], &scratch);
        results.push(lab.rows(&scratch.mixed, width, count as usize).await?);
    }
    let mut want = Vec::new();
    for (row, query) in queries.chunks_exact(width).enumerate() {
        let seen = (keys - t + 1) as usize + row;
        let end = seen * hd as usize;
        for query in query.chunks_exact(hd as usize) {
            let attended = numerics::attention::attention(query, &k[..end], &v[..end]);
            want.extend(attended.map_err(|_| "the CPU's result is not finite")?);
        }
    }
    compare(&results[0], &want, &vec![1.0; want.len()])?;
    same(&results[1], &results[0][(t - 1) as usize * width..], 1)
}

/// Whether a step of so many rows gave the bits that a larger one did.
fn same(alone: &[f32], in_company: &[f32], rows: usize) -> Result<(), String> {
    match alone.iter().zip(in_company).position(|(a, b)| a.to_bits() != b.to_bits()) {
        None => Ok(()),
        Some(i) => {
            let (a, b) = (alone[i], in_company[i]);
            Err(format!("value {i} is {a:e} in a step of {rows} rows, {b:e} in a larger one"))
        }
    }
}
