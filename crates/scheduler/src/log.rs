//! The activation log: what went over each boundary of a session, as it was sent.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// The rows of one boundary of one session: the input of the part it stands before.
#[derive(Clone, Debug, Default)]
pub struct Boundary {
    /// Rows before this position are not kept.
    start: u32,
    /// Rows up to here have been computed.
    end: u32,
    /// First position and rows, ascending and gapless from `start` to `end`.
    chunks: VecDeque<(u32, Bytes)>,
    /// Bytes of a row; 0 before the first.
    row_bytes: usize,
    bytes: u64,
}

impl Boundary {
    /// A boundary whose next row is that of `position`.
    pub fn starting_at(position: u32) -> Boundary {
        Boundary { start: position, end: position, ..Boundary::default() }
    }

    /// Positions known, from 0, kept or not.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// First position whose row is kept.
    pub fn start(&self) -> u32 {
        self.start
    }

    /// Payload bytes kept.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of a row; 0 before the first.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Adds rows at the end. `rows` is a whole number of rows of `row_bytes`, always the same.
    pub fn append(&mut self, rows: Bytes, row_bytes: usize) {
        debug_assert!(!rows.is_empty() && rows.len().is_multiple_of(row_bytes));
        assert!(self.chunks.is_empty() || row_bytes == self.row_bytes, "rows of another width");
        self.row_bytes = row_bytes;
        self.bytes += rows.len() as u64;
        let count = (rows.len() / row_bytes) as u32;
        self.chunks.push_back((self.end, rows));
        self.end += count;
    }

    /// The rows of positions `from..to`, or `None` if they are not all kept.
    pub fn rows(&self, from: u32, to: u32) -> Option<Bytes> {
        let row_bytes = self.row_bytes;
        if from < self.start || to > self.end || from >= to {
            return None;
        }
        let first = self.chunks.partition_point(|(position, _)| *position <= from) - 1;
        let mut joined = BytesMut::new();
        for (position, bytes) in self.chunks.range(first..) {
            let count = (bytes.len() / row_bytes) as u32;
            let a = from.max(*position);
            let b = to.min(position + count);
            let slice = bytes
                .slice((a - position) as usize * row_bytes..(b - position) as usize * row_bytes);
            if a == from && b == to {
                return Some(slice);
            }
            joined.extend_from_slice(&slice);
            if b == to {
                break;
            }
        }
        Some(joined.freeze())
    }

    /// Forgets the rows before `position`, by whole chunks.
    pub fn forget_before(&mut self, position: u32) {
        while let Some((at, bytes)) = self.chunks.front() {
            let next = self.chunks.get(1).map_or(self.end, |(next, _)| *next);
            if next > position {
                break;
            }
            debug_assert_eq!(*at, self.start);
            self.bytes -= bytes.len() as u64;
            self.start = next;
            self.chunks.pop_front();
        }
    }

    /// Forgets the rows from `position` on.
    pub fn truncate(&mut self, position: u32) {
        if position >= self.end {
            return;
        }
        if position <= self.start {
            *self = Boundary::starting_at(position);
            return;
        }
        while let Some((at, bytes)) = self.chunks.back_mut() {
            if *at < position {
                let keep = (position - *at) as usize * self.row_bytes;
                if keep < bytes.len() {
                    self.bytes -= (bytes.len() - keep) as u64;
                    bytes.truncate(keep);
                }
                break;
            }
            self.bytes -= bytes.len() as u64;
            self.chunks.pop_back();
        }
        self.end = position;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(counts: &[u8]) -> Boundary {
        let mut log = Boundary::default();
        let mut next = 0;
        for &count in counts {
            log.append((next..next + count).flat_map(|p| [p, p]).collect(), 2);
            next += count;
        }
        log
    }

    #[test]
    fn rows_come_back_across_chunks() {
        let log = filled(&[3, 1, 4]);
        assert_eq!(log.end(), 8);
        assert_eq!(log.rows(2, 5).unwrap()[..], [2, 2, 3, 3, 4, 4]);
        assert_eq!(log.rows(4, 8).unwrap()[..], [4, 4, 5, 5, 6, 6, 7, 7]);
        assert_eq!(log.rows(7, 9), None);
        assert_eq!(log.rows(3, 3), None);
    }

    #[test]
    fn what_is_forgotten_is_not_given_out() {
        let mut log = filled(&[3, 1, 4]);
        log.forget_before(3);
        assert_eq!((log.start(), log.end(), log.bytes()), (3, 8, 10));
        assert_eq!(log.rows(2, 4), None);
        assert_eq!(log.rows(3, 5).unwrap()[..], [3, 3, 4, 4]);
        log.forget_before(7);
        assert_eq!(log.start(), 4, "chunks go as wholes");
    }

    #[test]
    fn truncation_cuts_inside_a_chunk() {
        let mut log = filled(&[3, 1, 4]);
        log.truncate(5);
        assert_eq!((log.end(), log.bytes()), (5, 10));
        log.append(vec![9, 9].into(), 2);
        assert_eq!(log.rows(4, 6).unwrap()[..], [4, 4, 9, 9]);
        log.truncate(0);
        assert_eq!((log.start(), log.end(), log.bytes()), (0, 0, 0));
    }
}
