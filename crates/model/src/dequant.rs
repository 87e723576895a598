//! Weights read back from canonical layout, in plain code: what NUMERICS.md calls d, q and
//! m of a row's 32-column block, and w = d·q, then + m, each rounded.
//!
//! [`gguf_row`] gives the same straight from GGUF blocks, in ggml's own element order; the
//! two must agree to the bit, which tests the repacking.

use thiserror::Error;

use crate::f16::f16_to_f32;
use crate::gguf::GgmlType;
use crate::layout::{BLOCK_COLS, Layout, TILE_ROWS};
use crate::manifest::Tensor;
use crate::repack::q4k_scale_min;

/// A `[rows, cols]` matrix (or vector, `rows` 1) in canonical layout.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    layout: Layout,
    rows: usize,
    cols: usize,
    bytes: &'a [u8],
}

/// Bytes that are not the matrix they should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("a [{rows}, {cols}] {layout:?} matrix needs {expected:?} bytes, got {got}")]
pub struct MatrixError {
    /// Its layout.
    pub layout: Layout,
    /// Output rows.
    pub rows: usize,
    /// Input columns.
    pub cols: usize,
    /// What the layout needs; `None` if the columns do not divide into its cells.
    pub expected: Option<usize>,
    /// What was given.
    pub got: usize,
}

/// 32 columns of one row of a quantised matrix: column c weighs
/// `scale[c / 16] · q[c]`, then `+ min` where there is one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block {
    /// Quants, offset already subtracted.
    pub q: [i8; BLOCK_COLS],
    /// d of columns 0..16 and 16..32; the same twice, but for Q6K. For Q4K and Q6K the
    /// product of d and the sub-block's scale, exact in f32.
    pub scale: [f32; 2],
    /// m of `Q4M`; −(dmin·mn) of `Q4K`, exact in f32.
    pub min: Option<f32>,
}

impl Block {
    /// The 32 weights: w = d·q, then + m, each rounded.
    pub fn weights(&self) -> [f32; BLOCK_COLS] {
        std::array::from_fn(|c| {
            let w = self.scale[c / 16] * f32::from(self.q[c]);
            self.min.map_or(w, |min| w + min)
        })
    }
}

impl<'a> Matrix<'a> {
    /// The matrix that `bytes` hold, exactly.
    ///
    /// # Errors
    /// If the columns do not divide into cells, or `bytes` has another length.
    pub fn new(
        layout: Layout,
        rows: usize,
        cols: usize,
        bytes: &'a [u8],
    ) -> Result<Matrix<'a>, MatrixError> {
        let expected = layout.matrix_bytes(rows, cols);
        if expected != Some(bytes.len()) {
            return Err(MatrixError { layout, rows, cols, expected, got: bytes.len() });
        }
        Ok(Matrix { layout, rows, cols, bytes })
    }

    /// A tensor of a blob.
    ///
    /// # Errors
    /// If the blob's bytes do not hold it.
    pub fn of_tensor(tensor: &Tensor, blob: &'a [u8]) -> Result<Matrix<'a>, MatrixError> {
        let (layout, rows, cols) = (tensor.layout, tensor.rows as usize, tensor.cols as usize);
        let expected = layout.matrix_bytes(rows, cols);
        let range = expected.and_then(|bytes| {
            let start = usize::try_from(tensor.offset).ok()?;
            Some(start..start.checked_add(bytes)?)
        });
        match range.and_then(|range| blob.get(range)) {
            Some(bytes) => Matrix::new(layout, rows, cols, bytes),
            None => Err(MatrixError { layout, rows, cols, expected, got: blob.len() }),
        }
    }

    /// How it lies.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Output rows R.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input columns C.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Its bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Columns `32·block .. 32·block + 32` of a row; `None` for the row-major layouts.
    ///
    /// # Panics
    /// If there is no such row or block.
    pub fn block(&self, row: usize, block: usize) -> Option<Block> {
        assert!(row < self.rows && block < self.cols / BLOCK_COLS, "row {row}, block {block}");
        if !self.layout.is_tiled() {
            return None;
        }
        let cells = self.cols / self.layout.cell_cols();
        let blocks_per_cell = self.layout.cell_cols() / BLOCK_COLS;
        let cell = row / TILE_ROWS * cells + block / blocks_per_cell;
        let cell = &self.bytes[cell * self.layout.cell_bytes()..][..self.layout.cell_bytes()];
        Some(read_block(self.layout, cell, row % TILE_ROWS, block % blocks_per_cell))
    }

    /// One row of weights as `[C] f32`.
    ///
    /// # Panics
    /// If there is no such row, or `out` has another length than `cols`.
    pub fn dequant_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols, "a row's columns");
        let start = row * self.cols;
        match self.layout {
            Layout::F32 => {
                let words = self.bytes[4 * start..].chunks_exact(4);
                for (w, bytes) in out.iter_mut().zip(words) {
                    *w = f32::from_le_bytes(bytes.try_into().expect("4 bytes"));
                }
            }
            Layout::F16 => {
                for (c, w) in out.iter_mut().enumerate() {
                    *w = half(self.bytes, start + c);
                }
            }
            _ => {
                for (b, weights) in out.chunks_exact_mut(BLOCK_COLS).enumerate() {
                    let block = self.block(row, b).expect("a tiled layout");
                    weights.copy_from_slice(&block.weights());
                }
            }
        }
    }
}

