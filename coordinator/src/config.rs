//! What `coordinator serve` can be told, from three places, with one meaning each.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::Dtype;
use scheduler::Tensor;
use serde::{Deserialize, Deserializer};

use crate::pull::catalogue;
use crate::server::TlsFiles;
use crate::store::{CANONICAL_1, CLASSES, EXACT_F32, WGSL_F32};

/// `--listen` where nothing else is said: this machine only.
const LISTEN_DEFAULT: &str = "127.0.0.1:8080";
/// `--classes` where nothing else is said.
const CLASSES_DEFAULT: [&str; 2] = [CANONICAL_1, WGSL_F32];
/// `--grace-s` where nothing else is said.
const GRACE_DEFAULT_S: u64 = 30;
/// Bytes of a configuration file at most.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Characters of an invite token at least: shorter ones are guessed.
const INVITE_TOKEN_CHARS_MIN: usize = 8;

/// The settings as given; `None` and empty where nothing is said.
#[derive(Clone, Debug, Default, PartialEq, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// A model to serve; may be given several times, or with commas between: NAME of the catalogue or of a pulled
    /// model, PATH of a .gguf file, or hf:owner/repo/file.gguf. Fetched if absent
    /// [default: smollm2-135m]
    #[arg(long, env = "WEFT_MODEL", value_name = "NAME|PATH", value_delimiter = ',')]
    #[serde(deserialize_with = "one_or_many")]
    pub model: Vec<String>,
    /// Address and port to listen on; port 0 takes a free one. 0.0.0.0 lets other machines in
    /// [default: 127.0.0.1:8080]
    #[arg(long, env = "WEFT_LISTEN", value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// What the coordinator's own worker may hold: all that it can, the ends only (embedding
    /// and head; the layers then need other workers), or off [default: all]
    #[arg(long, env = "WEFT_EMBEDDED", value_name = "all|ends|off")]
    pub embedded: Option<Embedded>,
    /// Compute in f32 instead of canonical-1 (8-bit activations, f16 KV cache): several times
    /// slower, closer to the reference. The same as --classes exact-f32 [default: false]
    #[arg(long, env = "WEFT_EXACT", value_name = "BOOL", num_args = 0..=1,
          default_missing_value = "true")]
    pub exact: Option<bool>,
    /// How workers may compute, the preferred ways first, with commas between: canonical-1 and
    /// exact-f32 run on CPUs and give the same bits everywhere; wgsl-f32 runs on GPUs, in f32
    /// within a small tolerance. `canonical-1` alone makes every answer reproducible bit for
    /// bit, and leaves GPUs idle [default: canonical-1,wgsl-f32]
    #[arg(long, env = "WEFT_CLASSES", value_name = "LIST", value_delimiter = ',')]
    #[serde(deserialize_with = "one_or_many")]
    pub classes: Vec<String>,
    /// Where models and weights are kept [default: `weft` in the platform's data folder]
    #[arg(long, env = "WEFT_HOME", value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// A token that makes a worker trusted to hold a model's ends, where text is seen; may be
    /// given several times, or with commas between. At least 8 characters, no comma. For tokens
    /// that can be taken back one by one see `coordinator invite`
    #[arg(
        long,
        env = "WEFT_INVITE_TOKEN",
        value_name = "TOKEN",
        value_delimiter = ',',
        hide_env_values = true
    )]
    #[serde(deserialize_with = "one_or_many")]
    pub invite_token: Vec<String>,
    /// Do not trust native workers just because they connect from this machine. Needed behind
    /// a proxy or tunnel on this machine, which makes everyone look so [default: false]
    #[arg(long, env = "WEFT_NO_TRUST_LOOPBACK", value_name = "BOOL", num_args = 0..=1,
          default_missing_value = "true")]
    pub no_trust_loopback: Option<bool>,
    /// Threads that the embedded worker computes with [default: all that this machine has]
    #[arg(long, env = "WEFT_THREADS", value_name = "N")]
    pub threads: Option<u32>,
    /// Memory that the embedded worker may use for weights and KV cache, MiB
    /// [default: three quarters of what is available at the start]
    #[arg(long, env = "WEFT_MEMORY_MIB", value_name = "MIB")]
    pub memory_mib: Option<u64>,
    /// Share of the time that the embedded worker computes, percent, 1 to 100 [default: 100]
    #[arg(long, env = "WEFT_INTENSITY", value_name = "PERCENT")]
    pub intensity: Option<u8>,
    /// Generations in flight at most (each of a request's `n` choices is one); further
    /// requests wait [default: 64]
    #[arg(long, env = "WEFT_SESSIONS_MAX", value_name = "N")]
    pub sessions_max: Option<usize>,
    /// Requests that may wait; further ones are refused with 429 [default: 256]
    #[arg(long, env = "WEFT_QUEUE_MAX", value_name = "N")]
    pub queue_max: Option<usize>,
    /// Finished generations whose KV cache is kept for a conversation's next turn
    /// [default: 32]
    #[arg(long, env = "WEFT_CACHED_SESSIONS_MAX", value_name = "N")]
    pub cached_sessions_max: Option<usize>,
    /// Memory for the record of hidden states that a lost worker's replacement is fed with,
    /// MiB; beyond it a replay starts from the tokens [default: 256]
    #[arg(long, env = "WEFT_LOG_MIB", value_name = "MIB")]
    pub log_mib: Option<u64>,
    /// What the hidden states between stages are sent in: f32, which is exact, so that a split
    /// changes no answer; f16 or int8, half or three tenths of the bytes at a cost in quality
    /// (see the README); or auto, f32 but on links that are measured to be slow
    /// [default: f32]
    #[arg(long, env = "WEFT_BOUNDARIES", value_name = "f32|f16|int8|auto")]
    pub boundaries: Option<Boundaries>,
    /// Share of the work of workers without a good standing that is replayed on trusted
    /// workers, percent; that of proven workers falls from there. 0: none [default: 100]
    #[arg(long, env = "WEFT_AUDIT_PERCENT", value_name = "PERCENT")]
    pub audit_percent: Option<u8>,
    /// Give out a token only once trusted workers have replayed every row behind it that
    /// others computed. Needs a trusted worker with memory for the layers [default: false]
    #[arg(long, env = "WEFT_VERIFY_ALL", value_name = "BOOL", num_args = 0..=1,
          default_missing_value = "true")]
    pub verify_all: Option<bool>,
    /// Divide layers among trusted native CPU workers, which compute each of them together: in
    /// groups of 2 or 4, wherever the plan finds that it pays (auto), or never (off). Tensor
    /// parallelism is for a fast network: its workers wait for each other in every layer
    /// [default: off]
    #[arg(long, env = "WEFT_TENSOR", value_name = "off|auto|2|4")]
    pub tensor: Option<TensorChoice>,
    /// Speak TLS (https and wss) with this certificate: a PEM file, the server's own first.
    /// Browsers on other machines give their GPU over https only. Needs --tls-key
    #[arg(long, env = "WEFT_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, a PEM file
    #[arg(long, env = "WEFT_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// How long streams may go on after SIGTERM or Ctrl-C, seconds [default: 30]
    #[arg(long, env = "WEFT_GRACE_S", value_name = "SECONDS")]
    pub grace_s: Option<u64>,
}

