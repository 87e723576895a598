//! What the fleet looks like now.

use std::collections::BTreeSet;

use protocol::{AssignmentId, Span, WorkerId};

use crate::Scheduler;
use crate::assign::unique_bytes;
use crate::event::{FleetView, ModelView, RankView, SessionView, ShardView, WorkerView};
use crate::fleet::{Held, Worker, layer_count};
use crate::session::{Phase, Session};

impl Scheduler {
    /// A picture of models, workers and sessions, for people and for the API.
    pub fn view(&self) -> FleetView {
        FleetView {
            models: (0..self.models.len()).map(|m| self.model_view(m)).collect(),
            workers: self.workers.values().map(|w| self.worker_view(w)).collect(),
            sessions: self
                .sessions
                .values()
                .filter(|s| s.is_live())
                .map(|s| self.session_view(s))
                .collect(),
            queued: self.queue.len(),
            cached_sessions: self.index.cached.len(),
            log_bytes: self.index.log_bytes,
            audits_missed: self.audits_missed(),
            tokens_embedded: self.tokens_embedded,
            traffic: self.traffic,
        }
    }

    /// Rows that a worker has computed since it joined; none if it is not here.
    pub fn rows_of(&self, worker: WorkerId) -> u64 {
        self.workers.get(&worker).map_or(0, |w| w.rows)
    }

    /// Audits that were drawn and not carried out so far: there was no room for them, the log
    /// had forgotten the rows, or nobody could replay them. A later draw may have made up for it.
    pub fn audits_missed(&self) -> u64 {
        self.audits.missed()
    }

    /// The speed behind each layer of a model, weight bytes a second: every holder's rate,
    /// weighted by its chance to stay and divided among the layers that it holds.
    ///
    /// # Panics
    /// If there is no such model.
    pub fn layer_rates(&self, model: &str) -> Vec<u64> {
        let model = self.model_index(model).expect("the model is served");
        let parts = &self.index.models[model].parts;
        parts[1..parts.len() - 1].iter().map(|part| part.rate).collect()
    }

    /// What must hold after every event, for the simulation to ask.
    ///
    /// # Panics
    /// If it does not: a broken invariant is a fault of this crate.
    pub fn check_invariants(&self) {
        assert!(!self.sessions.is_touched() && !self.workers.is_touched(), "indexes left behind");
        assert_eq!(self.index, self.fresh_index(), "an index is wrong");
        let queued = self.queue.iter().map(|(r, _)| (r.deadline, r.id));
        let running = self.requests.iter().map(|(id, r)| (r.deadline, *id));
        let deadlines: BTreeSet<_> = queued.chain(running).collect();
        assert_eq!(self.request_deadlines, deadlines, "requests without a deadline or beyond");
        let keys = self.workers.values().map(|w| (w.spec.key.clone(), w.spec.id));
        assert_eq!(self.keys, keys.collect(), "workers without a key or beyond");
        assert!(self.audits.standings.here().eq(self.keys.keys()), "standings of others are kept");
        for (id, worker) in self.workers.iter() {
            let promised = worker.memory_used(|_| true);
            assert!(
                promised <= worker.spec.memory_bytes,
                "worker {id} lends {} and is given {promised}: {:?}",
                worker.spec.memory_bytes,
                worker.held.values().map(|h| (h.span, h.own_bytes)).collect::<Vec<_>>()
            );
            assert!(worker.in_flight.len() <= worker.spec.step_credits as usize);
            for (assignment, held) in &worker.held {
                let used: u32 = held.pages.values().sum();
                assert!(used <= held.kv_pages, "worker {id} promises more pages than it has");
                for session in held.pages.keys() {
                    let uses = |s: &Session| s.layered_shards().any(|a| a == *assignment);
                    let known = self.sessions.get(session).is_some_and(uses);
                    assert!(known, "pages of session {session} leak on worker {id}");
                }
            }
        }
        for session in self.sessions.values() {
            let shards: Vec<AssignmentId> = session.layered_shards().collect();
            let distinct: BTreeSet<AssignmentId> = shards.iter().copied().collect();
            assert_eq!(shards.len(), distinct.len(), "session {} enters a shard twice", session.id);
            for pair in session.stages.windows(2) {
                assert_eq!(pair[0].span.end, pair[1].span.first, "a route with a gap");
            }
        }
        self.check_audits();
        self.check_groups();
        let bounded = self.index.log_bytes <= self.config.log_bytes_max;
        assert!(bounded || self.config.audits.full, "logs beyond their bound");
    }

