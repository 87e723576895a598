//! One rank's exchanges.

use std::ops::Range;

use model::manifest::Dims;
use model::tensor::{Division, GATHERED_BLOCK_BYTES, RANKS_MAX};
use numerics::BLOCK;

use super::{Exchange, ExchangeError};
use crate::cpu::quants::{QuantBlock, Quants};
use crate::plan::{Buffer, Command};
use crate::run::{PassError, RowFault, Scratch};

/// Bytes of a message before its values: the exchange's number, and the fault (8 each).
pub(super) const HEADER_BYTES: usize = 16;
/// Instead of a fault: none.
const NO_FAULT: u64 = u64::MAX;

/// This rank's place in its group, and its way to the others.
pub(crate) struct Group {
    pub(super) rank: usize,
    /// What each rank has of `Mixed`, `Gate` and `Branch`.
    columns: [Vec<Range<usize>>; 3],
    pub(super) link: Box<dyn Exchange>,
    /// Exchanges so far; all ranks count the same ones.
    exchanges: u64,
    /// Orders so far.
    pub(super) orders: u64,
    /// Why nothing works any more.
    pub(crate) broken: Option<ExchangeError>,
    pub(super) message: Vec<u8>,
    /// Where parts are put together: values, or blocks; see `Scratch::swap`.
    values: Vec<f32>,
    blocks: Quants,
}

/// Appends values, little-endian.
pub(super) fn push_values(out: &mut Vec<u8>, values: &[f32]) {
    let start = out.len();
    out.resize(start + 4 * values.len(), 0);
    for (o, value) in out[start..].as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *o = value.to_le_bytes();
    }
}

fn copy_values(bytes: &[u8], out: &mut [f32]) {
    for (o, word) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *o = f32::from_le_bytes(*word);
    }
}

impl Group {
    pub(super) fn new(
        dims: &Dims,
        division: &Division,
        rank: usize,
        link: Box<dyn Exchange>,
    ) -> Group {
        let hd = dims.head_dim as usize;
        let of = |range: &Range<u32>, by: usize| range.start as usize * by..range.end as usize * by;
        let shares = &division.ranks;
        let columns = [
            shares.iter().map(|s| of(&s.heads, hd)).collect(),
            shares.iter().map(|s| of(&s.ffn, 1)).collect(),
            shares.iter().map(|s| of(&s.width, 1)).collect(),
        ];
        Group {
            rank,
            columns,
            link,
            exchanges: 0,
            orders: 0,
            broken: None,
            message: Vec::new(),
            values: Vec::new(),
            blocks: Quants::default(),
        }
    }

    /// What each rank has of a buffer's columns.
    fn columns(&self, buffer: Buffer) -> Vec<Range<usize>> {
        let index = match buffer {
            Buffer::Mixed => 0,
            Buffer::Gate => 1,
            Buffer::Branch => 2,
            other => unreachable!("{other:?} is not gathered"),
        };
        self.columns[index].clone()
    }

    fn begin(&mut self, fault: u64) {
        self.message.clear();
        self.message.extend(self.exchanges.to_le_bytes());
        self.message.extend(fault.to_le_bytes());
    }

    /// Sends the message in hand and gives `place` the values of all ranks, this one's too.
    /// `bytes` says how many a rank sends of a pass of `rows` rows, unless any will do. The error
    /// may be a fault that some rank met, the same one on all of them.
    fn swap(
        &mut self,
        rows: usize,
        bytes: &dyn Fn(usize) -> Option<usize>,
        place: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), PassError> {
        let (number, own, ranks) = (self.exchanges, self.rank, self.columns[0].len());
        self.exchanges += 1;
        let mut came = [false; RANKS_MAX];
        let mut first_fault = NO_FAULT;
        let mut take = |rank: usize, message: &[u8]| {
            let wrong = |reason: String| Err(ExchangeError::Message { rank, reason });
            if rank >= ranks || came[rank] {
                return wrong(format!("a message twice, or of no rank of {ranks}"));
            }
            came[rank] = true;
            let Some((header, values)) = message.split_first_chunk::<HEADER_BYTES>() else {
                return wrong(format!("{} bytes, a header has {HEADER_BYTES}", message.len()));
            };
            let [got, fault] = [0, 8].map(|at| {
                u64::from_le_bytes(*header[at..].first_chunk().expect("a header has 16 bytes"))
            });
            if got != number {
                return wrong(format!("a message of exchange {got} in exchange {number}"));
            }
            let expected = if fault == NO_FAULT { bytes(rank) } else { Some(0) };
            if let Some(expected) = expected.filter(|&expected| expected != values.len()) {
                return wrong(format!("{} bytes of values, expected {expected}", values.len()));
            }
            if fault != NO_FAULT && row_of(fault) >= rows {
                return wrong(format!("a fault in row {} of {rows}", row_of(fault)));
            }
            first_fault = first_fault.min(fault);
            if fault == NO_FAULT {
                place(rank, values);
            }
            Ok(())
        };
        self.link.send(&self.message)?;
        take(own, &self.message)?;
        self.link.receive(&mut take)?;
        if let Some(rank) = came[..ranks].iter().position(|&came| !came) {
            let reason = "it was not waited for".to_owned();
            return Err(ExchangeError::Lost { rank, reason }.into());
        }
        match first_fault {
            NO_FAULT => Ok(()),
            fault => Err(PassError::Agreed(RowFault(row_of(fault)))),
        }
    }

