//! The two inner loops of attention on AVX2; see `attention` for what they compute.

use std::arch::x86_64::*;

use numerics::PAGE_POSITIONS;

use super::attention::KEYS;

/// Keys of a page that are scored together, in two vectors.
type Sums = [__m256; 2];

/// Scores of keys `start .. start + 16` of K `[hd][64]`. The lanes of the striped sum are
/// folded depth first, so that few of them live at once.
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn score_keys(query: &[f32], k: &[f32], start: usize, factor: f32, scores: &mut [f32]) {
    assert!(k.len() >= query.len() * PAGE_POSITIONS && start + KEYS <= PAGE_POSITIONS);
    let even = octet(query, k, start, 0);
    let odd = octet(query, k, start, 1);
    let sums = plus(even, odd);
    let factor = _mm256_set1_ps(factor);
    let scores = &mut scores[..KEYS];
    for (half, sums) in scores.chunks_exact_mut(8).zip(sums) {
        // SAFETY: the chunk has eight floats.
        unsafe { _mm256_storeu_ps(half.as_mut_ptr(), _mm256_mul_ps(sums, factor)) };
    }
}

/// Lanes `first`, `first + 2` .. `first + 14`, folded.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn octet(query: &[f32], k: &[f32], start: usize, first: usize) -> Sums {
    let mut quads = [[_mm256_setzero_ps(); 2]; 2];
    for (i, quad) in quads.iter_mut().enumerate() {
        let lane = first + 2 * i;
        let low = plus(stripe(query, k, start, lane), stripe(query, k, start, lane + 8));
        let high = plus(stripe(query, k, start, lane + 4), stripe(query, k, start, lane + 12));
        *quad = plus(low, high);
    }
    plus(quads[0], quads[1])
}

/// Lane `lane` of the striped sum of 16 keys: elements lane, lane + 16 .. of the head.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn stripe(query: &[f32], k: &[f32], start: usize, lane: usize) -> Sums {
    let mut sums = [_mm256_setzero_ps(); 2];
    let mut i = lane;
    while i < query.len() {
        let q = _mm256_set1_ps(query[i]);
        // SAFETY: row i of K is inside `k`, and `start + 16` inside the row: asserted by
        // the only caller's caller, for all rows that the query has.
        unsafe {
            let keys = k.as_ptr().add(i * PAGE_POSITIONS + start);
            sums[0] = _mm256_add_ps(sums[0], _mm256_mul_ps(q, _mm256_loadu_ps(keys)));
            sums[1] = _mm256_add_ps(sums[1], _mm256_mul_ps(q, _mm256_loadu_ps(keys.add(8))));
        }
        i += 16;
    }
    sums
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn plus(a: Sums, b: Sums) -> Sums {
    [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])]
}

/// `out += p·v`, keys ascending for every element: V is `[p.len()][hd]`.
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn add_values(p: &[f32], v: &[f32], out: &mut [f32]) {
    let head_dim = out.len();
    assert!(v.len() >= p.len() * head_dim);
    let mut start = 0;
    while start + 64 <= head_dim {
        add_block::<8>(p, v, start, out);
        start += 64;
    }
    while start + 8 <= head_dim {
        add_block::<1>(p, v, start, out);
        start += 8;
    }
    for i in start..head_dim {
        for (n, &p) in p.iter().enumerate() {
            out[i] += p * v[n * head_dim + i];
        }
    }
}

/// Elements `start .. start + 8·N` of [`add_values`].
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn add_block<const N: usize>(p: &[f32], v: &[f32], start: usize, out: &mut [f32]) {
    let head_dim = out.len();
    let out = &mut out[start..start + 8 * N];
    // SAFETY: the slice has 8·N floats, and V has a row of `head_dim` for each p, asserted
    // by the caller.
    unsafe {
        let mut sums = [_mm256_setzero_ps(); N];
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = _mm256_loadu_ps(out.as_ptr().add(8 * i));
        }
        for (n, &p) in p.iter().enumerate() {
            let p = _mm256_set1_ps(p);
            let row = v.as_ptr().add(n * head_dim + start);
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = _mm256_add_ps(*sum, _mm256_mul_ps(p, _mm256_loadu_ps(row.add(8 * i))));
            }
        }
        for (i, sum) in sums.iter().enumerate() {
            _mm256_storeu_ps(out.as_mut_ptr().add(8 * i), *sum);
        }
    }
}
