//! Rotary position embedding: its sines without libm, and the rotation.

/// 2/π.
const TWO_OVER_PI: f64 = f64::from_bits(0x3fe4_5f30_6dc9_c883);
/// π/2 in three parts.
const HALF_PI: [f64; 3] = [
    f64::from_bits(0x3ff9_21fb_5440_0000),
    f64::from_bits(0x3dd0_b461_1a60_0000),
    f64::from_bits(0x3ba3_198a_2e03_7073),
];

/// 1/k! as f64.
const fn reciprocal_factorial(k: u64) -> f64 {
    let mut factorial = 1u64;
    let mut i = 2;
    while i <= k {
        factorial *= i;
        i += 1;
    }
    1.0 / factorial as f64 // below 2⁵³ for k ≤ 18, so the division alone rounds
}

/// Sine and cosine of `position·inv_freq`, rounded to f32.
///
/// Reduction by quarter turns in f64, then Taylor polynomials; equal to libm's as f32 at
/// all values tried. Positions stay below [`crate::POSITIONS_MAX`].
pub fn sin_cos(position: u32, inv_freq: f64) -> (f32, f32) {
    let angle = f64::from(position) * inv_freq;
    let n = (angle * TWO_OVER_PI).round_ties_even();
    let r = ((angle - n * HALF_PI[0]) - n * HALF_PI[1]) - n * HALF_PI[2];
    let z = r * r;
    let mut s = const { reciprocal_factorial(17) };
    let mut t = const { reciprocal_factorial(16) };
    for k in (3..=15).rev().step_by(2) {
        s = reciprocal_factorial(k) - z * s;
    }
    for k in (2..=14).rev().step_by(2) {
        t = reciprocal_factorial(k) - z * t;
    }
    let sin = r - (r * z) * s;
    let cos = 1.0 - z * t;
    let (sin, cos) = match (n as i64).rem_euclid(4) {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    };
    (sin as f32, cos as f32)
}

/// Rotates the pair (a, b) by the angle whose (sin, cos) is given.
pub fn rotate(a: f32, b: f32, (sin, cos): (f32, f32)) -> (f32, f32) {
    (a * cos - b * sin, a * sin + b * cos)
}

/// Which elements of a head of width hd form pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// (0, 1), (2, 3), ...
    Adjacent,
    /// (0, hd/2), (1, hd/2 + 1), ...
    HalfSplit,
}

impl Pairs {
    /// The two elements of pair `i` in a head of width `head_dim`.
    pub fn elements(self, i: usize, head_dim: usize) -> (usize, usize) {
        match self {
            Pairs::Adjacent => (2 * i, 2 * i + 1),
            Pairs::HalfSplit => (i, i + head_dim / 2),
        }
    }
}

/// Rotates every head of `x`, `[heads, hd]` f32, to `position`; `inv_freq` is `[hd / 2]`.
///
/// # Panics
/// If `x` is no whole number of heads of width `2·inv_freq.len()`.
pub fn rope(x: &mut [f32], position: u32, inv_freq: &[f64], pairs: Pairs) {
    let head_dim = 2 * inv_freq.len();
    assert_eq!(x.len() % head_dim, 0, "rows are whole heads");
    for head in x.chunks_exact_mut(head_dim) {
        for (i, &f) in inv_freq.iter().enumerate() {
            let (a, b) = pairs.elements(i, head_dim);
            (head[a], head[b]) = rotate(head[a], head[b], sin_cos(position, f));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sines_equal_libm_as_f32() {
        for base in [1e4f64, 1e5, 1e6, 5e5] {
            for i in 0..32 {
                let inv_freq = base.powf(-2.0 * f64::from(i) / 64.0);
                for position in (0..131_072).step_by(97) {
                    let angle = f64::from(position) * inv_freq;
                    let (sin, cos) = sin_cos(position, inv_freq);
                    assert_eq!(sin, angle.sin() as f32, "sin at {position}, {inv_freq}");
                    assert_eq!(cos, angle.cos() as f32, "cos at {position}, {inv_freq}");
                }
            }
        }
    }

    #[test]
    fn pairs_are_the_families_own() {
        let mut x = [1.0, 0.0, 0.0, 1.0];
        let quarter = std::f64::consts::FRAC_PI_2;
        rope(&mut x, 1, &[quarter, 0.0], Pairs::Adjacent);
        assert_eq!(x.map(|v| v.round()), [0.0, 1.0, 0.0, 1.0]);
        let mut x = [1.0, 0.0, 0.0, 1.0];
        rope(&mut x, 1, &[quarter, 0.0], Pairs::HalfSplit);
        assert_eq!(x.map(|v| v.round()), [0.0, 0.0, 1.0, 1.0]);
        let mut still = [0.5, -0.25];
        rope(&mut still, 0, &[1.0], Pairs::Adjacent);
        assert_eq!(still, [0.5, -0.25]);
    }
}
