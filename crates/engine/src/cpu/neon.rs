//! Canonical products over tiled layouts on NEON: four rows per vector.
//!
//! With dot products ([`Sdot`]) a vector of four rows and four columns is one instruction.
//! Without ([`Widening`]) 8-bit products are added up in 16 bits, as many as fit, then in
//! 32. Either way the integer dots are exact, and the float operations are those of
//! `numerics`, in its order.

use std::arch::aarch64::*;

use model::Layout;
use model::layout::BLOCK_COLS;

use super::formats::{Format, Lanes};
use super::neon_dots::{Products, Sdot, Widening};
use super::quants::QuantBlock;

/// Rows of a tile in one vector.
const VECTOR_ROWS: usize = 4;

/// The dots of R vectors of rows with N columns.
type Dots<const R: usize, const N: usize> = [[int32x4_t; N]; R];
/// The sums of R vectors of rows with N columns.
type Sums<const R: usize, const N: usize> = [[float32x4_t; N]; R];

/// Canonical products of one tile (its `cells`) with N columns: `[N][16 rows]`.
pub(crate) fn quantised<F: Format, const N: usize>(
    cells: &[u8],
    columns: [&[QuantBlock]; N],
) -> [Lanes; N] {
    tile::<F, Widening, N>(Widening, cells, columns)
}

/// As [`quantised`], with dot products.
#[target_feature(enable = "dotprod")]
pub(crate) fn quantised_dotprod<F: Format, const N: usize>(
    cells: &[u8],
    columns: [&[QuantBlock]; N],
) -> [Lanes; N] {
    // SAFETY: this function is only run where there is `dotprod`.
    let products = unsafe { Sdot::new() };
    tile::<F, Sdot, N>(products, cells, columns)
}

#[inline(always)]
fn tile<F: Format, P: Products, const N: usize>(
    products: P,
    cells: &[u8],
    columns: [&[QuantBlock]; N],
) -> [Lanes; N] {
    let mut out = [[0.0f32; 16]; N];
    if N * P::REGISTERS <= 2 {
        // Few columns: the weights are read once, in order.
        rows::<F, P, 4, N>(products, cells, columns, 0, &mut out);
    } else {
        // As many sums as there are registers.
        rows::<F, P, 2, N>(products, cells, columns, 0, &mut out);
        rows::<F, P, 2, N>(products, cells, columns, 2, &mut out);
    }
    out
}

