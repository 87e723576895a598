//! Tensor groups: one stage whose layers are divided among several workers.
//!
//! To all else the leader, rank 0, is the holder of the shard: sessions, steps and KV pages are
//! its. The followers hold their shares under assignments of their own, which no route uses.
//! The shard is ready when all ranks are, and lost with any of them. A member holds no other
//! layers: two groups that wait for each other's workers would wait for ever.
//!
//! Only trusted native workers take part: a rank's share of the work cannot be audited by
//! itself, and all ranks see what the others compute.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use protocol::{Assignment, AssignmentId, Span, TensorRank, ToWorker, WorkerId, WorkerKind};

use crate::Scheduler;
use crate::assign::unique_bytes;
use crate::event::{Action, DivisionSpec, ModelSpec, Note};
use crate::fleet::{Held, PAGE_POSITIONS, Worker, describe, has_layers, layer_count, pages_for};

/// Of the memory left beside the weights, the share that KV caches may take.
const KV_SHARE: f64 = 0.75;

/// Bytes of rows in f32 that a leader passes on to its followers for one step: they wait for
/// all of them, and every exchange of the step has about as many.
const ORDER_BYTES_MAX: usize = 512 << 10;
/// How soon groups are tried again that nobody could form because sessions were in flight.
pub(crate) const REGROUP_RETRY: Duration = Duration::from_secs(5);

/// When groups are formed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tensor {
    /// Never.
    #[default]
    Off,
    /// Where the planner finds that it pays, or that the layers cannot be held otherwise.
    Auto,
    /// Groups of so many, among all workers that can take part.
    Groups(u32),
}

/// A group that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub model: usize,
    pub span: Span,
    /// Its members and their own assignments, by rank; the leader's names the group.
    pub members: Vec<(WorkerId, AssignmentId)>,
}

/// A shard's place in a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Rank {
    /// The group: its leader's assignment.
    pub group: AssignmentId,
    /// Which, from 0.
    pub rank: u32,
    /// By rank, how much of a layer it computes.
    pub weights: Vec<u32>,
    /// The rank's shard is loaded, whether or not those of the others are.
    pub loaded: bool,
}

/// A group that a plan would form.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gang {
    /// By rank.
    pub members: Vec<WorkerId>,
    /// Which of the model's divisions.
    pub division: usize,
}

/// What a plan's candidate stands for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Taker {
    One(WorkerId),
    Gang(Gang),
}

/// What a division is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// The shortest step.
    Speed,
    /// The most layers.
    Room,
}

impl Gang {
    /// Seconds a weight byte of the whole takes at one row, and at 8 (each byte counted once a
    /// step), all but the exchanges: those of the slowest rank.
    pub fn s_per_byte(
        &self,
        division: &DivisionSpec,
        workers: &BTreeMap<WorkerId, Worker>,
    ) -> [f64; 2] {
        let of = |i: usize| {
            let ranks = self.members.iter().zip(&division.ranks);
            let s = ranks.map(|(id, rank)| workers[id].s_per_byte[i] * rank.weights);
            s.fold(0.0, f64::max)
        };
        [of(0), of(1)]
    }

    /// Seconds that the exchanges of one layer take: each goes from every rank to the
    /// coordinator and on to the others, half a round trip of the two slowest.
    pub fn layer_s(&self, division: &DivisionSpec, workers: &BTreeMap<WorkerId, Worker>) -> f64 {
        let mut hops: Vec<f64> = self.members.iter().map(|id| workers[id].hop_s).collect();
        hops.sort_by(|a, b| b.total_cmp(a));
        f64::from(division.exchanges) * (hops[0] + hops[1]) / 2.0
    }
}

