//! Several instances of the engine compute one shard together, without shared memory.
//!
//! For Web Workers that each run a WASM instance of their own. The *chief* holds the shard,
//! all its weights and the KV cache, and runs every step. Each *helper* holds a [`Share`]:
//! some 16-row tiles of every matrix, which the chief [cuts](crate::Shard::cut). For a product the chief gives all helpers one *order*
//! (the quantised activations) and computes its own tiles. A helper begins the *pieces* of its
//! share one after the other, from the first on; the chief, once it is done, takes back what
//! no helper has begun, from the last on, and copies the *answers* (rows of the output). So a
//! helper that the machine does not let run takes part in nothing and holds up nobody. How the
//! bytes travel is the [`Crew`]'s business; [`slot`] is one way.
//!
//! The sum over a row's columns is never split, so the bits are the same with any number of
//! helpers and whoever computes what. A piece that was begun and is not answered in time, the
//! chief, which has all weights, computes too: no step waits for a helper that is gone.

mod share;
pub mod slot;

use std::ops::Range;

use model::layout::TILE_ROWS;

use crate::cpu::product::tiles;
use crate::cpu::quants::Quants;
use crate::cpu::rows::RowsMut;
use crate::plan::Factor;
use crate::types::Class;
use crate::weights::{Matrix, Weights};

pub(crate) use share::cut;
pub use share::{Cut, CutError, OrderError, Share, Tiles};

/// Helpers that one chief may have.
pub const HELPERS_MAX: usize = 15;
/// Values of one answer, at most (16 MiB): the chief computes a product alone whose answers
/// would be longer, such as the logits of many rows.
pub const ANSWER_VALUES_MAX: usize = 1 << 22;
/// Pieces of one helper's share of a product, at most: what one that falls asleep over a piece
/// holds up is bounded by it.
pub const PIECES_MAX: usize = 8;
/// Tiles of a piece, if there are so many: each costs some work of its own.
const PIECE_TILES: usize = 4;
/// Bytes of an order before its activations: the product's number and its rows, u32 each.
const HEADER_BYTES: usize = 8;

/// The chief's way to its helpers.
pub trait Crew: Send {
    /// How many there are, at most [`HELPERS_MAX`]; always the same.
    fn helpers(&self) -> usize;

    /// Gives every helper `order` and returns without waiting. Helper `h`'s share has
    /// `pieces[h]` pieces. All pieces of the order before are begun or taken back by then: who
    /// orders [takes](Crew::take) until none is left. What was begun and not answered, nobody
    /// asks for any more.
    fn begin(&mut self, order: &[u8], pieces: &[usize]);

    /// Takes back the last piece of the last order that `helper` has not begun and nobody has
    /// taken; `false` if none is left.
    fn take(&mut self, helper: usize) -> bool;

    /// How many of the first `begun` pieces, which were all not taken back, `helper` has
    /// answered: waits a moment for those that are missing, and no longer.
    fn answered(&mut self, helper: usize, begun: usize) -> usize;

    /// Copies the first bytes of the answers to those pieces.
    fn copy(&mut self, helper: usize, answers: &mut [u8]);
}

/// A member's tiles of a product, which are numbered through all its matrices; the chief is 0.
fn share_of(total: usize, members: usize, member: usize) -> Range<usize> {
    total * member / members..total * (member + 1) / members
}

/// Into how many pieces a share of so many tiles is cut.
fn pieces_of(tiles: usize) -> usize {
    tiles.div_ceil(PIECE_TILES).min(PIECES_MAX)
}

/// Which of a share's tiles are a piece's.
fn piece_of(tiles: usize, piece: usize) -> Range<usize> {
    let pieces = pieces_of(tiles);
    tiles * piece / pieces..tiles * (piece + 1) / pieces
}

fn moved(range: Range<usize>, by: usize) -> Range<usize> {
    range.start + by..range.end + by
}

fn total_tiles(matrices: &[&Matrix]) -> usize {
    matrices.iter().map(|m| tiles(m)).sum()
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

/// The matrices of a product's factors.
pub(crate) fn matrices<'a>(weights: &'a Weights, factors: &[Factor]) -> Vec<&'a Matrix> {
    factors.iter().map(|f| weights.matrix(f.matrix)).collect()
}

/// The chief's side of a crew.
pub(crate) struct Chief {
    crew: Box<dyn Crew>,
    buffer: Vec<u8>,
}

