//! RMS norm.

use crate::Fault;
use crate::finite::check;
use crate::sum::striped_sum;

/// `y = (x·r)·g` with `r = 1/sqrt(S/D + eps)`, S the striped Σx².
///
/// `x` and `gain` are `[D]` f32. A fault if S is not finite.
///
/// # Panics
/// If the lengths differ.
pub fn rms_norm(x: &[f32], gain: &[f32], eps: f32) -> Result<Vec<f32>, Fault> {
    assert_eq!(x.len(), gain.len(), "a norm's gain has the row's width");
    let s = striped_sum(x.iter().map(|&v| v * v));
    check(&[s])?;
    let r = 1.0 / (s / x.len() as f32 + eps).sqrt();
    Ok(x.iter().zip(gain).map(|(&v, &g)| (v * r) * g).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_scaled_to_unit_rms() {
        let y = rms_norm(&[3.0, -4.0], &[1.0, 2.0], 0.0).unwrap();
        let r = 1.0 / 12.5f32.sqrt();
        assert_eq!(y, vec![3.0 * r, -4.0 * r * 2.0]);
    }

    #[test]
    fn an_overflowing_sum_is_a_fault() {
        assert_eq!(rms_norm(&[2e19, 0.0], &[1.0, 1.0], 1e-5), Err(Fault));
        assert!(rms_norm(&[1e19, 0.0], &[1.0, 1.0], 1e-5).is_ok());
    }
}
