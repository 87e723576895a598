//! Giving a worker a shard, and taking it back.

use std::collections::BTreeMap;

use protocol::{Assignment, AssignmentId, BlobRef, Span, ToWorker, WorkerId};

use crate::Scheduler;
use crate::event::{Action, ModelSpec, Note};
use crate::fleet::{Held, PAGE_POSITIONS, describe, layer_count};

/// Of the memory left beside the weights, the share that KV caches may take, so that a
/// further shard finds room.
const KV_SHARE: f64 = 0.75;

impl Scheduler {
    /// The least KV cache of one layer, bytes.
    pub(crate) fn kv_bytes_min(&self, spec: &ModelSpec) -> u64 {
        let needed = self.models.iter().find(|m| m.spec.name == spec.name);
        let needed = needed.map_or(0, |m| m.kv_positions_needed);
        let positions = self.config.kv_positions_min.max(needed).min(spec.context);
        let positions = positions.next_multiple_of(PAGE_POSITIONS);
        u64::from(positions) * spec.kv_bytes_per_position()
    }

    /// The least memory of a shard: weights, least KV, scratch.
    pub(crate) fn least_memory(&self, model: usize, span: Span) -> u64 {
        let spec = &self.models[model].spec;
        let kv = u64::from(layer_count(spec, span)) * self.kv_bytes_min(spec);
        unique_bytes(spec, span) + kv + self.config.scratch_bytes
    }

    /// Gives a worker a shard whose KV cache holds at most `positions_max`, leaving it `kept`
    /// bytes for another shard.
    pub(crate) fn assign(
        &mut self,
        id: WorkerId,
        model: usize,
        span: Span,
        kept: u64,
        positions_max: u32,
    ) {
        let least = self.least_memory(model, span);
        let spec = &self.models[model].spec;
        let mut blobs: Vec<BlobRef> = Vec::new();
        for blob in span_blobs(spec, span) {
            if !blobs.iter().any(|b| b.hash == blob.hash) {
                blobs.push(blob.clone());
            }
        }
        let Some(worker) = self.workers.get(&id) else { return };
        let class = spec.class_for(&worker.spec).expect("only who has a class is chosen").clone();
        let layers = u64::from(layer_count(spec, span));
        let page = layers * class.kv_bytes_per_position * u64::from(PAGE_POSITIONS);
        let kv_min = layers * self.kv_bytes_min(spec);
        let here = |b: &BlobRef| worker.held.values().any(|h| h.blobs.contains(b));
        let shared: u64 = blobs.iter().filter(|b| here(b)).map(|b| b.bytes).sum();
        let least = least - shared;
        let spare = (worker.memory_free().saturating_sub(least + kept) as f64 * KV_SHARE) as u64;
        let pages_max = positions_max.div_ceil(PAGE_POSITIONS);
        let kv_pages = match page {
            0 => 0,
            _ => ((kv_min + spare) / page).min(u64::from(pages_max)) as u32,
        };
        let assignment = AssignmentId(self.next_assignment);
        self.next_assignment += 1;
        let weight_bytes = unique_bytes(spec, span);
        let held = Held {
            model,
            class: class.name.clone(),
            span,
            ready: false,
            loading: (0, self.now.plus(self.config.load_patience)),
            weight_bytes,
            own_bytes: self.config.scratch_bytes + u64::from(kv_pages) * page,
            blobs: blobs.clone(),
            kv_pages,
            pages: BTreeMap::new(),
            rank: None,
        };
        let message = ToWorker::Assign(Assignment {
            id: assignment,
            model: spec.name.clone(),
            manifest: spec.manifest.clone(),
            span,
            class: class.name,
            blobs,
            kv_pages,
            tensor: None,
        });
        let what = format!("{} of {}", describe(spec, span), spec.name);
        let worker = self.workers.get_mut(&id).expect("it was there a moment ago");
        worker.held.insert(assignment, held);
        worker.idle_because = None;
        self.actions.push_back(Action::Control { worker: id, message });
        self.note(Note::Assigned { worker: id, what });
    }

    /// Takes a shard back, and a tensor group's from all of its ranks; sessions that ran through
    /// it find another way.
    pub(crate) fn unassign(&mut self, id: WorkerId, assignment: AssignmentId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if let Some(rank) = worker.held.get(&assignment).and_then(|h| h.rank.as_ref()) {
            let group = rank.group;
            self.dissolve(group);
            return;
        }
        if worker.held.remove(&assignment).is_some() {
            let message = ToWorker::Unassign { assignment };
            self.actions.push_back(Action::Control { worker: id, message });
            self.lose_stages(id, Some(assignment));
        }
    }
}

pub(crate) fn span_blobs(spec: &ModelSpec, span: Span) -> impl Iterator<Item = &BlobRef> {
    spec.parts[span.first as usize..span.end as usize].iter().flat_map(|p| &p.blobs)
}

/// Bytes of a span's blobs, each counted once.
pub(crate) fn unique_bytes(spec: &ModelSpec, span: Span) -> u64 {
    let blobs: BTreeMap<&str, u64> =
        span_blobs(spec, span).map(|b| (b.hash.as_str(), b.bytes)).collect();
    blobs.values().sum()
}
