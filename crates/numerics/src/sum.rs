//! The striped sum: 16 lanes, folded; the one order in which floats are added up.

/// Lanes of a striped sum.
pub const STRIPES: usize = 16;

/// Folds lanes: `a[j] += a[j + h]` for j < h, h = 8, 4, 2, 1; the result is `a[0]`.
pub fn fold(mut lanes: [f32; STRIPES]) -> f32 {
    let mut h = STRIPES / 2;
    while h > 0 {
        for j in 0..h {
            lanes[j] += lanes[j + h];
        }
        h /= 2;
    }
    lanes[0]
}

/// Striped sum of `terms`: lane j takes the terms i ≡ j mod 16 in ascending order,
/// starting at +0. Each term was rounded before it came here.
pub fn striped_sum(terms: impl IntoIterator<Item = f32>) -> f32 {
    let mut lanes = [0.0f32; STRIPES];
    for (i, term) in terms.into_iter().enumerate() {
        lanes[i % STRIPES] += term;
    }
    fold(lanes)
}

/// Striped dot product of `a` and `b`, both `[n]`, each product rounded before its add.
///
/// # Panics
/// If the lengths differ.
pub fn striped_dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "a dot product needs two vectors of one length");
    striped_sum(a.iter().zip(b).map(|(&x, &y)| x * y))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_and_fold_are_as_written() {
        // 2²⁴ absorbs a lone 1 but not two of them added first: the order shows.
        let big = 16_777_216.0;
        let mut terms = [0.0f32; 33];
        terms[0] = big;
        terms[16] = 1.0; // lane 0, absorbed
        terms[32] = 1.0; // lane 0, absorbed
        assert_eq!(striped_sum(terms.iter().copied()), big);
        terms[32] = 0.0;
        terms[1] = 1.0; // lane 1: (0 + 16's nothing) joins lane 0 in the last fold
        terms[3] = 1.0; // lane 3 joins lane 1 first
        assert_eq!(striped_sum(terms.iter().copied()), big + 2.0);
        assert_eq!(striped_sum([]).to_bits(), 0);
        assert_eq!(striped_dot(&[2.0, 3.0], &[4.0, 5.0]), 23.0);
    }
}
