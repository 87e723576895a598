//! Canonical products over tiled layouts on WASM SIMD: four rows per vector.
//!
//! Without 8-bit dot products: weights become 16-bit lanes that hold, where that saves a
//! shift, 16 or 256 times the quant; the activations of those lanes are multiplied by 16
//! or 1 instead of 256, so that every product of [`dot`](i32x4_dot_i16x8) is 256 times the
//! integer one. A block's sum stays below 2²⁸ and is divided exactly. The float operations
//! are those of `numerics`, in its order.

use std::arch::wasm32::*;

use model::Layout;
use model::layout::BLOCK_COLS;

use super::Isa;
use super::formats::{Format, Lanes};
use super::quants::QuantBlock;
use super::wasm_attention::widen;

/// Rows of a tile in one vector.
const VECTOR_ROWS: usize = 4;
/// Magnitude bits of an f16 infinity.
const HALF_NOT_FINITE: u16 = 0x7c00;

/// A block of activations as the kernel of a layout multiplies it.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct Block {
    /// Operands, each for all lanes of a vector: pairs of i16, or four i8.
    words: [u32; 16],
    d: f32,
    s: f32,
    /// Σq of columns 0..16 and 16..32.
    sums: [i32; 2],
}

/// How the quants of a layout are multiplied.
#[derive(Clone, Copy, PartialEq)]
enum Kernel {
    /// 4-bit quants straight from their bytes, as 16-bit lanes.
    Nibbles,
    /// Quants of up to 8 bits, as 16-bit lanes.
    Bytes,
    /// Quants of 0..=127 by the relaxed 8-bit dot product.
    Relaxed,
}

/// Whether products are relaxed. A module with these instructions runs only where they are, so
/// the others' kernels are in it for tests alone: a visitor waits for every byte.
const fn is_relaxed(isa: Isa) -> bool {
    cfg!(target_feature = "relaxed-simd")
        && (matches!(isa, Isa::RelaxedSimd) || !cfg!(feature = "testing"))
}

const fn kernel(isa: Isa, layout: Layout) -> Kernel {
    match layout {
        // A quant of −128..=127 takes two relaxed dot products: no gain.
        Layout::Q8 => Kernel::Bytes,
        _ if is_relaxed(isa) => Kernel::Relaxed,
        Layout::Q4S | Layout::Q4M | Layout::Q4K => Kernel::Nibbles,
        _ => Kernel::Bytes,
    }
}

/// Appends `x` to `blocks` as the kernel of `F` wants it.
pub(crate) fn prepare<F: Format>(isa: Isa, x: &[QuantBlock], blocks: &mut Vec<Block>) {
    let kernel = kernel(isa, F::LAYOUT);
    blocks.extend(x.iter().map(|x| {
        let mut block = Block { words: [0; 16], d: x.d, s: x.s, sums: x.sums };
        if kernel == Kernel::Relaxed {
            let (fours, _) = x.q.as_chunks::<4>();
            for (word, four) in block.words.iter_mut().zip(fours) {
                *word = u32::from_ne_bytes(four.map(|q| q as u8));
            }
            return block;
        }
        // Of a pair of groups: low nibbles in lanes of 1 and 256, then high ones in lanes
        // of 16 and 1.
        let times = match kernel {
            Kernel::Nibbles => i16x8(256, 256, 1, 1, 16, 16, 256, 256),
            _ => i16x8_splat(1),
        };
        let ((pairs, _), (words, _)) = (x.q.as_chunks::<8>(), block.words.as_chunks_mut::<4>());
        for (pair, words) in pairs.iter().zip(words) {
            // SAFETY: the arrays have 8 and 16 bytes; accesses need no alignment.
            unsafe {
                let q = i16x8_load_extend_i8x8(pair.as_ptr());
                let lanes = i16x8_shuffle::<0, 2, 1, 3, 4, 6, 5, 7>(q, q);
                v128_store(words.as_mut_ptr().cast(), i16x8_mul(lanes, times));
            }
        }
        block
    }));
}

