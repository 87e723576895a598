//! The fleet, the models, health.

use protocol::{AssignmentId, SessionId, WorkerId, WorkerKind};
use scheduler::{ModelView, RequestId, SessionView, ShardView, Standing, WorkerView};
use serde_json::json;

use super::*;

fn model_view(name: &str, missing: Option<&str>) -> ModelView {
    ModelView {
        name: name.into(),
        layers: 2,
        layer_bytes_max: 40,
        weight_bytes: 100,
        kv_bytes_per_position: 16,
        context: 512,
        classes: vec!["canonical-1".into()],
        covered: missing.is_none(),
        missing: missing.map(str::to_owned),
        replicas: vec![1, 2, 0, 3],
    }
}

fn view() -> FleetView {
    let shard = ShardView {
        assignment: AssignmentId(5),
        model: "m".into(),
        class: "canonical-1".into(),
        layers: Some((0, 1)),
        embedding: true,
        head: false,
        ready: true,
        weight_bytes: 100,
        kv_pages: (3, 8),
        rank: None,
    };
    let worker = WorkerView {
        id: WorkerId(7),
        key: "ab".into(),
        name: "<b>loom</b>".into(),
        kind: WorkerKind::Native,
        backend: "cpu".into(),
        device: "AVX2".into(),
        notes: vec!["no GPU".into()],
        hidden: true,
        trusted: true,
        state: "ready",
        memory_bytes: 1000,
        shards: vec![shard],
        layer_tokens_per_s: 12.5,
        bytes_per_s: [2e9, 1e9],
        classes: vec!["canonical-1".into()],
        hop_ms: 0.5,
        steps_in_flight: 1,
        rows: 9,
        boundary_dtype: protocol::Dtype::F16,
        traffic: scheduler::Traffic { bytes: 1000, bytes_f32: 2000 },
        standing: Standing { agreements: 12, disagreements: 1, banned: false, rows_verified: 34 },
        idle_because: None,
    };
    let session = SessionView {
        id: SessionId(3),
        request: RequestId(2),
        model: "m".into(),
        route: vec![(WorkerId(7), 0, 3), (WorkerId(8), 3, 4)],
        prompt_tokens: 4,
        tokens: 6,
        state: "waiting",
        waiting_for: Some("the head".into()),
        recoveries: 1,
    };
    FleetView {
        models: vec![model_view("m", None), model_view("org/other", Some("layer 1"))],
        workers: vec![worker],
        sessions: vec![session],
        queued: 1,
        cached_sessions: 2,
        log_bytes: 3,
        audits_missed: 5,
        tokens_embedded: 4,
        traffic: scheduler::Traffic { bytes: 1000, bytes_f32: 2000 },
    }
}

#[tokio::test]
async fn the_fleet_is_shown() {
    let server = Server::with_view(Vec::new(), view()).await;
    let answer = server.get("/v1/fleet").await;
    assert_eq!(answer.status, 200);
    let model = |name: &str, covered: bool, missing: Value| {
        json!({
            "name": name, "layers": 2, "layer_bytes_max": 40, "weight_bytes": 100,
            "kv_bytes_per_position": 16, "context": 512, "classes": ["canonical-1"],
            "covered": covered, "missing": missing,
            "embedding_replicas": 1, "layer_replicas": [2, 0], "head_replicas": 3,
        })
    };
    let stage = |worker: u64, layers: Option<u32>, embedding: bool, head: bool| {
        json!({
            "worker": worker, "first_layer": layers.map(|_| 0), "last_layer": layers,
            "embedding": embedding, "head": head,
        })
    };
    assert_eq!(
        answer.json(),
        json!({
            "models": [model("m", true, Value::Null), model("org/other", false, "layer 1".into())],
            "workers": [{
                "id": 7, "name": "<b>loom</b>", "kind": "native", "backend": "cpu",
                "device": "AVX2", "notes": ["no GPU"], "hidden": true,
                "trusted": true, "state": "ready", "memory_bytes": 1000,
                "shards": [{
                    "model": "m", "class": "canonical-1", "first_layer": 0, "last_layer": 1, "embedding": true,
                    "head": false, "ready": true, "weight_bytes": 100, "kv_pages_used": 3,
                    "kv_pages": 8,
                }],
                "layer_tokens_per_s": 12.5, "bytes_per_s": [2e9, 1e9],
                "classes": ["canonical-1"], "hop_ms": 0.5, "steps_in_flight": 1, "rows": 9,
                "boundary_dtype": "f16",
                "boundaries": {"bytes": 1000, "bytes_f32": 2000,
                    "bytes_per_token": 1000.0 / 9.0, "bytes_per_token_f32": 2000.0 / 9.0},
                "agreements": 12, "disagreements": 1, "rows_verified": 34,
                "idle_because": null, "record": null,
            }],
            "sessions": [{
                "id": 3, "request": 2, "model": "m",
                "route": [stage(7, Some(1), true, false), stage(8, None, false, true)],
                "prompt_tokens": 4, "tokens": 6, "state": "waiting", "waiting_for": "the head",
                "recoveries": 1,
            }],
            "queued": 1, "cached_sessions": 2, "log_bytes": 3, "audits_missed": 5,
            "boundaries": {"bytes": 1000, "bytes_f32": 2000, "bytes_per_token": 250.0,
                "bytes_per_token_f32": 500.0},
            "blob_bytes_sent": 0,
        })
    );
}

#[tokio::test]
async fn readiness_names_what_is_missing() {
    let server = Server::with_view(Vec::new(), view()).await;
    let answer = server.get("/readyz").await;
    assert_eq!(answer.status, 503);
    let uncovered = json!([{"model": "org/other", "missing": "layer 1"}]);
    assert_eq!(answer.json(), json!({"ready": false, "uncovered": uncovered}));
    let health = server.get("/healthz").await;
    assert_eq!((health.status, health.json()), (200, json!({"status": "ok"})));

    let models = vec![model_view("m", None), model_view("org/other", None)];
    let server = Server::with_view(Vec::new(), FleetView { models, ..view() }).await;
    let answer = server.get("/readyz").await;
    assert_eq!((answer.status, answer.json()), (200, json!({"ready": true, "uncovered": []})));

    let server = Server::start(Vec::new()).await;
    assert_eq!(server.get("/readyz").await.status, 503, "no view, so nothing is known");
}

#[tokio::test]
async fn models_are_listed() {
    let server = Server::start(Vec::new()).await;
    let card = |id: &str| {
        json!({
            "id": id, "object": "model", "created": 1234, "owned_by": "weft",
            "context_length": CONTEXT,
        })
    };
    let list = server.get("/v1/models").await.json();
    assert_eq!(list, json!({"object": "list", "data": [card("m"), card("org/other")]}));
    assert_eq!(server.get("/v1/models/m").await.json(), card("m"));
    assert_eq!(server.get("/v1/models/org/other").await.json(), card("org/other"));
    assert_eq!(server.get("/v1/models/org%2Fother").await.json(), card("org/other"));
}
