//! Which helpers rest: those that cost the caller more than they do for it.
//!
//! A task cannot be taken back from a thread that began it, so a helper whose core is busy
//! with something else costs the caller a slice of that core's time, milliseconds, when it
//! loses its core in the middle of one. Between such losses it does its share. So an account
//! is kept of each: what its tasks would have taken the caller, against what the caller
//! waited for it. Whose account is overdrawn is left out for a while, and then tried again:
//! twice as long after if it is no better.

/// Nanoseconds from any start.
pub(super) type Ns = u64;

/// What a helper may cost more than it gave, when it begins and after a rest.
const GOODWILL_NS: i64 = 1_000_000;
/// What it can save up at most: a helper that was useful for an hour is useless from the
/// moment on that its core is taken.
const BALANCE_NS_MAX: i64 = 4_000_000;
/// Waiting weighs this much: work that is merely evened out is not worth a second core.
const WAIT_WEIGHT: i64 = 2;
/// The first rest.
const REST_NS_MIN: Ns = 50_000_000;
/// The longest rest: a stall of some milliseconds, that seldom, is lost in the noise.
const REST_NS_MAX: Ns = 1_600_000_000;

#[derive(Clone)]
struct Account {
    /// What it gave less what it cost, nanoseconds of the caller's time.
    balance: i64,
    /// When its rest ends, if it has begun.
    end: Option<Ns>,
    /// When the last one ended, and how long it was.
    ended: Ns,
    length: Ns,
}

/// The accounts of all helpers.
pub(super) struct Rests {
    helpers: Vec<Account>,
    resting: usize,
}

impl Rests {
    pub(super) fn new(helpers: usize) -> Rests {
        let account = Account { balance: GOODWILL_NS, end: None, ended: 0, length: 0 };
        Rests { helpers: vec![account; helpers], resting: 0 }
    }

    /// Helpers that work.
    pub(super) fn working(&self) -> usize {
        self.helpers.len() - self.resting
    }

    /// Whether a helper rests.
    pub(super) fn rests(&self, helper: usize) -> bool {
        self.helpers[helper].end.is_some()
    }

    /// A helper did what would have taken the caller `gave`, and the caller waited `cost`
    /// for it. Whether it rests from `now` on.
    pub(super) fn settle(&mut self, helper: usize, gave: Ns, cost: Ns, now: Ns) -> bool {
        let account = &mut self.helpers[helper];
        let change = (gave as i64).saturating_sub((cost as i64).saturating_mul(WAIT_WEIGHT));
        account.balance = account.balance.saturating_add(change).min(BALANCE_NS_MAX);
        if account.balance >= 0 || account.end.is_some() {
            return false;
        }
        let again = account.length > 0 && now < account.ended + account.length;
        account.length = if again { (2 * account.length).min(REST_NS_MAX) } else { REST_NS_MIN };
        account.end = Some(now + account.length);
        self.resting += 1;
        true
    }

    /// Ends the rests that are over; calls `ended` with their helpers.
    pub(super) fn end(&mut self, now: Ns, mut ended: impl FnMut(usize)) {
        if self.resting == 0 {
            return;
        }
        for (helper, account) in self.helpers.iter_mut().enumerate() {
            if account.end.is_some_and(|end| end <= now) {
                (account.end, account.ended, account.balance) = (None, now, GOODWILL_NS);
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

    /// Settles a stall of 3 ms; whether it rests.
    fn stall(rests: &mut Rests, helper: usize, now: Ns) -> bool {
        rests.settle(helper, MS, 3 * MS, now)
    }

    #[test]
    fn rests_double_while_they_do_not_help() {
        let mut rests = Rests::new(2);
        let mut now = 7 * MS;
        for length in [50, 100, 200, 400, 800, 1600, 1600] {
            assert!(stall(&mut rests, 1, now));
            assert!(!stall(&mut rests, 1, now + MS), "it is told once");
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
        assert!(stall(&mut rests, 0, 0));
        assert_eq!(ended(&mut rests, 50 * MS), [0]);
        assert!(stall(&mut rests, 0, 53 * MS));
        assert_eq!(ended(&mut rests, 152 * MS), [0; 0]);
        assert_eq!(ended(&mut rests, 153 * MS), [0]);
        // The last rest was 100 ms, and nothing was amiss for another 100.
        assert!(stall(&mut rests, 0, 253 * MS));
        assert_eq!(ended(&mut rests, 303 * MS), [0]);
    }

    #[test]
    fn who_gives_more_than_it_costs_works_on() {
        let mut rests = Rests::new(1);
        for now in 0..1000 {
            // Now and then its core is taken for half a millisecond.
            let cost = if now % 10 == 0 { MS / 2 } else { 0 };
            assert!(!rests.settle(0, MS / 5, cost, now * MS));
        }
        // What it has saved up does not last for long.
        assert!(!rests.settle(0, 0, 2 * MS, 1000 * MS));
        assert!(rests.settle(0, 0, MS, 1001 * MS));
    }

    #[test]
    fn work_that_is_merely_evened_out_is_not_worth_a_core() {
        let mut rests = Rests::new(1);
        assert!((0..10).any(|now| rests.settle(0, 3 * MS, 3 * MS, now * MS)));
    }
}