/// The products of vectors `first .. first + R` of the tile's rows.
#[inline(always)]
fn rows<F: Format, P: Products, const R: usize, const N: usize>(
    products: P,
    cells: &[u8],
    columns: [&[QuantBlock]; N],
    first: usize,
    out: &mut [Lanes; N],
) {
    let blocks_per_cell = F::LAYOUT.cell_cols() / BLOCK_COLS;
    let cells = cells.chunks_exact(F::LAYOUT.cell_bytes());
    let columns = columns.map(|x| &x[..cells.len() * blocks_per_cell]);
    // SAFETY: NEON is in the baseline of every target that has this module.
    let mut acc: Sums<R, N> = [[unsafe { vdupq_n_f32(0.0) }; N]; R];
    for (c, cell) in cells.enumerate() {
        for b in 0..blocks_per_cell {
            let x = columns.each_ref().map(|x| &x[c * blocks_per_cell + b]);
            step::<F, P, R, N>(products, cell, b, first, &x, &mut acc);
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        for (acc, out) in acc.iter().zip(&mut *out) {
            let four = &mut out[(first + r) * VECTOR_ROWS..][..VECTOR_ROWS];
            // SAFETY: the slice has four floats.
            unsafe { vst1q_f32(four.as_mut_ptr(), *acc) };
        }
    }
}

/// Adds block `b` of a cell, and of the activations, to the sums.
#[inline(always)]
fn step<F: Format, P: Products, const R: usize, const N: usize>(
    products: P,
    cell: &[u8],
    b: usize,
    first: usize,
    x: &[&QuantBlock; N],
    acc: &mut Sums<R, N>,
) {
    let whole = |n: usize| x[n].sums[0] + x[n].sums[1];
    match F::LAYOUT {
        Layout::Q4S => {
            let pair = |p: usize, r: usize| nibbles(load(cell, p * 64 + r * 16));
            let start = minus::<R, N>(|n| 8 * whole(n));
            let dots = dots::<P, 0, 2, R, N>(products, start, first, x, pair);
            scaled(acc, &halves(&cell[256..288], first), x, dots);
        }
        Layout::Q4M => {
            let pair = |p: usize, r: usize| nibbles(load(cell, p * 64 + r * 16));
            let dots = dots::<P, 0, 2, R, N>(products, minus(|_| 0), first, x, pair);
            scaled(acc, &halves(&cell[256..288], first), x, dots);
            plus_min(acc, &halves(&cell[288..320], first), x);
        }
        Layout::Q5S => {
            let pair = |p: usize, r: usize| q5_pair(cell, p, r);
            let start = minus::<R, N>(|n| 16 * whole(n));
            let dots = dots::<P, 0, 2, R, N>(products, start, first, x, pair);
            scaled(acc, &halves(&cell[320..352], first), x, dots);
        }
        Layout::Q8 => {
            let dots = q8_dots::<P, R, N>(products, cell, first, x);
            scaled(acc, &halves(&cell[512..544], first), x, dots);
        }
        Layout::Q4K => {
            let block = &cell[64 + b * 288..64 + (b + 1) * 288];
            let d = times(&halves(&cell[..32], first), &unsigned(&block[..16], first));
            let m = times(&halves(&cell[32..64], first), &unsigned(&block[16..32], first));
            let pair = |p: usize, r: usize| nibbles(load(block, 32 + p * 64 + r * 16));
            let dots = dots::<P, 0, 2, R, N>(products, minus(|_| 0), first, x, pair);
            scaled(acc, &d, x, dots);
            // SAFETY: NEON is in the baseline of every target that has this module.
            plus_min(acc, &m.map(|m| unsafe { vnegq_f32(m) }), x);
        }
        Layout::Q6K => {
            let block = &cell[32 + b * 416..32 + (b + 1) * 416];
            let d = halves::<R>(&cell[..32], first);
            let pair = |p: usize, r: usize| q6_pair(block, p, r);
            let start = minus::<R, N>(|n| 32 * x[n].sums[0]);
            let low = dots::<P, 0, 1, R, N>(products, start, first, x, pair);
            scaled(acc, &times(&d, &signed(&block[..16], first)), x, low);
            let start = minus::<R, N>(|n| 32 * x[n].sums[1]);
            let high = dots::<P, 1, 2, R, N>(products, start, first, x, pair);
            scaled(acc, &times(&d, &signed(&block[16..32], first)), x, high);
        }
        Layout::F16 | Layout::F32 => unreachable!("row-major layouts have no tiles"),
    }
}

/// Dots that begin at minus each column's offset.
#[inline(always)]
fn minus<const R: usize, const N: usize>(offset: impl Fn(usize) -> i32) -> Dots<R, N> {
    // SAFETY: NEON is in the baseline of every target that has this module.
    let columns: [int32x4_t; N] = std::array::from_fn(|n| unsafe { vdupq_n_s32(-offset(n)) });
    [columns; R]
}

/// Adds the dots of columns `16·FROM .. 16·TO` of a block with quants of at most 6 bits,
/// unsigned: all of them fit into 16 bits (see [`Widening`]). `pair(p, r)` gives groups 2p
/// and 2p + 1 of vector r.
#[inline(always)]
fn dots<P: Products, const FROM: usize, const TO: usize, const R: usize, const N: usize>(
    products: P,
    mut dots: Dots<R, N>,
    first: usize,
    x: &[&QuantBlock; N],
    pair: impl Fn(usize, usize) -> [int8x16_t; 2],
) -> Dots<R, N> {
    let mut sums = dots.map(|dots| dots.map(|dot| products.begin(dot)));
    for half in FROM..TO {
        let x = x.map(|x| signed_bytes(&x.q[16 * half..]));
        for r in 0..R {
            let [first_pair, second_pair] = [0, 1].map(|i| pair(2 * half + i, first + r));
            for n in 0..N {
                let sum = products.add::<0>(sums[r][n], first_pair[0], x[n]);
                let sum = products.add::<1>(sum, first_pair[1], x[n]);
                let sum = products.add::<2>(sum, second_pair[0], x[n]);
                sums[r][n] = products.add::<3>(sum, second_pair[1], x[n]);
            }
        }
    }
    for r in 0..R {
        for n in 0..N {
            dots[r][n] = products.end(dots[r][n], sums[r][n]);
        }
    }
    dots
}

/// Dots of signed bytes, two groups of columns a time.
#[inline(always)]
fn q8_dots<P: Products, const R: usize, const N: usize>(
    products: P,
    cell: &[u8],
    first: usize,
    x: &[&QuantBlock; N],
) -> Dots<R, N> {
    let mut dots: Dots<R, N> = minus(|_| 0);
    for half in 0..2 {
        let x = x.map(|x| signed_bytes(&x.q[16 * half..]));
        for r in 0..R {
            let group = |g: usize| load(cell, (4 * half + g) * 64 + (first + r) * 16);
            // SAFETY: NEON is in the baseline of every target that has this module.
            let w = [0, 1, 2, 3].map(|g| unsafe { vreinterpretq_s8_u8(group(g)) });
            for n in 0..N {
                let sum = products.add::<0>(products.begin(dots[r][n]), w[0], x[n]);
                let dot = products.end(dots[r][n], products.add::<1>(sum, w[1], x[n]));
                let sum = products.add::<2>(products.begin(dot), w[2], x[n]);
                dots[r][n] = products.end(dot, products.add::<3>(sum, w[3], x[n]));
            }
        }
    }
    dots
}

/// `acc + (d_w·d_x)·f32(isum)`.
#[inline(always)]
fn scaled<const R: usize, const N: usize>(
    acc: &mut Sums<R, N>,
    d_w: &[float32x4_t; R],
    x: &[&QuantBlock; N],
    isums: Dots<R, N>,
) {
    for r in 0..R {
        for n in 0..N {
            // SAFETY: NEON is in the baseline of every target that has this module.
            unsafe {
                let d = vmulq_n_f32(d_w[r], x[n].d);
                acc[r][n] = vaddq_f32(acc[r][n], vmulq_f32(d, vcvtq_f32_s32(isums[r][n])));
            }
        }
    }
}

/// `acc + m·s`.
#[inline(always)]
fn plus_min<const R: usize, const N: usize>(
    acc: &mut Sums<R, N>,
    m: &[float32x4_t; R],
    x: &[&QuantBlock; N],
) {
    for r in 0..R {
        for n in 0..N {
            // SAFETY: NEON is in the baseline of every target that has this module.
            unsafe { acc[r][n] = vaddq_f32(acc[r][n], vmulq_n_f32(m[r], x[n].s)) };
        }
    }
}

#[inline(always)]
fn times<const R: usize>(a: &[float32x4_t; R], b: &[float32x4_t; R]) -> [float32x4_t; R] {
    // SAFETY: NEON is in the baseline of every target that has this module.
    std::array::from_fn(|r| unsafe { vmulq_f32(a[r], b[r]) })
}

/// 16 bytes at `offset`.
#[inline(always)]
fn load(bytes: &[u8], offset: usize) -> uint8x16_t {
    let bytes = &bytes[offset..offset + 16];
    // SAFETY: the slice has 16 bytes; the load needs no alignment.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

/// The first 16 of some quants.
#[inline(always)]
fn signed_bytes(q: &[i8]) -> int8x16_t {
    let q = &q[..16];
    // SAFETY: the slice has 16 bytes; the load needs no alignment.
    unsafe { vld1q_s8(q.as_ptr()) }
}

/// Vectors `first .. first + R` of 16 f16, as f32.
#[inline(always)]
fn halves<const R: usize>(bytes: &[u8], first: usize) -> [float32x4_t; R] {
    std::array::from_fn(|r| {
        let four = &bytes[(first + r) * 8..(first + r) * 8 + 8];
        // SAFETY: the slice has 8 bytes; the load needs no alignment.
        unsafe { vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(four.as_ptr()))) }
    })
}

