//! Single CPU kernels by name, for the tests that compare them with `numerics`.
//!
//! Outputs are the caller's buffers, which may be longer than what is written: tests fill
//! them beforehand and look at what lies behind.

use std::ops::Range;
use std::sync::{Arc, LazyLock};

use model::Layout;
use numerics::rope::Pairs;
use numerics::{Fault, PAGE_POSITIONS};

use crate::cpu::attention::Attention;
use crate::cpu::product::{self, Activations};
pub use crate::cpu::quants::QuantBlock;
use crate::cpu::quants::Quants;
use crate::cpu::rows::RowsMut;
use crate::cpu::{self, Element, elementwise};
use crate::weights::Matrix;
use crate::{Class, Isa};

/// A matrix `[rows, cols]` by itself.
pub struct Weights(Matrix);

impl Weights {
    /// The matrix that `bytes` hold in `layout`.
    ///
    /// # Panics
    /// If the length is not the layout's.
    pub fn new(layout: Layout, rows: usize, cols: usize, bytes: Vec<u8>) -> Weights {
        assert_eq!(Some(bytes.len()), layout.matrix_bytes(rows, cols));
        Weights(Matrix::whole(layout, rows, cols, Arc::new(bytes)))
    }
}

/// An instruction set that this machine has: others would be unsound to run.
fn available(isa: Isa) -> Isa {
    static AVAILABLE: LazyLock<Vec<Isa>> = LazyLock::new(Isa::available);
    assert!(AVAILABLE.contains(&isa), "{isa:?} is not available here");
    isa
}

/// Activations in the form in which a class multiplies a matrix with them.
pub struct Columns {
    /// `[T, C]`.
    input: Vec<f32>,
    /// The same as 8-bit blocks, where the class takes them.
    quants: Option<Quants>,
}

impl Columns {
    /// Prepares `input`, `[T, C]`, for a product with `weights`, `[R, C]`.
    pub fn new(isa: Isa, class: Class, weights: &Weights, input: &[f32]) -> Result<Columns, Fault> {
        let (isa, matrix) = (available(isa), &weights.0);
        let mut quants = None;
        if class == Class::Canonical1 && matrix.layout.is_tiled() {
            let made = quants.insert(Quants::default());
            made.resize(input.len() / matrix.cols, matrix.cols);
            let writer = made.writer();
            for (t, row) in input.chunks_exact(matrix.cols).enumerate() {
                // SAFETY: one thread.
                unsafe { writer.write(isa, t, row)? };
            }
        }
        Ok(Columns { input: input.to_vec(), quants })
    }
}

/// `output[t][r] = Σ_c weights[r][c]·input[t][c] (+ bias[r])` for the rows of 16-row tiles
/// `tiles`; `input` is `[columns, C]`, `output` `[columns, R]` and possibly more.
pub fn product(
    isa: Isa,
    class: Class,
    weights: &Weights,
    tiles: Range<usize>,
    input: &[f32],
    bias: Option<&[f32]>,
    output: &mut [f32],
) -> Result<(), Fault> {
    let columns = Columns::new(isa, class, weights, input)?;
    multiply(isa, weights, tiles, &columns, bias, output);
    Ok(())
}

/// [`product`] with activations that are prepared already.
pub fn multiply(
    isa: Isa,
    weights: &Weights,
    tiles: Range<usize>,
    Columns { input, quants }: &Columns,
    bias: Option<&[f32]>,
    output: &mut [f32],
) {
    let matrix = &weights.0;
    let columns = input.len() / matrix.cols;
    let x = quants.as_ref().map_or(Activations::Exact(input), Activations::Quantised);
    let output = RowsMut::new(output, columns, matrix.rows);
    // SAFETY: one thread.
    unsafe { product::product(available(isa), matrix, tiles, x, columns, bias, output) };
}

/// Row `r` of the weights, dequantised.
pub fn lookup(isa: Isa, weights: &Weights, r: usize, output: &mut [f32]) {
    product::lookup(available(isa), &weights.0, r, output);
}

/// Quantises `x`, `[C]`, to `[C / 32]` blocks.
pub fn quantise(isa: Isa, x: &[f32], out: &mut [QuantBlock]) -> Result<(), Fault> {
    elementwise::quantise(available(isa), x, out)
}

/// RMS norm of one row.
pub fn rms_norm(isa: Isa, x: &[f32], gain: &[f32], eps: f32, y: &mut [f32]) -> Result<(), Fault> {
    elementwise::rms_norm(available(isa), x, gain, eps, y)
}

