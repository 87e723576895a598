//! The coordinator's own worker, in this process.
//!
//! The same `worker` library as the native program's, over channels instead of a socket:
//! frames are handed over as they are, and weights are mapped from the home folder. It
//! says hello like any other, but who it is needs no proof.

use anyhow::{Context, bail};
use protocol::{FrameKind, FromWorker, Hello, PROTOCOL_VERSION, ToWorker, WorkerId, WorkerKind};
use scheduler::{Event, Holds, WorkerSpec};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use worker::{BlobSource, Down, Identity, Link, Setup, Up, Worker, benchmark, machine};

use crate::config::{Config, Embedded};
use crate::driver::Handle;
use crate::random;
use crate::store::{CANONICAL_1, EXACT_F32, Home};

/// Steps that it takes at once: one is computed while the next one waits.
const STEP_CREDITS: u32 = 2;
/// The share of the available memory that it takes by default, of this many parts.
const MEMORY_SHARE: (u64, u64) = (3, 4);

/// Starts the worker and joins it to the driver; it ends when `closing` is cancelled or the
/// driver has let it go.
///
/// # Errors
/// It cannot compute here, or the driver has stopped.
pub async fn start(
    home: &Home,
    config: &Config,
    which: Embedded,
    driver: Handle,
    closing: CancellationToken,
) -> anyhow::Result<JoinHandle<()>> {
    let threads = config.threads.unwrap_or_else(machine::threads);
    let memory_bytes = config.memory_bytes.unwrap_or_else(memory_default);
    let bytes_per_s = tokio::task::spawn_blocking(move || benchmark::bytes_per_s(threads))
        .await
        .context("the benchmark")?
        .map_err(anyhow::Error::msg)?;
    tracing::info!(
        threads,
        memory_mib = memory_bytes >> 20,
        gb_per_s_1_row = bytes_per_s[0] / 1e9,
        gb_per_s_8_rows = bytes_per_s[1] / 1e9,
        "the embedded worker starts"
    );
    let worker = Worker::start(Setup {
        config: worker_core::Config {
            name: "embedded".into(),
            kind: WorkerKind::Embedded,
            backend: "cpu".into(),
            classes: [CANONICAL_1, EXACT_F32].map(str::to_owned).to_vec(),
            memory_bytes,
            bytes_per_s,
            step_credits: STEP_CREDITS,
            token: None,
        },
        identity: Identity::ephemeral().context("the embedded worker's key")?,
        blobs: BlobSource::folder(home.blobs()),
        threads,
        intensity_percent: config.intensity_percent,
    })
    .context("the embedded worker's thread")?;
    let (link, to_worker, mut from_worker) = Link::pair();
    let serving = tokio::spawn(async move { worker.serve(link).await });
    let hello = greet(&to_worker, &mut from_worker).await?;
    let id = driver.fresh_worker();
    let welcome = ToWorker::Welcome { worker: id, blob_token: random::hex::<32>(), trusted: true };
    to_worker.send(Down::Control(welcome)).await.context("the embedded worker has ended")?;
    driver.join(spec(hello, id, which), to_worker).await?;
    Ok(tokio::spawn(async move {
        tokio::select! {
            reason = carry(&driver, id, &mut from_worker) => {
                tracing::error!(%reason, "the embedded worker is gone");
                let _ = driver.event(Event::Leave { worker: id, reason }).await;
            }
            () = closing.cancelled() => {}
        }
        // Dropping its end of the link ends the worker.
        drop(from_worker);
        serving.abort();
    }))
}

/// Challenge and hello, as on a socket.
async fn greet(
    to_worker: &mpsc::Sender<Down>,
    from_worker: &mut mpsc::Receiver<Up>,
) -> anyhow::Result<Hello> {
    let nonce = random::hex::<32>();
    let challenge = ToWorker::Challenge { protocol: PROTOCOL_VERSION, nonce };
    to_worker.send(Down::Control(challenge)).await.context("the embedded worker has ended")?;
    match from_worker.recv().await {
        Some(Up::Control(FromWorker::Hello(hello))) => Ok(hello),
        other => bail!("the embedded worker said {other:?} instead of hello"),
    }
}

fn spec(hello: Hello, id: WorkerId, which: Embedded) -> WorkerSpec {
    WorkerSpec {
        id,
        key: hello.public_key,
        name: hello.name,
        kind: WorkerKind::Embedded,
        backend: hello.backend,
        trusted: true,
        holds: if which == Embedded::Ends { Holds::Ends } else { Holds::Anything },
        memory_bytes: hello.memory_bytes,
        bytes_per_s: hello.bytes_per_s,
        step_credits: hello.step_credits,
        classes: hello.classes,
        cached: hello.cached,
    }
}

/// Turns the worker's messages into events until it ends; why, in words.
async fn carry(driver: &Handle, worker: WorkerId, from_worker: &mut mpsc::Receiver<Up>) -> String {
    while let Some(message) = from_worker.recv().await {
        let event = match message {
            Up::Frame(frame) => match (frame.kind, frame.validate()) {
                (FrameKind::Result, Ok(())) => Event::Result { worker, frame },
                (kind, sound) => return format!("it sent a {kind:?} frame ({sound:?})"),
            },
            Up::Control(message) => match message {
                FromWorker::Ready { assignment } => Event::Ready { worker, assignment },
                FromWorker::Failed { assignment, reason } => {
                    Event::Failed { worker, assignment, reason }
                }
                FromWorker::Progress { assignment, bytes_done, bytes_total: _ } => {
                    Event::Progress { worker, assignment, bytes_done }
                }
                FromWorker::Drain { reason } => Event::Drain { worker, reason },
                FromWorker::Pong { nonce: _ } => continue,
                FromWorker::Hello(_) => return "it said hello twice".into(),
            },
        };
        if driver.event(event).await.is_err() {
            return "the scheduler has stopped".into();
        }
    }
    "it ended".into()
}

fn memory_default() -> u64 {
    let (part, of) = MEMORY_SHARE;
    machine::memory_available().map_or(machine::MEMORY_BYTES_UNKNOWN, |bytes| bytes / of * part)
}
