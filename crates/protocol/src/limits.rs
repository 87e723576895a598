//! The bounds of everything that crosses the wire, checked before anything is allocated.

/// Longest control message, bytes of JSON.
pub const CONTROL_BYTES_MAX: usize = 1 << 20;
/// Longest chunk of a frame (one binary WebSocket message), bytes, its header included.
pub const CHUNK_BYTES_MAX: usize = 64 << 10;
/// Longest frame payload, bytes: 256 rows of D = 8192 in f32 are 8 MiB, 64 rows of logits
/// over 152k tokens 39 MiB.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;
/// Most segments in one frame.
pub const SEGMENTS_MAX: usize = 256;
/// Most rows in one frame, over all segments.
pub const ROWS_MAX: u32 = 1024;
/// Positions of a session stay below this (RoPE's exactness ends there).
pub const POSITIONS_MAX: u32 = 131_072;
/// Most blobs that one assignment names.
pub const BLOBS_MAX: usize = 4096;
/// Most cached blobs that a hello names.
pub const CACHED_MAX: usize = 4096;
/// Longest name, token, reason or other text inside a control message, bytes.
pub const TEXT_BYTES_MAX: usize = 4096;
/// Most steps that a worker may have outstanding.
pub const STEP_CREDITS_MAX: u32 = 16;
