//! Which helpers rest: those that lost their core in the middle of a task.
//!
//! A task cannot be taken back from a thread that began it, so a helper whose core is busy
//! with something else costs the caller a slice of that core's time, milliseconds, at every
//! barrier that it comes to. It is left out for a while then, and tried again: twice as
//! long after if it is no better.

/// Nanoseconds from any start.
pub(super) type Ns = u64;

/// A shorter wait for the last tasks is nothing to learn from.
const STALL_NS_MIN: Ns = 150_000;
/// Nor is one of as many of the caller's own tasks: another core may be that much slower.
const STALL_TASKS: u64 = 4;
/// The first rest.
const REST_NS_MIN: Ns = 50_000_000;
/// The longest rest: a stall of some milliseconds, that seldom, is lost in the noise.
const REST_NS_MAX: Ns = 1_600_000_000;

/// How long a caller that did `tasks` tasks in `worked` waits before those it waits for are
/// taken to have lost their cores. One that did none has nothing to judge others by.
pub(super) fn patience(worked: Ns, tasks: u64) -> Option<Ns> {
    Some(STALL_NS_MIN.max((STALL_TASKS * worked).checked_div(tasks)?))
}

#[derive(Clone, Default)]
struct Rest {
    /// When it ends, if it has begun.
    end: Option<Ns>,
    /// When the last one ended, and how long it was.
    ended: Ns,
    length: Ns,
}

/// The rests of all helpers.
pub(super) struct Rests {
    helpers: Vec<Rest>,
    resting: usize,
}

impl Rests {
    pub(super) fn new(helpers: usize) -> Rests {
        Rests { helpers: vec![Rest::default(); helpers], resting: 0 }
    }

    /// Helpers that work.
    pub(super) fn working(&self) -> usize {
        self.helpers.len() - self.resting
    }

    /// Whether a helper rests.
    pub(super) fn rests(&self, helper: usize) -> bool {
        self.helpers[helper].end.is_some()
    }

    /// A helper lost its core at `now`: it rests, for longer if its last rest did not help.
    pub(super) fn begin(&mut self, helper: usize, now: Ns) {
        let rest = &mut self.helpers[helper];
        if rest.end.is_some() {
            return;
        }
        let again = rest.length > 0 && now < rest.ended + rest.length;
        rest.length = if again { (2 * rest.length).min(REST_NS_MAX) } else { REST_NS_MIN };
        rest.end = Some(now + rest.length);
        self.resting += 1;
    }

    /// Ends the rests that are over; calls `ended` with their helpers.
    pub(super) fn end(&mut self, now: Ns, mut ended: impl FnMut(usize)) {
        if self.resting == 0 {
            return;
        }
        for (helper, rest) in self.helpers.iter_mut().enumerate() {
            if rest.end.is_some_and(|end| end <= now) {
                rest.end = None;
                rest.ended = now;
                self.resting -= 1;
                ended(helper);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Ns = 1_000_000;

    /// Ends rests at `now` and says whose.
    fn ended(rests: &mut Rests, now: Ns) -> Vec<usize> {
        let mut found = Vec::new();
        rests.end(now, |helper| found.push(helper));
        found
    }

    #[test]
    fn rests_double_while_they_do_not_help() {
        let mut rests = Rests::new(2);
        let mut now = 7 * MS;
        for length in [50, 100, 200, 400, 800, 1600, 1600] {
            rests.begin(1, now);
            rests.begin(1, now + MS); // it is told once
            assert!(rests.rests(1) && !rests.rests(0));
            assert_eq!(rests.working(), 1);
            assert_eq!(ended(&mut rests, now + length * MS - 1), [0; 0]);
            now += length * MS;
            assert_eq!(ended(&mut rests, now), [1]);
            assert_eq!(rests.working(), 2);
            now += 3 * MS;
        }
    }

    #[test]
    fn who_worked_for_as_long_as_it_rested_begins_anew() {
        let mut rests = Rests::new(1);
        rests.begin(0, 0);
        assert_eq!(ended(&mut rests, 50 * MS), [0]);
        rests.begin(0, 53 * MS);
        assert_eq!(ended(&mut rests, 152 * MS), [0; 0]);
        assert_eq!(ended(&mut rests, 153 * MS), [0]);
        // The last rest was 100 ms, and nothing was amiss for another 100.
        rests.begin(0, 253 * MS);
        assert_eq!(ended(&mut rests, 303 * MS), [0]);
    }

    #[test]
    fn patience_is_for_slow_cores_and_long_tasks() {
        assert_eq!(patience(80_000, 8), Some(STALL_NS_MIN));
        assert_eq!(patience(4 * MS, 4), Some(4 * MS));
        assert_eq!(patience(MS, 0), None, "no task of its own");
    }
}
