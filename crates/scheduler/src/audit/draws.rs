//! When an audit is begun: draws at 32 rows of a stage, 64, 128 and so on, and at its end.

use protocol::SessionId;

use super::Audit;
use crate::Scheduler;
use crate::session::{Authored, Stage};
use crate::standing::draw;

/// Rows of a stage after which the first draw is made; the next are at twice as many.
const FIRST_DRAW_ROWS: u32 = 32;
/// Of the sampled audits that may be open, the share of one key: one in so many.
const KEY_SHARE: usize = 4;
/// Sampled audits of one stage at once: one may stand beside a first one, that of its last rows.
const STAGE_AUDITS_MAX: usize = 2;

impl Scheduler {
    /// Stage `i` of a session gave rows `from..to` that nobody had given before: they are its
    /// worker's, and are drawn for an audit.
    pub(crate) fn rows_authored(&mut self, id: SessionId, i: usize, from: u32, to: u32) {
        let session = self.sessions.get_mut(&id).expect("it was found");
        let Stage { holder: Some((worker, assignment)), span, .. } = session.stages[i] else {
            return;
        };
        let Some(w) = self.workers.get(&worker).filter(|w| !w.spec.trusted) else { return };
        let full = self.config.audits.full;
        let at = session.author_more(worker, span, from, to).unwrap_or_else(|| {
            let class = w.held.get(&assignment).map_or("", |held| held.class.as_str());
            let rows = Authored {
                number: 0,
                worker,
                key: w.spec.key.as_str().into(),
                class: class.into(),
                span,
                from,
                to,
                verified: from,
                credited: from,
                drawn: from,
                next_draw: from + FIRST_DRAW_ROWS,
                sealed: false,
            };
            session.author(rows, full)
        });
        if full {
            self.follow(id, at);
            return;
        }
        let entry = &mut session.authored[at];
        if entry.to >= entry.next_draw {
            entry.next_draw = next_draw(entry.to, entry.next_draw);
            self.draw_audit(id, at);
        }
    }

    /// A session or one of its stages ends: draws for what its workers did since the last draw.
    pub(crate) fn audit_rest(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else { return };
        for at in 0..session.authored.len() {
            let entry = &self.sessions[&id].authored[at];
            if self.config.audits.full {
                let (key, span) = (entry.key.clone(), entry.span);
                self.credit(id, at, &key, span, false);
            } else if !entry.sealed && entry.drawn < entry.to && entry.verified < entry.to {
                self.draw_audit(id, at);
            }
        }
    }

    /// Audits the rows of a stage, if the draw says so and there is room for it and somebody
    /// who could replay them. Where there is not, the next draw is for these rows as well.
    fn draw_audit(&mut self, id: SessionId, at: usize) {
        let settings = &self.config.audits;
        let session = &self.sessions[&id];
        let (model, entry) = (session.model, &session.authored[at]);
        let (to, span, class, key) = (entry.to, entry.span, entry.class.clone(), entry.key.clone());
        let standing = self.audits.standings.get(&key).copied().unwrap_or_default();
        let chance = match settings.newcomers > 0.0 && !standing.banned {
            true => standing.audit_chance(settings.newcomers),
            false => 0.0,
        };
        let asked = draw(settings.secret, id, &key, to) < chance;
        let begun = asked
            && self.has_room_for_audit(id, at)
            && self.could_be_replayed(model, span, &class, &key, u64::from(to))
            && self.open_audit(id, at, false);
        self.audits.missed += u64::from(asked && !begun);
        if begun || !asked {
            let session = self.sessions.get_mut(&id).expect("it was found");
            session.authored[at].drawn = to;
        }
    }

    /// Whether a sampled audit of a stage may be begun beside those under way.
    fn has_room_for_audit(&self, id: SessionId, at: usize) -> bool {
        let settings = &self.config.audits;
        let entry = &self.sessions[&id].authored[at];
        let sampled = || self.audits.open.values().filter(|a| !a.follows);
        let same = |a: &&Audit| (a.of, a.worker, a.span) == (id, entry.worker, entry.span);
        let of_key = sampled().filter(|a| a.key == entry.key).count();
        sampled().filter(same).count() < STAGE_AUDITS_MAX
            && of_key < (settings.audits_max / KEY_SHARE).max(1)
            && sampled().count() < settings.audits_max
            && self.audits.bytes() < settings.bytes_max
    }
    /// What must hold of audits after every event.
    ///
    /// # Panics
    /// If it does not.
    pub(crate) fn check_audits(&self) {
        let settings = &self.config.audits;
        self.audits.check_index();
        let open = self.audits.open.iter();
        let replays = open.filter_map(|(id, a)| Some((a.replay.as_ref()?.session, *id)));
        assert!(
            self.audits
                .replays
                .iter()
                .map(|(s, a)| (*s, *a))
                .eq(replays.collect::<std::collections::BTreeMap<_, _>>()),
            "replays are mixed up"
        );
        let replaying = self.sessions.values().filter(|s| s.is_audit()).map(|s| &s.id);
        assert!(
            self.audits.replays.keys().eq(replaying),
            "replays of no audit, or without session"
        );
        let sampled: Vec<&Audit> = self.audits.open.values().filter(|a| !a.follows).collect();
        assert!(sampled.len() <= settings.audits_max, "{} audits are open", sampled.len());
        let widest = self.models.iter().map(|m| u64::from(m.spec.d_model) * 4).max().unwrap_or(0);
        // The last one was begun below the bound.
        let bound = settings.bytes_max + 2 * widest * u64::from(settings.rows_max);
        assert!(self.audits.bytes() <= bound, "audits keep {} bytes", self.audits.bytes());
    }
}

/// The next number of rows, doubling, at which a stage that has `rows` is drawn for.
pub(super) fn next_draw(rows: u32, mut at: u32) -> u32 {
    while at <= rows {
        at = at.saturating_mul(2);
    }
    at
}
