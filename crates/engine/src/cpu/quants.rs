//! Quantised activations of a pass.

use std::marker::PhantomData;

use numerics::{BLOCK, Fault};

/// 32 activations of a row as 8-bit integers, with all that a product needs of them in one
/// place; see `numerics::quantise`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct QuantBlock {
    /// Scale.
    pub d: f32,
    /// d·f32(Σq).
    pub s: f32,
    /// Σq of columns 0..16 and 16..32.
    pub sums: [i32; 2],
    /// Quants.
    pub q: [i8; BLOCK],
}

const _: () = assert!(size_of::<QuantBlock>() == 48, "no padding");

impl QuantBlock {
    /// Nothing but zeros.
    pub const ZERO: QuantBlock = QuantBlock { d: 0.0, s: 0.0, sums: [0; 2], q: [0; BLOCK] };
}

/// `[T, C / 32]` blocks.
#[derive(Default)]
pub(crate) struct Quants {
    /// C / 32.
    width: usize,
    blocks: Vec<QuantBlock>,
}

impl Quants {
    /// Room for `rows` rows of `cols`; what was in it is gone.
    pub(crate) fn resize(&mut self, rows: usize, cols: usize) {
        assert!(cols.is_multiple_of(BLOCK), "{cols} columns are no whole number of blocks");
        self.width = cols / BLOCK;
        if self.blocks.len() < rows * self.width {
            self.blocks.resize(rows * self.width, QuantBlock::ZERO);
        }
    }

    /// C.
    pub(crate) fn cols(&self) -> usize {
        self.width * BLOCK
    }

    /// Row `t`, `[C / 32]`.
    pub(crate) fn row(&self, t: usize) -> &[QuantBlock] {
        &self.blocks[t * self.width..(t + 1) * self.width]
    }

    /// Row `t`, to be written.
    pub(crate) fn row_mut(&mut self, t: usize) -> &mut [QuantBlock] {
        &mut self.blocks[t * self.width..(t + 1) * self.width]
    }

    /// Appends the first `rows` rows to `bytes`, as they lie in memory.
    pub(crate) fn extend_bytes(&self, rows: usize, bytes: &mut Vec<u8>) {
        let blocks = &self.blocks[..rows * self.width];
        // SAFETY: a QuantBlock is 48 bytes of numbers without padding.
        let raw = unsafe {
            std::slice::from_raw_parts(blocks.as_ptr().cast::<u8>(), size_of_val(blocks))
        };
        bytes.extend_from_slice(raw);
    }

    /// Takes `rows` rows that [`Quants::extend_bytes`] gave; `false` if the length is not
    /// theirs.
    pub(crate) fn copy_from_bytes(&mut self, rows: usize, bytes: &[u8]) -> bool {
        let blocks = &mut self.blocks[..rows * self.width];
        if size_of_val(blocks) != bytes.len() {
            return false;
        }
        // SAFETY: as many bytes as asked for, into numbers that may have any bits.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), blocks.as_mut_ptr().cast(), bytes.len());
        }
        true
    }

    /// For tasks that each quantise their own rows.
    pub(crate) fn writer(&mut self) -> QuantWriter<'_> {
        QuantWriter {
            width: self.width,
            len: self.blocks.len(),
            start: self.blocks.as_mut_ptr(),
            borrow: PhantomData,
        }
    }
}

/// An exclusive borrow of [`Quants`] whose rows several threads write.
#[derive(Clone, Copy)]
pub(crate) struct QuantWriter<'a> {
    width: usize,
    len: usize,
    start: *mut QuantBlock,
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
        assert!((t + 1) * self.width <= self.len && x.len() == self.width * BLOCK);
        // SAFETY: row t lies inside the buffer by the assertion; exclusive by the
        // caller's promise.
        let row =
            unsafe { std::slice::from_raw_parts_mut(self.start.add(t * self.width), self.width) };
        super::elementwise::quantise(isa, x, row)
    }
}
