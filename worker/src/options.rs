//! How the `worker` program is told what to do: flags, then environment, then a YAML file.

use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use serde::Deserialize;

/// Share of the available memory that is lent if nothing else is said.
const MEMORY_SHARE: u64 = 2;
/// Most adapters that one process lends.
const GPUS_MAX: usize = 16;
/// The cache's bound if nothing else is said, MiB.
const CACHE_MIB: u64 = 20 << 10;

/// Lends this machine to a Weft coordinator: fetches a shard of a model's layers, checks and
/// caches it, and computes steps until told to stop.
///
/// Each option can also be given as an environment variable or in a YAML file (--config);
/// flags win over the environment, the environment over the file. In the file the names are
/// those of the flags with underscores (`memory_mib: 4096`).
///
/// SIGTERM or SIGINT: finishes the steps at hand, then ends with status 0; a second one
/// ends at once. Status 1: an error. Status 3: the coordinator sent this worker away.
#[derive(Clone, Debug, Default, Parser)]
#[command(version, verbatim_doc_comment)]
pub struct Flags {
    /// Where the coordinator is: ws://HOST:PORT, or wss://HOST:PORT with TLS
    #[arg(long, value_name = "URL", env = "WEFT_WORKER_COORDINATOR")]
    pub coordinator: Option<String>,
    /// An invite token, of `coordinator invite` or of the coordinator's settings, which makes
    /// this worker trusted with a model's ends and so with text
    /// [default: none; the coordinator may trust its own machine]
    #[arg(
        long,
        visible_alias = "invite",
        value_name = "TOKEN",
        env = "WEFT_WORKER_TOKEN",
        hide_env_values = true
    )]
    pub token: Option<String>,
    /// A PEM file of certificates to trust with wss://, beside the system's
    #[arg(long, value_name = "FILE", env = "WEFT_WORKER_CA_CERT")]
    pub ca_cert: Option<PathBuf>,
    /// What computes: cpu, wgpu (a GPU through Vulkan, Metal or DX12), or auto: a GPU where
    /// there is one that computes correctly, else the CPU [default: auto]
    #[arg(long, value_enum, env = "WEFT_WORKER_BACKEND")]
    pub backend: Option<Backend>,
    /// The GPU adapters to lend, by number, each as a worker of its own: 0,1 (see --list-gpus);
    /// a software adapter is used only if named here [default: the best one]
    #[arg(long, value_name = "NUMBERS", env = "WEFT_WORKER_GPU", value_delimiter = ',')]
    pub gpu: Option<Vec<u32>>,
    /// Prints the GPU adapters that there are, then ends
    #[arg(long)]
    pub list_gpus: bool,
    /// Threads that compute [default: what this process may use]
    #[arg(long, value_name = "N", env = "WEFT_WORKER_THREADS",
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
    /// Memory lent for weights and KV cache, MiB; scratch comes on top, on a GPU tens of MiB for
    /// each shard [default: half of what is available at the start; of a GPU what a test could
    /// have of it, at most 4096 if discrete, 512 if software, else 1024]
    #[arg(long, value_name = "N", env = "WEFT_WORKER_MEMORY_MIB",
          value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub memory_mib: Option<u64>,
    /// Share of the time spent computing, percent: it rests after each step in proportion
    /// [default: 100]
    #[arg(long, value_name = "PERCENT", env = "WEFT_WORKER_INTENSITY",
          value_parser = clap::value_parser!(u8).range(1..=100))]
    pub intensity: Option<u8>,
    /// A name for people, and for the key [default: the machine's name, with a number behind
    /// it if a running worker has that already]
    #[arg(long, value_name = "NAME", env = "WEFT_WORKER_NAME")]
    pub name: Option<String>,
    /// The file of this worker's key, its identity, made if it is not there; workers with
    /// the same key replace each other [default: keys/NAME.key in --home]
    #[arg(long, value_name = "FILE", env = "WEFT_WORKER_KEY")]
    pub key: Option<PathBuf>,
    /// Where keys and cached weights are kept, several workers may share it [default: weft
    /// in the platform's data folder]
    #[arg(long, value_name = "FOLDER", env = "WEFT_HOME")]
    pub home: Option<PathBuf>,
    /// Bound of the cached weights on disk, MiB; what was used longest ago goes first
    /// [default: 20480]
    #[arg(long, value_name = "N", env = "WEFT_WORKER_CACHE_MIB",
          value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    pub cache_mib: Option<u64>,
    /// Steps taken at once: one is computed while the next is on its way [default: 2]
    #[arg(long, value_name = "N", env = "WEFT_WORKER_STEP_CREDITS",
          value_parser = clap::value_parser!(u32).range(1..=protocol::STEP_CREDITS_MAX as i64))]
    pub step_credits: Option<u32>,
    /// A YAML file with any of these options
    #[arg(long, value_name = "FILE", env = "WEFT_WORKER_CONFIG")]
    pub config: Option<PathBuf>,
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The fastest there is.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU, through Vulkan, Metal or DX12.
    Wgpu,
}