/// Canonical products of one tile (its `cells`) with N prepared columns: `[N][16 rows]`;
/// `None` where a scale or min is infinite or NaN, which is for the plain code.
pub(crate) fn quantised<F: Format, const N: usize>(
    isa: Isa,
    cells: &[u8],
    columns: [&[Block]; N],
) -> Option<[Lanes; N]> {
    if is_relaxed(isa) {
        return tile::<F, true, N>(cells, columns);
    }
    tile::<F, false, N>(cells, columns)
}

#[inline(always)]
fn tile<F: Format, const RELAXED: bool, const N: usize>(
    cells: &[u8],
    columns: [&[Block]; N],
) -> Option<[Lanes; N]> {
    let mut out = [[0.0f32; 16]; N];
    let mut max = u16x8_splat(0);
    if N == 1 {
        // The activations' splats are shared by all rows.
        max = rows::<F, RELAXED, 4, N>(cells, columns, 0, &mut out);
    } else {
        // As many sums as there are registers. The compiler is not to know that these are two
        // numbers: it would have the code twice.
        for first in std::hint::black_box([2, 0]) {
            max = rows::<F, RELAXED, 2, N>(cells, columns, first, &mut out);
        }
    }
    let beyond = u16x8_ge(max, u16x8_splat(HALF_NOT_FINITE));
    if v128_any_true(beyond) { None } else { Some(out) }
}

/// The magnitude bits of a cell's f16, all rows', if they are larger than `max`.
#[inline(always)]
fn max_halves<F: Format>(max: v128, cell: &[u8]) -> v128 {
    let halves = match F::LAYOUT {
        Layout::Q4S => 256..288,
        Layout::Q4M => 256..320,
        Layout::Q5S => 320..352,
        Layout::Q8 => 512..544,
        Layout::Q4K => 0..64,
        Layout::Q6K => 0..32,
        Layout::F16 | Layout::F32 => unreachable!("row-major layouts have no tiles"),
    };
    let magnitude = u16x8_splat(0x7fff);
    cell[halves]
        .chunks_exact(16)
        .fold(max, |max, eight| u16x8_max(max, v128_and(load(eight, 0), magnitude)))
}

