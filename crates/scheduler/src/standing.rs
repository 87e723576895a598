//! How far a worker's key is to be trusted: how often it is audited, and when it is out.
//!
//! After BOINC's adaptive replication: a key with fewer than [`PROVEN`] agreements in a row
//! is always audited (a share of its work that the operator sets), a proven one with
//! probability 1/agreements, if that is less; a disagreement takes all of it back. Every change leaves the
//! scheduler as `Action::Standing`, and comes back with a join (`WorkerSpec::standing`).

use std::hash::Hasher;

use protocol::{SessionId, Span};

use crate::Scheduler;
use crate::event::{Action, Note};

/// Agreements in a row from which on a key is audited more and more seldom.
pub const PROVEN: u32 = 10;
/// Disagreements of which each alone proves nothing (a GPU outside its band) that ban a key;
/// each [`PROVEN`] agreements in a row make one of them forgotten.
pub const DISAGREEMENTS_MAX: u32 = 3;

/// What is known of a worker's key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Audits in a row that agreed.
    pub agreements: u32,
    /// Audits that did not, less those that were made good.
    pub disagreements: u32,
    /// Whether it is out for good.
    pub banned: bool,
    /// Rows of layers (rows × layers) that were verified: what earns credit.
    pub rows_verified: u64,
}

impl Standing {
    /// The chance that a piece of its work is audited, where newcomers' is with `newcomers`.
    pub fn audit_chance(&self, newcomers: f64) -> f64 {
        match self.agreements {
            0..PROVEN => newcomers,
            agreements => newcomers.min(1.0 / f64::from(agreements)),
        }
    }

    /// An audit agreed.
    pub fn agreed(&mut self) {
        self.agreements = self.agreements.saturating_add(1);
        if self.agreements.is_multiple_of(PROVEN) {
            self.disagreements = self.disagreements.saturating_sub(1);
        }
    }

    /// An audit did not. Answers whether it was one too many.
    pub fn disagreed(&mut self) -> bool {
        self.agreements = 0;
        self.disagreements = self.disagreements.saturating_add(1);
        self.disagreements >= DISAGREEMENTS_MAX
    }
}

impl Scheduler {
    /// What is known of a key that joins as `known`: what was seen here is newer.
    pub(crate) fn standing_of(&self, key: &str, known: Standing) -> Standing {
        self.audits.standings.get(key).copied().unwrap_or(known)
    }

    /// Rows of a key were verified, which is good for its standing if an audit ended with it.
    pub(crate) fn count_verified(
        &mut self,
        key: &str,
        model: usize,
        span: Span,
        rows: u32,
        agreed: bool,
    ) {
        let layers = span.end - span.first;
        let mut standing = self.audits.standings.get(key).copied().unwrap_or_default();
        standing.rows_verified += u64::from(rows) * u64::from(layers);
        if agreed {
            standing.agreed();
        }
        if rows > 0 {
            let (key, model) = (key.to_owned(), self.models[model].spec.name.clone());
            self.actions.push_back(Action::Verified { key, model, layers, rows });
        }
        self.set_standing(key, standing);
    }

    /// Rows of a key were found to be wrong. Answers whether it was once too often.
    pub(crate) fn count_disagreement(&mut self, key: &str) -> bool {
        let mut standing = self.audits.standings.get(key).copied().unwrap_or_default();
        let too_many = standing.disagreed();
        self.set_standing(key, standing);
        too_many
    }

    /// A key is out: its worker goes, and all that rests on its unverified rows is computed
    /// again.
    pub(crate) fn ban(&mut self, key: &str, found: &str) {
        let standing = self.audits.standings.get(key).copied().unwrap_or_default();
        self.set_standing(key, Standing { banned: true, ..standing });
        self.note(Note::Banned { key: key.to_owned(), reason: found.to_owned() });
        self.forget_work(key);
        let here = self.keys.get(key).copied();
        if let Some(worker) = here {
            self.dismiss(worker, &format!("its key is banned: {found}"), false);
        }
    }

    /// A key's ban is lifted. What was counted of it stays.
    pub(crate) fn unban(&mut self, key: &str) {
        if let Some(standing) = self.audits.standings.get(key).copied() {
            self.audits.standings.set(key, Standing { banned: false, ..standing });
        }
    }

    /// Keeps a standing, says so, and shows it.
    fn set_standing(&mut self, key: &str, standing: Standing) {
        self.audits.standings.set(key, standing);
        self.actions.push_back(Action::Standing { key: key.to_owned(), standing });
        if let Some(w) = self.keys.get(key).copied().and_then(|id| self.workers.get_mut(&id)) {
            w.spec.standing = standing;
        }
    }
}

/// A number in [0, 1) that nobody without the secret can foresee: SipHash-2-4 of who, whose
/// work and where in it.
pub fn draw(secret: [u64; 2], session: SessionId, key: &str, position: u32) -> f64 {
    let pieces = [&session.0.to_le_bytes()[..], &position.to_le_bytes(), key.as_bytes()];
    // The upper 53 bits, which an f64 holds exactly.
    (keyed_hash(secret, &pieces) >> 11) as f64 / (1u64 << 53) as f64
}

/// SipHash-2-4 of the pieces one after the other.
pub(crate) fn keyed_hash(secret: [u64; 2], pieces: &[&[u8]]) -> u64 {
    #[expect(deprecated, reason = "std's only keyed hash whose algorithm is promised")]
    let mut hash = std::hash::SipHasher::new_with_keys(secret[0], secret[1]);
    pieces.iter().for_each(|piece| hash.write(piece));
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chance_of_an_audit_falls_with_every_agreement_and_comes_back_at_once() {
        let mut standing = Standing::default();
        for _ in 0..PROVEN {
            assert_eq!(standing.audit_chance(0.5), 0.5);
            standing.agreed();
        }
        assert_eq!(standing.audit_chance(1.0), 0.1);
        (0..90).for_each(|_| standing.agreed());
        assert_eq!(standing.audit_chance(1.0), 0.01);
        assert_eq!(standing.audit_chance(0.001), 0.001, "an operator may ask for less");
        assert!(!standing.disagreed());
        assert_eq!(standing.audit_chance(1.0), 1.0);
    }

    #[test]
    fn three_disagreements_ban_unless_enough_agreements_lie_between() {
        let mut often = Standing::default();
        assert_eq!([often.disagreed(), often.disagreed(), often.disagreed()], [false, false, true]);
        let mut seldom = Standing::default();
        for _ in 0..20 {
            assert!(!seldom.disagreed());
            (0..PROVEN).for_each(|_| seldom.agreed());
        }
        assert_eq!(seldom.disagreements, 0);
    }

    #[test]
    fn draws_are_spread_evenly_and_hang_on_the_secret() {
        let count = |secret, chance| {
            let drawn = |session| draw(secret, SessionId(session), "key", 64) < chance;
            (0..10_000).filter(|session| drawn(*session)).count()
        };
        assert!((900..1100).contains(&count([1, 2], 0.1)));
        assert!((4800..5200).contains(&count([3, 4], 0.5)));
        let of = |secret, key, position| draw(secret, SessionId(7), key, position);
        assert_eq!(of([1, 2], "a", 32), of([1, 2], "a", 32));
        assert_ne!(of([1, 2], "a", 32), of([1, 3], "a", 32));
        assert_ne!(of([1, 2], "a", 32), of([1, 2], "b", 32));
        assert_ne!(of([1, 2], "a", 32), of([1, 2], "a", 64));
    }
}
