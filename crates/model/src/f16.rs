//! IEEE binary16 to and from binary32, exact; round to nearest even.

/// The f32 with the same value; a NaN stays a NaN.
pub fn f16_to_f32(h: u16) -> f32 {
    let sign = u32::from(h >> 15) << 31;
    let exp = u32::from(h >> 10) & 0x1f;
    let frac = u32::from(h) & 0x3ff;
    let magnitude = match exp {
        // A subnormal counts in units of 2^-24, and an f32 holds every such multiple.
        0 => (frac as f32 * f32::from_bits(0x3380_0000)).to_bits(),
        0x1f => 0x7f80_0000 | frac << 13,
        _ => (exp + 112) << 23 | frac << 13,
    };
    f32::from_bits(sign | magnitude)
}

/// The f16 nearest to `x`, ties to even, subnormals kept; `None` for |x| ≥ 65520,
/// infinity and NaN, which an f16 cannot hold.
pub fn f32_to_f16(x: f32) -> Option<u16> {
    let bits = x.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude >= 0x477f_f000 {
        return None;
    }
    if magnitude < 0x3880_0000 {
        // Below the smallest normal, 2^-14: the f32 unit in the last place of 0.5 + x is
        // 2^-24, the subnormal's unit, so that the addition itself rounds to nearest even.
        let shifted = f32::from_bits(magnitude) + 0.5;
        return Some(sign | (shifted.to_bits() - 0x3f00_0000) as u16);
    }
    let odd = magnitude >> 13 & 1;
    let rounded = magnitude + 0xfff + odd;
    Some(sign | ((rounded >> 13) - (112 << 10)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_f16_survives_a_round_trip() {
        for h in 0..=u16::MAX {
            let x = f16_to_f32(h);
            if h >> 10 & 0x1f == 0x1f {
                assert!(!x.is_finite(), "{h:04x}");
                assert_eq!(x.is_nan(), h & 0x3ff != 0, "{h:04x}");
                assert_eq!(f32_to_f16(x), None);
            } else {
                assert_eq!(f32_to_f16(x), Some(h), "{h:04x} = {x}");
            }
        }
    }

    #[test]
    fn values_follow_the_definition() {
        for (h, x) in [
            (0x0001, 2f32.powi(-24)),
            (0x03ff, 1023.0 * 2f32.powi(-24)),
            (0x0400, 2f32.powi(-14)),
            (0x3c00, 1.0),
            (0x3555, 0.333_251_95),
            (0x7bff, 65504.0),
            (0xc000, -2.0),
        ] {
            assert_eq!(f16_to_f32(h), x);
        }
        assert_eq!(f16_to_f32(0x8000).to_bits(), 0x8000_0000);
    }

    #[test]
    fn halfway_goes_to_even_and_overflow_is_refused() {
        for h in 0..0x7bffu16 {
            let (a, b) = (f16_to_f32(h), f16_to_f32(h + 1));
            let middle = (a + b) / 2.0; // exact: f32 has 13 more bits
            let even = if h & 1 == 0 { h } else { h + 1 };
            assert_eq!(f32_to_f16(middle), Some(even), "{h:04x}");
            assert_eq!(f32_to_f16(-middle), Some(even | 0x8000), "{h:04x}");
            assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() - 1)), Some(h), "{h:04x}");
            assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() + 1)), Some(h + 1), "{h:04x}");
        }
        assert_eq!(f32_to_f16(65519.996), Some(0x7bff));
        assert_eq!(f32_to_f16(65520.0), None);
        assert_eq!(f32_to_f16(f32::NAN), None);
        assert_eq!(f32_to_f16(f32::from_bits(1)), Some(0));
    }
}
