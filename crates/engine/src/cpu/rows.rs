//! Row-major buffers that several threads write, each its own part.

use std::marker::PhantomData;
use std::ops::Range;

/// A `[rows, width]` f32 buffer, exclusively borrowed, that tasks write disjoint parts of.
#[derive(Clone, Copy)]
pub(crate) struct RowsMut<'a> {
    start: *mut f32,
    rows: usize,
    width: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: a RowsMut is an exclusive borrow whose parts are handed out through `part`,
// whose callers promise that no two parts in use overlap.
unsafe impl Send for RowsMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for RowsMut<'_> {}

impl<'a> RowsMut<'a> {
    /// The first `rows` rows of `buffer`.
    pub(crate) fn new(buffer: &'a mut [f32], rows: usize, width: usize) -> RowsMut<'a> {
        assert!(rows * width <= buffer.len(), "the buffer holds {rows} rows of {width}");
        RowsMut { start: buffer.as_mut_ptr(), rows, width, borrow: PhantomData }
    }

    /// Elements of a row.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Columns `columns` of row `row`.
    ///
    /// # Safety
    /// No other part in use may overlap this one.
    pub(crate) unsafe fn part(&self, row: usize, columns: Range<usize>) -> &'a mut [f32] {
        assert!(row < self.rows && columns.start <= columns.end && columns.end <= self.width);
        // SAFETY: inside the borrowed buffer by the assertion, which holds
        // `rows * width` elements; exclusive by the caller's promise.
        unsafe {
            let start = self.start.add(row * self.width + columns.start);
            std::slice::from_raw_parts_mut(start, columns.len())
        }
    }

    /// A whole row.
    ///
    /// # Safety
    /// No other part in use may overlap this row.
    pub(crate) unsafe fn row(&self, row: usize) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.part(row, 0..self.width) }
    }
}
