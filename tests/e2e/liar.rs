//! A worker that lies, among real processes: found, banned, and nobody who asked for full
//! verification is told anything wrong. An honest stranger beside it stays.

use tokio::task::JoinSet;

use crate::harness::forger::Forger;
use crate::harness::mix::{Ask, ask, expected};
use crate::harness::{Coordinator, Process, machine, until};
use crate::split::mib_for;

/// What the auditor is trusted for.
const TOKEN: &str = "the tests' own invite";
/// Layers that each stranger has room for: both are needed.
const LAYERS_EACH: u64 = 17;
/// Share of the time that the auditor computes, percent: the strangers are faster, so they are
/// given the work.
const AUDITOR_PERCENT: &str = "25";
/// Requests at once.
const ROUND: usize = 4;
/// Rounds after which a liar must have been found.
const ROUNDS_MAX: usize = 12;

/// An honest stranger, a liar, and a trusted worker that can replay what they say.
struct Scene {
    coordinator: Coordinator,
    forger: Forger,
    liar: Process,
    liar_name: String,
    stranger: Process,
    stranger_name: String,
    _auditor: Process,
}

impl Scene {
    async fn start(test: &str, flags: &[&str], honest_rows: u64) -> Scene {
        let common = ["--embedded", "ends", "--no-trust-loopback", "--invite-token", TOKEN];
        let coordinator = Coordinator::start(test, &[&common[..], flags].concat()).await;
        let forger = Forger::start(&coordinator.address, honest_rows).await;
        // Names of their own: all coordinators of these tests keep one list of workers.
        let (liar_name, stranger_name) = (format!("{test}-liar"), format!("{test}-stranger"));
        let memory = mib_for(LAYERS_EACH);
        let liar = coordinator.worker_through(&forger.address, &liar_name, memory, &[]);
        let stranger = coordinator.worker(&stranger_name, memory);
        coordinator.ready_over(2).await;
        let trusted = ["--token", TOKEN, "--intensity", AUDITOR_PERCENT];
        let auditor = coordinator.worker_with("auditor", 2 * mib_for(30), &trusted);
        coordinator.ready_over(3).await;
        let _auditor = auditor;
        Scene { coordinator, forger, liar, liar_name, stranger, stranger_name, _auditor }
    }

    /// A worker's line in what `coordinator workers` prints.
    fn listed(&self, name: &str) -> String {
        let listed = self.coordinator.command(&["workers"]);
        let mut lines = listed.lines().filter(|line| line.split_whitespace().any(|w| w == name));
        lines.next().unwrap_or_else(|| panic!("{name} is not in {listed}")).to_owned()
    }

    fn has_found_the_liar(&self) -> bool {
        self.listed(&self.liar_name).contains("BANNED")
    }

    fn is_here(&self, fleet: &crate::harness::Fleet, name: &str) -> bool {
        fleet.workers().iter().any(|worker| worker["name"] == name)
    }

    /// The liar is out, stays out, and the stranger is not.
    async fn only_the_liar_is_banned(&mut self) {
        let status = self.liar.ended().await;
        let log = self.liar.log();
        assert_eq!(status.code(), Some(3), "it was sent away for good: {log:?}");
        assert!(log.iter().any(|line| line.contains("banned")), "and told why: {log:?}");
        // The list is written a moment after the fact.
        let line = until("the ban is in the list", || async {
            let line = self.listed(&self.liar_name);
            if line.contains("BANNED") { Ok(line) } else { Err(line) }
        });
        line.await;
        // With the same key again: refused.
        let (address, memory) = (&self.forger.address, mib_for(LAYERS_EACH));
        let mut again = self.coordinator.worker_through(address, &self.liar_name, memory, &[]);
        let status = again.ended().await;
        assert_eq!(status.code(), Some(3), "{:?}", again.log());
        assert!(again.log().iter().any(|line| line.contains("banned")), "{:?}", again.log());

        let fleet = self.coordinator.fleet().await;
        assert!(!self.is_here(&fleet, &self.liar_name), "{fleet:?}");
        assert!(self.is_here(&fleet, &self.stranger_name), "{fleet:?}");
        let line = self.listed(&self.stranger_name);
        assert!(!line.contains("BANNED"), "{line}");
        assert!(self.stranger.log().iter().all(|line| !line.contains("banned")));
    }
}

/// Asks several at once; answers how many were told something else than one process by itself
/// tells.
async fn wrong_of_a_round(coordinator: &Coordinator, round: usize) -> usize {
    let expected = expected().await;
    let mut asked = JoinSet::new();
    for index in ROUND * round..ROUND * (round + 1) {
        let api = coordinator.api.clone();
        let mut ask: Ask = ask(index);
        ask.body["timeout"] = 100.into();
        asked.spawn(async move { (index % expected.len(), ask.put(&api).await.0) });
    }
    let answers = asked.join_all().await;
    answers.iter().filter(|(index, written)| *written != expected[*index]).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_full_verification_no_client_is_told_a_lie() {
    let _machine = machine().await;
    expected().await;
    let mut scene = Scene::start("verified", &["--verify-all"], 0).await;
    let mut rounds = 0;
    loop {
        assert_eq!(wrong_of_a_round(&scene.coordinator, rounds).await, 0, "in round {rounds}");
        rounds += 1;
        if scene.has_found_the_liar() {
            break;
        }
        let lies = scene.forger.altered();
        assert!(
            rounds < ROUNDS_MAX,
            "{lies} lies and no ban: {:?}",
            scene.coordinator.fleet().await
        );
    }
    let lies = scene.forger.altered();
    println!("a liar, all verified: banned in round {rounds} after {lies} altered values");
    assert!(lies > 0);
    scene.only_the_liar_is_banned().await;
    assert_eq!(wrong_of_a_round(&scene.coordinator, rounds).await, 0, "without the liar");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sampled_audits_find_a_liar_that_began_honestly() {
    let _machine = machine().await;
    expected().await;
    let mut scene = Scene::start("sampled", &["--audit-percent", "100"], 100).await;
    let (mut rounds, mut wrong) = (0, 0);
    loop {
        wrong += wrong_of_a_round(&scene.coordinator, rounds).await;
        rounds += 1;
        // Audits follow the answers.
        scene
            .coordinator
            .fleet_with("nothing is under way", |fleet| fleet.sessions().is_empty().then_some(()))
            .await;
        if scene.has_found_the_liar() {
            break;
        }
        let lies = scene.forger.altered();
        assert!(
            rounds < ROUNDS_MAX,
            "{lies} lies and no ban: {:?}",
            scene.coordinator.fleet().await
        );
    }
    let lies = scene.forger.altered();
    println!(
        "a liar, sampled audits: banned in round {rounds} after {lies} altered values; {wrong} \
         answers were wrong before"
    );
    assert!(lies > 0);
    scene.only_the_liar_is_banned().await;
    assert_eq!(wrong_of_a_round(&scene.coordinator, rounds).await, 0, "without the liar");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unaudited_the_same_lies_reach_clients() {
    let _machine = machine().await;
    expected().await;
    let scene = Scene::start("unaudited", &["--audit-percent", "0"], 0).await;
    assert!(wrong_of_a_round(&scene.coordinator, 0).await > 0, "they are no lies at all");
    assert!(scene.is_here(&scene.coordinator.fleet().await, &scene.liar_name));
}
