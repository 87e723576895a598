//! Which trusted workers hold layers so that they can replay what others answer.

use protocol::{Span, WorkerId};

use crate::Scheduler;

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
            let last = self.models[model].spec.parts.len() as u32 - 1;
            let mut spans = self.unwatched(model, last);
            if spans.is_empty() || !self.gaps(model, |part| part.held() > 0).is_empty() {
                continue;
            }
            let layers = Span { first: 1, end: last };
            if let Some(auditor) = self.auditor_for(model, layers) {
                self.assign(auditor, model, layers, 0, self.config.kv_positions_max);
                self.settle();
                continue;
            }
            spans.sort_by_key(|span| (span.first, u32::MAX - span.end));
            for span in spans {
                let watched = self.is_watched(model, span);
                if let Some(auditor) = self.auditor_for(model, span).filter(|_| !watched) {
                    self.assign(auditor, model, span, 0, self.config.kv_positions_max);
                    self.settle();
                }
            }
        }
    }

    /// The ranges of layers that strangers hold and no trusted worker holds as a whole.
    fn unwatched(&self, model: usize, last: u32) -> Vec<Span> {
        let held = self.index.models[model].spans(false);
        let spans = held.map(|span| Span { first: span.first.max(1), end: span.end.min(last) });
        spans.filter(|span| !self.is_watched(model, *span)).collect()
    }

    /// Whether one trusted worker holds all of a range, or will soon.
    fn is_watched(&self, model: usize, span: Span) -> bool {
        let mut held = self.index.models[model].spans(true);
        held.any(|held| held.first <= span.first && span.end <= held.end)
    }

    /// The trusted worker with the most memory left, if a range fits there.
    fn auditor_for(&self, model: usize, span: Span) -> Option<WorkerId> {
        let spec = &self.models[model].spec;
        let least = self.least_memory(model, span);
        let trusted = self.index.trusted.iter().take(AUDITORS_TRIED_MAX);
        let able = trusted.map(|id| &self.workers[id]).filter(|w| {
            w.may_hold_layers() && spec.class_for(&w.spec).is_some() && w.memory_free() >= least
        });
        able.max_by_key(|w| w.memory_free()).map(|w| w.spec.id)
    }
}