/// The products of vectors `first .. first + R` of the tile's rows; the largest magnitude
/// bits of all its f16 where `first` is 0.
#[inline(always)]
fn rows<F: Format, const RELAXED: bool, const R: usize, const N: usize>(
    cells: &[u8],
    columns: [&[Block]; N],
    first: usize,
    out: &mut [Lanes; N],
) -> v128 {
    let mut acc = [[f32x4_splat(0.0); N]; R];
    let mut max = u16x8_splat(0);
    let blocks_per_cell = F::LAYOUT.cell_cols() / BLOCK_COLS;
    let cells = cells.chunks_exact(F::LAYOUT.cell_bytes());
    let columns = columns.map(|x| &x[..cells.len() * blocks_per_cell]);
    for (c, cell) in cells.enumerate() {
        if first == 0 {
            max = max_halves::<F>(max, cell);
        }
        for b in 0..blocks_per_cell {
            let x = columns.each_ref().map(|x| &x[c * blocks_per_cell + b]);
            step::<F, RELAXED, R, N>(cell, b, first, &x, &mut acc);
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        for (acc, out) in acc.iter().zip(&mut *out) {
            let start = (first + r) * VECTOR_ROWS;
            store(&mut out[start..start + VECTOR_ROWS], *acc);
        }
    }
    max
}

/// Integer dots, `[R vectors of rows][N columns]`.
type Dots<const R: usize, const N: usize> = [[v128; N]; R];

/// Adds block `b` of a cell, and of the activations, to the sums.
#[inline(always)]
fn step<F: Format, const RELAXED: bool, const R: usize, const N: usize>(
    cell: &[u8],
    b: usize,
    first: usize,
    x: &[&Block; N],
    acc: &mut [[v128; N]; R],
) {
    let whole = |x: &Block| x.sums[0] + x.sums[1];
    match F::LAYOUT {
        Layout::Q4S => {
            let dots = nibble_dots::<RELAXED, R, N>(&cell[..256], first, x);
            let d = halves::<R>(&cell[256..288], first);
            scaled(acc, &d, &minus(dots, |n| 8 * whole(x[n])), x);
        }
        Layout::Q4M => {
            let dots = nibble_dots::<RELAXED, R, N>(&cell[..256], first, x);
            scaled(acc, &halves::<R>(&cell[256..288], first), &dots, x);
            plus_min(acc, &halves::<R>(&cell[288..320], first), x);
        }
        Layout::Q5S => {
            let dots = byte_dots::<RELAXED, R, N>(0..4, first, x, |p, r| q5_pair(cell, p, r));
            let d = halves::<R>(&cell[320..352], first);
            scaled(acc, &d, &minus(dots, |n| 16 * whole(x[n])), x);
        }
        Layout::Q8 => {
            let pair = |p: usize, r: usize| {
                [2 * p, 2 * p + 1].map(|group| load(cell, group * 64 + r * 16))
            };
            let dots = byte_dots::<false, R, N>(0..4, first, x, pair);
            scaled(acc, &halves::<R>(&cell[512..544], first), &dots, x);
        }
        Layout::Q4K => {
            let block = &cell[64 + b * 288..64 + (b + 1) * 288];
            let scales = bytes_unsigned::<R>(&block[..16], first);
            let mins = bytes_unsigned::<R>(&block[16..32], first);
            let (d, m) = (halves::<R>(&cell[..32], first), halves::<R>(&cell[32..64], first));
            let d = std::array::from_fn(|r| f32x4_mul(d[r], scales[r]));
            let m = std::array::from_fn(|r| f32x4_neg(f32x4_mul(m[r], mins[r])));
            let dots = nibble_dots::<RELAXED, R, N>(&block[32..288], first, x);
            scaled(acc, &d, &dots, x);
            plus_min(acc, &m, x);
        }
        Layout::Q6K => {
            let block = &cell[32 + b * 416..32 + (b + 1) * 416];
            let whole = halves::<R>(&cell[..32], first);
            for sub in 0..2 {
                let scales = bytes_signed::<R>(&block[16 * sub..16 * sub + 16], first);
                let d = std::array::from_fn(|r| f32x4_mul(whole[r], scales[r]));
                let pairs = 2 * sub..2 * sub + 2;
                let dots = byte_dots::<RELAXED, R, N>(pairs, first, x, |p, r| q6_pair(block, p, r));
                scaled(acc, &d, &minus(dots, |n| 32 * x[n].sums[sub]), x);
            }
        }
        Layout::F16 | Layout::F32 => unreachable!("row-major layouts have no tiles"),
    }
}

/// `acc + (d_w·d_x)·f32(isum)`.
#[inline(always)]
fn scaled<const R: usize, const N: usize>(
    acc: &mut [[v128; N]; R],
    d_w: &[v128; R],
    isum: &Dots<R, N>,
    x: &[&Block; N],
) {
    for n in 0..N {
        let d_x = splat(&x[n].d);
        for r in 0..R {
            let d = f32x4_mul(d_w[r], d_x);
            acc[r][n] = f32x4_add(acc[r][n], f32x4_mul(d, f32x4_convert_i32x4(isum[r][n])));
        }
    }
}

/// `acc + m·s`.
#[inline(always)]
fn plus_min<const R: usize, const N: usize>(
    acc: &mut [[v128; N]; R],
    m: &[v128; R],
    x: &[&Block; N],
) {
    for n in 0..N {
        let s = splat(&x[n].s);
        for r in 0..R {
            acc[r][n] = f32x4_add(acc[r][n], f32x4_mul(m[r], s));
        }
    }
}

/// Takes each column's offset from its dots.
#[inline(always)]
fn minus<const R: usize, const N: usize>(
    mut dots: Dots<R, N>,
    offset: impl Fn(usize) -> i32,
) -> Dots<R, N> {
    for n in 0..N {
        let offset = i32x4_splat(offset(n));
        for dots in &mut dots {
            dots[n] = i32x4_sub(dots[n], offset);
        }
    }
    dots
}

/// 16 bytes at `offset`.
#[inline(always)]
fn load(bytes: &[u8], offset: usize) -> v128 {
    let bytes = &bytes[offset..offset + 16];
    // SAFETY: the slice has 16 bytes; the load needs no alignment.
    unsafe { v128_load(bytes.as_ptr().cast()) }
}

#[inline(always)]
fn store(four: &mut [f32], values: v128) {
    let four: &mut [f32; 4] = four.try_into().expect("four floats");
    // SAFETY: the array has 16 bytes; the store needs no alignment.
    unsafe { v128_store(four.as_mut_ptr().cast(), values) };
}

/// A 32-bit value in every lane.
#[inline(always)]
fn splat<T>(value: &T) -> v128 {
    const { assert!(size_of::<T>() == 4) };
    // SAFETY: the value has four bytes; the load needs no alignment.
    unsafe { v128_load32_splat((&raw const *value).cast()) }
}

/// Vectors `first .. first + R` of 16 finite f16, as f32.
#[inline(always)]
fn halves<const R: usize>(bytes: &[u8], first: usize) -> [v128; R] {
    std::array::from_fn(|r| {
        let four = &bytes[(first + r) * 8..(first + r) * 8 + 8];
        // SAFETY: the slice has 8 bytes; the load needs no alignment.
        widen(unsafe { i32x4_load_extend_i16x4(four.as_ptr().cast()) })
    })
}

/// Vectors of 16 bytes as f32, unsigned.
#[inline(always)]
fn bytes_unsigned<const R: usize>(bytes: &[u8], first: usize) -> [v128; R] {
    std::array::from_fn(|r| {
        let four = splat(bytes[(first + r) * 4..].first_chunk::<4>().expect("16 bytes"));
        f32x4_convert_i32x4(u32x4_extend_low_u16x8(u16x8_extend_low_u8x16(four)))
    })
}

/// Vectors of 16 bytes as f32, signed.
#[inline(always)]
fn bytes_signed<const R: usize>(bytes: &[u8], first: usize) -> [v128; R] {
    std::array::from_fn(|r| {
        let four = splat(bytes[(first + r) * 4..].first_chunk::<4>().expect("16 bytes"));
        f32x4_convert_i32x4(i32x4_extend_low_i16x8(i16x8_extend_low_i8x16(four)))
    })
}

/// Dots of unsigned nibbles.
#[inline(always)]
fn nibble_dots<const RELAXED: bool, const R: usize, const N: usize>(
    plane: &[u8],
    first: usize,
    x: &[&Block; N],
) -> Dots<R, N> {
    if RELAXED {
        let pair = |p: usize, r: usize| nibbles(load(plane, p * 64 + r * 16));
        return relaxed_dots::<4, R, N>(0..4, first, x, pair);
    }
    let mut sums = [[i32x4_splat(0); N]; R];
    for p in 0..4 {
        let w: [v128; R] = std::array::from_fn(|r| load(plane, p * 64 + (first + r) * 16));
        for k in 0..4 {
            // Two columns a time: see `prepare` for what the activations make up for.
            let lanes = w.map(|w| match k {
                0 => v128_and(w, u16x8_splat(0x000f)),
                1 => v128_and(w, u16x8_splat(0x0f00)),
                2 => v128_and(w, u16x8_splat(0x00f0)),
                _ => u16x8_shr(w, 12),
            });
            for n in 0..N {
                let x = splat(&x[n].words[4 * p + k]);
                for r in 0..R {
                    sums[r][n] = i32x4_add(sums[r][n], i32x4_dot_i16x8(lanes[r], x));
                }
            }
        }
    }
    sums.map(|sums| sums.map(|sum| i32x4_shr(sum, 8)))
}

/// Dots of bytes over pairs `pairs` of groups: signed, or 0..=63 where `RELAXED`.
/// `pair(p, r)` gives groups 2p and 2p + 1 of vector r.
#[inline(always)]
fn byte_dots<const RELAXED: bool, const R: usize, const N: usize>(
    pairs: std::ops::Range<usize>,
    first: usize,
    x: &[&Block; N],
    pair: impl Fn(usize, usize) -> [v128; 2],
) -> Dots<R, N> {
    if RELAXED {
        return relaxed_dots::<1, R, N>(pairs, first, x, pair);
    }
    let mut sums = [[i32x4_splat(0); N]; R];
    for p in pairs {
        let w: [[v128; 2]; R] = std::array::from_fn(|r| pair(p, first + r));
        for k in 0..4 {
            // 256 times the quant of even columns, then of odd ones.
            let lanes = w.map(|w| match k % 2 {
                0 => i16x8_shl(w[k / 2], 8),
                _ => v128_and(w[k / 2], u16x8_splat(0xff00)),
            });
            for n in 0..N {
                let x = splat(&x[n].words[4 * p + k]);
                for r in 0..R {
                    sums[r][n] = i32x4_add(sums[r][n], i32x4_dot_i16x8(lanes[r], x));
                }
            }
        }
    }
    sums.map(|sums| sums.map(|sum| i32x4_shr(sum, 8)))
}

/// Dots by the relaxed 8-bit product, whose quants are at most 127, so that all machines
/// give one result. `PAIRS` pairs of groups are summed in 16 bits: 4 of nibbles add to at
/// most 8·2·15·127 = 30,480, one of 6 bits to 2·2·63·127 = 32,004.
#[cfg(target_feature = "relaxed-simd")]
#[inline(always)]
fn relaxed_dots<const PAIRS: usize, const R: usize, const N: usize>(
    pairs: std::ops::Range<usize>,
    first: usize,
    x: &[&Block; N],
    pair: impl Fn(usize, usize) -> [v128; 2],
) -> Dots<R, N> {
    let mut dots = [[i32x4_splat(0); N]; R];
    for start in pairs.step_by(PAIRS) {
        let mut sums = [[i16x8_splat(0); N]; R];
        for p in start..start + PAIRS {
            let w: [[v128; 2]; R] = std::array::from_fn(|r| pair(p, first + r));
            for n in 0..N {
                for k in 0..2 {
                    let x = splat(&x[n].words[2 * p + k]);
                    for r in 0..R {
                        let dot = i16x8_relaxed_dot_i8x16_i7x16(x, w[r][k]);
                        sums[r][n] = i16x8_add(sums[r][n], dot);
                    }
                }
            }
        }
        for r in 0..R {
            for n in 0..N {
                let sum = i32x4_extadd_pairwise_i16x8(sums[r][n]);
                dots[r][n] = i32x4_add(dots[r][n], sum);
            }
        }
    }
    dots
}

#[cfg(not(target_feature = "relaxed-simd"))]
#[inline(always)]
fn relaxed_dots<const PAIRS: usize, const R: usize, const N: usize>(
    _: std::ops::Range<usize>,
    _: usize,
    _: &[&Block; N],
    _: impl Fn(usize, usize) -> [v128; 2],
) -> Dots<R, N> {
    unreachable!("this module has no relaxed SIMD")
}

/// Low and high nibbles: two groups.
#[inline(always)]
fn nibbles(w: v128) -> [v128; 2] {
    let mask = u8x16_splat(15);
    [v128_and(w, mask), v128_and(u16x8_shr(w, 4), mask)]
}

/// Unsigned 5-bit quants.
#[inline(always)]
fn q5_pair(cell: &[u8], p: usize, r: usize) -> [v128; 2] {
    let [low, high] = nibbles(load(cell, p * 64 + r * 16));
    // Byte p of each row's word, in all four of its bytes.
    let spread =
        u8x16_add(u8x16(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12), u8x16_splat(p as u8));
    let bits = u8x16_swizzle(load(cell, 256 + r * 16), spread);
    // Bit k of a row's nibble of bits, for k = 0..4 in its four bytes; even and odd groups.
    let fifth = [u32x4_splat(0x0804_0201), u32x4_splat(0x8040_2010)].map(|bit| {
        let set = u8x16_eq(v128_and(bits, bit), bit);
        v128_and(set, u8x16_splat(16))
    });
    [v128_or(low, fifth[0]), v128_or(high, fifth[1])]
}

/// Unsigned 6-bit quants of a block of `Q6K`.
#[inline(always)]
fn q6_pair(block: &[u8], p: usize, r: usize) -> [v128; 2] {
    let upper = u8x16_splat(0x30);
    let [low, high] = nibbles(load(block, 32 + p * 64 + r * 16));
    // Bits 2j, 2j + 1 of each byte to bits 4 and 5 (what crosses over is masked).
    let highs = load(block, 288 + p / 2 * 64 + r * 16);
    let moved = match p % 2 {
        0 => [u16x8_shl(highs, 4), u16x8_shl(highs, 2)],
        _ => [highs, u16x8_shr(highs, 2)],
    };
    [v128_or(low, v128_and(moved[0], upper)), v128_or(high, v128_and(moved[1], upper))]
}
