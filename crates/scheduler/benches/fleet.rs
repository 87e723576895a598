//! What an event costs the scheduler, by the size of its fleet.
//!
//! `cargo bench -p scheduler [-- SIZE...]` prints medians in µs for each kind of event, at 10,
//! 100, 1,000 and 10,000 workers (60 % weak, 30 % middling, 10 % strong) of a model of 32
//! layers, with [`SESSIONS`] sessions in flight while workers join and leave; and what the
//! process's memory grew by. Each time includes draining the actions, nothing of the answers
//! that the bench makes up.

use std::time::{Duration, Instant};

use scheduler::Event;

#[path = "fleet/crowd.rs"]
mod crowd;

use crowd::{Crowd, Kind};

/// Fleets that are measured if none is named.
const SIZES: [u64; 4] = [10, 100, 1_000, 10_000];
/// Sessions in flight.
const SESSIONS: u64 = 200;
/// Measured of each kind at most.
const ROUNDS: usize = 300;
/// No part of a run is given more than this, and at least one round is measured.
const PATIENCE: Duration = Duration::from_secs(4);

fn main() {
    let named: Vec<u64> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let sizes = if named.is_empty() { SIZES.to_vec() } else { named };
    print!("{:>8} {:>9}", "workers", "fill, ms");
    Kind::ALL.iter().for_each(|kind| print!(" {:>9}", kind.name()));
    println!(" {:>8} {:>8}", "live", "RSS, MiB");
    for size in sizes {
        measure(size);
    }
}

fn measure(size: u64) {
    let before = resident_bytes();
    let mut crowd = Crowd::new(SESSIONS);
    let began = Instant::now();
    crowd.fill(size);
    let filled = began.elapsed();
    for _ in 0..SESSIONS {
        crowd.submit();
    }
    let live = crowd.live();
    // The prompts pass, so that what is measured is decoding.
    within(PATIENCE, 40 * SESSIONS as usize, || crowd.step());
    crowd.forget_times();

    within(PATIENCE, 40 * ROUNDS, || crowd.step());
    within(PATIENCE, ROUNDS, || crowd.turn_over());
    within(PATIENCE, ROUNDS, || crowd.another_request());
    within(PATIENCE, ROUNDS, || crowd.time(Kind::RoundTrip, Crowd::round_trip));
    within(PATIENCE, ROUNDS, || crowd.time(Kind::Tick, |_| Event::Tick));
    let grown = resident_bytes().saturating_sub(before) as f64 / f64::from(1 << 20);

    print!("{size:>8} {:>9.1}", filled.as_secs_f64() * 1e3);
    for kind in Kind::ALL {
        print!(" {:>9.1}", crowd.median_us(kind));
    }
    println!(" {live:>8} {grown:>8.1}");
}

/// Runs rounds until there were enough or the time is up.
fn within(time: Duration, rounds: usize, mut round: impl FnMut()) {
    let began = Instant::now();
    for _ in 0..rounds {
        round();
        if began.elapsed() > time {
            return;
        }
    }
}

/// This process's resident memory; 0 where the system does not say.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
