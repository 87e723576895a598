//! What a helper holds, and how it carries out orders.

use std::ops::Range;
use std::sync::Arc;

use model::Layout;
use model::layout::BLOCK_COLS;

use super::{
    ANSWER_VALUES_MAX, HEADER_BYTES, is_shared, parts, piece_of, pieces_of, rows_of, share_of,
    total_tiles,
};
use crate::cpu::product::{Activations, product};
use crate::cpu::quants::{QuantBlock, Quants};
use crate::cpu::rows::RowsMut;
use crate::run::PASS_ROWS_MAX;
use crate::types::Class;
use crate::weights::Matrix;

/// Why an order cannot be carried out: it is not of this share's chief.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an order of {bytes} bytes does not fit this share: load both from one manifest and span")]
pub struct OrderError {
    /// Its length.
    pub bytes: usize,
}

/// Why a cut is none: its bytes are not those of such tiles.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes are no tiles of {layout:?} [{rows}, {cols}] of a product: cut them anew")]
pub struct CutError {
    /// What it says of a matrix.
    pub layout: Layout,
    /// Its rows here.
    pub rows: usize,
    /// Its columns.
    pub cols: usize,
    /// The bytes that came with it.
    pub bytes: usize,
}

/// A helper's share of one product, as its chief cuts it: [`crate::Shard::cut`].
pub struct Cut<B> {
    /// Rows of an order of this product, at most.
    pub columns_max: usize,
    /// Of each matrix that the share has tiles of, those; none if the chief is alone with it.
    pub matrices: Vec<Tiles<B>>,
}

/// Some tiles of a matrix: `[rows, cols]` in that layout.
pub struct Tiles<B> {
    /// A tiled one.
    pub layout: Layout,
    /// Rows, all but the last matrix's last ones whole tiles.
    pub rows: usize,
    /// The matrix's columns.
    pub cols: usize,
    /// As long as the layout has it.
    pub bytes: B,
}

/// Cuts helper `helper`'s share, of `helpers`, out of a product.
pub(crate) fn cut<'a>(
    class: Class,
    matrices: &[&'a Matrix],
    helper: usize,
    helpers: usize,
) -> Cut<&'a [u8]> {
    let mut cut = Cut { columns_max: 0, matrices: Vec::new() };
    if !is_shared(class, matrices, 1) {
        return cut;
    }
    let rows: usize = matrices.iter().map(|m| m.rows).sum();
    cut.columns_max = (ANSWER_VALUES_MAX / rows.max(1)).min(PASS_ROWS_MAX);
    let share = share_of(total_tiles(matrices), helpers + 1, helper + 1);
    for (index, tiles) in parts(matrices, share) {
        let matrix = matrices[index];
        cut.matrices.push(Tiles {
            layout: matrix.layout,
            rows: rows_of(matrix, &tiles).len(),
            cols: matrix.cols,
            bytes: matrix.tiles(tiles),
        });
    }
    cut
}

/// A helper's tiles of every matrix of a span.
pub struct Share {
    isa: crate::Isa,
    /// For each product of the span the share's matrices, and the rows of an order at most.
    products: Vec<(Vec<Matrix>, usize)>,
    /// The order in hand: its product, and its rows in `quants`.
    product: usize,
    columns: usize,
    quants: Quants,
    values: Vec<f32>,
}

impl Default for Share {
    fn default() -> Share {
        Share {
            isa: crate::Isa::best(),
            products: Vec::new(),
            product: 0,
            columns: 0,
            quants: Quants::default(),
            values: Vec::new(),
        }
    }
}

impl Share {
    /// Holds a cut, that of the span's next product, from now on.
    ///
    /// # Errors
    /// If it is none.
    pub fn add(&mut self, cut: Cut<Vec<u8>>) -> Result<(), CutError> {
        let mut own: Vec<Matrix> = Vec::with_capacity(cut.matrices.len());
        for Tiles { layout, rows, cols, bytes } in cut.matrices {
            let fits = layout.is_tiled() && layout.matrix_bytes(rows, cols) == Some(bytes.len());
            if !fits || own.iter().any(|m| m.cols != cols) || cut.columns_max > PASS_ROWS_MAX {
                return Err(CutError { layout, rows, cols, bytes: bytes.len() });
            }
            own.push(Matrix::whole(layout, rows, cols, Arc::new(bytes)));
        }
        self.products.push((own, cut.columns_max));
        Ok(())
    }

