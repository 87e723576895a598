//! How long workers stay, learned from those that came and went.
//!
//! By class of device and by age, a worker leaves at some rate: leaves seen over the time that
//! workers of that sort were here, with a prior worth [`PRIOR`] of watching. What a worker
//! offers is weighted by its chance to be here for another [`HORIZON`].

use std::collections::BTreeSet;
use std::time::Duration;

use protocol::{WorkerId, WorkerKind};

use crate::event::Time;

/// How far ahead a worker is counted on.
const HORIZON: Duration = Duration::from_secs(300);
/// What is supposed of a class counts like having watched one worker of it for so long.
const PRIOR: Duration = Duration::from_secs(7200);
/// Beyond so many leaves of one sort what was seen counts half: habits change.
const LEAVES_MAX: f64 = 256.0;
/// The ages at which a worker becomes another sort.
const AGES: [Duration; 3] =
    [Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(3600)];

/// Who leaves for the same reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceClass {
    /// A program: its owner ends it, or its machine goes down.
    Native,
    /// A tab: its owner may close it at any time.
    Tab,
    /// A tab that nobody sees: its browser may freeze it as well.
    HiddenTab,
}

impl DeviceClass {
    /// The class of a worker; the embedded one has none, since it leaves with us.
    pub fn of(kind: WorkerKind, hidden: bool) -> Option<DeviceClass> {
        match (kind, hidden) {
            (WorkerKind::Embedded, _) => None,
            (WorkerKind::Native, _) => Some(DeviceClass::Native),
            (WorkerKind::Browser, false) => Some(DeviceClass::Tab),
            (WorkerKind::Browser, true) => Some(DeviceClass::HiddenTab),
        }
    }

    /// The chance to be here after [`HORIZON`] before anything was seen.
    fn prior(self) -> f64 {
        match self {
            DeviceClass::Native => 1.0,
            DeviceClass::Tab => 0.8,
            DeviceClass::HiddenTab => 0.5,
        }
    }
}

/// A class of device at an age: what workers are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sort {
    /// Of which class.
    pub class: DeviceClass,
    /// How many of [`AGES`] it has passed.
    age: usize,
}

impl Sort {
    /// A worker that has just come.
    pub fn new(class: DeviceClass) -> Sort {
        Sort { class, age: 0 }
    }

    /// The same worker at an age.
    pub fn at(self, age: Duration) -> Sort {
        Sort { age: AGES.iter().filter(|a| **a <= age).count(), ..self }
    }

    /// The age at which it becomes another sort, if ever.
    pub fn until(self) -> Option<Duration> {
        AGES.get(self.age).copied()
    }
}

/// What was seen of one sort.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Workers of it that are here.
    here: u32,
    /// Seconds that workers of it were here, up to `counted`.
    watched_s: f64,
    counted: Time,
    leaves: f64,
}

/// What was seen of all sorts.
#[derive(Clone, Debug, Default)]
pub struct Survival {
    seen: [[Seen; AGES.len() + 1]; 3],
    /// When each worker is to be looked at again.
    visits: BTreeSet<(Time, WorkerId)>,
}

impl Survival {
    /// A worker became this sort.
    pub fn enter(&mut self, sort: Sort, now: Time) {
        self.counted(sort, now).here += 1;
    }

    /// A worker is no longer this sort; `left` if it is gone altogether.
    pub fn exit(&mut self, sort: Sort, now: Time, left: bool) {
        let seen = self.counted(sort, now);
        seen.here -= 1;
        if left {
            seen.leaves += 1.0;
        }
        if seen.leaves > LEAVES_MAX {
            seen.leaves /= 2.0;
            seen.watched_s /= 2.0;
        }
    }

    /// The chance that a worker of this sort is here after [`HORIZON`].
    pub fn chance(&self, sort: Sort) -> f64 {
        let seen = &self.seen[sort.class as usize][sort.age];
        let (horizon_s, prior_s) = (HORIZON.as_secs_f64(), PRIOR.as_secs_f64());
        let supposed = -sort.class.prior().ln() / horizon_s * prior_s;
        let rate = (supposed + seen.leaves) / (prior_s + seen.watched_s);
        (-rate * horizon_s).exp()
    }

    /// Workers of a sort that are here.
    pub fn here(&self, sort: Sort) -> u32 {
        self.seen[sort.class as usize][sort.age].here
    }

    /// Has a worker looked at again at a time, instead of `before`.
    pub fn visit(&mut self, worker: WorkerId, before: Option<Time>, at: Option<Time>) {
        if let Some(before) = before {
            self.visits.remove(&(before, worker));
        }
        self.visits.extend(at.map(|at| (at, worker)));
    }

    /// The worker whose visit is due, if there is one.
    pub fn due(&self, now: Time) -> Option<WorkerId> {
        self.visits.first().filter(|(at, _)| *at <= now).map(|(_, worker)| *worker)
    }

    fn counted(&mut self, sort: Sort, now: Time) -> &mut Seen {
        let seen = &mut self.seen[sort.class as usize][sort.age];
        seen.watched_s += f64::from(seen.here) * now.since(seen.counted).as_secs_f64();
        seen.counted = now;
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAB: Sort = Sort { class: DeviceClass::Tab, age: 0 };
    const NATIVE: Sort = Sort { class: DeviceClass::Native, age: 0 };

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000)
    }

    /// So many come at once, and one leaves every so many seconds.
    fn watch(sort: Sort, workers: u64, every_s: u64) -> f64 {
        let mut survival = Survival::default();
        (0..workers).for_each(|_| survival.enter(sort, at(0)));
        (1..=workers).for_each(|n| survival.exit(sort, at(n * every_s), true));
        survival.chance(sort)
    }

    #[test]
    fn before_anything_was_seen_the_prior_counts() {
        let survival = Survival::default();
        assert!((survival.chance(TAB) - 0.8).abs() < 1e-12);
        assert_eq!(survival.chance(NATIVE), 1.0);
    }

    #[test]
    fn what_stays_is_trusted_more_and_what_leaves_less() {
        // Ten tabs that stay for hours, ten that are gone within a minute.
        assert!(watch(TAB, 10, 3600) > 0.9);
        assert!(watch(TAB, 10, 5) < 0.6);
        assert!(watch(NATIVE, 10, 5) < 0.8);
    }

    #[test]
    fn those_that_are_still_here_count_too() {
        let mut survival = Survival::default();
        for _ in 0..100 {
            survival.enter(TAB, at(0));
        }
        // One in a hundred leaves in an hour: nearly all stay.
        survival.exit(TAB, at(3600), true);
        assert!(survival.chance(TAB) > 0.99, "{}", survival.chance(TAB));
        assert_eq!(survival.here(TAB), 99);
    }

    #[test]
    fn ages_are_counted_apart() {
        let mut survival = Survival::default();
        for n in 0..50 {
            survival.enter(TAB, at(n));
            survival.exit(TAB, at(n + 2), true);
        }
        let grown = TAB.at(Duration::from_secs(700));
        assert_eq!(grown.until(), Some(Duration::from_secs(3600)));
        assert!(survival.chance(grown) > survival.chance(TAB) + 0.3);
    }
}
