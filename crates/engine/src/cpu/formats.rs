//! The tiled layouts, one 32-column block of 16 rows at a time, in plain Rust.
//!
//! See `model::layout` for the bytes. Quants come out as `[group 0..8][row 0..16][k 0..4]`
//! i8 with the format's offset subtracted: column `4·group + k` of the block.

use model::Layout;
use model::layout::TILE_ROWS;

/// One f32 per row of a tile.
pub(crate) type Lanes = [f32; TILE_ROWS];

/// Weights of 16 rows and 32 columns.
pub(crate) struct Block {
    /// `[group][row][k]`.
    pub(crate) q: [i8; 512],
    /// Scale of each row; of columns 0..16 where the halves differ.
    pub(crate) d: Lanes,
    /// Scale of each row for columns 16..32 where the halves differ.
    pub(crate) d_high: Lanes,
    /// Min of each row, where the format has one.
    pub(crate) m: Lanes,
}

impl Block {
    pub(crate) const ZERO: Block =
        Block { q: [0; 512], d: [0.0; 16], d_high: [0.0; 16], m: [0.0; 16] };
}

/// How one tiled layout is read. In a module for browsers, where only slow paths do so, each is
/// there once.
pub(crate) trait Format {
    const LAYOUT: Layout;
    /// Two scales per block, for its 16-column halves.
    const HALVES: bool = false;
    /// Weights have a min.
    const MIN: bool = false;
    /// Reads block `b` (0 unless the cell is a super-block) of `cell`.
    fn read(cell: &[u8], b: usize, out: &mut Block);
}

pub(crate) struct Q4S;
pub(crate) struct Q4M;
pub(crate) struct Q5S;
pub(crate) struct Q8;
pub(crate) struct Q4K;
pub(crate) struct Q6K;

/// f16 to f32, written so that 16 of them vectorise: exact, infinities and NaN included.
#[inline(always)]
pub(crate) fn f16_to_f32(h: u16) -> f32 {
    let shifted = u32::from(h & 0x7fff) << 13;
    // Rebiasing by a power of two is exact and gives subnormals their value.
    let scaled = f32::from_bits(shifted) * f32::from_bits(0x7780_0000);
    let special = if h & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | special | u32::from(h & 0x8000) << 16)
}

#[inline(always)]
fn f16_lanes(bytes: &[u8]) -> Lanes {
    let (pairs, _) = bytes[..32].as_chunks::<2>();
    std::array::from_fn(|r| f16_to_f32(u16::from_le_bytes(pairs[r])))
}

/// 256 bytes of nibbles to quants, minus `offset`.
#[inline(always)]
fn nibbles(bytes: &[u8], offset: i8, q: &mut [i8; 512]) {
    let (pairs, _) = bytes[..256].as_chunks::<64>();
    let (outs, _) = q.as_chunks_mut::<128>();
    for (pair, out) in pairs.iter().zip(outs) {
        for i in 0..64 {
            out[i] = (pair[i] & 15) as i8 - offset;
            out[64 + i] = (pair[i] >> 4) as i8 - offset;
        }
    }
}

impl Format for Q4S {
    const LAYOUT: Layout = Layout::Q4S;
    #[cfg_attr(not(target_arch = "wasm32"), inline(always))]
    #[cfg_attr(target_arch = "wasm32", inline(never))]
    fn read(cell: &[u8], _b: usize, out: &mut Block) {
        nibbles(&cell[..256], 8, &mut out.q);
        out.d = f16_lanes(&cell[256..288]);
    }
}

impl Format for Q4M {
    const LAYOUT: Layout = Layout::Q4M;
    const MIN: bool = true;
    #[cfg_attr(not(target_arch = "wasm32"), inline(always))]
    #[cfg_attr(target_arch = "wasm32", inline(never))]
    fn read(cell: &[u8], _b: usize, out: &mut Block) {
        nibbles(&cell[..256], 0, &mut out.q);
        out.d = f16_lanes(&cell[256..288]);
        out.m = f16_lanes(&cell[288..320]);
    }
}

impl Format for Q5S {
    const LAYOUT: Layout = Layout::Q5S;
    #[cfg_attr(not(target_arch = "wasm32"), inline(always))]
    #[cfg_attr(target_arch = "wasm32", inline(never))]
    fn read(cell: &[u8], _b: usize, out: &mut Block) {
        nibbles(&cell[..256], 16, &mut out.q);
        let (highs, _) = cell[256..320].as_chunks::<4>();
        for g in 0..8 {
            for r in 0..16 {
                let bits = u32::from_le_bytes(highs[r]) >> (4 * g);
                for k in 0..4 {
                    out.q[g * 64 + r * 4 + k] += (((bits >> k) & 1) << 4) as i8;
                }
            }
        }
        out.d = f16_lanes(&cell[320..352]);
    }
}

impl Format for Q8 {
    const LAYOUT: Layout = Layout::Q8;
    #[cfg_attr(not(target_arch = "wasm32"), inline(always))]
    #[cfg_attr(target_arch = "wasm32", inline(never))]
    fn read(cell: &[u8], _b: usize, out: &mut Block) {
        for (q, &byte) in out.q.iter_mut().zip(&cell[..512]) {
            *q = byte as i8;
        }
        out.d = f16_lanes(&cell[512..544]);
    }
}

impl Format for Q4K {
    const LAYOUT: Layout = Layout::Q4K;
    const MIN: bool = true;
    #[cfg_attr(not(target_arch = "wasm32"), inline(always))]
    #[cfg_attr(target_arch = "wasm32", inline(never))]
    fn read(cell: &[u8], b: usize, out: &mut Block) {
        let (d, dmin) = (f16_lanes(&cell[..32]), f16_lanes(&cell[32..64]));
        let block = &cell[64 + b * 288..64 + (b + 1) * 288];
        for r in 0..16 {
            out.d[r] = d[r] * f32::from(block[r]);
            out.m[r] = -(dmin[r] * f32::from(block[16 + r]));
        }
        nibbles(&block[32..], 0, &mut out.q);
    }
}

impl Format for Q6K {
    const LAYOUT: Layout = Layout::Q6K;
    const HALVES: bool = true;
    #[cfg_attr(not(target_arch = "wasm32"), inline(always))]
    #[cfg_attr(target_arch = "wasm32", inline(never))]
    fn read(cell: &[u8], b: usize, out: &mut Block) {
        let d = f16_lanes(&cell[..32]);
        let block = &cell[32 + b * 416..32 + (b + 1) * 416];
        for r in 0..16 {
            out.d[r] = d[r] * f32::from(block[r] as i8);
            out.d_high[r] = d[r] * f32::from(block[16 + r] as i8);
        }
        nibbles(&block[32..288], 32, &mut out.q);
        let (highs, _) = block[288..416].as_chunks::<64>();
        let (groups, _) = out.q.as_chunks_mut::<64>();
        for (g, group) in groups.iter_mut().enumerate() {
            for i in 0..64 {
                group[i] += (((highs[g / 4][i] >> (2 * (g % 4))) & 3) << 4) as i8;
            }
        }
    }
}