/// A list, or a single string in its place.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a string or a list of strings is expected")]
    enum Given {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Given::deserialize(deserializer)? {
        Given::One(one) => vec![one],
        Given::Many(many) => many,
    })
}

/// What the embedded worker may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Embedded {
    /// All that it can.
    #[default]
    All,
    /// Embedding and head.
    Ends,
    /// There is none.
    Off,
}

/// What the hidden states between stages are sent in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Boundaries {
    /// As they are.
    #[default]
    F32,
    /// Rounded to 16-bit floats.
    F16,
    /// Rounded to 8-bit integers in blocks of 32.
    Int8,
    /// What each link needs.
    Auto,
}

impl Boundaries {
    fn for_scheduler(self) -> scheduler::Boundaries {
        match self {
            Boundaries::F32 => scheduler::Boundaries::All(Dtype::F32),
            Boundaries::F16 => scheduler::Boundaries::All(Dtype::F16),
            Boundaries::Int8 => scheduler::Boundaries::All(Dtype::I8),
            Boundaries::Auto => scheduler::Boundaries::Auto,
        }
    }
}

/// When layers are divided among workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TensorChoice {
    /// Never.
    #[default]
    Off,
    /// Where the plan finds that it pays.
    Auto,
    /// In groups of two.
    #[value(name = "2")]
    #[serde(rename = "2")]
    Two,
    /// In groups of four.
    #[value(name = "4")]
    #[serde(rename = "4")]
    Four,
}

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file is longer than any configuration.
    #[error("{path} has {got} bytes, at most {max} are read: it is no configuration")]
    Length {
        /// Which.
        path: PathBuf,
        /// Its length.
        got: u64,
        /// The bound.
        max: u64,
    },
    /// The file is no YAML, or has a name that is none of ours.
    #[error("{path}: {error}")]
    Yaml {
        /// Which.
        path: PathBuf,
        /// What is wrong and where.
        error: serde_yaml_ng::Error,
    },
    /// A value makes no sense.
    #[error("{name}: {problem}")]
    Value {
        /// The setting's name.
        name: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl Settings {
    /// Reads a YAML file.
    ///
    /// # Errors
    /// [`ConfigError::Read`], [`ConfigError::Length`], [`ConfigError::Yaml`].
    pub fn read(path: &Path) -> Result<Settings, ConfigError> {
        let read = |error| ConfigError::Read { path: path.to_owned(), error };
        let got = std::fs::metadata(path).map_err(read)?.len();
        if got > FILE_BYTES_MAX {
            return Err(ConfigError::Length { path: path.to_owned(), got, max: FILE_BYTES_MAX });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        if text.trim().is_empty() {
            return Ok(Settings::default());
        }
        let yaml = |error| ConfigError::Yaml { path: path.to_owned(), error };
        serde_yaml_ng::from_str(&text).map_err(yaml)
    }

    /// These settings, and `base`'s where they say nothing.
    pub fn over(self, base: Settings) -> Settings {
        fn list(over: Vec<String>, base: Vec<String>) -> Vec<String> {
            if over.is_empty() { base } else { over }
        }
        Settings {
            model: list(self.model, base.model),
            listen: self.listen.or(base.listen),
            embedded: self.embedded.or(base.embedded),
            exact: self.exact.or(base.exact),
            classes: list(self.classes, base.classes),
            home: self.home.or(base.home),
            invite_token: list(self.invite_token, base.invite_token),
            no_trust_loopback: self.no_trust_loopback.or(base.no_trust_loopback),
            threads: self.threads.or(base.threads),
            memory_mib: self.memory_mib.or(base.memory_mib),
            intensity: self.intensity.or(base.intensity),
            sessions_max: self.sessions_max.or(base.sessions_max),
            queue_max: self.queue_max.or(base.queue_max),
            cached_sessions_max: self.cached_sessions_max.or(base.cached_sessions_max),
            log_mib: self.log_mib.or(base.log_mib),
            boundaries: self.boundaries.or(base.boundaries),
            audit_percent: self.audit_percent.or(base.audit_percent),
            verify_all: self.verify_all.or(base.verify_all),
            tensor: self.tensor.or(base.tensor),
            tls_cert: self.tls_cert.or(base.tls_cert),
            tls_key: self.tls_key.or(base.tls_key),
            grace_s: self.grace_s.or(base.grace_s),
        }
    }

    /// The settings with every default filled in, checked.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let value = |name, problem: &str| ConfigError::Value { name, problem: problem.into() };
        let mut models = self.model;
        if models.is_empty() {
            models.push(catalogue::DEFAULT.to_owned());
        }
        if models.iter().any(|name| name.trim().is_empty()) {
            return Err(value("model", "it is empty"));
        }
        if self.invite_token.iter().any(|token| token.chars().count() < INVITE_TOKEN_CHARS_MIN) {
            return Err(value("invite-token", "at least 8 characters are needed"));
        }
        let least_one = |name, given: Option<u64>| match given {
            Some(0) => Err(value(name, "at least 1 is needed")),
            given => Ok(given),
        };
        least_one("threads", self.threads.map(u64::from))?;
        least_one("memory-mib", self.memory_mib)?;
        least_one("sessions-max", self.sessions_max.map(|n| n as u64))?;
        let intensity_percent = self.intensity.unwrap_or(100);
        if !(1..=100).contains(&intensity_percent) {
            return Err(value("intensity", "1 to 100 percent are possible"));
        }
        let audit_percent = self.audit_percent.unwrap_or(100);
        if audit_percent > 100 {
            return Err(value("audit-percent", "0 to 100 percent are possible"));
        }
        let tls = match (self.tls_cert, self.tls_key) {
            (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key }),
            (None, None) => None,
            (Some(_), None) => return Err(value("tls-key", "is needed with tls-cert")),
            (None, Some(_)) => return Err(value("tls-cert", "is needed with tls-key")),
        };
        let mut scheduler = scheduler::Config::default();
        scheduler.sessions_max = self.sessions_max.unwrap_or(scheduler.sessions_max);
        scheduler.queue_max = self.queue_max.unwrap_or(scheduler.queue_max);
        scheduler.cached_sessions_max =
            self.cached_sessions_max.unwrap_or(scheduler.cached_sessions_max);
        scheduler.log_bytes_max = self.log_mib.map_or(scheduler.log_bytes_max, mib_to_bytes);
        scheduler.boundaries = self.boundaries.unwrap_or_default().for_scheduler();
        scheduler.audits.newcomers = f64::from(audit_percent) / 100.0;
        scheduler.audits.full = self.verify_all.unwrap_or(false);
        scheduler.tensor = match self.tensor.unwrap_or_default() {
            TensorChoice::Off => Tensor::Off,
            TensorChoice::Auto => Tensor::Auto,
            TensorChoice::Two => Tensor::Groups(2),
            TensorChoice::Four => Tensor::Groups(4),
        };
        Ok(Config {
            models,
            listen: self.listen.unwrap_or_else(|| LISTEN_DEFAULT.to_owned()),
            embedded: self.embedded.unwrap_or_default(),
            classes: classes(self.exact.unwrap_or(false), self.classes)?,
            home: self.home,
            invite_tokens: self.invite_token,
            trust_loopback: !self.no_trust_loopback.unwrap_or(false),
            threads: self.threads,
            memory_bytes: self.memory_mib.map(mib_to_bytes),
            intensity_percent,
            scheduler,
            tls,
            grace: Duration::from_secs(self.grace_s.unwrap_or(GRACE_DEFAULT_S)),
        })
    }
}

