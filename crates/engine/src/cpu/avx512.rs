//! Canonical products over tiled layouts on AVX-512 with VNNI: 16 rows per vector, one
//! 64-byte load per four columns.
//!
//! `dpbusd` adds four products of unsigned weights and signed activations to a 32-bit
//! lane without saturating, so the integer dots are exact; signed weights are biased by
//! 128 and corrected by the activations' sum.

use std::arch::x86_64::*;

use model::Layout;
use model::layout::BLOCK_COLS;

use super::ahead::fetch_ahead;
use super::formats::{Format, Lanes};
use super::quants::QuantBlock;

/// Canonical products of one tile (its `cells`) with N columns: `[N][16 rows]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(crate) fn quantised<F: Format, const N: usize>(
    cells: &[u8],
    columns: [&[QuantBlock]; N],
) -> [Lanes; N] {
    let mut acc = [_mm512_setzero_ps(); N];
    let blocks_per_cell = F::LAYOUT.cell_cols() / BLOCK_COLS;
    let cells = cells.chunks_exact(F::LAYOUT.cell_bytes());
    for x in columns {
        assert!(x.len() >= cells.len() * blocks_per_cell, "activations have the tile's columns");
    }
    for (c, cell) in cells.enumerate() {
        if N == 1 {
            fetch_ahead(cell);
        }
        for b in 0..blocks_per_cell {
            let mut x = [&columns[0][c * blocks_per_cell + b]; N];
            for n in 1..N {
                // SAFETY: asserted above. N checks for each block cost a tenth of the time.
                x[n] = unsafe { columns[n].get_unchecked(c * blocks_per_cell + b) };
            }
            step::<F, N>(cell, b, &x, &mut acc);
        }
    }
    let mut out = [[0.0f32; 16]; N];
    for (acc, out) in acc.iter().zip(&mut out) {
        // SAFETY: `out` has 16 floats.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *acc) };
    }
    out
}

/// Adds block `b` of a cell, and of the activations, to the sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn step<F: Format, const N: usize>(
    cell: &[u8],
    b: usize,
    x: &[&QuantBlock; N],
    acc: &mut [__m512; N],
) {
    // Each column's dot starts at minus the offset times the activations' sum.
    let start = |offset: i32| -> [__m512i; N] {
        std::array::from_fn(|n| {
            let [low, high] = x[n].sums;
            _mm512_set1_epi32(-offset * (low + high))
        })
    };
    match F::LAYOUT {
        Layout::Q4S => {
            let d = halves(&cell[256..288]);
            let dots = nibble_dots::<F, N>(&cell[..256], start(8), x);
            for n in 0..N {
                acc[n] = scaled(acc[n], d, x[n].d, dots[n]);
            }
        }
        Layout::Q4M => {
            let (d, m) = (halves(&cell[256..288]), halves(&cell[288..320]));
            let dots = nibble_dots::<F, N>(&cell[..256], [_mm512_setzero_si512(); N], x);
            for n in 0..N {
                acc[n] = scaled(acc[n], d, x[n].d, dots[n]);
                acc[n] = plus_min(acc[n], m, x[n].s);
            }
        }
        Layout::Q5S => {
            let d = halves(&cell[320..352]);
            let dots = q5_dots(cell, start(16), x);
            for n in 0..N {
                acc[n] = scaled(acc[n], d, x[n].d, dots[n]);
            }
        }
        Layout::Q8 => {
            let d = halves(&cell[512..544]);
            let dots = q8_dots(cell, start(128), x);
            for n in 0..N {
                acc[n] = scaled(acc[n], d, x[n].d, dots[n]);
            }
        }
        Layout::Q4K => {
            let block = &cell[64 + b * 288..64 + (b + 1) * 288];
            let scales = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(sixteen(&block[..16])));
            let mins = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(sixteen(&block[16..32])));
            let d = _mm512_mul_ps(halves(&cell[..32]), scales);
            let m = _mm512_castps_si512(_mm512_mul_ps(halves(&cell[32..64]), mins));
            let m = _mm512_castsi512_ps(_mm512_xor_si512(m, _mm512_set1_epi32(i32::MIN)));
            let dots = nibble_dots::<F, N>(&block[32..288], [_mm512_setzero_si512(); N], x);
            for n in 0..N {
                acc[n] = scaled(acc[n], d, x[n].d, dots[n]);
                acc[n] = plus_min(acc[n], m, x[n].s);
            }
        }
        Layout::Q6K => {
            let block = &cell[32 + b * 416..32 + (b + 1) * 416];
            let d = halves(&cell[..32]);
            for sub in 0..2 {
                let scales = sixteen(&block[16 * sub..16 * sub + 16]);
                let d = _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(scales)));
                let start = std::array::from_fn(|n| _mm512_set1_epi32(-32 * x[n].sums[sub]));
                let dots = q6_dots(block, sub, start, x);
                for n in 0..N {
                    acc[n] = scaled(acc[n], d, x[n].d, dots[n]);
                }
            }
        }
        Layout::F16 | Layout::F32 => unreachable!("row-major layouts have no tiles"),
    }
}

/// `acc + (d_w·d_x)·f32(isum)`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn scaled(acc: __m512, d_w: __m512, d_x: f32, isum: __m512i) -> __m512 {
    let d = _mm512_mul_ps(d_w, _mm512_set1_ps(d_x));
    _mm512_add_ps(acc, _mm512_mul_ps(d, _mm512_cvtepi32_ps(isum)))
}

