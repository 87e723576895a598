//! A fleet on paper: the YAML file of `coordinator plan --fleet`.

use std::path::Path;

use anyhow::{Context, bail};
use protocol::{MEMORY_BYTES_MAX, NAME_BYTES_MAX, STEP_CREDITS_MAX, WorkerKind};
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::checked::checked;
use crate::store::{CANONICAL_1, CLASSES};

/// Workers of a file at most, each of a `count` one.
pub const WORKERS_MAX: usize = 10_000;
/// Bytes of a file at most.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Steps that a worker takes at once where nothing else is said, as our workers do.
const STEP_CREDITS: u32 = 2;
/// Round trip of a worker on another machine where nothing else is said, ms: a home network.
const HOP_MS: f64 = 1.0;
/// Round trip at most, ms.
const HOP_MS_MAX: f64 = 60_000.0;
/// Rates at most, whatever their unit.
const RATE_MAX: f64 = 1e15;
/// Rates at least, in weight bytes per second: with less no step of a model would ever end.
const RATE_MIN: f64 = 1e3;
/// The same, in layers × tokens per second.
const LAYER_RATE_MIN: f64 = 1e-3;

/// What `coordinator plan --example` prints.
pub const EXAMPLE: &str = include_str!("example.yaml");

/// The file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetFile {
    /// Who there is.
    pub workers: Vec<Machine>,
}

/// One worker, or `count` equal ones.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// For people.
    #[serde(deserialize_with = "name")]
    pub name: String,
    /// What sort.
    #[serde(default = "native", deserialize_with = "kind")]
    pub kind: WorkerKind,
    /// How many of them.
    #[serde(default = "one", deserialize_with = "count")]
    pub count: u32,
    /// Memory lent, MiB.
    #[serde(deserialize_with = "memory")]
    pub memory_mib: u64,
    /// How fast it is.
    pub rate: Rate,
    /// Round trip, ms.
    #[serde(default, deserialize_with = "hop")]
    pub hop_ms: Option<f64>,
    /// The classes that it computes in.
    #[serde(default = "canonical", rename = "class", deserialize_with = "classes")]
    pub classes: Vec<String>,
    /// Whether it may hold the ends.
    #[serde(default)]
    pub trusted: bool,
    /// Whether it has all of the model's weights on disk.
    #[serde(default)]
    pub cached: bool,
    /// Whether it is to hold the ends only (`--embedded ends`).
    #[serde(default)]
    pub ends_only: bool,
    /// Whether it is a tab that nobody sees.
    #[serde(default)]
    pub hidden: bool,
    /// Steps that it takes at once.
    #[serde(default = "credits", deserialize_with = "step_credits")]
    pub step_credits: u32,
}

/// How fast a worker is, at 1 and at 8 rows a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// Weight bytes worked through per second, as a worker's log tells at its start.
    BytesPerS([f64; 2]),
    /// Layers × tokens per second, as the fleet view tells.
    LayerTokensPerS(f64),
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Rate, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Numbers {
            One(f64),
            Two([f64; 2]),
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Given {
            bytes_per_s: Option<Numbers>,
            gb_per_s: Option<Numbers>,
            layer_tokens_per_s: Option<f64>,
        }
        let both = |numbers| match numbers {
            Numbers::One(rate) => [rate; 2],
            Numbers::Two(rates) => rates,
        };
        checked(deserializer, |given: Given| {
            let rate = match given {
                Given { bytes_per_s: Some(n), gb_per_s: None, layer_tokens_per_s: None } => {
                    Rate::BytesPerS(both(n))
                }
                Given { bytes_per_s: None, gb_per_s: Some(n), layer_tokens_per_s: None } => {
                    Rate::BytesPerS(both(n).map(|rate| rate * 1e9))
                }
                Given { bytes_per_s: None, gb_per_s: None, layer_tokens_per_s: Some(rate) } => {
                    Rate::LayerTokensPerS(rate)
                }
                Given { .. } => {
                    return Err("rate: exactly one of `gb_per_s`, `bytes_per_s` and \
                                `layer_tokens_per_s` is expected, for example `rate: \
                                {gb_per_s: [20, 8.5]}`"
                        .into());
                }
            };
            let (numbers, least, unit) = match rate {
                Rate::BytesPerS(rates) => (rates, RATE_MIN, "bytes/s"),
                Rate::LayerTokensPerS(rate) => ([rate; 2], LAYER_RATE_MIN, "layer tokens/s"),
            };
            // What is not a number is in no range.
            match numbers.into_iter().find(|number| !(least..=RATE_MAX).contains(number)) {
                None => Ok(rate),
                Some(number) => {
                    Err(format!("rate: {number} {unit} is not within {least} to {RATE_MAX:e}"))
                }
            }
        })
    }
}

