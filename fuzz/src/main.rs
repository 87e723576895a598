//! Feeds our parsers a million broken inputs each, the same ones on every machine.
//!
//! `cargo run -p fuzz -- gguf --iterations 1000000 --seed 1` takes valid inputs, breaks
//! each one in a few places, and asserts that the parser neither panics nor takes more
//! memory than it may. A target is one file in `targets/`, listed in [`targets::all`].

mod heap;
mod mutate;
mod run;
mod targets;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;

/// Mutation fuzzing of the parsers, deterministic from a seed.
#[derive(Parser)]
struct Args {
    /// Which parser, or `all`.
    target: String,
    /// How many broken inputs.
    #[arg(long, default_value_t = 1_000_000)]
    iterations: u64,
    /// Other seeds break the inputs otherwise.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The first input's number, to repeat one failure by itself.
    #[arg(long, default_value_t = 0)]
    first: u64,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let all = targets::all();
    let names: Vec<_> = all.iter().map(|t| t.name()).collect();
    let chosen: Vec<_> =
        all.iter().filter(|t| args.target == "all" || t.name() == args.target).collect();
    if chosen.is_empty() {
        anyhow::bail!("no target {:?}; there are all, {}", args.target, names.join(", "));
    }
    let mut failed = false;
    for target in chosen {
        let started = Instant::now();
        let last = args.first.checked_add(args.iterations).context("too many iterations")?;
        match run::run(target.as_ref(), args.seed, args.first..last) {
            Ok(report) => {
                println!(
                    "{}: {} inputs in {:.1?}",
                    target.name(),
                    args.iterations,
                    started.elapsed()
                );
                println!("{report}");
            }
            Err(failure) => {
                println!("{}: {failure}", target.name());
                println!(
                    "repeat it with: cargo run -p fuzz -- {} --seed {} --first {} --iterations 1",
                    target.name(),
                    args.seed,
                    failure.iteration
                );
                failed = true;
            }
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
