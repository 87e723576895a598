//! Noticing that the machine slept.

/// Between two looks that should be a fraction of a second apart: longer, and the machine
/// slept or the browser froze the tab, so that the connection is dead by now, ms. The
/// coordinator waits as long before it gives a worker up.
pub const SLEPT_MS: f64 = 20_000.0;

/// Compares each look at the wall clock with the one before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watch {
    seen_ms: Option<f64>,
}

impl Watch {
    /// A look at the clock, a few times a second; tells how long it slept, ms, if it did.
    pub fn look(&mut self, wall_ms: f64) -> Option<f64> {
        let gap = wall_ms - self.seen_ms.replace(wall_ms)?;
        (gap > SLEPT_MS).then_some(gap)
    }

    /// Nobody looked until now for a good reason: a long computation, or a pause.
    pub fn excuse(&mut self, wall_ms: f64) {
        self.seen_ms = Some(wall_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_of_the_clock_is_a_sleep_unless_excused() {
        let mut watch = Watch::default();
        assert_eq!(watch.look(1e12), None, "the first look");
        assert_eq!(watch.look(1e12 + 1000.0), None);
        assert_eq!(watch.look(1e12 + 61_000.0), Some(60_000.0));
        assert_eq!(watch.look(1e12 + 61_250.0), None, "told once");
        watch.excuse(1e12 + 100_000.0);
        assert_eq!(watch.look(1e12 + 100_250.0), None);
        assert_eq!(watch.look(1e12), None, "the clock was set back");
    }
}
