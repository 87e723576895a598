//! What the owner's settings mean.

use api::{TabBackend, TabSettings};
use protocol::{NAME_BYTES_MAX, clean_text_to};

/// Most memory that a worker on WASM lends, bytes: its address space is 4 GiB, of which the
/// program itself, buffers and what is between allocations need some.
pub const WASM_MEMORY_BYTES_MAX: u64 = 3 << 30;
/// Less than this is not offered: no layer of a usual model fits, bytes.
pub const LENT_BYTES_MIN: u64 = 8 << 20;
/// The answers of all helpers of a shard together, in the memory shared with the chief and in
/// their own, at most: twice the f32 of `engine::crew::ANSWER_VALUES_MAX`.
const HELPERS_ANSWERS_BYTES: u64 = 32 << 20;
/// What else each helper has: the program, and its orders, which for 256 rows of a usual model
/// take 1 to 4 MiB in the memory shared with the chief and twice as much in its own.
const HELPER_BYTES: u64 = 12 << 20;
/// Longest rest after a step, ms.
pub const REST_MS_MAX: f64 = 20_000.0;

/// What a change of settings asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Nothing, or what counts from now on by itself.
    Live,
    /// The coordinator was told otherwise: leave in good order and join again.
    Rejoin,
    /// Something else computes: the same, with a new benchmark.
    Reopen,
}

/// What going from `old` to `new` asks for.
pub fn change(old: &TabSettings, new: &TabSettings) -> Change {
    if old.backend != new.backend || old.threads != new.threads {
        Change::Reopen
    } else if old.memory_bytes_max != new.memory_bytes_max || old.name != new.name {
        Change::Rejoin
    } else {
        Change::Live
    }
}

/// Memory to lend for weights, KV cache and scratch, bytes.
pub fn lent_bytes(settings: &TabSettings, backend: TabBackend) -> u64 {
    match backend {
        TabBackend::Webgpu => settings.memory_bytes_max,
        TabBackend::Wasm => settings.memory_bytes_max.min(WASM_MEMORY_BYTES_MAX),
    }
}

/// What turned out not to fit. A change of what the owner lends, or of what computes, begins
/// anew.
#[derive(Clone, Debug, Default)]
pub struct Room {
    found: Option<Found>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    backend: TabBackend,
    /// What its owner lends, bytes.
    asked: u64,
    /// What is lent instead, bytes.
    lent: u64,
}

impl Room {
    /// Memory to lend, bytes, and why that is less than its owner lends, in words.
    pub fn lent(&self, settings: &TabSettings, backend: TabBackend) -> (u64, Option<String>) {
        let asked = lent_bytes(settings, backend);
        match self.found.as_ref().filter(|f| (f.backend, f.asked) == (backend, asked)) {
            Some(Found { lent, .. }) => {
                let [lent_mb, asked_mb] = [*lent, asked].map(|bytes| bytes >> 20);
                (*lent, Some(format!("lends {lent_mb} of {asked_mb} MiB: more did not fit")))
            }
            None => (asked, None),
        }
    }

    /// What is lent did not fit: half of it is lent from now on. `false` if that is too little
    /// for anything.
    pub fn less(&mut self, settings: &TabSettings, backend: TabBackend) -> bool {
        let lent = self.lent(settings, backend).0 / 2;
        self.found = Some(Found { backend, asked: lent_bytes(settings, backend), lent });
        lent >= LENT_BYTES_MIN
    }
}

/// What of `lent` bytes the coordinator may fill where so many helpers have copies of their
/// shares of the weights: with T threads all weights are there once, and (T − 1)/T of them again.
/// Helpers' own memory and buffers are set aside before, but no more than a quarter: the less is
/// lent, the narrower the model, and with it the buffers.
pub fn without_copies(lent: u64, helpers: usize) -> u64 {
    if helpers == 0 {
        return lent;
    }
    let aside = HELPERS_ANSWERS_BYTES + helpers as u64 * HELPER_BYTES;
    let left = u128::from(lent - aside.min(lent / 4));
    let threads = helpers as u128 + 1;
    (left * threads / (2 * threads - 1)) as u64
}

/// The worker's name for people.
pub fn name(settings: &TabSettings) -> String {
    match settings.name.trim() {
        "" => "anonymous".into(),
        name => clean_text_to(name, NAME_BYTES_MAX),
    }
}

/// The share of the time that it computes, 0 to 1.
pub fn share(settings: &TabSettings) -> f64 {
    f64::from(settings.intensity_percent.clamp(1, 100)) / 100.0
}

