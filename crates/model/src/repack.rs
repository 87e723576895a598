//! From GGUF blocks to canonical layouts.
//!
//! Cells are written one after the other from 16 rows' blocks, through a buffer of bounded
//! size, so that memory does not grow with the matrix. Both sides are described in
//! [`crate::layout`] and ggml's `ggml-quants.c`. Four columns of one row travel as one
//! `u32`, which the layouts are made for; byte order is little-endian on both sides.

use std::io::{self, Write};

use crate::f16::f16_to_f32;
use crate::gguf::GgmlType;
use crate::layout::TILE_ROWS;

/// Cells are collected up to this many bytes between writes.
const BUFFER_BYTES: usize = 64 << 10;

/// The blocks of a tile's 16 rows at one column.
type Blocks<'a> = [&'a [u8]; TILE_ROWS];

/// Writes a `[rows, cols]` matrix of GGUF blocks in its canonical layout.
///
/// `data` holds `rows · cols` elements of `ggml_type`, row-major; `cols` divides into its
/// blocks. Writes as many bytes as [`crate::Layout::matrix_bytes`] says.
///
/// # Errors
/// Those of `out`.
///
/// # Panics
/// If `data` does not fit the shape, or the type is one that we do not run: callers have
/// checked the file.
pub fn repack_matrix(
    ggml_type: GgmlType,
    rows: usize,
    cols: usize,
    data: &[u8],
    out: &mut impl Write,
) -> io::Result<()> {
    let (block_cols, block_bytes) = ggml_type.block().expect("a supported type");
    assert!(cols.is_multiple_of(block_cols), "{cols} columns in blocks of {block_cols}");
    let row_bytes = cols / block_cols * block_bytes;
    assert_eq!(data.len(), rows * row_bytes, "bytes of a [{rows}, {cols}] {ggml_type} matrix");
    let fill: fn(&Blocks<'_>, &mut [u8]) = match ggml_type {
        GgmlType::F32 | GgmlType::F16 => return out.write_all(data),
        GgmlType::Q4_0 => fill_q4s,
        GgmlType::Q4_1 => fill_q4m,
        GgmlType::Q5_0 => fill_q5s,
        GgmlType::Q8_0 => fill_q8,
        GgmlType::Q4K => fill_q4k,
        GgmlType::Q6K => fill_q6k,
        GgmlType::Other(_) => unreachable!("it has no block"),
    };
    let cell_bytes = ggml_type.layout().expect("a supported type").cell_bytes();
    let cells = rows.div_ceil(TILE_ROWS) * (row_bytes / block_bytes);
    let mut buffer = vec![0; cells.min(BUFFER_BYTES / cell_bytes) * cell_bytes];
    let mut filled = 0;
    let padding = [0; 256];
    for tile in data.chunks(TILE_ROWS * row_bytes) {
        for start in (0..row_bytes).step_by(block_bytes) {
            let mut blocks: Blocks<'_> = [&padding[..block_bytes]; TILE_ROWS];
            for (block, row) in blocks.iter_mut().zip(tile.chunks_exact(row_bytes)) {
                *block = &row[start..start + block_bytes];
            }
            fill(&blocks, &mut buffer[filled..filled + cell_bytes]);
            filled += cell_bytes;
            if filled == buffer.len() {
                out.write_all(&buffer)?;
                filled = 0;
            }
        }
    }
    out.write_all(&buffer[..filled])
}

/// Writes a vector, or any row-major run of elements, as F32; F16 widens exactly.
///
/// # Errors
/// Those of `out`.
///
/// # Panics
/// If the type is neither F32 nor F16.
pub fn repack_vector(ggml_type: GgmlType, data: &[u8], out: &mut impl Write) -> io::Result<()> {
    match ggml_type {
        GgmlType::F32 => out.write_all(data),
        GgmlType::F16 => {
            let mut wide = Vec::with_capacity(BUFFER_BYTES);
            for chunk in data.chunks(BUFFER_BYTES / 2) {
                wide.clear();
                for half in chunk.chunks_exact(2) {
                    let x = f16_to_f32(u16::from_le_bytes([half[0], half[1]]));
                    wide.extend_from_slice(&x.to_le_bytes());
                }
                out.write_all(&wide)?;
            }
            Ok(())
        }
        other => panic!("a vector of type {other}"),
    }
}

/// Four bytes as a word, the first lowest.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn put(cell: &mut [u8], at: usize, word: u32) {
    cell[at..at + 4].copy_from_slice(&word.to_le_bytes());
}

/// Copies the f16 at `from` of each block to `cell[at + 2·row]`.
fn fill_halves(blocks: &Blocks<'_>, from: usize, cell: &mut [u8], at: usize) {
    for (row, block) in blocks.iter().enumerate() {
        cell[at + 2 * row..at + 2 * row + 2].copy_from_slice(&block[from..from + 2]);
    }
}

/// Joins the low four bits of 32 columns, four columns of one row a word: `columns(g)`
/// gives columns 4g .. 4g+4 in its low nibbles (higher bits are dropped).
fn fill_nibbles(row: usize, cell: &mut [u8], columns: impl Fn(usize) -> u32) {
    const LOW: u32 = 0x0f0f_0f0f;
    for pair in 0..4 {
        let (low, high) = (columns(2 * pair) & LOW, columns(2 * pair + 1) & LOW);
        put(cell, 64 * pair + 4 * row, low | high << 4);
    }
}

