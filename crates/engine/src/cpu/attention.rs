//! Attention over KV pages: lanes are keys for the scores, head elements for the values.

use std::cell::RefCell;

use numerics::finite::NOT_FINITE;
use numerics::{Fault, PAGE_POSITIONS};

use super::elementwise::{exp, fold, for_each_isa};
use super::rows::RowsMut;
use super::{Element, Isa};

/// One kv head's keys and values for some rows of one session.
pub(crate) struct Attention<'a, E> {
    /// `[pages]` of K `[hd][64]` then V `[64][hd]`.
    pub(crate) pages: &'a [&'a [E]],
    /// `[T, H·hd]` f32, the pass's queries after RoPE.
    pub(crate) queries: &'a [f32],
    /// First row of the pass, and how many.
    pub(crate) rows: std::ops::Range<usize>,
    /// Position of the first row.
    pub(crate) position: usize,
    /// The query heads that read this kv head.
    pub(crate) heads: std::ops::Range<usize>,
    pub(crate) head_dim: usize,
    /// f32(1/√hd).
    pub(crate) factor: f32,
}

/// State of one query's online softmax.
#[derive(Clone, Copy, Default)]
pub(crate) struct Softmax {
    max: f32,
    sum: f32,
}

thread_local! {
    /// A page's K and V in f32; `2·64·hd` floats per compute thread.
    static PAGE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl<E: Element> Attention<'_, E> {
    /// Writes the heads' part of the rows of `mixed`, `[T, H·hd]`. The error is the first
    /// row with a score that is not finite.
    ///
    /// # Safety
    /// No other task may write those heads of those rows.
    pub(crate) unsafe fn run(&self, isa: Isa, mixed: RowsMut<'_>) -> Result<(), usize> {
        PAGE.with_borrow_mut(|page| {
            page.resize(2 * PAGE_POSITIONS * self.head_dim, 0.0);
            // SAFETY: passed on.
            unsafe { self.run_with(isa, mixed, page) }
        })
    }

    /// # Safety
    /// As `run`.
    unsafe fn run_with(&self, isa: Isa, mixed: RowsMut<'_>, page: &mut [f32]) -> Result<(), usize> {
        let hd = self.head_dim;
        let mut states = vec![Softmax::default(); self.rows.len() * self.heads.len()];
        let last = self.position + self.rows.len(); // one past the last key of all
        let (k, v) = page.split_at_mut(PAGE_POSITIONS * hd);
        let mut fault = Ok(());
        for (index, source) in self.pages.iter().enumerate() {
            let start = index * PAGE_POSITIONS;
            let keys = PAGE_POSITIONS.min(last - start);
            E::widen(isa, &source[..PAGE_POSITIONS * hd], k);
            E::widen(isa, &source[PAGE_POSITIONS * hd..][..keys * hd], &mut v[..keys * hd]);
            for (i, row) in self.rows.clone().enumerate() {
                let end = self.position + i + 1;
                if end <= start {
                    continue;
                }
                let keys = PAGE_POSITIONS.min(end - start);
                for (j, head) in self.heads.clone().enumerate() {
                    let columns = head * hd..(head + 1) * hd;
                    let query = &self.queries[row * mixed.width()..][columns.clone()];
                    // SAFETY: the caller's promise; one row and head at a time here.
                    let out = unsafe { mixed.part(row, columns) };
                    let state = &mut states[i * self.heads.len() + j];
                    let first = index == 0;
                    let scored =
                        attend_page(isa, isa, query, k, v, keys, self.factor, first, state, out);
                    if scored.is_err() {
                        let first = fault.err().map_or(row, |other: usize| other.min(row));
                        fault = Err(first);
                    }
                    if end <= start + PAGE_POSITIONS {
                        for o in out.iter_mut() {
                            *o /= state.sum;
                        }
                    }
                }
            }
        }
        fault
    }
}

for_each_isa! {
    /// One page of one query: K `[hd][64]`, V `[64][hd]`, the first `keys` of each.
    attend_page, attend_page_avx2, attend_page_body(
        inner: Isa, query: &[f32], k: &[f32], v: &[f32], keys: usize, factor: f32,
        first: bool, state: &mut Softmax, out: &mut [f32]
    ) -> Result<(), Fault>
}

/// Keys whose scores are computed together.
pub(crate) const KEYS: usize = 16;