/// The `index`th f16 of a run.
fn half(bytes: &[u8], index: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]))
}

/// Column c's four low bits in a plane of nibbles.
fn nibble(plane: &[u8], row: usize, c: usize) -> u8 {
    let byte = plane[64 * (c / 8) + 4 * row + c % 4];
    if c % 8 < 4 { byte & 0x0f } else { byte >> 4 }
}

/// Block `b` of a row of a tile, out of its cell.
fn read_block(layout: Layout, cell: &[u8], row: usize, b: usize) -> Block {
    let quants = |q: &dyn Fn(usize) -> i8| std::array::from_fn(q);
    match layout {
        Layout::Q4S => Block {
            q: quants(&|c| nibble(cell, row, c) as i8 - 8),
            scale: [half(&cell[256..], row); 2],
            min: None,
        },
        Layout::Q4M => Block {
            q: quants(&|c| nibble(cell, row, c) as i8),
            scale: [half(&cell[256..], row); 2],
            min: Some(half(&cell[288..], row)),
        },
        Layout::Q5S => {
            let bit = |c: usize| cell[256 + 4 * row + c / 8] >> (c % 8) & 1;
            Block {
                q: quants(&|c| (nibble(cell, row, c) | bit(c) << 4) as i8 - 16),
                scale: [half(&cell[320..], row); 2],
                min: None,
            }
        }
        Layout::Q8 => Block {
            q: quants(&|c| cell[64 * (c / 4) + 4 * row + c % 4] as i8),
            scale: [half(&cell[512..], row); 2],
            min: None,
        },
        Layout::Q4K => {
            let sub = &cell[64 + 288 * b..][..288];
            let (d, dmin) = (half(cell, row), half(&cell[32..], row));
            Block {
                q: quants(&|c| nibble(&sub[32..], row, c) as i8),
                scale: [d * f32::from(sub[row]); 2],
                min: Some(-(dmin * f32::from(sub[16 + row]))),
            }
        }
        Layout::Q6K => {
            let sub = &cell[32 + 416 * b..][..416];
            let d = half(cell, row);
            let pair = |c: usize| {
                let byte = sub[288 + 64 * (c / 16) + 4 * row + c % 4];
                byte >> (2 * (c % 16 / 4)) & 3
            };
            Block {
                q: quants(&|c| (nibble(&sub[32..], row, c) | pair(c) << 4) as i8 - 32),
                scale: [0, 16].map(|s| d * f32::from(sub[s + row] as i8)),
                min: None,
            }
        }
        Layout::F16 | Layout::F32 => unreachable!("not a tiled layout"),
    }
}