/// Vectors `first .. first + R` of 16 bytes as f32, unsigned.
#[inline(always)]
fn unsigned<const R: usize>(bytes: &[u8], first: usize) -> [float32x4_t; R] {
    std::array::from_fn(|r| {
        // SAFETY: NEON is in the baseline of every target that has this module.
        unsafe { vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(four(bytes, first + r))))) }
    })
}

/// Vectors `first .. first + R` of 16 bytes as f32, signed.
#[inline(always)]
fn signed<const R: usize>(bytes: &[u8], first: usize) -> [float32x4_t; R] {
    std::array::from_fn(|r| {
        // SAFETY: NEON is in the baseline of every target that has this module.
        unsafe {
            let eight = vmovl_s8(vreinterpret_s8_u8(four(bytes, first + r)));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(eight)))
        }
    })
}

/// Four bytes, those of vector `r`, twice.
#[inline(always)]
fn four(bytes: &[u8], r: usize) -> uint8x8_t {
    let four = bytes[r * 4..].first_chunk::<4>().expect("16 bytes");
    // SAFETY: NEON is in the baseline of every target that has this module.
    unsafe { vreinterpret_u8_u32(vdup_n_u32(u32::from_le_bytes(*four))) }
}

/// Low and high nibbles: two groups.
#[inline(always)]
fn nibbles(w: uint8x16_t) -> [int8x16_t; 2] {
    // SAFETY: NEON is in the baseline of every target that has this module.
    unsafe {
        [vreinterpretq_s8_u8(vandq_u8(w, vdupq_n_u8(15))), vreinterpretq_s8_u8(vshrq_n_u8::<4>(w))]
    }
}

