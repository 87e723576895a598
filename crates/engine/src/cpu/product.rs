//! Matrix products: which kernel runs, over which tiles and columns.
//!
//! `output[t][r] = Σ_c matrix[r][c]·input[t][c] (+ bias[r])`. A task takes some tiles of 16
//! rows and all T columns; the reduction over c is never split, so neither tasks nor
//! column groups show in the result.

use std::ops::Range;

use model::Layout;
use model::layout::TILE_ROWS;
use numerics::BLOCK;

use super::elementwise::striped_dot;
use super::formats::{self, Block, Format, Lanes};
use super::quants::Quants;
use super::rows::RowsMut;
use super::{Isa, portable};
use crate::weights::Matrix;

/// Activations of a product.
#[derive(Clone, Copy)]
pub(crate) enum Activations<'a> {
    /// 8-bit blocks: tiled layouts in `canonical-1`.
    Quantised(&'a Quants),
    /// `[T, C]` f32 of that width: the row-major layouts, and everything in `exact-f32`.
    Exact(&'a [f32]),
}

/// Bytes of quantised activations that a tile is multiplied with before the next tile's
/// turn: they stay in the second-level cache.
const COLUMN_BYTES_MAX: usize = 256 * 1024;

/// Tiles of a matrix; the row-major layouts count 16 rows as one, too.
pub(crate) fn tiles(matrix: &Matrix) -> usize {
    matrix.rows.div_ceil(TILE_ROWS)
}

/// Computes `tiles` of `matrix` for columns `0..columns` into `output`, `[T, R]`.
///
/// # Safety
/// No other task may write the rows of those tiles (columns `16·tile ..` of `output`).
// Once in a module, whoever calls it.
#[inline(never)]
pub(crate) unsafe fn product(
    isa: Isa,
    matrix: &Matrix,
    tiles: Range<usize>,
    input: Activations<'_>,
    columns: usize,
    bias: Option<&[f32]>,
    output: RowsMut<'_>,
) {
    assert_eq!(output.width(), matrix.rows, "the output has the matrix's rows");
    let task = Task { isa, matrix, tiles, columns, bias, output };
    // SAFETY: passed on.
    unsafe {
        match matrix.layout {
            Layout::Q4S => task.tiled::<formats::Q4S>(input),
            Layout::Q4M => task.tiled::<formats::Q4M>(input),
            Layout::Q4K => task.tiled::<formats::Q4K>(input),
            Layout::Q5S => task.tiled::<formats::Q5S>(input),
            Layout::Q6K => task.tiled::<formats::Q6K>(input),
            Layout::Q8 => task.tiled::<formats::Q8>(input),
            Layout::F16 | Layout::F32 => task.row_major(input),
        }
    }
}

struct Task<'a> {
    isa: Isa,
    matrix: &'a Matrix,
    tiles: Range<usize>,
    columns: usize,
    bias: Option<&'a [f32]>,
    output: RowsMut<'a>,
}

