//! The coordinator's own worker, in this process.
//!
//! The same `worker` library as the native program's, over channels instead of a socket:
//! frames are handed over as they are, and weights are mapped from the home folder. It
//! says hello like any other, but who it is needs no proof.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use protocol::{FrameKind, FromWorker, Hello, PROTOCOL_VERSION, ToWorker, WorkerId, WorkerKind};
use scheduler::{Event, Holds, Standing, WorkerSpec};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use worker::backoff::Backoff;
use worker::{BlobSource, Computer, Down, End, Identity, Link, Setup, Up, Worker, machine};

use crate::config::{Config, Embedded};
use crate::driver::{DriverGone, Handle};
use crate::random;
use crate::store::{CANONICAL_1, EXACT_F32, Home};

/// Steps that it takes at once: one is computed while the next one waits.
const STEP_CREDITS: u32 = 2;
/// Having been a member for this long, it comes back quickly.
const GOOD_AFTER: Duration = Duration::from_secs(60);
/// The share of the available memory that it takes by default, of this many parts.
const MEMORY_SHARE: (u64, u64) = (3, 4);

/// Starts the worker and joins it to the driver, again whenever the driver lets go of it; it
/// ends when `closing` is cancelled or the driver has stopped.
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
    let bytes_per_s = tokio::task::spawn_blocking(move || machine::bytes_per_s(threads))
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
            device: machine::processor(),
            notes: Vec::new(),
            classes: [CANONICAL_1, EXACT_F32].map(str::to_owned).to_vec(),
            memory_bytes,
            bytes_per_s,
            step_credits: STEP_CREDITS,
            token: None,
        },
        identity: Identity::ephemeral().context("the embedded worker's key")?,
        blobs: BlobSource::folder(home.blobs()),
        computer: Computer::Cpu { threads },
        intensity_percent: config.intensity_percent,
    })
    .context("the embedded worker's thread")?;
    let worker = Arc::new(worker);
    let mut member = join(&worker, &driver, which).await?;
    Ok(tokio::spawn(async move {
        let mut backoff = Backoff::default();
        loop {
            let began = Instant::now();
            tokio::select! {
                () = member.served(&driver) => {}
                () = closing.cancelled() => return member.abandon(),
            }
            if began.elapsed() > GOOD_AFTER {
                backoff.reset();
            }
            member = loop {
                let wait = backoff.next_wait(random::bits());
                tracing::info!("the embedded worker is back in {:.1} s", wait.as_secs_f64());
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = closing.cancelled() => return,
                }
                match join(&worker, &driver, which).await {
                    Ok(member) => break member,
                    Err(error) if error.is::<DriverGone>() => return,
                    Err(error) => tracing::error!("the embedded worker cannot join: {error:#}"),
                }
            };
        }
    }))
}

/// The worker as one member of the fleet: it has a new id each time that it joins.
struct Member {
    id: WorkerId,
    from_worker: mpsc::Receiver<Up>,
    serving: JoinHandle<End>,
}

/// Connects the worker to the driver as a new member.
async fn join(worker: &Arc<Worker>, driver: &Handle, which: Embedded) -> anyhow::Result<Member> {
    let (link, to_worker, mut from_worker) = Link::pair();
    let worker = worker.clone();
    let serving = tokio::spawn(async move { worker.serve(link).await });
    let hello = greet(&to_worker, &mut from_worker).await?;
    let id = driver.fresh_worker();
    let welcome = ToWorker::Welcome { worker: id, blob_token: random::hex::<32>(), trusted: true };
    to_worker.send(Down::Control(welcome)).await.context("the embedded worker has ended")?;
    driver.join(spec(hello, id, which), to_worker).await?;
    Ok(Member { id, from_worker, serving })
}

impl Member {
    /// Carries messages until the worker or the driver has had enough, and both know.
    async fn served(&mut self, driver: &Handle) {
        let reason = carry(driver, self.id, &mut self.from_worker).await;
        // Dropped by the driver at the latest now, the other end ends the worker's connection.
        let _ = driver.event(Event::Leave { worker: self.id, reason: reason.clone() }).await;
        self.from_worker.close();
        let end = (&mut self.serving).await;
        tracing::error!(%reason, ?end, "the embedded worker is gone");
    }