    /// Carries out a command of the plan that exchanges something.
    pub(crate) fn exchange(
        &mut self,
        command: &Command,
        scratch: &mut Scratch,
        rows: usize,
    ) -> Result<(), PassError> {
        match *command {
            Command::Gather { buffer } => self.gather(scratch, buffer, rows),
            Command::GatherBlocks { buffer } => self.gather_blocks(scratch, buffer, rows),
            Command::Reduce { buffer } => self.reduce(scratch, buffer, rows),
            _ => unreachable!("{command} exchanges nothing"),
        }
    }

    /// Completes a buffer: `[T, this rank's columns]` becomes `[T, all]`.
    fn gather(
        &mut self,
        scratch: &mut Scratch,
        buffer: Buffer,
        rows: usize,
    ) -> Result<(), PassError> {
        let columns = self.columns(buffer);
        let width = columns.iter().map(Range::len).sum::<usize>();
        self.begin(NO_FAULT);
        push_values(&mut self.message, scratch.values(buffer, rows * columns[self.rank].len()));
        let mut whole = std::mem::take(&mut self.values);
        whole.resize(whole.len().max(rows * width), 0.0);
        let swapped =
            self.swap(rows, &|rank| Some(4 * rows * columns[rank].len()), &mut |rank, bytes| {
                let part = columns[rank].clone();
                for (row, bytes) in
                    whole.chunks_exact_mut(width).zip(bytes.chunks_exact(4 * part.len()))
                {
                    copy_values(bytes, &mut row[part.clone()]);
                }
            });
        self.values = whole;
        swapped.map(|()| scratch.swap_values(buffer, &mut self.values))
    }

    /// Completes the quantised activations of a buffer, `[T, C / 32]` blocks.
    fn gather_blocks(
        &mut self,
        scratch: &mut Scratch,
        buffer: Buffer,
        rows: usize,
    ) -> Result<(), PassError> {
        let mut columns = self.columns(buffer);
        for part in &mut columns {
            *part = part.start / BLOCK..part.end / BLOCK;
        }
        let width = columns.iter().map(Range::len).sum::<usize>();
        self.begin(NO_FAULT);
        for t in 0..rows {
            for block in scratch.quants().row(t) {
                self.message.extend(block.d.to_le_bytes());
                self.message.extend(block.q.map(|q| q as u8));
            }
        }
        let mut whole = std::mem::take(&mut self.blocks);
        whole.resize(rows, width * BLOCK);
        let bytes = |rank: usize| Some(GATHERED_BLOCK_BYTES * rows * columns[rank].len());
        let swapped = self.swap(rows, &bytes, &mut |rank, bytes| {
            let mut blocks = bytes.as_chunks::<GATHERED_BLOCK_BYTES>().0.iter();
            for t in 0..rows {
                for (out, block) in
                    whole.row_mut(t)[columns[rank].clone()].iter_mut().zip(&mut blocks)
                {
                    *out = read_block(block);
                }
            }
        });
        self.blocks = whole;
        swapped.map(|()| std::mem::swap(scratch.quants(), &mut self.blocks))
    }

    /// Adds up the partial sums of all ranks, `[T, D]` each, in the ranks' order.
    fn reduce(
        &mut self,
        scratch: &mut Scratch,
        buffer: Buffer,
        rows: usize,
    ) -> Result<(), PassError> {
        let len = rows * self.columns(buffer)[self.rank].len();
        self.begin(NO_FAULT);
        push_values(&mut self.message, scratch.values(buffer, len));
        let mut partial = std::mem::take(&mut self.values);
        let ranks = self.columns[0].len();
        partial.resize(partial.len().max(ranks * len), 0.0);
        let swapped = self.swap(rows, &|_| Some(4 * len), &mut |rank, bytes| {
            copy_values(bytes, &mut partial[rank * len..(rank + 1) * len]);
        });
        if swapped.is_ok() {
            let sum = scratch.values(buffer, len);
            let (first, others) = partial[..ranks * len].split_at(len);
            sum.copy_from_slice(first);
            for values in others.chunks_exact(len) {
                for (sum, value) in sum.iter_mut().zip(values) {
                    *sum += value;
                }
            }
        }
        self.values = partial;
        swapped
    }

    /// Tells the others of a fault in the command at `at` of the plan, if there is an exchange
    /// to come; what all of them take the step back for.
    pub(crate) fn announce(
        &mut self,
        plan: &[Command],
        at: usize,
        rows: usize,
        RowFault(row): RowFault,
    ) -> PassError {
        if !plan[at..].iter().any(Command::exchanges) {
            return PassError::Agreed(RowFault(row)); // all have computed it
        }
        self.begin((at as u64) << 32 | row as u64);
        match self.swap(rows, &|_| None, &mut |_, _| {}) {
            Err(error) => error,
            Ok(()) => unreachable!("this rank's own fault is one"),
        }
    }
}

fn row_of(fault: u64) -> usize {
    (fault & 0xffff_ffff) as usize
}

/// A block as [`numerics::quantise`] has it, of its scale and quants.
fn read_block(bytes: &[u8; GATHERED_BLOCK_BYTES]) -> QuantBlock {
    let (d, quants) = bytes.split_first_chunk::<4>().expect("a scale, then quants");
    let mut q = [0; BLOCK];
    for (q, &byte) in q.iter_mut().zip(quants) {
        *q = byte as i8;
    }
    let d = f32::from_le_bytes(*d);
    let sum = |half: &[i8]| half.iter().map(|&q| i32::from(q)).sum::<i32>();
    let sums = [sum(&q[..BLOCK / 2]), sum(&q[BLOCK / 2..])];
    QuantBlock { d, s: d * (sums[0] + sums[1]) as f32, sums, q }
}
