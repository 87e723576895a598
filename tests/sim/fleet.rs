//! What a run is made of: the model, the machines that come, how many clients, what strikes.

use std::time::Duration;

use protocol::{BlobRef, WorkerKind};
use scheduler::audit::Settings;
use scheduler::{ClassSpec, Config, DivisionSpec, ModelSpec, PartSpec, RankSpec, Sabotage, Tensor};

use crate::faults::{Fault, Rng, Tally};
use crate::machine::Build;
use crate::model::{D_MODEL, VOCAB};

pub const MIB: u64 = 1 << 20;
/// What the model is served in, the preferred one first.
pub const CLASSES: [&str; 2] = ["canonical-1", "wgsl-f32"];

/// What is special about a run.
#[derive(Clone, Copy, Default)]
pub struct Setup {
    pub sabotage: Sabotage,
    /// Some machines lie.
    pub liars: bool,
    /// Nothing is given to a client that was not verified.
    pub full: bool,
    /// Layers are divided among workers, in groups of two.
    pub groups: bool,
}

/// The size of a run.
#[derive(Clone)]
pub struct Setting {
    pub setup: Setup,
    pub config: Config,
    pub layers: u32,
    /// Machines that come at the beginning.
    pub machines: u64,
    /// Requests, not counting the turns that follow: at least, and less than.
    pub requests: (u64, u64),
    /// Faults strike until then, virtual µs.
    pub faults_until_us: u64,
    /// From one strike to the next, µs: at least, and less than.
    pub strike_us: (u64, u64),
    /// The invariants are checked after every so many events: a check looks at everything.
    pub check_every: u64,
    /// A crowd of 60 % weak, 30 % middling and 10 % strong machines, whose time for a row grows
    /// with the layers that it goes through.
    pub crowd: bool,
}

impl Setting {
    /// Few machines, little memory, much trouble.
    pub fn small(setup: Setup) -> Setting {
        Setting {
            setup,
            config: Config {
                sessions_max: 12,
                queue_max: 40,
                cached_sessions_max: 6,
                log_bytes_max: 60_000,
                kv_positions_max: 1280,
                kv_positions_min: 640,
                scratch_bytes: MIB / 4,
                chunk_rows_max: 48,
                load_patience: Duration::from_secs(10),
                sabotage: setup.sabotage,
                tensor: if setup.groups { Tensor::Groups(2) } else { Tensor::Off },
                audits: Settings { full: setup.full, ..Settings::default() },
                ..Config::default()
            },
            layers: 6,
            machines: 7,
            requests: (10, 30),
            faults_until_us: 60_000_000,
            strike_us: (200_000, 3_000_000),
            check_every: 1,
            crowd: false,
        }
    }

    /// So many machines; about a hundredth of them is struck in ten seconds.
    pub fn crowd(machines: u64) -> Setting {
        let small = Setting::small(Setup::default());
        let strike = 2_000_000_000 / machines.max(10);
        Setting {
            setup: small.setup,
            config: Config {
                sessions_max: 256,
                queue_max: 1024,
                cached_sessions_max: 32,
                log_bytes_max: 64 << 20,
                ..small.config
            },
            layers: 32,
            machines,
            requests: (150, 200),
            faults_until_us: 30_000_000,
            strike_us: (strike / 2, strike),
            check_every: machines,
            crowd: true,
        }
    }

    pub fn model(&self) -> ModelSpec {
        let blob = |name: &str, bytes: u64| BlobRef { hash: format!("{name:0>64}"), bytes };
        let tied = blob("e", 2 * MIB);
        let mut parts = vec![PartSpec { blobs: vec![tied.clone()], work_bytes: 0 }];
        for layer in 0..self.layers {
            let blobs = vec![blob(&format!("{layer}"), MIB)];
            parts.push(PartSpec { blobs, work_bytes: MIB });
        }
        parts.push(PartSpec { blobs: vec![blob("f", 100), tied], work_bytes: 2 * MIB });
        ModelSpec {
            name: "fake".into(),
            manifest: blob("a", 1000),
            classes: CLASSES
                .map(|name| ClassSpec { name: name.into(), kv_bytes_per_position: 16 })
                .to_vec(),
            parts,
            d_model: D_MODEL,
            vocab: VOCAB,
            context: 2000,
            divisions: vec![DivisionSpec {
                form: "rows".into(),
                weights: vec![1, 1],
                // A head is on both.
                ranks: vec![RankSpec { weights: 0.55, kv: 0.6 }; 2],
                exchanges: 4,
                classes: vec![CLASSES[0].into()],
            }],
        }
    }

    /// A machine that comes, with a key of its own.
    pub fn build(&self, key: String, trusted: bool, rng: &mut Rng, tally: &mut Tally) -> Build {
        match self.crowd && !trusted {
            true => self.one_of_a_crowd(key, rng),
            false => self.one_of_few(key, trusted, rng, tally),
        }
    }

    fn one_of_a_crowd(&self, key: String, rng: &mut Rng) -> Build {
        let (browser, memory_mib, row_us) = match rng.below(10) {
            0..=5 => (true, rng.between(2, 6), rng.between(400, 1_200)),
            6..=8 => (rng.chance(3_000), rng.between(4, 12), rng.between(100, 400)),
            _ => (false, rng.between(12, 50), rng.between(20, 100)),
        };
        Build {
            key,
            kind: if browser { WorkerKind::Browser } else { WorkerKind::Native },
            classes: classes(browser, rng),
            trusted: false,
            memory_bytes: memory_mib * MIB,
            row_us,
            per_layer: true,
            bytes_per_s: 1e6 * MIB as f64 / row_us as f64,
            layers: self.layers,
            ends_only: false,
            lie: None,
        }
    }

    fn one_of_few(&self, key: String, trusted: bool, rng: &mut Rng, tally: &mut Tally) -> Build {
        let browser = !trusted && rng.chance(5_000);
        let memory_bytes = match trusted {
            true => rng.between(4 * MIB, 6 * MIB),
            // A phone's tab may lend less than anything needs.
            false if browser && rng.chance(1_000) => MIB,
            false => rng.between(2 * MIB, 5 * MIB),
        };
        let row_us = match browser && rng.chance(2_500) {
            // A tab on a GPU made of software.
            true => {
                tally.count(Fault::SlowTab);
                rng.between(20_000, 80_000)
            }
            false => rng.between(50, 2_000),
        };
        Build {
            key,
            kind: if browser { WorkerKind::Browser } else { WorkerKind::Native },
            classes: classes(browser, rng),
            trusted,
            memory_bytes,
            row_us,
            per_layer: false,
            // Tabs have measured themselves; the others claim what they like.
            bytes_per_s: if browser { 4e6 * MIB as f64 / row_us as f64 } else { 1e9 },
            layers: self.layers,
            ends_only: false,
            lie: None,
        }
    }
}

/// Tabs compute on a GPU, on the CPU, or on either; all others on the CPU.
fn classes(browser: bool, rng: &mut Rng) -> Vec<String> {
    let classes: &[&str] = match (browser, rng.below(3)) {
        (false, _) | (true, 0) => &["canonical-1"],
        (true, 1) => &["wgsl-f32"],
        (true, _) => &["wgsl-f32", "canonical-1"],
    };
    classes.iter().map(|class| (*class).to_owned()).collect()
}