/// A row of GGUF blocks as f32, w = d·q, then + m, each rounded.
///
/// `row` holds `out.len()` elements of `ggml_type`.
///
/// # Panics
/// If the lengths do not fit each other, or the type is one that we do not run.
pub fn gguf_row(ggml_type: GgmlType, row: &[u8], out: &mut [f32]) {
    let (block_cols, block_bytes) = ggml_type.block().expect("a supported type");
    assert!(out.len().is_multiple_of(block_cols));
    assert_eq!(row.len(), out.len() / block_cols * block_bytes, "bytes of {ggml_type}");
    let blocks = row.chunks_exact(block_bytes).zip(out.chunks_exact_mut(block_cols));
    for (block, w) in blocks {
        match ggml_type {
            GgmlType::F32 => w[0] = f32::from_le_bytes(block.try_into().expect("4 bytes")),
            GgmlType::F16 => w[0] = half(block, 0),
            GgmlType::Q4_0 => {
                let d = half(block, 0);
                for j in 0..16 {
                    w[j] = d * f32::from((block[2 + j] & 0x0f) as i8 - 8);
                    w[j + 16] = d * f32::from((block[2 + j] >> 4) as i8 - 8);
                }
            }
            GgmlType::Q4_1 => {
                let (d, m) = (half(block, 0), half(block, 1));
                for j in 0..16 {
                    w[j] = d * f32::from(block[4 + j] & 0x0f) + m;
                    w[j + 16] = d * f32::from(block[4 + j] >> 4) + m;
                }
            }
            GgmlType::Q5_0 => {
                let d = half(block, 0);
                let high = u32::from_le_bytes(block[2..6].try_into().expect("4 bytes"));
                for j in 0..16 {
                    let low_bit = (high >> j << 4) as u8 & 0x10;
                    let high_bit = (high >> (j + 12)) as u8 & 0x10;
                    w[j] = d * f32::from((block[6 + j] & 0x0f | low_bit) as i8 - 16);
                    w[j + 16] = d * f32::from((block[6 + j] >> 4 | high_bit) as i8 - 16);
                }
            }
            GgmlType::Q8_0 => {
                let d = half(block, 0);
                for j in 0..32 {
                    w[j] = d * f32::from(block[2 + j] as i8);
                }
            }
            GgmlType::Q4K => gguf_q4k(block, w),
            GgmlType::Q6K => gguf_q6k(block, w),
            GgmlType::Other(_) => unreachable!("it has no block"),
        }
    }
}

/// 64 columns at a time: 32 low nibbles, then the same bytes' high nibbles.
fn gguf_q4k(block: &[u8], w: &mut [f32]) {
    let (d, dmin) = (half(block, 0), half(block, 1));
    for (j, w) in w.chunks_exact_mut(64).enumerate() {
        let (low, high) = w.split_at_mut(32);
        let nibbles = &block[16 + 32 * j..];
        for (s, w) in [(2 * j, low), (2 * j + 1, high)] {
            let (scale, min) = q4k_scale_min(&block[4..16], s);
            let (d, m) = (d * f32::from(scale), -(dmin * f32::from(min)));
            for (w, byte) in w.iter_mut().zip(nibbles) {
                *w = d * f32::from(byte >> (4 * (s % 2)) & 0x0f) + m;
            }
        }
    }
}

