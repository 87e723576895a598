//! What the fleet looks like, for people and for the API.

use protocol::{AssignmentId, Dtype, SessionId, WorkerId, WorkerKind};

use crate::event::RequestId;
use crate::links::Traffic;
use crate::standing::Standing;

/// What the fleet looks like now, for the API; see `Scheduler::view`.
#[derive(Clone, Debug, Default)]
pub struct FleetView {
    /// Served models.
    pub models: Vec<ModelView>,
    /// Workers that are here.
    pub workers: Vec<WorkerView>,
    /// Sessions in flight (not the cached ones).
    pub sessions: Vec<SessionView>,
    /// Requests that wait to be admitted.
    pub queued: usize,
    /// Finished sessions whose KV is kept for a next turn.
    pub cached_sessions: usize,
    /// Bytes held by activation logs.
    pub log_bytes: u64,
    /// Audits that were drawn and not carried out, see [`crate::Scheduler::audits_missed`].
    pub audits_missed: u64,
    /// Rows that went through an embedding so far: prompts' and chosen tokens, and those that
    /// were run again.
    pub tokens_embedded: u64,
    /// Boundaries that went over links so far.
    pub traffic: Traffic,
}

/// A served model.
#[derive(Clone, Debug)]
pub struct ModelView {
    /// Its name.
    pub name: String,
    /// L.
    pub layers: u32,
    /// Weight bytes of the largest layer.
    pub layer_bytes_max: u64,
    /// Weight bytes of all parts, each blob once.
    pub weight_bytes: u64,
    /// KV bytes of one position in one layer, in the class that needs the most.
    pub kv_bytes_per_position: u64,
    /// Longest session, positions.
    pub context: u32,
    /// Names of the classes that its workers may compute in, the preferred ones first.
    pub classes: Vec<String>,
    /// Whether every part is ready somewhere.
    pub covered: bool,
    /// What is not, for people: `the embedding, layers 3 to 7, the head`.
    pub missing: Option<String>,
    /// Replicas per part, embedding first, head last.
    pub replicas: Vec<u32>,
}

/// A worker.
#[derive(Clone, Debug)]
pub struct WorkerView {
    /// This connection.
    pub id: WorkerId,
    /// Its key.
    pub key: String,
    /// For people.
    pub name: String,
    /// What sort.
    pub kind: WorkerKind,
    /// What computes.
    pub backend: String,
    /// The device that computes; empty if unknown.
    pub device: String,
    /// Why nothing faster computes.
    pub notes: Vec<String>,
    /// Whether nobody sees its tab.
    pub hidden: bool,
    /// May hold the ends.
    pub trusted: bool,
    /// `idle`, `loading`, `ready` or `draining`.
    pub state: &'static str,
    /// Memory lent, bytes.
    pub memory_bytes: u64,
    /// What it holds or loads.
    pub shards: Vec<ShardView>,
    /// Decode rate: layers of the first model it holds × tokens per second at one row a
    /// step; measured once it has run steps, from its benchmark before.
    pub layer_tokens_per_s: f64,
    /// Weight bytes that it works through per second at 1 and at 8 rows a step.
    pub bytes_per_s: [f64; 2],
    /// How it can compute.
    pub classes: Vec<String>,
    /// Round trip less computing, milliseconds.
    pub hop_ms: f64,
    /// Steps sent and not answered.
    pub steps_in_flight: u32,
    /// Rows computed since it joined.
    pub rows: u64,
    /// What its link carries in sessions that begin now.
    pub boundary_dtype: Dtype,
    /// Boundaries that went over its link since it joined.
    pub traffic: Traffic,
    /// What audits have shown of its key.
    pub standing: Standing,
    /// Why it holds nothing, if so.
    pub idle_because: Option<String>,
}

/// A shard on a worker.
#[derive(Clone, Debug)]
pub struct ShardView {
    /// Its assignment.
    pub assignment: AssignmentId,
    /// Of which model.
    pub model: String,
    /// What it computes in.
    pub class: String,
    /// First and last layer, 0-based, if it holds any.
    pub layers: Option<(u32, u32)>,
    /// Whether it holds the embedding.
    pub embedding: bool,
    /// Whether it holds the head.
    pub head: bool,
    /// Whether it takes steps.
    pub ready: bool,
    /// Weight bytes.
    pub weight_bytes: u64,
    /// KV pages of 64 positions in use, and in all.
    pub kv_pages: (u32, u32),
    /// Its place, if it is a share in a tensor group.
    pub rank: Option<RankView>,
}

/// A shard's place in a tensor group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankView {
    /// The leader, whose shard the group's is.
    pub leader: WorkerId,
    /// Which rank, from 0: the leader is 0.
    pub rank: u32,
    /// By rank, how much of each layer it computes.
    pub weights: Vec<u32>,
}

/// A session in flight.
#[derive(Clone, Debug)]
pub struct SessionView {
    /// Which.
    pub id: SessionId,
    /// Its request.
    pub request: RequestId,
    /// Of which model.
    pub model: String,
    /// Its stages: worker, first part, end part.
    pub route: Vec<(WorkerId, u32, u32)>,
    /// Prompt tokens.
    pub prompt_tokens: u32,
    /// Tokens chosen.
    pub tokens: u32,
    /// `prefill`, `decode`, `replay` or `waiting`.
    pub state: &'static str,
    /// What it waits for, if so.
    pub waiting_for: Option<String>,
    /// Stages replaced so far.
    pub recoveries: u32,
}