/// The YAML file: the flags' names and meanings.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ConfigFile {
    coordinator: Option<String>,
    token: Option<String>,
    ca_cert: Option<PathBuf>,
    backend: Option<Backend>,
    gpu: Option<Vec<u32>>,
    threads: Option<u32>,
    memory_mib: Option<u64>,
    intensity: Option<u8>,
    name: Option<String>,
    key: Option<PathBuf>,
    home: Option<PathBuf>,
    cache_mib: Option<u64>,
    step_credits: Option<u32>,
}

/// What the flags, the environment, the file and the defaults come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// See [`Flags`].
    pub coordinator: String,
    /// See [`Flags`].
    pub token: Option<String>,
    /// See [`Flags`].
    pub ca_cert: Option<PathBuf>,
    /// See [`Flags`].
    pub backend: Backend,
    /// See [`Flags`]; empty for the best one.
    pub gpus: Vec<u32>,
    /// See [`Flags`].
    pub threads: u32,
    /// Bytes lent, of each GPU or of the machine, if that was said.
    pub memory_bytes: Option<u64>,
    /// See [`Flags`].
    pub intensity_percent: u8,
    /// See [`Flags`]; `None` for the machine's.
    pub name: Option<String>,
    /// See [`Flags`].
    pub key: Option<PathBuf>,
    /// See [`Flags`].
    pub home: PathBuf,
    /// Bytes that the cache may hold.
    pub cache_bytes: u64,
    /// See [`Flags`].
    pub step_credits: u32,
}

impl Flags {
    /// Adds the file and the defaults.
    ///
    /// # Errors
    /// The file cannot be read, a value is out of range, or no coordinator is named.
    pub fn resolve(self) -> Result<Options, String> {
        let file = match &self.config {
            Some(path) => read_config(path)?,
            None => ConfigFile::default(),
        };
        let coordinator = self.coordinator.or(file.coordinator).ok_or(
            "which coordinator? Say --coordinator ws://HOST:PORT (or WEFT_WORKER_COORDINATOR, \
             or `coordinator:` in the --config file)",
        )?;
        let gpus = self.gpu.or(file.gpu).unwrap_or_default();
        let backend = match (self.backend.or(file.backend).unwrap_or_default(), gpus.is_empty()) {
            (Backend::Cpu, false) => {
                return Err("--gpu names GPU adapters, --backend cpu uses none: drop one".into());
            }
            (Backend::Auto, false) => Backend::Wgpu,
            (backend, _) => backend,
        };
        if let Some(twice) = gpus.iter().enumerate().find(|(i, gpu)| gpus[..*i].contains(gpu)) {
            return Err(format!("--gpu names adapter {} twice", twice.1));
        }
        if gpus.len() > GPUS_MAX {
            return Err(format!(
                "--gpu names {} adapters, at most {GPUS_MAX} are used",
                gpus.len()
            ));
        }
        let key = self.key.or(file.key);
        if key.is_some() && gpus.len() > 1 {
            return Err(format!(
                "--key names one worker's key, but {} GPUs are {0} workers: drop --key, or start \
                 a process for each GPU",
                gpus.len()
            ));
        }
        let in_file = |name: &str, value: Option<u64>, max: u64| match value {
            Some(v) if v == 0 || v > max => Err(format!("{name}: {v} is not within 1..={max}")),
            value => Ok(value),
        };
        in_file("threads", file.threads.map(u64::from), 1024)?;
        in_file("memory_mib", file.memory_mib, 1 << 30)?;
        in_file("intensity", file.intensity.map(u64::from), 100)?;
        in_file("cache_mib", file.cache_mib, 1 << 40)?;
        in_file(
            "step_credits",
            file.step_credits.map(u64::from),
            protocol::STEP_CREDITS_MAX.into(),
        )?;
        let name = text("--name", self.name.or(file.name), protocol::NAME_BYTES_MAX)?;
        let token = text("--token", self.token.or(file.token), protocol::TEXT_BYTES_MAX)?;
        let memory_bytes = self.memory_mib.or(file.memory_mib).map(|mib| mib << 20);
        let home = self.home.or(file.home).map_or_else(default_home, Ok)?;
        Ok(Options {
            coordinator,
            token,
            ca_cert: self.ca_cert.or(file.ca_cert),
            threads: self.threads.or(file.threads).unwrap_or_else(crate::machine::threads),
            backend,
            gpus,
            memory_bytes,
            intensity_percent: self.intensity.or(file.intensity).unwrap_or(100),
            name,
            key,
            home,
            cache_bytes: self.cache_mib.or(file.cache_mib).unwrap_or(CACHE_MIB) << 20,
            step_credits: self.step_credits.or(file.step_credits).unwrap_or(2),
        })
    }
}

