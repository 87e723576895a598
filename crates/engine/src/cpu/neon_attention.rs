//! The inner loops of attention on NEON, and the KV cache's f16; see `attention` for what
//! they compute.

use std::arch::aarch64::*;

use numerics::{Fault, PAGE_POSITIONS};

use super::attention::KEYS;

/// Keys of a page that are scored together, in four vectors.
type Sums = [float32x4_t; 4];

/// Scores of keys `start .. start + 16` of K `[hd][64]`. The lanes of the striped sum are
/// folded depth first, so that few of them live at once.
pub(crate) fn score_keys(query: &[f32], k: &[f32], start: usize, factor: f32, scores: &mut [f32]) {
    assert!(k.len() >= query.len() * PAGE_POSITIONS && start + KEYS <= PAGE_POSITIONS);
    let sums = plus(octet(query, k, start, 0), octet(query, k, start, 1));
    for (four, sums) in scores[..KEYS].chunks_exact_mut(4).zip(sums) {
        // SAFETY: the chunk has four floats.
        unsafe { vst1q_f32(four.as_mut_ptr(), vmulq_n_f32(sums, factor)) };
    }
}

/// Lanes `first`, `first + 2` .. `first + 14`, folded.
#[inline(always)]
fn octet(query: &[f32], k: &[f32], start: usize, first: usize) -> Sums {
    plus(quad(query, k, start, first), quad(query, k, start, first + 2))
}

/// Lanes `lane`, `lane + 4` .. `lane + 12`, folded.
#[inline(always)]
fn quad(query: &[f32], k: &[f32], start: usize, lane: usize) -> Sums {
    let low = plus(stripe(query, k, start, lane), stripe(query, k, start, lane + 8));
    plus(low, plus(stripe(query, k, start, lane + 4), stripe(query, k, start, lane + 12)))
}

/// Lane `lane` of the striped sum of 16 keys: elements lane, lane + 16 .. of the head.
#[inline(always)]
fn stripe(query: &[f32], k: &[f32], start: usize, lane: usize) -> Sums {
    // SAFETY: NEON is in the baseline of every target that has this module.
    let mut sums = [unsafe { vdupq_n_f32(0.0) }; 4];
    let mut i = lane;
    while i < query.len() {
        for (j, sum) in sums.iter_mut().enumerate() {
            // SAFETY: row i of K is inside `k`, and the 16 keys inside the row: asserted by
            // `score_keys` for all rows that the query has.
            unsafe {
                let keys = vld1q_f32(k.as_ptr().add(i * PAGE_POSITIONS + start + 4 * j));
                *sum = vaddq_f32(*sum, vmulq_n_f32(keys, query[i]));
            }
        }
        i += 16;
    }
    sums
}

#[inline(always)]
fn plus(a: Sums, b: Sums) -> Sums {
    let mut sums = a;
    for i in 0..4 {
        // SAFETY: NEON is in the baseline of every target that has this module.
        sums[i] = unsafe { vaddq_f32(a[i], b[i]) };
    }
    sums
}

/// `out += p·v`, keys ascending for every element: V is `[p.len()][hd]`.
pub(crate) fn add_values(p: &[f32], v: &[f32], out: &mut [f32]) {
    let head_dim = out.len();
    assert!(v.len() >= p.len() * head_dim);
    let mut start = 0;
    while start + 64 <= head_dim {
        add_block::<16>(p, v, start, out);
        start += 64;
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
    // by the caller.
    unsafe {
        let mut sums = [vdupq_n_f32(0.0); N];
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = vld1q_f32(out.as_ptr().add(4 * i));
        }
        for (n, &p) in p.iter().enumerate() {
            let row = v.as_ptr().add(n * head_dim + start);
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = vaddq_f32(*sum, vmulq_n_f32(vld1q_f32(row.add(4 * i)), p));
            }
        }
        for (i, sum) in sums.iter().enumerate() {
            vst1q_f32(out.as_mut_ptr().add(4 * i), *sum);
        }
    }
}

/// f16 to f32, lengths equal.
pub(crate) fn widen_f16(from: &[u16], to: &mut [f32]) {
    let ((from, from_rest), (to, to_rest)) = (from.as_chunks::<4>(), to.as_chunks_mut::<4>());
    for (from, to) in from.iter().zip(to) {
        // SAFETY: the arrays have four elements each.
        unsafe {
            let four = vreinterpret_f16_u16(vld1_u16(from.as_ptr()));
            vst1q_f32(to.as_mut_ptr(), vcvt_f32_f16(four));
        }
    }
    for (t, &f) in to_rest.iter_mut().zip(from_rest) {
        *t = super::formats::f16_to_f32(f);
    }
}

/// f32 to f16, lengths equal; a fault from 65,520 on and for NaN, as in `numerics::f16`.
pub(crate) fn narrow_f16(from: &[f32], to: &mut [u16]) -> Result<(), Fault> {
    let ((from, from_rest), (to, to_rest)) = (from.as_chunks::<4>(), to.as_chunks_mut::<4>());
    // SAFETY: NEON is in the baseline of every target that has this module.
    let mut magnitudes = unsafe { vdup_n_u16(0) };
    for (from, to) in from.iter().zip(to) {
        // SAFETY: the arrays have four elements each.
        unsafe {
            let four = vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(from.as_ptr())));
            vst1_u16(to.as_mut_ptr(), four);
            magnitudes = vmax_u16(magnitudes, vand_u16(four, vdup_n_u16(0x7fff)));
        }
    }
    for (t, &f) in to_rest.iter_mut().zip(from_rest) {
        *t = numerics::f16::f32_to_f16(f)?;
    }
    // Infinities and NaN have all exponent bits set.
    // SAFETY: NEON is in the baseline of every target that has this module.
    if unsafe { vmaxv_u16(magnitudes) } < 0x7c00 { Ok(()) } else { Err(Fault) }
}
