//! Canonical weight layouts: how one matrix lies in a blob.
//!
//! A quantised matrix `[R, C]` (R output rows, C input columns) is cut into *tiles* of
//! [`TILE_ROWS`] rows, the last one padded with zero rows (scale 0, quants 0), and each
//! tile into *cells* along the columns. Cells of a tile follow each other, tiles follow
//! each other; there is no other padding. SIMD lanes are rows: a byte of a quant plane is
//! addressed `[group][row 0..16][k 0..4]` for column `4·group + k` of its 32-column block,
//! so that one 64-byte load gives 16 rows four columns each. All numbers little-endian.
//!
//! | layout | from | columns per cell | cell, in order | bytes |
//! |---|---|---|---|---|
//! | `Q4S` | Q4_0 | 32 | nibbles 256, d f16×16 | 288 |
//! | `Q4M` | Q4_1 | 32 | nibbles 256, d f16×16, m f16×16 | 320 |
//! | `Q5S` | Q5_0 | 32 | nibbles 256, high bits u32×16, d f16×16 | 352 |
//! | `Q8`  | Q8_0 | 32 | i8 512, d f16×16 | 544 |
//! | `Q4K` | Q4_K | 256 | d f16×16, dmin f16×16, then 8 × (sc u8×16, mn u8×16, nibbles 256) | 2368 |
//! | `Q6K` | Q6_K | 256 | d f16×16, then 8 × (sc i8 `[2][16]`, nibbles 256, high 128) | 3360 |
//! | `F16`, `F32` | F16, F32 | | row-major, rows not padded | |
//!
//! - *nibbles*, 256 B for one 32-column block: `[pair p 0..4][row][k]`, low nibble column
//!   `8p + k`, high nibble column `8p + 4 + k`. They hold the raw unsigned quant: the
//!   offset (8 for `Q4S`, 16 for `Q5S`, 32 for `Q6K`) is not yet subtracted.
//! - *i8*, 512 B: `[group g 0..8][row][k]`, column `4g + k`.
//! - *high bits* of `Q5S`: one u32 per row, bit c is bit 4 of column c's quant.
//! - *high* of `Q6K`, 128 B: `[half h 0..2][row][k]`; bits `2j, 2j+1` of that byte are bits
//!   4 and 5 of the quant of column `16h + 4j + k`, j 0..4.
//! - `Q6K`'s `sc[s][row]` scales columns `16s .. 16s+16` of the 32-column block.
//! - The weight of a quant q: `Q4S` d·(q−8); `Q4M` d·q + m; `Q5S` d·(q−16); `Q8` d·q;
//!   `Q4K` (d·sc)·q − (dmin·mn); `Q6K` (d·sc)·(q−32).

use serde::{Deserialize, Serialize};

/// Rows of a tile: SIMD lanes are rows.
pub const TILE_ROWS: usize = 16;
/// Columns of an activation block; every quantised matrix has a multiple of it.
pub const BLOCK_COLS: usize = 32;
/// Columns of a K-quant super-block.
pub const SUPER_COLS: usize = 256;
/// Raised when the meaning of any layout's bytes changes.
pub const LAYOUT_VERSION: u32 = 1;
/// Tensors inside a blob start at multiples of this.
pub const TENSOR_ALIGN: usize = 64;

/// How a matrix or vector lies in a blob; see the module's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// 4 bits, scale (Q4_0).
    Q4S,
    /// 4 bits, scale and min (Q4_1).
    Q4M,
    /// 4 bits in super-blocks with 6-bit scales and mins (Q4_K).
    Q4K,
    /// 5 bits, scale (Q5_0).
    Q5S,
    /// 6 bits in super-blocks with 8-bit scales (Q6_K).
    Q6K,
    /// 8 bits, scale (Q8_0).
    Q8,
    /// IEEE binary16.
    F16,
    /// IEEE binary32.
    F32,
}

impl Layout {
    /// Columns that one cell covers; 1 for the row-major layouts.
    pub const fn cell_cols(self) -> usize {
        match self {
            Layout::Q4S | Layout::Q4M | Layout::Q5S | Layout::Q8 => BLOCK_COLS,
            Layout::Q4K | Layout::Q6K => SUPER_COLS,
            Layout::F16 | Layout::F32 => 1,
        }
    }

    /// Bytes of one cell (of 16 rows for the quantised layouts, of one element else).
    pub const fn cell_bytes(self) -> usize {
        match self {
            Layout::Q4S => 288,
            Layout::Q4M => 320,
            Layout::Q5S => 352,
            Layout::Q8 => 544,
            Layout::Q4K => 2368,
            Layout::Q6K => 3360,
            Layout::F16 => 2,
            Layout::F32 => 4,
        }
    }

    /// True if rows are interleaved in tiles of 16.
    pub const fn is_tiled(self) -> bool {
        !matches!(self, Layout::F16 | Layout::F32)
    }

    /// Bytes of a `[rows, cols]` matrix, or `None` if `cols` does not divide into cells
    /// or the product overflows.
    pub fn matrix_bytes(self, rows: usize, cols: usize) -> Option<usize> {
        if cols == 0 || rows == 0 || !cols.is_multiple_of(self.cell_cols()) {
            return None;
        }
        let units = if self.is_tiled() { rows.div_ceil(TILE_ROWS) } else { rows };
        units.checked_mul(cols / self.cell_cols())?.checked_mul(self.cell_bytes())
    }

    /// [`Layout::matrix_bytes`] where a usize has 32 bits and the matrix is another's:
    /// what a manifest says of a `[rows, cols]` matrix. `None` if `cols` does not divide
    /// into cells, or either is 0. Cannot overflow within [`crate::limits`].
    pub fn matrix_bytes_u64(self, rows: u32, cols: u32) -> Option<u64> {
        if cols == 0 || rows == 0 || !(cols as usize).is_multiple_of(self.cell_cols()) {
            return None;
        }
        let units = if self.is_tiled() { rows.div_ceil(TILE_ROWS as u32) } else { rows };
        let cells = u64::from(units).checked_mul(u64::from(cols) / self.cell_cols() as u64)?;
        cells.checked_mul(self.cell_bytes() as u64)
    }
}
