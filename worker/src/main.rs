//! The `worker` program: see `worker --help`.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use protocol::WorkerKind;
use tracing_subscriber::EnvFilter;
use worker::blobs::{Cache, Http};
use worker::client::{self, ClientError};
use worker::lent::{self, Lent};
use worker::options::{Backend, Flags, Options};
use worker::{BlobSource, Identity, Setup, Worker, identity, machine, socket};
use worker_core::Config;

/// Ended by a dismissal that says not to come back.
const EXIT_DISMISSED: u8 = 3;
/// Ended by a second signal.
const EXIT_INTERRUPTED: i32 = 130;
/// A GPU that is lost more often than this in a row is not opened again.
const GPU_LOSSES_MAX: u32 = 3;
/// A GPU that worked for so long is a good one.
const GPU_GOOD_AFTER: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let flags = Flags::parse();
    if flags.list_gpus {
        let gpus = lent::list_gpus();
        gpus.iter().for_each(|line| println!("{line}"));
        if gpus.is_empty() {
            println!("no GPU adapters");
        }
        return ExitCode::SUCCESS;
    }
    let filter = EnvFilter::try_from_env("WEFT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    // One thread for sockets and timers: a second one would only be woken to hand work over.
    // Computing, hashing and files have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = flags
                .resolve()
                .map_err(Failure::Error)
                .and_then(|options| runtime.block_on(run(options)));
            // A step that is still being computed, or a rest, is not waited for.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(Failure::Error(format!("cannot start: {error}"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Error(reason)) => {
            eprintln!("worker: {reason}");
            ExitCode::FAILURE
        }
        Err(Failure::Dismissed(reason)) => {
            eprintln!("worker: {reason}");
            ExitCode::from(EXIT_DISMISSED)
        }
    }
}

enum Failure {
    Error(String),
    Dismissed(String),
}

impl From<String> for Failure {
    fn from(reason: String) -> Failure {
        Failure::Error(reason)
    }
}

async fn run(options: Options) -> Result<(), Failure> {
    let url = socket::parse_address(&options.coordinator)?;
    let tls = match url.scheme() {
        "wss" => Some(socket::tls_config(options.ca_cert.as_deref())?),
        _ => None,
    };
    let measuring = options.clone();
    let lent = tokio::task::spawn_blocking(move || lent::choose(&measuring)).await;
    let lent = lent.map_err(|e| format!("the benchmark failed: {e}"))??;
    if lent.len() > 1 && options.key.is_some() {
        return Err("--key is one worker's, and each GPU is a worker: leave it away".to_string())?;
    }
    let source = blob_source(&options, &url, tls.clone())?;
    let tls = tls.map(Arc::new);
    let mut lending = Vec::new();
    let mut serving = tokio::task::JoinSet::new();
    for (index, lent) in lent.into_iter().enumerate() {
        let one = Arc::new(Lending::default());
        lending.push(one.clone());
        // What was opened for this one, should it have to be opened again.
        let mut options = options.clone();
        options.gpus = options.gpus.get(index).copied().into_iter().collect();
        let (source, url, tls) = (source.clone(), url.clone(), tls.clone());
        serving.spawn(async move { one.lend(options, lent, source, &url, tls).await });
    }
    tokio::spawn(drain_on_signal(lending));
    // Workers of one process stand and fall by themselves; the first failure is told.
    let mut outcome = Ok(());
    while let Some(served) = serving.join_next().await {
        let served = served.map_err(|e| format!("a worker failed: {e}"))?;
        if let Err(Failure::Error(reason) | Failure::Dismissed(reason)) = &served
            && !serving.is_empty()
        {
            tracing::error!("{reason}");
        }
        outcome = outcome.and(served);
    }
    if outcome.is_ok() {
        tracing::info!("left in good order");
    }
    outcome
}

/// One thing that computes, lent for as long as that goes.
#[derive(Default)]
struct Lending {
    state: Mutex<LendingState>,
}

#[derive(Default)]
struct LendingState {
    worker: Option<Arc<Worker>>,
    /// Told to leave, by this signal.
    leaving: Option<&'static str>,
}

impl Lending {
    fn state(&self) -> MutexGuard<'_, LendingState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves in good order.
    fn leave(&self, signal: &'static str) {
        let mut state = self.state();
        state.leaving = Some(signal);
        if let Some(worker) = &state.worker {
            worker.drain(signal);
        }
    }

