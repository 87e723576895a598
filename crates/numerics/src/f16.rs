//! IEEE binary16, as scales in weights and as the KV cache of `canonical-1`.

use crate::Fault;

/// Magnitudes from here on round to infinity in f16.
pub const F16_OVERFLOW: f32 = 65_520.0;

/// The f32 of the same value; exact, subnormals, infinities and NaN included.
pub fn f16_to_f32(h: u16) -> f32 {
    let sign = u32::from(h & 0x8000) << 16;
    let exponent = u32::from(h >> 10) & 0x1f;
    let fraction = u32::from(h & 0x3ff);
    match exponent {
        // fraction · 2⁻²⁴: both factors and the product are exact.
        0 => f32::from_bits((fraction as f32 * f32::from_bits(0x3380_0000)).to_bits() | sign),
        31 => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | fraction << 13),
    }
}

/// The nearest f16, ties to even, subnormals kept; a fault from [`F16_OVERFLOW`] on and
/// for NaN.
pub fn f32_to_f16(x: f32) -> Result<u16, Fault> {
    let sign = (x.to_bits() >> 16) as u16 & 0x8000;
    let bits = x.to_bits() & 0x7fff_ffff;
    if bits >= F16_OVERFLOW.to_bits() {
        return Err(Fault);
    }
    let exponent = (bits >> 23) as i32 - 127;
    let significand = (bits & 0x7f_ffff) | 0x80_0000; // 24 bits, 1.x · 2²³
    // Below 2⁻¹⁴ the f16 is subnormal: its unit is 2⁻²⁴ whatever the exponent.
    let (shift, base) = if exponent < -14 {
        (13 + (-14 - exponent) as u32, 0)
    } else {
        (13, ((exponent + 14) as u32) << 10)
    };
    if shift > 25 {
        return Ok(sign); // below half of the smallest subnormal, f32 subnormals included
    }
    let kept = significand >> shift;
    let rest = significand & ((1 << shift) - 1);
    let half = 1 << (shift - 1);
    let up = u32::from(rest > half || (rest == half && kept & 1 == 1));
    // For a normal number `kept` carries the implicit bit, which adds one to the exponent.
    Ok(sign | (base + kept + up) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_survives_the_round_trip() {
        for h in 0..=u16::MAX {
            let x = f16_to_f32(h);
            if h & 0x7c00 == 0x7c00 {
                assert!(!x.is_finite());
                assert_eq!(f32_to_f16(x), Err(Fault));
            } else {
                assert_eq!(f32_to_f16(x), Ok(h));
            }
        }
    }

    #[test]
    fn halfway_values_round_to_even_and_neighbours_to_the_nearest() {
        for h in 0..0x7bffu16 {
            let (low, high) = (f16_to_f32(h), f16_to_f32(h + 1));
            let middle = (f64::from(low) + f64::from(high)) / 2.0;
            let middle = middle as f32; // exact: one bit more than an f16 has
            let even = if h & 1 == 0 { h } else { h + 1 };
            assert_eq!(f32_to_f16(middle), Ok(even));
            assert_eq!(f32_to_f16(-middle), Ok(even | 0x8000));
            assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() + 1)), Ok(h + 1));
            assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() - 1)), Ok(h));
        }
    }

    #[test]
    fn overflow_is_a_fault() {
        assert_eq!(f32_to_f16(65_519.996), Ok(0x7bff));
        for x in [65_520.0, -65_520.0, f32::MAX, f32::INFINITY, f32::NAN] {
            assert_eq!(f32_to_f16(x), Err(Fault));
        }
        assert_eq!(f32_to_f16(f32::MIN_POSITIVE / 4.0), Ok(0));
        assert_eq!(f32_to_f16(-0.0), Ok(0x8000));
    }
}
