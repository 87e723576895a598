//! A real worker, over a real socket, with a synthetic model.

mod coordinator;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use coordinator::{Coordinator, Model, Peer, SOON};
use engine::{BlobBytes, Class, Input, Limits, Output, Shard};
use protocol::payload::{elements, to_payload};
use protocol::*;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use worker::blobs::{Cache, Http};
use worker::client::{self, ClientError};
use worker::{BlobSource, Computer, Down, End, Identity, Link, Setup, Up, Worker, socket};

fn setup(blobs: BlobSource) -> Setup {
    Setup {
        config: worker_core::Config {
            name: "otter".into(),
            kind: WorkerKind::Native,
            backend: "cpu".into(),
            device: String::new(),
            notes: Vec::new(),
            classes: vec!["canonical-1".into()],
            memory_bytes: 1 << 30,
            bytes_per_s: [1e9; 2],
            step_credits: 2,
            token: None,
        },
        identity: Identity::ephemeral().unwrap(),
        blobs,
        computer: Computer::Cpu { threads: 2 },
        intensity_percent: 100,
    }
}

struct Client {
    worker: Arc<Worker>,
    task: JoinHandle<Result<(), ClientError>>,
}

impl Client {
    fn start(url: reqwest::Url, home: &Path) -> Client {
        let cache = Cache::open(home.join("blobs"), 1 << 30).unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let http = Http::new(cache, http, socket::http_address(&url).unwrap());
        let worker = Arc::new(Worker::start(setup(BlobSource::Http(Arc::new(http)))).unwrap());
        let serving = worker.clone();
        let task = tokio::spawn(async move { client::run(&serving, &url, None).await });
        Client { worker, task }
    }

    async fn ended(self) -> Result<(), ClientError> {
        timeout(SOON, self.task).await.expect("the worker goes on").unwrap()
    }
}

/// The same shard, without a network.
fn shard(model: &Model, first: u32, end: u32) -> Shard {
    let get = |hash: &str| Some(Arc::new(model.blobs.get(hash)?.clone()) as BlobBytes);
    let class = Class::Canonical1;
    Shard::load(&model.manifest, first..end, class, get, Limits::new(16, 1)).unwrap()
}

fn segment(session: u64, position: u32, rows: u32) -> Segment {
    let (session, status) = (SessionId(session), Status::Ok);
    Segment { session, epoch: 1, position, rows, logits_rows: 1, status }
}

fn step(assignment: &Assignment, step: u64, segments: Vec<Segment>, payload: Bytes) -> Frame {
    Frame {
        kind: FrameKind::Step,
        assignment: assignment.id,
        span: assignment.span,
        step,
        compute_us: 0,
        dtype: if assignment.span.first == 0 { Dtype::U32 } else { Dtype::F32 },
        answer: Dtype::F32,
        segments,
        payload,
    }
}

fn compute(shard: &mut Shard, frame: &Frame) -> Bytes {
    let segments: Vec<engine::Segment> = frame
        .segments
        .iter()
        .map(|s| engine::Segment {
            session: s.session.0,
            position: s.position,
            rows: s.rows,
            logits_rows: s.logits_rows,
        })
        .collect();
    let output = match frame.dtype {
        Dtype::U32 => shard.step(&segments, Input::Tokens(&elements::<u32>(&frame.payload))),
        _ => shard.step(&segments, Input::Hidden(&elements::<f32>(&frame.payload))),
    };
    match output.unwrap() {
        Output::Hidden(values) | Output::Logits(values) => to_payload(values),
    }
}

