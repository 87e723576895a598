//! Control messages, JSON text frames, readable in a browser's devtools.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::frame::Dtype;

/// BLAKE3 of a blob, 64 lower-case hex digits.
pub type BlobHash = String;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}
id! {
    /// One shard on one worker, never reused; names it in every frame.
    AssignmentId
}
id! {
    /// One connection of one worker: a reconnect is a new one.
    WorkerId
}
id! {
    /// One generation in flight, with its KV cache.
    SessionId
}

/// A contiguous range of a model's parts: `0` is the embedding, `1..=L` the layers, `L + 1`
/// the final norm and head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// First part.
    pub first: u32,
    /// One past the last part.
    pub end: u32,
}

/// A blob by content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobRef {
    /// What its bytes must hash to.
    pub hash: BlobHash,
    /// How many they are.
    pub bytes: u64,
}

/// What a worker is to hold and run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// Its name in frames.
    pub id: AssignmentId,
    /// The model's name, for people.
    pub model: String,
    /// The manifest, a blob itself.
    pub manifest: BlobRef,
    /// Which parts.
    pub span: Span,
    /// The numerics to compute in (`canonical-1`, `exact-f32`).
    pub class: String,
    /// The weights of the span, each once.
    pub blobs: Vec<BlobRef>,
    /// KV pages of 64 positions, for each of the span's layers: a session of p positions
    /// holds ⌈p/64⌉ of them.
    pub kv_pages: u32,
    /// Its place in a tensor group, where each layer is divided among several workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensor: Option<TensorRank>,
}

/// One worker's place in a tensor group: the ranks hold shares of the same layers, and
/// exchange what they computed in the middle of each layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorRank {
    /// The group's name: the assignment of its rank 0, the leader, which alone is given steps.
    pub group: AssignmentId,
    /// Which rank this is, from 0.
    pub rank: u32,
    /// How the shares become one, as the engine names it: `rows`, `sums`.
    pub form: String,
    /// By rank, how much of each layer it computes, as small whole numbers; 2 to
    /// [`crate::RANKS_MAX`] of them.
    pub weights: Vec<u32>,
}

/// From the coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToWorker {
    /// The first message on a socket: sign this.
    Challenge {
        /// [`crate::PROTOCOL_VERSION`] of the coordinator.
        protocol: u32,
        /// 32 random bytes in hex.
        nonce: String,
    },
    /// The hello was good.
    Welcome {
        /// This connection's id.
        worker: WorkerId,
        /// Bearer token for `GET /v1/blobs/{hash}`, good for this connection.
        blob_token: String,
        /// Whether this worker may hold the embedding and the head.
        trusted: bool,
    },
    /// Hold and run a shard: fetch, load, then answer `ready` or `failed`.
    Assign(Assignment),
    /// Let a shard and all its KV go, after the steps already sent.
    Unassign {
        /// Which.
        assignment: AssignmentId,
    },
    /// Let `to` begin as a copy of `from`'s first `positions` positions.
    Fork {
        /// On which shard.
        assignment: AssignmentId,
        /// The session whose KV is shared.
        from: SessionId,
        /// The new session.
        to: SessionId,
        /// The new session's epoch.
        epoch: u32,
        /// Positions that it starts with.
        positions: u32,
    },
    /// Forget a session's KV beyond `positions`; with 0, the session.
    Truncate {
        /// On which shard.
        assignment: AssignmentId,
        /// Whose.
        session: SessionId,
        /// The epoch from now on.
        epoch: u32,
        /// Positions kept.
        positions: u32,
    },
    /// Answer with `pong`.
    Ping {
        /// Comes back unchanged.
        nonce: u64,
    },
    /// This worker holds nothing; told again only when the reason changes.
    Idle {
        /// Why, in words, for its owner.
        reason: String,
    },
    /// Goodbye: the coordinator closes the socket after this.
    Dismiss {
        /// What was wrong, in words; `retry` says whether to come back.
        reason: String,
        /// False if coming back would end the same way.
        retry: bool,
    },
}

/// From a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum FromWorker {
    /// The answer to the challenge.
    Hello(Box<Hello>),
    /// A shard is loaded and takes steps.
    Ready {
        /// Which.
        assignment: AssignmentId,
    },
    /// A shard can't be had; the assignment is over.
    Failed {
        /// Which.
        assignment: AssignmentId,
        /// Why, in words.
        reason: String,
    },
    /// How far fetching is.
    Progress {
        /// Which.
        assignment: AssignmentId,
        /// Bytes verified so far.
        bytes_done: u64,
        /// Bytes in all.
        bytes_total: u64,
    },
    /// Leaving once the steps at hand are answered: send no new ones.
    Drain {
        /// Why, in words.
        reason: String,
    },
    /// The worker's tab was hidden or shown; until told otherwise it is shown. A hidden one
    /// may be slowed down or frozen by its browser at any time.
    Visibility {
        /// Whether nobody sees it.
        hidden: bool,
    },
    /// The answer to `ping`.
    Pong {
        /// The ping's.
        nonce: u64,
    },
}

/// Who a worker is and what it can do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// [`crate::PROTOCOL_VERSION`] of the worker.
    pub protocol: u32,
    /// Ed25519 public key, 32 bytes in hex: the worker's identity across connections.
    pub public_key: String,
    /// Signature by that key, 64 bytes in hex: of [`invited_bytes`] where there is a token,
    /// else of [`challenge_bytes`].
    pub signature: String,
    /// An invite token, which makes the worker trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// A name for people.
    pub name: String,
    /// What sort of worker.
    pub kind: WorkerKind,
    /// What computes (`cpu`, `wgpu`, ...).
    pub backend: String,
    /// The device that computes, for people: an adapter's or a processor's name; empty if
    /// unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub device: String,
    /// For people, up to [`crate::NOTES_MAX`]: why nothing faster computes, which kernel
    /// variants failed their self-test.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Numerics classes that it computes in.
    pub classes: Vec<String>,
    /// Memory it lends for weights, KV and scratch, bytes.
    pub memory_bytes: u64,
    /// What it speaks beside f32 at the boundaries: some of [`Dtype::LOSSY`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub boundaries: Vec<Dtype>,
    /// Weight bytes that its kernels work through per second: one row, then 8 rows a step
    /// (each byte counted once a step), measured on real kernels.
    pub bytes_per_s: [f64; 2],
    /// Steps that it wants outstanding, 1 to [`crate::STEP_CREDITS_MAX`].
    pub step_credits: u32,
    /// Blobs in its cache, the most recently used first, up to [`crate::CACHED_MAX`].
    pub cached: Vec<BlobHash>,
}

/// What sort of worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerKind {
    /// In the coordinator's own process.
    Embedded,
    /// The `worker` program.
    Native,
    /// A browser tab.
    Browser,
}

/// The bytes that a hello signs: a fixed prefix, the version, the challenge's nonce as sent,
/// which has no spaces.
pub fn challenge_bytes(protocol: u32, nonce: &str) -> Vec<u8> {
    format!("weft hello {protocol} {nonce}").into_bytes()
}

/// The bytes that a hello with a token signs: those of [`challenge_bytes`], a space and the
/// token, so that nobody can put a token into another worker's hello.
pub fn invited_bytes(protocol: u32, nonce: &str, token: &str) -> Vec<u8> {
    format!("weft hello {protocol} {nonce} {token}").into_bytes()
}
