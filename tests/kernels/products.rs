//! Matrix products of every layout.

use engine::testing::{self, Weights};
use engine::{Class, Isa};
use model::Layout;
use model::dequant;
use model::layout::TILE_ROWS;
use model::testing::Random;
use numerics::product::{f32_dot, quantised_dot};
use numerics::quantise::quantise;
use reference::weights::{Matrix, unpack};

use crate::guard::{Guarded, random_floats};

const LAYOUTS: [Layout; 8] = [
    Layout::Q4S,
    Layout::Q4M,
    Layout::Q4K,
    Layout::Q5S,
    Layout::Q6K,
    Layout::Q8,
    Layout::F16,
    Layout::F32,
];

/// Bytes of a matrix: random, or all the same, but with sound f16 where scales are.
fn random_cells(
    layout: Layout,
    rows: usize,
    cols: usize,
    fill: Option<u8>,
    random: &mut Random,
) -> Vec<u8> {
    let len = layout.matrix_bytes(rows, cols).expect("whole cells");
    let mut bytes: Vec<u8> =
        (0..len).map(|_| fill.unwrap_or((random.next() >> 32) as u8)).collect();
    let halves = match layout {
        Layout::Q4S => 256..288,
        Layout::Q4M => 256..320,
        Layout::Q5S => 320..352,
        Layout::Q8 => 512..544,
        Layout::Q4K => 0..64,
        Layout::Q6K => 0..32,
        Layout::F16 => 0..2,
        Layout::F32 => 0..0,
    };
    for cell in bytes.chunks_exact_mut(layout.cell_bytes()) {
        for half in cell[halves.clone()].chunks_exact_mut(2) {
            // Exponents up to 2⁵, subnormals included.
            let h = (random.next() as u16 & 0x83ff) | (random.below(20) as u16) << 10;
            half.copy_from_slice(&h.to_le_bytes());
        }
        if layout == Layout::F32 {
            cell.copy_from_slice(&(random.unit() * 3.0).to_le_bytes());
        }
    }
    bytes
}

/// What `numerics` gives for row r and one column.
fn expected(matrix: &Matrix, class: Class, r: usize, x: &[f32], bias: Option<&[f32]>) -> f32 {
    let sum = match &matrix.quants {
        Some(rows) if class == Class::Canonical1 => {
            quantised_dot(&rows[r], &quantise(x).expect("finite"))
        }
        _ => f32_dot(&matrix.weights[r], x),
    };
    bias.map_or(sum, |bias| sum + bias[r])
}

/// Operands of which every integer sum is as large as can be.
#[derive(Clone, Copy)]
struct Fill {
    /// Every byte of the quants.
    byte: u8,
    /// Of the activations, by turns: each becomes a quant of ±127.
    signs: [f32; 3],
}

struct Case {
    layout: Layout,
    rows: usize,
    cols: usize,
    columns: usize,
    fill: Option<Fill>,
    bias: bool,
    seed: u64,
}

fn check(case: &Case) {
    let Case { layout, rows, cols, columns, fill, .. } = *case;
    let mut random = Random::new(case.seed);
    let byte = fill.map(|fill| fill.byte);
    let bytes = random_cells(layout, rows, cols, byte, &mut random);
    let plain = unpack(dequant::Matrix::new(layout, rows, cols, &bytes).expect("its length"));
    let weights = Weights::new(layout, rows, cols, bytes);
    let input = match fill {
        Some(Fill { signs, .. }) => (0..columns * cols).map(|i| signs[i % 3] * 1.5).collect(),
        None => random_floats(&mut random, columns * cols),
    };
    let bias = case.bias.then(|| random_floats(&mut random, rows));
    let tiles = rows.div_ceil(TILE_ROWS);
    for class in [Class::Canonical1, Class::ExactF32] {
        let want: Vec<f32> = input
            .chunks_exact(cols)
            .flat_map(|x| {
                (0..rows)
                    .map(|r| expected(&plain, class, r, x, bias.as_deref()))
                    .collect::<Vec<_>>()
            })
            .collect();
        for isa in Isa::available() {
            for part in [0..tiles, tiles / 2..tiles] {
                let mut output = Guarded::new(columns * rows);
                let input = &input[..];
                let out = output.buffer();
                testing::product(isa, class, &weights, part.clone(), input, bias.as_deref(), out)
                    .expect("finite activations");
                let inside = |i: usize| part.contains(&(i % rows / TILE_ROWS));
                let want: Vec<Option<f32>> =
                    want.iter().enumerate().map(|(i, &x)| inside(i).then_some(x)).collect();
                let what = format!("{layout:?} [{rows}, {cols}] × {columns}, {class:?}, {isa:?}");
                output.expect(&want, &what);
            }
        }
    }
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn every_layout_at_every_column_count() {
    let mut seed = 1;
    for layout in LAYOUTS {
        let unit = layout.cell_cols().max(1);
        for columns in 1..=9 {
            for (rows, cells) in [(1, 1), (16, 2), (37, 3)] {
                let cols = if unit == 1 { 20 * cells + columns } else { cells * unit };
                let bias = columns % 2 == 0;
                check(&Case { layout, rows, cols, columns, fill: None, bias, seed });
                seed += 1;
            }
        }
    }
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn long_rows_and_wide_batches() {
    for (i, layout) in LAYOUTS.into_iter().enumerate() {
        let seed = 1000 + i as u64;
        check(&Case { layout, rows: 21, cols: 2048, columns: 3, fill: None, bias: true, seed });
        check(&Case { layout, rows: 17, cols: 512, columns: 37, fill: None, bias: false, seed });
        // More columns than stay in the cache while a tile is used.
        check(&Case { layout, rows: 33, cols: 8192, columns: 41, fill: None, bias: false, seed });
    }
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn the_largest_integer_sums_do_not_saturate() {
    for (i, layout) in LAYOUTS.into_iter().enumerate() {
        if !layout.is_tiled() {
            continue;
        }
        for byte in [0x00, 0x7f, 0x80, 0x81, 0xff] {
            // All of one sign add up in every order; mixed ones may not cancel what overflowed.
            for signs in [[1.0; 3], [-1.0; 3], [-1.0, 1.0, 1.0]] {
                for columns in [1, 4, 8] {
                    let seed = 2000 + i as u64;
                    let fill = Some(Fill { byte, signs });
                    check(&Case { layout, rows: 16, cols: 512, columns, fill, bias: false, seed });
                }
            }
        }
    }
}

#[cfg_attr(not(target_arch = "wasm32"), test)]
pub fn lookups_are_dequantised_rows() {
    for (i, layout) in LAYOUTS.into_iter().enumerate() {
        let mut random = Random::new(3000 + i as u64);
        let (rows, cols) = (35, 512);
        let bytes = random_cells(layout, rows, cols, None, &mut random);
        let plain = unpack(dequant::Matrix::new(layout, rows, cols, &bytes).expect("its length"));
        let weights = Weights::new(layout, rows, cols, bytes);
        for isa in Isa::available() {
            for r in [0, 15, 16, 34] {
                let mut output = Guarded::new(cols);
                testing::lookup(isa, &weights, r, &mut output.buffer()[..cols]);
                output.expect_all(&plain.weights[r], &format!("{layout:?} row {r}, {isa:?}"));
            }
        }
    }
}