impl Task<'_> {
    /// # Safety
    /// As [`product`].
    unsafe fn tiled<F: Format>(&self, input: Activations<'_>) {
        match input {
            Activations::Quantised(x) => {
                assert_eq!(x.cols(), self.matrix.cols, "activations have the matrix's columns");
                let step = (COLUMN_BYTES_MAX / x.cols() / 8 * 8).max(8);
                for first in (0..self.columns).step_by(step) {
                    let last = (first + step).min(self.columns);
                    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
                    if self.isa.compiled() >= Isa::Simd128 {
                        // SAFETY: passed on.
                        unsafe { self.prepared_tiles::<F>(x, first..last) };
                        continue;
                    }
                    for tile in self.tiles.clone() {
                        // SAFETY: passed on.
                        unsafe { self.quantised_tile::<F>(tile, x, first..last) };
                    }
                }
            }
            Activations::Exact(x) => {
                for tile in self.tiles.clone() {
                    // SAFETY: passed on.
                    unsafe { self.exact_tile::<F>(tile, x) };
                }
            }
        }
    }

    fn cells(&self, tile: usize, layout: Layout) -> &[u8] {
        let bytes = self.matrix.cols / layout.cell_cols() * layout.cell_bytes();
        &self.matrix.bytes()[tile * bytes..(tile + 1) * bytes]
    }

    /// # Safety
    /// As [`product`].
    unsafe fn quantised_tile<F: Format>(&self, tile: usize, x: &Quants, columns: Range<usize>) {
        let cells = self.cells(tile, F::LAYOUT);
        assert_eq!(x.row(columns.end - 1).len() * BLOCK, self.matrix.cols);
        let mut t = columns.start;
        // SAFETY: passed on.
        unsafe {
            // AVX-512 has the registers for eight sums.
            while self.isa == Isa::Avx512 && t + 8 <= columns.end {
                let group = std::array::from_fn(|n| x.row(t + n));
                self.store(tile, t, &super::quantised::<F, 8>(self.isa, cells, group));
                t += 8;
            }
            while t + 4 <= columns.end {
                let group = std::array::from_fn(|n| x.row(t + n));
                self.store(tile, t, &super::quantised::<F, 4>(self.isa, cells, group));
                t += 4;
            }
            if t + 2 <= columns.end {
                let group = [x.row(t), x.row(t + 1)];
                self.store(tile, t, &super::quantised::<F, 2>(self.isa, cells, group));
                t += 2;
            }
            if t < columns.end {
                self.store(tile, t, &super::quantised::<F, 1>(self.isa, cells, [x.row(t)]));
            }
        }
    }

    /// All tiles with some columns, which are first brought into the kernel's form.
    ///
    /// # Safety
    /// As [`product`].
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    unsafe fn prepared_tiles<F: Format>(&self, x: &Quants, columns: Range<usize>) {
        use super::wasm;
        let (isa, width) = (self.isa.compiled(), x.cols() / BLOCK);
        let mut blocks = Vec::with_capacity(columns.len() * width);
        for t in columns.clone() {
            wasm::prepare::<F>(isa, x.row(t), &mut blocks);
        }
        let row = |t: usize| &blocks[(t - columns.start) * width..(t - columns.start + 1) * width];
        for tile in self.tiles.clone() {
            let cells = self.cells(tile, F::LAYOUT);
            let mut t = columns.start;
            // SAFETY: passed on.
            unsafe {
                while t + 4 <= columns.end {
                    let group = std::array::from_fn(|n| row(t + n));
                    let Some(sums) = wasm::quantised::<F, 4>(isa, cells, group) else { break };
                    self.store(tile, t, &sums);
                    t += 4;
                }
                let left = columns.end - t;
                // Two or three, and the last one again: code for two would be half as much again.
                if (2..4).contains(&left) {
                    let group = std::array::from_fn(|n| row(t + n.min(left - 1)));
                    if let Some(sums) = wasm::quantised::<F, 4>(isa, cells, group) {
                        self.store(tile, t, &sums[..left]);
                        t += left;
                    }
                }
                while t < columns.end {
                    let sums = wasm::quantised::<F, 1>(isa, cells, [row(t)])
                        .unwrap_or_else(|| portable::quantised::<F, 1>(cells, [x.row(t)]));
                    self.store(tile, t, &sums);
                    t += 1;
                }
            }
        }
    }

    /// # Safety
    /// As [`product`].
    unsafe fn exact_tile<F: Format>(&self, tile: usize, x: &[f32]) {
        let cells = self.cells(tile, F::LAYOUT);
        let width = self.matrix.cols;
        let row = |t: usize| &x[t * width..(t + 1) * width];
        let mut t = 0;
        // SAFETY: passed on.
        unsafe {
            while t + 4 <= self.columns {
                let group = [row(t), row(t + 1), row(t + 2), row(t + 3)];
                self.store(tile, t, &super::exact::<F, 4>(self.isa, cells, group));
                t += 4;
            }
            while t < self.columns {
                self.store(tile, t, &super::exact::<F, 1>(self.isa, cells, [row(t)]));
                t += 1;
            }
        }
    }

    /// Adds the bias and writes the tile's rows that exist, for columns `first ..`.
    ///
    /// # Safety
    /// As [`product`].
    unsafe fn store(&self, tile: usize, first: usize, sums: &[Lanes]) {
        let start = tile * TILE_ROWS;
        let rows = start..(start + TILE_ROWS).min(self.matrix.rows);
        for (n, sums) in sums.iter().enumerate() {
            // SAFETY: the caller's promise: these rows are this task's.
            let out = unsafe { self.output.part(first + n, rows.clone()) };
            // A whole tile is one vector, without a call.
            if self.bias.is_none()
                && let Some(out) = out.as_mut_array::<TILE_ROWS>()
            {
                *out = *sums;
                continue;
            }
            match self.bias {
                Some(bias) => {
                    for ((o, s), b) in out.iter_mut().zip(sums).zip(&bias[rows.clone()]) {
                        *o = s + b;
                    }
                }
                None => out.copy_from_slice(&sums[..rows.len()]),
            }
        }
    }

    /// # Safety
    /// As [`product`].
    unsafe fn row_major(&self, input: Activations<'_>) {
        let Activations::Exact(x) = input else {
            unreachable!("row-major weights take f32 activations")
        };
        let (rows, cols) = (self.matrix.rows, self.matrix.cols);
        let mut weights = vec![0.0f32; cols];
        let first = self.tiles.start * TILE_ROWS;
        for r in first..(self.tiles.end * TILE_ROWS).min(rows) {
            super::widen(self.isa, self.matrix.layout, self.matrix.bytes(), r, &mut weights);
            for t in 0..self.columns {
                let sum = super::dot(self.isa, &weights, &x[t * cols..(t + 1) * cols]);
                // SAFETY: the caller's promise: this row is this task's.
                let out = unsafe { self.output.part(t, r..r + 1) };
                out[0] = self.bias.map_or(sum, |bias| sum + bias[r]);
            }
        }
    }
}

