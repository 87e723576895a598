//! What the owner chose, kept in the browser's local storage between visits.

use api::{TabBackend, TabSettings};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The local storage's key for [`Settings`].
pub const STORAGE_KEY: &str = "weft-settings-1";
/// Longest name, bytes; the field is shorter in characters.
pub const NAME_BYTES_MAX: usize = 60;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Memory that may be lent, bytes.
pub const MEMORY_CHOICES: [u64; 8] =
    [128 * MIB, 256 * MIB, 512 * MIB, GIB, 2 * GIB, 4 * GIB, 8 * GIB, 16 * GIB];
/// Memory without which there is no room for a layer, bytes: the least that is kept.
pub const MEMORY_MIN: u64 = 16 * MIB;
/// The most that is kept, bytes.
pub const MEMORY_MAX: u64 = 64 * GIB;
/// Disk that may be used, bytes.
pub const DISK_CHOICES: [u64; 7] = [0, 256 * MIB, GIB, 2 * GIB, 5 * GIB, 10 * GIB, 20 * GIB];
/// Bytes down and up together; 0 is no cap.
pub const DATA_CHOICES: [u64; 7] = [0, 100 * MIB, 500 * MIB, GIB, 2 * GIB, 10 * GIB, 50 * GIB];
/// The most that is kept of a limit of disk or data, bytes.
pub const LIMIT_MAX: u64 = 1 << 40;
/// Memory if the browser does not say how much there is.
const MEMORY_DEFAULT: u64 = GIB;
/// Most cores by themselves, and at all.
const THREADS_DEFAULT_MAX: u32 = 8;
const THREADS_MAX: u32 = 16;
const DISK_DEFAULT: u64 = 2 * GIB;

/// All choices of the page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Memory for weights, KV cache and scratch, bytes.
    pub memory_bytes: u64,
    /// Weights kept on disk, bytes; 0 keeps none.
    pub disk_bytes: u64,
    /// Bytes down and up together in one visit; 0 is no cap.
    pub data_bytes: u64,
    /// Share of the time spent computing.
    pub intensity_percent: u8,
    /// Processor cores that compute, where a GPU does not.
    pub threads: u32,
    /// A name for people; empty: anonymous.
    pub name: String,
    /// Pause while the machine runs on its battery.
    pub only_charging: bool,
    /// Pause while the tab is hidden.
    pub stop_when_hidden: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            memory_bytes: MEMORY_DEFAULT,
            disk_bytes: DISK_DEFAULT,
            data_bytes: 0,
            intensity_percent: 100,
            threads: 1,
            name: String::new(),
            only_charging: true,
            stop_when_hidden: false,
        }
    }
}

impl Settings {
    /// For a machine with, where the browser says it, so much memory and so many cores: a
    /// quarter of the one, and half of the other.
    pub fn for_machine(memory_gib: Option<f64>, cores: Option<u32>) -> Settings {
        let quarter = memory_gib.map_or(MEMORY_DEFAULT, |gib| (gib * GIB as f64 / 4.0) as u64);
        let memory = MEMORY_CHOICES.iter().rev().find(|choice| **choice <= quarter);
        Settings {
            memory_bytes: memory.copied().unwrap_or(MEMORY_CHOICES[0]),
            threads: cores.map_or(1, |cores| cores / 2).clamp(1, THREADS_DEFAULT_MAX),
            ..Settings::default()
        }
    }

    /// What was kept, with what is out of range, missing, or not JSON, as in `default`.
    pub fn read(kept: Option<&str>, default: Settings) -> Settings {
        let read = kept.and_then(|text| serde_json::from_str::<Value>(text).ok());
        let (Some(Value::Object(read)), Ok(Value::Object(mut all))) =
            (read, serde_json::to_value(&default))
        else {
            return default;
        };
        // Whoever kept them may not have known all of them.
        all.extend(read);
        let Ok(kept) = serde_json::from_value::<Settings>(all.into()) else { return default };
        // Not only what the page offers: a limit may have been set by hand.
        let within = |value, least: u64, most: u64, other| match value {
            value if (least..=most).contains(&value) => value,
            _ => other,
        };
        Settings {
            memory_bytes: within(kept.memory_bytes, MEMORY_MIN, MEMORY_MAX, default.memory_bytes),
            disk_bytes: within(kept.disk_bytes, 0, LIMIT_MAX, default.disk_bytes),
            data_bytes: within(kept.data_bytes, 0, LIMIT_MAX, default.data_bytes),
            intensity_percent: kept.intensity_percent.clamp(25, 100),
            threads: kept.threads.clamp(1, THREADS_MAX),
            name: shortened(&kept.name),
            ..kept
        }
    }