/// Two shards on one worker, a prompt in two chunks and a second session beside it: every
/// answer has the bits that the engine gives by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_over_the_socket_equal_the_engine() {
    let model = Model::tiny();
    let mut coordinator = Coordinator::start(&model).await;
    let home = tempfile::tempdir().unwrap();
    let client = Client::start(coordinator.url(), home.path());
    let (mut peer, hello) = coordinator.joined().await;
    assert_eq!((hello.name.as_str(), hello.step_credits), ("otter", 2));
    assert!(hello.cached.is_empty());

    let parts = model.manifest.parts.len() as u32;
    let (front, back) = (model.assignment(1, 0, 2), model.assignment(2, 2, parts));
    for assignment in [&front, &back] {
        let ready = FromWorker::Ready { assignment: assignment.id };
        assert_eq!(peer.assign(assignment.clone()).await, ready);
    }
    let (mut front_shard, mut back_shard) = (shard(&model, 0, 2), shard(&model, 2, parts));
    let prompt: Vec<u32> = (0..300).map(|i| i * 7 % 288).collect();
    let steps = [
        (vec![segment(1, 0, 280)], prompt[..280].to_vec()),
        (vec![segment(1, 280, 20), segment(2, 0, 3)], [&prompt[280..], &[5, 6, 7]].concat()),
        (vec![segment(2, 3, 1), segment(1, 300, 1)], vec![8, 9]),
        (vec![segment(1, 290, 1)], vec![10]),
    ];
    for (number, (segments, tokens)) in (1..).zip(steps) {
        let frame = step(&front, number, segments.clone(), to_payload(tokens));
        peer.send(&frame).await;
        let hidden = peer.answer().await;
        assert_eq!(hidden.payload, compute(&mut front_shard, &frame), "step {number}, front");
        assert_eq!((hidden.step, &hidden.segments), (number, &segments));
        let frame = step(&back, 100 + number, segments, hidden.payload);
        peer.send(&frame).await;
        let logits = peer.answer().await;
        assert_eq!(logits.payload, compute(&mut back_shard, &frame), "step {number}, back");
        assert!(logits.compute_us > 0);
    }
    let late = step(&front, 9, vec![segment(2, 9, 1)], to_payload(vec![1u32]));
    peer.send(&late).await;
    let answer = peer.answer().await;
    assert_eq!((answer.segments[0].status, answer.segments[0].position), (Status::Gap, 4));
    let wrong = step(&front, 10, vec![segment(2, 4, 1)], to_payload(vec![288u32]));
    peer.send(&wrong).await;
    assert_eq!(peer.answer().await.segments[0].status, Status::BadInput);

    peer.say(ToWorker::Ping { nonce: 77 }).await;
    assert_eq!(peer.control().await, FromWorker::Pong { nonce: 77 });
    client.worker.drain("test");
    assert_eq!(peer.control().await, FromWorker::Drain { reason: "test".into() });
    peer.closed().await;
    assert_eq!(client.ended().await, Ok(()));
}

/// A route enters and leaves a shard in the middle, another takes all of it, sessions fork.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_a_shard_compute_as_a_shard_of_those_parts() {
    let model = Model::tiny();
    let mut coordinator = Coordinator::start(&model).await;
    let home = tempfile::tempdir().unwrap();
    let _client = Client::start(coordinator.url(), home.path());
    let (mut peer, _) = coordinator.joined().await;
    let parts = model.manifest.parts.len() as u32;
    let all = model.assignment(1, 0, parts);
    let ready = FromWorker::Ready { assignment: all.id };
    assert_eq!(peer.assign(all.clone()).await, ready);
    let (mut whole, mut middle) = (shard(&model, 0, parts), shard(&model, 2, 4));

    let tokens = step(&all, 1, vec![segment(1, 0, 3)], to_payload(vec![1u32, 2, 3]));
    peer.send(&tokens).await;
    assert_eq!(peer.answer().await.payload, compute(&mut whole, &tokens));

    let inner = Assignment { span: Span { first: 2, end: 4 }, ..all.clone() };
    let rows = |n: usize| to_payload((0..n * 64).map(|i| (i % 13) as f32 * 0.1).collect());
    let first = step(&inner, 2, vec![segment(2, 0, 5)], rows(5));
    peer.send(&first).await;
    assert_eq!(peer.answer().await.payload, compute(&mut middle, &first));
    let (from, to, assignment) = (SessionId(2), SessionId(3), all.id);
    peer.say(ToWorker::Fork { assignment, from, to, epoch: 1, positions: 4 }).await;
    middle.fork(2, 3, 4).unwrap();
    peer.say(ToWorker::Truncate { assignment, session: from, epoch: 1, positions: 2 }).await;
    let next = step(&inner, 3, vec![segment(3, 4, 1), segment(2, 2, 1)], rows(2));
    peer.send(&next).await;
    let answer = peer.answer().await;
    assert_eq!(answer.payload, compute(&mut middle, &next));
    assert_eq!(answer.span, inner.span);

    let more = step(&all, 4, vec![segment(1, 3, 1)], to_payload(vec![4u32]));
    peer.send(&more).await;
    assert_eq!(peer.answer().await.payload, compute(&mut whole, &more));
    let ends = Assignment { span: Span { first: 0, end: 1 }, ..all };
    let lookup = step(&ends, 5, vec![segment(9, 70, 2)], to_payload(vec![7u32, 8]));
    peer.send(&lookup).await;
    assert_eq!(peer.answer().await.payload, compute(&mut shard(&model, 0, 1), &lookup));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_worker_comes_back_with_its_cache() {
    let model = Model::tiny();
    let mut coordinator = Coordinator::start(&model).await;
    let home = tempfile::tempdir().unwrap();
    let client = Client::start(coordinator.url(), home.path());
    let (mut peer, first) = coordinator.joined().await;
    let assignment = model.assignment(1, 1, 3);
    let ready = FromWorker::Ready { assignment: assignment.id };
    assert_eq!(peer.assign(assignment.clone()).await, ready);
    let fetched = coordinator.requests().len();
    assert_eq!(fetched, assignment.blobs.len() + 1);
    drop(peer);

    let (mut peer, again) = coordinator.joined().await;
    assert_eq!(again.public_key, first.public_key);
    assert_eq!(again.cached.len(), fetched);
    assert_eq!(peer.assign(assignment.clone()).await, ready);
    assert_eq!(coordinator.requests().len(), fetched, "nothing is fetched twice");
    let hidden = to_payload(vec![0.5f32; 64]);
    let stale = step(&assignment, 1, vec![segment(1, 5, 1)], hidden.clone());
    peer.send(&stale).await;
    assert_eq!(peer.answer().await.segments[0].status, Status::Gap, "KV is not kept");

    let dismiss = ToWorker::Dismiss { reason: "banned".into(), retry: false };
    peer.say(dismiss).await;
    peer.closed().await;
    assert_eq!(client.ended().await, Err(ClientError::Dismissed("banned".into())));
}

