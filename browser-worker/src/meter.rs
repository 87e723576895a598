//! What crosses the network, and the owner's bound on it.

use std::cell::Cell;
use std::rc::Rc;

/// Counts bytes since the page was loaded; shared by everything that sends or receives.
#[derive(Debug, Default)]
pub struct Meter {
    down: Cell<u64>,
    up: Cell<u64>,
    /// Of downloads that have begun, what has not come yet.
    expected: Cell<u64>,
    /// The last download that was not begun since it would not have fitted; 0 if all did.
    refused: Cell<u64>,
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
        if self.max.replace(max) != max {
            self.refused.set(0);
        }
    }

    /// A download of so many bytes is about to begin: they count from now on, until they have
    /// come or the value is dropped.
    ///
    /// # Errors
    /// The bound leaves no room for it, in words; [`Meter::is_exhausted`] then.
    pub fn expect(self: &Rc<Self>, bytes: u64) -> Result<Expected, String> {
        let all = self.taken().saturating_add(bytes);
        if self.max.get().is_some_and(|max| all > max) {
            self.refused.set(bytes);
            return Err(self.exhausted().unwrap_or_default());
        }
        self.expected.set(self.expected.get() + bytes);
        Ok(Expected { meter: self.clone(), left: bytes })
    }

    /// Whether no more may cross the network: the bound is reached, or will be by what is on its
    /// way, or leaves no room for what the coordinator asks for.
    pub fn is_exhausted(&self) -> bool {
        let Some(max) = self.max.get() else { return false };
        self.used() >= max || self.taken() > max || self.refused.get() > 0
    }

    /// Why no more may, in words.
    pub fn exhausted(&self) -> Option<String> {
        let max = self.max.get().filter(|_| self.is_exhausted())?;
        let mb = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
        let more = match self.refused.get() {
            0 => String::new(),
            bytes => format!(", and the next layers are {}", mb(bytes)),
        };
        Some(format!("the data cap of {} is reached ({} used{more})", mb(max), mb(self.used())))
    }

    fn used(&self) -> u64 {
        self.down.get().saturating_add(self.up.get())
    }

    /// The same with what is on its way.
    fn taken(&self) -> u64 {
        self.used().saturating_add(self.expected.get())
    }
}

/// A download that has begun.
#[derive(Debug)]
pub struct Expected {
    meter: Rc<Meter>,
    left: u64,
}

impl Expected {
    /// Some of it came, and was counted.
    pub fn came(&mut self, bytes: usize) {
        let came = self.left.min(bytes as u64);
        self.left -= came;
        self.meter.expected.set(self.meter.expected.get() - came);
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.meter.expected.set(self.meter.expected.get() - self.left);
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

    #[test]
    fn what_is_on_its_way_counts_and_what_does_not_fit_is_not_begun() {
        let meter = Rc::new(Meter::default());
        drop(meter.expect(u64::MAX).expect("no cap"));
        meter.set_max(Some(1000));
        let mut first = meter.expect(600).expect("there is room");
        let second = meter.expect(400).expect("just enough");
        assert!(!meter.is_exhausted(), "all of it may come");
        meter.received(100);
        first.came(100);
        assert!(!meter.is_exhausted(), "and does");
        meter.sent(1);
        assert!(meter.is_exhausted(), "too little is left for the rest");
        drop(second);
        assert!(!meter.is_exhausted(), "nobody wants it any more");
        assert!(meter.expect(400).is_err(), "500 are to come, 101 are used");
        let reason = meter.exhausted().expect("it says so again");
        assert!(reason.contains("the next layers are"), "{reason}");
        meter.set_max(Some(1000));
        assert!(meter.is_exhausted(), "nothing has changed");
        meter.set_max(Some(2000));
        assert!(!meter.is_exhausted());
        drop(first);
        assert!(meter.expect(1899).is_ok(), "what did not come does not count");
    }
}
