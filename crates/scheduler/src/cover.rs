//! When to place, and what to assign and drop so that every part is held.

use std::collections::BTreeMap;

use protocol::{AssignmentId, BlobRef, Span, WorkerId, WorkerKind};

use crate::event::{Action, ModelSpec, Note, WorkerSpec};
use crate::fleet::{Held, Worker, describe, pages_for};
use crate::index::{ModelIndex, PartIndex};
use crate::placement::{self, Candidate, PartLoad, Plan, Problem};
use crate::{Model, Scheduler};

/// A new plan replaces a working one only if it costs less than this share of it.
const BETTER: f64 = 0.75;
/// Up to so many workers placing looks at all of them together; beyond, each that comes takes
/// the weakest window, and nobody is moved while all is covered.
const SMALL_FLEET_MAX: usize = 16;

/// Which workers a plan may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// Those that are not tabs.
    Lasting,
    Everyone,
}

impl Who {
    fn includes(self, worker: &Worker) -> bool {
        match self {
            Who::Lasting => !worker.is_browser(),
            Who::Everyone => true,
        }
    }
}

impl Scheduler {
    pub(crate) fn add_model(&mut self, spec: ModelSpec) {
        assert!(spec.parts.len() >= 3, "a model has an embedding, layers and a head");
        assert!(self.model_index(&spec.name).is_none(), "model names are unique");
        self.index.models.push(ModelIndex::new(spec.parts.len()));
        self.models.push(Model::new(spec));
        self.place_soon();
    }

    pub(crate) fn join(&mut self, mut spec: WorkerSpec) {
        spec.standing = self.standing_of(&spec.key, spec.standing);
        if spec.standing.banned {
            let reason = "its key is banned: audits found that it answers wrongly".to_owned();
            self.actions.push_back(Action::Dismiss { worker: spec.id, reason, retry: false });
            return;
        }
        // The same key again is the same machine back: its older connection is a ghost.
        if let Some(ghost) = self.keys.get(&spec.key).copied() {
            self.dismiss(ghost, "another connection with the same key took its place", false);
        }
        let id = spec.id;
        self.keys.insert(spec.key.clone(), id);
        self.audits.standings.comes(&spec.key, spec.standing);
        self.workers.insert(id, Worker::new(spec));
        self.begin_to_count(id);
        self.note(Note::Joined { worker: id });
        self.place_soon();
    }

    pub(crate) fn shard_ready(&mut self, id: WorkerId, assignment: AssignmentId) {
        let Some(shard) = self.workers.get_mut(&id).and_then(|w| w.held.get_mut(&assignment))
        else {
            return;
        };
        if shard.ready {
            return;
        }
        shard.ready = true;
        let (model, span) = (shard.model, shard.span);
        let what = self.span_in_words(model, span);
        self.note(Note::Ready { worker: id, what });
    }

    /// A shard that is being fetched is given more time for every byte that comes.
    pub(crate) fn shard_progress(&mut self, id: WorkerId, assignment: AssignmentId, bytes: u64) {
        let until = self.now.plus(self.config.load_patience);
        let shard = self.workers.get_mut(&id).and_then(|w| w.held.get_mut(&assignment));
        if let Some(shard) = shard.filter(|h| !h.ready && bytes > h.loading.0) {
            shard.loading = (bytes, until);
        }
    }

    pub(crate) fn shard_failed(&mut self, id: WorkerId, assignment: AssignmentId, why: &str) {
        let Some(worker) = self.workers.get(&id) else { return };
        let Some(shard) = worker.held.get(&assignment) else { return };
        let what = self.span_in_words(shard.model, shard.span);
        // It would be given the same again: it comes back after a pause, or not at all.
        self.dismiss(id, &format!("it could not hold {what}: {why}"), true);
    }

    /// Places after a short while, so that workers that come together are placed together;
    /// sooner if sessions wait for it.
    pub(crate) fn place_soon(&mut self) {
        let waits = self.broken().any(|s| !s.stages.is_empty());
        let delay = if waits { self.config.place_delay / 10 } else { self.config.place_delay };
        let at = self.now.plus(delay);
        self.place_at = Some(self.place_at.map_or(at, |t| t.min(at)));
    }

