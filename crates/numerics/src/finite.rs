//! Finite checks: what overflows ends its session and never travels on.

/// A value reached infinity or NaN, or left the range of f16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("numeric fault: a value is infinite, not a number, or beyond f16")
    }
}

impl std::error::Error for Fault {}

/// The bits of |x|, which order like |x| and put infinities and NaN at or above
/// [`NOT_FINITE`].
pub fn magnitude_bits(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// Magnitude bits of infinity.
pub const NOT_FINITE: u32 = 0x7f80_0000;

/// The largest |x| of `values`, or a fault where one is not finite; +0 for none.
pub fn max_magnitude(values: &[f32]) -> Result<f32, Fault> {
    let max = values.iter().map(|&x| magnitude_bits(x)).max().unwrap_or(0);
    if max >= NOT_FINITE { Err(Fault) } else { Ok(f32::from_bits(max)) }
}

/// A fault unless every value is finite.
pub fn check(values: &[f32]) -> Result<(), Fault> {
    max_magnitude(values).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_infinities_and_nans_are_faults() {
        assert_eq!(max_magnitude(&[1.0, -3.0, f32::MIN_POSITIVE / 2.0]), Ok(3.0));
        assert_eq!(max_magnitude(&[]), Ok(0.0));
        assert_eq!(check(&[f32::MAX, f32::MIN]), Ok(()));
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN] {
            assert_eq!(check(&[0.0, bad]), Err(Fault));
        }
    }
}
