//! How much work one submit may hold.
//!
//! A device that is asked for too much at once freezes the desktop it also draws, and is
//! reset by the system after a second or two. So a step's dispatches are cut into submits of
//! about [`SUBMIT_S`] by what such work took before. A device of any speed computes a whole
//! decode step in one.

/// Seconds of work in one submit.
const SUBMIT_S: f64 = 0.06;
/// What is believed of a device before it was measured, multiply-adds per second: little, so
/// that the first submits are short everywhere.
const FIRST_MACS_PER_S: f64 = 2e9;
/// Share of a new measurement in the running mean.
const NEWEST: f64 = 0.3;
/// A single measurement changes the belief by this factor at most: a stall is no slow device,
/// and a burst no fast one.
const CHANGE_MAX: f64 = 8.0;
/// Steps of less work measure latency, not speed.
const MEASURED_S_MIN: f64 = 0.002;

/// Which kernels dominate: a decode step reads weights, a prefill multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// A few rows.
    Decode,
    /// Many.
    Prefill,
}

/// The running belief.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    macs_per_s: [f64; 2],
}

impl Pace {
    pub(crate) fn new() -> Pace {
        Pace { macs_per_s: [FIRST_MACS_PER_S; 2] }
    }

    /// Multiply-adds that a submit may hold.
    pub(crate) fn submit_macs_max(&self, work: Work) -> f64 {
        self.macs_per_s[work as usize] * SUBMIT_S
    }

    /// Learns that `macs` took `seconds`, from the first submit to the last result.
    pub(crate) fn learn(&mut self, work: Work, macs: f64, seconds: f64) {
        let belief = &mut self.macs_per_s[work as usize];
        let measured = macs / seconds.max(1e-6);
        if seconds < MEASURED_S_MIN && measured < *belief {
            return;
        }
        let measured = measured.clamp(*belief / CHANGE_MAX, *belief * CHANGE_MAX);
        *belief += (measured - *belief) * NEWEST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn submits_come_to_take_what_they_may() {
        for (truth, steps) in [(1e8, 40), (1e12, 40)] {
            let mut pace = Pace::new();
            for _ in 0..steps {
                pace.learn(Work::Decode, truth * 0.05, 0.05);
            }
            let seconds = pace.submit_macs_max(Work::Decode) / truth;
            assert!((0.05..0.1).contains(&seconds), "{truth}: {seconds}");
            assert_eq!(pace.submit_macs_max(Work::Prefill), FIRST_MACS_PER_S * SUBMIT_S);
        }
    }

    #[test]
    fn one_stall_does_not_cut_steps_to_pieces() {
        let mut pace = Pace::new();
        for _ in 0..40 {
            pace.learn(Work::Prefill, 1e9, 0.01);
        }
        let before = pace.submit_macs_max(Work::Prefill);
        pace.learn(Work::Prefill, 1e9, 30.0);
        assert!(pace.submit_macs_max(Work::Prefill) > before / 2.0);
        pace.learn(Work::Prefill, 1e3, 0.001);
        assert!(pace.submit_macs_max(Work::Prefill) > before / 2.0, "a latency is no speed");
    }
}
