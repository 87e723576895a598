//! The inner loops of attention on WASM SIMD, and the KV cache's f16; see `attention` for
//! what they compute.

use std::arch::wasm32::*;

use numerics::f16::F16_OVERFLOW;
use numerics::{Fault, PAGE_POSITIONS};

use super::attention::KEYS;

/// Keys of a page that are scored together, in two vectors.
type Sums = [v128; 2];
/// Their number.
const SUMS_KEYS: usize = 8;

/// Scores of keys `start .. start + 16` of K `[hd][64]`. The lanes of the striped sum are
/// folded depth first, so that few of them live at once.
pub(crate) fn score_keys(query: &[f32], k: &[f32], start: usize, factor: f32, scores: &mut [f32]) {
    assert!(k.len() >= query.len() * PAGE_POSITIONS && start + KEYS <= PAGE_POSITIONS);
    let factor = f32x4_splat(factor);
    for (i, scores) in scores[..KEYS].chunks_exact_mut(SUMS_KEYS).enumerate() {
        let keys = start + i * SUMS_KEYS;
        let sums = plus(octet(query, k, keys, 0), octet(query, k, keys, 1));
        for (four, sums) in scores.chunks_exact_mut(4).zip(sums) {
            // SAFETY: the chunk has four floats.
            unsafe { v128_store(four.as_mut_ptr().cast(), f32x4_mul(sums, factor)) };
        }
    }
}

/// Lanes `first`, `first + 2` .. `first + 14`, folded.
#[inline(always)]
fn octet(query: &[f32], k: &[f32], start: usize, first: usize) -> Sums {
    let mut quads = [[f32x4_splat(0.0); 2]; 2];
    for (i, quad) in quads.iter_mut().enumerate() {
        let lane = first + 2 * i;
        let low = plus(stripe(query, k, start, lane), stripe(query, k, start, lane + 8));
        let high = plus(stripe(query, k, start, lane + 4), stripe(query, k, start, lane + 12));
        *quad = plus(low, high);
    }
    plus(quads[0], quads[1])
}

/// Lane `lane` of the striped sum of eight keys: elements lane, lane + 16 .. of the head.
#[inline(always)]
fn stripe(query: &[f32], k: &[f32], start: usize, lane: usize) -> Sums {
    let mut sums = [f32x4_splat(0.0); 2];
    let mut i = lane;
    while i < query.len() {
        // SAFETY: row i of K is inside `k`, and the eight keys inside the row: asserted by
        // `score_keys` for all rows that the query has; loads need no alignment.
        unsafe {
            let q = v128_load32_splat((&raw const query[i]).cast());
            let keys = k.as_ptr().add(i * PAGE_POSITIONS + start);
            sums[0] = f32x4_add(sums[0], f32x4_mul(q, v128_load(keys.cast())));
            sums[1] = f32x4_add(sums[1], f32x4_mul(q, v128_load(keys.add(4).cast())));
        }
        i += 16;
    }
    sums
}

#[inline(always)]
fn plus(a: Sums, b: Sums) -> Sums {
    [f32x4_add(a[0], b[0]), f32x4_add(a[1], b[1])]
}

/// `out += p·v`, keys ascending for every element: V is `[p.len()][hd]`.
pub(crate) fn add_values(p: &[f32], v: &[f32], out: &mut [f32]) {
    let head_dim = out.len();
    assert!(v.len() >= p.len() * head_dim);
    let mut start = 0;
    while start + 32 <= head_dim {
        add_block::<8>(p, v, start, out);
        start += 32;
    }
    while start + 4 <= head_dim {
        add_block::<1>(p, v, start, out);
        start += 4;
    }
    for i in start..head_dim {
        for (n, &p) in p.iter().enumerate() {
            out[i] += p * v[n * head_dim + i];
        }
    }
}

