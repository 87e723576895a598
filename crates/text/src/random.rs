//! Randomness that a replay draws again.

/// 2⁶⁴ divided by the golden ratio, made odd.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The random number of one choice of one request at one position: a pure function, so that
/// recovery, replay and any order of computation draw the same.
///
/// Each argument is added to the state and mixed in turn with the finaliser of SplitMix64
/// (Steele, Lea, Flood, 2014; constants of Stafford's variant 13), whose every input bit
/// flips each output bit with a chance of about one half:
/// s₀ = mix(seed + G), s₁ = mix(s₀ + (choice + 1)·G), s₂ = mix(s₁ + (position + 1)·G).
pub fn random_bits(seed: u64, choice: u32, position: u64) -> u64 {
    let state = mix(seed.wrapping_add(GOLDEN));
    let state = mix(state.wrapping_add((u64::from(choice) + 1).wrapping_mul(GOLDEN)));
    mix(state.wrapping_add(position.wrapping_add(1).wrapping_mul(GOLDEN)))
}

/// A number in [0, 1) from the upper 53 bits.
pub(crate) fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_pinned() {
        // SplitMix64 from state 0 begins with this number.
        assert_eq!(mix(GOLDEN), 0xe220_a839_7b1d_cdaf);
        let draws = [
            random_bits(0, 0, 0),
            random_bits(1, 0, 0),
            random_bits(0, 1, 0),
            random_bits(0, 0, 1),
        ];
        assert_eq!(draws, PINNED);
    }

    const PINNED: [u64; 4] = [
        0x2382_75bc_38fc_be91,
        0xb18a_02f4_6d8d_86c3,
        0x2f10_1fe2_1496_ea20,
        0xf89a_2566_b582_2c54,
    ];

    #[test]
    fn seeds_choices_and_positions_are_spread_evenly() {
        let mut buckets = [0u32; 64];
        let (mut sum, mut count) = (0.0, 0);
        for seed in 0..16 {
            for choice in 0..16 {
                for position in 0..256 {
                    let bits = random_bits(seed, choice, position);
                    buckets[(bits >> 58) as usize] += 1;
                    sum += unit(bits);
                    count += 1;
                }
            }
        }
        // Chi-square with 63 degrees of freedom: above 114 by chance once in 10,000.
        let expected = f64::from(count) / 64.0;
        let chi: f64 =
            buckets.iter().map(|&got| (f64::from(got) - expected).powi(2) / expected).sum();
        assert!(chi < 114.0, "chi-square {chi}");
        let mean = sum / f64::from(count);
        assert!((mean - 0.5).abs() < 4.0 * 0.2887 / f64::from(count).sqrt(), "mean {mean}");
    }
}
