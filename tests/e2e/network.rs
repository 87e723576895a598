//! Bad networks between workers and their coordinator: late, lossy, parted, slow. No token is
//! lost, none changes, and nobody waits for another's socket.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use crate::chaos::recoveries;
use crate::harness::link::{Conditions, Link};
use crate::harness::mix::{ASKS, Ask, ask, expected};
use crate::harness::watchdog::{Board, within};
use crate::harness::{Coordinator, Fleet, MODEL, Written, alone, machine, request, stream_of};
use crate::split::mib_for;

/// From one end to the other, as between two countries.
const DELAY: Duration = Duration::from_millis(30);
const JITTER: Duration = Duration::from_millis(5);
/// Of each worker: any two of three hold the model.
const LAYERS_EACH: u64 = 16;
const WORKERS: usize = 3;
/// Each asks one request after the other.
const CLIENTS: usize = 8;
/// A partition that is over before anybody gives a worker up.
const PARTED_FOR: Duration = Duration::from_secs(3);
/// A row of a boundary, 2304 bytes, takes 23 ms in each direction.
const SLOW_BYTES_PER_S: u64 = 100_000;
/// Ten tokens each: a prompt of 1500, which is on its way for 34 s at least.
const LONG_REPEATS: usize = 150;
/// A prompt of 300: 7 s at least. It is more than fits into one step's time on such a link.
const CROSSING_REPEATS: usize = 30;
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

/// The name of the worker behind the `index`th network.
fn far(index: usize) -> String {
    format!("far{index}")
}

/// Parts a worker that computes for a request, but not `but`. Answers which.
async fn part_one(coordinator: &Coordinator, networks: &[impl Part], but: Option<usize>) -> usize {
    let index = coordinator
        .fleet_with("a worker computes for a request", |fleet| {
            let begun = |(tokens, _): &(u64, Vec<String>)| *tokens > 0;
            let mut busy = routes(fleet).into_iter().filter(begun).flat_map(|(_, names)| names);
            busy.find_map(|name| (0..WORKERS).find(|i| far(*i) == name && Some(*i) != but))
        })
        .await;
    networks[index].part(true);
    index
}

