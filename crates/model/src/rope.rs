//! Inverse frequencies of the rotary position embedding, to the last bit.
//!
//! NUMERICS defines `inv_freq[i]` as the f64 nearest to base^(−2i/hd), because one unit in
//! its last place changes results. A platform's `pow` promises less, so its answer is only
//! the start: one Newton step in double-double arithmetic gives the nearest f64 everywhere.
//!
//! Scaling is applied to those, in f64, each operation rounded once:
//! - factors (`rope_freqs.weight`, Llama 3): inv_freq\[i\] / f64(factor\[i\]);
//! - linear: inv_freq\[i\] / f64(factor).

use crate::manifest::{Rope, RopePairs};

/// `hd / 2` inverse frequencies, unscaled: the f64s nearest to base^(−2i/hd).
///
/// `base` is at least 1 and finite, `head_dim` even.
pub fn inverse_frequencies(base: f32, head_dim: u32) -> Vec<f64> {
    assert!(base >= 1.0 && base.is_finite() && head_dim.is_multiple_of(2));
    let pairs = head_dim / 2;
    (0..pairs).map(|i| power(f64::from(base), i, pairs)).collect()
}

impl Rope {
    /// From inverse frequencies; `None` unless all are in (0, 1], which RoPE's range
    /// reduction relies on.
    pub fn new(pairs: RopePairs, inv_freq: &[f64]) -> Option<Rope> {
        let rope = Rope { pairs, inv_freq_bits: inv_freq.iter().map(|f| f.to_bits()).collect() };
        rope.in_range().then_some(rope)
    }

    /// The inverse frequencies, `head_dim / 2` of them.
    pub fn inv_freq(&self) -> impl ExactSizeIterator<Item = f64> + '_ {
        self.inv_freq_bits.iter().map(|bits| f64::from_bits(*bits))
    }

    /// True if every inverse frequency is in (0, 1].
    pub fn in_range(&self) -> bool {
        self.inv_freq().all(|f| f > 0.0 && f <= 1.0)
    }
}

/// The f64 nearest to base^(−i/n), base ≥ 1, i < n.
fn power(base: f64, i: u32, n: u32) -> f64 {
    if i == 0 || base == 1.0 {
        return 1.0;
    }
    let near = base.powf(-f64::from(i) / f64::from(n));
    // y = near solves yⁿ·baseⁱ = 1 but for a relative error e ≈ 1e-16, and then
    // p = yⁿ·baseⁱ = 1 + n·e: the answer is y − y·(p − 1)/n, the neglected terms being e².
    // The factors are taken in an order that keeps p near 1.
    let mut p = Double { hi: 1.0, lo: 0.0 };
    let (mut roots, mut bases) = (n, i);
    while roots + bases > 0 {
        if bases == 0 || (roots > 0 && p.hi >= 1.0) {
            p = p.times(near);
            roots -= 1;
        } else {
            p = p.times(base);
            bases -= 1;
        }
    }
    let excess = (p.hi - 1.0) + p.lo; // p.hi − 1 is exact near 1
    near - near * (excess / f64::from(n))
}

/// hi + lo, |lo| at most half a unit in the last place of hi: about 106 bits.
#[derive(Clone, Copy)]
struct Double {
    hi: f64,
    lo: f64,
}

impl Double {
    fn times(self, x: f64) -> Double {
        let (hi, error) = exact_product(self.hi, x);
        let lo = error + self.lo * x;
        let sum = hi + lo;
        Double { hi: sum, lo: lo - (sum - hi) }
    }
}

/// a·b = product + error, exactly (Dekker).
fn exact_product(a: f64, b: f64) -> (f64, f64) {
    let product = a * b;
    let (ah, al) = halves(a);
    let (bh, bl) = halves(b);
    let error = ((ah * bh - product) + ah * bl + al * bh) + al * bl;
    (product, error)
}

/// a = high + low, 26 bits each (Veltkamp).
fn halves(a: f64) -> (f64, f64) {
    let scaled = a * 134_217_729.0; // 2^27 + 1
    let high = scaled - (scaled - a);
    (high, a - high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_powers_are_exact() {
        // 16^(-i/4) = 2^-i; 10000^(-2i/4) = 1, 0.01.
        assert_eq!(inverse_frequencies(16.0, 8), [1.0, 0.5, 0.25, 0.125]);
        assert_eq!(inverse_frequencies(10000.0, 4), [1.0, 0.01]);
        assert_eq!(inverse_frequencies(1.0, 6), [1.0; 3]);
    }

    /// FNV-1a 64 over the little-endian f64s, computed with 60 decimal digits.
    #[test]
    fn all_are_the_nearest_f64() {
        for (base, head_dim, expected) in [
            (10000.0, 128, 0x20298441d7cd33bf),
            (500000.0, 128, 0x9d794b96ad43c210),
            (1000000.0, 128, 0xbc678fcc5ea233eb),
            (1000000.0, 64, 0x9f686f918669afd5),
            (10000.0, 80, 0x3cac495369e14454),
            (10000.0, 96, 0x9679cfac9a5d6791),
            (150000.0, 1024, 0xff8bb1bb26bff49c),
        ] {
            let bytes = inverse_frequencies(base, head_dim).into_iter().flat_map(f64::to_le_bytes);
            let hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
            assert_eq!(hash, expected, "base {base}, head width {head_dim}: {hash:016x}");
        }
    }

    #[test]
    fn the_start_does_not_matter() {
        // 1e5^(-2/64), SmolLM2's first: any start within a few units gives the same f64.
        let golden = f64::from_bits(0x3fe6_54a0_ce83_e4cb);
        assert_eq!(power(1e5, 1, 32), golden);
        // 1e6^(-126/128) of Qwen2.5-1.5B's last pair, far down the range.
        let last = *inverse_frequencies(1e6, 128).last().expect("64 of them");
        assert!((last - 1.240_937_761e-6).abs() < 1e-14, "{last:e}");
    }

    #[test]
    fn ratios_hold_over_wide_exponents() {
        // base^(-i/n) times base^(-(n-i)/n) is 1/base, to the rounding of three operations.
        for (base, head_dim) in [(1e4f32, 128), (5e5, 128), (1e6, 64), (1e30, 1024), (1.5, 80)] {
            let f = inverse_frequencies(base, head_dim);
            for i in 1..f.len() {
                let product = f[i] * f[f.len() - i] * f64::from(base);
                assert!((product - 1.0).abs() < 4e-16, "base {base}, pair {i}: {product}");
                assert!(f[i] < f[i - 1]);
            }
        }
    }

    #[test]
    fn frequencies_outside_the_range_are_refused() {
        for bad in [0.0, -0.5, 1.5, f64::NAN, f64::INFINITY] {
            assert_eq!(Rope::new(RopePairs::Adjacent, &[1.0, bad]), None, "{bad}");
        }
        assert!(Rope::new(RopePairs::HalfSplit, &[1.0, 1e-9]).is_some());
    }
}
