//! Starting coordinators and workers, and asking them.

pub mod client;
pub mod forger;
pub mod link;
pub mod mix;
#[cfg(target_os = "linux")]
pub mod namespaces;
mod process;
pub mod rng;
pub mod watchdog;
mod written;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};

pub use client::{Api, Events};
pub use process::Process;
pub use written::{Written, alone, request, stream_of};

/// Longest wait for anything that should happen. Far more than it takes, since the machine
/// may be doing other things.
pub const WAIT_MAX: Duration = Duration::from_secs(120);
/// How often something is looked at that does not tell by itself.
const LOOK_EVERY: Duration = Duration::from_millis(15);

/// The model that all of these tests run on.
pub const MODEL: &str = "smollm2-135m";
/// Its layers.
pub const LAYERS: u32 = 30;

/// The machine, for one test at a time: two would only slow each other down.
pub async fn machine() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::const_new(());
    MACHINE.lock().await
}

/// One of our programs. `cargo xtask test` has built them and says where; a bare `cargo test`
/// builds them here.
pub fn binary(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| match std::env::var_os("WEFT_BINARIES") {
        Some(folder) => folder.into(),
        None => {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let mut build = Command::new(cargo);
            build.args(["build", "--package", "coordinator", "--package", "worker", "--bins"]);
            let status = build.status().expect("cargo can be run");
            assert!(status.success(), "the programs do not build");
            // target/debug/deps/e2e-... is this program.
            let this = std::env::current_exe().expect("this program's path");
            this.ancestors().nth(2).expect("a target folder").to_path_buf()
        }
    });
    let path = folder.join(name);
    assert!(path.is_file(), "{} is not built", path.display());
    path
}