/// The classes to serve in, checked.
fn classes(exact: bool, listed: Vec<String>) -> Result<Vec<String>, ConfigError> {
    let value = |problem| ConfigError::Value { name: "classes", problem };
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    if exact && listed.iter().any(|name| name != EXACT_F32) {
        return Err(value("exact is the class exact-f32 alone: give one of the two".into()));
    }
    if exact {
        return Ok(owned(&[EXACT_F32]));
    }
    if listed.is_empty() {
        return Ok(owned(&CLASSES_DEFAULT));
    }
    for (at, name) in listed.iter().enumerate() {
        if !CLASSES.contains(&name.as_str()) {
            return Err(value(format!("`{name}` is none of {}", CLASSES.join(", "))));
        }
        if listed[..at].contains(name) {
            return Err(value(format!("`{name}` stands there twice")));
        }
    }
    Ok(listed)
}

fn mib_to_bytes(mib: u64) -> u64 {
    mib.saturating_mul(1 << 20)
}

/// What to serve and how, complete and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Models as named; at least one.
    pub models: Vec<String>,
    /// Host and port to listen on.
    pub listen: String,
    /// What the embedded worker may hold.
    pub embedded: Embedded,
    /// Classes that workers may compute in, at least one, the preferred ones first.
    pub classes: Vec<String>,
    /// The home folder, if not the default one.
    pub home: Option<PathBuf>,
    /// Tokens that make a worker trusted.
    pub invite_tokens: Vec<String>,
    /// Whether native workers on this machine are trusted.
    pub trust_loopback: bool,
    /// Threads of the embedded worker, if not all.
    pub threads: Option<u32>,
    /// Memory of the embedded worker, bytes, if not the default share.
    pub memory_bytes: Option<u64>,
    /// Share of the time that the embedded worker computes, percent.
    pub intensity_percent: u8,
    /// The scheduler's bounds.
    pub scheduler: scheduler::Config,
    /// Certificate and key, where TLS is spoken.
    pub tls: Option<TlsFiles>,
    /// How long streams may go on after a stop.
    pub grace: Duration,
}