/// Row `r` of a row-major matrix as f32.
#[inline(always)]
pub(crate) fn widen_body(layout: Layout, bytes: &[u8], r: usize, out: &mut [f32]) {
    let cols = out.len();
    if layout == Layout::F16 {
        let (values, _) = bytes[2 * r * cols..2 * (r + 1) * cols].as_chunks::<2>();
        for (o, &v) in out.iter_mut().zip(values) {
            *o = formats::f16_to_f32(u16::from_le_bytes(v));
        }
    } else {
        let (values, _) = bytes[4 * r * cols..4 * (r + 1) * cols].as_chunks::<4>();
        for (o, &v) in out.iter_mut().zip(values) {
            *o = f32::from_le_bytes(v);
        }
    }
}

#[inline(always)]
pub(crate) fn dot_body(a: &[f32], b: &[f32]) -> f32 {
    striped_dot(a, b)
}

/// Row `r` of `matrix` dequantised into `out`, `[C]`: the embedding lookup.
pub(crate) fn lookup(isa: Isa, matrix: &Matrix, r: usize, out: &mut [f32]) {
    match matrix.layout {
        Layout::Q4S => lookup_tiled::<formats::Q4S>(matrix, r, out),
        Layout::Q4M => lookup_tiled::<formats::Q4M>(matrix, r, out),
        Layout::Q4K => lookup_tiled::<formats::Q4K>(matrix, r, out),
        Layout::Q5S => lookup_tiled::<formats::Q5S>(matrix, r, out),
        Layout::Q6K => lookup_tiled::<formats::Q6K>(matrix, r, out),
        Layout::Q8 => lookup_tiled::<formats::Q8>(matrix, r, out),
        Layout::F16 | Layout::F32 => super::widen(isa, matrix.layout, matrix.bytes(), r, out),
    }
}

fn lookup_tiled<F: Format>(matrix: &Matrix, r: usize, out: &mut [f32]) {
    let tile_bytes = matrix.cols / F::LAYOUT.cell_cols() * F::LAYOUT.cell_bytes();
    let cells = &matrix.bytes()[r / TILE_ROWS * tile_bytes..(r / TILE_ROWS + 1) * tile_bytes];
    let mut block = Block::ZERO;
    let mut weights = [[0.0f32; 16]; BLOCK];
    let blocks_per_cell = F::LAYOUT.cell_cols() / BLOCK;
    for (b, out) in out.chunks_exact_mut(BLOCK).enumerate() {
        let cell = b / blocks_per_cell * F::LAYOUT.cell_bytes();
        let cell = &cells[cell..cell + F::LAYOUT.cell_bytes()];
        F::read(cell, b % blocks_per_cell, &mut block);
        portable::dequantise(F::HALVES, F::MIN, &block, &mut weights);
        for (o, w) in out.iter_mut().zip(&weights) {
            *o = w[r % TILE_ROWS];
        }
    }
}