    /// Bytes of weights that it holds.
    pub fn weights_bytes(&self) -> u64 {
        self.products.iter().flat_map(|(own, _)| own).map(|m| m.bytes().len() as u64).sum()
    }

    /// Room that any order to this share needs.
    pub fn order_bytes_max(&self) -> usize {
        let blocks = |(own, columns_max): &(Vec<Matrix>, usize)| {
            columns_max * own.first().map_or(0, |m| m.cols / BLOCK_COLS)
        };
        let blocks = self.products.iter().map(blocks).max().unwrap_or(0);
        HEADER_BYTES + blocks * size_of::<QuantBlock>()
    }

    /// Room that all answers of this share to one order need.
    pub fn answer_bytes_max(&self) -> usize {
        let values = |(own, columns_max): &(Vec<Matrix>, usize)| {
            columns_max * own.iter().map(|m| m.rows).sum::<usize>()
        };
        4 * self.products.iter().map(values).max().unwrap_or(0)
    }

    /// Takes an order in hand; gives its pieces.
    ///
    /// # Errors
    /// If the order is not of this share's chief.
    pub fn begin(&mut self, order: &[u8]) -> Result<usize, OrderError> {
        let wrong = OrderError { bytes: order.len() };
        let header = order.first_chunk::<HEADER_BYTES>().ok_or(wrong.clone())?;
        let [number, columns] = [0, 4].map(|at| {
            let word = header[at..].first_chunk().expect("the header has eight bytes");
            u32::from_le_bytes(*word) as usize
        });
        let (own, columns_max) = self.products.get(number).ok_or(wrong.clone())?;
        let Some(cols) = own.first().map(|m| m.cols) else { return Ok(0) };
        if columns > *columns_max {
            return Err(wrong);
        }
        self.quants.resize(columns, cols);
        if !self.quants.copy_from_bytes(columns, &order[HEADER_BYTES..]) {
            return Err(wrong);
        }
        (self.product, self.columns) = (number, columns);
        Ok(pieces_of(total_tiles(&own.iter().collect::<Vec<_>>())))
    }

    /// Computes a piece of the order in hand, with `columns` rows: writes its answer over
    /// `answer`, little-endian f32, for each matrix that the piece has tiles of
    /// `[T, its rows here]`. Gives where it lies among the order's answers, bytes.
    ///
    /// # Panics
    /// If the order has no such piece.
    pub fn run(&mut self, piece: usize, answer: &mut Vec<u8>) -> usize {
        let own: Vec<&Matrix> = self.products[self.product].0.iter().collect();
        let (total, columns) = (total_tiles(&own), self.columns);
        assert!(piece < pieces_of(total), "piece {piece} of {total} tiles");
        answer.clear();
        let range = piece_of(total, piece);
        for (index, tiles) in parts(&own, range.clone()) {
            let matrix = own[index];
            let rows = rows_of(matrix, &tiles);
            if self.values.len() < columns * matrix.rows {
                self.values.resize(columns * matrix.rows, 0.0);
            }
            let output = RowsMut::new(&mut self.values, columns, matrix.rows);
            let x = Activations::Quantised(&self.quants);
            // SAFETY: one thread.
            unsafe { product(self.isa, matrix, tiles, x, columns, None, output) };
            for row in self.values.chunks_exact(matrix.rows).take(columns) {
                answer.extend(row[rows.clone()].iter().flat_map(|v| v.to_le_bytes()));
            }
        }
        let before = |(i, tiles): (usize, Range<usize>)| rows_of(own[i], &tiles).len();
        4 * columns * parts(&own, 0..range.start).into_iter().map(before).sum::<usize>()
    }
}