impl Config {
    /// The addresses that [`Config::listen`] names.
    ///
    /// # Errors
    /// It is not HOST:PORT, or the host is unknown.
    pub fn addresses(&self) -> Result<Vec<SocketAddr>, ConfigError> {
        let value = |problem| ConfigError::Value { name: "listen", problem };
        let found = self.listen.to_socket_addrs();
        let addresses: Vec<_> =
            found.map_err(|error| value(format!("`{}`: {error}", self.listen)))?.collect();
        if addresses.is_empty() {
            return Err(value(format!("`{}` names no address", self.listen)));
        }
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        settings: Settings,
    }

    /// Parses without the environment: these tests' own variables are not set.
    fn flags(line: &str) -> Settings {
        Line::try_parse_from(format!("x {line}").split_whitespace()).expect("good flags").settings
    }

    #[test]
    fn flags_count_before_the_file_and_the_file_before_the_defaults() {
        let file: Settings = serde_yaml_ng::from_str(
            "model: [a.gguf, b.gguf]\nlisten: 0.0.0.0:1\nexact: true\nembedded: ends\n\
             no_trust_loopback: true\nsessions_max: 3\nlog_mib: 2\naudit_percent: 25\n\
             verify_all: true\ntensor: '2'\n",
        )
        .unwrap();
        let config = flags("--listen 127.0.0.1:2 --exact=false --embedded off")
            .over(file.clone())
            .resolve()
            .unwrap();
        assert_eq!(config.listen, "127.0.0.1:2");
        assert_eq!(config.classes, [CANONICAL_1, WGSL_F32]);
        assert_eq!(config.embedded, Embedded::Off);
        assert_eq!(config.models, ["a.gguf", "b.gguf"]);
        assert!(!config.trust_loopback);
        assert_eq!(config.scheduler.sessions_max, 3);
        assert_eq!(config.scheduler.log_bytes_max, 2 << 20);
        assert_eq!(config.scheduler.audits.newcomers, 0.25);
        assert!(config.scheduler.audits.full);
        assert_eq!(config.scheduler.tensor, Tensor::Groups(2));
        assert_eq!(flags("--tensor 4").tensor, Some(TensorChoice::Four));
        assert_eq!(flags("").resolve().unwrap().scheduler.tensor, Tensor::Off);
        let config = flags("--model c --exact").over(file).resolve().unwrap();
        assert_eq!(config.models, ["c"]);
        assert_eq!(config.classes, [EXACT_F32]);
        let config = flags("").resolve().unwrap();
        assert_eq!(config.models, [catalogue::DEFAULT]);
        assert_eq!(config.listen, LISTEN_DEFAULT);
        assert_eq!(config.embedded, Embedded::All);
        assert!(config.trust_loopback);
    }

