//! `GET /v1/models` and the health checks.

use serde::{Deserialize, Serialize};

/// The served models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelList {
    /// `list`.
    pub object: String,
    /// One per model, the default one first.
    pub data: Vec<ModelCard>,
}

/// A served model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCard {
    /// Its name in requests.
    pub id: String,
    /// `model`.
    pub object: String,
    /// Since when it is served, seconds since 1970.
    pub created: u64,
    /// `weft`.
    pub owned_by: String,
    /// Longest prompt and answer together, tokens. (Ours.)
    pub context_length: u32,
}

/// `GET /readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether every served model can answer.
    pub ready: bool,
    /// The models that can't, and what they lack.
    pub uncovered: Vec<Uncovered>,
}

/// A model that lacks holders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uncovered {
    /// Its name.
    pub model: String,
    /// What nobody holds: `the embedding, layers 3 to 7, the head`.
    pub missing: String,
}
