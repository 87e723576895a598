//! The window rule: a worker takes the run of layers that has the least speed behind it.
//!
//! With T_l the speed behind layer l (each holder's rate divided among the layers it holds),
//! a worker takes as many layers as fit, where they cover the weakest layer and weigh the
//! least together: O(L²) simple comparisons for L layers, whatever the size of the fleet
//! (Petals, Borzunov et al. 2023, but decided in one place). In a large fleet this is all of
//! placing: arrivals heal what departures tear, and workers are moved only where a layer has
//! nobody.

use protocol::{AssignmentId, Span, WorkerId, WorkerKind};

use crate::Scheduler;
use crate::fleet::{Worker, pages_for};
use crate::index::{Holder, PartIndex};

/// Machines that should hold each part before speed counts.
const REPLICAS_MIN: usize = 3;
/// Trusted workers that are asked at most whether they have room for an end.
const ENDS_TRIED_MAX: usize = 256;
/// Workers that are moved at most in one placing.
const MOVES_MAX: usize = 4;
/// Holders of the strongest layer that are considered for one move.
const MOVERS_TRIED_MAX: usize = 64;

/// How much a part needs one more holder, the neediest first: whether anybody has it with
/// room enough, from how many machines, and the speed behind it.
type Need = (bool, usize, u64);

/// The parts that a worker would take, and how much they need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Window {
    /// Of the part in it that is the neediest.
    need: Need,
    /// Speed behind all of it.
    rate: u64,
    /// Bytes that the worker would have to fetch.
    fetch: u64,
    pub span: (u32, u32),
}

impl Window {
    pub fn span(&self) -> Span {
        Span { first: self.span.0, end: self.span.1 }
    }

    /// What a small fleet goes by.
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// What a large fleet goes by between models: the need, weighed against what is asked of
    /// the model.
    pub fn weighed_need(&self, live: usize) -> Need {
        (self.need.0, self.need.1, self.need.2 / (1 + live as u64))
    }
}

impl Scheduler {
    /// The layers that a worker is of most use for, among those that fit and that a route could
    /// use; with the ends, where the worker may hold them and all layers fit.
    pub(crate) fn weakest_window(&self, id: WorkerId, model: usize) -> Option<Window> {
        self.weakest_window_in(id, model, self.workers[&id].memory_free())
    }

    /// The same in so much memory, bytes.
    fn weakest_window_in(&self, id: WorkerId, model: usize, free: u64) -> Option<Window> {
        let worker = &self.workers[&id];
        let m = &self.models[model];
        if !worker.may_hold_layers() || m.spec.class_for(&worker.spec).is_none() {
            return None;
        }
        let parts = m.spec.parts.len() as u32;
        let fetch = self.fetches(worker, model);
        let whole = m.whole();
        if worker.may_hold_ends() && self.least_memory(model, whole) <= free {
            return Some(self.window(worker, model, &fetch, (0, parts)));
        }
        let kv = self.kv_bytes_min(&m.spec);
        let large = self.is_large();
        let tab_max = self.config.tab_fetch_bytes_max;
        let good = |&(first, end): &(u32, u32)| {
            let n = end - first;
            let weights = m.weights[end as usize] - m.weights[first as usize];
            let new = fetch[end as usize] - fetch[first as usize];
            weights + u64::from(n) * kv + self.config.scratch_bytes <= free
                // A tab, which may be gone soon, need not fetch too much for a replica.
                && (!worker.is_browser() || n == 1 || new <= tab_max)
                && (large || self.is_usable(model, first, end))
        };
        let windows = |n: u32| (1..=parts - 1 - n).map(move |first| (first, first + n));
        let n = (1..=parts - 2).rev().find(|n| windows(*n).any(|w| good(&w)))?;
        let windows = windows(n).filter(good).map(|w| self.window(worker, model, &fetch, w));
        match large {
            true => windows.min(),
            false => windows.min_by_key(|w| (w.rate, w.span)),
        }
    }

    /// Bytes of all parts before each part that a worker has to fetch.
    fn fetches(&self, worker: &Worker, model: usize) -> Vec<u64> {
        let mut sums = vec![0];
        let here = worker.spec.kind == WorkerKind::Embedded;
        for part in &self.models[model].spec.parts {
            let new = part.blobs.iter().filter(|b| !here && !worker.cached.contains(&b.hash));
            sums.push(sums[sums.len() - 1] + new.map(|b| b.bytes).sum::<u64>());
        }
        sums
    }

    fn window(&self, worker: &Worker, model: usize, fetch: &[u64], span: (u32, u32)) -> Window {
        let pages = pages_for(self.models[model].kv_positions_needed);
        let parts = &self.index.models[model].parts[span.0 as usize..span.1 as usize];
        let need = |part: &PartIndex| {
            // A second worker on one machine makes nothing safer.
            let elsewhere = part.machines() - usize::from(part.is_on_machine(worker.machine));
            (part.has_room_for(pages), elsewhere.min(REPLICAS_MIN), part.rate)
        };
        Window {
            need: parts.iter().map(need).min().expect("no window is empty"),
            rate: parts.iter().map(|part| part.rate).sum(),
            fetch: fetch[span.1 as usize] - fetch[span.0 as usize],
            span,
        }
    }