impl FleetFile {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or something in it makes no sense: what, and in which line.
    pub fn read(path: &Path) -> anyhow::Result<FleetFile> {
        let got = std::fs::metadata(path).with_context(|| format!("reading {}", path.display()))?;
        if got.len() > FILE_BYTES_MAX {
            bail!("{} has {} bytes: it is no fleet file", path.display(), got.len());
        }
        let text = std::fs::read_to_string(path);
        let text = text.with_context(|| format!("reading {}", path.display()))?;
        FleetFile::parse(&text).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))
    }

    /// Reads what stands in a file.
    ///
    /// # Errors
    /// What is wrong and where.
    pub fn parse(text: &str) -> Result<FleetFile, serde_yaml_ng::Error> {
        let file: FleetFile = serde_yaml_ng::from_str(text)?;
        let workers: usize = file.workers.iter().map(|machine| machine.count as usize).sum();
        if workers > WORKERS_MAX {
            let problem = format!("workers: they are {workers}, at most {WORKERS_MAX} are planned");
            return Err(serde_yaml_ng::Error::custom(problem));
        }
        Ok(file)
    }
}

impl Machine {
    /// Round trip, seconds.
    pub fn hop_s(&self) -> f64 {
        let default = if self.kind == WorkerKind::Embedded { 0.0 } else { HOP_MS };
        self.hop_ms.unwrap_or(default) * 1e-3
    }
}

impl Rate {
    /// Weight bytes per second at 1 and 8 rows a step, of a model whose layers have so many
    /// bytes on average.
    pub fn bytes_per_s(self, layer_bytes: f64) -> [f64; 2] {
        match self {
            Rate::BytesPerS(rates) => rates,
            Rate::LayerTokensPerS(rate) => [rate * layer_bytes; 2],
        }
    }
}

fn native() -> WorkerKind {
    WorkerKind::Native
}

fn one() -> u32 {
    1
}

fn credits() -> u32 {
    STEP_CREDITS
}

fn canonical() -> Vec<String> {
    vec![CANONICAL_1.to_owned()]
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(deserializer, |name: String| {
        let fits = (1..=NAME_BYTES_MAX).contains(&name.len());
        match fits && !name.chars().any(char::is_control) {
            true => Ok(name),
            false => Err(format!("name: 1 to {NAME_BYTES_MAX} characters are expected")),
        }
    })
}

fn kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<WorkerKind, D::Error> {
    checked(deserializer, |kind: String| match kind.as_str() {
        "embedded" => Ok(WorkerKind::Embedded),
        "native" => Ok(WorkerKind::Native),
        "browser" => Ok(WorkerKind::Browser),
        other => Err(format!("kind: `{other}` is none of native, browser, embedded")),
    })
}

fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    number(deserializer, "count", 1, WORKERS_MAX as u64).map(|count| count as u32)
}

fn memory<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    number(deserializer, "memory_mib", 1, MEMORY_BYTES_MAX >> 20)
}

fn step_credits<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    number(deserializer, "step_credits", 1, STEP_CREDITS_MAX.into()).map(|credits| credits as u32)
}

fn number<'de, D: Deserializer<'de>>(
    deserializer: D,
    name: &str,
    min: u64,
    max: u64,
) -> Result<u64, D::Error> {
    checked(deserializer, |got: u64| match (min..=max).contains(&got) {
        true => Ok(got),
        false => Err(format!("{name}: {got} is not within {min} to {max}")),
    })
}

fn hop<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    checked(deserializer, |got: f64| match (0.0..=HOP_MS_MAX).contains(&got) {
        true => Ok(Some(got)),
        false => Err(format!("hop_ms: {got} is not within 0 to {HOP_MS_MAX}")),
    })
}

