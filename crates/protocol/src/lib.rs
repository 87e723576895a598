//! The wire between a coordinator and its workers: messages, framing, limits.
//!
//! One WebSocket per worker, [`SUBPROTOCOL`] as its subprotocol. Control messages are JSON
//! text messages ([`ToWorker`], [`FromWorker`]); tensors are [`Frame`]s, cut into chunks of
//! [`CHUNK_BYTES_MAX`] that travel as binary messages, so that control messages go between
//! them. This crate knows nothing about sockets, time or threads.

pub mod boundary;
pub mod chunk;
pub mod codec;
pub mod control;
pub mod frame;
pub mod limits;
pub mod payload;
pub mod relay;
mod validate;

pub use chunk::{CHUNK_HEADER_BYTES, Chunks, Reassembler};
pub use control::*;
pub use frame::*;
pub use limits::*;
pub use relay::{RelayHeader, RelayKind, RelayReassembler, is_relay, relay_pieces};
pub use validate::{ControlError, clean_text, clean_text_to};

/// The protocol's version; a peer of another one is turned away with a message that says so.
pub const PROTOCOL_VERSION: u32 = 1;
/// The WebSocket subprotocol, which carries the version.
pub const SUBPROTOCOL: &str = "weft.v1";