    /// Whether a route could use a replica of these layers: a shard runs one range of layers
    /// for a session, so the layers on both sides must not be on one shard only.
    fn is_usable(&self, model: usize, first: u32, end: u32) -> bool {
        let parts = &self.index.models[model].parts;
        let holders = |part: u32| parts[part as usize].holders().map(|h| h.0);
        first == 1
            || end as usize == parts.len() - 1
            || holders(first - 1).any(|a| holders(end).any(|b| a != b))
    }

    /// Sees to it that trusted workers hold the ends, more than one where there are more.
    pub(crate) fn hold_ends(&mut self, model: usize) {
        let last = self.models[model].spec.parts.len() as u32 - 1;
        for part in [0, last] {
            let span = Span { first: part, end: part + 1 };
            while self.index.models[model].parts[part as usize].held() < REPLICAS_MIN - 1 {
                let nobody = self.index.models[model].parts[part as usize].held() == 0;
                let Some(id) = self.end_holder(model, part, !nobody) else { break };
                if self.workers[&id].memory_free() < self.least_memory(model, span) {
                    self.clear(id, model);
                }
                self.assign(id, model, span, 0, self.config.kv_positions_max);
                self.settle();
            }
        }
    }

    /// A trusted worker that could take an end: one with room, the emptiest first; else, unless
    /// there `must_be_room`, one that would have it without its layers.
    fn end_holder(&self, model: usize, part: u32, must_be_room: bool) -> Option<WorkerId> {
        let least = self.least_memory(model, Span { first: part, end: part + 1 });
        let index = &self.index.models[model].parts[part as usize];
        let tried = self.index.trusted.iter().take(ENDS_TRIED_MAX).map(|id| &self.workers[id]);
        let able = tried.filter(|w| {
            let has = w
                .held
                .values()
                .any(|h| h.model == model && h.span.first <= part && part < h.span.end);
            let room = match must_be_room {
                true => w.memory_free(),
                false => w.memory_free_without(model),
            };
            !has && room >= least && self.models[model].spec.class_for(&w.spec).is_some()
        });
        let best = able.min_by_key(|w| {
            let same = index.is_on_machine(w.machine);
            (w.memory_free() < least, same, w.may_hold_layers(), w.held.len(), w.spec.id)
        });
        best.map(|w| w.spec.id)
    }

    /// Takes back what a worker holds of a model.
    fn clear(&mut self, id: WorkerId, model: usize) {
        let held = self.workers[&id].held.iter().filter(|(_, h)| h.model == model);
        let held: Vec<AssignmentId> = held.map(|(assignment, _)| *assignment).collect();
        held.into_iter().for_each(|assignment| self.unassign(id, assignment));
        self.settle();
    }

    /// Where a layer has nobody and no idle worker could take it, moves workers from where
    /// there are the most, if they can hold it; says what is lacking if that does not do.
    pub(crate) fn rescue(&mut self, model: usize) {
        for _ in 0..MOVES_MAX {
            if self.unheld_layers(model).is_empty() {
                break;
            }
            let Some((id, window)) = self.mover(model) else { break };
            self.clear(id, model);
            self.give(id, model, window.span());
        }
        if !self.unheld(model).is_empty() {
            self.models[model].shortfall = Some(self.say_shortfall(model));
        }
    }

    /// The layers that nobody was given with room for every session that waits.
    fn unheld_layers(&self, model: usize) -> Vec<Span> {
        let last = self.models[model].spec.parts.len() as u32 - 1;
        let held = self.unheld(model).into_iter();
        let layers = held.map(|gap| Span { first: gap.first.max(1), end: gap.end.min(last) });
        layers.filter(|gap| gap.first < gap.end).collect()
    }

    /// Who is missed the least, and what it would hold instead: a holder of the strongest layer
    /// all of whose layers others have too, and who could hold a layer that nobody has; no tab
    /// where that can be avoided, with few sessions.
    fn mover(&self, model: usize) -> Option<(WorkerId, Window)> {
        let parts = &self.index.models[model].parts;
        let layers = parts[1..parts.len() - 1].iter();
        let strongest = layers.max_by_key(|part| part.rate)?;
        let gaps = self.unheld_layers(model);
        let spare = |(worker, assignment): Holder| {
            let held = self.workers[&worker].held.values();
            let mut spans = held.filter(|h| h.model == model).map(|h| h.span);
            let others = |s: Span| &parts[s.first as usize..s.end as usize];
            if !spans.all(|s| others(s).iter().all(|p| p.ready() > 1)) {
                return None;
            }
            let w = &self.workers[&worker];
            let window = self.weakest_window_in(worker, model, w.memory_free_without(model))?;
            let span = window.span();
            let closes = gaps.iter().any(|gap| gap.first < span.end && span.first < gap.end);
            let order = (w.is_browser(), self.index.load(worker), worker, assignment);
            (closes && self.has_positions_for(w, model)).then_some((order, window))
        };
        let holders = strongest.holders().take(MOVERS_TRIED_MAX).filter_map(spare);
        holders.min_by_key(|(order, _)| *order).map(|((_, _, id, _), window)| (id, window))
    }

    /// Whether a shard that is given to a worker has the positions that sessions wait for.
    fn has_positions_for(&self, worker: &Worker, model: usize) -> bool {
        let m = &self.models[model];
        let least = self.config.kv_positions_min.max(m.kv_positions_needed).min(m.spec.context);
        let pages = pages_for(least).min(pages_for(self.positions_max(worker)));
        pages >= pages_for(m.kv_positions_needed)
    }
}
