//! What those get whom no plan needs: a replica, or the reason why they hold nothing.

use std::collections::BTreeSet;

use protocol::{Span, ToWorker, WorkerId, clean_text};

use crate::event::Action;
use crate::fleet::Worker;
use crate::index::Lent;
use crate::{Model, Scheduler};

/// Workers that hold nothing and were not told why: so many are served in one placing, the
/// others in the next.
const NEW_AT_ONCE_MAX: usize = 64;
/// Of those that were told why, so many are looked at again in one placing.
const TOLD_AT_ONCE_MAX: usize = 16;
/// Where some are left for it, the next placing comes after this part of the usual delay.
const PLACE_AGAIN: u32 = 50;

impl Scheduler {
    /// Gives whoever holds nothing the layers that need it the most, as many as fit; and says
    /// why where nothing fits. Who came or lost its shards is served first, then, in turns,
    /// some of those that were told so.
    pub(crate) fn replicate(&mut self) {
        self.settle();
        let mut untold: Vec<WorkerId> =
            self.index.untold.iter().take(NEW_AT_ONCE_MAX + 1).copied().collect();
        let more = untold.len() > NEW_AT_ONCE_MAX;
        untold.truncate(NEW_AT_ONCE_MAX);
        let from = self.idle_turn;
        let told = self.index.told.range(from..).chain(self.index.told.range(..from));
        let told: Vec<WorkerId> = told.take(TOLD_AT_ONCE_MAX).copied().collect();
        if let Some(last) = told.last() {
            self.idle_turn = WorkerId(last.0 + 1);
        }
        for id in untold {
            self.find_use(id);
        }
        let mut used = false;
        for id in told {
            used |= self.find_use(id);
        }
        if more || used {
            let at = self.now.plus(self.config.place_delay / PLACE_AGAIN);
            self.place_at = Some(self.place_at.map_or(at, |t| t.min(at)));
        }
    }

    /// Gives an idle worker a window, or the reason why it gets none.
    fn find_use(&mut self, id: WorkerId) -> bool {
        if self.models.is_empty() {
            self.set_idle(id, "no model is served yet");
            return false;
        }
        let large = self.is_large();
        let windows = (0..self.models.len()).filter_map(|model| {
            // A small fleet is given out as a whole, or not at all.
            let whole = large || self.gaps(model, |part| part.held() > 0).is_empty();
            self.weakest_window(id, model).filter(|_| whole).map(|window| (window, model))
        });
        let best = match large {
            true => windows
                .min_by_key(|(w, model)| (w.weighed_need(self.index.live_of(*model)), *model)),
            false => windows.min_by_key(|(w, model)| (w.rate(), *model)),
        };
        match best {
            Some((window, model)) => self.give(id, model, window.span()),
            None => self.set_idle(id, &self.why_idle(id)),
        }
        best.is_some()
    }

    /// KV positions that a replica on a worker is given at most.
    pub(crate) fn positions_max(&self, worker: &Worker) -> u32 {
        match worker.is_browser() {
            true => self.config.tab_kv_positions_max,
            false => self.config.kv_positions_max,
        }
    }

    pub(crate) fn give(&mut self, id: WorkerId, model: usize, span: Span) {
        let positions_max = self.positions_max(&self.workers[&id]);
        self.assign(id, model, span, 0, positions_max);
        self.settle();
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
        let kv = |m: &Model| self.kv_bytes_min(&m.spec) + self.config.scratch_bytes;
        let smallest = |m: &Model| {
            let layers = 1..m.spec.parts.len() - 1;
            layers.map(|part| m.weights[part + 1] - m.weights[part]).min()
        };
        let layers = |m: &Model| Some((smallest(m)? + kv(m), m.spec.name.clone()));
        let least = self.models.iter().filter_map(layers).min();
        least.map_or("no model has layers".to_owned(), |(least, name)| {
            let lent = mib(worker.spec.memory_bytes);
            format!("one layer of {name} needs {} MiB and this worker lends {lent} MiB", mib(least))
        })
    }

    /// What would be needed for a model that nobody can hold, in words.
    pub(crate) fn say_shortfall(&self, model: usize) -> String {
        let spec = &self.models[model].spec;
        let all = Span { first: 0, end: spec.parts.len() as u32 };
        let need = self.least_memory(model, all);
        let Lent { memory, layers, .. } = self.index.lent;
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        if self.index.trusted.is_empty() {
            return format!("{} needs a trusted worker for its embedding and head", spec.name);
        }
        format!(
            "{} needs {} MiB and the workers here lend {} MiB ({} MiB for layers)",
            spec.name,
            mib(need),
            mib(memory),
            mib(layers)
        )
    }
}
