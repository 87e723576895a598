//! Comparing what a kernel wrote.

use super::{Seen, Tester};
use crate::gpu::kernels::lab::UNWRITTEN;
use crate::gpu::kernels::types::row_stride;

/// Largest relative rounding error of one f32 operation.
pub(super) const ULP: f32 = 1.0 / (1 << 24) as f32;

impl Tester<'_> {
    /// Counts what was looked at.
    pub(super) fn saw(&self, values: usize, error: f32, guard_words: usize) {
        let before = self.seen.get();
        self.seen.set(Seen {
            values: before.values + values as u64,
            error: before.error.max(error),
            guard_words: before.guard_words + guard_words as u64,
        });
    }

    /// Takes rows `[T, width]` out of a buffer's words; an error if anything between or behind
    /// them was written, or something of them was not.
    pub(super) fn take_rows(
        &self,
        words: &[u32],
        width: usize,
        rows: usize,
    ) -> Result<Vec<f32>, String> {
        self.take_rows_of(words, width, rows, UNWRITTEN)
    }

    /// The same where the buffer was filled with another word beforehand, which no result is.
    pub(super) fn take_rows_of(
        &self,
        words: &[u32],
        width: usize,
        rows: usize,
        filled: u32,
    ) -> Result<Vec<f32>, String> {
        let stride = row_stride(width as u32) as usize;
        let mut values = Vec::with_capacity(width * rows);
        for (i, &word) in words.iter().enumerate() {
            let inside = i / stride < rows && i % stride < width;
            if inside != (word != filled) {
                let what = if inside { "was not written" } else { "was written beyond the output" };
                return Err(format!("row {}, element {} {what}", i / stride, i % stride));
            }
            if inside {
                values.push(f32::from_bits(word));
            }
        }
        self.saw(0, 0.0, words.len() - values.len());
        Ok(values)
    }

    /// An error unless each value lies within its bound of what is expected.
    pub(super) fn within(
        &self,
        got: &[f32],
        want: &[f32],
        bound: impl Fn(usize) -> f32,
        width: usize,
    ) -> Result<(), String> {
        assert_eq!(got.len(), want.len());
        let mut largest = 0f32;
        for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
            let bound = bound(i);
            let error = (got - want).abs();
            if error.is_nan() || error > bound {
                let (row, element) = (i / width, i % width);
                return Err(format!("row {row}, element {element}: {got}, not {want} ± {bound:e}"));
            }
            largest = largest.max(error / bound);
        }
        self.saw(got.len(), largest, 0);
        Ok(())
    }
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