impl Scheduler {
    /// Groups of `n` that could be formed for a model's layers, the fastest workers together.
    /// `left` is the memory that each has for it, `fresh` says that what it holds of this model
    /// does not count.
    pub(crate) fn gangs(
        &self,
        model: usize,
        n: usize,
        wish: Wish,
        fresh: bool,
        left: &dyn Fn(&WorkerId) -> u64,
    ) -> Vec<Gang> {
        let spec = &self.models[model].spec;
        let divided = |class: &str| {
            let divisions = spec.divisions.iter().filter(|d| d.ranks.len() == n);
            divisions.into_iter().any(|d| d.classes.iter().any(|c| c == class))
        };
        let able = |w: &&Worker| {
            self.may_be_rank(w, model, fresh)
                && spec.class_for(&w.spec).is_some_and(|class| divided(&class.name))
                && left(&w.spec.id) > 0
        };
        let mut by_class: BTreeMap<&str, Vec<&Worker>> = BTreeMap::new();
        for worker in self.workers.values().filter(able) {
            let class = spec.class_for(&worker.spec).expect("who is able has one");
            by_class.entry(&class.name).or_default().push(worker);
        }
        let mut gangs = Vec::new();
        for (class, mut workers) in by_class {
            let memory = |w: &Worker| left(&w.spec.id);
            workers.sort_by(|a, b| match wish {
                Wish::Speed => a.s_per_byte[0].total_cmp(&b.s_per_byte[0]),
                Wish::Room => memory(b).cmp(&memory(a)),
            });
            for members in workers.chunks_exact(n) {
                let members: Vec<WorkerId> = members.iter().map(|w| w.spec.id).collect();
                let divisions = spec.divisions.iter().enumerate();
                let divisions = divisions
                    .filter(|(_, d)| d.ranks.len() == n && d.classes.iter().any(|c| c == class));
                let gang = |division| Gang { members: members.clone(), division };
                // Less is better.
                let badness = |gang: &Gang| match wish {
                    Wish::Speed => {
                        gang.s_per_byte(&spec.divisions[gang.division], &self.workers)[0]
                    }
                    Wish::Room => -(self.gang_memory(model, gang, left) as f64),
                };
                let best = divisions.map(|(division, _)| gang(division));
                let best = best.min_by(|a, b| badness(a).total_cmp(&badness(b)));
                gangs.extend(best);
            }
        }
        gangs
    }

    /// Whether a worker may be given a share of a model's layers.
    fn may_be_rank(&self, w: &Worker, model: usize, fresh: bool) -> bool {
        let holds_none = w.held.values().all(|h| {
            fresh && h.model == model || !has_layers(h.span, self.models[h.model].spec.parts.len())
        });
        w.spec.trusted
            && w.spec.kind == WorkerKind::Native
            && w.spec.holds == crate::event::Holds::Anything
            && !w.draining
            && holds_none
            // Hops that are only assumed would decide whether a group pays.
            && (w.hop_known || self.config.tensor != Tensor::Auto)
            && !self.pauses.has(&w.spec.key, self.now, self.urgent)
    }

    /// Memory of whole layers that a group has room for, scratch of one shard included: the
    /// rank that is full first says how much.
    pub(crate) fn gang_memory(
        &self,
        model: usize,
        gang: &Gang,
        left: &dyn Fn(&WorkerId) -> u64,
    ) -> u64 {
        let scratch = self.config.scratch_bytes;
        let division = &self.models[model].spec.divisions[gang.division];
        let room = gang.members.iter().zip(&division.ranks).map(|(id, rank)| {
            let share = rank.weights.max(rank.kv);
            (left(id).saturating_sub(scratch) as f64 / share) as u64
        });
        room.min().unwrap_or(0).saturating_add(scratch)
    }

    /// Memory that each member needs at least for its share of a span, bytes.
    pub(crate) fn least_gang_memory(&self, model: usize, gang: &Gang, span: Span) -> Vec<u64> {
        let spec = &self.models[model].spec;
        let (weights, kv) = (unique_bytes(spec, span) as f64, self.kv_bytes_min(spec) as f64);
        let kv = kv * f64::from(layer_count(spec, span));
        let ranks = spec.divisions[gang.division].ranks.iter();
        ranks
            .map(|r| (weights * r.weights + kv * r.kv) as u64 + self.config.scratch_bytes)
            .collect()
    }