/// `acc + m·s`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn plus_min(acc: __m512, m: __m512, s: f32) -> __m512 {
    _mm512_add_ps(acc, _mm512_mul_ps(m, _mm512_set1_ps(s)))
}

/// 64 bytes at `offset`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn load(bytes: &[u8], offset: usize) -> __m512i {
    let bytes = &bytes[offset..offset + 64];
    // SAFETY: the slice has 64 bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// 16 f16 as f32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn halves(bytes: &[u8]) -> __m512 {
    let bytes = &bytes[..32];
    // SAFETY: the slice has 32 bytes; the load needs no alignment.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) })
}

/// 16 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn sixteen(bytes: &[u8]) -> __m128i {
    let bytes = &bytes[..16];
    // SAFETY: the slice has 16 bytes; the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Activations of columns `4·g .. 4·g + 4` in every lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn group(x: &QuantBlock, g: usize) -> __m512i {
    let four: &[i8; 4] = x.q[4 * g..4 * g + 4].first_chunk().expect("a block has 8 groups");
    _mm512_set1_epi32(i32::from_ne_bytes(four.map(|v| v as u8)))
}

/// Low and high nibbles of pair `p`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn nibbles(plane: &[u8], p: usize) -> (__m512i, __m512i) {
    let mask = _mm512_set1_epi8(15);
    let w = load(plane, p * 64);
    (_mm512_and_si512(w, mask), _mm512_and_si512(_mm512_srli_epi16(w, 4), mask))
}

/// Dots of unsigned nibbles. (A copy for each format F, so that the compiler inlines it.)
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn nibble_dots<F: Format, const N: usize>(
    plane: &[u8],
    mut dots: [__m512i; N],
    x: &[&QuantBlock; N],
) -> [__m512i; N] {
    for p in 0..4 {
        let (low, high) = nibbles(plane, p);
        for n in 0..N {
            dots[n] = _mm512_dpbusd_epi32(dots[n], low, group(x[n], 2 * p));
            dots[n] = _mm512_dpbusd_epi32(dots[n], high, group(x[n], 2 * p + 1));
        }
    }
    dots
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn q5_dots<const N: usize>(
    cell: &[u8],
    mut dots: [__m512i; N],
    x: &[&QuantBlock; N],
) -> [__m512i; N] {
    let sixteen = _mm512_set1_epi8(16);
    // Bit k of a row's nibble of bits, for k = 0..4 in its four bytes; even and odd groups.
    let bits = [_mm512_set1_epi32(0x0804_0201), _mm512_set1_epi32(0x8040_2010_u32 as i32)];
    // Byte 0 of each row's word in all four of its bytes; + p for byte p.
    let spread =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
    let highs = load(cell, 256);
    for p in 0..4 {
        let (low, high) = nibbles(cell, p);
        let byte = _mm512_shuffle_epi8(highs, _mm512_add_epi8(spread, _mm512_set1_epi8(p as i8)));
        let low = _mm512_mask_add_epi8(low, _mm512_test_epi8_mask(byte, bits[0]), low, sixteen);
        let high = _mm512_mask_add_epi8(high, _mm512_test_epi8_mask(byte, bits[1]), high, sixteen);
        for n in 0..N {
            dots[n] = _mm512_dpbusd_epi32(dots[n], low, group(x[n], 2 * p));
            dots[n] = _mm512_dpbusd_epi32(dots[n], high, group(x[n], 2 * p + 1));
        }
    }
    dots
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn q8_dots<const N: usize>(
    cell: &[u8],
    mut dots: [__m512i; N],
    x: &[&QuantBlock; N],
) -> [__m512i; N] {
    let bias = _mm512_set1_epi8(i8::MIN);
    for g in 0..8 {
        let w = _mm512_xor_si512(load(cell, g * 64), bias); // w + 128, unsigned
        for n in 0..N {
            dots[n] = _mm512_dpbusd_epi32(dots[n], w, group(x[n], g));
        }
    }
    dots
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn q6_dots<const N: usize>(
    block: &[u8],
    sub: usize,
    mut dots: [__m512i; N],
    x: &[&QuantBlock; N],
) -> [__m512i; N] {
    let upper = _mm512_set1_epi8(0x30);
    let highs = load(block, 288 + sub * 64);
    // Bits 2j, 2j + 1 of each byte moved to bits 4 and 5 (what crosses over is masked).
    let moved = [
        _mm512_slli_epi16(highs, 4),
        _mm512_slli_epi16(highs, 2),
        highs,
        _mm512_srli_epi16(highs, 2),
    ];
    for i in 0..2 {
        let p = 2 * sub + i;
        let (low, high) = nibbles(&block[32..], p);
        let low = _mm512_or_si512(low, _mm512_and_si512(moved[2 * i], upper));
        let high = _mm512_or_si512(high, _mm512_and_si512(moved[2 * i + 1], upper));
        for n in 0..N {
            dots[n] = _mm512_dpbusd_epi32(dots[n], low, group(x[n], 2 * p));
            dots[n] = _mm512_dpbusd_epi32(dots[n], high, group(x[n], 2 * p + 1));
        }
    }
    dots
}