#[inline(always)]
fn attend_page_body(
    inner: Isa,
    query: &[f32],
    k: &[f32],
    v: &[f32],
    keys: usize,
    factor: f32,
    first: bool,
    state: &mut Softmax,
    out: &mut [f32],
) -> Result<(), Fault> {
    let mut p = [0.0f32; PAGE_POSITIONS];
    score_page(inner, query, k, keys, factor, &mut p);
    // One that is there already changes neither maximum.
    let score = p[0];
    p[keys..].fill(score);
    let mut maxima = [if first { f32::NEG_INFINITY } else { state.max }; 16];
    let mut magnitudes = [0u32; 16];
    for stripe in p.as_chunks::<16>().0 {
        for j in 0..16 {
            magnitudes[j] = magnitudes[j].max(stripe[j].to_bits() & 0x7fff_ffff);
            maxima[j] = if stripe[j] > maxima[j] { stripe[j] } else { maxima[j] };
        }
    }
    if magnitudes.into_iter().fold(0, u32::max) >= NOT_FINITE {
        return Err(Fault);
    }
    // In any order: nothing here is NaN, and both zeros have one exponential.
    let max = maxima.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    for s in &mut p {
        *s = exp(*s - max);
    }
    // Keys beyond the last add +0, which changes no lane: every lane is at least +0.
    p[keys..].fill(0.0);
    let mut lanes = [0.0f32; 16];
    for stripe in p.chunks_exact(16) {
        for j in 0..16 {
            lanes[j] += stripe[j];
        }
    }
    let sum = fold(lanes);
    if first {
        state.sum = sum;
        out.fill(0.0);
    } else {
        let c = exp(state.max - max);
        state.sum = state.sum * c + sum;
        for o in out.iter_mut() {
            *o *= c;
        }
    }
    state.max = max;
    add_values(inner, &p[..keys], v, out);
    Ok(())
}

/// Scores of the page's first `keys` keys; those of the rest are of no meaning.
#[inline(always)]
fn score_page(
    isa: Isa,
    query: &[f32],
    k: &[f32],
    keys: usize,
    factor: f32,
    scores: &mut [f32; PAGE_POSITIONS],
) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512 {
        // SAFETY: an Isa beyond Portable is used only where it was detected.
        return unsafe { super::avx512_attention::score_page(query, k, keys, factor, scores) };
    }
    for (block, scores) in scores.chunks_exact_mut(KEYS).enumerate().take(keys.div_ceil(KEYS)) {
        score_keys(isa, query, k, block * KEYS, factor, scores);
    }
}

/// Scores of keys `start..start + 16`: striped dots whose lanes are folded pairwise.
#[inline(always)]
fn score_keys(isa: Isa, query: &[f32], k: &[f32], start: usize, factor: f32, scores: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: an Isa beyond Portable is used only where it was detected.
        return unsafe { super::avx2_attention::score_keys(query, k, start, factor, scores) };
    }
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    if isa.compiled() >= Isa::Simd128 {
        return super::wasm_attention::score_keys(query, k, start, factor, scores);
    }
    #[cfg(target_arch = "aarch64")]
    if isa >= Isa::Neon {
        return super::neon_attention::score_keys(query, k, start, factor, scores);
    }
    let _ = isa;
    let mut stripes = [[0.0f32; KEYS]; 16];
    for (i, q) in query.iter().enumerate() {
        let keys = &k[i * PAGE_POSITIONS + start..][..KEYS];
        let stripe = &mut stripes[i % 16];
        for (s, key) in stripe.iter_mut().zip(keys) {
            *s += q * key;
        }
    }
    let mut h = 8;
    while h > 0 {
        for j in 0..h {
            for n in 0..KEYS {
                stripes[j][n] += stripes[j + h][n];
            }
        }
        h /= 2;
    }
    for (score, sum) in scores.iter_mut().zip(stripes[0]) {
        *score = sum * factor;
    }
}

/// `out += p·v`, keys ascending for every element.
#[inline(always)]
fn add_values(isa: Isa, p: &[f32], v: &[f32], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512 {
        // SAFETY: an Isa beyond Portable is used only where it was detected.
        return unsafe { super::avx512_attention::add_values(p, v, out) };
    }
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: an Isa beyond Portable is used only where it was detected.
        return unsafe { super::avx2_attention::add_values(p, v, out) };
    }
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    if isa.compiled() >= Isa::Simd128 {
        return super::wasm_attention::add_values(p, v, out);
    }
    #[cfg(target_arch = "aarch64")]
    if isa >= Isa::Neon {
        return super::neon_attention::add_values(p, v, out);
    }
    let _ = isa;
    let hd = out.len();
    let (blocks, rest) = out.as_chunks_mut::<32>();
    let whole = blocks.len() * 32;
    for (b, out) in blocks.iter_mut().enumerate() {
        let mut acc = *out;
        for (n, &p) in p.iter().enumerate() {
            let value = &v[n * hd + b * 32..][..32];
            for i in 0..32 {
                acc[i] += p * value[i];
            }
        }
        *out = acc;
    }
    for (i, o) in rest.iter_mut().enumerate() {
        for (n, &p) in p.iter().enumerate() {
            *o += p * v[n * hd + whole + i];
        }
    }
}
