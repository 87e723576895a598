//! What a tab holds, followed from what the coordinator and the worker say, for its owner.

use api::{TabPhase, TabShard};
use litemap::LiteMap;
use protocol::{Assignment, AssignmentId, FromWorker, Span, ToWorker};
use worker_core::{ASSIGNMENTS_MAX, ShardKey};

use crate::figures::layers_of;

/// The assignments that are not over.
#[derive(Clone, Debug, Default)]
pub struct Holdings {
    held: LiteMap<AssignmentId, Holding>,
}

#[derive(Clone, Debug)]
struct Holding {
    model: String,
    span: Span,
    weight_bytes: u64,
    shard: Option<ShardKey>,
    /// Layers of the whole model, once it is loaded.
    layers: Option<u32>,
    ready: bool,
    /// Bytes fetched, and in all.
    fetched: (u64, u64),
}

impl Holdings {
    /// The coordinator said something.
    pub fn heard(&mut self, message: &ToWorker) {
        match message {
            ToWorker::Assign(assignment) => self.assigned(assignment),
            // One that is loaded goes when its shard does, after the steps before.
            ToWorker::Unassign { assignment } => {
                if self.held.get(assignment).is_some_and(|held| held.shard.is_none()) {
                    self.held.remove(assignment);
                }
            }
            ToWorker::Challenge { .. }
            | ToWorker::Welcome { .. }
            | ToWorker::Fork { .. }
            | ToWorker::Truncate { .. }
            | ToWorker::Idle { .. }
            | ToWorker::Ping { .. }
            | ToWorker::Dismiss { .. } => {}
        }
    }

    fn assigned(&mut self, assignment: &Assignment) {
        if self.held.len() >= ASSIGNMENTS_MAX || self.held.contains_key(&assignment.id) {
            return;
        }
        let weight_bytes = assignment.weight_bytes();
        let held = Holding {
            model: assignment.model.clone(),
            span: assignment.span,
            weight_bytes,
            shard: None,
            layers: None,
            ready: false,
            fetched: (0, weight_bytes.saturating_add(assignment.manifest.bytes)),
        };
        self.held.insert(assignment.id, held);
    }

    /// The worker says something.
    pub fn said(&mut self, message: &FromWorker) {
        match message {
            FromWorker::Ready { assignment } => {
                if let Some(held) = self.held.get_mut(assignment) {
                    held.ready = true;
                }
            }
            FromWorker::Failed { assignment, .. } => {
                self.held.remove(assignment);
            }
            FromWorker::Progress { assignment, bytes_done, bytes_total } => {
                if let Some(held) = self.held.get_mut(assignment) {
                    held.fetched = (*bytes_done, *bytes_total);
                }
            }
            FromWorker::Hello(_)
            | FromWorker::Drain { .. }
            | FromWorker::Visibility { .. }
            | FromWorker::Pong { .. } => {}
        }
    }

    /// A shard is being loaded for an assignment.
    pub fn loading(&mut self, shard: ShardKey, assignment: AssignmentId) {
        if let Some(held) = self.held.get_mut(&assignment) {
            held.shard = Some(shard);
        }
    }

    /// A shard is loaded; its model has so many layers.
    pub fn loaded(&mut self, shard: ShardKey, layers: u32) {
        let held = self.held.iter_mut().find(|(_, held)| held.shard == Some(shard));
        if let Some((_, held)) = held {
            held.layers = Some(layers);
        }
    }

    /// A shard was let go.
    pub fn unloaded(&mut self, shard: ShardKey) {
        self.held.retain(|_, held| held.shard != Some(shard));
    }

    /// The connection is gone, and with it all of them.
    pub fn clear(&mut self) {
        self.held.clear();
    }

    /// Layers of an assignment's model, once it is loaded.
    pub fn layers(&self, assignment: AssignmentId) -> Option<u32> {
        self.held.get(&assignment)?.layers
    }

