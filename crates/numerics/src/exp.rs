//! exp and SiLU without libm.

/// log₂ e.
const LOG2_E: f32 = f32::from_bits(0x3fb8_aa3b);
/// ln 2, high part: products with |n| ≤ 127 are exact.
const LN2_HIGH: f32 = f32::from_bits(0x3f31_7200);
/// ln 2, low part.
const LN2_LOW: f32 = f32::from_bits(0x35bf_be8e);
/// f32(1/k!) for k = 0..=7.
const COEFFICIENTS: [f32; 8] = [
    1.0,
    1.0,
    0.5,
    (1.0f64 / 6.0) as f32,
    (1.0f64 / 24.0) as f32,
    (1.0f64 / 120.0) as f32,
    (1.0f64 / 720.0) as f32,
    (1.0f64 / 5040.0) as f32,
];

/// eˣ to at most 1.22 ulp: 0 below −87, and e⁸⁸ from 88 on.
pub fn exp(x: f32) -> f32 {
    if x < -87.0 {
        return 0.0;
    }
    let x = if x < 88.0 { x } else { 88.0 };
    let n = (x * LOG2_E).round_ties_even();
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = COEFFICIENTS[7];
    for k in (0..7).rev() {
        p = p * r + COEFFICIENTS[k];
    }
    f32::from_bits(p.to_bits().wrapping_add((n as i32 as u32) << 23))
}

/// x/(1 + exp(−x)).
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// The MLP's gate: `SiLU(gate)·up`, each `[n]`.
///
/// # Panics
/// If the lengths differ.
pub fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    assert_eq!(gate.len(), up.len(), "gate and up have one length");
    gate.iter().zip(up).map(|(&g, &u)| silu(g) * u).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units in the last place of the f32 nearest to the true value.
    fn ulps(x: f32) -> f64 {
        let truth = f64::from(x).exp();
        let near = truth as f32;
        let unit = f64::from(f32::from_bits(near.to_bits() + 1)) - f64::from(near);
        ((f64::from(exp(x)) - truth) / unit).abs()
    }

    #[test]
    fn exp_is_within_the_promised_error() {
        let mut worst = 0.0f64;
        for i in 0..400_000 {
            let x = -87.0 + 175.0 * (i as f32) / 400_000.0;
            worst = worst.max(ulps(x));
        }
        assert!(worst <= 1.22, "{worst} ulp");
        assert!(worst > 0.5, "the check measures nothing");
    }

    #[test]
    fn the_ends_are_defined() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(-87.01), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(1000.0).to_bits(), exp(88.0).to_bits());
        assert!(exp(88.0).is_finite());
        assert_eq!(silu(0.0), 0.0);
        assert_eq!(silu(-200.0), -200.0 / (1.0 + exp(88.0)));
        assert!(silu(f32::NAN).is_nan(), "a NaN must reach the next finite check");
    }
}
