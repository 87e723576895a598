//! `GET /v1/fleet`: who holds what, and what runs. Never what is said.

use serde::{Deserialize, Serialize};

/// The fleet as it is now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fleet {
    /// Served models.
    pub models: Vec<FleetModel>,
    /// Workers that are here.
    pub workers: Vec<FleetWorker>,
    /// Generations in flight.
    pub sessions: Vec<FleetSession>,
    /// Requests that wait to be admitted.
    pub queued: u64,
    /// Finished sessions whose KV cache is kept for a next turn.
    pub cached_sessions: u64,
    /// Bytes held by activation logs.
    pub log_bytes: u64,
    /// Boundaries that went between the coordinator and its workers since the start, a token
    /// being one that went through the embedding.
    #[serde(default)]
    pub boundaries: FleetBoundaries,
    /// Audits of strangers' work that were drawn and not carried out since the start: nobody
    /// could replay them, or there was no room.
    #[serde(default)]
    pub audits_missed: u64,
    /// Bytes of weights and manifests sent to workers since the start.
    #[serde(default)]
    pub blob_bytes_sent: u64,
}

/// What boundaries (the hidden states between stages) took on the network, both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FleetBoundaries {
    /// Bytes that were sent.
    pub bytes: u64,
    /// What they would have been in f32.
    pub bytes_f32: u64,
    /// Bytes that were sent for a token.
    pub bytes_per_token: f64,
    /// What they would have been in f32.
    pub bytes_per_token_f32: f64,
}

impl FleetBoundaries {
    /// For so many tokens.
    pub fn of(bytes: u64, bytes_f32: u64, tokens: u64) -> FleetBoundaries {
        let per_token = |bytes: u64| bytes as f64 / tokens.max(1) as f64;
        let (bytes_per_token, bytes_per_token_f32) = (per_token(bytes), per_token(bytes_f32));
        FleetBoundaries { bytes, bytes_f32, bytes_per_token, bytes_per_token_f32 }
    }
}

/// A served model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetModel {
    /// Its name.
    pub name: String,
    /// How many layers it has.
    pub layers: u32,
    /// Weight bytes of its largest layer.
    #[serde(default)]
    pub layer_bytes_max: u64,
    /// Weight bytes of all of it.
    #[serde(default)]
    pub weight_bytes: u64,
    /// KV cache bytes of one position (a token) in one layer.
    #[serde(default)]
    pub kv_bytes_per_position: u64,
    /// Longest session, positions.
    #[serde(default)]
    pub context: u32,
    /// How its workers may compute, the preferred ways first.
    #[serde(default)]
    pub classes: Vec<String>,
    /// Whether embedding, head and every layer are ready somewhere.
    pub covered: bool,
    /// What is not, for people.
    pub missing: Option<String>,
    /// Ready holders of the embedding.
    pub embedding_replicas: u32,
    /// Ready holders of each layer.
    pub layer_replicas: Vec<u32>,
    /// Ready holders of the head.
    pub head_replicas: u32,
}