    /// The shards, for the owner.
    pub fn shards(&self) -> Vec<TabShard> {
        let shard = |held: &Holding| TabShard {
            model: held.model.clone(),
            layers: layers_of(held.span, held.layers.unwrap_or(held.span.end)),
            weight_bytes: held.weight_bytes,
            ready: held.ready,
        };
        self.held.values().map(shard).collect()
    }

    /// Bytes verified and in all, of what is not loaded yet.
    pub fn fetching(&self) -> Option<(u64, u64)> {
        let open = self.held.values().filter(|held| held.shard.is_none());
        open.map(|held| held.fetched).reduce(|a, b| (a.0 + b.0, a.1.saturating_add(b.1)))
    }

    /// What a joined worker that holds this is doing.
    pub fn phase(&self) -> TabPhase {
        if self.held.values().any(|held| held.ready) {
            TabPhase::Serving
        } else if self.held.is_empty() {
            TabPhase::Idle
        } else {
            TabPhase::Loading
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::BlobRef;

    use super::*;

    fn assign(id: u64, first: u32, end: u32) -> ToWorker {
        let blob = |digit: &str, bytes| BlobRef { hash: digit.repeat(64), bytes };
        ToWorker::Assign(Assignment {
            id: AssignmentId(id),
            model: "otter-1b".into(),
            manifest: blob("0", 50),
            span: Span { first, end },
            class: "canonical-1".into(),
            blobs: vec![blob("1", 100), blob("2", 200)],
            kv_pages: 4,
            tensor: None,
        })
    }

    #[test]
    fn an_assignment_is_followed_from_fetching_to_its_end() {
        let mut holdings = Holdings::default();
        assert_eq!((holdings.phase(), holdings.fetching()), (TabPhase::Idle, None));
        let (id, shard) = (AssignmentId(7), ShardKey(3));
        holdings.heard(&assign(7, 2, 12));
        assert_eq!(holdings.phase(), TabPhase::Loading);
        assert_eq!(holdings.fetching(), Some((0, 350)));
        holdings.said(&FromWorker::Progress { assignment: id, bytes_done: 9, bytes_total: 350 });
        assert_eq!(holdings.fetching(), Some((9, 350)));
        holdings.loading(shard, id);
        assert_eq!((holdings.phase(), holdings.fetching()), (TabPhase::Loading, None));
        holdings.loaded(shard, 10);
        holdings.said(&FromWorker::Ready { assignment: id });
        assert_eq!(holdings.phase(), TabPhase::Serving);
        assert_eq!(holdings.layers(id), Some(10));
        let held = TabShard {
            model: "otter-1b".into(),
            layers: Some((1, 9)),
            weight_bytes: 300,
            ready: true,
        };
        assert_eq!(holdings.shards(), [held]);
        holdings.heard(&ToWorker::Unassign { assignment: id });
        assert_eq!(holdings.phase(), TabPhase::Serving, "the steps before come first");
        holdings.unloaded(shard);
        assert_eq!(holdings.phase(), TabPhase::Idle);
    }

    #[test]
    fn one_that_fails_or_is_taken_back_early_is_over() {
        let mut holdings = Holdings::default();
        for id in 1..=3 {
            holdings.heard(&assign(id, 1, 3));
        }
        assert_eq!(holdings.fetching(), Some((0, 1050)));
        let reason = "no room".to_string();
        holdings.said(&FromWorker::Failed { assignment: AssignmentId(1), reason });
        holdings.heard(&ToWorker::Unassign { assignment: AssignmentId(2) });
        assert_eq!(holdings.shards().len(), 1);
        holdings.clear();
        assert_eq!(holdings.shards(), []);
    }

    #[test]
    fn no_more_are_remembered_than_a_worker_holds() {
        let mut holdings = Holdings::default();
        for id in 0..1000 {
            holdings.heard(&assign(id, 1, 3));
        }
        assert_eq!(holdings.shards().len(), ASSIGNMENTS_MAX);
    }
}
