//! Canonical products over tiled layouts on AVX2: eight rows per vector.
//!
//! `maddubs` multiplies unsigned weights with signed activations and adds pairs in 16 bits,
//! saturating; every sum here stays below 32,767 (see each step), so the integer dots are
//! exact, and the float operations are those of `numerics`, in its order.

use std::arch::x86_64::*;

use model::Layout;
use model::layout::BLOCK_COLS;
use numerics::Fault;

use super::ahead::fetch_ahead;
use super::formats::{Format, Lanes};
use super::quants::QuantBlock;

/// Canonical products of one tile (its `cells`) with N columns: `[N][16 rows]`.
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn quantised<F: Format, const N: usize>(
    cells: &[u8],
    columns: [&[QuantBlock]; N],
) -> [Lanes; N] {
    let mut out = [[0.0f32; 16]; N];
    let blocks_per_cell = F::LAYOUT.cell_cols() / BLOCK_COLS;
    let cells = cells.chunks_exact(F::LAYOUT.cell_bytes());
    let columns = columns.map(|x| &x[..cells.len() * blocks_per_cell]);
    if N <= 2 {
        // Few columns: the weights are read once, in order.
        let mut acc = [[_mm256_setzero_ps(); N]; 2];
        for (c, cell) in cells.enumerate() {
            if N == 1 {
                fetch_ahead(cell);
            }
            for b in 0..blocks_per_cell {
                let x = columns.each_ref().map(|x| &x[c * blocks_per_cell + b]);
                for (half, acc) in acc.iter_mut().enumerate() {
                    step::<F, N>(cell, b, half, &x, acc);
                }
            }
        }
        for (half, acc) in acc.iter().enumerate() {
            store(acc, half, &mut out);
        }
    } else {
        // Many columns: one half of the rows at a time, so that the sums stay in registers.
        for half in 0..2 {
            let mut acc = [_mm256_setzero_ps(); N];
            for (c, cell) in cells.clone().enumerate() {
                for b in 0..blocks_per_cell {
                    let x = columns.each_ref().map(|x| &x[c * blocks_per_cell + b]);
                    step::<F, N>(cell, b, half, &x, &mut acc);
                }
            }
            store(&acc, half, &mut out);
        }
    }
    out
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn store<const N: usize>(acc: &[__m256; N], half: usize, out: &mut [Lanes; N]) {
    for (acc, out) in acc.iter().zip(out) {
        let rows = &mut out[half * 8..half * 8 + 8];
        // SAFETY: `rows` has eight floats.
        unsafe { _mm256_storeu_ps(rows.as_mut_ptr(), *acc) };
    }
}

/// Adds block `b` of a cell, and of the activations, to the sums of rows `8·half ..`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn step<F: Format, const N: usize>(
    cell: &[u8],
    b: usize,
    half: usize,
    x: &[&QuantBlock; N],
    acc: &mut [__m256; N],
) {
    let whole = |n: usize| x[n].sums[0] + x[n].sums[1];
    match F::LAYOUT {
        Layout::Q4S => {
            let d = halves(&cell[256..288], half);
            let dots = nibble_dots::<F, N>(&cell[..256], half, x);
            for n in 0..N {
                let dot = _mm256_sub_epi32(dots[n], _mm256_set1_epi32(8 * whole(n)));
                acc[n] = scaled(acc[n], d, x[n].d, dot);
            }
        }
        Layout::Q4M => {
            let (d, m) = (halves(&cell[256..288], half), halves(&cell[288..320], half));
            let dots = nibble_dots::<F, N>(&cell[..256], half, x);
            for n in 0..N {
                acc[n] = scaled(acc[n], d, x[n].d, dots[n]);
                acc[n] = plus_min(acc[n], m, x[n].s);
            }
        }
        Layout::Q5S => {
            let d = halves(&cell[320..352], half);
            let dots = q5_dots(cell, half, x);
            for n in 0..N {
                let dot = _mm256_sub_epi32(dots[n], _mm256_set1_epi32(16 * whole(n)));
                acc[n] = scaled(acc[n], d, x[n].d, dot);
            }
        }
        Layout::Q8 => {
            let d = halves(&cell[512..544], half);
            let dots = q8_dots(cell, half, x);
            for n in 0..N {
                acc[n] = scaled(acc[n], d, x[n].d, dots[n]);
            }
        }
        Layout::Q4K => {
            let block = &cell[64 + b * 288..64 + (b + 1) * 288];
            let scales = bytes_unsigned(&block[..16], half);
            let mins = bytes_unsigned(&block[16..32], half);
            let d = _mm256_mul_ps(halves(&cell[..32], half), scales);
            let m = _mm256_mul_ps(halves(&cell[32..64], half), mins);
            let m = _mm256_xor_ps(m, _mm256_set1_ps(-0.0));
            let dots = nibble_dots::<F, N>(&block[32..288], half, x);
            for n in 0..N {
                acc[n] = scaled(acc[n], d, x[n].d, dots[n]);
                acc[n] = plus_min(acc[n], m, x[n].s);
            }
        }
        Layout::Q6K => {
            let block = &cell[32 + b * 416..32 + (b + 1) * 416];
            let d = halves(&cell[..32], half);
            for sub in 0..2 {
                let scales = bytes_signed(&block[16 * sub..16 * sub + 16], half);
                let d = _mm256_mul_ps(d, scales);
                let dots = q6_dots(block, sub, half, x);
                for n in 0..N {
                    let offset = _mm256_set1_epi32(32 * x[n].sums[sub]);
                    let dot = _mm256_sub_epi32(dots[n], offset);
                    acc[n] = scaled(acc[n], d, x[n].d, dot);
                }
            }
        }
        Layout::F16 | Layout::F32 => unreachable!("row-major layouts have no tiles"),
    }
}

