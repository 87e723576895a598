//! Products of a weight row with a column of activations, over plain (unpacked) quants.

use crate::quantise;
use crate::sum::striped_dot;

/// Quants that share one scale: 32 columns, or 16 of a Q6_K sub-block.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// Scale d_w. Q4_K: f32(d)·f32(sc); Q6_K: f32(d)·f32(sc).
    pub d: f32,
    /// Min, where the format has one. Q4_1: f32(m); Q4_K: −(f32(dmin)·f32(mn)).
    pub m: Option<f32>,
    /// Quants, the format's offset (8, 16, 32) already subtracted; 32 or 16 of them.
    pub q: Vec<i8>,
}

/// One row of a quantised matrix, columns ascending.
pub type Row = Vec<Block>;

/// The quantised product of one weight row `[C]` with one column of activations
/// `[C / 32]` blocks: integer dots exact, blocks ascending.
///
/// # Panics
/// If the widths differ.
pub fn quantised_dot(row: &[Block], x: &[quantise::Block]) -> f32 {
    let mut acc = 0.0f32;
    let mut column = 0;
    for block in row {
        let a = &x[column / crate::BLOCK];
        let start = column % crate::BLOCK;
        let q = &a.q[start..start + block.q.len()];
        let isum: i32 = block.q.iter().zip(q).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum();
        acc += (block.d * a.d) * isum as f32;
        if let Some(m) = block.m {
            acc += m * a.s;
        }
        column += block.q.len();
    }
    assert_eq!(column, x.len() * crate::BLOCK, "row and column have one width");
    acc
}

/// The f32 weights of a row: `w = d·q`, then `+ m` where there is one, each rounded.
pub fn dequantise(row: &[Block]) -> Vec<f32> {
    let weight = |block: &Block, q: i8| {
        let w = block.d * f32::from(q);
        block.m.map_or(w, |m| w + m)
    };
    row.iter().flat_map(|b| b.q.iter().map(move |&q| weight(b, q))).collect()
}

/// The f32 product: a striped dot of `[C]` weights and `[C]` activations.
pub fn f32_dot(weights: &[f32], x: &[f32]) -> f32 {
    striped_dot(weights, x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_scale_then_min_block_by_block() {
        let x: Vec<f32> = (0..64).map(|i| (i as f32 - 20.0) / 7.0).collect();
        let a = quantise::quantise(&x).unwrap();
        let row: Row = (0..2)
            .map(|b| Block {
                d: 0.01 + b as f32,
                m: Some(-0.3),
                q: (0..32).map(|i| (i % 16) as i8).collect(),
            })
            .collect();
        let isum =
            |b: usize| -> i32 { (0..32).map(|i| (i % 16) * i32::from(a[b].q[i as usize])).sum() };
        let mut want = 0.0f32;
        for b in 0..2 {
            want += (row[b].d * a[b].d) * isum(b) as f32;
            want += -0.3 * a[b].s;
        }
        assert_eq!(quantised_dot(&row, &a).to_bits(), want.to_bits());
        let exact = f32_dot(&dequantise(&row), &x);
        assert!((exact - want).abs() < 2.0, "{exact} and {want} are the same product");
    }

    #[test]
    fn sub_blocks_of_16_each_have_their_scale() {
        let a = quantise::quantise(&[1.0; 32]).unwrap();
        let half = |d| Block { d, m: None, q: vec![1; 16] };
        let got = quantised_dot(&[half(1.0), half(-2.0)], &a);
        let unit = a[0].d * (16 * 127) as f32;
        assert_eq!(got, unit - 2.0 * unit);
        assert_eq!(dequantise(&[half(0.5), half(2.0)])[15..17], [0.5, 2.0]);
    }
}
