//! Machines that compute wrongly on purpose, and what became of them.

use std::collections::BTreeMap;

use protocol::{Segment, Span, WorkerId};

use crate::faults::Rng;
use crate::model::D_MODEL;
use crate::world::{Liar, World};

/// How a machine lies about the boundaries that it gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lie {
    /// In every answer.
    Always,
    /// In one of twenty.
    Sometimes,
    /// In every answer, after so many rows without one: a good standing is earned first.
    Later,
    /// Two say the same wrong rows, as if one had computed what the other did.
    Together,
}

pub const LIES: [Lie; 4] = [Lie::Always, Lie::Sometimes, Lie::Later, Lie::Together];

/// Rows after which [`Lie::Later`] begins.
const LATER_ROWS: u64 = 600;

/// Spoils an answer, perhaps. `given` are the rows that the machine gave before. Answers
/// whether it did.
pub fn spoil(
    lie: Lie,
    rng: &mut Rng,
    given: u64,
    span: Span,
    segments: &[Segment],
    payload: &mut [u8],
) -> bool {
    // Whoever is not trusted holds layers only.
    assert!(span.first > 0);
    let rows = segments.iter().map(|s| s.rows as usize).sum::<usize>();
    let row_bytes = D_MODEL as usize * 4;
    match lie {
        Lie::Sometimes if !rng.chance(500) => return false,
        Lie::Later if given < LATER_ROWS => return false,
        Lie::Always | Lie::Sometimes | Lie::Later => {
            flip(payload, rng.below(rows as u64) as usize * row_bytes);
        }
        // A function of the row alone, so that both lie alike.
        Lie::Together => {
            let wrong: Vec<usize> =
                (0..rows).filter(|row| payload[row * row_bytes + 5].is_multiple_of(8)).collect();
            wrong.iter().for_each(|row| flip(payload, row * row_bytes));
            return !wrong.is_empty();
        }
    }
    true
}

/// Flips the lowest bit of a value's integer part: the least that changes what follows.
fn flip(payload: &mut [u8], at: usize) {
    let value = f32::from_le_bytes(payload[at..at + 4].try_into().unwrap());
    let flipped = f32::from((value as u16) ^ 1);
    payload[at..at + 4].copy_from_slice(&flipped.to_le_bytes());
}

/// What became of the liars of one kind.
#[derive(Clone, Default)]
pub struct Fate {
    /// That lied at least once.
    pub lied: u64,
    /// That were banned.
    pub banned: u64,
    /// From the first lie to the ban, virtual µs.
    pub us: Vec<u64>,
    /// Rows given from the first lie to the ban.
    pub rows: Vec<u64>,
}

impl Fate {
    /// The middle one.
    pub fn median(values: &[u64]) -> u64 {
        let mut sorted = values.to_vec();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or(0)
    }
}

/// What a run with liars found.
#[derive(Clone, Default)]
pub struct Found {
    pub fates: BTreeMap<Lie, Fate>,
    /// Rows of logits given to clients, and how many of them were wrong.
    pub logits: u64,
    pub wrong_logits: u64,
    /// Rows × layers that credit was given for.
    pub verified: u64,
    /// Joins of banned keys that were refused.
    pub refused: u64,
}

impl Found {
    pub fn add(&mut self, other: &Found) {
        for (lie, fate) in &other.fates {
            let mine = self.fates.entry(*lie).or_default();
            mine.lied += fate.lied;
            mine.banned += fate.banned;
            mine.us.extend(&fate.us);
            mine.rows.extend(&fate.rows);
        }
        self.logits += other.logits;
        self.wrong_logits += other.wrong_logits;
        self.verified += other.verified;
        self.refused += other.refused;
    }
}

impl World {
    /// A key is out: it must be a liar's.
    pub(crate) fn banned(&mut self, key: &str, reason: &str) {
        let Some(liar) = self.liars.get_mut(key) else {
            panic!("{key} was banned and never lied: {reason}");
        };
        assert!(!std::mem::replace(&mut liar.banned, true), "{key} was banned twice");
        let fate = self.found.fates.entry(liar.lie).or_default();
        fate.banned += 1;
        fate.us.push(self.now - liar.at);
        fate.rows.push(liar.rows);
    }

    /// Keeps the books about who lies.
    pub(crate) fn watch(&mut self, id: WorkerId) {
        let Some(machine) = self.machines.get(&id) else { return };
        let Some((lie, (at, before))) = machine.build.lie.zip(machine.lied) else { return };
        let first = Liar { lie, at, rows: 0, banned: false, tried_again: false };
        let liar = self.liars.entry(machine.build.key.clone()).or_insert(first);
        liar.rows = machine.rows - before;
    }
}
