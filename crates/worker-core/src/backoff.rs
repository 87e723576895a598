//! How long to wait before connecting again.

use std::time::Duration;

/// The first wait.
pub const FIRST: Duration = Duration::from_millis(250);
/// No wait is longer.
pub const LONGEST: Duration = Duration::from_secs(30);

/// Exponential, with jitter: a fleet that lost its coordinator does not come back in one
/// burst.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// After a connection that was good.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// The next wait: between half and all of [`FIRST`] × 2ⁿ, at most [`LONGEST`]. `random`
    /// is any number.
    pub fn next_wait(&mut self, random: u32) -> Duration {
        let ceiling = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        ceiling / 2 + (ceiling / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound_and_start_over() {
        let mut backoff = Backoff::default();
        let longest: Vec<u128> = (0..9).map(|_| backoff.next_wait(u32::MAX).as_millis()).collect();
        assert_eq!(longest, [250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        for _ in 0..1000 {
            assert_eq!(backoff.next_wait(0), LONGEST / 2);
        }
        backoff.reset();
        assert_eq!(backoff.next_wait(0), FIRST / 2);
    }
}