    /// To be kept.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain fields")
    }

    /// What the worker is told; `backend` is the page's address's.
    pub fn for_worker(&self, backend: Option<TabBackend>) -> TabSettings {
        TabSettings {
            backend,
            memory_bytes_max: self.memory_bytes,
            disk_bytes_max: self.disk_bytes,
            data_bytes_max: (self.data_bytes > 0).then_some(self.data_bytes),
            intensity_percent: self.intensity_percent,
            name: shortened(&self.name),
            threads: self.threads,
        }
    }
}

/// Cores to choose from on a machine with so many, the one chosen among them.
pub fn thread_choices(cores: Option<u32>, chosen: u32) -> Vec<u32> {
    let cores = cores.unwrap_or(1).clamp(1, THREADS_MAX);
    let mut choices: Vec<u32> = (1..=cores).filter(|n| *n <= 4 || n % 2 == 0).collect();
    choices.extend([cores, chosen]);
    choices.sort_unstable();
    choices.dedup();
    choices
}

/// The value of `?backend=`, if it names one.
pub fn backend_named(value: Option<&str>) -> Option<TabBackend> {
    match value {
        Some("webgpu") => Some(TabBackend::Webgpu),
        Some("wasm") => Some(TabBackend::Wasm),
        _ => None,
    }
}

fn shortened(name: &str) -> String {
    let name = name.trim();
    let end = (0..=NAME_BYTES_MAX.min(name.len())).rev().find(|end| name.is_char_boundary(*end));
    name[..end.unwrap_or(0)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_lends_a_quarter_of_its_memory() {
        assert_eq!(Settings::for_machine(Some(8.0), None).memory_bytes, 2 * GIB);
        assert_eq!(Settings::for_machine(Some(0.25), None).memory_bytes, 128 * MIB);
        assert_eq!(Settings::for_machine(None, None).memory_bytes, GIB);
    }

    #[test]
    fn what_was_kept_comes_back_and_nonsense_does_not() {
        let default = Settings::for_machine(Some(4.0), Some(4));
        let chosen = Settings {
            memory_bytes: 256 * MIB,
            intensity_percent: 50,
            name: "loom".to_owned(),
            stop_when_hidden: true,
            ..default.clone()
        };
        assert_eq!(Settings::read(Some(&chosen.to_json()), default.clone()), chosen);
        assert_eq!(Settings::read(None, default.clone()), default);
        assert_eq!(Settings::read(Some("{"), default.clone()), default);
        let odd = r#"{"memory_bytes": 7, "intensity_percent": 250, "threads": 0}"#;
        let read = Settings::read(Some(odd), default.clone());
        assert_eq!(read.memory_bytes, default.memory_bytes);
        assert_eq!(read.intensity_percent, 100);
        assert_eq!(read.threads, 1);
    }

    #[test]
    fn what_was_not_kept_is_as_for_this_machine() {
        let default = Settings::for_machine(Some(4.0), Some(8));
        let read = Settings::read(Some(r#"{"name": "loom", "other": 1}"#), default.clone());
        assert_eq!(read, Settings { name: "loom".to_owned(), ..default });
        assert_eq!(read.threads, 4);
    }

    #[test]
    fn half_of_the_cores_are_lent_unless_its_owner_says_otherwise() {
        let threads = |cores| Settings::for_machine(None, cores).threads;
        assert_eq!([None, Some(0), Some(1), Some(2), Some(6)].map(threads), [1, 1, 1, 1, 3]);
        assert_eq!(threads(Some(64)), 8);
        assert_eq!(thread_choices(Some(8), 3), [1, 2, 3, 4, 6, 8]);
        assert_eq!(thread_choices(None, 1), [1]);
        assert_eq!(thread_choices(Some(2), 7), [1, 2, 7]);
        assert_eq!(thread_choices(Some(99), 1).last(), Some(&16));
        let told = Settings { threads: 5, ..Settings::default() }.for_worker(None);
        assert_eq!(told.threads, 5);
    }

    #[test]
    fn no_cap_is_told_as_none_and_names_are_cut_between_characters() {
        let settings = Settings { name: format!(" {}", "ü".repeat(40)), ..Settings::default() };
        let told = settings.for_worker(backend_named(Some("wasm")));
        assert_eq!(told.data_bytes_max, None);
        assert_eq!(told.name, "ü".repeat(30));
        assert_eq!(told.backend, Some(TabBackend::Wasm));
        assert_eq!(backend_named(Some("cuda")), None);
    }
}