/// Elements `start .. start + 4·N` of [`add_values`].
#[inline(always)]
fn add_block<const N: usize>(p: &[f32], v: &[f32], start: usize, out: &mut [f32]) {
    let head_dim = out.len();
    let out = &mut out[start..start + 4 * N];
    // SAFETY: the slice has 4·N floats, and V has a row of `head_dim` for each p, asserted
    // by the caller; accesses need no alignment.
    unsafe {
        let mut sums: [v128; N] =
            std::array::from_fn(|i| v128_load(out.as_ptr().add(4 * i).cast()));
        for (n, p) in p.iter().enumerate() {
            let p = v128_load32_splat((&raw const *p).cast());
            let row = v.as_ptr().add(n * head_dim + start);
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = f32x4_add(*sum, f32x4_mul(p, v128_load(row.add(4 * i).cast())));
            }
        }
        for (i, sum) in sums.iter().enumerate() {
            v128_store(out.as_mut_ptr().add(4 * i).cast(), *sum);
        }
    }
}

/// Finite f16 to f32, lengths equal.
pub(crate) fn widen_f16(from: &[u16], to: &mut [f32]) {
    let ((from, from_rest), (to, to_rest)) = (from.as_chunks::<4>(), to.as_chunks_mut::<4>());
    for (from, to) in from.iter().zip(to) {
        // SAFETY: the arrays have 8 and 16 bytes; accesses need no alignment.
        unsafe {
            let signed = i32x4_load_extend_i16x4(from.as_ptr().cast());
            v128_store(to.as_mut_ptr().cast(), widen(signed));
        }
    }
    for (t, &f) in to_rest.iter_mut().zip(from_rest) {
        *t = super::formats::f16_to_f32(f);
    }
}

/// Finite f16, sign-extended, as f32.
#[inline(always)]
pub(crate) fn widen(signed: v128) -> v128 {
    // The fraction and exponent in place, the sign at the top; rebiasing by a power of two
    // is exact and gives subnormals their value.
    let bits = v128_and(i32x4_shl(signed, 13), u32x4_splat(0x8fff_ffff));
    f32x4_mul(bits, u32x4_splat(0x7780_0000))
}

/// f32 to f16, lengths equal; a fault from 65,520 on and for NaN, as in `numerics::f16`.
pub(crate) fn narrow_f16(from: &[f32], to: &mut [u16]) -> Result<(), Fault> {
    let ((from, from_rest), (to, to_rest)) = (from.as_chunks::<4>(), to.as_chunks_mut::<4>());
    let mut beyond = u32x4_splat(0);
    for (from, to) in from.iter().zip(to) {
        // SAFETY: the array has 16 bytes; the load needs no alignment.
        let x = unsafe { v128_load(from.as_ptr().cast()) };
        let bits = v128_and(x, u32x4_splat(0x7fff_ffff));
        beyond = v128_or(beyond, u32x4_ge(bits, u32x4_splat(F16_OVERFLOW.to_bits())));
        // Half of the last kept bit, less one if that bit is even: ties go to even.
        let odd = v128_and(u32x4_shr(bits, 13), u32x4_splat(1));
        let rounded = i32x4_add(i32x4_add(bits, u32x4_splat(0xfff)), odd);
        let normal = u32x4_shr(i32x4_sub(rounded, u32x4_splat(112 << 23)), 13);
        // Below 2⁻¹⁴ the unit is 2⁻²⁴: that of the f32 from ½ on.
        let half = f32x4_splat(0.5);
        let subnormal = i32x4_sub(f32x4_add(bits, half), half);
        let small = u32x4_lt(bits, u32x4_splat(113 << 23));
        let sign = v128_and(u32x4_shr(x, 16), u32x4_splat(0x8000));
        let halves = v128_or(v128_bitselect(subnormal, normal, small), sign);
        // What is beyond the range saturates, and is a fault below.
        let packed = u16x8_narrow_i32x4(halves, halves);
        // SAFETY: the array has 8 bytes; the store needs no alignment.
        unsafe { v128_store64_lane::<0>(packed, to.as_mut_ptr().cast()) };
    }
    for (t, &f) in to_rest.iter_mut().zip(from_rest) {
        *t = numerics::f16::f32_to_f16(f)?;
    }
    if v128_any_true(beyond) { Err(Fault) } else { Ok(()) }
}
