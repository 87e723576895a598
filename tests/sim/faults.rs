//! What goes wrong, how often, and how often it did.

use std::collections::BTreeMap;

/// Deterministic randomness: splitmix64.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low)
    }

    /// True `per_10k` times in ten thousand.
    pub fn chance(&mut self, per_10k: u64) -> bool {
        self.below(10_000) < per_10k
    }
}

/// Everything that can strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A message never arrives.
    Lost,
    /// It arrives twice.
    Duplicated,
    /// It overtakes others.
    Reordered,
    /// It arrives after its step's deadline.
    Late,
    /// A worker vanishes with everything in it.
    Killed,
    /// A worker stops answering and stays connected.
    Frozen,
    /// A worker says goodbye first.
    Drained,
    /// A worker comes back under its key before it was missed.
    Ghost,
    /// A worker answers with values that are not finite.
    Nan,
    /// A worker answers with too few bytes.
    Short,
    /// A worker that nobody trusts says that a value overflowed.
    Overflow,
    /// A shard cannot be loaded.
    LoadFailed,
    /// A client's short deadline passed.
    TooSlow,
    /// A client goes away in the middle.
    Cancelled,
    /// A session was given another stage.
    Replaced,
    /// A session gave up its KV.
    Preempted,
    /// A session began with the KV of an earlier one.
    Reused,
    /// An answer came for an older epoch.
    Stale,
    /// A session waited for layers that nobody held.
    Uncovered,
    /// A tab that takes long over every row came.
    SlowTab,
    /// A tab was hidden or shown again.
    Hidden,
    /// A tab was closed for good.
    Closed,
    /// A worker was told that there is nothing for it.
    Idle,
    /// A worker became much slower for a while.
    Straggles,
    /// A share of the workers was cut off for a while.
    Partitioned,
    /// Workers began to divide layers among them.
    Grouped,
    /// A tensor group ended.
    Ungrouped,
    /// Workers that could be a group in the end were one.
    Regrouped,
    /// A rank waited for another one in vain.
    Unexchanged,
}

/// What strikes only where layers are divided.
pub const OF_GROUPS: [Fault; 4] =
    [Fault::Grouped, Fault::Ungrouped, Fault::Regrouped, Fault::Unexchanged];

pub const ALL: [Fault; 25] = [
    Fault::Lost,
    Fault::Duplicated,
    Fault::Reordered,
    Fault::Late,
    Fault::Killed,
    Fault::Frozen,
    Fault::Drained,
    Fault::Ghost,
    Fault::Nan,
    Fault::Short,
    Fault::Overflow,
    Fault::LoadFailed,
    Fault::TooSlow,
    Fault::Cancelled,
    Fault::Replaced,
    Fault::Preempted,
    Fault::Reused,
    Fault::Stale,
    Fault::Uncovered,
    Fault::SlowTab,
    Fault::Hidden,
    Fault::Closed,
    Fault::Idle,
    Fault::Straggles,
    Fault::Partitioned,
];

/// How often each struck.
#[derive(Clone, Default)]
pub struct Tally(BTreeMap<Fault, u64>);

impl Tally {
    pub fn count(&mut self, fault: Fault) {
        *self.0.entry(fault).or_default() += 1;
    }

    pub fn of(&self, fault: Fault) -> u64 {
        self.0.get(&fault).copied().unwrap_or(0)
    }

    pub fn add(&mut self, other: &Tally) {
        for (fault, n) in &other.0 {
            *self.0.entry(*fault).or_default() += n;
        }
    }
}
