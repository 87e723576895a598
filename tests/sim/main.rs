//! The scheduler and worker-cores over a network that loses, repeats, delays and reorders,
//! with machines that vanish, freeze and lie: whatever happens, each client is given each
//! token once, in order, from the logits that one machine alone would have computed.
//!
//! A run has a phase of faults, then one of healing in which everything must finish.
//! `WEFT_SIM_SEEDS` sets how many seeds are run (200 by default, 60 with liars),
//! `WEFT_SIM_SEED` runs one, and `WEFT_SIM_TRACE=ID` prints every message that concerns that
//! session.

mod clients;
mod crowd;
mod faults;
mod fleet;
mod liars;
mod machine;
mod model;
mod network;
mod strikes;
mod world;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use faults::{ALL, OF_GROUPS, Tally};
use fleet::{Setting, Setup};
use liars::{Fate, Found, LIES};
use scheduler::Sabotage;
use world::Shown;

/// Seeds that are run with liars, unless their number is set.
const LIARS_SEEDS: u64 = 60;
/// The same with tensor groups.
const GROUPS_SEEDS: u64 = 60;

fn seeds(unless_set: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().map(|v| v.parse::<u64>().expect("a number"));
    if let Some(seed) = number("WEFT_SIM_SEED") {
        return seed..seed + 1;
    }
    0..number("WEFT_SIM_SEEDS").unwrap_or(unless_set)
}

#[test]
fn whatever_strikes_every_client_is_given_the_right_tokens() {
    let (began, mut tally) = (Instant::now(), Tally::default());
    let seeds = seeds(200);
    let all = seeds.end - seeds.start;
    for seed in seeds {
        tally.add(&run(seed, Setup::default()).tally);
    }
    let took_s = began.elapsed().as_secs_f64();
    println!("{all} seeds in {took_s:.0} s; what struck, and how often:");
    for fault in ALL {
        println!("  {:<12} {}", format!("{fault:?}"), tally.of(fault));
        // One seed alone need not see everything.
        assert!(all < 50 || tally.of(fault) > 0, "{fault:?} never struck: the test is too kind");
    }
}

#[test]
fn where_layers_are_divided_every_client_is_given_the_right_tokens() {
    let mut tally = Tally::default();
    let seeds = seeds(GROUPS_SEEDS);
    let all = seeds.end - seeds.start;
    for seed in seeds {
        tally.add(&run(seed, Setup { groups: true, ..Setup::default() }).tally);
    }
    println!("{all} seeds with tensor groups; what struck, and how often:");
    for fault in OF_GROUPS {
        println!("  {:<12} {}", format!("{fault:?}"), tally.of(fault));
        assert!(all < 50 || tally.of(fault) > 0, "{fault:?} never struck: the test is too kind");
    }
}

fn run(seed: u64, setup: Setup) -> Shown {
    catch_unwind(AssertUnwindSafe(|| world::run(seed, Setting::small(setup)).shown()))
        .unwrap_or_else(|panic| {
            println!("run it again with WEFT_SIM_SEED={seed}");
            std::panic::resume_unwind(panic)
        })
}

/// Runs seeds in which machines lie, and prints what became of those.
fn with_liars(full: bool) -> Found {
    let mut found = Found::default();
    let seeds = seeds(LIARS_SEEDS);
    println!("{} seeds with liars; full verification: {full}", seeds.end - seeds.start);
    for seed in seeds {
        found.add(&run(seed, Setup { liars: true, full, ..Setup::default() }).found);
    }
    for (lie, fate) in &found.fates {
        println!(
            "  {:<10} {} lied, {} banned; the median after {} ms and {} rows, at most {} ms and {} rows",
            format!("{lie:?}"),
            fate.lied,
            fate.banned,
            Fate::median(&fate.us) / 1000,
            Fate::median(&fate.rows),
            fate.us.iter().max().unwrap_or(&0) / 1000,
            fate.rows.iter().max().unwrap_or(&0),
        );
    }
    println!(
        "  {} of {} logits were wrong; {} rows x layers verified; {} banned keys came back in vain",
        found.wrong_logits, found.logits, found.verified, found.refused
    );
    found
}

#[test]
fn liars_are_found_and_nobody_else_is_banned() {
    // A ban of whoever never lied ends a run.
    let found = with_liars(false);
    let (lied, banned) =
        found.fates.values().fold((0, 0), |n, fate| (n.0 + fate.lied, n.1 + fate.banned));
    assert!(banned * 10 >= lied * 8, "{banned} of {lied} liars were found");
    let seeds = seeds(LIARS_SEEDS);
    if seeds.end - seeds.start >= 50 {
        assert!(found.fates.len() == LIES.len(), "some kind of lie was never told");
        assert!(found.refused > 0, "no banned key came back");
    }
    assert!(found.verified > 0);
}

#[test]
fn with_full_verification_nobody_is_given_a_wrong_token() {
    // A wrong one ends a run.
    let found = with_liars(true);
    assert_eq!(found.wrong_logits, 0);
    assert!(found.logits > 0 && found.verified > 0);
}

/// Runs seeds with one safeguard off until one of them fails, which it must for the reason that
/// the safeguard is there.
fn is_missed(what: &str, setup: Setup, reasons: &[&str]) {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let caught = (0..60).find_map(|seed| {
        let run = catch_unwind(|| world::run(seed, Setting::small(setup)).shown());
        Some((seed, message(&*run.err()?)))
    });
    std::panic::set_hook(hook);
    let Some((seed, message)) = caught else {
        panic!("without {what} no seed fails: the simulation does not see it")
    };
    println!("without {what}, seed {seed} fails: {}", message.lines().next().unwrap_or_default());
    let known = reasons.iter().any(|reason| message.contains(reason));
    assert!(known, "without {what}, it fails for another reason: {message}");
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

#[test]
fn without_a_safeguard_some_seed_fails() {
    let without = |sabotage| Setup { sabotage, ..Setup::default() };
    let all = Sabotage::default();
    let wrong = &["other logits than in one piece"];
    let twice = &["not the next position", "other logits than in one piece"];
    is_missed("the epoch check", without(Sabotage { accept_old_epochs: true, ..all }), twice);
    // A worker that lacks positions says so: nothing wrong comes of it, and nothing else either.
    let stuck = &["not finished", "stuck"];
    is_missed("the replay", without(Sabotage { skip_replay: true, ..all }), stuck);
    // Rows that are in the log twice are wrong logits, or held against whoever gave the others.
    let shifted = &["other logits than in one piece", "was banned and never lied"];
    is_missed("the deduplication", without(Sabotage { log_replays: true, ..all }), shifted);
    let verified = without(Sabotage { skip_comparison: true, ..all });
    let setup = Setup { liars: true, full: true, ..verified };
    is_missed("the comparison of audits", setup, wrong);
}
