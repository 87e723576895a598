//! What came of each step, and the table at the end.

use std::time::Instant;

use anyhow::Result;

use super::count::{Counts, Program};
use super::seconds;

/// What came of one step.
pub struct Outcome {
    passed: bool,
    counts: Counts,
}

impl Outcome {
    /// It did what it should.
    pub fn ok() -> Outcome {
        Outcome::from_bool(true)
    }

    /// It did, or not.
    pub fn from_bool(passed: bool) -> Outcome {
        Outcome { passed, counts: Counts::default() }
    }

    /// It did, but for these things that this machine lacks.
    pub fn skipping(skipped: Vec<String>) -> Outcome {
        let counts = Counts { skipped: skipped.len() as u64, ..Counts::default() };
        Outcome { passed: true, counts }
    }

    /// It ran tests.
    pub fn tests(passed: bool, counts: Counts) -> Outcome {
        Outcome { passed: passed && counts.failed == 0, counts }
    }
}

/// All steps so far.
#[derive(Default)]
pub struct Report {
    steps: Vec<(String, bool, f64)>,
    programs: Vec<Program>,
    counts: Counts,
}

impl Report {
    /// Runs a step, says how it went, and returns whether it passed.
    pub fn step(&mut self, name: &str, run: impl FnOnce() -> Result<Outcome>) -> bool {
        println!("\n=== {name}");
        let started = Instant::now();
        let outcome = run().unwrap_or_else(|error| {
            println!("error: {error:#}");
            Outcome::from_bool(false)
        });
        self.counts += outcome.counts;
        // A step that failed without a test's saying so: it did not compile, say.
        if !outcome.passed && outcome.counts.failed == 0 {
            self.counts.failed += 1;
        }
        self.steps.push((name.to_owned(), outcome.passed, seconds(started)));
        outcome.passed
    }

    /// Adds the test programs' own times to the table.
    pub fn programs(&mut self, programs: Vec<Program>) {
        self.programs = programs;
    }

    /// Prints the table and the closing line; `true` if nothing failed.
    pub fn close(&self) -> bool {
        /// Programs faster than this are not worth a line.
        const WORTH_S: f64 = 1.0;
        println!("\n{:<24} {:>8}  result", "step", "seconds");
        for (name, passed, seconds) in &self.steps {
            println!("{name:<24} {seconds:>8.1}  {}", if *passed { "ok" } else { "FAILED" });
            for program in self.programs.iter().filter(|p| name == "tests" && p.seconds >= WORTH_S)
            {
                let Program { name, seconds, counts } = program;
                println!("  {name:<22} {seconds:>8.1}  {} tests", counts.passed + counts.failed);
            }
        }
        let total: f64 = self.steps.iter().map(|(_, _, seconds)| seconds).sum();
        println!("{:<24} {total:>8.1}", "all");
        let Counts { passed, failed, skipped } = self.counts;
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        failed == 0
    }
}
