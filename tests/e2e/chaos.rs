//! A minute in which every two seconds a worker is killed or stopped while twenty clients ask:
//! each request gets the tokens that it would have had.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::harness::mix::{ASKS, Times, ask, expected};
use crate::harness::rng::Rng;
use crate::harness::watchdog::{Board, within};
use crate::harness::{Api, Coordinator, LAYERS, Process, machine};

const WORKERS: usize = 6;
/// Memory of each, for about 19 of the 30 layers: no worker holds all, two can.
const MEMORY_MIB: u64 = 64;
const CLIENTS: usize = 20;
const LASTS: Duration = Duration::from_secs(60);
const STRIKE_EVERY: Duration = Duration::from_secs(2);
/// A killed worker is started again after this.
const BACK_AFTER: Duration = Duration::from_millis(1500);
/// A stopped one goes on after one of these. The last is longer than anybody waits for a step.
const STOPPED_FOR: [Duration; 6] = [
    Duration::from_millis(400),
    Duration::from_millis(600),
    Duration::from_millis(800),
    Duration::from_millis(1500),
    Duration::from_secs(3),
    Duration::from_secs(12),
];
/// Workers that are away at the same time, at most.
const AWAY_MAX: usize = 3;
/// What was asked before the end must be answered this long after it.
const ANSWERED_WITHIN: Duration = Duration::from_secs(90);
/// Victims and strikes are drawn from it.
const SEED: u64 = 20_261_122;

/// A worker, through its lives.
struct Host {
    name: String,
    process: Process,
    /// It is away until then, and how.
    away: Option<(Instant, Strike)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Strike {
    Kill,
    Stop,
}

/// What was done, and when.
#[derive(Clone, Copy, Debug)]
struct Struck {
    at: Instant,
    strike: Strike,
    /// Nobody else was away: what follows is this strike's doing.
    alone: bool,
}

impl Host {
    fn start(coordinator: &Coordinator, index: usize) -> Host {
        let name = format!("host{index}");
        let process = coordinator.worker(&name, MEMORY_MIB);
        Host { name, process, away: None }
    }

    fn strike(&mut self, strike: Strike, until: Instant) {
        match strike {
            Strike::Kill => self.process.kill_9(),
            Strike::Stop => self.process.signal("STOP"),
        }
        self.away = Some((until, strike));
    }