/// How long to rest after computing for that long, ms.
pub fn rest_ms(computed_ms: f64, settings: &TabSettings) -> f64 {
    let share = share(settings);
    (computed_ms.max(0.0) * (1.0 - share) / share).min(REST_MS_MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn settings() -> TabSettings {
        TabSettings {
            backend: None,
            memory_bytes_max: 8 << 30,
            disk_bytes_max: 1 << 30,
            data_bytes_max: None,
            intensity_percent: 100,
            name: "otter".into(),
            threads: 1,
        }
    }

    #[test]
    fn only_what_the_coordinator_was_told_makes_it_join_again() {
        let old = settings();
        let with = |edit: fn(&mut TabSettings)| {
            let mut new = old.clone();
            edit(&mut new);
            change(&old, &new)
        };
        assert_eq!(with(|_| {}), Change::Live);
        assert_eq!(with(|s| s.intensity_percent = 25), Change::Live);
        assert_eq!(with(|s| s.data_bytes_max = Some(1)), Change::Live);
        assert_eq!(with(|s| s.disk_bytes_max = 0), Change::Live);
        assert_eq!(with(|s| s.memory_bytes_max = 1), Change::Rejoin);
        assert_eq!(with(|s| s.name = "heron".into()), Change::Rejoin);
        assert_eq!(with(|s| s.backend = Some(TabBackend::Wasm)), Change::Reopen);
        assert_eq!(with(|s| s.threads = 4), Change::Reopen);
    }

    #[test]
    fn wasm_lends_what_its_address_space_has() {
        assert_eq!(lent_bytes(&settings(), TabBackend::Webgpu), 8 << 30);
        assert_eq!(lent_bytes(&settings(), TabBackend::Wasm), WASM_MEMORY_BYTES_MAX);
        let small = TabSettings { memory_bytes_max: 5, ..settings() };
        assert_eq!(lent_bytes(&small, TabBackend::Wasm), 5);
    }

    #[test]
    fn what_does_not_fit_is_halved_until_its_owner_says_otherwise() {
        let (settings, gpu) = (settings(), TabBackend::Webgpu);
        let mut room = Room::default();
        assert_eq!(room.lent(&settings, gpu), (8 << 30, None));
        assert!(room.less(&settings, gpu) && room.less(&settings, gpu));
        let (lent, note) = room.lent(&settings, gpu);
        assert_eq!(lent, 2 << 30);
        assert!(note.is_some_and(|n| n.starts_with("lends 2048 of 8192 MiB")));
        assert_eq!(room.lent(&settings, TabBackend::Wasm), (WASM_MEMORY_BYTES_MAX, None));
        let other = TabSettings { memory_bytes_max: 4 << 30, ..settings };
        assert_eq!(room.lent(&other, gpu), (4 << 30, None));
        assert!((0..9).all(|_| room.less(&other, gpu)), "to 8 MiB");
        assert!(!room.less(&other, gpu));
    }

    #[test]
    fn copies_of_helpers_lie_within_what_is_lent() {
        assert_eq!(without_copies(1500, 0), 1500);
        let lent = 4 << 30;
        for helpers in 1..8 {
            let once = without_copies(lent, helpers);
            let copies = once * helpers as u64 / (helpers as u64 + 1);
            let aside = lent - once - copies;
            let own = HELPERS_ANSWERS_BYTES + helpers as u64 * HELPER_BYTES;
            assert!((own..own + 4).contains(&aside), "{helpers} helpers: {aside}");
        }
        // A quarter of 12, and of the rest two thirds.
        assert_eq!(without_copies(12, 1), 6);
    }

    #[test]
    fn a_name_is_cleaned_and_nobody_is_anonymous() {
        let named = |name: &str| super::name(&TabSettings { name: name.into(), ..settings() });
        assert_eq!(named(" otter\n"), "otter");
        assert_eq!(named("a\u{7}b"), "a b");
        assert_eq!(named("  "), "anonymous");
        assert_eq!(named(&"é".repeat(1000)).len(), NAME_BYTES_MAX);
    }

    #[test]
    fn rests_are_in_proportion() {
        let rest = |percent| {
            let settings = TabSettings { intensity_percent: percent, ..settings() };
            rest_ms(100.0, &settings).round()
        };
        assert_eq!((rest(100), rest(50), rest(25)), (0.0, 100.0, 300.0));
        assert_eq!(rest(0), rest(1), "never for ever");
        let slow = TabSettings { intensity_percent: 1, ..settings() };
        assert_eq!(rest_ms(9000.0, &slow), REST_MS_MAX);
    }
}
