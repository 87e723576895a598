//! Quantised activations: blocks of 32 with an f32 scale and an f32 sum.

use crate::BLOCK;
use crate::Fault;
use crate::finite::max_magnitude;

/// Blocks whose largest magnitude is below this become zero: 2⁻¹⁰⁰.
pub const QUANTISE_MIN: f32 = f32::from_bits(0x0d80_0000);

/// 32 activations as 8-bit integers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block {
    /// Scale: x ≈ d·q.
    pub d: f32,
    /// d·f32(Σq), which multiplies a weight block's min.
    pub s: f32,
    /// Quants, −127 ..= 127.
    pub q: [i8; BLOCK],
}

/// Quantises one block; a fault if a value is not finite.
pub fn quantise_block(x: &[f32; BLOCK]) -> Result<Block, Fault> {
    let a = max_magnitude(x)?;
    if a < QUANTISE_MIN {
        return Ok(Block { d: 0.0, s: 0.0, q: [0; BLOCK] });
    }
    let d = a / 127.0;
    let inv = 127.0 / a;
    let q = x.map(|v| (v * inv).round_ties_even().clamp(-127.0, 127.0) as i8);
    let sum: i32 = q.iter().map(|&v| i32::from(v)).sum();
    Ok(Block { d, s: d * sum as f32, q })
}

/// Quantises a row `[C]`, C a multiple of 32, to `[C / 32]` blocks.
///
/// # Panics
/// If C is not a multiple of 32.
pub fn quantise(x: &[f32]) -> Result<Vec<Block>, Fault> {
    let (blocks, rest) = x.as_chunks::<BLOCK>();
    assert!(rest.is_empty(), "{} columns are no whole number of blocks", x.len());
    blocks.iter().map(quantise_block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_magnitude_becomes_127() {
        let mut x = [0.0f32; BLOCK];
        x[0] = -2.54;
        x[1] = 1.27;
        x[2] = 0.03; // 1.5 steps of 0.02: to even
        let b = quantise_block(&x).unwrap();
        assert_eq!(b.q[..4], [-127, 64, 2, 0]);
        assert_eq!(b.d, 2.54 / 127.0);
        assert_eq!(b.s, b.d * -61.0);
    }

    #[test]
    fn tiny_blocks_are_zero_and_infinite_ones_are_faults() {
        let tiny = f32::from_bits(QUANTISE_MIN.to_bits() - 1);
        let zero = Block { d: 0.0, s: 0.0, q: [0; BLOCK] };
        assert_eq!(quantise_block(&[tiny; BLOCK]), Ok(zero));
        assert_eq!(quantise_block(&[QUANTISE_MIN; BLOCK]).unwrap().q, [127; BLOCK]);
        assert_eq!(quantise_block(&[f32::MAX; BLOCK]).unwrap().q, [127; BLOCK]);
        let mut x = [0.0; BLOCK];
        x[31] = f32::NAN;
        assert_eq!(quantise_block(&x), Err(Fault));
    }
}
