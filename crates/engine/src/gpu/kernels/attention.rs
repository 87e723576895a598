//! Attention over the paged cache.

use numerics::PAGE_POSITIONS;
use shaders::{attention, combine};

use super::op::{Dispatch, Groups, Op, Way};
use super::types::{Rows, Scratch, Shapes, row_stride};
use super::{Kernels, any_shape};

const _: () = assert!(attention::PAGE_KEYS as usize == PAGE_POSITIONS, "pages are 64 positions");

/// Steps of up to so many rows spread a row's keys over workgroups.
pub const SPLIT_ROWS_MAX: u32 = 16;
/// Workgroup memory that queries and page may take, bytes.
const WORKGROUP_BYTES_MAX: u32 = 16 << 10;
/// Heads in a vec4.
const LANES: u32 = 4;

/// u32 words of one page of one layer: K and V of 64 positions as f16. A layer's cache is a
/// buffer of so many words times its pages.
pub fn kv_page_words(shapes: &Shapes) -> u32 {
    shapes.kv_heads * attention::PAGE_KEYS * shapes.head_dim
}

/// Bytes of [`Scratch::partials`] for sessions of up to `keys_max` positions.
pub fn partials_bytes(shapes: &Shapes, keys_max: u32) -> u64 {
    let splits = u64::from(keys_max.div_ceil(attention::SPLIT_KEYS).max(1));
    let width = u64::from(shapes.head_dim + 2);
    (u64::from(SPLIT_ROWS_MAX * shapes.heads) * splits * width * 4).next_multiple_of(16)
}

impl Kernels {
    /// `mixed = attention(query, kv)`, causal: each row sees its session's keys up to its own
    /// position, which are in the layer's cache `kv`. Few rows: one dispatch up to 128 keys,
    /// else one per split and one to combine them. A row with a score that is not finite
    /// becomes NaN.
    ///
    /// # Panics
    /// If a K/V head has more query heads than a workgroup can hold (16), or they are too
    /// wide for it.
    pub fn attention(&self, kv: &wgpu::Buffer, scratch: &Scratch) -> Op {
        let one_row = self.rows_fit(1).expect("the query heads of one K/V head fit a workgroup");
        let split = vec![self.attend(true, 1, one_row, kv, scratch), self.combine(scratch)];
        let short = vec![self.attend(false, 1, one_row, kv, scratch)];
        let (rows, quads) = [8, 4, 2]
            .into_iter()
            .find_map(|n| Some((n, self.rows_fit(n)?)))
            .unwrap_or((1, one_row));
        let keys_max = attention::SPLIT_KEYS;
        Op {
            rows: Rows::All,
            ways: vec![
                Way { rows_max: SPLIT_ROWS_MAX, keys_max, dispatches: short },
                Way { rows_max: SPLIT_ROWS_MAX, keys_max: u32::MAX, dispatches: split },
                any_shape(vec![self.attend(false, rows, quads, kv, scratch)]),
            ],
        }
    }

    /// Why attention cannot be computed over these shapes, if it cannot.
    pub fn refused(&self) -> Option<String> {
        let s = &self.shapes;
        let (group, hd) = (s.heads / s.kv_heads, s.head_dim);
        let fits = self.rows_fit(1).is_some();
        (!fits).then(|| format!("{group} query heads of {hd} for one K/V head exceed a workgroup"))
    }

    /// Vec4s of query heads of so many rows, if a workgroup can hold them.
    fn rows_fit(&self, rows: u32) -> Option<u32> {
        let s = &self.shapes;
        let quads = (rows * (s.heads / s.kv_heads)).div_ceil(LANES);
        let items = (quads * (s.head_dim / 2)).div_ceil(attention::THREADS);
        let vec4s = quads * (s.head_dim + attention::PAGE_KEYS + 16);
        let fits = quads <= attention::QUADS_MAX
            && items <= attention::ITEMS_MAX
            && vec4s * 16 <= WORKGROUP_BYTES_MAX;
        fits.then_some(quads)
    }

    fn splits_max(&self, scratch: &Scratch) -> u32 {
        let s = &self.shapes;
        let split_bytes = u64::from(SPLIT_ROWS_MAX * s.heads * (s.head_dim + 2)) * 4;
        ((scratch.partials.size() / split_bytes) as u32).max(1)
    }

    fn attend(
        &self,
        split: bool,
        rows: u32,
        quads: u32,
        kv: &wgpu::Buffer,
        scratch: &Scratch,
    ) -> Dispatch {
        let s = &self.shapes;
        let params = attention::Params {
            heads: s.heads,
            kv_heads: s.kv_heads,
            head_dim: s.head_dim,
            query_stride: row_stride(s.heads * s.head_dim),
            mixed_stride: row_stride(s.heads * s.head_dim),
            splits_max: self.splits_max(scratch),
            factor: numerics::attention::score_factor(s.head_dim as usize),
        };
        let output = if split { &scratch.partials } else { &scratch.mixed };
        self.dispatch(
            &attention::KERNEL,
            &[
                (attention::overrides::SPLIT, u32::from(split)),
                (attention::overrides::ROWS, rows),
                (attention::overrides::QUADS, quads),
                (attention::overrides::HEAD_DIM, s.head_dim),
            ],
            &params.bytes(),
            &[
                (attention::bindings::STEP, scratch.step.as_entire_binding()),
                (attention::bindings::QUERY, scratch.query.as_entire_binding()),
                (attention::bindings::KV, kv.as_entire_binding()),
                (attention::bindings::MIXED, output.as_entire_binding()),
            ],
            [
                Groups::Fixed(s.kv_heads),
                if split { Groups::PerKeys(attention::SPLIT_KEYS) } else { Groups::Fixed(1) },
                Groups::PerRows(Rows::All, rows),
            ],
        )
    }

    fn combine(&self, scratch: &Scratch) -> Dispatch {
        let s = &self.shapes;
        let params = combine::Params {
            heads: s.heads,
            head_dim: s.head_dim,
            mixed_stride: row_stride(s.heads * s.head_dim),
            splits_max: self.splits_max(scratch),
        };
        self.dispatch(
            &combine::KERNEL,
            &[],
            &params.bytes(),
            &[
                (combine::bindings::STEP, scratch.step.as_entire_binding()),
                (combine::bindings::PARTIALS, scratch.partials.as_entire_binding()),
                (combine::bindings::MIXED, scratch.mixed.as_entire_binding()),
            ],
            [Groups::Fixed(s.heads), Groups::PerRows(Rows::All, 1), Groups::Fixed(1)],
        )
    }
}
