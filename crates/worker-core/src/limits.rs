//! The bounds of what a worker holds on to.

/// Most assignments at once; one more is answered with `failed`.
pub const ASSIGNMENTS_MAX: usize = 64;
/// Most sessions with KV on one shard; rows of one more are answered with
/// [`protocol::Status::KvFull`].
pub const SESSIONS_MAX: usize = 4096;
/// Most sessions without KV on one shard whose epoch is remembered; past it the longest
/// forgotten one goes.
pub const EPOCHS_KEPT_MAX: usize = 8192;
/// Most forks, truncates and unassigns that wait behind the run in progress, beside the
/// steps; more is a protocol violation.
pub const WAITING_MAX: usize = 4 * SESSIONS_MAX;
/// How long a leaving worker waits for further steps after the last one, µs: long enough for
/// its `drain` to reach the coordinator before it goes.
pub const DRAIN_QUIET_US: u64 = 300_000;
/// How long a leaving worker stays at most, µs.
pub const DRAIN_US_MAX: u64 = 20_000_000;
/// Fetching is reported whenever another such share of an assignment's bytes is there, or
/// [`PROGRESS_BYTES_MAX`] if that is less.
pub const PROGRESS_SHARE: u64 = 50;
/// Fetching is reported at least once in so many bytes, so that a large assignment over a
/// slow line is seen to get on.
pub const PROGRESS_BYTES_MAX: u64 = 4 << 20;