    /// What of a model nobody is ready to run, in words; `None` if all is covered.
    pub(crate) fn missing(&self, model: usize) -> Option<String> {
        let spec = &self.models[model].spec;
        let gaps = self.gaps(model, |part| part.ready() > 0);
        let words: Vec<String> = gaps.into_iter().map(|g| describe(spec, g)).collect();
        (!words.is_empty()).then(|| words.join(", "))
    }

    /// Why a model that is not covered is not, if the fleet is too small for it.
    pub(crate) fn shortfall(&self, model: usize) -> Option<&str> {
        self.models[model].shortfall.as_deref()
    }

    /// The ranges of parts that are not `covered`.
    pub(crate) fn gaps(&self, model: usize, covered: impl Fn(&PartIndex) -> bool) -> Vec<Span> {
        let mut gaps: Vec<Span> = Vec::new();
        let parts = self.index.models[model].parts.iter().enumerate();
        for (part, _) in parts.filter(|(_, part)| !covered(part)) {
            match gaps.last_mut() {
                Some(gap) if gap.end == part as u32 => gap.end += 1,
                _ => gaps.push(Span { first: part as u32, end: part as u32 + 1 }),
            }
        }
        gaps
    }

    /// The ranges of parts that nobody was given with room for every session that waits.
    pub(crate) fn unheld(&self, model: usize) -> Vec<Span> {
        let pages = pages_for(self.models[model].kv_positions_needed);
        self.gaps(model, |part| part.has_room_for(pages))
    }

    /// Whether there are too many workers to look at all of them together.
    pub(crate) fn is_large(&self) -> bool {
        self.index.lent.workers > SMALL_FLEET_MAX
    }

    /// Gives out what nobody holds, model by model; then something useful to whoever holds
    /// nothing.
    pub(crate) fn place(&mut self) {
        self.settle();
        for model in 0..self.models.len() {
            self.models[model].shortfall = None;
            // What is too small for a session that waits does not help it.
            let waiting = self.broken().filter(|s| s.model == model && !s.holes().is_empty());
            let needed = waiting.map(|s| s.positions() + 1).max().unwrap_or(0);
            self.models[model].kv_positions_needed = needed;
            if self.is_large() {
                self.hold_ends(model);
                continue;
            }
            let gaps = self.unheld(model);
            if gaps.is_empty() {
                self.improve(model);
            } else if !self.cover(model, &gaps) {
                self.models[model].shortfall = Some(self.say_shortfall(model));
                self.fill_ends(model, &gaps);
            }
            self.settle();
        }
        self.replicate();
        if self.is_large() {
            (0..self.models.len()).for_each(|model| self.rescue(model));
        }
        self.settle();
        self.place_auditors();
    }

    /// Has every gap covered, if that is possible: by workers that stay where there are
    /// enough, and by moving nobody where that suffices.
    fn cover(&mut self, model: usize, gaps: &[Span]) -> bool {
        self.fill(model, gaps, Who::Lasting)
            || self.fill(model, gaps, Who::Everyone)
            || self.replace_all(model, Who::Lasting)
            || self.replace_all(model, Who::Everyone)
    }

    /// Gives each gap to workers with memory left. All or nothing.
    fn fill(&mut self, model: usize, gaps: &[Span], who: Who) -> bool {
        let free: BTreeMap<WorkerId, u64> =
            self.workers.iter().map(|(id, w)| (*id, w.memory_free())).collect();
        let mut taken: BTreeMap<WorkerId, u64> = BTreeMap::new();
        let mut wanted = Vec::new();
        for gap in gaps {
            let left = |id: &WorkerId| free[id] - taken.get(id).copied().unwrap_or(0).min(free[id]);
            let Some((workers, plan)) = self.solve(model, *gap, who, left) else {
                return false;
            };
            for (candidate, span) in &plan.stages {
                *taken.entry(workers[*candidate]).or_default() += self.least_memory(model, *span);
                wanted.push((workers[*candidate], *span));
            }
        }
        self.assign_all(model, wanted);
        true
    }