fn classes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "class: a class or a list of classes is expected")]
    enum Given {
        One(String),
        Many(Vec<String>),
    }
    checked(deserializer, |given| {
        let classes = match given {
            Given::One(one) => vec![one],
            Given::Many(many) => many,
        };
        match classes.iter().find(|class| !CLASSES.contains(&class.as_str())) {
            None if classes.is_empty() => Err("class: at least one is needed".into()),
            None => Ok(classes),
            Some(unknown) => Err(format!("class: `{unknown}` is none of {}", CLASSES.join(", "))),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_sound() {
        let file = FleetFile::parse(EXAMPLE).unwrap();
        assert!(file.workers.iter().any(|machine| machine.count > 1));
        assert!(file.workers.iter().any(|machine| machine.trusted));
    }

    #[test]
    fn what_makes_no_sense_is_told_with_its_line_and_field() {
        let worker = |field: &str| {
            format!(
                "workers:\n  - name: a\n    memory_mib: 9\n    rate: {{gb_per_s: 1}}\n{field}\n"
            )
        };
        for (text, field, line) in [
            (worker("    memroy: 3"), "memroy", 5),
            (worker("    count: 0"), "count", 5),
            (worker("    count: many"), "count", 5),
            (worker("    hop_ms: -1"), "hop_ms", 5),
            (worker("    class: f16"), "class", 5),
            (worker("    kind: phone"), "kind", 5),
            (worker("    step_credits: 1000"), "step_credits", 5),
            (worker("  - name: b\n    memory_mib: 1\n    rate: {}"), "rate", 7),
            (worker("  - name: b\n    memory_mib: 1\n    rate: {gb_per_s: 0}"), "rate", 7),
            (worker("  - name: b\n    memory_mib: 1\n    rate: {gb_per_s: [.nan, 5]}"), "NaN", 7),
            (worker("  - name: b\n    memory_mib: 1\n    rate: {gb_per_s: [5, .nan]}"), "NaN", 7),
            (worker("  - name: b\n    memory_mib: 1\n    rate: {gb_per_s: .inf}"), "inf", 7),
            (worker("  - name: b\n    memory_mib: 1\n    rate: {bytes_per_s: 1e-12}"), "1000", 7),
            (
                worker("  - name: b\n    memory_mib: 1\n    rate: {layer_tokens_per_s: 0}"),
                "rate",
                7,
            ),
            (worker("    hop_ms: .nan"), "hop_ms", 5),
            (worker("  - name: b\n    memory_mib: 0\n    rate: {gb_per_s: 1}"), "memory_mib", 6),
            (worker("  - name: b\n    rate: {gb_per_s: 1}"), "memory_mib", 5),
        ] {
            let error = FleetFile::parse(&text).unwrap_err().to_string();
            assert!(error.contains(field), "{text}\n{error}");
            assert!(error.contains(&format!("at line {line} ")), "{line}: {error}\n{text}");
        }
        let error = FleetFile::parse("wrokers: []").unwrap_err().to_string();
        assert!(error.contains("`wrokers`, expected `workers`"), "{error}");
        let many = "workers:\n  - {name: a, memory_mib: 1, rate: {gb_per_s: 1}, count: 10000}\n  \
                    - {name: b, memory_mib: 1, rate: {gb_per_s: 1}}\n";
        assert!(FleetFile::parse(many).unwrap_err().to_string().contains("10001"));
    }

    #[test]
    fn rates_are_told_as_workers_and_the_fleet_view_tell_them() {
        let rate = |text: &str| serde_yaml_ng::from_str::<Rate>(text).unwrap();
        assert_eq!(rate("gb_per_s: 2"), Rate::BytesPerS([2e9, 2e9]));
        assert_eq!(rate("gb_per_s: [2, 5.5]"), Rate::BytesPerS([2e9, 5.5e9]));
        assert_eq!(rate("bytes_per_s: [7000, 8000]"), Rate::BytesPerS([7e3, 8e3]));
        assert_eq!(rate("layer_tokens_per_s: 30").bytes_per_s(1000.0), [30_000.0; 2]);
    }
}