/// Has several clients ask again and again, while two of the workers are parted from the
/// coordinator, one after the other: the first for a short time, the second until it is given
/// up. Each request must be answered as expected.
async fn ask_through_partitions(coordinator: &Coordinator, networks: &[impl Part]) {
    let expected = expected().await;
    let (board, asked, over) = (Board::default(), AtomicUsize::new(0), AtomicBool::new(false));
    let client = async |number: usize| {
        while !over.load(Ordering::Relaxed) {
            let index = asked.fetch_add(1, Ordering::Relaxed);
            let ask = ask(index);
            board.note(number, format!("request {index}: {} {}", ask.path, ask.body));
            let (written, _) = ask.put(&coordinator.api).await;
            assert_eq!(written, expected[index % ASKS], "request {index}: {ask:?}");
        }
        board.done(number);
    };
    let partitions = async {
        let first = part_one(coordinator, networks, None).await;
        sleep_until(Instant::now() + PARTED_FOR).await;
        networks[first].part(false);

        let second = part_one(coordinator, networks, Some(first)).await;
        let (replays_before, _) = recoveries(coordinator);
        coordinator
            .fleet_with("the parted worker is given up", |fleet| {
                fleet.workers().iter().all(|w| w["name"] != far(second).as_str()).then_some(())
            })
            .await;
        networks[second].part(false);
        over.store(true, Ordering::Relaxed);
        replays_before
    };
    let all = async { tokio::join!(partitions, join_all((0..CLIENTS).map(client))).0 };
    let replays_before = within(ANSWERED_WITHIN, coordinator, &board, all).await;
    let (replays, _) = recoveries(coordinator);
    assert!(replays > replays_before, "the lost worker had stages of sessions, which went on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_late_and_lossy_links_that_part_and_break_every_request_gets_its_tokens() {
    let _machine = machine().await;
    expected().await;
    let coordinator = Coordinator::start("links", &["--embedded", "ends"]).await;
    let (mut links, mut workers) = (Vec::new(), Vec::new());
    for index in 0..WORKERS {
        let link = Link::start(&coordinator.address, index as u64).await;
        let (name, memory) = (far(index), mib_for(LAYERS_EACH));
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

/// Of each session, the oldest first: how many tokens it has, and the names of the workers that
/// compute its layers.
fn routes(fleet: &Fleet) -> Vec<(u64, Vec<String>)> {
    let name = |id: &Value| {
        let worker = fleet.workers().iter().find(|worker| worker["id"] == *id);
        worker.and_then(|worker| worker["name"].as_str()).unwrap_or_default().to_owned()
    };
    let mut sessions: Vec<_> = fleet.sessions().iter().collect();
    sessions.sort_by_key(|session| session["id"].as_u64());
    let route = |session: &Value| {
        let stages = session["route"].as_array().cloned().unwrap_or_default();
        let layered = stages.iter().filter(|stage| stage["first_layer"].is_u64());
        let names = layered.map(|stage| name(&stage["worker"])).collect();
        (session["tokens"].as_u64().expect("a number"), names)
    };
    sessions.into_iter().map(route).collect()
}

/// Asks for one token after a prompt of ten times as many tokens.
fn counting(repeats: usize) -> Ask {
    let body = json!({
        "model": MODEL,
        "prompt": "one two three four five six seven eight nine ten ".repeat(repeats),
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 3,
    });
    Ask { path: "/v1/completions", body, streamed: true }
}

/// A coordinator, and the way to it that becomes slow with [`become_slow`].
async fn slow_link(test: &str) -> (Coordinator, Link) {
    let coordinator = Coordinator::start(test, &["--embedded", "ends"]).await;
    let link = Link::start(&coordinator.address, 11).await;
    (coordinator, link)
}

fn become_slow(link: &Link) {
    link.set(Conditions { bytes_per_s: Some(SLOW_BYTES_PER_S), ..Conditions::default() });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_on_its_way_over_a_slow_socket_holds_nobody_up() {
    let _machine = machine().await;
    expected().await;
    let (coordinator, link) = slow_link("slow").await;
    // Only this one has KV pages for the long prompt.
    let _slow = coordinator.worker_through(&link.address, "slow", 2 * mib_for(30), &[]);
    let _fast = coordinator.worker("fast", mib_for(30));
    coordinator.ready_over(2).await;
    become_slow(&link);
    let (api, long) = (coordinator.api.clone(), counting(LONG_REPEATS));
    let mut long = tokio::spawn(async move { long.put(&api).await });
    let on_its_way = [(0, vec!["slow".to_owned()])];
    coordinator
        .fleet_with("the prompt is on its way", |fleet| (routes(fleet) == on_its_way).then_some(()))
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
    assert_eq!(routes(&fleet), on_its_way, "where it began: {fleet:?}");
    // Nobody waits for its end.
    long.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_crosses_a_slow_socket_and_its_worker_is_kept() {
    let _machine = machine().await;
    let ask = counting(CROSSING_REPEATS);
    let expected = {
        let one = Coordinator::start("one", &[]).await;
        one.ready().await;
        ask.put(&one.api).await.0
    };
    assert_eq!(expected.tokens.len(), 1);
    let (coordinator, link) = slow_link("crossing").await;
    let _slow = coordinator.worker_through(&link.address, "slow", mib_for(30), &[]);
    let before = coordinator.ready_over(1).await.holders();
    become_slow(&link);
    let board = Board::default();
    board.note(0, format!("a prompt of {} tokens", 10 * CROSSING_REPEATS));
    let (written, _) =
        within(ANSWERED_WITHIN, &coordinator, &board, ask.put(&coordinator.api)).await;
    assert_eq!(written, expected);
    // One that was sent away comes back with another number.
    assert_eq!(coordinator.fleet().await.holders(), before);
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
            let (name, memory) = (far(index), mib_for(LAYERS_EACH));
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
