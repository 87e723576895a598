//! Which trusted workers hold layers so that they can replay what others answer.

use protocol::{Span, WorkerId};

use crate::Scheduler;
use crate::verdict::comparison;

/// Trusted workers that are asked at most whether they have room for layers.
const AUDITORS_TRIED_MAX: usize = 256;

impl Scheduler {
    /// Gives trusted workers that have memory left the layers that strangers hold and no
    /// trusted worker does: all of a model's where they fit, else stranger by stranger.
    pub(crate) fn place_auditors(&mut self) {
        let settings = &self.config.audits;
        if settings.newcomers <= 0.0 && !settings.full {
            return;
        }
        for model in 0..self.models.len() {
            if self.gaps(model, |part| part.held() > 0).is_empty() {
                let classes = self.models[model].spec.classes.len();
                (0..classes).for_each(|class| self.place_auditors_of(model, class));
            }
        }
    }

    /// The same for what strangers hold of one model in one class.
    fn place_auditors_of(&mut self, model: usize, class: usize) {
        let last = self.models[model].spec.parts.len() as u32 - 1;
        let mut spans = self.unwatched(model, class, last);
        if spans.is_empty() {
            return;
        }
        let layers = Span { first: 1, end: last };
        if let Some(auditor) = self.auditor_for(model, class, layers) {
            self.assign(auditor, model, layers, 0, self.config.kv_positions_max);
            self.settle();
            return;
        }
        spans.sort_by_key(|span| (span.first, u32::MAX - span.end));
        for span in spans {
            let watched = self.is_watched(model, class, span);
            if let Some(auditor) = self.auditor_for(model, class, span).filter(|_| !watched) {
                self.assign(auditor, model, span, 0, self.config.kv_positions_max);
                self.settle();
            }
        }
    }

    /// The ranges of layers that strangers hold in a class, and that no trusted worker holds as
    /// a whole in a class that can be compared with it.
    fn unwatched(&self, model: usize, class: usize, last: u32) -> Vec<Span> {
        let held = self.index.models[model].spans(false, class);
        let spans = held.map(|span| Span { first: span.first.max(1), end: span.end.min(last) });
        spans.filter(|span| !self.is_watched(model, class, *span)).collect()
    }

    /// Whether one trusted worker can replay all of a range, or will soon.
    pub(crate) fn is_watched(&self, model: usize, class: usize, span: Span) -> bool {
        let classes = &self.models[model].spec.classes;
        let replays = |by: &usize| comparison(&classes[class].name, &classes[*by].name).is_some();
        let watching = (0..classes.len()).filter(replays);
        let mut held = watching.flat_map(|by| self.index.models[model].spans(true, by));
        held.any(|held| held.first <= span.first && span.end <= held.end)
    }

    /// The trusted worker with the most memory left that could replay a class, if a range fits
    /// there.
    fn auditor_for(&self, model: usize, class: usize, span: Span) -> Option<WorkerId> {
        let spec = &self.models[model].spec;
        let least = self.least_memory(model, span);
        let audited = &spec.classes[class].name;
        let trusted = self.index.trusted.iter().take(AUDITORS_TRIED_MAX);
        let able = trusted.map(|id| &self.workers[id]).filter(|w| {
            let own = spec.class_for(&w.spec);
            let replays = own.is_some_and(|own| comparison(audited, &own.name).is_some());
            w.may_hold_layers() && replays && w.memory_free() >= least
        });
        able.max_by_key(|w| w.memory_free()).map(|w| w.spec.id)
    }
}