/// `acc + (d_w·d_x)·f32(isum)`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn scaled(acc: __m256, d_w: __m256, d_x: f32, isum: __m256i) -> __m256 {
    let d = _mm256_mul_ps(d_w, _mm256_set1_ps(d_x));
    _mm256_add_ps(acc, _mm256_mul_ps(d, _mm256_cvtepi32_ps(isum)))
}

/// `acc + m·s`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn plus_min(acc: __m256, m: __m256, s: f32) -> __m256 {
    _mm256_add_ps(acc, _mm256_mul_ps(m, _mm256_set1_ps(s)))
}

/// 32 bytes at `offset`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load(bytes: &[u8], offset: usize) -> __m256i {
    let bytes = &bytes[offset..offset + 32];
    // SAFETY: the slice has 32 bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// Eight of the 16 f16 in `bytes`, as f32.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn halves(bytes: &[u8], half: usize) -> __m256 {
    let bytes = &bytes[half * 16..half * 16 + 16];
    // SAFETY: the slice has 16 bytes; the load needs no alignment.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

/// Eight bytes of 16 as f32, unsigned.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn bytes_unsigned(bytes: &[u8], half: usize) -> __m256 {
    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight(bytes, half)))
}

/// Eight bytes of 16 as f32, signed.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn bytes_signed(bytes: &[u8], half: usize) -> __m256 {
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight(bytes, half)))
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn eight(bytes: &[u8], half: usize) -> __m128i {
    let bytes = &bytes[half * 8..half * 8 + 8];
    // SAFETY: the slice has 8 bytes; the load needs no alignment.
    unsafe { _mm_loadl_epi64(bytes.as_ptr().cast()) }
}

/// Activations of columns `4·g .. 4·g + 4` in every lane.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn group(x: &QuantBlock, g: usize) -> __m256i {
    let four: &[i8; 4] = x.q[4 * g..4 * g + 4].first_chunk().expect("a block has 8 groups");
    _mm256_set1_epi32(i32::from_ne_bytes(four.map(|v| v as u8)))
}

/// Sums of neighbouring 16-bit lanes as 32-bit lanes.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn widen(sums: __m256i) -> __m256i {
    _mm256_madd_epi16(sums, _mm256_set1_epi16(1))
}

/// Dots of unsigned nibbles: all 8 groups add to at most 8·2·15·127 = 30,480 in 16 bits.
/// (A copy for each format F, so that the compiler inlines it.)
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn nibble_dots<F: Format, const N: usize>(
    plane: &[u8],
    half: usize,
    x: &[&QuantBlock; N],
) -> [__m256i; N] {
    let mask = _mm256_set1_epi8(15);
    let mut sums = [_mm256_setzero_si256(); N];
    for p in 0..4 {
        let w = load(plane, p * 64 + half * 32);
        let low = _mm256_and_si256(w, mask);
        let high = _mm256_and_si256(_mm256_srli_epi16(w, 4), mask);
        for n in 0..N {
            let first = _mm256_maddubs_epi16(low, group(x[n], 2 * p));
            let second = _mm256_maddubs_epi16(high, group(x[n], 2 * p + 1));
            sums[n] = _mm256_add_epi16(sums[n], _mm256_add_epi16(first, second));
        }
    }
    sums.map(|s| widen(s))
}

/// Dots of unsigned 5-bit quants: 4 groups add to at most 4·2·31·127 = 31,496.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn q5_dots<const N: usize>(cell: &[u8], half: usize, x: &[&QuantBlock; N]) -> [__m256i; N] {
    let mask = _mm256_set1_epi8(15);
    let sixteen = _mm256_set1_epi8(16);
    // Bit k of a row's nibble of bits, for k = 0..4 in its four bytes; even and odd groups.
    let bits = [_mm256_set1_epi32(0x0804_0201), _mm256_set1_epi32(0x8040_2010_u32 as i32)];
    // Byte 0 of each row's word in all four of its bytes; + i for byte i.
    let spread = _mm256_setr_epi8(
        0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12, 0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12,
        12, 12, 12,
    );
    let highs = load(cell, 256 + half * 32);
    let mut dots = [_mm256_setzero_si256(); N];
    for pairs in [[0, 1], [2, 3]] {
        let mut sums = [_mm256_setzero_si256(); N];
        for p in pairs {
            let w = load(cell, p * 64 + half * 32);
            let byte =
                _mm256_shuffle_epi8(highs, _mm256_add_epi8(spread, _mm256_set1_epi8(p as i8)));
            let fifth = bits.map(|bit| {
                let set = _mm256_cmpeq_epi8(_mm256_and_si256(byte, bit), bit);
                _mm256_and_si256(set, sixteen)
            });
            let low = _mm256_or_si256(_mm256_and_si256(w, mask), fifth[0]);
            let high = _mm256_and_si256(_mm256_srli_epi16(w, 4), mask);
            let high = _mm256_or_si256(high, fifth[1]);
            for n in 0..N {
                let first = _mm256_maddubs_epi16(low, group(x[n], 2 * p));
                let second = _mm256_maddubs_epi16(high, group(x[n], 2 * p + 1));
                sums[n] = _mm256_add_epi16(sums[n], _mm256_add_epi16(first, second));
            }
        }
        for n in 0..N {
            dots[n] = _mm256_add_epi32(dots[n], widen(sums[n]));
        }
    }
    dots
}

