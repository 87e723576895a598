//! What the ranks of a tensor group send each other in the middle of a step, through the
//! coordinator: a worker behind any NAT can take part.
//!
//! A message is cut into pieces, each one binary WebSocket message, which the coordinator
//! passes on to all other members as it came. All numbers little-endian:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic, `WFRL` |
//! | 4 | 8 | the group: its leader's assignment |
//! | 12 | 1 | the rank that sends |
//! | 13 | 1 | kind |
//! | 14 | 2 | zero |
//! | 16 | 4 | the message's number among this rank's, from 0, wrapping |
//! | 20 | 4 | bytes of the whole message |
//! | 24 | 4 | where this piece starts in it |
//! | 28 | 4 | CRC-32 of the header before it and the piece |

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{u16_at, u32_at, u64_at};
use crate::control::AssignmentId;
use crate::frame::FrameError;
use crate::limits::{CHUNK_BYTES_MAX, RANKS_MAX, RELAY_BYTES_MAX};

/// Bytes of a piece before what it carries.
pub const RELAY_HEADER_BYTES: usize = 32;
const MAGIC: [u8; 4] = *b"WFRL";
const CRC_AT: usize = 28;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RelayKind {
    /// From the leader: what the others are to do.
    Order = 1,
    /// A rank's share of an exchange.
    Share = 2,
}

/// What a piece says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayHeader {
    /// The group's leader's assignment.
    pub group: AssignmentId,
    /// Who sends.
    pub rank: u8,
    /// What.
    pub kind: RelayKind,
    /// The message's number.
    pub number: u32,
    /// Bytes of the whole message.
    pub total: u32,
    /// Where the piece starts in it.
    pub offset: u32,
}

/// Whether a binary message is a piece of a relayed message, and no chunk of a frame.
pub fn is_relay(message: &[u8]) -> bool {
    message.starts_with(&MAGIC)
}

impl RelayHeader {
    /// Reads a piece's header, every field checked; its checksum is the receiver's to check, in
    /// [`RelayReassembler::push`].
    ///
    /// # Errors
    /// Anything that [`relay_pieces`] would not have written.
    pub fn decode(message: &[u8]) -> Result<RelayHeader, FrameError> {
        let got = message.len();
        if got < RELAY_HEADER_BYTES {
            let expected = RELAY_HEADER_BYTES;
            return Err(FrameError::Length { what: "relayed piece, at least", expected, got });
        }
        if got > CHUNK_BYTES_MAX {
            let max = CHUNK_BYTES_MAX as u64;
            return Err(FrameError::TooMany {
                what: "bytes of a relayed piece",
                max,
                got: got as u64,
            });
        }
        if !is_relay(message) {
            return Err(FrameError::Magic { what: "relayed piece", got: u32_at(message, 0) });
        }
        let rank = message[12];
        if usize::from(rank) >= RANKS_MAX {
            return Err(FrameError::Value { field: "rank", got: rank.into() });
        }
        let kind = match message[13] {
            1 => RelayKind::Order,
            2 => RelayKind::Share,
            got => return Err(FrameError::Value { field: "kind of a relay", got: got.into() }),
        };
        if u16_at(message, 14) != 0 {
            return Err(FrameError::Value { field: "reserved", got: u16_at(message, 14).into() });
        }
        let (total, offset) = (u32_at(message, 20), u32_at(message, 24));
        if total as usize > RELAY_BYTES_MAX {
            let (max, got) = (RELAY_BYTES_MAX as u64, u64::from(total));
            return Err(FrameError::TooMany { what: "bytes of a relayed message", max, got });
        }
        // A message of no bytes is one piece of none; of others each piece has some.
        let carried = got - RELAY_HEADER_BYTES;
        let rest = (total as usize).checked_sub(offset as usize);
        if rest.is_none_or(|rest| carried > rest || carried == 0 && total > 0) {
            let expected = (total as usize).saturating_sub(offset as usize);
            return Err(FrameError::Length { what: "relayed piece", expected, got: carried });
        }
        Ok(RelayHeader {
            group: AssignmentId(u64_at(message, 4)),
            rank,
            kind,
            number: u32_at(message, 16),
            total,
            offset,
        })
    }
}

/// A message in pieces, each ready to be sent as one binary message.
///
/// # Panics
/// If the message is longer than [`RELAY_BYTES_MAX`], or the rank is none: a fault of ours.
pub fn relay_pieces(
    group: AssignmentId,
    rank: u8,
    kind: RelayKind,
    number: u32,
    message: &[u8],
) -> impl Iterator<Item = Bytes> + '_ {
    assert!(message.len() <= RELAY_BYTES_MAX, "a message of {} bytes", message.len());
    assert!(usize::from(rank) < RANKS_MAX, "rank {rank}");
    let piece_max = CHUNK_BYTES_MAX - RELAY_HEADER_BYTES;
    let pieces = message.len().div_ceil(piece_max).max(1);
    (0..pieces).map(move |i| {
        let start = i * piece_max;
        let piece = &message[start..message.len().min(start + piece_max)];
        let mut out = BytesMut::with_capacity(RELAY_HEADER_BYTES + piece.len());
        out.put_slice(&MAGIC);
        out.put_u64_le(group.0);
        out.put_u8(rank);
        out.put_u8(kind as u8);
        out.put_u16_le(0);
        out.put_u32_le(number);
        out.put_u32_le(message.len() as u32);
        out.put_u32_le(start as u32);
        out.put_u32_le(checksum(&out, piece));
        out.put_slice(piece);
        out.freeze()
    })
}

