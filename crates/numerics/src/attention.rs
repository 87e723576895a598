//! Attention of one query head over pages of 64 keys, with an online softmax.

use crate::exp::exp;
use crate::finite::{Fault, check};
use crate::sum::{striped_dot, striped_sum};

/// f32(1/√hd), computed in f64 and rounded once.
pub fn score_factor(head_dim: usize) -> f32 {
    (1.0 / (head_dim as f64).sqrt()) as f32
}

/// Attention of one query `[hd]` over `keys` and `values`, both `[n, hd]` row-major as
/// they read back from the cache (rounded to f16 first in `canonical-1`), the last key
/// being the query's own. Pages are counted from position 0. Returns `[hd]`.
///
/// A fault if a score is not finite.
///
/// # Panics
/// If there is no key or the lengths do not fit.
pub fn attention(query: &[f32], keys: &[f32], values: &[f32]) -> Result<Vec<f32>, Fault> {
    let head_dim = query.len();
    assert!(!keys.is_empty() && keys.len() == values.len() && keys.len().is_multiple_of(head_dim));
    let factor = score_factor(head_dim);
    let page = crate::PAGE_POSITIONS * head_dim;
    let (mut m, mut l, mut o) = (0.0f32, 0.0f32, vec![0.0f32; head_dim]);
    for (index, (k, v)) in keys.chunks(page).zip(values.chunks(page)).enumerate() {
        let scores: Vec<f32> =
            k.chunks_exact(head_dim).map(|key| striped_dot(query, key) * factor).collect();
        check(&scores)?;
        let page_max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let max = if index == 0 { page_max } else { m.max(page_max) };
        let p: Vec<f32> = scores.iter().map(|&s| exp(s - max)).collect();
        let sum = striped_sum(p.iter().copied());
        if index == 0 {
            l = sum;
        } else {
            let c = exp(m - max);
            l = l * c + sum;
            o.iter_mut().for_each(|x| *x *= c);
        }
        for (&p, value) in p.iter().zip(v.chunks_exact(head_dim)) {
            for (o, &v) in o.iter_mut().zip(value) {
                *o += p * v;
            }
        }
        m = max;
    }
    Ok(o.into_iter().map(|x| x / l).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Softmax attention in f64, all keys at once.
    fn plain(query: &[f32], keys: &[f32], values: &[f32]) -> Vec<f64> {
        let hd = query.len();
        let dot = |k: &[f32]| -> f64 {
            k.iter().zip(query).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        let scores: Vec<f64> = keys.chunks(hd).map(|k| dot(k) / (hd as f64).sqrt()).collect();
        let max = scores.iter().copied().fold(f64::MIN, f64::max);
        let p: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let total: f64 = p.iter().sum();
        (0..hd)
            .map(|i| {
                p.iter().zip(values.chunks(hd)).map(|(p, v)| p * f64::from(v[i])).sum::<f64>()
                    / total
            })
            .collect()
    }

    #[test]
    fn pages_give_the_softmax_of_all_keys() {
        let wave =
            |n: usize, f: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * f).sin() * 3.0).collect() };
        for n in [1, 2, 63, 64, 65, 129, 200] {
            let (q, k, v) = (wave(24, 0.7), wave(n * 24, 0.37), wave(n * 24, 0.11));
            let got = attention(&q, &k, &v).unwrap();
            for (g, w) in got.iter().zip(plain(&q, &k, &v)) {
                assert!((f64::from(*g) - w).abs() < 2e-5, "{n} keys: {g} and {w}");
            }
        }
    }

    #[test]
    fn an_infinite_score_is_a_fault() {
        assert_eq!(attention(&[1e30, 0.0], &[1e30, 0.0], &[1.0, 1.0]), Err(Fault));
    }

    #[test]
    fn one_key_returns_its_value() {
        assert_eq!(attention(&[1.0, 2.0], &[3.0, -4.0], &[0.5, 7.0]).unwrap(), [0.5, 7.0]);
    }
}