/// Dots of signed bytes as |w|·sign(x, w): one group adds to at most 2·128·127 = 32,512.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn q8_dots<const N: usize>(cell: &[u8], half: usize, x: &[&QuantBlock; N]) -> [__m256i; N] {
    let mut dots = [_mm256_setzero_si256(); N];
    for g in 0..8 {
        let w = load(cell, g * 64 + half * 32);
        let magnitude = _mm256_abs_epi8(w);
        for n in 0..N {
            let signed = _mm256_sign_epi8(group(x[n], g), w);
            let sums = _mm256_maddubs_epi16(magnitude, signed);
            dots[n] = _mm256_add_epi32(dots[n], widen(sums));
        }
    }
    dots
}

/// Dots of unsigned 6-bit quants over columns `16·sub ..`: 2 groups add to at most
/// 2·2·63·127 = 32,004.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn q6_dots<const N: usize>(
    block: &[u8],
    sub: usize,
    half: usize,
    x: &[&QuantBlock; N],
) -> [__m256i; N] {
    let mask = _mm256_set1_epi8(15);
    let upper = _mm256_set1_epi8(0x30);
    let highs = load(block, 288 + sub * 64 + half * 32);
    // Bits 2j, 2j + 1 of each byte moved to bits 4 and 5 (what crosses over is masked).
    let moved = [
        _mm256_slli_epi16(highs, 4),
        _mm256_slli_epi16(highs, 2),
        highs,
        _mm256_srli_epi16(highs, 2),
    ]
    .map(|v| _mm256_and_si256(v, upper));
    let mut dots = [_mm256_setzero_si256(); N];
    for i in 0..2 {
        let p = 2 * sub + i;
        let w = load(block, 32 + p * 64 + half * 32);
        let low = _mm256_or_si256(_mm256_and_si256(w, mask), moved[2 * i]);
        let high = _mm256_and_si256(_mm256_srli_epi16(w, 4), mask);
        let high = _mm256_or_si256(high, moved[2 * i + 1]);
        for n in 0..N {
            let first = _mm256_maddubs_epi16(low, group(x[n], 2 * p));
            let second = _mm256_maddubs_epi16(high, group(x[n], 2 * p + 1));
            dots[n] = _mm256_add_epi32(dots[n], widen(_mm256_add_epi16(first, second)));
        }
    }
    dots
}

/// f16 to f32, lengths equal.
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn widen_f16(from: &[u16], to: &mut [f32]) {
    let ((from, from_rest), (to, to_rest)) = (from.as_chunks::<8>(), to.as_chunks_mut::<8>());
    for (f, t) in from.iter().zip(to) {
        // SAFETY: both chunks have eight elements; unaligned accesses.
        unsafe {
            let eight = _mm_loadu_si128(f.as_ptr().cast());
            _mm256_storeu_ps(t.as_mut_ptr(), _mm256_cvtph_ps(eight));
        }
    }
    for (t, &f) in to_rest.iter_mut().zip(from_rest) {
        *t = super::formats::f16_to_f32(f);
    }
}

/// f32 to f16, lengths equal; a fault from 65,520 on and for NaN, as in `numerics::f16`.
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn narrow_f16(from: &[f32], to: &mut [u16]) -> Result<(), Fault> {
    let ((from, from_rest), (to, to_rest)) = (from.as_chunks::<8>(), to.as_chunks_mut::<8>());
    let mut beyond = _mm_setzero_si128();
    for (f, t) in from.iter().zip(to) {
        // SAFETY: both chunks have eight elements; unaligned accesses.
        unsafe {
            let eight = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(f.as_ptr()));
            _mm_storeu_si128(t.as_mut_ptr().cast(), eight);
            // Infinities and NaN have all exponent bits set.
            let exponents = _mm_and_si128(eight, _mm_set1_epi16(0x7c00));
            let full = _mm_cmpeq_epi16(exponents, _mm_set1_epi16(0x7c00));
            beyond = _mm_or_si128(beyond, full);
        }
    }
    for (t, &f) in to_rest.iter_mut().zip(from_rest) {
        *t = numerics::f16::f32_to_f16(f)?;
    }
    if _mm_testz_si128(beyond, beyond) == 1 { Ok(()) } else { Err(Fault) }
}
