//! Several instances of the engine compute one shard together, without shared memory.
//!
//! For Web Workers that each run a WASM instance of their own. The *chief* holds the shard,
//! all its weights and the KV cache, and runs every step. Each *helper* holds a [`Share`]:
//! some 16-row tiles of every matrix. For a product the chief gives all helpers one *order*
//! (the quantised activations), computes its own tiles, and takes each helper's *answer*
//! (its rows of the output). How the bytes travel is the [`Crew`]'s business.
//!
//! The sum over a row's columns is never split, so the bits are the same with any number of
//! helpers. A helper whose answer does not come is not waited for again: the chief, which
//! has all weights, computes those tiles itself.

use std::ops::Range;

use model::Manifest;
use model::layout::{BLOCK_COLS, TILE_ROWS};

use crate::cpu::product::{Activations, product, tiles};
use crate::cpu::quants::{QuantBlock, Quants};
use crate::cpu::rows::RowsMut;
use crate::plan::{self, Command, Factor};
use crate::run::PASS_ROWS_MAX;
use crate::types::{BlobBytes, Class, LoadError};
use crate::weights::{Matrix, Weights, check_manifest};

/// Helpers that one chief may have.
pub const HELPERS_MAX: usize = 15;
/// Values of one answer, at most (16 MiB): the chief computes a product alone whose answers
/// would be longer, such as the logits of many rows.
pub const ANSWER_VALUES_MAX: usize = 1 << 22;
/// Bytes of an order before its activations: the product's number and its rows, u32 each.
const HEADER_BYTES: usize = 8;

/// The chief's way to its helpers.
pub trait Crew: Send {
    /// How many there are, at most [`HELPERS_MAX`]; always the same.
    fn helpers(&self) -> usize;

    /// Gives every helper `order` and returns without waiting. Each has answered the order
    /// before, or is not asked for answers any more.
    fn begin(&mut self, order: &[u8]);

    /// Waits until `helper` has answered the last order, and copies the first
    /// `answer.len()` bytes of what [`Share::run`] gave there. `false` if the helper is
    /// gone, or took longer than the caller of all this wants to wait.
    fn collect(&mut self, helper: usize, answer: &mut [u8]) -> bool;
}

/// Why an order cannot be carried out: it is not of this share's chief.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an order of {bytes} bytes does not fit this share: load both from one manifest and span")]
pub struct OrderError {
    /// Its length.
    pub bytes: usize,
}

/// The matrices of one product, numbered tile by tile through all of them.
fn deal(matrices: &[&Matrix], members: usize, member: usize) -> Vec<(usize, Range<usize>)> {
    let total: usize = matrices.iter().map(|m| tiles(m)).sum();
    let share = total * member / members..total * (member + 1) / members;
    parts(matrices, share)
}

/// Which tiles of which matrix a range of a product's tiles is.
pub(crate) fn parts(matrices: &[&Matrix], range: Range<usize>) -> Vec<(usize, Range<usize>)> {
    let mut first = 0;
    let mut found = Vec::new();
    for (index, matrix) in matrices.iter().enumerate() {
        let end = first + tiles(matrix);
        let (from, to) = (range.start.max(first), range.end.min(end));
        if from < to {
            found.push((index, from - first..to - first));
        }
        first = end;
    }
    found
}

/// The rows of some tiles that exist.
fn rows_of(matrix: &Matrix, tiles: &Range<usize>) -> Range<usize> {
    tiles.start * TILE_ROWS..(tiles.end * TILE_ROWS).min(matrix.rows)
}

/// True if helpers take part in a product of `columns` rows: quantised weights only, and
/// no answer too long.
fn is_shared(class: Class, matrices: &[&Matrix], columns: usize) -> bool {
    let rows: usize = matrices.iter().map(|m| m.rows).sum();
    class == Class::Canonical1
        && matrices.iter().all(|m| m.layout.is_tiled())
        && rows * columns <= ANSWER_VALUES_MAX
}

/// A helper's tiles of every matrix of a span.
pub struct Share {
    isa: crate::Isa,
    products: Vec<Vec<Matrix>>,
    quants: Quants,
    values: Vec<f32>,
}