/// 128 columns at a time, four of them from the same byte of high bits.
fn gguf_q6k(block: &[u8], w: &mut [f32]) {
    let d = half(block, 104);
    let low = block[..128].chunks_exact(64);
    let high = block[128..192].chunks_exact(32);
    let scales = block[192..208].chunks_exact(8);
    for (((w, low), high), scales) in w.chunks_exact_mut(128).zip(low).zip(high).zip(scales) {
        for l in 0..32 {
            let quants = [
                low[l] & 0x0f | (high[l] & 3) << 4,
                low[l + 32] & 0x0f | (high[l] >> 2 & 3) << 4,
                low[l] >> 4 | (high[l] >> 4 & 3) << 4,
                low[l + 32] >> 4 | (high[l] >> 6) << 4,
            ];
            for (t, q) in quants.into_iter().enumerate() {
                let scale = d * f32::from(scales[l / 16 + 2 * t] as i8);
                w[l + 32 * t] = scale * f32::from(q as i8 - 32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repack::repack_matrix;
    use crate::testing::Random;

    /// Random blocks, every bit of them, so that scales are subnormal, infinite and NaN too.
    fn check_round_trip(ggml_type: GgmlType, rows: usize, cols: usize, seed: u64) {
        let (block_cols, block_bytes) = ggml_type.block().expect("a supported type");
        let row_bytes = cols / block_cols * block_bytes;
        let mut random = Random::new(seed);
        let data: Vec<u8> = (0..rows * row_bytes).map(|_| random.next() as u8).collect();
        let mut packed = Vec::new();
        repack_matrix(ggml_type, rows, cols, &data, &mut packed).expect("a Vec takes all");
        let layout = ggml_type.layout().expect("a supported type");
        let matrix = Matrix::new(layout, rows, cols, &packed).expect("the layout's length");
        let (mut ours, mut theirs) = (vec![0.0; cols], vec![0.0; cols]);
        for (row, data) in data.chunks_exact(row_bytes).enumerate() {
            matrix.dequant_row(row, &mut ours);
            gguf_row(ggml_type, data, &mut theirs);
            for (c, (a, b)) in ours.iter().zip(&theirs).enumerate() {
                let same = a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
                assert!(same, "{ggml_type} [{rows}, {cols}] row {row} column {c}: {a} {b}");
            }
        }
    }

    #[test]
    fn repacking_changes_no_weight() {
        for (i, ggml_type) in GgmlType::SUPPORTED.into_iter().enumerate() {
            let block = ggml_type.block().expect("a supported type").0;
            for (j, rows) in [1, 2, 15, 16, 17, 40].into_iter().enumerate() {
                for blocks in 1..4 {
                    let seed = (100 * i + 10 * j + blocks) as u64;
                    check_round_trip(ggml_type, rows, blocks * block, seed);
                }
            }
            // Longer than the repacking's buffer.
            check_round_trip(ggml_type, 33, 16 * 256, i as u64);
        }
    }

    #[test]
    fn padding_rows_weigh_nothing() {
        for ggml_type in GgmlType::SUPPORTED {
            let layout = ggml_type.layout().expect("a supported type");
            if !layout.is_tiled() {
                continue;
            }
            let (cols, bytes) = ggml_type.block().expect("a supported type");
            let mut packed = Vec::new();
            let ones = vec![0xff; 3 * bytes];
            repack_matrix(ggml_type, 3, cols, &ones, &mut packed).expect("a Vec takes all");
            for row in 3..TILE_ROWS {
                for b in 0..cols / BLOCK_COLS {
                    let block = read_block(layout, &packed, row, b);
                    assert_eq!(block.scale, [0.0; 2], "{ggml_type}");
                    assert_eq!(block.min.unwrap_or(0.0), 0.0, "{ggml_type}");
                }
            }
        }
    }

    /// Blocks written by hand from the format's description.
    #[test]
    fn known_blocks_have_known_weights() {
        let mut w = [0.0; 32];
        let mut q4_1 = vec![0x00, 0x38, 0x00, 0xc0]; // d 0.5, m -2
        q4_1.extend((0..16).map(|j| j | (15 - j) << 4));
        gguf_row(GgmlType::Q4_1, &q4_1, &mut w);
        for j in 0..16 {
            assert_eq!(w[j], 0.5 * j as f32 - 2.0);
            assert_eq!(w[j + 16], 0.5 * (15 - j) as f32 - 2.0);
        }
        let mut q5_0 = vec![0x00, 0x3c, 0x01, 0x00, 0x00, 0x80]; // d 1, bits 0 and 31
        q5_0.extend([0x21; 16]);
        gguf_row(GgmlType::Q5_0, &q5_0, &mut w);
        assert_eq!((w[0], w[1], w[16], w[31]), (1.0, -15.0, -14.0, 2.0));
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let bytes = vec![0; 640];
        assert!(Matrix::new(Layout::Q4M, 32, 32, &bytes).is_ok());
        for (layout, rows, cols) in [
            (Layout::Q4M, 33, 32),
            (Layout::Q4M, 16, 48),
            (Layout::Q4K, 32, 32),
            (Layout::F32, 0, 3),
        ] {
            let error = Matrix::new(layout, rows, cols, &bytes).expect_err("not that matrix");
            assert_eq!(error.got, 640);
        }
    }
}