    /// While nobody holds the layers, whoever may hold nothing else takes the ends already.
    fn fill_ends(&mut self, model: usize, gaps: &[Span]) {
        let parts = self.models[model].spec.parts.len() as u32;
        for part in [0, parts - 1] {
            if !gaps.iter().any(|g| (g.first..g.end).contains(&part)) {
                continue;
            }
            let span = Span { first: part, end: part + 1 };
            let least = self.least_memory(model, span);
            let spec = &self.models[model].spec;
            let able = |w: &&Worker| {
                !w.draining
                    && w.may_hold_ends()
                    && !w.may_hold_layers()
                    && spec.class_for(&w.spec).is_some()
                    && w.memory_free() >= least
            };
            if let Some(id) = self.workers.values().find(able).map(|w| w.spec.id) {
                self.assign(id, model, span, 0, self.config.kv_positions_max);
            }
        }
    }

    /// Starts a model's placement over among such workers, where that makes it fit.
    fn replace_all(&mut self, model: usize, who: Who) -> bool {
        let free: BTreeMap<WorkerId, u64> =
            self.workers.iter().map(|(id, w)| (*id, w.memory_free_without(model))).collect();
        let all = self.models[model].whole();
        let Some((workers, plan)) = self.solve(model, all, who, |id| free[id]) else {
            return false;
        };
        self.move_to(model, &workers, &plan, who);
        true
    }

    /// Changes a working placement for a much better one while no session uses it. Tabs keep
    /// what they have fetched, and serve as replicas.
    fn improve(&mut self, model: usize) {
        if self.index.live_of(model) > 0 || self.index.loading > 0 {
            return;
        }
        let all = self.models[model].whole();
        let Some(route) = self.find_route(model, all, 1, &[], 0) else { return };
        let now_s: f64 = route
            .iter()
            .filter_map(|s| {
                let worker = self.workers.get(&s.holder?.0)?;
                let work = self.models[model].work_bytes(s.span);
                Some((worker.hop_s + worker.compute_s(work, 1)) / worker.survival())
            })
            .sum();
        let free: BTreeMap<WorkerId, u64> =
            self.workers.iter().map(|(id, w)| (*id, w.memory_free_without(model))).collect();
        let plan = self.solve(model, all, Who::Lasting, |id| free[id]);
        let Some((workers, plan)) = plan else { return };
        if plan.token_s < now_s * BETTER {
            self.move_to(model, &workers, &plan, Who::Lasting);
        }
    }

    /// Drops the shards of `who` that a plan has no use for, and assigns what it lacks.
    fn move_to(&mut self, model: usize, workers: &[WorkerId], plan: &Plan, who: Who) {
        let wanted: Vec<(WorkerId, Span)> =
            plan.stages.iter().map(|(c, span)| (workers[*c], *span)).collect();
        let drop: Vec<(WorkerId, AssignmentId)> = self
            .workers
            .iter()
            .filter(|(_, w)| who.includes(w))
            .flat_map(|(id, w)| w.held.iter().map(move |(a, h)| (*id, *a, h)))
            .filter(|(_, _, h)| h.model == model)
            .filter(|(id, _, h)| !wanted.contains(&(*id, h.span)) || !self.is_roomy(h))
            .map(|(id, a, _)| (id, a))
            .collect();
        for (worker, assignment) in drop {
            self.unassign(worker, assignment);
        }
        let lacks = |this: &Scheduler, (worker, span): &(WorkerId, Span)| {
            let mut held = this.workers[worker].held.values();
            !held.any(|h| h.model == model && h.span == *span)
        };
        let new: Vec<(WorkerId, Span)> =
            wanted.iter().copied().filter(|w| lacks(self, w)).collect();
        for &(worker, _) in &new {
            // What it keeps may have taken more for its KV cache than the plan leaves it.
            let mine = new.iter().filter(|(w, _)| *w == worker);
            let need: u64 = mine.map(|(_, span)| self.least_memory(model, *span)).sum();
            let holds = &self.workers[&worker];
            if holds.memory_free() < need {
                let kept = holds.held.iter().filter(|(_, h)| h.model == model);
                let kept: Vec<AssignmentId> = kept.map(|(a, _)| *a).collect();
                kept.into_iter().for_each(|assignment| self.unassign(worker, assignment));
            }
        }
        let lacking = wanted.into_iter().filter(|w| lacks(self, w)).collect();
        self.assign_all(model, lacking);
    }

