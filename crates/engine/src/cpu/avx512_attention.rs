//! The inner loops of attention on AVX-512; see `attention` for what they compute.
//!
//! A query's element is loaded once for all keys of a page: sixteen keys per vector, up to
//! four vectors. Products and sums stay apart, as everywhere in canonical-1.

use std::arch::x86_64::*;

use numerics::PAGE_POSITIONS;

/// Keys per vector.
const LANES: usize = 16;

/// Scores of the first `keys` keys (and of the rest of their last sixteen) of K `[hd][64]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(crate) fn score_page(
    query: &[f32],
    k: &[f32],
    keys: usize,
    factor: f32,
    scores: &mut [f32; PAGE_POSITIONS],
) {
    assert!(k.len() >= query.len() * PAGE_POSITIONS && keys <= PAGE_POSITIONS);
    match keys.div_ceil(LANES) {
        0 => {}
        1 => score::<1>(query, k, factor, scores),
        2 => score::<2>(query, k, factor, scores),
        3 => score::<3>(query, k, factor, scores),
        _ => score::<4>(query, k, factor, scores),
    }
}

/// Scores of the first 16·V keys. The lanes of the striped sum are folded depth first, so
/// that few of them live at once.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn score<const V: usize>(
    query: &[f32],
    k: &[f32],
    factor: f32,
    scores: &mut [f32; PAGE_POSITIONS],
) {
    // Lane j is added to lane j + 8, then j to j + 4, j + 2, j + 1.
    let mut pairs = [[_mm512_setzero_ps(); V]; 2];
    for (one, pair) in pairs.iter_mut().enumerate() {
        let mut quads = [[_mm512_setzero_ps(); V]; 2];
        for (two, quad) in quads.iter_mut().enumerate() {
            let lane = one + 2 * two;
            let low = plus(stripe(query, k, lane), stripe(query, k, lane + 8));
            let high = plus(stripe(query, k, lane + 4), stripe(query, k, lane + 12));
            *quad = plus(low, high);
        }
        *pair = plus(quads[0], quads[1]);
    }
    let sums = plus(pairs[0], pairs[1]);
    let factor = _mm512_set1_ps(factor);
    for (scores, sum) in scores.chunks_exact_mut(LANES).zip(sums) {
        // SAFETY: the chunk has sixteen floats.
        unsafe { _mm512_storeu_ps(scores.as_mut_ptr(), _mm512_mul_ps(sum, factor)) };
    }
}

/// Lane `lane` of the striped sums: elements lane, lane + 16 .. of the head.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn stripe<const V: usize>(query: &[f32], k: &[f32], lane: usize) -> [__m512; V] {
    let mut sums = [_mm512_setzero_ps(); V];
    let mut i = lane;
    while i < query.len() {
        let q = _mm512_set1_ps(query[i]);
        for (v, sum) in sums.iter_mut().enumerate() {
            // SAFETY: K has a row of 64 keys for each of the query's elements, asserted by
            // the only caller's caller, and V is at most four.
            let keys = unsafe { _mm512_loadu_ps(k.as_ptr().add(i * PAGE_POSITIONS + v * LANES)) };
            *sum = _mm512_add_ps(*sum, _mm512_mul_ps(q, keys));
        }
        i += LANES;
    }
    sums
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn plus<const V: usize>(mut a: [__m512; V], b: [__m512; V]) -> [__m512; V] {
    for (a, b) in a.iter_mut().zip(b) {
        *a = _mm512_add_ps(*a, b);
    }
    a
}

/// `out += p·v`, keys ascending for every element: V is `[p.len()][hd]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(crate) fn add_values(p: &[f32], v: &[f32], out: &mut [f32]) {
    let head_dim = out.len();
    assert!(v.len() >= p.len() * head_dim);
    let mut start = 0;
    while start + 8 * LANES <= head_dim {
        add_block::<8>(p, v, start, out);
        start += 8 * LANES;
    }
    while start + 4 * LANES <= head_dim {
        add_block::<4>(p, v, start, out);
        start += 4 * LANES;
    }
    while start + LANES <= head_dim {
        add_block::<1>(p, v, start, out);
        start += LANES;
    }
    for i in start..head_dim {
        for (n, &p) in p.iter().enumerate() {
            out[i] += p * v[n * head_dim + i];
        }
    }
}

/// Elements `start .. start + 16·N` of [`add_values`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_block<const N: usize>(p: &[f32], v: &[f32], start: usize, out: &mut [f32]) {
    let head_dim = out.len();
    let out = &mut out[start..start + LANES * N];
    // SAFETY: the slice has 16·N floats, and V has a row of `head_dim` for each p, asserted
    // by the caller.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); N];
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = _mm512_loadu_ps(out.as_ptr().add(LANES * i));
        }
        for (n, &p) in p.iter().enumerate() {
            let p = _mm512_set1_ps(p);
            let row = v.as_ptr().add(n * head_dim + start);
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = _mm512_add_ps(*sum, _mm512_mul_ps(p, _mm512_loadu_ps(row.add(LANES * i))));
            }
        }
        for (i, sum) in sums.iter().enumerate() {
            _mm512_storeu_ps(out.as_mut_ptr().add(LANES * i), *sum);
        }
    }
}
