//! What crosses the network, and the owner's bound on it.

use std::cell::Cell;

/// Counts bytes since the page was loaded; shared by everything that sends or receives.
#[derive(Debug, Default)]
pub struct Meter {
    down: Cell<u64>,
    up: Cell<u64>,
    from_disk: Cell<u64>,
    max: Cell<Option<u64>>,
}

impl Meter {
    /// Bytes came.
    pub fn received(&self, bytes: usize) {
        add(&self.down, bytes);
    }

    /// Bytes went.
    pub fn sent(&self, bytes: usize) {
        add(&self.up, bytes);
    }

    /// Weights were read from disk that would have come over the network.
    pub fn spared(&self, bytes: u64) {
        self.from_disk.set(self.from_disk.get().saturating_add(bytes));
    }

    /// Received so far.
    pub fn down(&self) -> u64 {
        self.down.get()
    }

    /// Sent so far.
    pub fn up(&self) -> u64 {
        self.up.get()
    }

    /// Read from disk so far.
    pub fn from_disk(&self) -> u64 {
        self.from_disk.get()
    }

    /// The owner's bound of both directions together; `None`: none.
    pub fn set_max(&self, max: Option<u64>) {
        self.max.set(max);
    }

    /// Why no more may cross the network, once the bound is reached.
    pub fn exhausted(&self) -> Option<String> {
        let max = self.max.get()?;
        let used = self.down.get().saturating_add(self.up.get());
        (used >= max).then(|| {
            let mb = |bytes: u64| bytes as f64 / 1e6;
            format!("the data cap of {:.1} MB is reached ({:.1} MB used)", mb(max), mb(used))
        })
    }
}

fn add(cell: &Cell<u64>, bytes: usize) {
    cell.set(cell.get().saturating_add(bytes as u64));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_count_against_the_cap_and_the_disk_does_not() {
        let meter = Meter::default();
        meter.received(u32::MAX as usize);
        assert_eq!(meter.exhausted(), None, "no cap");
        let meter = Meter::default();
        meter.set_max(Some(100_000_000));
        meter.received(60_000_000);
        meter.spared(1 << 40);
        meter.sent(39_999_999);
        assert_eq!(meter.exhausted(), None);
        meter.sent(1);
        let reason = meter.exhausted().unwrap();
        assert!(reason.contains("100.0 MB") && reason.contains("100.0 MB used"), "{reason}");
        assert_eq!(
            (meter.down(), meter.up(), meter.from_disk()),
            (60_000_000, 40_000_000, 1 << 40)
        );
        meter.set_max(Some(200_000_000));
        assert_eq!(meter.exhausted(), None, "the owner raised it");
    }
}
