//! Who replays the rows of an audit.

use std::collections::BTreeSet;

use protocol::{AssignmentId, Span, WorkerId};

use super::Audit;
use crate::Scheduler;
use crate::fleet::pages_for;
use crate::index::scatter;
use crate::standing::draw;
use crate::verdict::{Comparison, PEERS_MIN, comparison};

/// Holders of the rows' first part that are asked whether they can replay them, and trusted
/// workers beside them, at most.
const ASKED_MAX: usize = 256;

impl Scheduler {
    /// Who replays: a trusted worker with comparable numerics, one that has not yet if there
    /// is one; else strangers that have not, if there are enough of them.
    pub(super) fn find_replayer(
        &self,
        audit: &Audit,
    ) -> Option<((WorkerId, AssignmentId), Comparison)> {
        let parts = &self.index.models[audit.model].parts;
        let at = audit.of.0 ^ u64::from(audit.end()) ^ scatter(audit.tries);
        let seed = self.config.audits.secret[0] ^ at;
        let near = parts[audit.span.first as usize].holders_from(seed).take(ASKED_MAX);
        let asked: BTreeSet<WorkerId> =
            near.map(|h| h.0).chain(self.index.trusted.iter().take(ASKED_MAX).copied()).collect();
        let pages = pages_for(audit.input.end());
        let secret = self.config.audits.secret;
        // Only who is trusted outweighs a trusted replay that differed.
        let doubted = audit.findings.iter().any(|f| f.trusted);
        let mut trusted = Vec::new();
        let mut strangers = Vec::new();
        for id in &asked {
            let Some(w) = self.workers.get(id) else { continue };
            if w.draining || *w.spec.key == *audit.key {
                continue;
            }
            let able = w.held.iter().find_map(|(assignment, h)| {
                let holds =
                    h.rank.is_none() && h.ready && h.model == audit.model && h.kv_pages >= pages;
                let spans = h.span.first <= audit.span.first && audit.span.end <= h.span.end;
                let how = comparison(&audit.class, &h.class).filter(|_| holds && spans)?;
                Some(((*id, *assignment), how))
            });
            let Some(able) = able else { continue };
            let turns = audit.findings.iter().filter(|f| *f.key == *w.spec.key).count();
            if w.spec.trusted {
                trusted.push(((turns, w.in_flight.len()), able));
            } else if turns == 0 && !audit.follows && !doubted {
                strangers.push((draw(secret, audit.of, &w.spec.key, audit.end()), able));
            }
        }
        if let Some((_, able)) = trusted.into_iter().min_by_key(|(order, _)| *order) {
            return Some(able);
        }
        let enough = strangers.len() + audit.findings.len() >= PEERS_MIN;
        let drawn = strangers.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
        drawn.filter(|_| enough).map(|(_, able)| able)
    }
    /// Whether there is anybody who could replay rows of a class through `span` now or once it
    /// is ready: a trusted worker, or enough strangers among those that are asked.
    pub(super) fn could_be_replayed(
        &self,
        model: usize,
        span: Span,
        class: &str,
        key: &str,
        seed: u64,
    ) -> bool {
        let spec = &self.models[model].spec;
        if spec.class_index(class).is_some_and(|class| self.is_watched(model, class, span)) {
            return true;
        }
        let holders = self.index.models[model].parts[span.first as usize].holders_from(seed);
        let able = holders.take(ASKED_MAX).filter(|(worker, assignment)| {
            let held = self.workers.get(worker).filter(|w| w.spec.key != key);
            held.and_then(|w| w.held.get(assignment)).is_some_and(|h| {
                let spans = h.span.first <= span.first && span.end <= h.span.end;
                h.rank.is_none() && spans && comparison(class, &h.class).is_some()
            })
        });
        able.count() >= PEERS_MIN
    }
}