    /// What a group that is takes for a weight byte of its layers at one row, seconds, exchanges
    /// included, if these workers are one: as it was predicted, and measured since.
    pub(crate) fn gang_measured(&self, model: usize, gang: &Gang) -> Option<f64> {
        let leader = self.workers.get(&gang.members[0])?;
        let weights = &self.models[model].spec.divisions[gang.division].weights;
        let mut groups = self.groups.iter();
        let (id, _) = groups.find(|(_, group)| {
            group.model == model && group.members.iter().map(|m| &m.0).eq(&gang.members)
        })?;
        let rank = leader.held.get(id)?.rank.as_ref()?;
        leader.group_s_per_byte.filter(|_| rank.weights == *weights).map(|s| s[0])
    }

    /// Whether a group holds this already.
    pub(crate) fn has_group(&self, model: usize, gang: &Gang, span: Span) -> bool {
        self.groups.values().any(|g| {
            let members = g.members.iter().map(|(id, _)| id);
            g.model == model && g.span == span && members.eq(&gang.members)
        })
    }

    /// Forms a group and gives its members their shares of a span. `kept` bytes stay free on
    /// its leader for another shard.
    pub(crate) fn assign_gang(&mut self, model: usize, span: Span, gang: &Gang, kept: u64) {
        let least = self.least_gang_memory(model, gang, span);
        let spec = &self.models[model].spec;
        let division = spec.divisions[gang.division].clone();
        let Some(leader) = self.workers.get(&gang.members[0]) else { return };
        let class = spec.class_for(&leader.spec).expect("only who has a class is chosen").clone();
        let layers = f64::from(layer_count(spec, span));
        let page = layers * class.kv_bytes_per_position as f64 * f64::from(PAGE_POSITIONS);
        let kv_min = layers * self.kv_bytes_min(spec) as f64;
        let mut kv_pages = pages_for(self.config.kv_positions_max);
        for (i, id) in gang.members.iter().enumerate() {
            let kept = if i == 0 { kept } else { 0 };
            let spare = self.workers[id].memory_free().saturating_sub(least[i] + kept) as f64;
            let kv = kv_min * division.ranks[i].kv + spare * KV_SHARE;
            kv_pages = kv_pages.min((kv / (page * division.ranks[i].kv)) as u32);
        }
        let weights = unique_bytes(spec, span);
        let blobs: Vec<_> = {
            let mut once: BTreeSet<&str> = BTreeSet::new();
            let all = crate::assign::span_blobs(spec, span);
            all.filter(|b| once.insert(&b.hash)).cloned().collect()
        };
        let (name, manifest) = (spec.name.clone(), spec.manifest.clone());
        let what = format!("{} of {name}", describe(spec, span));
        let group = AssignmentId(self.next_assignment);
        let assignments = (0..gang.members.len() as u64).map(|i| AssignmentId(group.0 + i));
        let members: Vec<_> = gang.members.iter().copied().zip(assignments).collect();
        self.next_assignment += gang.members.len() as u64;
        self.actions.push_back(Action::Group { group, members: gang.members.clone() });
        let s_per_byte = gang.s_per_byte(&division, &self.workers);
        let exchanges_s = layers * gang.layer_s(&division, &self.workers);
        let per_byte = exchanges_s / (self.models[model].work_bytes(span) as f64).max(1.0);
        for (i, &(id, assignment)) in members.iter().enumerate() {
            let rank = &division.ranks[i];
            let weight_bytes = (weights as f64 * rank.weights) as u64;
            let kv_bytes = (f64::from(kv_pages) * page * rank.kv) as u64;
            let held = Held {
                model,
                class: class.name.clone(),
                span,
                ready: false,
                loading: (0, self.now.plus(self.config.load_patience)),
                weight_bytes,
                own_bytes: self.config.scratch_bytes + weight_bytes + kv_bytes,
                // It keeps a share of each, and shares none with another shard.
                blobs: Vec::new(),
                kv_pages,
                pages: BTreeMap::new(),
                rank: Some(Rank {
                    group,
                    rank: i as u32,
                    weights: division.weights.clone(),
                    loaded: false,
                }),
            };
            let message = ToWorker::Assign(Assignment {
                id: assignment,
                model: name.clone(),
                manifest: manifest.clone(),
                span,
                class: class.name.clone(),
                blobs: blobs.clone(),
                kv_pages,
                tensor: Some(TensorRank {
                    group,
                    rank: i as u32,
                    form: division.form.clone(),
                    weights: division.weights.clone(),
                }),
            });
            let worker = self.workers.get_mut(&id).expect("members are here");
            worker.held.insert(assignment, held);
            worker.idle_because = None;
            if i == 0 {
                worker.group_s_per_byte = Some(s_per_byte.map(|s| s + per_byte));
            }
            self.actions.push_back(Action::Control { worker: id, message });
            let of = members.len();
            let what = format!("{what}, as rank {i} of {of}");
            self.note(Note::Assigned { worker: id, what });
        }
        self.groups.insert(group, Group { model, span, members });
    }

