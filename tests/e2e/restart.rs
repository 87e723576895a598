//! `kill -9` of the coordinator: its workers come back with what they hold, and what it had
//! shown of them is there.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::harness::{Coordinator, Fleet, Written, alone, machine, request};
use crate::split::workers;

const FLAGS: [&str; 2] = ["--embedded", "ends"];

/// Rows of each worker's record, by its name.
fn records(fleet: &Fleet) -> BTreeMap<String, u64> {
    let of = |worker: &Value| {
        let record = worker["record"].as_object()?;
        assert!(!record.contains_key("key"), "keys are nobody's business: {record:?}");
        let name = worker["name"].as_str()?.to_owned();
        Some((name, record["rows"].as_u64()?))
    };
    fleet.workers().iter().filter_map(of).collect()
}

#[tokio::test]
async fn nothing_is_lost_and_nothing_fetched_again() {
    let _machine = machine().await;
    let alone = alone().await;
    let mut coordinator = Coordinator::start("restart", &FLAGS).await;
    let _workers = workers(&coordinator, &[18, 14], false).await;
    let mut shown = BTreeMap::new();
    for round in 0..3u64 {
        let answer = coordinator.api.post("/v1/chat/completions", &request(1)).await;
        assert_eq!(Written::of(&answer.ok(), 0), alone[1]);
        // What is shown has been written: the very next thing that happens is its end.
        let fleet = coordinator.fleet().await;
        let before = std::mem::replace(&mut shown, records(&fleet));
        assert_eq!(shown.len(), 2, "the embedded worker has no record: {shown:?}");
        for (name, rows) in &before {
            let rows_again = &shown[name];
            assert!(rows_again >= rows, "{name}: {rows_again} rows after {rows}");
        }
        coordinator.killed_and_started(&FLAGS).await;
        let back = coordinator.ready_over(2).await;
        let kept = records(&back);
        for (name, rows) in &shown {
            let rows_again = &kept[name];
            assert!(rows_again >= rows, "{name}: {rows_again} rows were kept of {rows}");
            assert!(*rows_again > 0 || round == 0, "{name} has computed");
        }
        assert_eq!(back.0["blob_bytes_sent"], 0, "all weights were on the workers' disks");
    }
    let answer = coordinator.api.post("/v1/chat/completions", &request(1)).await;
    assert_eq!(Written::of(&answer.ok(), 0), alone[1]);
    assert_eq!(coordinator.fleet().await.0["blob_bytes_sent"], 0);
}