    /// Brings it back if its time has come.
    fn heal(&mut self, coordinator: &Coordinator, now: Instant) {
        match self.away {
            Some((until, _)) if until > now => return,
            Some((_, Strike::Kill)) => {
                self.process = coordinator.worker(&self.name, MEMORY_MIB);
            }
            Some((_, Strike::Stop)) => self.process.signal("CONT"),
            None => {}
        }
        self.away = None;
    }
}

/// Strikes at workers until then, and brings all of them back. Answers when it struck, and how.
async fn trouble(coordinator: &Coordinator, hosts: &mut [Host], until: Instant) -> Vec<Struck> {
    let mut rng = Rng::new(SEED);
    let mut strikes = Vec::new();
    let mut strike_at = Instant::now() + STRIKE_EVERY;
    loop {
        let back = hosts.iter().filter_map(|host| Some(host.away?.0)).min();
        let due = back.unwrap_or(strike_at).min(strike_at);
        if strike_at > until && back.is_none() {
            return strikes;
        }
        sleep_until(due).await;
        let now = Instant::now();
        hosts.iter_mut().for_each(|host| host.heal(coordinator, now));
        if now < strike_at || strike_at > until {
            continue;
        }
        strike_at += STRIKE_EVERY;
        let away = hosts.iter().filter(|host| host.away.is_some()).count();
        let mut here: Vec<&mut Host> =
            hosts.iter_mut().filter(|host| host.away.is_none()).collect();
        let victim = rng.below(here.len() as u64) as usize;
        // With many away already, one that is back soon.
        let (strike, time) = match (rng.below(2), away < AWAY_MAX - 1) {
            (0, _) => (Strike::Kill, BACK_AFTER),
            (_, true) => (Strike::Stop, STOPPED_FOR[rng.below(6) as usize]),
            (_, false) => (Strike::Stop, STOPPED_FOR[0]),
        };
        here[victim].strike(strike, now + time);
        strikes.push(Struck { at: now, strike, alone: away == 0 });
    }
}

/// Asks one request after the other until then; each must be answered as expected.
async fn client(
    number: usize,
    api: Api,
    asked: Arc<AtomicUsize>,
    until: Instant,
    board: Board,
) -> Vec<Times> {
    let expected = expected().await;
    let mut answered = Vec::new();
    while Instant::now() < until {
        let index = asked.fetch_add(1, Ordering::Relaxed);
        let ask = ask(index);
        board.note(number, format!("request {index}: {} {}", ask.path, ask.body));
        let (written, times) = ask.put(&api).await;
        assert_eq!(written, expected[index % ASKS], "request {index}: {ask:?}");
        answered.push(times);
    }
    board.done(number);
    answered
}

/// The longest time between two tokens of a stream, for each strike that struck alone and fell
/// into such a time.
fn gaps_over(strikes: &[Struck], which: Strike, streams: &[Times]) -> Vec<Duration> {
    let gaps = || streams.iter().flat_map(|times| times.tokens.windows(2));
    let over = |at: Instant| gaps().filter(move |gap| gap[0] <= at && at < gap[1]);
    let of = strikes.iter().filter(|struck| struck.strike == which && struck.alone);
    let longest = of.filter_map(|struck| over(struck.at).map(|gap| gap[1] - gap[0]).max());
    let mut longest: Vec<Duration> = longest.collect();
    longest.sort();
    longest
}

fn median(sorted: &[Duration]) -> Duration {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Sessions that were given a new stage, and the rows that were replayed for them.
pub fn recoveries(coordinator: &Coordinator) -> (usize, u64) {
    let log = coordinator.process.log();
    let rows: Vec<u64> = log
        .iter()
        .filter_map(|line| line.split_once(" has a new stage and replays ")?.1.split(' ').next())
        .map(|rows| rows.parse().expect("a number"))
        .collect();
    (rows.len(), rows.iter().sum())
}

#[tokio::test]
async fn in_a_minute_of_kills_and_stops_every_request_gets_its_tokens() {
    let _machine = machine().await;
    expected().await;
    let coordinator = Coordinator::start("chaos", &["--embedded", "ends"]).await;
    let mut hosts: Vec<Host> = (0..WORKERS).map(|index| Host::start(&coordinator, index)).collect();
    coordinator
        .fleet_with("all workers hold layers, and none all of them", |fleet| {
            let holders = fleet.holders();
            let all =
                holders.iter().any(|holder| holder.first + u64::from(LAYERS) == holder.last + 1);
            (holders.len() == WORKERS && fleet.all_ready() && !all).then_some(())
        })
        .await;
    let (board, asked) = (Board::default(), Arc::new(AtomicUsize::new(0)));
    let until = Instant::now() + LASTS;
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let (api, asked) = (coordinator.api.clone(), asked.clone());
        clients.spawn(client(number, api, asked, until, board.clone()));
    }
    let mut streams = Vec::new();
    let answers = async {
        while let Some(answered) = clients.join_next().await {
            match answered {
                Ok(times) => streams.extend(times),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
    };
    let all = async { tokio::join!(trouble(&coordinator, &mut hosts, until), answers).0 };
    let strikes = within(LASTS + ANSWERED_WITHIN, &coordinator, &board, all).await;

    let count = |which| strikes.iter().filter(|struck| struck.strike == which).count();
    let (kills, stops) = (count(Strike::Kill), count(Strike::Stop));
    let mut gaps: Vec<Duration> = streams
        .iter()
        .flat_map(|times| times.tokens.windows(2))
        .map(|gap| gap[1] - gap[0])
        .collect();
    gaps.sort();
    let (replays, rows) = recoveries(&coordinator);
    println!(
        "chaos: {} requests, {kills} kills, {stops} stops, {replays} replays of {rows} rows; \
         between two tokens of a stream {:.0} ms at the median, {:.1} s at most",
        streams.len(),
        median(&gaps).as_secs_f64() * 1e3,
        gaps.last().copied().unwrap_or_default().as_secs_f64(),
    );
    for (strike, name) in [(Strike::Kill, "kill"), (Strike::Stop, "stop")] {
        let over = gaps_over(&strikes, strike, &streams);
        println!(
            "chaos: over a {name} by itself the longest gap of a stream was {:.2} s at the median of \
             {}",
            median(&over).as_secs_f64(),
            over.len(),
        );
    }
    assert!(kills >= 8 && stops >= 8, "both struck often: {kills} kills, {stops} stops");
    assert!(kills + stops >= 28, "every two seconds: {kills} kills, {stops} stops");
    assert!(replays > 0, "stages were lost with sessions on them");
    assert!(streams.len() >= 2 * CLIENTS, "clients asked again and again: {}", streams.len());
}
