//! Quantised activations of a pass.

use std::marker::PhantomData;

use numerics::{BLOCK, Fault};

/// `[T, C]` activations as 8-bit blocks; see `numerics::quantise`.
#[derive(Default)]
pub(crate) struct Quants {
    /// C.
    cols: usize,
    /// `[T, C]`.
    q: Vec<i8>,
    /// `[T, C / 32]` scales.
    d: Vec<f32>,
    /// `[T, C / 32]`: d·f32(Σq).
    s: Vec<f32>,
    /// `[T, C / 32]`: Σq of each 16-column half.
    sums: Vec<[i32; 2]>,
}

/// One row of [`Quants`].
#[derive(Clone, Copy)]
pub(crate) struct QuantRow<'a> {
    /// `[C]`.
    pub(crate) q: &'a [i8],
    /// `[C / 32]`.
    pub(crate) d: &'a [f32],
    /// `[C / 32]`.
    pub(crate) s: &'a [f32],
    /// `[C / 32]`.
    pub(crate) sums: &'a [[i32; 2]],
}

impl Quants {
    /// Room for `rows` rows of `cols`; what was in it is gone.
    pub(crate) fn resize(&mut self, rows: usize, cols: usize) {
        assert!(cols.is_multiple_of(BLOCK), "{cols} columns are no whole number of blocks");
        self.cols = cols;
        let (elements, blocks) = (rows * cols, rows * cols / BLOCK);
        if self.q.len() < elements {
            self.q.resize(elements, 0);
        }
        if self.d.len() < blocks {
            self.d.resize(blocks, 0.0);
            self.s.resize(blocks, 0.0);
            self.sums.resize(blocks, [0; 2]);
        }
    }

    /// C.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn row(&self, t: usize) -> QuantRow<'_> {
        let (c, b) = (self.cols, self.cols / BLOCK);
        QuantRow {
            q: &self.q[t * c..(t + 1) * c],
            d: &self.d[t * b..(t + 1) * b],
            s: &self.s[t * b..(t + 1) * b],
            sums: &self.sums[t * b..(t + 1) * b],
        }
    }

    /// For tasks that each quantise their own rows.
    pub(crate) fn writer(&mut self) -> QuantWriter<'_> {
        QuantWriter {
            cols: self.cols,
            rows: self.q.len() / self.cols.max(1),
            q: self.q.as_mut_ptr(),
            d: self.d.as_mut_ptr(),
            s: self.s.as_mut_ptr(),
            sums: self.sums.as_mut_ptr(),
            borrow: PhantomData,
        }
    }
}

/// An exclusive borrow of [`Quants`] whose rows several threads write.
#[derive(Clone, Copy)]
pub(crate) struct QuantWriter<'a> {
    cols: usize,
    rows: usize,
    q: *mut i8,
    d: *mut f32,
    s: *mut f32,
    sums: *mut [i32; 2],
    borrow: PhantomData<&'a mut Quants>,
}

// SAFETY: an exclusive borrow; callers of `write` promise one task per row.
unsafe impl Send for QuantWriter<'_> {}
// SAFETY: as above.
unsafe impl Sync for QuantWriter<'_> {}

impl QuantWriter<'_> {
    /// Quantises `x`, `[C]`, into row `t`.
    ///
    /// # Safety
    /// Only one task may write row `t`.
    pub(crate) unsafe fn write(&self, isa: super::Isa, t: usize, x: &[f32]) -> Result<(), Fault> {
        assert!(t < self.rows && x.len() == self.cols);
        let blocks = self.cols / BLOCK;
        // SAFETY: row t lies inside all four buffers, which `resize` made long enough for
        // `rows` rows of `cols`; exclusive by the caller's promise.
        unsafe {
            super::elementwise::quantise(
                isa,
                x,
                std::slice::from_raw_parts_mut(self.q.add(t * self.cols), self.cols),
                std::slice::from_raw_parts_mut(self.d.add(t * blocks), blocks),
                std::slice::from_raw_parts_mut(self.s.add(t * blocks), blocks),
                std::slice::from_raw_parts_mut(self.sums.add(t * blocks), blocks),
            )
        }
    }
}