    /// Assigns several shards, so that no KV cache takes the memory of a later one.
    fn assign_all(&mut self, model: usize, wanted: Vec<(WorkerId, Span)>) {
        for (i, &(worker, span)) in wanted.iter().enumerate() {
            let later = wanted[i + 1..].iter().filter(|(w, _)| *w == worker);
            let kept = later.map(|(_, span)| self.least_memory(model, *span)).sum();
            self.assign(worker, model, span, kept, self.config.kv_positions_max);
        }
    }

    /// Whether a shard's KV cache is large enough for every session that waits for a stage.
    fn is_roomy(&self, shard: &Held) -> bool {
        shard.kv_pages == 0
            || shard.kv_pages >= pages_for(self.models[shard.model].kv_positions_needed)
    }

    /// The plan for `range`, over such workers that are here and have memory `left`.
    fn solve(
        &self,
        model: usize,
        range: Span,
        who: Who,
        left: impl Fn(&WorkerId) -> u64,
    ) -> Option<(Vec<WorkerId>, Plan)> {
        let spec = &self.models[model].spec;
        let parts: Vec<PartLoad> = (0..spec.parts.len()).map(|p| self.part_load(spec, p)).collect();
        let able = |w: &Worker| !w.draining && who.includes(w) && spec.class_for(&w.spec).is_some();
        let workers: Vec<WorkerId> =
            self.workers.iter().filter(|(_, w)| able(w)).map(|(id, _)| *id).collect();
        let candidates: Vec<Candidate> = workers
            .iter()
            .map(|id| {
                let w = &self.workers[id];
                let fetch = |b: &&BlobRef| {
                    w.spec.kind != WorkerKind::Embedded && !w.cached.contains(&b.hash)
                };
                let missing = spec
                    .parts
                    .iter()
                    .map(|p| p.blobs.iter().filter(fetch).map(|b| b.bytes).sum())
                    .collect();
                Candidate {
                    memory_bytes: left(id),
                    ends: w.may_hold_ends(),
                    layers: w.may_hold_layers(),
                    s_per_byte: w.s_per_byte[0] / w.survival(),
                    hop_s: w.hop_s / w.survival(),
                    missing_bytes: missing,
                }
            })
            .collect();
        let live = self.index.live_of(model);
        let problem = Problem {
            parts: &parts,
            tied_bytes: tied_bytes(spec),
            range,
            candidates: &candidates,
            stage_bytes: self.config.scratch_bytes,
            sessions: live.max(1) as f64,
        };
        placement::plan(&problem).map(|plan| (workers, plan))
    }

    fn part_load(&self, spec: &ModelSpec, part: usize) -> PartLoad {
        let is_layer = part > 0 && part + 1 < spec.parts.len();
        let kv = if is_layer { self.kv_bytes_min(spec) } else { 0 };
        let weights: u64 = spec.parts[part].blobs.iter().map(|b| b.bytes).sum();
        PartLoad { memory_bytes: weights + kv, work_bytes: spec.parts[part].work_bytes }
    }
}

/// Bytes that the embedding and the head share.
fn tied_bytes(spec: &ModelSpec) -> u64 {
    let head = &spec.parts[spec.parts.len() - 1].blobs;
    let shared = |b: &&BlobRef| head.iter().any(|h| h.hash == b.hash);
    spec.parts[0].blobs.iter().filter(shared).map(|b| b.bytes).sum()
}
