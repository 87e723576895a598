//! Embedding and norms: ops on single rows.

use shaders::{embed, rms_norm};

use super::op::{Groups, Op};
use super::types::{GpuMatrix, GpuVector, Rows, Scratch, row_stride};
use super::{Kernels, always, layout_number};

/// Invocations of a workgroup of the elementwise kernels.
const THREADS: u32 = 64;

impl Kernels {
    /// `hidden = table[token]`, dequantised; `table` is `[V, D]`. One dispatch per piece.
    pub fn embed(&self, table: &GpuMatrix, scratch: &Scratch) -> Op {
        let dispatches = table.pieces.iter().map(|piece| {
            let (words, base) = self.bind_piece(table, piece);
            let params = embed::Params {
                rows: piece.rows,
                first_row: piece.first_row,
                cols: table.cols,
                base,
                stride: row_stride(table.cols),
            };
            self.dispatch(
                &embed::KERNEL,
                &[(embed::overrides::LAYOUT, layout_number(table.layout))],
                &params.bytes(),
                &[
                    (embed::bindings::STEP, scratch.step.as_entire_binding()),
                    (embed::bindings::MATRIX_WORDS, words),
                    (embed::bindings::HIDDEN, scratch.hidden.as_entire_binding()),
                ],
                [
                    Groups::Fixed(table.cols.div_ceil(embed::CHUNK_COLS).div_ceil(THREADS)),
                    Groups::PerRows(Rows::All, 1),
                    Groups::Fixed(1),
                ],
            )
        });
        always(Rows::All, dispatches.collect())
    }

    /// `normed = rms_norm(hidden)·gain`; with [`Rows::Kept`] only the rows that want logits,
    /// moved to the front. A row whose sum of squares overflows becomes NaN.
    pub fn rms_norm(&self, gain: &GpuVector, rows: Rows, scratch: &Scratch) -> Op {
        let (gains, gain_at) = self.bind_vector(gain);
        let params = rms_norm::Params {
            width: gain.len,
            stride: row_stride(gain.len),
            gain_at,
            eps: self.shapes.rms_eps,
        };
        let dispatch = self.dispatch(
            &rms_norm::KERNEL,
            &[(rms_norm::overrides::GATHER, u32::from(rows == Rows::Kept))],
            &params.bytes(),
            &[
                (rms_norm::bindings::STEP, scratch.step.as_entire_binding()),
                (rms_norm::bindings::GAIN, gains),
                (rms_norm::bindings::X, scratch.hidden.as_entire_binding()),
                (rms_norm::bindings::Y, scratch.normed.as_entire_binding()),
            ],
            [Groups::PerRows(rows, 1), Groups::Fixed(1), Groups::Fixed(1)],
        );
        always(rows, vec![dispatch])
    }
}
