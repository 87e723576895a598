//! Who is in no tensor group for a while, because one failed or was given up.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::event::Time;

/// The first pause of a key; each further one is twice as long as the one before.
const PAUSE_MIN: Duration = Duration::from_secs(60);
/// No pause is longer. A key that had none for as long after its last one begins anew.
const PAUSE_MAX: Duration = Duration::from_secs(16 * 60);
/// Where a model cannot be held without a group, a pause is shorter by this.
const URGENT: u32 = 12;
/// Keys that are remembered, at most; past it those go whose pauses end first.
const KEYS_MAX: usize = 1024;

/// Pauses by key: to come again ends none.
#[derive(Debug, Default)]
pub(crate) struct Pauses {
    keys: BTreeMap<String, Pause>,
}

#[derive(Clone, Copy, Debug)]
struct Pause {
    since: Time,
    length: Duration,
}

impl Pause {
    fn end(self, urgent: bool) -> Time {
        self.since.plus(if urgent { self.length / URGENT } else { self.length })
    }
}

impl Pauses {
    /// Begins a pause.
    pub fn begin(&mut self, key: &str, now: Time) {
        self.keys.retain(|_, pause| pause.end(false).plus(PAUSE_MAX) > now);
        let before = self.keys.remove(key);
        if self.keys.len() == KEYS_MAX {
            let first = self.keys.iter().min_by_key(|(_, pause)| pause.end(false));
            let first = first.map(|(key, _)| key.clone()).expect("there are many");
            self.keys.remove(&first);
        }
        let length = before.map_or(PAUSE_MIN, |pause| (pause.length * 2).min(PAUSE_MAX));
        self.keys.insert(key.to_owned(), Pause { since: now, length });
    }

    /// Whether a key has one; where it is `urgent`, only the beginning of one counts.
    pub fn has(&self, key: &str, now: Time, urgent: bool) -> bool {
        self.keys.get(key).is_some_and(|pause| pause.end(urgent) > now)
    }

    /// The next time after `now` at which [`Pauses::has`] is false of a key.
    pub fn next(&self, now: Time) -> Option<Time> {
        let ends = self.keys.values().flat_map(|pause| [pause.end(true), pause.end(false)]);
        ends.filter(|end| *end > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Time {
        Time(s * 1_000_000)
    }

    #[test]
    fn each_pause_is_twice_as_long_up_to_a_bound_and_forgotten_after_as_long() {
        let mut pauses = Pauses::default();
        let mut now = 0;
        for length in [60, 120, 240, 480, 960, 960] {
            pauses.begin("k", at(now));
            assert!(pauses.has("k", at(now + length - 1), false));
            assert!(!pauses.has("k", at(now + length), false));
            assert!(pauses.has("k", at(now + length / 12 - 1), true));
            assert!(!pauses.has("k", at(now + length / 12), true));
            assert!(!pauses.has("other", at(now), false));
            assert_eq!(pauses.next(at(now)), Some(at(now + length / 12)));
            assert_eq!(pauses.next(at(now + length / 12)), Some(at(now + length)));
            assert_eq!(pauses.next(at(now + length)), None);
            now += length;
        }
        now += 960;
        pauses.begin("k", at(now));
        assert!(!pauses.has("k", at(now + 60), false), "it begins anew");
    }

    #[test]
    fn so_many_are_remembered() {
        let mut pauses = Pauses::default();
        for key in 0..=KEYS_MAX as u64 {
            pauses.begin(&key.to_string(), Time(key));
        }
        assert_eq!(pauses.keys.len(), KEYS_MAX);
        assert!(!pauses.has("0", at(1), false) && pauses.has("1", at(1), false));
    }
}
