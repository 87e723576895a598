//! A coordinator and its workers on this machine, for as long as they are measured.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Setup;
use super::measure::get;

/// Longest time until all layers are held.
const READY_MAX: Duration = Duration::from_secs(180);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Running programs; they end with this.
pub struct Cluster {
    /// The setup's.
    pub name: &'static str,
    /// `http://127.0.0.1:PORT`.
    pub address: String,
    /// The coordinator, then the workers.
    children: Vec<(String, Child)>,
    folder: PathBuf,
}

impl Cluster {
    /// Starts what a setup needs and waits until every worker holds layers.
    pub fn start(setup: &Setup, binaries: &Path, model: &Path) -> Result<Cluster> {
        let embedded = if setup.layers.is_empty() { "all" } else { "ends" };
        let mut flags = vec!["--embedded".to_owned(), embedded.to_owned()];
        let threads: Vec<String> =
            setup.threads.iter().flat_map(|n| ["--threads".to_owned(), n.to_string()]).collect();
        flags.extend_from_slice(&threads);
        let mut cluster = Cluster::coordinator(setup.name, &flags, binaries, model)?;
        for (index, layers) in setup.layers.iter().enumerate() {
            cluster.add_worker(binaries, index, *layers, &threads)?;
        }
        cluster.wait_until_ready(setup.layers.len(), "native")?;
        Ok(cluster)
    }

    /// Starts a coordinator with these flags as well.
    pub fn coordinator(
        name: &'static str,
        flags: &[String],
        binaries: &Path,
        model: &Path,
    ) -> Result<Cluster> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let folder = format!("weft-bench-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&folder)?;
        let mut command = Command::new(binaries.join("coordinator"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--model"]).arg(model);
        command.arg("--home").arg(folder.join("coordinator"));
        command.args(flags);
        // What is finished frees its memory: no prompt here has a next turn.
        command.args(["--cached-sessions-max", "0"]);
        let mut coordinator = spawn(command, &folder.join("coordinator.log"))?;
        let stdout = coordinator.stdout.take().context("its output is piped")?;
        let mut cluster = Cluster {
            name,
            address: String::new(),
            children: vec![("coordinator".to_owned(), coordinator)],
            folder,
        };
        let mut lines = BufReader::new(stdout).lines();
        for line in lines.by_ref() {
            if let Some((_, address)) = line?.split_once("listening on ") {
                cluster.address = address.trim().to_owned();
                break;
            }
        }
        if cluster.address.is_empty() {
            bail!("the coordinator did not start: {}", cluster.logs());
        }
        // What it says later must not fill the pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Ok(cluster)
    }

    /// A folder that ends with this.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts one more worker, with memory for so many layers.
    pub fn add_worker(
        &mut self,
        binaries: &Path,
        index: usize,
        layers: u64,
        flags: &[String],
    ) -> Result<()> {
        let name = format!("worker{index}");
        let mut command = Command::new(binaries.join("worker"));
        let socket = self.address.replacen("http", "ws", 1);
        // 2.1 MiB of weights a layer and 0.75 MiB of the least KV cache; 8 MiB of scratch.
        let memory_mib = 9 + layers * 29 / 10;
        command.args(["--coordinator", &socket, "--name", &name]);
        command.args(["--memory-mib", &memory_mib.to_string()]).args(flags);
        command.arg("--home").arg(self.folder.join(&name));
        let worker = spawn(command, &self.folder.join(format!("{name}.log")))?;
        self.children.push((name, worker));
        Ok(())
    }

    /// Waits until all layers are held, and `count` workers of that kind hold some.
    pub fn wait_until_ready(&self, count: usize, kind: &str) -> Result<()> {
        let started = Instant::now();
        loop {
            let fleet = get(&self.address, "/v1/fleet")?;
            if fleet["models"][0]["covered"] == true && holders(&fleet, kind) >= count {
                return Ok(());
            }
            if started.elapsed() > READY_MAX {
                bail!("{} is not ready: {fleet}; {}", self.name, self.logs());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Bytes of weights that one token's way leads through.
    pub fn weight_bytes(&self) -> Result<u64> {
        let fleet = get(&self.address, "/v1/fleet")?;
        let workers = fleet["workers"].as_array().context("workers")?;
        let shards = workers.iter().filter_map(|worker| worker["shards"].as_array()).flatten();
        Ok(shards.filter_map(|shard| shard["weight_bytes"].as_u64()).sum())
    }

    /// The most memory that each program has had, MiB; what the system does not say is left
    /// out.
    pub fn peaks_mib(&self) -> Vec<(String, f64)> {
        let peak = |(name, child): &(String, Child)| Some((name.clone(), peak_mib(child)?));
        self.children.iter().filter_map(peak).collect()
    }

    fn logs(&self) -> String {
        let read = |name: &String| std::fs::read_to_string(self.folder.join(name)).ok();
        let names = self.children.iter().map(|(name, _)| format!("{name}.log"));
        names.filter_map(|name| read(&name)).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for (_, child) in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The most memory that a program has had, MiB, where the system says so.
pub fn peak_mib(child: &Child) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024.0)
}

/// Starts a program whose standard output is piped, and whose standard error goes to a file.
pub fn spawn(mut command: Command, log: &Path) -> Result<Child> {
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("WEFT_") {
            command.env_remove(variable);
        }
    }
    let log = std::fs::File::create(log)?;
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    command.spawn().with_context(|| format!("{program} cannot be run"))
}

/// How many workers of a kind hold layers.
fn holders(fleet: &Value, kind: &str) -> usize {
    let holds = |worker: &&Value| {
        let shards = worker["shards"].as_array().cloned().unwrap_or_default();
        worker["kind"] == kind
            && shards.iter().any(|s| s["ready"] == true && s["first_layer"].is_u64())
    };
    fleet["workers"].as_array().map_or(0, |workers| workers.iter().filter(holds).count())
}
