//! The `worker` program as a process: signals, exit codes, what it prints.

#![cfg(unix)]

mod coordinator;

use std::path::Path;
use std::process::{Output, Stdio};

use coordinator::{Coordinator, Model, SOON};
use protocol::*;
use tokio::process::{Child, Command};
use tokio::time::timeout;

fn spawn(coordinator: &Coordinator, home: &Path, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_worker"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("WEFT")) {
        command.env_remove(name);
    }
    command.args(["--coordinator", &format!("ws://{}", coordinator.address)]);
    command.arg("--home").arg(home).args(["--threads", "1", "--memory-mib", "256"]);
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.spawn().unwrap()
}

async fn ended(child: Child) -> (Option<i32>, String) {
    let output: Output = timeout(SOON, child.wait_with_output()).await.unwrap().unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

async fn signal(child: &Child, name: &str) {
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args([name, &pid]).status().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_finishes_the_steps_at_hand() {
    let model = Model::tiny();
    let mut coordinator = Coordinator::start(&model).await;
    let home = tempfile::tempdir().unwrap();
    let worker = spawn(&coordinator, home.path(), &["--name", "otter"]);
    let (mut peer, hello) = coordinator.joined().await;
    assert_eq!((hello.name.as_str(), hello.backend.as_str()), ("otter", "cpu"));
    assert_eq!((hello.memory_bytes, hello.kind), (256 << 20, WorkerKind::Native));
    assert_eq!(hello.classes, ["canonical-1", "exact-f32"]);
    assert!(hello.bytes_per_s.iter().all(|r| *r > 1e6), "{:?}", hello.bytes_per_s);
    let assignment = model.assignment(1, 1, 3);
    let ready = FromWorker::Ready { assignment: assignment.id };
    assert_eq!(peer.assign(assignment.clone()).await, ready);

    signal(&worker, "-TERM").await;
    assert_eq!(peer.control().await, FromWorker::Drain { reason: "SIGTERM".into() });
    // It was on its way when the worker said so.
    let (session, status) = (SessionId(1), Status::Ok);
    peer.send(&Frame {
        kind: FrameKind::Step,
        assignment: assignment.id,
        span: assignment.span,
        step: 1,
        compute_us: 0,
        dtype: Dtype::F32,
        answer: Dtype::F32,
        segments: vec![Segment { session, epoch: 1, position: 0, rows: 1, logits_rows: 0, status }],
        payload: payload::to_payload(vec![0.5f32; 64]),
    })
    .await;
    assert_eq!(peer.answer().await.segments[0].status, Status::Ok);
    peer.closed().await;
    let (code, text) = ended(worker).await;
    assert_eq!(code, Some(0), "{text}");
    for line in ["joined as worker 1, trusted", "holds parts 1 to 2 of tiny", "left in good order"]
    {
        assert!(text.contains(line), "no {line:?} in:\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dismissal_for_good_ends_the_program() {
    let mut coordinator = Coordinator::start(&Model::tiny()).await;
    let home = tempfile::tempdir().unwrap();
    let worker = spawn(&coordinator, home.path(), &["--token", "wrong"]);
    let mut peer = coordinator.connection().await;
    let hello = peer.greet().await;
    assert_eq!(hello.token.as_deref(), Some("wrong"));
    peer.say(ToWorker::Dismiss { reason: "the token is not valid".into(), retry: false }).await;
    let (code, text) = ended(worker).await;
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("worker: the coordinator says: the token is not valid"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_of_one_home_have_keys_of_their_own() {
    let mut coordinator = Coordinator::start(&Model::tiny()).await;
    let home = tempfile::tempdir().unwrap();
    let first = spawn(&coordinator, home.path(), &[]);
    let (_first_peer, one) = coordinator.joined().await;
    let second = spawn(&coordinator, home.path(), &[]);
    let (_second_peer, two) = coordinator.joined().await;
    assert_ne!(one.public_key, two.public_key);
    assert_eq!(two.name, format!("{}-2", one.name));
    let third = spawn(&coordinator, home.path(), &["--name", &two.name]);
    let (code, text) = ended(third).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("a running worker uses the key"), "{text}");
    for mut worker in [first, second] {
        worker.kill().await.unwrap();
    }
    let again = spawn(&coordinator, home.path(), &["--name", &two.name]);
    let (_peer, hello) = coordinator.joined().await;
    assert_eq!(hello.public_key, two.public_key, "a name keeps its key");
    drop(again);
}