/// `gate = silu(gate)·up`.
pub fn swiglu(isa: Isa, gate: &mut [f32], up: &[f32]) {
    elementwise::swiglu(available(isa), gate, up);
}

/// `x = x + y`.
pub fn add(isa: Isa, x: &mut [f32], y: &[f32]) {
    elementwise::add(available(isa), x, y);
}

/// A fault unless every value is finite.
pub fn check(isa: Isa, x: &[f32]) -> Result<(), Fault> {
    elementwise::check(available(isa), x)
}

/// Rotates every head of `x` by the angles whose `[hd / 2]` sines and cosines are given.
pub fn rope(isa: Isa, x: &mut [f32], sin: &[f32], cos: &[f32], pairs: Pairs) {
    elementwise::rope(available(isa), x, sin, cos, pairs);
}

/// f32 to the cache's f16 and back.
pub fn through_f16(isa: Isa, x: &[f32], y: &mut [f32]) -> Result<(), Fault> {
    let mut halves = vec![0u16; x.len()];
    <u16 as Element>::narrow(available(isa), x, &mut halves)?;
    cpu::widen_f16(isa, &halves, y);
    Ok(())
}

/// Attention of `rows` queries, the last `rows` of `n` positions, for `heads` query heads
/// that share one kv head: `queries` `[rows, heads·hd]`, `keys` and `values` `[n, hd]`,
/// `output` `[rows, heads·hd]` and possibly more. The error is the first faulty row.
pub fn attention(
    isa: Isa,
    class: Class,
    shape: (usize, usize, usize),
    queries: &[f32],
    keys: &[f32],
    values: &[f32],
    output: &mut [f32],
) -> Result<(), usize> {
    Keys::new(isa, class, shape.2, keys, values).attend(isa, shape, queries, output)
}

/// One kv head's keys and values in a class's cache.
pub struct Keys {
    positions: usize,
    pages: Pages,
}

enum Pages {
    F16(Vec<Vec<u16>>),
    F32(Vec<Vec<f32>>),
}

impl Keys {
    /// Appends `keys` and `values`, `[n, hd]`, to an empty cache.
    pub fn new(isa: Isa, class: Class, head_dim: usize, keys: &[f32], values: &[f32]) -> Keys {
        let isa = available(isa);
        let pages = match class {
            Class::Canonical1 => Pages::F16(paged(isa, head_dim, keys, values)),
            Class::ExactF32 => Pages::F32(paged(isa, head_dim, keys, values)),
            Class::WgslF32 => panic!("GPU kernels have tests of their own"),
        };
        Keys { positions: keys.len() / head_dim, pages }
    }

    /// As [`attention`], for the last `rows` of these positions.
    pub fn attend(
        &self,
        isa: Isa,
        shape: (usize, usize, usize),
        queries: &[f32],
        output: &mut [f32],
    ) -> Result<(), usize> {
        let (isa, n) = (available(isa), self.positions);
        match &self.pages {
            Pages::F16(pages) => attend(isa, shape, n, queries, pages, output),
            Pages::F32(pages) => attend(isa, shape, n, queries, pages, output),
        }
    }
}

fn paged<E: Element>(isa: Isa, head_dim: usize, keys: &[f32], values: &[f32]) -> Vec<Vec<E>> {
    let n = keys.len() / head_dim;
    let page_len = PAGE_POSITIONS * head_dim;
    let mut pages = vec![vec![E::default(); 2 * page_len]; n.div_ceil(PAGE_POSITIONS)];
    for position in 0..n {
        let (page, slot) = (&mut pages[position / PAGE_POSITIONS], position % PAGE_POSITIONS);
        let row = position * head_dim..(position + 1) * head_dim;
        let (k, v) = page.split_at_mut(page_len);
        let stored = cpu::append(isa, &keys[row.clone()], &values[row], slot, k, v);
        stored.expect("the cache holds these keys and values");
    }
    pages
}

fn attend<E: Element>(
    isa: Isa,
    (rows, heads, head_dim): (usize, usize, usize),
    n: usize,
    queries: &[f32],
    pages: &[Vec<E>],
    output: &mut [f32],
) -> Result<(), usize> {
    let pages: Vec<&[E]> = pages.iter().map(|page| &page[..]).collect();
    let task = Attention {
        pages: &pages,
        queries,
        rows: 0..rows,
        position: n - rows,
        heads: 0..heads,
        head_dim,
        factor: numerics::attention::score_factor(head_dim),
    };
    // SAFETY: one thread.
    unsafe { task.run(isa, RowsMut::new(output, rows, heads * head_dim)) }
}
