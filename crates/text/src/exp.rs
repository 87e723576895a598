//! NUMERICS.md's exp, repeated from `numerics`: this crate depends on no other of ours, and the
//! sampler must weigh tokens with the same bits on every machine, which libm does not promise.

/// f32(1/k!) for k = 0 to 7.
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

/// 1.5·2²³: adding it and taking it off again rounds to the nearest even integer, in two
/// instructions that every machine has and that vectorise.
const ROUND: f32 = 12_582_912.0;

/// eˣ to at most 1.22 ulp: 0 below −87, and e⁸⁸ from 88 on.
pub(crate) fn exp(x: f32) -> f32 {
    let clamped = x.clamp(-87.0, 88.0);
    let n = (clamped * f32::from_bits(0x3fb8_aa3b) + ROUND) - ROUND;
    let r = (clamped - n * f32::from_bits(0x3f31_7200)) - n * f32::from_bits(0x35bf_be8e);
    let mut p = COEFFICIENTS[7];
    for &c in COEFFICIENTS[..7].iter().rev() {
        p = p * r + c;
    }
    // n as an integer, shifted to the exponent's place.
    let exponent = ((n + ROUND).to_bits().wrapping_sub(ROUND.to_bits())) << 23;
    let result = f32::from_bits(p.to_bits().wrapping_add(exponent));
    if x < -87.0 { 0.0 } else { result }
}

/// Writes exp((x − greatest) / temperature) of each logit to `out`, both `[V]`.
pub(crate) fn weigh(logits: &[f32], greatest: f32, temperature: f32, out: &mut Vec<f32>) {
    out.clear();
    out.extend(logits.iter().map(|&logit| exp((logit - greatest) / temperature)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_exp() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(-87.1), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        // The same bits as with the rounding that NUMERICS.md names.
        let by_the_page = |x: f32| {
            let n = (x * f32::from_bits(0x3fb8_aa3b)).round_ties_even();
            let r = (x - n * f32::from_bits(0x3f31_7200)) - n * f32::from_bits(0x35bf_be8e);
            let p = COEFFICIENTS[..7].iter().rev().fold(COEFFICIENTS[7], |p, c| p * r + c);
            f32::from_bits(p.to_bits().wrapping_add((n as i32 as u32) << 23))
        };
        let mut x = -86.9f32;
        while x < 88.0 {
            assert_eq!(exp(x).to_bits(), by_the_page(x).to_bits(), "exp({x})");
            let truth = f64::from(x).exp();
            let unit = f64::from(f32::EPSILON) * truth;
            assert!((f64::from(exp(x)) - truth).abs() <= 1.22 * unit, "exp({x}) = {}", exp(x));
            x += 0.001;
        }
    }
}