/// A folder for one test, removed at its end.
pub struct Scratch {
    folder: PathBuf,
}

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let name = format!("weft-e2e-{}-{name}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("a scratch folder");
        Scratch { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A folder in which all coordinators keep the converted model and all workers their blobs,
/// so that each test need not convert and fetch it again. The first one converts and fetches:
/// nothing is left from an earlier run.
fn home(of: &str) -> PathBuf {
    static HOMES: OnceLock<PathBuf> = OnceLock::new();
    let homes = HOMES.get_or_init(|| {
        let this = std::env::current_exe().expect("this program's path");
        let homes = this.ancestors().nth(3).expect("a target folder").join("e2e-homes");
        if homes.exists() {
            std::fs::remove_dir_all(&homes).expect("an old run's folder");
        }
        homes
    });
    let home = homes.join(of);
    std::fs::create_dir_all(&home).expect("a home folder");
    home
}

/// A coordinator that runs.
pub struct Coordinator {
    pub process: Process,
    pub api: Api,
    /// `127.0.0.1:PORT`.
    pub address: String,
    /// The scheme of its sockets.
    sockets: &'static str,
    scratch: Scratch,
}

impl Coordinator {
    /// `coordinator serve` with these flags, on the default model and a free port.
    pub async fn start(test: &str, flags: &[&str]) -> Coordinator {
        Coordinator::start_with(test, &tests::required_model(), flags).await
    }

    /// The same on another model.
    pub async fn start_with(test: &str, model: &Path, flags: &[&str]) -> Coordinator {
        Coordinator::start_at("127.0.0.1:0", test, model, flags).await
    }

    /// The same listening there.
    pub async fn start_at(listen: &str, test: &str, model: &Path, flags: &[&str]) -> Coordinator {
        let process = serve(listen, model, flags);
        let line = process.line_with("listening on http").await;
        let address = line.rsplit('/').next().expect("an address").trim().to_owned();
        let (api, sockets) = (Api::new(&address), "ws");
        Coordinator { process, api, address, sockets, scratch: Scratch::new(test) }
    }

    /// `kill -9`, then the same at the same address.
    pub async fn killed_and_started(&mut self, flags: &[&str]) {
        self.process.kill_9();
        self.process.ended().await;
        self.process = serve(&self.address, &tests::required_model(), flags);
        self.process.line_with("listening on http").await;
    }

    /// What `coordinator` with these arguments prints, on the folder that coordinators share.
    pub fn command(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(binary("coordinator"));
        command.args(arguments).arg("--home").arg(home("coordinator"));
        let output = command.output().expect("it can be started");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The same with flags that have it speak TLS, with this certificate (PEM).
    pub async fn start_tls(test: &str, flags: &[&str], certificate: &str) -> Coordinator {
        let plain = Coordinator::start(test, flags).await;
        let api = Api::over_tls(&plain.address, certificate);
        Coordinator { api, sockets: "wss", ..plain }
    }

    /// `coordinator serve` with these flags only; for those that it refuses.
    pub fn start_bare(flags: &[&str], model: &Path) -> Process {
        let mut command = Command::new(binary("coordinator"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--model"]).arg(model);
        command.arg("--home").arg(home("refused")).args(flags);
        Process::start("coordinator", command)
    }

    /// A worker of one CPU thread with so much memory. Its name is for the fleet view.
    pub fn worker(&self, name: &str, memory_mib: u64) -> Process {
        self.worker_with(name, memory_mib, &[])
    }

    /// The same with further flags.
    pub fn worker_with(&self, name: &str, memory_mib: u64, flags: &[&str]) -> Process {
        self.worker_through(&self.address, name, memory_mib, flags)
    }

    /// The same to an address that leads to the coordinator.
    pub fn worker_through(
        &self,
        address: &str,
        name: &str,
        memory_mib: u64,
        flags: &[&str],
    ) -> Process {
        self.worker_by(Command::new(binary("worker")), address, name, memory_mib, flags)
    }

    /// The same by a command that is the program, wherever it runs.
    pub fn worker_by(
        &self,
        mut command: Command,
        address: &str,
        name: &str,
        memory_mib: u64,
        flags: &[&str],
    ) -> Process {
        let url = format!("{}://{address}", self.sockets);
        command.args(["--coordinator", &url, "--name", name]);
        command.args(["--memory-mib", &memory_mib.to_string()]);
        command.arg("--key").arg(self.scratch.path(&format!("{name}.key")));
        command.arg("--home").arg(home("workers")).args(flags);
        if !flags.contains(&"--threads") {
            command.args(["--threads", "1"]);
        }
        // To the bit the same, also on a machine with a GPU.
        if !flags.contains(&"--gpu") {
            command.args(["--backend", "cpu"]);
        }
        Process::start(name, command)
    }

    /// The answer to a request that says how long its body is, and waits.
    pub async fn announce(&self, path: &str, body_bytes: u64) -> String {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n\
             content-length: {body_bytes}\r\nconnection: close\r\n\r\n",
            self.address
        );
        let talk = async {
            let mut socket = TcpStream::connect(&self.address).await?;
            socket.write_all(head.as_bytes()).await?;
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer).await?;
            std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
        };
        let answer = tokio::time::timeout(WAIT_MAX, talk).await.expect("an answer in time");
        answer.expect("the connection holds")
    }

    /// Waits until every layer is held.
    pub async fn ready(&self) {
        until("every layer is ready", || async {
            let answer = self.api.get("/readyz").await;
            if answer.status == 200 { Ok(()) } else { Err(answer.text) }
        })
        .await;
    }

    /// Waits until every layer is held, and so many workers hold some.
    pub async fn ready_over(&self, workers: usize) -> Fleet {
        self.ready().await;
        self.fleet_with(&format!("{workers} workers hold layers"), |fleet| {
            (fleet.holders().len() == workers && fleet.all_ready()).then(|| fleet.clone())
        })
        .await
    }

    /// What the fleet looks like now.
    pub async fn fleet(&self) -> Fleet {
        let answer = self.api.get("/v1/fleet").await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        Fleet(answer.json())
    }

    /// Waits until the fleet has something to show.
    pub async fn fleet_with<T>(&self, what: &str, find: impl Fn(&Fleet) -> Option<T>) -> T {
        until(what, || async {
            let fleet = self.fleet().await;
            find(&fleet).ok_or_else(|| fleet.0.to_string())
        })
        .await
    }
}

/// `coordinator serve` on a model.
fn serve(listen: &str, model: &Path, flags: &[&str]) -> Process {
    let mut command = Command::new(binary("coordinator"));
    command.args(["serve", "--listen", listen, "--threads", "2", "--model"]).arg(model);
    command.arg("--home").arg(home("coordinator")).args(flags);
    Process::start("coordinator", command)
}

/// `GET /v1/fleet`.
#[derive(Clone, Debug)]
pub struct Fleet(pub Value);

/// Who holds which layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub worker: u64,
    pub name: String,
    pub first: u64,
    pub last: u64,
}

impl Fleet {
    pub fn workers(&self) -> &Vec<Value> {
        self.0["workers"].as_array().expect("workers")
    }

    pub fn sessions(&self) -> &Vec<Value> {
        self.0["sessions"].as_array().expect("sessions")
    }

    /// Every shard of layers that is ready, by its first layer.
    pub fn holders(&self) -> Vec<Holder> {
        let mut holders = Vec::new();
        for worker in self.workers() {
            for shard in worker["shards"].as_array().expect("shards") {
                let (Some(first), Some(last)) =
                    (shard["first_layer"].as_u64(), shard["last_layer"].as_u64())
                else {
                    continue;
                };
                if shard["ready"] == true {
                    let name = worker["name"].as_str().unwrap_or_default().to_owned();
                    let worker = worker["id"].as_u64().expect("an id");
                    holders.push(Holder { worker, name, first, last });
                }
            }
        }
        holders.sort_by_key(|holder| (holder.first, holder.worker));
        holders
    }

    /// Nothing is loading.
    pub fn all_ready(&self) -> bool {
        let ready = |worker: &Value| {
            let shards = worker["shards"].as_array().expect("shards");
            shards.iter().all(|shard| shard["ready"] == true)
        };
        self.workers().iter().all(ready)
    }

    /// The holders lie end to end: each is needed.
    #[track_caller]
    pub fn assert_each_needed(&self) {
        let holders = self.holders();
        let mut next = 0;
        for holder in &holders {
            assert_eq!(holder.first, next, "no layer is held twice: {holders:?}");
            next = holder.last + 1;
        }
        assert_eq!(next, u64::from(LAYERS), "{holders:?}");
    }
}

/// Asks again until it succeeds.
///
/// # Panics
/// After [`WAIT_MAX`], with the last answer.
pub async fn until<T, F>(what: &str, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let started = Instant::now();
    loop {
        match ask().await {
            Ok(found) => return found,
            Err(last) if started.elapsed() > WAIT_MAX => {
                panic!("waited {} s until {what}; last: {last}", WAIT_MAX.as_secs())
            }
            Err(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}