/// Unsigned 5-bit quants.
#[inline(always)]
fn q5_pair(cell: &[u8], p: usize, r: usize) -> [int8x16_t; 2] {
    /// Byte 0 of each row's word, in all four of its bytes.
    const SPREAD: [u8; 16] = [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12];
    let [low, high] = nibbles(load(cell, p * 64 + r * 16));
    // SAFETY: NEON is in the baseline of every target that has this module; the array has
    // 16 bytes.
    unsafe {
        let spread = vaddq_u8(vld1q_u8(SPREAD.as_ptr()), vdupq_n_u8(p as u8));
        let bits = vqtbl1q_u8(load(cell, 256 + r * 16), spread);
        // Bit k of a row's nibble of bits, for k = 0..4 in its four bytes; even and odd groups.
        let fifth = [0x0804_0201u32, 0x8040_2010].map(|bit| {
            let set = vtstq_u8(bits, vreinterpretq_u8_u32(vdupq_n_u32(bit)));
            vreinterpretq_s8_u8(vandq_u8(set, vdupq_n_u8(16)))
        });
        [vorrq_s8(low, fifth[0]), vorrq_s8(high, fifth[1])]
    }
}

/// Unsigned 6-bit quants of a block of `Q6K`.
#[inline(always)]
fn q6_pair(block: &[u8], p: usize, r: usize) -> [int8x16_t; 2] {
    let [low, high] = nibbles(load(block, 32 + p * 64 + r * 16));
    let highs = load(block, 288 + p / 2 * 64 + r * 16);
    // SAFETY: NEON is in the baseline of every target that has this module.
    unsafe {
        // Bits 2j, 2j + 1 of each byte to bits 4 and 5.
        let moved = match p % 2 {
            0 => [vshlq_n_u8::<4>(highs), vshlq_n_u8::<2>(highs)],
            _ => [highs, vshrq_n_u8::<2>(highs)],
        };
        let upper = moved.map(|m| vreinterpretq_s8_u8(vandq_u8(m, vdupq_n_u8(0x30))));
        [vorrq_s8(low, upper[0]), vorrq_s8(high, upper[1])]
    }
}
