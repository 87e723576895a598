//! `GET /v1/fleet`, `GET /healthz`, `GET /readyz`.

use api::{
    Fleet, FleetBoundaries, FleetModel, FleetRank, FleetRecord, FleetSession, FleetShard,
    FleetStage, FleetWorker, Readiness, Uncovered,
};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use protocol::WorkerId;
use scheduler::{FleetView, ModelView, SessionView, ShardView, Traffic, WorkerView};
use serde_json::{Value, json};

use super::state::AppState;
use crate::ledger::{Record, kind_name};

/// Who holds what, and what runs.
pub(super) async fn fleet(State(state): State<AppState>) -> Json<Fleet> {
    let blob_bytes_sent = state.blobs_sent.bytes();
    let mut fleet = Fleet { blob_bytes_sent, ..fleet_of(state.driver.view().await) };
    if let Some(ledger) = &state.ledger {
        for worker in &mut fleet.workers {
            worker.record = ledger.standing(WorkerId(worker.id)).map(record);
        }
    }
    Json(fleet)
}

/// The process answers.
pub(super) async fn healthz() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// Every served model can answer; 503 if not, naming what nobody holds.
pub(super) async fn readyz(State(state): State<AppState>) -> (StatusCode, Json<Readiness>) {
    let view = state.driver.view().await;
    let lacking = |model: &str| {
        let seen = view.models.iter().find(|m| m.name == model);
        let covered = seen.is_some_and(|m| m.covered);
        let missing = seen.and_then(|m| m.missing.clone()).unwrap_or("everything".to_owned());
        (!covered).then(|| Uncovered { model: model.to_owned(), missing })
    };
    let uncovered: Vec<_> = state.models.iter().filter_map(|m| lacking(&m.name)).collect();
    let ready = uncovered.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, uncovered }))
}

fn fleet_of(view: FleetView) -> Fleet {
    let layers_of =
        |name: &str| view.models.iter().find(|m| m.name == name).map_or(0, |m| m.layers);
    let sessions = view.sessions.iter().map(|s| session(s, layers_of(&s.model))).collect();
    Fleet {
        sessions,
        models: view.models.into_iter().map(model).collect(),
        workers: view.workers.into_iter().map(worker).collect(),
        queued: view.queued as u64,
        cached_sessions: view.cached_sessions as u64,
        log_bytes: view.log_bytes,
        audits_missed: view.audits_missed,
        boundaries: boundaries(view.traffic, view.tokens_embedded),
        blob_bytes_sent: 0,
    }
}

fn model(view: ModelView) -> FleetModel {
    let (ends, layers) = match view.replicas.as_slice() {
        [embedding, layers @ .., head] => ((*embedding, *head), layers.to_vec()),
        _ => ((0, 0), Vec::new()),
    };
    FleetModel {
        name: view.name,
        layers: view.layers,
        layer_bytes_max: view.layer_bytes_max,
        weight_bytes: view.weight_bytes,
        kv_bytes_per_position: view.kv_bytes_per_position,
        context: view.context,
        classes: view.classes,
        covered: view.covered,
        missing: view.missing,
        embedding_replicas: ends.0,
        layer_replicas: layers,
        head_replicas: ends.1,
    }
}

fn worker(view: WorkerView) -> FleetWorker {
    FleetWorker {
        id: view.id.0,
        name: view.name,
        kind: kind_name(view.kind).to_owned(),
        backend: view.backend,
        device: view.device,
        notes: view.notes,
        hidden: view.hidden,
        trusted: view.trusted,
        state: view.state.to_owned(),
        memory_bytes: view.memory_bytes,
        shards: view.shards.into_iter().map(shard).collect(),
        layer_tokens_per_s: view.layer_tokens_per_s,
        bytes_per_s: view.bytes_per_s,
        classes: view.classes,
        hop_ms: view.hop_ms,
        steps_in_flight: view.steps_in_flight,
        rows: view.rows,
        boundary_dtype: view.boundary_dtype.name().to_owned(),
        boundaries: boundaries(view.traffic, view.rows),
        agreements: view.standing.agreements,
        disagreements: view.standing.disagreements,
        rows_verified: view.standing.rows_verified,
        idle_because: view.idle_because,
        record: None,
    }
}

fn boundaries(traffic: Traffic, tokens: u64) -> FleetBoundaries {
    FleetBoundaries::of(traffic.bytes, traffic.bytes_f32, tokens)
}

fn record(record: Record) -> FleetRecord {
    FleetRecord {
        first_seen_s: record.first_seen_s,
        present_s: record.present_ms / 1000,
        rows: record.rows,
        credit_layer_tokens: record.credit,
    }
}

fn shard(view: ShardView) -> FleetShard {
    FleetShard {
        model: view.model,
        class: view.class,
        first_layer: view.layers.map(|l| l.0),
        last_layer: view.layers.map(|l| l.1),
        embedding: view.embedding,
        head: view.head,
        ready: view.ready,
        weight_bytes: view.weight_bytes,
        kv_pages_used: view.kv_pages.0,
        kv_pages: view.kv_pages.1,
        tensor: view.rank.map(|rank| FleetRank {
            leader: rank.leader.0,
            rank: rank.rank,
            weights: rank.weights,
        }),
    }
}

fn session(view: &SessionView, layers: u32) -> FleetSession {
    FleetSession {
        id: view.id.0,
        request: view.request.0,
        model: view.model.clone(),
        route: view.route.iter().map(|&(id, first, end)| stage(id.0, first, end, layers)).collect(),
        prompt_tokens: view.prompt_tokens,
        tokens: view.tokens,
        state: view.state.to_owned(),
        waiting_for: view.waiting_for.clone(),
        recoveries: view.recoveries,
    }
}

/// Parts `first..end`, where the embedding is part 0 and the head part `layers + 1`.
fn stage(worker: u64, first: u32, end: u32, layers: u32) -> FleetStage {
    let (low, high) = (first.max(1), end.min(layers + 1));
    let any = low < high;
    FleetStage {
        worker,
        first_layer: any.then(|| low - 1),
        last_layer: any.then(|| high.saturating_sub(2)),
        embedding: first == 0,
        head: end == layers + 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_become_layers() {
        let check = |first, end, layers: Option<(u32, u32)>, embedding, head| {
            let got = stage(7, first, end, 30);
            assert_eq!(got.first_layer.zip(got.last_layer), layers, "{first}..{end}");
            assert_eq!((got.embedding, got.head), (embedding, head), "{first}..{end}");
        };
        check(0, 32, Some((0, 29)), true, true);
        check(0, 1, None, true, false);
        check(31, 32, None, false, true);
        check(1, 31, Some((0, 29)), false, false);
        check(5, 6, Some((4, 4)), false, false);
        check(0, 2, Some((0, 0)), true, false);
    }
}
