//! Comparing what a kernel wrote.

use crate::gpu::kernels::lab::UNWRITTEN;
use crate::gpu::kernels::types::row_stride;

/// Largest relative rounding error of one f32 operation.
pub(super) const ULP: f32 = 1.0 / (1 << 24) as f32;

/// Takes rows `[T, width]` out of a buffer's words; an error if anything between or behind
/// them was written, or something of them was not.
pub(super) fn take_rows(words: &[u32], width: usize, rows: usize) -> Result<Vec<f32>, String> {
    let stride = row_stride(width as u32) as usize;
    let mut values = Vec::with_capacity(width * rows);
    for (i, &word) in words.iter().enumerate() {
        let inside = i / stride < rows && i % stride < width;
        if inside != (word != UNWRITTEN) {
            let what = if inside { "was not written" } else { "was written beyond the output" };
            return Err(format!("row {}, element {} {what}", i / stride, i % stride));
        }
        if inside {
            values.push(f32::from_bits(word));
        }
    }
    Ok(values)
}

/// An error unless each value lies within its bound of what is expected.
pub(super) fn within(
    got: &[f32],
    want: &[f32],
    bound: impl Fn(usize) -> f32,
    width: usize,
) -> Result<(), String> {
    assert_eq!(got.len(), want.len());
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let bound = bound(i);
        let error = (got - want).abs();
        if error.is_nan() || error > bound {
            let (row, element) = (i / width, i % width);
            return Err(format!("row {row}, element {element}: {got}, not {want} ± {bound:e}"));
        }
    }
    Ok(())
}

/// An error unless the bits are the same.
pub(super) fn same_bits(got: &[f32], want: &[f32], width: usize, what: &str) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{what}: {} values, not {}", got.len(), want.len()));
    }
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        if got.to_bits() != want.to_bits() {
            let (row, element) = (i / width, i % width);
            return Err(format!("{what}: row {row}, element {element}: {got:e}, not {want:e}"));
        }
    }
    Ok(())
}
