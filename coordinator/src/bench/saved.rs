//! A fleet that runs, as a file of `coordinator plan --fleet`.

use std::fmt::Write;

use api::Fleet;

/// The YAML text: each worker with the rates and the round trip that were measured of it.
pub(super) fn yaml(fleet: &Fleet) -> String {
    let mut text = String::from(
        "# A fleet as it was measured, for `coordinator plan --fleet FILE`.\nworkers:\n",
    );
    let ends_only = |worker: &api::FleetWorker| {
        let ends = worker.shards.iter().all(|shard| shard.first_layer.is_none());
        worker.kind == "embedded" && !worker.shards.is_empty() && ends
    };
    for worker in &fleet.workers {
        let name = serde_json::to_string(&worker.name).expect("a string");
        let classes = serde_json::to_string(&worker.classes).expect("strings");
        let [one, eight] = worker.bytes_per_s;
        let _ = write!(
            text,
            "  - name: {name}\n    kind: {}\n    memory_mib: {}\n    \
             rate: {{bytes_per_s: [{one:.0}, {eight:.0}]}}\n    hop_ms: {:.4}\n    \
             class: {classes}\n    trusted: {}\n    hidden: {}\n    cached: true\n",
            worker.kind,
            (worker.memory_bytes >> 20).max(1),
            worker.hop_ms,
            worker.trusted,
            worker.hidden,
        );
        if ends_only(worker) {
            text.push_str("    ends_only: true\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::FleetFile;

    #[test]
    fn what_is_written_can_be_planned_with() {
        let worker = api::FleetWorker {
            name: "a \"b\": c".into(),
            kind: "native".into(),
            memory_bytes: 300 << 20,
            bytes_per_s: [2e9, 1.5e9],
            hop_ms: 0.25,
            classes: vec!["canonical-1".into()],
            trusted: true,
            ..api::FleetWorker::default()
        };
        let head = api::FleetShard { head: true, ..api::FleetShard::default() };
        let embedded =
            api::FleetWorker { kind: "embedded".into(), shards: vec![head], ..worker.clone() };
        let fleet = Fleet { workers: vec![worker, embedded], ..Fleet::default() };
        let file = FleetFile::parse(&yaml(&fleet)).unwrap();
        let [worker, embedded] = &file.workers[..] else { panic!("two workers") };
        assert_eq!((worker.name.as_str(), worker.memory_mib), ("a \"b\": c", 300));
        assert_eq!(worker.rate.bytes_per_s(1.0), [2e9, 1.5e9]);
        assert_eq!((worker.hop_s(), worker.trusted, worker.ends_only), (0.25e-3, true, false));
        assert!(embedded.ends_only);
    }
}
