//! What those get whom no plan needs: a replica, or the reason why they hold nothing.

use std::collections::BTreeSet;

use protocol::{BlobRef, Span, ToWorker, WorkerId, clean_text};

use crate::cover::span_blobs;
use crate::event::{Action, ModelSpec};
use crate::fleet::{Held, Worker, layer_count};
use crate::{Model, Scheduler};

impl Scheduler {
    /// Gives whoever holds nothing a replica of the layers that have the least speed behind
    /// them, as many as fit; and says why where nothing fits.
    pub(crate) fn replicate(&mut self) {
        let idle: Vec<WorkerId> = self
            .workers
            .iter()
            .filter(|(_, w)| w.held.is_empty() && !w.draining)
            .map(|(id, _)| *id)
            .collect();
        for id in idle {
            if self.models.is_empty() {
                self.set_idle(id, "no model is served yet");
                continue;
            }
            let mut windows: Vec<(f64, usize, Span)> = Vec::new();
            for model in 0..self.models.len() {
                let uncovered = !self.gaps(model, |_| true).is_empty();
                if let Some((rate, span)) = self.weakest_window(id, model).filter(|_| !uncovered) {
                    windows.push((rate, model, span));
                }
            }
            windows.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            match windows.first() {
                Some(&(_, model, span)) => {
                    let tab = self.workers[&id].is_browser();
                    let config = &self.config;
                    let positions_max =
                        if tab { config.tab_kv_positions_max } else { config.kv_positions_max };
                    self.assign(id, model, span, 0, positions_max);
                }
                None => self.set_idle(id, &self.why_idle(id)),
            }
        }
    }

    /// Notes why a worker holds nothing, and tells it if that is news.
    fn set_idle(&mut self, id: WorkerId, why: &str) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.idle_because.as_deref() != Some(why) {
            worker.idle_because = Some(why.to_owned());
            let message = ToWorker::Idle { reason: clean_text(why) };
            self.actions.push_back(Action::Control { worker: id, message });
        }
    }

    fn why_idle(&self, id: WorkerId) -> String {
        let worker = &self.workers[&id];
        if !worker.may_hold_layers() {
            return "it holds only embedding and head, and others do already".to_owned();
        }
        let shortfall = self.models.iter().find_map(|m| m.shortfall.clone());
        let speaks = |m: &Model| m.spec.class_for(&worker.spec).is_some();
        match shortfall {
            _ if !self.models.iter().any(speaks) => {
                let has = worker.spec.classes.join(", ");
                let needed = self.models.iter().flat_map(|m| &m.spec.classes);
                let needed: BTreeSet<&str> = needed.map(|class| class.name.as_str()).collect();
                let needed = needed.into_iter().collect::<Vec<_>>().join(" or ");
                format!("it computes in {has} only, and what is served needs {needed}")
            }
            Some(shortfall) => format!("waits for more workers: {shortfall}"),
            None => self.why_too_small(worker),
        }
    }

    /// What one layer would need of a worker that lends less.
    fn why_too_small(&self, worker: &Worker) -> String {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let layers = |(model, m): (usize, &Model)| {
            let least = |first| self.least_memory(model, Span { first, end: first + 1 });
            let least = (1..m.spec.parts.len() as u32 - 1).map(least).min()?;
            Some((least, m.spec.name.clone()))
        };
        let least = self.models.iter().enumerate().filter_map(layers).min();
        least.map_or("no model has layers".to_owned(), |(least, name)| {
            let lent = mib(worker.spec.memory_bytes);
            format!("one layer of {name} needs {} MiB and this worker lends {lent} MiB", mib(least))
        })
    }

    /// The run of layers with the least speed behind it, among those that fit and that a
    /// route could use; with the ends, where the worker may hold them and all layers fit.
    fn weakest_window(&self, id: WorkerId, model: usize) -> Option<(f64, Span)> {
        let worker = &self.workers[&id];
        let spec = &self.models[model].spec;
        if !worker.may_hold_layers() || spec.class_for(&worker.spec).is_none() {
            return None;
        }
        let parts = spec.parts.len() as u32;
        let free = worker.memory_free();
        let whole = Span { first: 0, end: parts };
        if worker.may_hold_ends() && self.least_memory(model, whole) <= free {
            return Some((self.rate_behind(model, whole), whole));
        }
        let layers = parts - 2;
        let windows = |n: u32| (1..=parts - 1 - n).map(move |first| Span { first, end: first + n });
        let good = |span: &Span| {
            self.least_memory(model, *span) <= free
                && self.is_small_enough(worker, spec, *span)
                && self.is_usable(model, *span)
        };
        let n = (1..=layers).rev().find(|n| windows(*n).any(|span| good(&span)))?;
        windows(n)
            .filter(good)
            .map(|span| (self.rate_behind(model, span), span))
            .min_by(|a, b| a.0.total_cmp(&b.0))
    }

    /// Whether a tab, which may be gone soon, need not fetch too much for a replica. One
    /// layer is never too much.
    fn is_small_enough(&self, worker: &Worker, spec: &ModelSpec, span: Span) -> bool {
        let new = |b: &&BlobRef| !worker.spec.cached.contains(&b.hash);
        let fetched: u64 = span_blobs(spec, span).filter(new).map(|b| b.bytes).sum();
        !worker.is_browser()
            || fetched <= self.config.tab_fetch_bytes_max
            || layer_count(spec, span) == 1
    }

    /// Whether a route could use a replica of these layers: a shard runs one range of layers
    /// for a session, so the layers on both sides must not be on one shard only.
    fn is_usable(&self, model: usize, span: Span) -> bool {
        let last = self.models[model].spec.parts.len() as u32 - 1;
        let holders = |part: u32| {
            let shards = self.workers.values().flat_map(|w| &w.held);
            let holds =
                move |h: &Held| h.model == model && (h.span.first..h.span.end).contains(&part);
            shards.filter(move |(_, h)| holds(h)).map(|(id, _)| *id)
        };
        span.first == 1
            || span.end == last
            || holders(span.first - 1).any(|a| holders(span.end).any(|b| a != b))
    }

    /// The speed behind a range of layers, each holder's share of it summed.
    fn rate_behind(&self, model: usize, span: Span) -> f64 {
        let shards = self.workers.values().flat_map(|w| w.held.values().map(move |h| (w, h)));
        shards
            .filter(|(_, h)| h.model == model)
            .map(|(w, h)| {
                let first = h.span.first.max(span.first).max(1);
                let shared = h.span.end.min(span.end).saturating_sub(first);
                let layers = layer_count(&self.models[model].spec, h.span).max(1);
                w.survival() * f64::from(shared) / (w.s_per_byte[0] * f64::from(layers))
            })
            .sum()
    }

    /// What would be needed for a model that nobody can hold, in words.
    pub(crate) fn say_shortfall(&self, model: usize) -> String {
        let spec = &self.models[model].spec;
        let all = Span { first: 0, end: spec.parts.len() as u32 };
        let need = self.least_memory(model, all);
        let able = self.workers.values().filter(|w| !w.draining);
        let have: u64 = able.clone().map(|w| w.spec.memory_bytes).sum();
        let layers: u64 =
            able.clone().filter(|w| w.may_hold_layers()).map(|w| w.spec.memory_bytes).sum();
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        if !able.clone().any(Worker::may_hold_ends) {
            return format!("{} needs a trusted worker for its embedding and head", spec.name);
        }
        format!(
            "{} needs {} MiB and the workers here lend {} MiB ({} MiB for layers)",
            spec.name,
            mib(need),
            mib(have),
            mib(layers)
        )
    }
}
