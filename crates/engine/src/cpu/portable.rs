//! Products over tiled layouts in plain Rust: what every target has.

use model::layout::BLOCK_COLS;

use super::formats::{Block, Format, Lanes};
use super::quants::QuantBlock;

/// Exact integer dots of groups `groups` of a block with its activations, one per row.
#[inline(always)]
fn dots(q: &[i8; 512], x: &[i8], groups: std::ops::Range<usize>) -> [i32; 16] {
    let mut sums = [0i32; 16];
    for g in groups {
        let x: [i32; 4] = std::array::from_fn(|k| i32::from(x[4 * g + k]));
        let group = &q[g * 64..(g + 1) * 64];
        for r in 0..16 {
            for k in 0..4 {
                sums[r] += i32::from(group[r * 4 + k]) * x[k];
            }
        }
    }
    sums
}

/// Canonical products of one tile (its `cells`) with N columns: `[N][16 rows]`.
#[inline(always)]
pub(crate) fn quantised<F: Format, const N: usize>(
    cells: &[u8],
    columns: [&[QuantBlock]; N],
) -> [Lanes; N] {
    let mut acc = [[0.0f32; 16]; N];
    let mut block = Block::ZERO;
    let blocks_per_cell = F::LAYOUT.cell_cols() / BLOCK_COLS;
    for (c, cell) in cells.chunks_exact(F::LAYOUT.cell_bytes()).enumerate() {
        for b in 0..blocks_per_cell {
            F::read(cell, b, &mut block);
            let index = c * blocks_per_cell + b;
            for (acc, x) in acc.iter_mut().zip(&columns) {
                add_block(F::HALVES, F::MIN, &block, &x[index], acc);
            }
        }
    }
    acc
}

/// Adds a block's product with one column's; `halves` and `min` are its format's.
#[cfg_attr(not(target_arch = "wasm32"), inline(always))]
#[cfg_attr(target_arch = "wasm32", inline(never))]
fn add_block(halves: bool, min: bool, block: &Block, x: &QuantBlock, acc: &mut Lanes) {
    let QuantBlock { d, s, ref q, .. } = *x;
    if halves {
        let (low, high) = (dots(&block.q, q, 0..4), dots(&block.q, q, 4..8));
        for r in 0..16 {
            acc[r] += (block.d[r] * d) * low[r] as f32;
            acc[r] += (block.d_high[r] * d) * high[r] as f32;
        }
    } else {
        let sums = dots(&block.q, q, 0..8);
        for r in 0..16 {
            acc[r] += (block.d[r] * d) * sums[r] as f32;
            if min {
                acc[r] += block.m[r] * s;
            }
        }
    }
}

/// Exact products of one tile with N columns of f32 activations `[C]`: weights are
/// dequantised block by block, sums are striped over the columns.
#[inline(always)]
pub(crate) fn exact<F: Format, const N: usize>(cells: &[u8], columns: [&[f32]; N]) -> [Lanes; N] {
    let mut stripes = [[[0.0f32; 16]; 16]; N]; // [column][stripe][row]
    let mut block = Block::ZERO;
    let mut weights = [[0.0f32; 16]; BLOCK_COLS];
    let blocks_per_cell = F::LAYOUT.cell_cols() / BLOCK_COLS;
    for (c, cell) in cells.chunks_exact(F::LAYOUT.cell_bytes()).enumerate() {
        for b in 0..blocks_per_cell {
            F::read(cell, b, &mut block);
            dequantise(F::HALVES, F::MIN, &block, &mut weights);
            let start = (c * blocks_per_cell + b) * BLOCK_COLS;
            for (stripes, x) in stripes.iter_mut().zip(&columns) {
                add_weights(&weights, &x[start..start + BLOCK_COLS], stripes);
            }
        }
    }
    stripes.map(add_up)
}

/// Adds a block's products with one column's, `x` `[32]`, to that column's sums.
#[cfg_attr(not(target_arch = "wasm32"), inline(always))]
#[cfg_attr(target_arch = "wasm32", inline(never))]
fn add_weights(weights: &[Lanes; BLOCK_COLS], x: &[f32], stripes: &mut [Lanes; 16]) {
    for j in 0..16 {
        for r in 0..16 {
            stripes[j][r] += weights[j][r] * x[j];
            stripes[j][r] += weights[j + 16][r] * x[j + 16];
        }
    }
}

/// The sum of a column's stripes, as a tree.
#[cfg_attr(not(target_arch = "wasm32"), inline(always))]
#[cfg_attr(target_arch = "wasm32", inline(never))]
fn add_up(mut stripes: [Lanes; 16]) -> Lanes {
    let mut h = 8;
    while h > 0 {
        for j in 0..h {
            for r in 0..16 {
                stripes[j][r] += stripes[j + h][r];
            }
        }
        h /= 2;
    }
    stripes[0]
}

/// A block's f32 weights, `[column][row]`; `halves` and `min` are its format's.
#[cfg_attr(not(target_arch = "wasm32"), inline(always))]
#[cfg_attr(target_arch = "wasm32", inline(never))]
pub(crate) fn dequantise(
    halves: bool,
    min: bool,
    block: &Block,
    weights: &mut [Lanes; BLOCK_COLS],
) {
    for (c, weights) in weights.iter_mut().enumerate() {
        let d = if halves && c >= 16 { &block.d_high } else { &block.d };
        for r in 0..16 {
            let w = d[r] * f32::from(block.q[(c / 4) * 64 + r * 4 + c % 4]);
            weights[r] = if min { w + block.m[r] } else { w };
        }
    }
}