    /// Serves until told to leave. A GPU that is lost is opened, tested and measured again.
    async fn lend(
        &self,
        options: Options,
        mut lent: Lent,
        source: BlobSource,
        url: &reqwest::Url,
        tls: Option<Arc<rustls::ClientConfig>>,
    ) -> Result<(), Failure> {
        let mut losses = 0;
        loop {
            let (suffix, is_gpu) = (lent.suffix.clone(), lent.computer.backend() == "wgpu");
            let worker = Arc::new(start(&options, lent, source.clone())?);
            {
                let mut state = self.state();
                if let Some(signal) = state.leaving {
                    worker.drain(signal);
                }
                state.worker = Some(worker.clone());
            }
            let began = Instant::now();
            let served = client::run(&worker, url, tls.clone()).await;
            // With it goes the lock on its key.
            self.state().worker = None;
            drop(worker);
            match served {
                Ok(()) => return Ok(()),
                Err(error @ ClientError::Dismissed(_)) => {
                    return Err(Failure::Dismissed(error.to_string()));
                }
                Err(ClientError::Broken) if is_gpu => {
                    losses = if began.elapsed() > GPU_GOOD_AFTER { 1 } else { losses + 1 };
                    if losses > GPU_LOSSES_MAX {
                        let reason = format!("the GPU was lost {losses} times in a row");
                        return Err(Failure::Error(reason));
                    }
                }
                Err(error) => return Err(Failure::Error(error.to_string())),
            }
            if self.state().leaving.is_some() {
                return Ok(());
            }
            tracing::warn!("opening the GPU again");
            let mut reopening = options.clone();
            reopening.backend = Backend::Wgpu;
            let opened = tokio::task::spawn_blocking(move || lent::choose(&reopening)).await;
            let opened = opened.map_err(|e| format!("opening the GPU failed: {e}"))??;
            lent = opened.into_iter().next().ok_or("the GPU is gone".to_owned())?;
            lent.suffix = suffix;
        }
    }
}

/// Starts the worker that lends one thing that computes.
fn start(options: &Options, lent: Lent, blobs: BlobSource) -> Result<Worker, Failure> {
    let (identity, name) = open_identity(options, &lent.suffix).map_err(|e| e.to_string())?;
    tracing::info!(
        "{name}: {}, {:.1} GB/s of weights at 1 row and {:.1} at 8; lends {:.2} GB ({})",
        lent.device,
        lent.bytes_per_s[0] / 1e9,
        lent.bytes_per_s[1] / 1e9,
        lent.memory_bytes as f64 / 1e9,
        lent.memory_reason,
    );
    lent.notes.iter().for_each(|note| tracing::info!("{name}: {note}"));
    let setup = Setup {
        config: Config {
            name,
            kind: WorkerKind::Native,
            backend: lent.computer.backend().into(),
            device: lent.device,
            notes: lent.notes,
            classes: lent.computer.classes(),
            memory_bytes: lent.memory_bytes,
            bytes_per_s: lent.bytes_per_s,
            step_credits: options.step_credits,
            token: options.token.clone(),
        },
        identity,
        blobs,
        computer: lent.computer,
        intensity_percent: options.intensity_percent,
    };
    Worker::start(setup).map_err(|e| Failure::Error(format!("no compute thread: {e}")))
}

fn open_identity(
    options: &Options,
    suffix: &str,
) -> Result<(Identity, String), identity::IdentityError> {
    match (&options.key, &options.name) {
        (Some(path), name) => {
            let name = name.clone().unwrap_or_else(machine::name);
            Ok((Identity::open(path)?, name))
        }
        (None, Some(name)) => {
            let name = format!("{name}{suffix}");
            let path = identity::key_path(&options.home, &name);
            Ok((Identity::open(&path)?, name))
        }
        (None, None) => Identity::open_free(&options.home, &format!("{}{suffix}", machine::name())),
    }
}

fn blob_source(
    options: &Options,
    url: &reqwest::Url,
    tls: Option<rustls::ClientConfig>,
) -> Result<BlobSource, String> {
    let cache = Cache::open(options.home.join("blobs"), options.cache_bytes);
    let cache = cache.map_err(|e| e.to_string())?;
    let client = reqwest::Client::builder().no_proxy();
    let client = match tls {
        Some(tls) => client.tls_backend_preconfigured(tls),
        None => client,
    };
    let client = client.build().map_err(|e| format!("HTTP: {e}"))?;
    let base = socket::http_address(url)?;
    Ok(BlobSource::Http(Arc::new(Http::new(cache, client, base))))
}

/// The first signal asks the workers to leave in good order, the second ends the process.
async fn drain_on_signal(lending: Vec<Arc<Lending>>) {
    let name = signal().await;
    tracing::info!("{name}: finishing the steps at hand; again to end at once");
    lending.iter().for_each(|one| one.leave(name));
    signal().await;
    std::process::exit(EXIT_INTERRUPTED);
}

#[cfg(unix)]
async fn signal() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    }
}

#[cfg(not(unix))]
async fn signal() -> &'static str {
    match tokio::signal::ctrl_c().await {
        Ok(()) => "Ctrl-C",
        Err(_) => std::future::pending().await,
    }
}