fn checksum(head: &[u8], piece: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[..CRC_AT]);
    crc.update(piece);
    crc.finalize()
}

/// Puts one rank's messages together again. Holds at most [`RELAY_BYTES_MAX`] bytes.
#[derive(Debug, Default)]
pub struct RelayReassembler {
    /// The number that the next new message must have.
    next: u32,
    partial: BytesMut,
}

impl RelayReassembler {
    /// Takes a piece; gives the message that it completes, if it does.
    ///
    /// # Errors
    /// As [`RelayHeader::decode`]; a damaged piece, or one that does not follow the one before
    /// it: something was lost, and the group is over.
    pub fn push(&mut self, piece: &Bytes) -> Result<Option<(RelayKind, Bytes)>, FrameError> {
        let header = RelayHeader::decode(piece)?;
        let carried = piece.slice(RELAY_HEADER_BYTES..);
        let (expected, got) = (checksum(piece, &carried), u32_at(piece, CRC_AT));
        if expected != got {
            return Err(FrameError::Checksum { expected, got });
        }
        if (header.number, header.offset as usize) != (self.next, self.partial.len()) {
            return Err(FrameError::Order {
                expected_frame: self.next,
                expected_offset: self.partial.len() as u32,
                frame: header.number,
                offset: header.offset,
            });
        }
        let total = header.total as usize;
        let whole = if carried.len() == total {
            carried
        } else {
            // It grows with what really arrives.
            self.partial.extend_from_slice(&carried);
            if self.partial.len() < total {
                return Ok(None);
            }
            self.partial.split().freeze()
        };
        self.next = self.next.wrapping_add(1);
        Ok(Some((header.kind, whole)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(number: u32, message: &[u8]) -> Vec<Bytes> {
        relay_pieces(AssignmentId(0x0102), 3, RelayKind::Share, number, message).collect()
    }

    #[test]
    fn a_piece_looks_like_this() {
        let [piece] = &pieces(5, b"abc")[..] else { panic!("one piece") };
        let hex: String = piece.iter().map(|b| format!("{b:02x}")).collect();
        let head = "5746524c020100000000000003020000050000000300000000000000";
        assert_eq!(hex, format!("{head}{:08x}616263", checksum(piece, b"abc").swap_bytes()));
        let header = RelayHeader::decode(piece).unwrap();
        assert_eq!((header.group, header.rank), (AssignmentId(0x0102), 3));
        assert_eq!((header.number, header.total, header.offset), (5, 3, 0));
    }

    #[test]
    fn messages_of_any_length_come_whole_and_in_order() {
        let mut reassembler = RelayReassembler::default();
        for (number, length) in
            [0, 1, CHUNK_BYTES_MAX - 32, CHUNK_BYTES_MAX, 200_000].iter().enumerate()
        {
            let message: Vec<u8> = (0..*length).map(|i| i as u8).collect();
            let pieces = pieces(number as u32, &message);
            let (last, others) = pieces.split_last().unwrap();
            for piece in others {
                assert_eq!(reassembler.push(piece), Ok(None));
            }
            let whole = reassembler.push(last).unwrap().unwrap();
            assert_eq!(whole, (RelayKind::Share, Bytes::from(message)));
        }
    }

    #[test]
    fn what_is_lost_damaged_or_too_long_is_found() {
        let long = vec![7; 100_000];
        let two = pieces(0, &long);
        let mut reassembler = RelayReassembler::default();
        assert!(matches!(reassembler.push(&two[1]), Err(FrameError::Order { .. })));
        assert!(matches!(reassembler.push(&pieces(1, b"x")[0]), Err(FrameError::Order { .. })));
        let mut damaged = two[0].to_vec();
        damaged[RELAY_HEADER_BYTES + 9] ^= 1;
        let damaged = reassembler.push(&damaged.into());
        assert!(matches!(damaged, Err(FrameError::Checksum { .. })));
        for (at, value, error) in [
            (0, 0, "begins with"),
            (12, RANKS_MAX as u8, "rank"),
            (13, 9, "kind"),
            (14, 1, "reserved"),
            (23, 0xff, "bytes of a relayed message"),
            (27, 0xff, "relayed piece"),
        ] {
            let mut wrong = pieces(0, b"abc")[0].to_vec();
            wrong[at] = value;
            let refused = RelayHeader::decode(&wrong).unwrap_err().to_string();
            assert!(refused.contains(error), "{refused}");
        }
        let short = RelayHeader::decode(&two[0][..31]).unwrap_err();
        assert!(matches!(short, FrameError::Length { .. }));
        let empty = RelayHeader::decode(&two[0][..32]).unwrap_err();
        assert!(matches!(empty, FrameError::Length { .. }));
    }
}