impl Chief {
    pub(crate) fn new(crew: Box<dyn Crew>) -> Chief {
        let helpers = crew.helpers();
        assert!(helpers <= HELPERS_MAX, "{helpers} helpers");
        Chief { crew, buffer: Vec::new() }
    }

    /// The tiles of a product that are helper `helper`'s share.
    fn share(&self, matrices: &[&Matrix], helper: usize) -> Range<usize> {
        share_of(total_tiles(matrices), self.crew.helpers() + 1, helper + 1)
    }

    /// Orders product `number` of `columns` rows; `false` if the chief is to do it alone.
    pub(crate) fn begin(
        &mut self,
        class: Class,
        number: usize,
        matrices: &[&Matrix],
        quants: &Quants,
        columns: usize,
    ) -> bool {
        if self.crew.helpers() == 0 || columns == 0 || !is_shared(class, matrices, columns) {
            return false;
        }
        self.buffer.clear();
        for word in [number, columns] {
            self.buffer.extend((word as u32).to_le_bytes());
        }
        quants.extend_bytes(columns, &mut self.buffer);
        let mut pieces = [0; HELPERS_MAX];
        let pieces = &mut pieces[..self.crew.helpers()];
        for (helper, pieces) in pieces.iter_mut().enumerate() {
            *pieces = pieces_of(self.share(matrices, helper).len());
        }
        self.crew.begin(&self.buffer, pieces);
        true
    }

    /// Completes a product that it ordered: `run` computes tiles of a matrix, with the bias.
    ///
    /// # Safety
    /// Nobody else may write the outputs.
    pub(crate) unsafe fn finish(
        &mut self,
        matrices: &[&Matrix],
        biases: &[Option<&[f32]>],
        columns: usize,
        outputs: &[RowsMut<'_>],
        run: &dyn Fn((usize, Range<usize>)),
    ) {
        let helpers = self.crew.helpers();
        let own = share_of(total_tiles(matrices), helpers + 1, 0);
        parts(matrices, own).into_iter().for_each(run);

        let mut left = [0; HELPERS_MAX];
        let left = &mut left[..helpers];
        for (helper, left) in left.iter_mut().enumerate() {
            *left = pieces_of(self.share(matrices, helper).len());
        }
        let run_piece = |share: &Range<usize>, piece: usize| {
            let range = moved(piece_of(share.len(), piece), share.start);
            parts(matrices, range).into_iter().for_each(run);
        };
        // One of each in turn, so that all of them are done at about the same time.
        let mut more = true;
        while more {
            more = false;
            for (helper, left) in left.iter_mut().enumerate() {
                if *left > 0 && self.crew.take(helper) {
                    *left -= 1;
                    more = true;
                    run_piece(&self.share(matrices, helper), *left);
                }
            }
        }
        for (helper, &begun) in left.iter().enumerate() {
            if begun == 0 {
                continue;
            }
            let share = self.share(matrices, helper);
            let answered = self.crew.answered(helper, begun).min(begun);
            // SAFETY: the caller's promise; these tiles are nobody else's.
            unsafe { self.copy(helper, &share, answered, matrices, biases, columns, outputs) };
            (answered..begun).for_each(|piece| run_piece(&share, piece));
        }
    }

    /// Writes the answers to the first `pieces` pieces of a share, with the biases added.
    ///
    /// # Safety
    /// Nobody else may write these tiles' rows.
    #[allow(clippy::too_many_arguments, reason = "a product is all of it")]
    unsafe fn copy(
        &mut self,
        helper: usize,
        share: &Range<usize>,
        pieces: usize,
        matrices: &[&Matrix],
        biases: &[Option<&[f32]>],
        columns: usize,
        outputs: &[RowsMut<'_>],
    ) {
        if pieces == 0 {
            return;
        }
        let tiles = moved(piece_of(share.len(), pieces - 1), share.start).end;
        let rows = |(i, tiles): (usize, Range<usize>)| rows_of(matrices[i], &tiles).len();
        let rows: usize = parts(matrices, share.start..tiles).into_iter().map(rows).sum();
        self.buffer.resize(4 * columns * rows, 0);
        self.crew.copy(helper, &mut self.buffer);
        let mut words = self.buffer.as_chunks::<4>().0.iter();
        for piece in 0..pieces {
            let range = moved(piece_of(share.len(), piece), share.start);
            for (index, tiles) in parts(matrices, range) {
                let rows = rows_of(matrices[index], &tiles);
                for t in 0..columns {
                    // SAFETY: the caller's promise; pieces are disjoint.
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
    }
}
