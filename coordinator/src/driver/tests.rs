//! The driver with workers that are channels.

use std::time::Duration;

use bytes::Bytes;
use protocol::payload::to_payload;
use protocol::{BlobRef, Dtype, Frame, FrameKind, Status, ToWorker, WorkerId, WorkerKind};
use scheduler::{
    ClassSpec, Config, Event, Holds, ModelSpec, Note, PartSpec, RequestError, Time, WorkerSpec,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use worker::Down;

use super::*;

const VOCAB: u32 = 5;
const WIDTH: u32 = 4;
const LAYERS: u32 = 2;

fn blob(number: u64, bytes: u64) -> BlobRef {
    BlobRef { hash: format!("{number:064x}"), bytes }
}

fn model() -> ModelSpec {
    let part = |part| PartSpec {
        blobs: vec![blob(part, 1000)],
        work_bytes: if part == 0 { 0 } else { 1000 },
    };
    ModelSpec {
        name: "m".into(),
        manifest: blob(99, 100),
        classes: vec![ClassSpec { name: "canonical-1".into(), kv_bytes_per_position: 16 }],
        parts: (0..u64::from(LAYERS) + 2).map(part).collect(),
        d_model: WIDTH,
        vocab: VOCAB,
        context: 1024,
        divisions: Vec::new(),
    }
}

fn spec(id: WorkerId) -> WorkerSpec {
    WorkerSpec {
        id,
        key: format!("{:064x}", id.0),
        name: format!("fake {id}"),
        kind: WorkerKind::Native,
        backend: "fake".into(),
        device: String::new(),
        notes: Vec::new(),
        trusted: true,
        holds: Holds::Anything,
        memory_bytes: 1 << 30,
        boundaries: Vec::new(),
        bytes_per_s: [1e9, 4e9],
        step_credits: 2,
        classes: vec!["canonical-1".into()],
        cached: Vec::new(),
        standing: scheduler::Standing::default(),
        machine: String::new(),
    }
}

fn start() -> (Handle, JoinHandle<()>) {
    super::start(Config::default(), vec![model()], None)
}

/// The answer of an honest worker: hidden states of ones, or logits 0, 1, 2, ...
fn answer(step: &Frame) -> Frame {
    let head = step.span.end == LAYERS + 2;
    let mut frame = Frame { kind: FrameKind::Result, dtype: Dtype::F32, ..step.clone() };
    for segment in &mut frame.segments {
        segment.status = Status::Ok;
    }
    let rows = frame.payload_rows(head);
    let row: Vec<f32> = match head {
        true => (0..VOCAB).map(|v| v as f32).collect(),
        false => vec![1.0; WIDTH as usize],
    };
    frame.payload = to_payload(row.repeat(rows as usize));
    frame
}

/// Joins a worker that does as it is told, until its queue closes.
async fn join_honest(driver: &Handle) -> (WorkerId, JoinHandle<Vec<ToWorker>>) {
    let id = driver.fresh_worker();
    let (sender, mut outbox) = mpsc::channel(OUTBOX_MAX);
    driver.join(spec(id), sender).await.unwrap();
    let driver = driver.clone();
    let task = tokio::spawn(async move {
        let mut heard = Vec::new();
        while let Some(message) = outbox.recv().await {
            let event = match message {
                Down::Frame(step) => Event::Result { worker: id, frame: answer(&step) },
                Down::Control(ToWorker::Assign(a)) => Event::Ready { worker: id, assignment: a.id },
                Down::Control(message) => {
                    heard.push(message);
                    continue;
                }
                Down::Relay(piece) => panic!("of a group that there is not: {piece:?}"),
            };
            driver.event(event).await.unwrap();
        }
        heard
    });
    (id, task)
}

fn submit(choices: u32) -> Submit {
    Submit {
        model: "m".into(),
        prompt: vec![1, 2, 3],
        choices,
        max_new_tokens: 10,
        timeout: Duration::from_secs(60),
        wish: scheduler::Wish::default(),
    }
}

async fn next_logits(submission: &mut Submission) -> (u32, u32, Bytes) {
    loop {
        match submission.recv().await.expect("the driver runs") {
            RequestEvent::Started { .. } => {}
            RequestEvent::Logits { choice, position, logits } => return (choice, position, logits),
            RequestEvent::Refused(error) => panic!("refused: {error}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_token_chosen_brings_the_next_logits() {
    let (driver, _task) = start();
    let _worker = join_honest(&driver).await;
    let mut submission = driver.submit(submit(1)).await.unwrap();
    let started = submission.recv().await;
    assert!(matches!(started, Some(RequestEvent::Started { cached_tokens: 0 })), "{started:?}");
    for position in 2..6 {
        let (choice, at, logits) = next_logits(&mut submission).await;
        assert_eq!((choice, at, logits.len()), (0, position, VOCAB as usize * 4));
        submission.sampled(0, 4);
    }
    next_logits(&mut submission).await;
    submission.finish(0);
    assert!(driver.view().await.sessions.is_empty());
    assert!(submission.recv().await.is_none(), "nothing comes after the last choice's end");
}

#[tokio::test(start_paused = true)]
async fn choices_end_one_by_one() {
    let (driver, _task) = start();
    let _worker = join_honest(&driver).await;
    let mut submission = driver.submit(submit(3)).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(next_logits(&mut submission).await.0);
    }
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2]);
    submission.finish(1);
    assert_eq!(driver.view().await.sessions.len(), 2);
    submission.sampled(1, 4); // too late: changes nothing
    submission.sampled(2, 4);
    assert_eq!(next_logits(&mut submission).await.0, 2);
    submission.finish(0);
    submission.finish(2);
    assert!(driver.view().await.sessions.is_empty());
}

#[tokio::test(start_paused = true)]
async fn dropping_a_submission_cancels_it_at_once() {
    let (driver, _task) = start();
    // Before the driver has seen it, while it waits for layers, and while it runs.
    drop(driver.submit(submit(1)).await.unwrap());
    assert_eq!(driver.view().await.queued, 0);
    let waiting = driver.submit(submit(1)).await.unwrap();
    let view = driver.view().await;
    assert_eq!(view.queued + view.sessions.len(), 1);
    drop(waiting);
    let view = driver.view().await;
    assert_eq!(view.queued + view.sessions.len(), 0);
    let _worker = join_honest(&driver).await;
    let mut running = driver.submit(submit(2)).await.unwrap();
    next_logits(&mut running).await;
    assert_eq!(driver.view().await.sessions.len(), 2);
    drop(running);
    assert!(driver.view().await.sessions.is_empty());
}

#[tokio::test(start_paused = true)]
async fn refusals_say_why() {
    let (driver, _task) = start();
    let mut submission =
        driver.submit(Submit { model: "other".into(), ..submit(1) }).await.unwrap();
    let refused = submission.recv().await;
    let expected = RequestError::NoModel { model: "other".into() };
    assert!(matches!(refused, Some(RequestEvent::Refused(error)) if error == expected));
    // Nobody holds the layers until the deadline.
    let timeout = Duration::from_secs(2);
    let mut submission = driver.submit(Submit { timeout, ..submit(1) }).await.unwrap();
    loop {
        match submission.recv().await.expect("the driver runs") {
            RequestEvent::Started { .. } => {}
            RequestEvent::Refused(RequestError::Deadline { waited_s: 2, .. }) => break,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_takes_nothing_is_lost_and_holds_nobody_up() {
    let (driver, _task) = start();
    let id = driver.fresh_worker();
    let (sender, stuck) = mpsc::channel(1);
    sender.try_send(Down::Control(ToWorker::Ping { nonce: 1 })).unwrap();
    driver.join(spec(id), sender).await.unwrap();
    // The placement's first message does not fit into its queue.
    let (_, honest) = join_honest(&driver).await;
    let mut submission = driver.submit(submit(1)).await.unwrap();
    next_logits(&mut submission).await;
    let view = driver.view().await;
    assert!(view.workers.iter().all(|worker| worker.id != id), "{:?}", view.workers);
    let notes = driver.notes();
    assert!(notes.iter().any(|note| note.text.contains("messages wait for it")), "{notes:?}");
    drop((stuck, honest));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_leaves_takes_its_queue_with_it() {
    let (driver, _task) = start();
    let (id, worker) = join_honest(&driver).await;
    assert_eq!(driver.view().await.workers.len(), 1);
    driver.event(Event::Leave { worker: id, reason: "asked to".into() }).await.unwrap();
    assert!(driver.view().await.workers.is_empty());
    worker.await.expect("its queue closed");
    let lost = Note::Lost { worker: id, reason: "asked to".into(), sessions: 0 }.to_string();
    assert!(driver.notes().iter().any(|note| note.text == lost), "{:?}", driver.notes());
    // Said twice, as when a socket ends after the driver gave it up.
    driver.event(Event::Leave { worker: id, reason: "again".into() }).await.unwrap();
    assert!(driver.view().await.workers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn lies_end_in_a_dismissal() {
    let (driver, _task) = start();
    let id = driver.fresh_worker();
    let (sender, mut outbox) = mpsc::channel(OUTBOX_MAX);
    driver.join(spec(id), sender).await.unwrap();
    let mut submission = driver.submit(submit(1)).await.unwrap();
    let reason = loop {
        match outbox.recv().await.expect("it ends with a dismissal") {
            Down::Control(ToWorker::Assign(a)) => {
                driver.event(Event::Ready { worker: id, assignment: a.id }).await.unwrap();
            }
            Down::Control(ToWorker::Dismiss { reason, .. }) => break reason,
            Down::Control(_) | Down::Relay(_) => {}
            Down::Frame(step) => {
                let mut frame = answer(&step);
                let values = frame.payload.len() / 4;
                frame.payload = to_payload(vec![f32::NAN; values]);
                driver.event(Event::Result { worker: id, frame }).await.unwrap();
            }
        }
    };
    assert!(!reason.is_empty());
    assert!(outbox.recv().await.is_none(), "the queue closes behind it");
    // The request goes on with another.
    let _honest = join_honest(&driver).await;
    assert_eq!(next_logits(&mut submission).await.1, 2);
}

#[tokio::test]
async fn a_driver_that_stops_closes_every_request() {
    let (driver, task) = start();
    let mut submission = driver.submit(submit(1)).await.unwrap();
    driver.view().await;
    task.abort();
    assert!(task.await.is_err());
    while let Some(event) = submission.recv().await {
        assert!(matches!(event, RequestEvent::Started { .. }), "{event:?}");
    }
    assert_eq!(driver.submit(submit(1)).await.err(), Some(DriverGone));
    assert!(driver.view().await.models.is_empty());
}

#[test]
fn time_counts_microseconds() {
    assert_eq!(Time(5).plus(Duration::from_millis(2)), Time(2005));
}