/// A worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FleetWorker {
    /// This connection.
    pub id: u64,
    /// For people.
    pub name: String,
    /// `embedded`, `native` or `browser`.
    pub kind: String,
    /// What computes.
    pub backend: String,
    /// The device that computes; empty if unknown.
    #[serde(default)]
    pub device: String,
    /// Why nothing faster computes, and which kernel variants failed their self-test.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Whether it is a tab that nobody sees: slower, and less reliable.
    #[serde(default)]
    pub hidden: bool,
    /// Whether it may hold the embedding and the head.
    pub trusted: bool,
    /// `idle`, `loading`, `ready` or `draining`.
    pub state: String,
    /// Memory lent, bytes.
    pub memory_bytes: u64,
    /// What it holds or loads.
    pub shards: Vec<FleetShard>,
    /// Layers × tokens per second at one row a step.
    pub layer_tokens_per_s: f64,
    /// Weight bytes that it works through per second at 1 and at 8 rows a step.
    #[serde(default)]
    pub bytes_per_s: [f64; 2],
    /// How it can compute: `canonical-1`, `wgsl-f32` or `exact-f32`.
    #[serde(default)]
    pub classes: Vec<String>,
    /// Round trip less computing, milliseconds.
    pub hop_ms: f64,
    /// Steps sent and not answered.
    pub steps_in_flight: u32,
    /// Rows computed since it joined.
    pub rows: u64,
    /// What boundaries are sent in to it and from it, in sessions that begin now: `f32`, `f16`
    /// or `int8`.
    #[serde(default)]
    pub boundary_dtype: String,
    /// Boundaries that went to it and from it since it joined, a token being a row that it
    /// computed. The embedded worker has none.
    #[serde(default)]
    pub boundaries: FleetBoundaries,
    /// Audits of its work in a row that agreed; of a worker that is not trusted.
    #[serde(default)]
    pub agreements: u32,
    /// Audits that did not agree and were not made good.
    #[serde(default)]
    pub disagreements: u32,
    /// Rows × layers of its key that were verified.
    #[serde(default)]
    pub rows_verified: u64,
    /// Why it holds nothing, if so.
    pub idle_because: Option<String>,
    /// What is kept of it from all its visits; the embedded worker has none.
    #[serde(default)]
    pub record: Option<FleetRecord>,
}

/// What is kept of a worker from all its visits. It is on disk before it is shown. The key that
/// it is kept under is not: everyone can read this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetRecord {
    /// Its first join, seconds since 1970.
    pub first_seen_s: u64,
    /// How long it was here, seconds.
    pub present_s: u64,
    /// Rows computed.
    pub rows: u64,
    /// Rows × layers that were verified.
    pub credit_layer_tokens: u64,
}

/// A shard on a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetShard {
    /// Of which model.
    pub model: String,
    /// How it computes: `canonical-1`, `wgsl-f32` or `exact-f32`.
    #[serde(default)]
    pub class: String,
    /// The first layer, from 0; `null` if it holds none.
    pub first_layer: Option<u32>,
    /// The last layer.
    pub last_layer: Option<u32>,
    /// Whether it holds the embedding.
    pub embedding: bool,
    /// Whether it holds the head.
    pub head: bool,
    /// Whether it takes steps.
    pub ready: bool,
    /// Weight bytes.
    pub weight_bytes: u64,
    /// KV pages in use.
    pub kv_pages_used: u32,
    /// KV pages in all.
    pub kv_pages: u32,
    /// Its place, if it is a share of these layers in a tensor group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensor: Option<FleetRank>,
}

/// A shard's place in a tensor group, whose members compute the same layers together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetRank {
    /// The worker that leads it, and takes its steps.
    pub leader: u64,
    /// Which rank this is; the leader's is 0.
    pub rank: u32,
    /// By rank, how much of each layer it computes.
    pub weights: Vec<u32>,
}

/// A generation in flight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetSession {
    /// Which.
    pub id: u64,
    /// The request that it is a choice of.
    pub request: u64,
    /// Of which model.
    pub model: String,
    /// Its stages, in order.
    pub route: Vec<FleetStage>,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// Tokens chosen so far.
    pub tokens: u32,
    /// `prefill`, `decode`, `replay` or `waiting`.
    pub state: String,
    /// What it waits for, if so.
    pub waiting_for: Option<String>,
    /// Stages replaced so far.
    pub recoveries: u32,
}

/// One stage of a session's route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetStage {
    /// On which worker.
    pub worker: u64,
    /// The first layer, from 0; `null` if it runs none.
    pub first_layer: Option<u32>,
    /// The last layer.
    pub last_layer: Option<u32>,
    /// Whether the embedding is run there.
    pub embedding: bool,
    /// Whether the head is run there.
    pub head: bool,
}