    /// A rank's shard is loaded; the group's shard is ready once all are. Tells whether it is.
    pub(crate) fn rank_loaded(&mut self, id: WorkerId, assignment: AssignmentId) -> bool {
        let held = self.workers.get_mut(&id).and_then(|w| w.held.get_mut(&assignment));
        let Some(Held { rank: Some(rank), ready, .. }) = held else { return false };
        rank.loaded = true;
        *ready = rank.rank > 0;
        let group = rank.group;
        let members = &self.groups[&group].members;
        let loaded = |(id, assignment): &(WorkerId, AssignmentId)| {
            let rank = self.workers[id].held[assignment].rank.as_ref();
            rank.is_some_and(|rank| rank.loaded)
        };
        if !members.iter().all(loaded) {
            return false;
        }
        let (leader, assignment) = members[0];
        let leader = self.workers.get_mut(&leader).expect("members are here");
        leader.held.get_mut(&assignment).expect("it holds its share").ready = true;
        true
    }

    /// Ends the groups that a worker is a member of, which may be gone by now. Answers how
    /// many sessions in flight went through them, beside those counted with the worker itself.
    pub(crate) fn dissolve_groups_of(&mut self, id: WorkerId) -> usize {
        let is_member = |group: &Group| group.members.iter().any(|m| m.0 == id);
        let over = self.groups.iter().filter(|(_, group)| is_member(group));
        let over: Vec<AssignmentId> = over.map(|(group, _)| *group).collect();
        over.into_iter().map(|group| self.dissolve(group)).sum()
    }

    /// Ends a group: its members that are here are free to be given something else. Answers how
    /// many sessions in flight went through it.
    pub(crate) fn dissolve(&mut self, group: AssignmentId) -> usize {
        let Some(Group { members, .. }) = self.groups.remove(&group) else { return 0 };
        self.actions.push_back(Action::Ungroup { group });
        for &(id, assignment) in &members {
            let Some(worker) = self.workers.get_mut(&id) else { continue };
            worker.held.remove(&assignment);
            worker.group_s_per_byte = None;
            worker.grant_steps(self.now);
            let message = ToWorker::Unassign { assignment };
            self.actions.push_back(Action::Control { worker: id, message });
        }
        let (leader, assignment) = members[0];
        let sessions = self.lose_stages(leader, Some(assignment));
        self.place_soon();
        sessions
    }

    /// A group's shard broke: its members serve by themselves for a while, for it may be the
    /// fault of any; or only the one that could not load its share.
    pub(crate) fn group_failed(&mut self, id: WorkerId, group: AssignmentId, why: &str) {
        let Some(members) = self.groups.get(&group).map(|g| g.members.clone()) else { return };
        let loaded = |(worker, assignment): &(WorkerId, AssignmentId)| {
            let rank = self.workers[worker].held[assignment].rank.as_ref();
            rank.is_some_and(|rank| rank.loaded)
        };
        let unable = members.iter().find(|m| m.0 == id && !loaded(m)).copied();
        self.pause_groups(unable.as_ref().map_or(&members[..], std::slice::from_ref));
        let what = self.span_in_words(self.groups[&group].model, self.groups[&group].span);
        self.note(Note::GroupFailed { worker: id, what, reason: why.to_owned() });
        self.dissolve(group);
    }

