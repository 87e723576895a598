//! Orders as bytes: what the leader does, and what it held before.
//!
//! | bytes | |
//! |---|---|
//! | 8 | number of the order, from 0 |
//! | 4 | KV pages that were free |
//! | 4 | 0 step, 1 fork, 2 truncate |
//! | 24 | fork: from, to, positions; truncate: session, positions, 0 (8 each) |
//! | 8 | step: number of segments |
//! | 20 each | session, position, rows, positions that it held (8, 4, 4, 4) |
//! | 4·ΣT·D | hidden state, f32 |
//!
//! Little-endian.

use crate::steps::STEP_ROWS_MAX;
use crate::tensor::FollowError;
use crate::types::Segment;

/// Bytes before a step's segments; an order of another kind has no more.
pub(super) const HEADER_BYTES: usize = 40;
/// Bytes of a segment.
pub(super) const SEGMENT_BYTES: usize = 20;

/// What the leader held before it carried out the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Before {
    pub(super) number: u64,
    pub(super) pages_free: u32,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Order {
    /// Segments with the positions that each session held, and `[ΣT, D]`.
    Step {
        segments: Vec<(Segment, u32)>,
        hidden: Vec<f32>,
    },
    Fork {
        from: u64,
        to: u64,
        positions: u32,
    },
    Truncate {
        session: u64,
        positions: u32,
    },
}

fn write(out: &mut Vec<u8>, before: Before, kind: u32) {
    out.clear();
    out.extend(before.number.to_le_bytes());
    out.extend(before.pages_free.to_le_bytes());
    out.extend(kind.to_le_bytes());
}

/// Writes a step's order over `out`; `held` are its sessions' positions.
pub(super) fn write_step(
    out: &mut Vec<u8>,
    before: Before,
    segments: &[Segment],
    held: &[u32],
    hidden: &[f32],
) {
    write(out, before, 0);
    out.extend((segments.len() as u64).to_le_bytes());
    for (s, &held) in segments.iter().zip(held) {
        out.extend(s.session.to_le_bytes());
        for word in [s.position, s.rows, held] {
            out.extend(word.to_le_bytes());
        }
    }
    super::group::push_values(out, hidden);
}

/// Writes the order of a fork (kind 1) or truncation (kind 2) over `out`.
pub(super) fn write_numbers(out: &mut Vec<u8>, before: Before, kind: u32, numbers: [u64; 3]) {
    write(out, before, kind);
    numbers.iter().for_each(|n| out.extend(n.to_le_bytes()));
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], FollowError> {
        let short = || FollowError::Order("it ends too early".to_owned());
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or_else(short)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32, FollowError> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, FollowError> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn positions(&mut self) -> Result<u32, FollowError> {
        let got = self.u64()?;
        u32::try_from(got).map_err(|_| FollowError::Order(format!("{got} positions")))
    }

    /// All the rest.
    fn values(&mut self) -> Result<Vec<f32>, FollowError> {
        let (words, rest) = self.0.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(FollowError::Order("half a number at its end".to_owned()));
        }
        self.0 = &[];
        Ok(words.iter().map(|&word| f32::from_le_bytes(word)).collect())
    }
}

/// Reads an order.
///
/// # Errors
/// [`FollowError::Order`] for whatever the functions above do not write; nothing is allocated
/// for what is not there.
pub(super) fn read(bytes: &[u8]) -> Result<(Before, Order), FollowError> {
    let mut reader = Reader(bytes);
    let before = Before { number: reader.u64()?, pages_free: reader.u32()? };
    let order = match reader.u32()? {
        0 => {
            let count = reader.u64()?;
            if count == 0 || count > STEP_ROWS_MAX as u64 {
                return Err(FollowError::Order(format!("{count} segments")));
            }
            let mut segments = Vec::with_capacity(count as usize);
            for _ in 0..count {
                let (session, position) = (reader.u64()?, reader.u32()?);
                let (rows, held) = (reader.u32()?, reader.u32()?);
                segments.push((Segment { session, position, rows, logits_rows: 0 }, held));
            }
            Order::Step { segments, hidden: reader.values()? }
        }
        1 => {
            let (from, to) = (reader.u64()?, reader.u64()?);
            Order::Fork { from, to, positions: reader.positions()? }
        }
        2 => {
            let order = Order::Truncate { session: reader.u64()?, positions: reader.positions()? };
            reader.u64()?;
            order
        }
        kind => return Err(FollowError::Order(format!("of kind {kind}"))),
    };
    match reader.0 {
        [] => Ok((before, order)),
        rest => Err(FollowError::Order(format!("{} bytes more than it has", rest.len()))),
    }
}