    #[test]
    fn classes_keep_their_order() {
        let config = flags("--classes wgsl-f32,canonical-1").resolve().unwrap();
        assert_eq!(config.classes, [WGSL_F32, CANONICAL_1]);
        let config = flags("--classes canonical-1").resolve().unwrap();
        assert_eq!(config.classes, [CANONICAL_1]);
        assert_eq!(flags("--exact --classes exact-f32").resolve().unwrap().classes, [EXACT_F32]);
    }

    #[test]
    fn a_list_of_one_may_be_a_string() {
        let file = "model: smollm2-135m\ninvite_token: open sesame\n";
        let settings: Settings = serde_yaml_ng::from_str(file).unwrap();
        assert_eq!(settings.model, ["smollm2-135m"]);
        assert_eq!(settings.invite_token, ["open sesame"]);
    }

    #[test]
    fn every_flag_can_stand_in_the_file_and_in_the_environment() {
        use clap::CommandFactory;
        let command = Line::command();
        for argument in command.get_arguments() {
            let long = argument.get_long().expect("every setting has a long name");
            let name = long.replace('-', "_");
            let variable = format!("WEFT_{}", name.to_uppercase());
            assert_eq!(argument.get_env().and_then(|v| v.to_str()), Some(&*variable));
            // A name that the file does not know is an error of its own kind.
            let error = serde_yaml_ng::from_str::<Settings>(&format!("{name}: {{}}"));
            let error = error.expect_err("a map is no value of any").to_string();
            assert!(!error.contains("unknown field"), "{error}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let unknown = serde_yaml_ng::from_str::<Settings>("listne: 0.0.0.0:1").unwrap_err();
        assert!(unknown.to_string().contains("listne"), "{unknown}");
        for (line, name) in [
            ("--threads 0", "threads"),
            ("--memory-mib 0", "memory-mib"),
            ("--intensity 0", "intensity"),
            ("--intensity 101", "intensity"),
            ("--sessions-max 0", "sessions-max"),
            ("--invite-token short", "invite-token"),
            ("--tls-cert x.crt", "tls-key"),
            ("--tls-key x.key", "tls-cert"),
            ("--classes f16", "classes"),
            ("--classes canonical-1,canonical-1", "classes"),
            ("--exact --classes canonical-1", "classes"),
        ] {
            let error = flags(line).resolve().unwrap_err().to_string();
            assert!(error.starts_with(name), "{line}: {error}");
        }
        let config = flags("--listen nowhere").resolve().unwrap();
        assert!(config.addresses().is_err());
    }
}