    /// Ends the connection; a step at hand is not waited for.
    fn abandon(self) {
        self.serving.abort();
    }
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
        Some(Up::Control(FromWorker::Hello(hello))) => Ok(*hello),
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
        device: hello.device,
        notes: hello.notes,
        trusted: true,
        holds: if which == Embedded::Ends { Holds::Ends } else { Holds::Anything },
        memory_bytes: hello.memory_bytes,
        boundaries: hello.boundaries,
        bytes_per_s: hello.bytes_per_s,
        step_credits: hello.step_credits,
        classes: hello.classes,
        cached: hello.cached,
        standing: Standing::default(),
        machine: String::new(),
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
            Up::Relay(_) => {
                return "it took part in a tensor group, which it is never given".into();
            }
            Up::Control(message) => match message {
                FromWorker::Ready { assignment } => Event::Ready { worker, assignment },
                FromWorker::Failed { assignment, reason } => {
                    Event::Failed { worker, assignment, reason }
                }
                FromWorker::Progress { assignment, bytes_done, bytes_total: _ } => {
                    Event::Progress { worker, assignment, bytes_done }
                }
                FromWorker::Drain { reason } => Event::Drain { worker, reason },
                FromWorker::Visibility { hidden } => Event::Visibility { worker, hidden },
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

#[cfg(test)]
mod tests {
    use model::testing::TinyModel;

    use super::*;
    use crate::config::Settings;
    use crate::driver::{self, OUTBOX_MAX, RequestEvent, Submit};
    use crate::store::prepare;

    /// Waits for a member that is not `old` and holds all of the model.
    async fn covered_by_another(driver: &Handle, old: Option<WorkerId>) -> (WorkerId, String) {
        loop {
            let view = driver.view().await;
            let mut others = view.workers.iter().filter(|worker| Some(worker.id) != old);
            if let Some(worker) = others.next()
                && worker.state == "ready"
                && view.models[0].covered
            {
                return (worker.id, worker.key.clone());
            }
            tokio::task::yield_now().await;
        }
    }

    async fn answers(driver: &Handle) {
        let timeout = Duration::from_secs(60);
        let (model, prompt) = ("tiny".to_owned(), vec![1, 2]);
        let wish = scheduler::Wish::default();
        let submit = Submit { model, prompt, choices: 1, max_new_tokens: 2, timeout, wish };
        let mut submission = driver.submit(submit).await.unwrap();
        assert!(matches!(submission.recv().await, Some(RequestEvent::Started { .. })));
        assert!(matches!(submission.recv().await, Some(RequestEvent::Logits { .. })));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn dismissed_or_lost_it_comes_back_and_serves() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(Some(folder.path().join("home"))).unwrap();
        let path = folder.path().join("tiny.gguf");
        let tiny = TinyModel { tokenizer: true, ..TinyModel::llama(1) };
        std::fs::write(&path, tiny.to_bytes()).unwrap();
        let model = prepare(&home, &path, "tiny", &[CANONICAL_1.to_owned()]).unwrap();
        let settings = Settings { threads: Some(1), memory_mib: Some(256), ..Settings::default() };
        let config = settings.resolve().unwrap();
        let (driver, _task) = driver::start(config.scheduler.clone(), vec![model.spec], None);
        let closing = CancellationToken::new();
        let task = start(&home, &config, Embedded::All, driver.clone(), closing.clone());
        let task = task.await.unwrap();
        let (first, key) = covered_by_another(&driver, None).await;
        answers(&driver).await;

        // Another member with its key: the driver dismisses it, as it would a silent one.
        let (outbox, _kept) = mpsc::channel(OUTBOX_MAX);
        let ghost = WorkerSpec {
            id: driver.fresh_worker(),
            key,
            name: "ghost".into(),
            kind: WorkerKind::Native,
            backend: "none".into(),
            device: String::new(),
            notes: Vec::new(),
            trusted: false,
            holds: Holds::Anything,
            memory_bytes: 0,
            boundaries: Vec::new(),
            bytes_per_s: [1.0, 1.0],
            step_credits: 1,
            classes: Vec::new(),
            cached: Vec::new(),
            standing: Standing::default(),
            machine: String::new(),
        };
        driver.join(ghost, outbox).await.unwrap();
        let (second, _) = covered_by_another(&driver, Some(first)).await;
        assert_ne!(first, second);
        answers(&driver).await;

        driver.event(Event::Leave { worker: second, reason: "a test".into() }).await.unwrap();
        let (third, _) = covered_by_another(&driver, Some(second)).await;
        assert_ne!(second, third);
        answers(&driver).await;
        closing.cancel();
        task.await.unwrap();
    }
}
