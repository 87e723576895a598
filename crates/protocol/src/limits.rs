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
/// Longest blob, bytes: the embedding of a 405B model in f16 is 4.2 GB.
pub const BLOB_BYTES_MAX: u64 = 64 << 30;
/// Longest manifest, bytes.
pub const MANIFEST_BYTES_MAX: u64 = 16 << 20;
/// Most parts of a model: embedding, layers, head.
pub const PARTS_MAX: u32 = 4096;
/// Most KV pages of 64 positions in one assignment (64 million positions).
pub const KV_PAGES_MAX: u32 = 1 << 20;
/// Most ranks of a tensor group.
pub const RANKS_MAX: usize = 8;
/// Largest weight of a rank in the division of a layer.
pub const RANK_WEIGHT_MAX: u32 = 1024;
/// Longest message between the ranks of a tensor group, bytes: an order carries a step's rows.
pub const RELAY_BYTES_MAX: usize = PAYLOAD_BYTES_MAX;
/// Most numerics classes that a hello names.
pub const CLASSES_MAX: usize = 16;
/// Longest name of a class, a backend or a worker, bytes.
pub const NAME_BYTES_MAX: usize = 256;
/// Most notes that a hello has.
pub const NOTES_MAX: usize = 16;
/// Longest note of a hello, bytes.
pub const NOTE_BYTES_MAX: usize = 512;
/// Most memory that a worker may claim to lend, bytes.
pub const MEMORY_BYTES_MAX: u64 = 1 << 50;
/// Highest rate that a worker may claim, bytes per second.
pub const BYTES_PER_S_MAX: f64 = 1e15;
/// Longest encoded frame, bytes.
pub const FRAME_BYTES_MAX: usize =
    crate::codec::HEADER_BYTES + SEGMENTS_MAX * crate::codec::SEGMENT_BYTES + PAYLOAD_BYTES_MAX;