    fn model_view(&self, model: usize) -> ModelView {
        let spec = &self.models[model].spec;
        let missing = self.missing(model).map(|missing| match self.shortfall(model) {
            Some(shortfall) => format!("{missing} ({shortfall})"),
            None => missing,
        });
        let layers = (1..spec.parts.len() as u32 - 1).map(|first| Span { first, end: first + 1 });
        ModelView {
            name: spec.name.clone(),
            layers: spec.parts.len() as u32 - 2,
            layer_bytes_max: layers.map(|span| unique_bytes(spec, span)).max().unwrap_or(0),
            weight_bytes: unique_bytes(spec, self.models[model].whole()),
            kv_bytes_per_position: spec.kv_bytes_per_position(),
            context: spec.context,
            classes: spec.classes.iter().map(|class| class.name.clone()).collect(),
            covered: missing.is_none(),
            missing,
            replicas: self.index.models[model].parts.iter().map(|p| p.ready() as u32).collect(),
        }
    }

    fn worker_view(&self, worker: &Worker) -> WorkerView {
        let spec = &worker.spec;
        let state = match () {
            () if worker.draining => "draining",
            () if worker.held.is_empty() => "idle",
            () if worker.held.values().all(|h| h.ready) => "ready",
            () => "loading",
        };
        // The sessions of a tensor group are with its leader, their KV with all ranks.
        let pages_of = |assignment: AssignmentId, held: &Held| {
            let group = held.rank.as_ref().map_or(assignment, |rank| rank.group);
            let leader = self.groups.get(&group).map(|group| group.members[0].0);
            let leader = leader.and_then(|leader| self.workers.get(&leader)?.held.get(&group));
            leader.unwrap_or(held).pages.values().sum()
        };
        let shards = worker.held.iter().map(|(assignment, held)| {
            let model = &self.models[held.model].spec;
            let last = model.parts.len() as u32 - 1;
            let layers = layer_count(model, held.span);
            let first = held.span.first.max(1) - 1;
            ShardView {
                assignment: *assignment,
                model: model.name.clone(),
                class: held.class.clone(),
                layers: (layers > 0).then(|| (first, first + layers - 1)),
                embedding: held.span.first == 0,
                head: held.span.end == last + 1,
                ready: held.ready,
                weight_bytes: held.weight_bytes,
                kv_pages: (pages_of(*assignment, held), held.kv_pages),
                rank: held.rank.as_ref().map(|rank| RankView {
                    leader: self.groups[&rank.group].members[0].0,
                    rank: rank.rank,
                    weights: rank.weights.clone(),
                }),
            }
        });
        let model = worker.held.values().next().map_or(0, |h| h.model);
        let per_layer = self.models.get(model).map_or(0.0, |m| {
            let parts = &m.spec.parts[1..m.spec.parts.len() - 1];
            let bytes: u64 = parts.iter().map(|p| p.work_bytes).sum();
            bytes as f64 / parts.len() as f64
        });
        let seconds = worker.s_per_byte[0] * per_layer;
        WorkerView {
            id: spec.id,
            key: spec.key.clone(),
            name: spec.name.clone(),
            kind: spec.kind,
            backend: spec.backend.clone(),
            device: spec.device.clone(),
            notes: spec.notes.clone(),
            hidden: worker.hidden,
            trusted: spec.trusted,
            state,
            memory_bytes: spec.memory_bytes,
            shards: shards.collect(),
            bytes_per_s: worker.s_per_byte.map(|s| if s > 0.0 { 1.0 / s } else { 0.0 }),
            classes: spec.classes.clone(),
            layer_tokens_per_s: if seconds > 0.0 { 1.0 / seconds } else { 0.0 },
            hop_ms: worker.hop_s * 1e3,
            steps_in_flight: worker.in_flight.len() as u32,
            rows: worker.rows,
            boundary_dtype: self.link_dtype(worker),
            traffic: worker.traffic,
            standing: spec.standing,
            idle_because: worker.idle_because.clone(),
        }
    }

    fn session_view(&self, session: &Session) -> SessionView {
        let waiting_for = self.waits_for(session.id);
        let replays = session.recoveries > 0
            && session.stages.iter().any(|s| s.layers && s.done + 1 < session.wanted());
        let state = match session.phase {
            _ if waiting_for.is_some() => "waiting",
            Phase::Verifying => "verifying",
            _ if replays => "replay",
            Phase::Following => "prefill",
            _ if session.positions() == session.prompt_len && session.phase == Phase::Computing => {
                "prefill"
            }
            _ => "decode",
        };
        let route = session.stages.iter();
        SessionView {
            id: session.id,
            request: session.request,
            model: self.models[session.model].spec.name.clone(),
            route: route.filter_map(|s| Some((s.holder?.0, s.span.first, s.span.end))).collect(),
            prompt_tokens: session.prompt_len,
            tokens: session.positions() - session.prompt_len,
            state,
            waiting_for,
            recoveries: session.recoveries,
        }
    }
}
