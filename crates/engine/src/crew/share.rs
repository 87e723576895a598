//! What a helper holds, and how it carries out orders.

use std::ops::Range;

use model::Manifest;
use model::layout::BLOCK_COLS;

use super::{
    ANSWER_VALUES_MAX, HEADER_BYTES, HELPERS_MAX, is_shared, matrices, parts, piece_of, pieces_of,
    rows_of, share_of, total_tiles,
};
use crate::cpu::product::{Activations, product};
use crate::cpu::quants::{QuantBlock, Quants};
use crate::cpu::rows::RowsMut;
use crate::plan::{self, Command};
use crate::run::PASS_ROWS_MAX;
use crate::types::{BlobBytes, Class, LoadError};
use crate::weights::{Matrix, Weights, check_manifest};

/// Why an order cannot be carried out: it is not of this share's chief.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an order of {bytes} bytes does not fit this share: load both from one manifest and span")]
pub struct OrderError {
    /// Its length.
    pub bytes: usize,
}

/// A helper's tiles of every matrix of a span.
pub struct Share {
    isa: crate::Isa,
    helper: usize,
    helpers: usize,
    /// For each product of the span the share's matrices, cut out.
    products: Vec<Vec<Matrix>>,
    /// The order in hand: its product, and its rows in `quants`.
    product: usize,
    columns: usize,
    quants: Quants,
    values: Vec<f32>,
}

impl Share {
    /// Helper `helper` of `helpers`, without weights yet.
    ///
    /// # Panics
    /// If there is no such helper.
    pub fn new(helper: usize, helpers: usize) -> Share {
        assert!(helper < helpers && helpers <= HELPERS_MAX, "helper {helper} of {helpers}");
        Share {
            isa: crate::Isa::best(),
            helper,
            helpers,
            products: Vec::new(),
            product: 0,
            columns: 0,
            quants: Quants::default(),
            values: Vec::new(),
        }
    }

    /// Copies this helper's tiles out of the blobs of `part`, the span's next one.
    ///
    /// # Errors
    /// As [`crate::Shard::load`].
    pub fn add(
        &mut self,
        manifest: &Manifest,
        part: u32,
        blobs: &mut dyn FnMut(&str) -> Option<BlobBytes>,
    ) -> Result<(), LoadError> {
        let span = part..part.saturating_add(1);
        check_manifest(manifest, &span)?;
        let weights = Weights::bind(manifest, span, blobs)?;
        for command in plan::compile(&weights, Class::Canonical1) {
            let Command::Product { factors, .. } = command else { continue };
            let matrices = matrices(&weights, &factors);
            let mut own = Vec::new();
            if is_shared(Class::Canonical1, &matrices, 1) {
                let share = share_of(total_tiles(&matrices), self.helpers + 1, self.helper + 1);
                for (index, tiles) in parts(&matrices, share) {
                    own.push(matrices[index].piece(tiles));
                }
            }
            self.products.push(own);
        }
        Ok(())
    }

    /// Bytes of weights that it holds.
    pub fn weights_bytes(&self) -> u64 {
        self.products.iter().flatten().map(|m| m.bytes().len() as u64).sum()
    }

    /// Room that any order to this share needs.
    pub fn order_bytes_max(&self) -> usize {
        let blocks = self.products.iter().flatten().map(|m| m.cols / BLOCK_COLS).max();
        HEADER_BYTES + PASS_ROWS_MAX * blocks.unwrap_or(0) * size_of::<QuantBlock>()
    }

    /// Room that all answers of this share to one order need.
    pub fn answer_bytes_max(&self) -> usize {
        let rows = |own: &Vec<Matrix>| own.iter().map(|m| m.rows).sum::<usize>();
        let widest = self.products.iter().map(rows).max().unwrap_or(0);
        4 * (widest * PASS_ROWS_MAX).min(ANSWER_VALUES_MAX)
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
        let own = self.products.get(number).ok_or(wrong.clone())?;
        let Some(cols) = own.first().map(|m| m.cols) else { return Ok(0) };
        if columns > PASS_ROWS_MAX {
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
        let own: Vec<&Matrix> = self.products[self.product].iter().collect();
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
