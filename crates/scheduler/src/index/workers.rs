//! What the index holds of one worker.

use protocol::WorkerId;

use super::parts::quarter_octaves;
use super::{Due, Index, Late, Lent, Shard};
use crate::Model;
use crate::event::Time;
use crate::fleet::{Held, Worker, layer_count};

/// What one worker adds to the index.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WorkerEntry {
    deadline: Option<(Time, Late)>,
    untold: bool,
    told: bool,
    trusted: bool,
    loading: bool,
    lent: Lent,
    /// In the order of their assignments.
    shards: Vec<Shard>,
}

impl WorkerEntry {
    pub fn of<'a>(worker: &Worker, load: u32, model: impl Fn(usize) -> &'a Model) -> WorkerEntry {
        let steps = worker.in_flight.values().map(|s| (s.deadline, Late::Step));
        let loads = worker.held.values().filter(|h| !h.ready);
        // A rank that waits for the others is not late itself.
        let loads = loads.filter(|h| !h.rank.as_ref().is_some_and(|rank| rank.loaded));
        let loads = loads.map(|h| (h.loading.1, Late::Load));
        let mut entry = WorkerEntry {
            deadline: steps.chain(loads).min(),
            untold: false,
            told: false,
            trusted: false,
            loading: worker.held.values().any(|h| !h.ready),
            lent: Lent::default(),
            shards: Vec::new(),
        };
        if worker.draining {
            return entry;
        }
        let memory = worker.spec.memory_bytes;
        let idle = worker.held.is_empty();
        entry.untold = idle && worker.idle_because.is_none();
        entry.told = idle && worker.idle_because.is_some();
        entry.trusted = worker.may_hold_ends();
        entry.lent =
            Lent { workers: 1, memory, layers: if worker.may_hold_layers() { memory } else { 0 } };
        // Of a tensor group the leader's shard counts, for all of it.
        let follows = |held: &Held| held.rank.as_ref().is_some_and(|rank| rank.rank > 0);
        let shards = worker.held.iter().filter(|(_, held)| !follows(held));
        let shards = shards.map(|(assignment, held)| {
            let model = model(held.model);
            let parts = f64::from(held.span.end - held.span.first);
            let layers = layer_count(&model.spec, held.span);
            let work = (model.work_bytes(held.span) as f64 / parts) as u64;
            let part_s = worker.token_s(work, load)
                + worker.row_hop_s(&model.spec, held.span) / worker.survival() / parts;
            let rate =
                worker.survival() / (worker.stage_s_per_byte()[0] * f64::from(layers.max(1)));
            Shard {
                holder: (worker.spec.id, *assignment),
                model: held.model,
                class: model.spec.class_index(&held.class).expect("it was assigned in one of them"),
                span: held.span,
                ready: held.ready,
                kv_pages: if layers == 0 { u32::MAX } else { held.kv_pages },
                pages_free: held.pages_free(),
                cost: quarter_octaves(part_s),
                rate: rate as u64,
                machine: worker.machine,
                trusted: worker.spec.trusted,
                whole: held.rank.is_some(),
            }
        });
        entry.shards = shards.collect();
        entry
    }
}

impl Index {
    /// Replaces what the index holds of a worker.
    pub(super) fn set_worker(&mut self, id: WorkerId, new: Option<WorkerEntry>, due: &mut Due) {
        let old = self.worker_entries.remove(&id);
        if self.waiting.contains_key(&id) {
            due.send.insert(id);
        }
        if old != new {
            if let Some(entry) = &old {
                self.count_worker(id, entry, false);
            }
            if let Some(entry) = &new {
                self.count_worker(id, entry, true);
            }
            let before = old.as_ref().map_or(&[][..], |e| &e.shards);
            let after = new.as_ref().map_or(&[][..], |e| &e.shards);
            self.set_shards(before, after, due);
        }
        if let Some(entry) = new {
            self.worker_entries.insert(id, entry);
        }
    }

    fn count_worker(&mut self, id: WorkerId, entry: &WorkerEntry, up: bool) {
        let lent = &mut self.lent;
        let deadline = entry.deadline.map(|(at, why)| (at, id, why));
        if up {
            lent.workers += entry.lent.workers;
            lent.memory += entry.lent.memory;
            lent.layers += entry.lent.layers;
            self.loading += usize::from(entry.loading);
            self.deadlines.extend(deadline);
        } else {
            lent.workers -= entry.lent.workers;
            lent.memory -= entry.lent.memory;
            lent.layers -= entry.lent.layers;
            self.loading -= usize::from(entry.loading);
            if let Some(deadline) = deadline {
                self.deadlines.remove(&deadline);
            }
        }
        let sets = [
            (&mut self.untold, entry.untold),
            (&mut self.told, entry.told),
            (&mut self.trusted, entry.trusted),
        ];
        for (set, _) in sets.into_iter().filter(|(_, is)| *is) {
            match up {
                true => set.insert(id),
                false => set.remove(&id),
            };
        }
    }

    fn set_shards(&mut self, before: &[Shard], after: &[Shard], due: &mut Due) {
        let same = |a: &Shard, b: &Shard| a.holder == b.holder;
        for old in before.iter().filter(|old| !after.iter().any(|new| same(old, new))) {
            self.models[old.model].remove(old);
        }
        for new in after {
            let old = before.iter().find(|old| same(old, new));
            let freer = |old: &Shard| !old.ready || old.pages_free < new.pages_free;
            due.opened |= new.ready && old.is_none_or(freer);
            match old {
                None => self.models[new.model].add(new),
                Some(old) if old.ready == new.ready && old.machine == new.machine => {
                    if (old.cost, old.rate) != (new.cost, new.rate) {
                        self.models[new.model].set_speed(old, new);
                    }
                }
                Some(old) => {
                    self.models[old.model].remove(old);
                    self.models[new.model].add(new);
                }
            }
        }
    }
}
