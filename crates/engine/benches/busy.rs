//! What a second thread is worth when another program wants its core: decode of two threads
//! against one, with all cores but one kept busy, and without.
//!
//! `cargo bench -p engine --bench busy [-- ROUNDS]`, with `WEFT_TEST_MODELS` as for `tokens`.
//! Rounds are interleaved; each gives a ratio, and the medians of rates and of ratios are
//! shown. By the clock: who waits uses no core.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use engine::{Class, Input, Limits, Segment, Shard};

#[path = "real/mod.rs"]
#[allow(dead_code, reason = "the other benchmarks use the rest")]
mod real;

use real::{Real, median};

const ROUNDS: usize = 15;
/// Tokens of a round: long enough to see more than one slice of the scheduler's time.
const TOKENS: u32 = 48;
/// Tokens before the clock starts.
const WARM_UP: u32 = 4;
const THREADS: [u32; 2] = [1, 2];

fn main() {
    let Some(real) = Real::open() else { return };
    let rounds = std::env::args().filter_map(|a| a.parse().ok()).next().unwrap_or(ROUNDS);
    let mut shards = THREADS.map(|threads| {
        let get = |hash: &str| real.blobs.get(hash).cloned();
        let limits = Limits::new(4, threads);
        Shard::load(&real.manifest, 0..real.parts(), Class::Canonical1, get, limits)
            .expect("it loads")
    });
    let cores = thread::available_parallelism().map_or(1, usize::from);
    println!("cores kept busy  1 thread, t/s  2 threads, t/s  ratio (lowest to highest)");
    for busy in [0, cores.saturating_sub(1).max(1)] {
        let mut rates = [Vec::new(), Vec::new()];
        beside(busy, || {
            for round in 0..rounds {
                for i in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                    rates[i].push(decode(&mut shards[i]));
                }
            }
        });
        let mut ratios: Vec<f64> = rates[1].iter().zip(&rates[0]).map(|(b, a)| b / a).collect();
        let [one, two] = rates.each_mut().map(|rates| median(rates));
        let ratio = median(&mut ratios);
        let (low, high) = (ratios[0], ratios[ratios.len() - 1]);
        println!("{busy:15}  {one:13.1}  {two:14.1}  {ratio:.2} ({low:.2} to {high:.2})");
    }
}

/// Runs `measure` while `threads` threads do nothing but use a core.
fn beside(threads: usize, measure: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        measure();
        stop.store(true, Ordering::Relaxed);
    });
}

/// Tokens per second of one session.
fn decode(shard: &mut Shard) -> f64 {
    let mut start = Instant::now();
    for position in 0..WARM_UP + TOKENS {
        if position == WARM_UP {
            start = Instant::now();
        }
        let segment = Segment { session: 1, position, rows: 1, logits_rows: 1 };
        shard.step(&[segment], Input::Tokens(&[100 + position])).expect("a sound step");
    }
    let rate = f64::from(TOKENS) / start.elapsed().as_secs_f64();
    shard.release(1);
    rate
}
