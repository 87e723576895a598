//! Bad networks between workers and their coordinator: late, lossy, parted, slow. No token is
//! lost, none changes, and nobody waits for another's socket.

use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::harness::link::{Conditions, Link};
use crate::harness::mix::{ASKS, ask, expected};
use crate::harness::watchdog::{Board, within};
use crate::harness::{Coordinator, Fleet, Written, alone, machine, request, stream_of};
use crate::split::mib_for;

/// From one end to the other, as between two countries.
const DELAY: Duration = Duration::from_millis(30);
const JITTER: Duration = Duration::from_millis(5);
/// Of each worker: any two of three hold the model.
const LAYERS_EACH: u64 = 16;
const WORKERS: usize = 3;
/// Requests that are under way when the networks part.
const CLIENTS: usize = 8;
/// One that is over before anybody gives a worker up, and one that is not.
const PARTED_FOR: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(11)];
/// A second and a half for each step of a long prompt, in each direction.
const SLOW_BYTES_PER_S: u64 = 400_000;
/// Ten tokens each: a prompt of 1500.
const LONG_REPEATS: usize = 150;
/// Requests that are answered meanwhile.
const SHORT: usize = 2;
/// All of a test's requests.
const ANSWERED_WITHIN: Duration = Duration::from_secs(150);

/// Something that can part a worker from its coordinator.
trait Part {
    fn part(&self, parted: bool);
}

impl Part for Link {
    fn part(&self, parted: bool) {
        Link::part(self, parted);
    }
}

/// Waits until all the workers hold layers.
async fn all_hold(coordinator: &Coordinator) {
    coordinator
        .fleet_with("all workers hold layers", |fleet| {
            (fleet.holders().len() == WORKERS && fleet.all_ready()).then_some(())
        })
        .await;
}

