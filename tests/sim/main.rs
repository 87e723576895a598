//! The scheduler and worker-cores over a network that loses, repeats, delays and reorders,
//! with machines that vanish, freeze and lie: whatever happens, each client is given each
//! token once, in order, from the logits that one machine alone would have computed.
//!
//! A run has a phase of faults, then one of healing in which everything must finish.
//! `WEFT_SIM_SEEDS` sets how many seeds are run (200 by default), `WEFT_SIM_SEED` runs one, and
//! `WEFT_SIM_TRACE=ID` prints every message that concerns that session.

mod clients;
mod faults;
mod machine;
mod model;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use faults::{ALL, Tally};
use scheduler::Sabotage;

fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().map(|v| v.parse::<u64>().expect("a number"));
    if let Some(seed) = number("WEFT_SIM_SEED") {
        return seed..seed + 1;
    }
    0..number("WEFT_SIM_SEEDS").unwrap_or(200)
}

#[test]
fn whatever_strikes_every_client_is_given_the_right_tokens() {
    let mut tally = Tally::default();
    let seeds = seeds();
    let all = seeds.end - seeds.start;
    for seed in seeds {
        let run = catch_unwind(AssertUnwindSafe(|| world::run(seed, Sabotage::default())));
        match run {
            Ok(struck) => tally.add(&struck),
            Err(panic) => {
                println!("run it again with WEFT_SIM_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{all} seeds; what struck, and how often:");
    for fault in ALL {
        println!("  {:<12} {}", format!("{fault:?}"), tally.of(fault));
        // One seed alone need not see everything.
        assert!(all < 50 || tally.of(fault) > 0, "{fault:?} never struck: the test is too kind");
    }
}

/// Runs seeds with one safeguard off until one of them fails.
fn is_missed(what: &str, sabotage: Sabotage) {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let caught = (0..60)
        .find(|&seed| catch_unwind(AssertUnwindSafe(|| world::run(seed, sabotage))).is_err());
    std::panic::set_hook(hook);
    match caught {
        Some(seed) => println!("without {what}, seed {seed} fails"),
        None => panic!("without {what} no seed fails: the simulation does not see it"),
    }
}

#[test]
fn without_a_safeguard_some_seed_fails() {
    is_missed("the epoch check", Sabotage { accept_old_epochs: true, ..Sabotage::default() });
    is_missed("the replay", Sabotage { skip_replay: true, ..Sabotage::default() });
    is_missed("the deduplication", Sabotage { log_replays: true, ..Sabotage::default() });
}
