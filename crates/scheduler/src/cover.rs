//! When to place, and what to assign and drop so that every part is held.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{AssignmentId, BlobRef, Span, WorkerId, WorkerKind};

use crate::event::{Action, Holds, ModelSpec, Note, PartSpec, WorkerSpec};
use crate::fleet::{Held, Worker, describe, pages_for};
use crate::groups::{self, Gang, REGROUP_RETRY, Taker, Tensor, Wish};
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

/// What a plan may use.
struct Room<'a> {
    /// Memory of each worker, bytes.
    left: &'a dyn Fn(&WorkerId) -> u64,
    /// What is held of the model does not count.
    fresh: bool,
    /// Shards that go: who holds a share of a group otherwise takes no layers beside it.
    freed: &'a dyn Fn(&Held) -> bool,
    /// Workers that were given something a moment ago, and are in no group beside it.
    busy: &'a BTreeMap<WorkerId, u64>,
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
        let (model, span) = (shard.model, shard.span);
        match shard.rank.is_some() {
            false => shard.ready = true,
            true if self.rank_loaded(id, assignment) => {}
            // The group's other ranks are not.
            true => return,
        }
        let what = self.span_in_words(model, span);
        self.note(Note::Ready { worker: id, what });
        // Groups that the operator wants may have waited for what was loading.
        if matches!(self.config.tensor, Tensor::Groups(_)) {
            self.place_soon();
        }
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
        if let Some(rank) = &shard.rank {
            let group = rank.group;
            return self.group_failed(id, group, why);
        }
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
            } else if !self.cover(model, &gaps) && !self.cover_at_all_costs(model) {
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

    /// The same where that failed: with workers of other models' tensor groups, then with
    /// groups of workers that are in none for a while.
    fn cover_at_all_costs(&mut self, model: usize) -> bool {
        if self.config.tensor == Tensor::Off {
            return false;
        }
        if self.take_from_groups(model) {
            self.settle();
            let gaps = self.unheld(model);
            if self.cover(model, &gaps) {
                return true;
            }
        }
        if self.pauses.next(self.now).is_none() {
            return false;
        }
        self.urgent = true;
        let gaps = self.unheld(model);
        let covered = self.cover(model, &gaps);
        self.urgent = false;
        covered
    }

    /// Whether a model fits on the workers that are here, without groups, in the memory that is
    /// free and that `freed` shards give back.
    pub(crate) fn fits_alone(&self, model: usize, freed: impl Fn(&Held) -> bool) -> bool {
        let left = |id: &WorkerId| {
            let worker = &self.workers[id];
            worker.spec.memory_bytes.saturating_sub(worker.memory_used(|h| !freed(h)))
        };
        let room = Room { left: &left, fresh: true, freed: &freed, busy: &BTreeMap::new() };
        let whole = self.models[model].whole();
        self.solve_with(model, whole, Who::Everyone, &room, &[], true).is_some()
    }

    /// Gives each gap to workers with memory left. All or nothing.
    fn fill(&mut self, model: usize, gaps: &[Span], who: Who) -> bool {
        let free: BTreeMap<WorkerId, u64> =
            self.workers.iter().map(|(id, w)| (*id, w.memory_free())).collect();
        let mut taken: BTreeMap<WorkerId, u64> = BTreeMap::new();
        let mut wanted: Vec<(Taker, Span)> = Vec::new();
        for gap in gaps {
            let left = |id: &WorkerId| free[id] - taken.get(id).copied().unwrap_or(0).min(free[id]);
            // Whoever takes something already is in no group beside it, nor a group's member
            // in something else.
            let room = Room { left: &left, fresh: false, freed: &|_| false, busy: &taken };
            let Some((takers, plan)) = self.solve(model, *gap, who, &room) else {
                return false;
            };
            for (candidate, span) in plan.stages {
                match &takers[candidate] {
                    Taker::One(id) => {
                        let bytes = taken.entry(*id).or_default();
                        *bytes = bytes.saturating_add(self.least_memory(model, span));
                    }
                    Taker::Gang(gang) => {
                        taken.extend(gang.members.iter().map(|id| (*id, u64::MAX)));
                    }
                }
                wanted.push((takers[candidate].clone(), span));
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
        let freed = |h: &Held| h.model == model;
        let room =
            Room { left: &|id| free[id], fresh: true, freed: &freed, busy: &BTreeMap::new() };
        let Some((takers, plan)) = self.solve(model, all, who, &room) else {
            return false;
        };
        self.move_to(model, &takers, &plan, who);
        true
    }

    /// Changes a working placement for a much better one while no session uses it, or for one
    /// with the tensor groups that the operator wants. Tabs keep what they have fetched, and
    /// serve as replicas.
    fn improve(&mut self, model: usize) {
        if self.index.live_of(model) > 0 || self.index.loading > 0 {
            let has_group = self.groups.values().any(|group| group.model == model);
            if self.config.tensor != Tensor::Off && !has_group {
                let at = self.now.plus(REGROUP_RETRY);
                self.group_at = Some(self.group_at.map_or(at, |t| t.min(at)));
            }
            return;
        }
        let groups: Vec<AssignmentId> =
            self.groups.iter().filter(|(_, g)| g.model == model).map(|(id, _)| *id).collect();
        let wants_groups = matches!(self.config.tensor, Tensor::Groups(_));
        if wants_groups && !groups.is_empty() {
            return;
        }
        let all = self.models[model].whole();
        let Some(route) = self.find_route(model, all, 1, &[], 0) else { return };
        let now_s: f64 = route
            .iter()
            .filter_map(|s| {
                let worker = self.workers.get(&s.holder?.0)?;
                let work = self.models[model].work_bytes(s.span);
                let hop_s = worker.row_hop_s(&self.models[model].spec, s.span);
                Some((hop_s + worker.compute_s(work, 1)) / worker.survival())
            })
            .sum();
        let free: BTreeMap<WorkerId, u64> =
            self.workers.iter().map(|(id, w)| (*id, w.memory_free_without(model))).collect();
        let freed = |h: &Held| h.model == model;
        let room =
            Room { left: &|id| free[id], fresh: true, freed: &freed, busy: &BTreeMap::new() };
        let Some((takers, plan)) = self.solve(model, all, Who::Lasting, &room) else { return };
        let forms = plan.stages.iter().any(|(c, _)| matches!(takers[*c], Taker::Gang(_)));
        if plan.token_s < now_s * BETTER || wants_groups && forms {
            // A group that did worse than was predicted is not formed again at once.
            for group in groups {
                let members = self.groups[&group].members.clone();
                let stays = plan.stages.iter().any(|(c, _)| match &takers[*c] {
                    Taker::One(_) => false,
                    Taker::Gang(gang) => members.iter().map(|m| &m.0).eq(&gang.members),
                });
                if !stays {
                    self.pause_groups(&members);
                }
            }
            self.move_to(model, &takers, &plan, Who::Lasting);
        }
    }

    /// Drops the shards of `who` that a plan has no use for, and assigns what it lacks.
    fn move_to(&mut self, model: usize, takers: &[Taker], plan: &Plan, who: Who) {
        let wanted: Vec<(Taker, Span)> =
            plan.stages.iter().map(|(c, span)| (takers[*c].clone(), *span)).collect();
        let is_wanted = |id: WorkerId, h: &Held| match &h.rank {
            None => wanted.contains(&(Taker::One(id), h.span)),
            Some(rank) => wanted.iter().any(|(taker, span)| match taker {
                Taker::One(_) => false,
                Taker::Gang(gang) => {
                    let members = self.groups[&rank.group].members.iter().map(|(id, _)| id);
                    *span == h.span && members.eq(&gang.members)
                }
            }),
        };
        let drop: Vec<(WorkerId, AssignmentId)> = self
            .workers
            .iter()
            .filter(|(_, w)| who.includes(w))
            .flat_map(|(id, w)| w.held.iter().map(move |(a, h)| (*id, *a, h)))
            .filter(|(_, _, h)| h.model == model)
            .filter(|(id, _, h)| !is_wanted(*id, h) || !self.is_roomy(h))
            .map(|(id, a, _)| (id, a))
            .collect();
        for (worker, assignment) in drop {
            self.unassign(worker, assignment);
        }
        let lacks = |this: &Scheduler, (taker, span): &(Taker, Span)| match taker {
            Taker::One(worker) => {
                let mut held = this.workers[worker].held.values();
                !held.any(|h| h.model == model && h.span == *span && h.rank.is_none())
            }
            Taker::Gang(gang) => !this.has_group(model, gang, *span),
        };
        let new: Vec<(Taker, Span)> = wanted.iter().filter(|w| lacks(self, w)).cloned().collect();
        let mut need: BTreeMap<WorkerId, u64> = BTreeMap::new();
        for (taker, span) in &new {
            match taker {
                Taker::One(id) => {
                    *need.entry(*id).or_default() += self.least_memory(model, *span);
                }
                Taker::Gang(gang) => {
                    let least = self.least_gang_memory(model, gang, *span);
                    for (id, least) in gang.members.iter().zip(least) {
                        *need.entry(*id).or_default() += least;
                    }
                }
            }
        }
        for (worker, need) in need {
            // What it keeps may have taken more for its KV cache than the plan leaves it.
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
    fn assign_all(&mut self, model: usize, wanted: Vec<(Taker, Span)>) {
        for (i, (taker, span)) in wanted.iter().enumerate() {
            let kept = |worker: WorkerId| {
                let later = wanted[i + 1..].iter().filter(|(w, _)| *w == Taker::One(worker));
                later.map(|(_, span)| self.least_memory(model, *span)).sum()
            };
            match taker {
                Taker::One(worker) => {
                    let kept = kept(*worker);
                    self.assign(*worker, model, *span, kept, self.config.kv_positions_max);
                }
                Taker::Gang(gang) => {
                    let kept = kept(gang.members[0]);
                    self.assign_gang(model, *span, gang, kept);
                }
            }
        }
    }

    /// Whether a shard's KV cache is large enough for every session that waits for a stage.
    fn is_roomy(&self, shard: &Held) -> bool {
        shard.kv_pages == 0
            || shard.kv_pages >= pages_for(self.models[shard.model].kv_positions_needed)
    }

    /// The plan for `range`, over such workers that are here and have room, and over tensor
    /// groups of them as the operator wants it.
    fn solve(
        &self,
        model: usize,
        range: Span,
        who: Who,
        room: &Room<'_>,
    ) -> Option<(Vec<Taker>, Plan)> {
        let alone = || self.solve_with(model, range, who, room, &[], true);
        let sizes = match self.config.tensor {
            Tensor::Off => return alone(),
            Tensor::Groups(n) => vec![n as usize],
            Tensor::Auto => groups::sizes(&self.models[model].spec).into_iter().collect(),
        };
        let free = |id: &WorkerId| if room.busy.contains_key(id) { 0 } else { (room.left)(id) };
        let wishes = [Wish::Speed, Wish::Room];
        let gangs = sizes
            .iter()
            .flat_map(|n| wishes.map(|wish| self.gangs(model, *n, wish, room.fresh, &free)));
        let gangs: Vec<Vec<Gang>> = gangs.filter(|gangs| !gangs.is_empty()).collect();
        let forms = |(takers, plan): &(Vec<Taker>, Plan)| {
            plan.stages.iter().any(|(c, _)| matches!(takers[*c], Taker::Gang(_)))
        };
        match self.config.tensor {
            Tensor::Off => alone(),
            Tensor::Groups(_) => {
                // Groups alone where they have room for all, then groups and others.
                let tries = [false, true]
                    .into_iter()
                    .flat_map(|mixed| gangs.iter().map(move |gangs| (gangs, mixed)));
                let mut found = tries.filter_map(|(gangs, mixed)| {
                    self.solve_with(model, range, who, room, gangs, mixed).filter(forms)
                });
                found.next().or_else(alone)
            }
            Tensor::Auto => {
                let gangs = gangs.iter().filter(|gangs| self.are_apart(gangs));
                let found = gangs.filter_map(|gangs| {
                    self.solve_with(model, range, who, room, gangs, true).filter(forms)
                });
                let divided = found.min_by(|a, b| a.1.cost_s.total_cmp(&b.1.cost_s));
                match (alone(), divided) {
                    (Some(alone), Some(divided)) => {
                        let pays = divided.1.cost_s < alone.1.cost_s * BETTER;
                        Some(if pays { divided } else { alone })
                    }
                    (alone, divided) => alone.or(divided),
                }
            }
        }
    }

    /// Whether the members of each group are on machines of their own, as far as is known:
    /// those of one machine share what their speeds were measured on.
    fn are_apart(&self, gangs: &[Gang]) -> bool {
        gangs.iter().all(|gang| {
            let machines = gang.members.iter().map(|id| self.workers[id].machine);
            machines.collect::<BTreeSet<u64>>().len() == gang.members.len()
        })
    }

    /// The same with these groups, whose members take no layers by themselves; nobody else
    /// does unless `mixed`.
    fn solve_with(
        &self,
        model: usize,
        range: Span,
        who: Who,
        room: &Room<'_>,
        gangs: &[Gang],
        mixed: bool,
    ) -> Option<(Vec<Taker>, Plan)> {
        let spec = &self.models[model].spec;
        let parts: Vec<PartLoad> = (0..spec.parts.len()).map(|p| self.part_load(spec, p)).collect();
        let able = |w: &Worker| !w.draining && who.includes(w) && spec.class_for(&w.spec).is_some();
        let ranks: BTreeSet<WorkerId> = gangs.iter().flat_map(|g| &g.members).copied().collect();
        let others = || self.workers.values().filter(|w| able(w) && !ranks.contains(&w.spec.id));
        // Where nobody else can, the first group's leader holds the ends beside its share.
        let ends = [&parts[0], &parts[parts.len() - 1]].map(|part| part.memory_bytes);
        let ends_bytes = ends[0] + ends[1] + 2 * self.config.scratch_bytes - tied_bytes(spec);
        let needs_ends = range.first == 0 || range.end as usize == parts.len();
        let held = |w: &Worker| w.may_hold_ends() && (room.left)(&w.spec.id) >= ends_bytes;
        let host = (needs_ends && !others().any(held)).then(|| Some(gangs.first()?.members[0]));
        let host = host.flatten();
        // What comes to most of them and goes from them are rows between layers.
        let layer = Span { first: 1, end: 2 };
        let mut takers = Vec::new();
        let mut candidates = Vec::new();
        for w in self.workers.values().filter(|w| able(w)) {
            let id = w.spec.id;
            let is_host = host == Some(id);
            if ranks.contains(&id) && !is_host {
                continue;
            }
            let beyond = |h: &Held| h.rank.is_some() && !(room.freed)(h);
            let layers = w.spec.holds == Holds::Anything && !w.held.values().any(beyond);
            takers.push(Taker::One(id));
            candidates.push(Candidate {
                memory_bytes: (room.left)(&id).min(if is_host { ends_bytes } else { u64::MAX }),
                ends: w.may_hold_ends(),
                layers: layers && !is_host && mixed,
                s_per_byte: w.s_per_byte[0] / w.survival(),
                hop_s: w.row_hop_s(spec, layer) / w.survival(),
                layer_s: 0.0,
                missing_bytes: missing_bytes(spec, w),
            });
        }
        let left = |id: &WorkerId| {
            let kept = if host == Some(*id) { ends_bytes } else { 0 };
            (room.left)(id).saturating_sub(kept)
        };
        for gang in gangs {
            let division = &spec.divisions[gang.division];
            let members = || gang.members.iter().map(|id| &self.workers[id]);
            let survival: f64 = members().map(Worker::survival).product();
            let missing = members().map(|w| missing_bytes(spec, w));
            let missing = missing.reduce(|a, b| a.iter().zip(b).map(|(a, b)| *a.max(&b)).collect());
            // One that is counts as what it takes, not as what it should.
            let [s_per_byte, layer_s] = match self.gang_measured(model, gang) {
                Some(s_per_byte) => [s_per_byte, 0.0],
                None => [
                    gang.s_per_byte(division, &self.workers)[0],
                    gang.layer_s(division, &self.workers),
                ],
            };
            candidates.push(Candidate {
                memory_bytes: self.gang_memory(model, gang, &left),
                ends: false,
                layers: true,
                s_per_byte: s_per_byte / survival,
                hop_s: self.workers[&gang.members[0]].row_hop_s(spec, layer) / survival,
                layer_s: layer_s / survival,
                missing_bytes: missing.unwrap_or_default(),
            });
            takers.push(Taker::Gang(gang.clone()));
        }
        let live = self.index.live_of(model);
        let problem = Problem {
            parts: &parts,
            tied_bytes: tied_bytes(spec),
            range,
            candidates: &candidates,
            stage_bytes: self.config.scratch_bytes,
            sessions: live.max(1) as f64,
        };
        placement::plan(&problem).map(|plan| (takers, plan))
    }

    fn part_load(&self, spec: &ModelSpec, part: usize) -> PartLoad {
        let is_layer = part > 0 && part + 1 < spec.parts.len();
        let kv = if is_layer { self.kv_bytes_min(spec) } else { 0 };
        let weights: u64 = spec.parts[part].blobs.iter().map(|b| b.bytes).sum();
        PartLoad { memory_bytes: weights + kv, work_bytes: spec.parts[part].work_bytes }
    }
}

/// By part, weight bytes that a worker would have to fetch.
fn missing_bytes(spec: &ModelSpec, w: &Worker) -> Vec<u64> {
    let fetch = |b: &&BlobRef| w.spec.kind != WorkerKind::Embedded && !w.cached.contains(&b.hash);
    let of = |p: &PartSpec| p.blobs.iter().filter(fetch).map(|b| b.bytes).sum();
    spec.parts.iter().map(of).collect()
}

/// Bytes that the embedding and the head share.
fn tied_bytes(spec: &ModelSpec) -> u64 {
    let head = &spec.parts[spec.parts.len() - 1].blobs;
    let shared = |b: &&BlobRef| head.iter().any(|h| h.hash == b.hash);
    spec.parts[0].blobs.iter().filter(shared).map(|b| b.bytes).sum()
}