/// Has several clients ask twice each, while two of the workers are parted from the coordinator,
/// one after the other; each request must be answered as expected.
async fn ask_through_partitions(coordinator: &Coordinator, networks: &[impl Part]) {
    let expected = expected().await;
    let board = Board::default();
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let (api, board) = (coordinator.api.clone(), board.clone());
        clients.spawn(async move {
            for index in [number, number + CLIENTS] {
                let ask = ask(index);
                board.note(number, format!("request {index}: {} {}", ask.path, ask.body));
                let (written, _) = ask.put(&api).await;
                assert_eq!(written, expected[index % ASKS], "request {index}: {ask:?}");
            }
            board.done(number);
        });
    }
    let answers = async {
        while let Some(answered) = clients.join_next().await {
            if let Err(error) = answered {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    };
    let partitions = async {
        for (network, parted_for) in networks.iter().zip(PARTED_FOR) {
            coordinator
                .fleet_with("sessions are under way", |fleet| {
                    fleet.sessions().iter().any(|s| s["tokens"].as_u64() > Some(0)).then_some(())
                })
                .await;
            network.part(true);
            sleep_until(Instant::now() + parted_for).await;
            network.part(false);
        }
    };
    let both = async { tokio::join!(answers, partitions) };
    within(ANSWERED_WITHIN, coordinator, &board, both).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_late_and_lossy_links_that_part_and_break_every_request_gets_its_tokens() {
    let _machine = machine().await;
    expected().await;
    let coordinator = Coordinator::start("links", &["--embedded", "ends"]).await;
    let (mut links, mut workers) = (Vec::new(), Vec::new());
    for index in 0..WORKERS {
        let link = Link::start(&coordinator.address, index as u64).await;
        let (name, memory) = (format!("far{index}"), mib_for(LAYERS_EACH));
        workers.push(coordinator.worker_through(&link.address, &name, memory, &[]));
        links.push(link);
    }
    all_hold(&coordinator).await;
    for link in &links {
        let (delay, jitter) = (DELAY, JITTER);
        link.set(Conditions { delay, jitter, lost_per_mille: 10, ..Conditions::default() });
    }
    ask_through_partitions(&coordinator, &links).await;

    // Cut in the middle of a stream, all at once: they come back, and it goes on.
    let mut events = coordinator.api.stream("/v1/chat/completions", &request(1)).await;
    let mut written = Written::nothing();
    stream_of(&mut events, &mut written, 4).await;
    links.iter().for_each(Link::cut);
    for event in events.rest().await {
        written.add(&event);
    }
    assert_eq!(written, alone().await[1]);
}

/// The names of the workers that hold layers of each session, the oldest session first.
fn routes(fleet: &Fleet) -> Vec<Vec<String>> {
    let name = |id: &serde_json::Value| {
        let worker = fleet.workers().iter().find(|worker| worker["id"] == *id);
        worker.and_then(|worker| worker["name"].as_str()).unwrap_or_default().to_owned()
    };
    let mut sessions: Vec<_> = fleet.sessions().iter().collect();
    sessions.sort_by_key(|session| session["id"].as_u64());
    let layered = |session: &serde_json::Value| {
        let stages = session["route"].as_array().cloned().unwrap_or_default();
        let layered = stages.iter().filter(|stage| stage["first_layer"].is_u64());
        layered.map(|stage| name(&stage["worker"])).collect()
    };
    sessions.into_iter().map(layered).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_on_its_way_over_a_slow_socket_holds_nobody_up() {
    let _machine = machine().await;
    expected().await;
    let coordinator = Coordinator::start("slow", &["--embedded", "ends"]).await;
    let link = Link::start(&coordinator.address, 11).await;
    // Only this one has KV pages for the long prompt.
    let _slow = coordinator.worker_through(&link.address, "slow", 2 * mib_for(30), &[]);
    let _fast = coordinator.worker("fast", mib_for(30));
    coordinator.ready_over(2).await;
    link.set(Conditions { bytes_per_s: Some(SLOW_BYTES_PER_S), ..Conditions::default() });
    let long = json!({
        "model": crate::harness::MODEL,
        "prompt": "one two three four five six seven eight nine ten ".repeat(LONG_REPEATS),
        "max_tokens": 1,
        "stream": true,
    });
    let api = coordinator.api.clone();
    let mut long = tokio::spawn(async move {
        let mut events = api.stream("/v1/completions", &long).await;
        events.next().await
    });
    coordinator
        .fleet_with("the prompt is on its way", |fleet| (routes(fleet) == [["slow"]]).then_some(()))
        .await;
    for (index, expected) in expected().await.iter().enumerate().take(SHORT) {
        let (written, _) = ask(index).put(&coordinator.api).await;
        assert_eq!(written, *expected);
    }
    assert!(
        tokio::time::timeout(Duration::ZERO, &mut long).await.is_err(),
        "{SHORT} requests are answered while the prompt is on its way"
    );
    let fleet = coordinator.fleet().await;
    assert_eq!(routes(&fleet), [["slow"]], "where it began: {fleet:?}");
    long.abort();
}

/// Linux only: namespaces are its own.
#[cfg(target_os = "linux")]
mod namespaces {
    use std::path::PathBuf;

    use super::*;
    use crate::harness::binary;
    use crate::harness::namespaces::Namespace;

    /// What workers are trusted for.
    const TOKEN: &str = "the tests' own invite";

    impl Part for Namespace {
        fn part(&self, parted: bool) {
            Namespace::part(self, parted);
        }
    }

    /// Asks through partitions of workers that live in namespaces of their own, with these
    /// settings of netem, if any.
    async fn check(test: &str, netem: &[&str]) {
        let _machine = machine().await;
        let made: Result<Vec<Namespace>, String> = (0..WORKERS as u8).map(Namespace::new).collect();
        let shaped = made.and_then(|made| {
            let shape = |namespace: &Namespace| match netem {
                [] => Ok(()),
                settings => namespace.netem(settings),
            };
            made.iter().try_for_each(shape).map(|()| made)
        });
        let namespaces = match shaped {
            Ok(namespaces) => namespaces,
            Err(reason) => return println!("SKIPPED: {reason}"),
        };
        expected().await;
        let flags = ["--embedded", "ends", "--invite-token", TOKEN];
        let model = tests::required_model();
        let coordinator = Coordinator::start_at("0.0.0.0:0", test, &model, &flags).await;
        let port = coordinator.address.rsplit(':').next().expect("a port").to_owned();
        let program: PathBuf = binary("worker");
        let start = |(index, namespace): (usize, &Namespace)| {
            let (name, memory) = (format!("apart{index}"), mib_for(LAYERS_EACH));
            let address = format!("{}:{port}", namespace.host);
            let command = namespace.command(&program);
            coordinator.worker_by(command, &address, &name, memory, &["--token", TOKEN])
        };
        let _workers: Vec<_> = namespaces.iter().enumerate().map(start).collect();
        all_hold(&coordinator).await;
        ask_through_partitions(&coordinator, &namespaces).await;
    }

    #[tokio::test]
    async fn machines_whose_network_goes_for_a_while_change_no_token() {
        check("apart", &[]).await;
    }

    #[tokio::test]
    async fn machines_behind_a_late_and_lossy_network_change_no_token() {
        check("netem", &["delay", "30ms", "5ms", "loss", "1%"]).await;
    }
}