impl Share {
    /// Takes helper `helper` of `helpers`' tiles out of the blobs of `span`, a part at a
    /// time: no more than one part's blobs are held at once.
    ///
    /// # Errors
    /// As [`crate::Shard::load`].
    ///
    /// # Panics
    /// If there is no such helper.
    pub fn load(
        manifest: &Manifest,
        span: Range<u32>,
        mut blobs: impl FnMut(&str) -> Option<BlobBytes>,
        helper: usize,
        helpers: usize,
    ) -> Result<Share, LoadError> {
        assert!(helper < helpers && helpers <= HELPERS_MAX, "helper {helper} of {helpers}");
        check_manifest(manifest, &span)?;
        let mut products = Vec::new();
        for part in span {
            let weights = Weights::bind(manifest, part..part + 1, &mut blobs)?;
            for command in plan::compile(&weights, Class::Canonical1) {
                let Command::Product { factors, .. } = command else { continue };
                let matrices = matrices(&weights, &factors);
                let mut pieces = Vec::new();
                if is_shared(Class::Canonical1, &matrices, 1) {
                    for (index, tiles) in deal(&matrices, helpers + 1, helper + 1) {
                        pieces.push(matrices[index].piece(tiles));
                    }
                }
                products.push(pieces);
            }
        }
        let (quants, values) = (Quants::default(), Vec::new());
        Ok(Share { isa: crate::Isa::best(), products, quants, values })
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

    /// Room that any answer of this share needs.
    pub fn answer_bytes_max(&self) -> usize {
        let rows = |pieces: &Vec<Matrix>| pieces.iter().map(|m| m.rows).sum::<usize>();
        let widest = self.products.iter().map(rows).max().unwrap_or(0);
        4 * (widest * PASS_ROWS_MAX).min(ANSWER_VALUES_MAX)
    }

    /// Carries out an order: writes the answer over `answer`, little-endian f32, for each
    /// matrix that this share has tiles of `[T, its rows here]`.
    ///
    /// # Errors
    /// If the order is not of this share's chief.
    pub fn run(&mut self, order: &[u8], answer: &mut Vec<u8>) -> Result<(), OrderError> {
        let wrong = OrderError { bytes: order.len() };
        answer.clear();
        let header = order.first_chunk::<HEADER_BYTES>().ok_or(wrong.clone())?;
        let [number, columns] = [0, 4].map(|at| {
            let word = header[at..].first_chunk().expect("the header has eight bytes");
            u32::from_le_bytes(*word) as usize
        });
        let pieces = self.products.get(number).ok_or(wrong.clone())?;
        let Some(cols) = pieces.first().map(|m| m.cols) else { return Ok(()) };
        if columns > PASS_ROWS_MAX {
            return Err(wrong);
        }
        self.quants.resize(columns, cols);
        if !self.quants.copy_from_bytes(columns, &order[HEADER_BYTES..]) {
            return Err(wrong);
        }
        for piece in pieces {
            self.values.resize(self.values.len().max(columns * piece.rows), 0.0);
            let output = RowsMut::new(&mut self.values, columns, piece.rows);
            let x = Activations::Quantised(&self.quants);
            // SAFETY: one thread.
            unsafe { product(self.isa, piece, 0..tiles(piece), x, columns, None, output) };
            let values = &self.values[..columns * piece.rows];
            answer.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        }
        Ok(())
    }
}

/// The matrices of a product's factors.
pub(crate) fn matrices<'a>(weights: &'a Weights, factors: &[Factor]) -> Vec<&'a Matrix> {
    factors.iter().map(|f| weights.matrix(f.matrix)).collect()
}

/// The chief's side: a crew, and what has become of it.
pub(crate) struct Chief {
    crew: Box<dyn Crew>,
    /// Helpers that are still waited for.
    answering: Vec<bool>,
    buffer: Vec<u8>,
}

impl Chief {
    pub(crate) fn new(crew: Box<dyn Crew>) -> Chief {
        let helpers = crew.helpers();
        assert!(helpers <= HELPERS_MAX, "{helpers} helpers");
        Chief { crew, answering: vec![true; helpers], buffer: Vec::new() }
    }

    /// How many helpers still answer.
    pub(crate) fn helpers(&self) -> usize {
        self.answering.iter().filter(|answers| **answers).count()
    }

    /// Orders product `number` of `columns` rows; `false` if the chief is to do it alone,
    /// else each member's tiles, the chief's first.
    pub(crate) fn begin(
        &mut self,
        class: Class,
        number: usize,
        matrices: &[&Matrix],
        quants: &Quants,
        columns: usize,
    ) -> bool {
        if self.helpers() == 0 || !is_shared(class, matrices, columns) {
            return false;
        }
        self.buffer.clear();
        for word in [number, columns] {
            self.buffer.extend((word as u32).to_le_bytes());
        }
        quants.extend_bytes(columns, &mut self.buffer);
        self.crew.begin(&self.buffer);
        true
    }

    /// The tiles that the chief computes of a product that it ordered.
    pub(crate) fn own(&self, matrices: &[&Matrix]) -> Vec<(usize, Range<usize>)> {
        deal(matrices, self.answering.len() + 1, 0)
    }

    /// Writes the answers, with the biases added; returns the tiles of those who did not
    /// answer.
    ///
    /// # Safety
    /// Nobody else may write what is not [`Chief::own`].
    pub(crate) unsafe fn finish(
        &mut self,
        matrices: &[&Matrix],
        biases: &[Option<&[f32]>],
        columns: usize,
        outputs: &[RowsMut<'_>],
    ) -> Vec<(usize, Range<usize>)> {
        let mut left = Vec::new();
        for helper in 0..self.answering.len() {
            let share = deal(matrices, self.answering.len() + 1, helper + 1);
            let rows: usize =
                share.iter().map(|(i, tiles)| rows_of(matrices[*i], tiles).len()).sum();
            self.buffer.resize(4 * columns * rows, 0);
            if !self.answering[helper] || !self.crew.collect(helper, &mut self.buffer) {
                self.answering[helper] = false;
                left.extend(share);
                continue;
            }
            let mut words = self.buffer.as_chunks::<4>().0.iter();
            for (index, tiles) in share {
                let rows = rows_of(matrices[index], &tiles);
                for t in 0..columns {
                    // SAFETY: the caller's promise; members' tiles are disjoint.
                    let out = unsafe { outputs[index].part(t, rows.clone()) };
                    for (o, word) in out.iter_mut().zip(&mut words) {
                        *o = f32::from_le_bytes(*word);
                    }
                    if let Some(bias) = biases[index] {
                        for (o, b) in out.iter_mut().zip(&bias[rows.clone()]) {
                            *o += b;
                        }
                    }
                }
            }
        }
        left
    }
}
