//! Predictions that can be worked out by hand.

use protocol::BlobRef;
use scheduler::{ClassSpec, PartSpec};

use super::*;
use crate::store::CANONICAL_1;

const LAYERS: u64 = 10;
const LAYER_BYTES: u64 = 10_000_000;
const HEAD_BYTES: u64 = 20_000_000;

fn model() -> ModelSpec {
    let part = |number: u64, bytes, work_bytes| PartSpec {
        blobs: vec![BlobRef { hash: format!("{number:064x}"), bytes }],
        work_bytes,
    };
    let mut parts = vec![part(0, HEAD_BYTES, 0)];
    parts.extend((1..=LAYERS).map(|layer| part(layer, LAYER_BYTES, LAYER_BYTES)));
    parts.push(part(LAYERS + 1, HEAD_BYTES, HEAD_BYTES));
    ModelSpec {
        name: "paper".into(),
        manifest: BlobRef { hash: format!("{:064x}", 99), bytes: 100 },
        classes: vec![ClassSpec { name: CANONICAL_1.into(), kv_bytes_per_position: 100 }],
        parts,
        d_model: 64,
        vocab: 1000,
        context: 2048,
        divisions: Vec::new(),
    }
}

fn predicted(fleet: &str, sessions: &[u32]) -> Prediction {
    predicted_with(fleet, Load { sessions: sessions.to_vec(), prompt: 16, tokens: 64 })
}

fn predicted_with(fleet: &str, load: Load) -> Prediction {
    predict(&model(), &FleetFile::parse(fleet).unwrap(), &load)
}

#[test]
fn one_worker_takes_its_weights_over_its_rate_and_its_hop() {
    let fleet = "workers: [{name: a, memory_mib: 1000, rate: {gb_per_s: 1}, hop_ms: 5, \
                 trusted: true}]";
    let prediction = predicted(fleet, &[1]);
    assert!(prediction.fits, "{prediction:?}");
    assert_eq!(prediction.stages.len(), 1);
    let seconds = (LAYERS * LAYER_BYTES + HEAD_BYTES) as f64 / 1e9 + 0.005;
    assert!((prediction.token_s / seconds - 1.0).abs() < 1e-6, "{prediction:?}");
    let rate = prediction.rates[0].tokens_per_s.unwrap();
    assert!((rate * seconds - 1.0).abs() < 0.01, "{rate} against {}", 1.0 / seconds);
}

#[test]
fn rows_of_several_sessions_share_a_step() {
    // Up to 8 rows in the time of one: by turns, 8 sessions would have no more than one has,
    // and never more than 8 times as much.
    let fleet = "workers: [{name: a, memory_mib: 1000, rate: {gb_per_s: 1}, hop_ms: 0, \
                 trusted: true, step_credits: 1}]";
    let prediction = predicted(fleet, &[1, 8]);
    let rate = |at: usize| prediction.rates[at].tokens_per_s.unwrap();
    assert!((3.0..=8.01).contains(&(rate(1) / rate(0))), "{} and {}", rate(0), rate(1));
}

#[test]
fn several_machines_hold_what_one_cannot_and_each_session_passes_all() {
    let fleet = "workers:\n  - {name: ends, kind: embedded, memory_mib: 200, ends_only: true, \
                 trusted: true, rate: {gb_per_s: 2}}\n  - {name: pc, count: 3, memory_mib: 64, \
                 rate: {gb_per_s: 1}, hop_ms: 2}\n";
    let prediction = predicted(fleet, &[1, 4]);
    assert!(prediction.fits, "{}", prediction.table());
    let layers: Vec<_> =
        prediction.stages.iter().filter_map(|s| s.first_layer.zip(s.last_layer)).collect();
    assert_eq!(layers.iter().map(|(first, last)| last - first + 1).sum::<u32>(), LAYERS as u32);
    assert!(layers.len() >= 2, "{}", prediction.table());
    let alone = prediction.rates[0].tokens_per_s.unwrap();
    assert!((alone * prediction.token_s - 1.0).abs() < 0.02, "{}", prediction.table());
    let four = prediction.rates[1].tokens_per_s.unwrap();
    assert!(four > 2.0 * alone, "sessions share steps and stages: {}", prediction.table());
}

#[test]
fn what_does_not_fit_says_what_is_short() {
    let prediction =
        predicted("workers: [{name: a, memory_mib: 30, rate: {gb_per_s: 1}, trusted: true}]", &[1]);
    assert!(!prediction.fits);
    assert!(prediction.rates.is_empty());
    let short = prediction.short.clone().unwrap();
    assert!(short.contains("layers 0 to 9"), "{short}");
    assert!(prediction.table().contains("does not fit"), "{}", prediction.table());
    let untrusted = predicted("workers: [{name: a, memory_mib: 999, rate: {gb_per_s: 1}}]", &[1]);
    assert!(!untrusted.fits, "nobody may hold the ends");
}

#[test]
fn prompts_near_the_context_leave_room_for_what_is_measured() {
    let fleet = "workers: [{name: a, memory_mib: 1000, rate: {gb_per_s: 1}, hop_ms: 5, \
                 trusted: true}]";
    let seconds = (LAYERS * LAYER_BYTES + HEAD_BYTES) as f64 / 1e9 + 0.005;
    for (prompt, tokens) in [(16, 64), (2048, 64), (100_000, 64), (2040, 1), (16, 2000)] {
        let prediction = predicted_with(fleet, Load { sessions: vec![1], prompt, tokens });
        let rate = prediction.rates[0].tokens_per_s.unwrap();
        assert!((rate * seconds - 1.0).abs() < 0.01, "{prompt}, {tokens}: {rate}");
    }
    // No rate is better than one of sessions that were full before they were measured.
    let full = predicted_with(fleet, Load { sessions: vec![1], prompt: 16, tokens: 5000 });
    assert_eq!(full.rates[0].tokens_per_s, None);
    let problem = full.rates[0].problem.as_deref().unwrap();
    assert!(problem.contains("of 5000 tokens"), "{problem}");
}

#[test]
fn the_slowest_and_the_fastest_rates_are_planned_without_a_panic() {
    for rate in ["bytes_per_s: 1000", "layer_tokens_per_s: 0.001", "bytes_per_s: 1.0e15"] {
        let fleet =
            format!("workers: [{{name: a, memory_mib: 1000, rate: {{{rate}}}, trusted: true}}]");
        let prediction = predicted(&fleet, &[1, 4]);
        assert_eq!(prediction.rates.len(), 2, "{rate}: {}", prediction.table());
        let known = |rate: &Predicted| rate.tokens_per_s.is_some() != rate.problem.is_some();
        assert!(prediction.rates.iter().all(known), "{rate}: {}", prediction.table());
    }
}

#[test]
fn the_same_file_gives_the_same_answer() {
    let ask = || serde_json::to_string(&predicted(EXAMPLE, &[1, 3])).unwrap();
    assert_eq!(ask(), ask());
}
