//! The `worker` program: see `worker --help`.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use protocol::WorkerKind;
use tracing_subscriber::EnvFilter;
use worker::blobs::{Cache, Http};
use worker::client::{self, ClientError};
use worker::lent::{self, Lent};
use worker::options::{Flags, Options};
use worker::{BlobSource, Identity, Setup, Worker, identity, machine, socket};
use worker_core::Config;

/// Ended by a dismissal that says not to come back.
const EXIT_DISMISSED: u8 = 3;
/// Ended by a second signal.
const EXIT_INTERRUPTED: i32 = 130;

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
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
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
    let mut workers = Vec::new();
    for lent in lent {
        workers.push(Arc::new(start(&options, lent, source.clone())?));
    }
    tokio::spawn(drain_on_signal(workers.clone()));
    let tls = tls.map(Arc::new);
    let mut serving = tokio::task::JoinSet::new();
    for worker in workers {
        let (url, tls) = (url.clone(), tls.clone());
        serving.spawn(async move { client::run(&worker, &url, tls).await });
    }
    // Workers of one process stand and fall by themselves; the first failure is told.
    let mut outcome = Ok(());
    while let Some(served) = serving.join_next().await {
        let served = served.map_err(|e| format!("a worker failed: {e}"))?;
        if let Err(error) = &served
            && !serving.is_empty()
        {
            tracing::error!("{error}");
        }
        outcome = outcome.and(served);
    }
    match outcome {
        Ok(()) => {
            tracing::info!("left in good order");
            Ok(())
        }
        Err(error @ ClientError::Dismissed(_)) => Err(Failure::Dismissed(error.to_string())),
        Err(error) => Err(Failure::Error(error.to_string())),
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
async fn drain_on_signal(workers: Vec<Arc<Worker>>) {
    let name = signal().await;
    tracing::info!("{name}: finishing the steps at hand; again to end at once");
    workers.iter().for_each(|worker| worker.drain(name));
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