/// The nibbles of Q4_0, Q4_1 and Q5_0: 16 bytes, columns 0..16 low and 16..32 high.
fn fill_simple_nibbles(blocks: &Blocks<'_>, from: usize, cell: &mut [u8]) {
    for (row, block) in blocks.iter().enumerate() {
        let nibbles: &[u8; 16] = block[from..].try_into().expect("the block's last 16 bytes");
        fill_nibbles(row, cell, |g| word(nibbles, 4 * (g % 4)) >> (4 * (g / 4)));
    }
}

/// Q4_0: d f16, 16 bytes of nibbles.
fn fill_q4s(blocks: &Blocks<'_>, cell: &mut [u8]) {
    fill_simple_nibbles(blocks, 2, cell);
    fill_halves(blocks, 0, cell, 256);
}

/// Q4_1: d f16, m f16, 16 bytes of nibbles.
fn fill_q4m(blocks: &Blocks<'_>, cell: &mut [u8]) {
    fill_simple_nibbles(blocks, 4, cell);
    fill_halves(blocks, 0, cell, 256);
    fill_halves(blocks, 2, cell, 288);
}

/// Q5_0: d f16, 32 high bits, 16 bytes of nibbles.
fn fill_q5s(blocks: &Blocks<'_>, cell: &mut [u8]) {
    fill_simple_nibbles(blocks, 6, cell);
    for (row, block) in blocks.iter().enumerate() {
        put(cell, 256 + 4 * row, word(block, 2));
    }
    fill_halves(blocks, 0, cell, 320);
}

/// Q8_0: d f16, 32 i8.
fn fill_q8(blocks: &Blocks<'_>, cell: &mut [u8]) {
    for (row, block) in blocks.iter().enumerate() {
        let quants: &[u8; 32] = block[2..].try_into().expect("the block's last 32 bytes");
        for group in 0..8 {
            put(cell, 64 * group + 4 * row, word(quants, 4 * group));
        }
    }
    fill_halves(blocks, 0, cell, 512);
}

/// The 6-bit scale and min of sub-block `s`, out of Q4_K's 12 packed bytes.
pub(crate) fn q4k_scale_min(packed: &[u8], s: usize) -> (u8, u8) {
    if s < 4 {
        return (packed[s] & 63, packed[s + 4] & 63);
    }
    let scale = packed[s + 4] & 0x0f | packed[s - 4] >> 6 << 4;
    let min = packed[s + 4] >> 4 | packed[s] >> 6 << 4;
    (scale, min)
}

/// Q4_K: d f16, dmin f16, 12 bytes of scales and mins, 128 bytes of nibbles (each 32 of
/// them hold one sub-block low and the next high).
fn fill_q4k(blocks: &Blocks<'_>, cell: &mut [u8]) {
    const SUB_BYTES: usize = 16 + 16 + 256;
    fill_halves(blocks, 0, cell, 0);
    fill_halves(blocks, 2, cell, 32);
    for (row, block) in blocks.iter().enumerate() {
        let block: &[u8; 144] = (*block).try_into().expect("a Q4_K block");
        for (s, sub) in cell[64..].chunks_exact_mut(SUB_BYTES).enumerate() {
            (sub[row], sub[16 + row]) = q4k_scale_min(&block[4..16], s);
            let nibbles = &block[16 + 32 * (s / 2)..][..32];
            let shift = 4 * (s % 2);
            fill_nibbles(row, &mut sub[32..], |g| word(nibbles, 4 * g) >> shift);
        }
    }
}

/// Q6_K: 128 bytes of low nibbles, 64 of high bit pairs, 16 i8 scales, d f16. In each half
/// of 128 columns, sub-blocks 0 to 3 take the low nibbles of the first and second 32 bytes,
/// then the high ones, and bits 2t, 2t+1 of the half's 32 high bytes.
fn fill_q6k(blocks: &Blocks<'_>, cell: &mut [u8]) {
    const SUB_BYTES: usize = 32 + 256 + 128;
    fill_halves(blocks, 208, cell, 0);
    for (row, block) in blocks.iter().enumerate() {
        let block: &[u8; 210] = (*block).try_into().expect("a Q6_K block");
        for (s, sub) in cell[32..].chunks_exact_mut(SUB_BYTES).enumerate() {
            let (half, t) = (s / 4, s % 4);
            sub[row] = block[192 + 2 * s];
            sub[16 + row] = block[192 + 2 * s + 1];
            let nibbles = &block[64 * half + 32 * (t % 2)..][..32];
            let shift = 4 * (t / 2);
            fill_nibbles(row, &mut sub[32..], |g| word(nibbles, 4 * g) >> shift);
            let pairs = &block[128 + 32 * half..][..32];
            for h in 0..2 {
                let bits = |j: usize| word(pairs, 16 * h + 4 * j) >> (2 * t) & 0x0303_0303;
                let high = bits(0) | bits(1) << 2 | bits(2) << 4 | bits(3) << 6;
                put(sub, 288 + 64 * h + 4 * row, high);
            }
        }
    }
}