    /// Keeps workers out of groups for a while.
    pub(crate) fn pause_groups(&mut self, members: &[(WorkerId, AssignmentId)]) {
        for (id, _) in members {
            if let Some(worker) = self.workers.get(id) {
                self.pauses.begin(&worker.spec.key, self.now);
            }
        }
        self.group_at = self.pauses.next(self.now);
    }

    /// A worker's step is late, and it may be blocked in a group: whoever of that made it wait
    /// is not known, so the group ends, and its steps have their time again. Tells whether so.
    pub(crate) fn step_late_in_group(&mut self, id: WorkerId) -> bool {
        let Some(worker) = self.workers.get(&id) else { return false };
        let ranks = worker.held.values().filter_map(|h| h.rank.as_ref());
        let mut groups = ranks.map(|rank| rank.group);
        let is_ready = |group: &AssignmentId| {
            let leader = self.workers.get(&self.groups[group].members[0].0);
            leader.is_some_and(|leader| leader.held[group].ready)
        };
        let Some(group) = groups.find(is_ready) else { return false };
        self.group_failed(id, group, "a step was not answered in time");
        true
    }

    /// Lets workers go from the groups of other models, for one that lacks them: if it could be
    /// held by them, and those models without groups. Tells whether there were any.
    pub(crate) fn take_from_groups(&mut self, model: usize) -> bool {
        let of_others = self.groups.iter().filter(|(_, group)| group.model != model);
        let of_others: Vec<(AssignmentId, usize)> =
            of_others.map(|(id, group)| (*id, group.model)).collect();
        let over: Vec<AssignmentId> = of_others
            .into_iter()
            .filter(|(_, other)| self.fits_alone(*other, |h| h.model == *other))
            .map(|(group, _)| group)
            .collect();
        let is_freed = |h: &Held| {
            let rank = h.rank.as_ref();
            h.model == model || rank.is_some_and(|rank| over.contains(&rank.group))
        };
        if over.is_empty() || !self.fits_alone(model, is_freed) {
            return false;
        }
        for group in over {
            let members = self.groups[&group].members.clone();
            self.pause_groups(&members);
            self.dissolve(group);
        }
        true
    }

    /// What must hold of the groups after every event.
    pub(crate) fn check_groups(&self) {
        for (group, Group { model, span, members }) in &self.groups {
            assert_eq!(members[0].1, *group, "a group is named after its leader's assignment");
            let mut loaded = true;
            for (i, (id, assignment)) in members.iter().enumerate() {
                let worker = self.workers.get(id).expect("a lost member's group is over");
                assert!(worker.spec.trusted && !worker.draining, "worker {id} in group {group}");
                let held = worker.held.get(assignment).expect("a rank's group has it");
                assert_eq!((held.model, held.span), (*model, *span), "a rank of other layers");
                let rank = held.rank.as_ref().expect("a rank knows that it is one");
                assert_eq!((rank.group, rank.rank as usize), (*group, i));
                loaded &= rank.loaded;
                assert!(held.pages.is_empty() || i == 0, "sessions on rank {i} of group {group}");
                let layers = worker
                    .held
                    .values()
                    .filter(|h| has_layers(h.span, self.models[h.model].spec.parts.len()));
                assert_eq!(layers.count(), 1, "worker {id} holds layers beside its share");
            }
            let leader = &self.workers[&members[0].0].held[group];
            assert_eq!(leader.ready, loaded, "a group is ready when all of its ranks are");
        }
        for worker in self.workers.values() {
            let ranks = worker.held.values().filter_map(|h| h.rank.as_ref());
            for rank in ranks {
                assert!(self.groups.contains_key(&rank.group), "a rank of no group");
            }
        }
    }
}

/// Rows of D values that a step may have on its way to a group.
pub(crate) fn order_rows_max(width: usize) -> u32 {
    ((ORDER_BYTES_MAX / (4 * width.max(1))) as u32).max(1)
}

/// Whether a model can be divided at all.
pub(crate) fn sizes(spec: &ModelSpec) -> BTreeSet<usize> {
    spec.divisions.iter().map(|d| d.ranks.len()).collect()
}