/// What the worker says to an assignment whose blobs the coordinator spoils first.
async fn failure(spoil: impl FnOnce(&mut coordinator::Blobs, &Assignment)) -> (String, usize) {
    let model = Model::tiny();
    let mut coordinator = Coordinator::start(&model).await;
    let home = tempfile::tempdir().unwrap();
    let _client = Client::start(coordinator.url(), home.path());
    let (mut peer, _) = coordinator.joined().await;
    let assignment = model.assignment(1, 1, 2);
    spoil(&mut coordinator.blobs.lock().unwrap(), &assignment);
    let FromWorker::Failed { reason, .. } = peer.assign(assignment.clone()).await else {
        panic!("it was taken")
    };
    let spoiled = home.path().join("blobs").join(&assignment.blobs[0].hash);
    assert!(!spoiled.exists(), "what did not verify was kept");
    // The worker itself is none the worse.
    let good = Model::tiny().blobs;
    coordinator.blobs.lock().unwrap().by_hash = good;
    let again = Assignment { id: AssignmentId(2), ..assignment };
    let ready = FromWorker::Ready { assignment: again.id };
    assert_eq!(peer.assign(again).await, ready);
    (reason, coordinator.requests().len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_are_refused() {
    let (reason, _) = failure(|blobs, assignment| {
        let blob = blobs.by_hash.get_mut(&assignment.blobs[0].hash).unwrap();
        blob[100] ^= 1;
    })
    .await;
    assert!(reason.contains("hashes to"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_lengths_and_missing_blobs_are_refused() {
    let (reason, _) = failure(|blobs, assignment| {
        blobs.by_hash.get_mut(&assignment.blobs[0].hash).unwrap().push(0);
    })
    .await;
    assert!(reason.contains("were announced"), "{reason}");
    let (reason, _) = failure(|blobs, assignment| {
        blobs.by_hash.remove(&assignment.blobs[0].hash);
    })
    .await;
    assert!(reason.contains("404"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_goes_on_where_it_broke_off() {
    let model = Model::tiny();
    let mut coordinator = Coordinator::start(&model).await;
    let home = tempfile::tempdir().unwrap();
    let _client = Client::start(coordinator.url(), home.path());
    let (mut peer, _) = coordinator.joined().await;
    // Its manifest is here already, so that the cut strikes the one other blob.
    assert!(matches!(peer.assign(model.assignment(1, 1, 2)).await, FromWorker::Ready { .. }));
    coordinator.blobs.lock().unwrap().cut_after = Some(1000);
    let second = model.assignment(2, 2, 3);
    assert_eq!(second.blobs.len(), 1);
    assert!(matches!(peer.assign(second.clone()).await, FromWorker::Ready { .. }));
    let hash = &second.blobs[0].hash;
    let ranges: Vec<_> = coordinator.requests().into_iter().filter(|(h, _)| h == hash).collect();
    assert_eq!(ranges.len(), 2);
    assert_eq!(ranges[0].1, None);
    assert_eq!(ranges[1].1.as_deref(), Some("bytes=1000-"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_coordinator_is_named() {
    let home = tempfile::tempdir().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = axum::Router::new();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let url = socket::parse_address(&format!("ws://{address}")).unwrap();
    let error = Client::start(url, home.path()).ended().await.unwrap_err().to_string();
    assert!(error.contains("there is no coordinator (404)"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_of_another_version_is_named() {
    let model = Model::tiny();
    let mut coordinator = Coordinator::start(&model).await;
    let home = tempfile::tempdir().unwrap();
    let client = Client::start(coordinator.url(), home.path());
    let mut peer: Peer = coordinator.connection().await;
    peer.say(ToWorker::Challenge { protocol: 99, nonce: "00".repeat(32) }).await;
    let error = client.ended().await.unwrap_err().to_string();
    assert!(error.contains("protocol version 99, this worker 1"), "{error}");
}

/// The coordinator's own worker: channels in place of a socket, a folder in place of HTTP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_worker_computes_the_same() {
    let model = Model::tiny();
    let folder = tempfile::tempdir().unwrap();
    for (hash, bytes) in &model.blobs {
        std::fs::write(folder.path().join(hash), bytes).unwrap();
    }
    let worker = Worker::start(setup(BlobSource::folder(folder.path()))).unwrap();
    let (link, to_worker, mut from_worker) = Link::pair();
    let serving = tokio::spawn(async move { worker.serve(link).await });
    let say = async |message| to_worker.send(Down::Control(message)).await.unwrap();
    let mut next = async || timeout(SOON, from_worker.recv()).await.unwrap().unwrap();
    say(ToWorker::Challenge { protocol: PROTOCOL_VERSION, nonce: "00".repeat(32) }).await;
    let Up::Control(FromWorker::Hello(hello)) = next().await else { panic!("no hello") };
    assert_eq!(hello.cached.len(), model.blobs.len());
    let (worker, blob_token) = (WorkerId(1), "t".to_string());
    say(ToWorker::Welcome { worker, blob_token, trusted: true }).await;
    let parts = model.manifest.parts.len() as u32;
    let all = model.assignment(1, 0, parts);
    say(ToWorker::Assign(all.clone())).await;
    loop {
        match next().await {
            Up::Control(FromWorker::Progress { .. }) => {}
            Up::Control(FromWorker::Ready { .. }) => break,
            other => panic!("{other:?}"),
        }
    }
    let frame = step(&all, 1, vec![segment(1, 0, 3)], to_payload(vec![1u32, 2, 3]));
    to_worker.send(Down::Frame(frame.clone())).await.unwrap();
    let Up::Frame(answer) = next().await else { panic!("no answer") };
    assert_eq!(answer.payload, compute(&mut shard(&model, 0, parts), &frame));
    drop(to_worker);
    let end = timeout(SOON, serving).await.unwrap().unwrap();
    assert!(matches!(end, End::Lost(_)), "{end:?}");
}

fn program(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_worker"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("WEFT")) {
        command.env_remove(name);
    }
    let output = command.args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn the_program_says_in_one_line_what_is_wrong() {
    let (code, text) = program(&["--coordinator", "http://127.0.0.1:1"]);
    assert_eq!(code, Some(1));
    assert_eq!(
        text.trim(),
        "worker: `http://127.0.0.1:1`: workers join by ws:// in place of http://"
    );
    let (code, text) = program(&[]);
    assert_eq!(code, Some(1));
    assert!(text.contains("--coordinator ws://HOST:PORT"), "{text}");
    let (code, text) = program(&["--coordinator", "wss://h", "--ca-cert", "missing.pem"]);
    assert_eq!(code, Some(1));
    assert!(text.starts_with("worker: --ca-cert missing.pem:"), "{text}");
    let (code, help) = program(&["--help"]);
    assert_eq!(code, Some(0));
    for flag in ["--coordinator", "--token", "--ca-cert", "--backend", "--threads", "--memory-mib"]
    {
        assert!(help.contains(flag), "{flag}");
    }
}

/// What rests most of the time says that it is slower than its benchmark.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_low_intensity_shows_in_the_hello() {
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup { intensity_percent: 25, ..setup(BlobSource::folder(folder.path())) };
    let worker = Worker::start(setup).unwrap();
    let (link, to_worker, mut from_worker) = Link::pair();
    tokio::spawn(async move { worker.serve(link).await });
    let challenge = ToWorker::Challenge { protocol: PROTOCOL_VERSION, nonce: "00".repeat(32) };
    to_worker.send(Down::Control(challenge)).await.unwrap();
    let hello = timeout(SOON, from_worker.recv()).await.unwrap().unwrap();
    let Up::Control(FromWorker::Hello(hello)) = hello else { panic!("no hello: {hello:?}") };
    assert_eq!(hello.bytes_per_s, [0.25e9; 2]);
}