/// Refuses what could not be said in a hello.
fn text(flag: &str, value: Option<String>, bytes_max: usize) -> Result<Option<String>, String> {
    let Some(value) = value else { return Ok(None) };
    if value.len() > bytes_max {
        let got = value.len();
        return Err(format!("{flag} is {got} bytes long, at most {bytes_max} are allowed"));
    }
    if value.chars().any(char::is_control) {
        return Err(format!("{flag} holds a control character, such as a line break: remove it"));
    }
    Ok(Some(value))
}

fn read_config(path: &Path) -> Result<ConfigFile, String> {
    let problem = |e: &dyn std::fmt::Display| format!("--config {}: {e}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| problem(&e))?;
    if text.trim().is_empty() {
        return Ok(ConfigFile::default());
    }
    serde_yaml_ng::from_str(&text).map_err(|e| problem(&e))
}

/// What is lent of a machine with so much memory available, and why.
pub fn memory_default(available: Option<u64>) -> (u64, String) {
    match available {
        Some(bytes) => {
            let reason = format!("half of the {:.1} GB available", bytes as f64 / 1e9);
            ((bytes / MEMORY_SHARE).max(1 << 20), reason)
        }
        None => {
            let reason = "this system does not say what is available: see --memory-mib".into();
            (crate::machine::MEMORY_BYTES_UNKNOWN, reason)
        }
    }
}

fn default_home() -> Result<PathBuf, String> {
    use etcetera::BaseStrategy;
    let strategy = etcetera::choose_base_strategy();
    let strategy = strategy.map_err(|e| format!("no home folder ({e}): say --home FOLDER"))?;
    Ok(strategy.data_dir().join("weft"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// What a command line and a file come to (environment apart).
    fn resolve(line: &str, yaml: Option<&str>) -> Result<Options, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weft.yaml");
        let mut flags =
            Flags::try_parse_from(std::iter::once("worker").chain(line.split_whitespace()))
                .map_err(|e| e.to_string())?;
        if let Some(yaml) = yaml {
            std::fs::write(&path, yaml).unwrap();
            flags.config = Some(path);
        }
        flags.home = flags.home.or(Some("here".into()));
        flags.resolve()
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let yaml = "coordinator: ws://file:1\nmemory_mib: 100\nintensity: 40\nname: otter\n";
        let options = resolve("--coordinator ws://flag:1 --memory-mib 7", Some(yaml)).unwrap();
        assert_eq!(options.coordinator, "ws://flag:1");
        assert_eq!((options.memory_bytes, options.intensity_percent), (Some(7 << 20), 40));
        assert_eq!(options.name.as_deref(), Some("otter"));
        assert_eq!((options.step_credits, options.cache_bytes), (2, 20 << 30));
        assert_eq!(resolve("", Some(yaml)).unwrap().coordinator, "ws://file:1");
    }

    #[test]
    fn the_environment_comes_between_flags_and_file() {
        let command = Flags::command();
        for argument in command
            .get_arguments()
            .filter(|a| !["help", "version", "list_gpus"].contains(&a.get_id().as_str()))
        {
            let env = argument.get_env().and_then(|e| e.to_str()).unwrap_or_default().to_string();
            let name = argument.get_id().as_str().to_uppercase();
            let expected =
                if name == "HOME" { "WEFT_HOME".into() } else { format!("WEFT_WORKER_{name}") };
            assert_eq!(env, expected);
        }
    }

    #[test]
    fn the_file_knows_every_flag_and_nothing_else() {
        for argument in Flags::command().get_arguments() {
            let name = argument.get_id().as_str();
            if ["help", "version", "config", "list_gpus"].contains(&name) {
                continue;
            }
            let parsed = serde_yaml_ng::from_str::<ConfigFile>(&format!("{name}: null"));
            assert!(parsed.is_ok(), "{name}");
        }
        let refused = resolve("", Some("memory_gib: 3")).unwrap_err();
        assert!(refused.contains("memory_gib") && refused.contains("weft.yaml"), "{refused}");
    }

    #[test]
    fn values_out_of_range_are_refused_wherever_they_stand() {
        assert!(resolve("--coordinator ws://h --intensity 0", None).unwrap_err().contains("0"));
        assert!(resolve("--coordinator ws://h --threads 0", None).is_err());
        let refused = resolve("--coordinator ws://h", Some("intensity: 101")).unwrap_err();
        assert_eq!(refused, "intensity: 101 is not within 1..=100");
        assert!(resolve("", None).unwrap_err().contains("--coordinator ws://HOST:PORT"));
        assert!(resolve("--coordinator ws://h --backend tpu", None).unwrap_err().contains("cpu"));
        let refused = resolve("--coordinator ws://h --backend cpu --gpu 0", None).unwrap_err();
        assert!(refused.contains("drop one"), "{refused}");
        let refused = resolve("--coordinator ws://h --gpu 0,1,0", None).unwrap_err();
        assert_eq!(refused, "--gpu names adapter 0 twice");
        let refused = resolve("--coordinator ws://h --gpu 0,1 --key k", None).unwrap_err();
        assert!(refused.contains("2 GPUs are 2 workers: drop --key"), "{refused}");
        assert!(resolve("--coordinator ws://h --gpu 1 --key k", None).is_ok());
    }

    #[test]
    fn naming_adapters_asks_for_them() {
        let options = resolve("--coordinator ws://h --gpu 0,2", None).unwrap();
        assert_eq!((options.backend, options.gpus), (Backend::Wgpu, vec![0, 2]));
        let options = resolve("", Some("coordinator: ws://h\ngpu: [1]\n")).unwrap();
        assert_eq!((options.backend, options.gpus), (Backend::Wgpu, vec![1]));
        assert_eq!(resolve("--coordinator ws://h", None).unwrap().backend, Backend::Auto);
    }

    #[test]
    fn what_no_hello_could_say_is_refused_at_the_start() {
        let line = |flag: &str, n| format!("--coordinator ws://h --{flag} {}", "x".repeat(n));
        assert!(resolve(&line("name", 256), None).is_ok());
        let refused = resolve(&line("name", 257), None).unwrap_err();
        assert_eq!(refused, "--name is 257 bytes long, at most 256 are allowed");
        assert!(resolve(&line("token", 4096), None).is_ok());
        assert!(resolve(&line("token", 4097), None).unwrap_err().starts_with("--token is 4097"));
        let refused = resolve("--coordinator ws://h", Some("token: \"a\\n\"")).unwrap_err();
        assert!(refused.contains("--token holds a control character"), "{refused}");
    }

    #[test]
    fn half_of_the_memory_is_lent() {
        let (bytes, reason) = memory_default(Some(8_000_000_000));
        assert_eq!(bytes, 4_000_000_000);
        assert_eq!(reason, "half of the 8.0 GB available");
        assert_eq!(memory_default(None).0, 2 << 30);
    }

    #[test]
    fn help_explains_every_flag() {
        Flags::command().debug_assert();
        for argument in Flags::command().get_arguments() {
            assert!(argument.get_help().is_some(), "{}", argument.get_id());
        }
    }
}
