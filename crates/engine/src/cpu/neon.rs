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
    let mut acc: Sums<R, N> = [zero_floats(); R];
    for (c, cell) in cells.enumerate() {
        for b in 0..blocks_per_cell {
            let mut x = [&QuantBlock::ZERO; N];
            for n in 0..N {
                x[n] = &columns[n][c * blocks_per_cell + b];
            }
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
    match F::LAYOUT {
        Layout::Q4S => {
            let dots = dots::<F, P, 0, 2, R, N>(products, 8, cell, first, x);
            scaled(acc, &halves(&cell[256..288], first), x, dots);
        }
        Layout::Q4M => {
            let dots = dots::<F, P, 0, 2, R, N>(products, 0, cell, first, x);
            scaled(acc, &halves(&cell[256..288], first), x, dots);
            plus_min(acc, &halves(&cell[288..320], first), x);
        }
        Layout::Q5S => {
            let dots = dots::<F, P, 0, 2, R, N>(products, 16, cell, first, x);
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
            let dots = dots::<F, P, 0, 2, R, N>(products, 0, &block[32..], first, x);
            scaled(acc, &d, x, dots);
            // Minus m, exactly.
            minus_min(acc, &m, x);
        }
        Layout::Q6K => {
            let block = &cell[32 + b * 416..32 + (b + 1) * 416];
            let d = halves::<R>(&cell[..32], first);
            let low = dots::<F, P, 0, 1, R, N>(products, 32, &block[32..], first, x);
            scaled(acc, &times(&d, &signed(&block[..16], first)), x, low);
            let high = dots::<F, P, 1, 2, R, N>(products, 32, &block[32..], first, x);
            scaled(acc, &times(&d, &signed(&block[16..32], first)), x, high);
        }
        Layout::F16 | Layout::F32 => unreachable!("row-major layouts have no tiles"),
    }
}

/// Dots of columns `16·FROM .. 16·TO` of a block whose quants have at most 6 bits, unsigned
/// and too large by `offset`: all of them fit into 16 bits (see [`Widening`]).
// (No closures from here on: the compiler does not always inline them.)
#[inline(always)]
fn dots<
    F: Format,
    P: Products,
    const FROM: usize,
    const TO: usize,
    const R: usize,
    const N: usize,
>(
    products: P,
    offset: i32,
    plane: &[u8],
    first: usize,
    x: &[&QuantBlock; N],
) -> Dots<R, N> {
    let zero = zero_dots::<R, N>();
    let mut dots = zero;
    for n in 0..N {
        let sum: i32 = x[n].sums[FROM..TO].iter().sum();
        for r in 0..R {
            // SAFETY: NEON is in the baseline of every target that has this module.
            dots[r][n] = unsafe { vdupq_n_s32(-offset * sum) };
        }
    }
    let mut sums = [[products.begin(zero[0][0]); N]; R];
    for r in 0..R {
        for n in 0..N {
            sums[r][n] = products.begin(dots[r][n]);
        }
    }
    for half in FROM..TO {
        let q = quants(half, x);
        for r in 0..R {
            let low = pair::<F>(plane, 2 * half, first + r);
            let high = pair::<F>(plane, 2 * half + 1, first + r);
            for n in 0..N {
                let sum = products.add::<0>(sums[r][n], low[0], q[n]);
                let sum = products.add::<1>(sum, low[1], q[n]);
                let sum = products.add::<2>(sum, high[0], q[n]);
                sums[r][n] = products.add::<3>(sum, high[1], q[n]);
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

#[inline(always)]
fn zero_dots<const R: usize, const N: usize>() -> Dots<R, N> {
    // SAFETY: NEON is in the baseline of every target that has this module.
    [[unsafe { vdupq_n_s32(0) }; N]; R]
}

/// Activations of columns `16·half ..`.
#[inline(always)]
fn quants<const N: usize>(half: usize, x: &[&QuantBlock; N]) -> [int8x16_t; N] {
    // SAFETY: NEON is in the baseline of every target that has this module.
    let mut quants = [unsafe { vdupq_n_s8(0) }; N];
    for n in 0..N {
        let sixteen = &x[n].q[16 * half..16 * half + 16];
        // SAFETY: the slice has 16 bytes; the load needs no alignment.
        quants[n] = unsafe { vld1q_s8(sixteen.as_ptr()) };
    }
    quants
}

/// Groups 2p and 2p + 1 of vector r. `plane` begins with the block's nibbles.
#[inline(always)]
fn pair<F: Format>(plane: &[u8], p: usize, r: usize) -> [int8x16_t; 2] {
    match F::LAYOUT {
        Layout::Q5S => q5_pair(plane, p, r),
        Layout::Q6K => q6_pair(plane, p, r),
        _ => nibbles(load(plane, p * 64 + r * 16)),
    }
}

/// Dots of signed bytes, two groups of columns a time.
#[inline(always)]
fn q8_dots<P: Products, const R: usize, const N: usize>(
    products: P,
    cell: &[u8],
    first: usize,
    x: &[&QuantBlock; N],
) -> Dots<R, N> {
    let mut dots = zero_dots::<R, N>();
    for half in 0..2 {
        let q = quants(half, x);
        for r in 0..R {
            let at = 4 * half * 64 + (first + r) * 16;
            for n in 0..N {
                let sum = products.begin(dots[r][n]);
                let sum = products.add::<0>(sum, bytes(cell, at), q[n]);
                let sum = products.add::<1>(sum, bytes(cell, at + 64), q[n]);
                let dot = products.end(dots[r][n], sum);
                let sum = products.add::<2>(products.begin(dot), bytes(cell, at + 128), q[n]);
                let sum = products.add::<3>(sum, bytes(cell, at + 192), q[n]);
                dots[r][n] = products.end(dot, sum);
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

/// `acc + (−m)·s`.
#[inline(always)]
fn minus_min<const R: usize, const N: usize>(
    acc: &mut Sums<R, N>,
    m: &[float32x4_t; R],
    x: &[&QuantBlock; N],
) {
    let mut negative = *m;
    for r in 0..R {
        // SAFETY: NEON is in the baseline of every target that has this module.
        negative[r] = unsafe { vnegq_f32(m[r]) };
    }
    plus_min(acc, &negative, x);
}

#[inline(always)]
fn times<const R: usize>(a: &[float32x4_t; R], b: &[float32x4_t; R]) -> [float32x4_t; R] {
    let mut products = *a;
    for r in 0..R {
        // SAFETY: NEON is in the baseline of every target that has this module.
        products[r] = unsafe { vmulq_f32(a[r], b[r]) };
    }
    products
}

/// 16 bytes at `offset`.
#[inline(always)]
fn load(bytes: &[u8], offset: usize) -> uint8x16_t {
    let bytes = &bytes[offset..offset + 16];
    // SAFETY: the slice has 16 bytes; the load needs no alignment.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

/// 16 signed bytes at `offset`.
#[inline(always)]
fn bytes(bytes: &[u8], offset: usize) -> int8x16_t {
    // SAFETY: NEON is in the baseline of every target that has this module.
    unsafe { vreinterpretq_s8_u8(load(bytes, offset)) }
}

#[inline(always)]
fn zero_floats<const R: usize>() -> [float32x4_t; R] {
    // SAFETY: NEON is in the baseline of every target that has this module.
    [unsafe { vdupq_n_f32(0.0) }; R]
}

/// Vectors `first .. first + R` of 16 f16, as f32.
#[inline(always)]
fn halves<const R: usize>(bytes: &[u8], first: usize) -> [float32x4_t; R] {
    let mut floats = zero_floats();
    for r in 0..R {
        let four = &bytes[(first + r) * 8..(first + r) * 8 + 8];
        // SAFETY: the slice has 8 bytes; the load needs no alignment.
        floats[r] = unsafe { vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(four.as_ptr()))) };
    }
    floats
}

/// Vectors `first .. first + R` of 16 bytes as f32, unsigned.
#[inline(always)]
fn unsigned<const R: usize>(bytes: &[u8], first: usize) -> [float32x4_t; R] {
    let mut floats = zero_floats();
    for r in 0..R {
        // SAFETY: NEON is in the baseline of every target that has this module.
        floats[r] =
            unsafe { vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(four(bytes, first + r))))) };
    }
    floats
}

/// Vectors `first .. first + R` of 16 bytes as f32, signed.
#[inline(always)]
fn signed<const R: usize>(bytes: &[u8], first: usize) -> [float32x4_t; R] {
    let mut floats = zero_floats();
    for r in 0..R {
        // SAFETY: NEON is in the baseline of every target that has this module.
        floats[r] = unsafe {
            let eight = vmovl_s8(vreinterpret_s8_u8(four(bytes, first + r)));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(eight)))
        };
    }
    floats
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

/// Unsigned 5-bit quants of a cell of `Q5S`.
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
        [vorrq_s8(low, fifth(bits, 0x0804_0201)), vorrq_s8(high, fifth(bits, 0x8040_2010))]
    }
}

/// 16 in each byte of `bits` that has any of those of `mask`.
#[inline(always)]
fn fifth(bits: uint8x16_t, mask: u32) -> int8x16_t {
    // SAFETY: NEON is in the baseline of every target that has this module.
    unsafe {
        let set = vtstq_u8(bits, vreinterpretq_u8_u32(vdupq_n_u32(mask)));
        vreinterpretq_s8_u8(vandq_u8(set, vdupq_n_u8(16)))
    }
}

/// Unsigned 6-bit quants of a block of `Q6K`, from its nibbles on.
#[inline(always)]
fn q6_pair(plane: &[u8], p: usize, r: usize) -> [int8x16_t; 2] {
    let [low, high] = nibbles(load(plane, p * 64 + r * 16));
    let highs = load(plane, 256 + p / 2 * 64 + r * 16);
    // SAFETY: NEON is in the baseline of every target that has this module.
    unsafe {
        // Bits 2j, 2j + 1 of each byte to bits 4 and 5.
        let [even, odd] = match p % 2 {
            0 => [vshlq_n_u8::<4>(highs), vshlq_n_u8::<2>(highs)],
            _ => [highs, vshrq_n_u8::<2>(highs)],
        };
        let upper = vdupq_n_u8(0x30);
        [
            vorrq_s8(low, vreinterpretq_s8_u8(vandq_u8(even, upper))),
            vorrq_s8(high, vreinterpretq_s8_u8(vandq_u8(odd, upper))),
        ]
    }
}
