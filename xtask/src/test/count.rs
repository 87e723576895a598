//! Reading what `cargo test -- --show-output` says.
//!
//! That flag is there for one thing: a test that lacks something prints `SKIPPED: reason`, and
//! libtest would hide it. Everything else that passing tests print is hidden here again, but
//! for what the simulation and the real processes say: how often each fault struck belongs into
//! every run's output.

use std::ops::AddAssign;

/// The test programs whose passing tests say what is meant to be seen.
const TALK: [&str; 2] = ["sim", "e2e"];

/// What the runners counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Ran, and passed.
    pub passed: u64,
    /// Ran, and failed.
    pub failed: u64,
    /// Could not run here, and said so.
    pub skipped: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// One test program's run.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// As cargo names it.
    pub name: String,
    /// Its tests.
    pub counts: Counts,
    /// How long it took.
    pub seconds: f64,
}

/// Reads a run line by line.
#[derive(Default)]
pub struct Reader {
    /// Of all programs so far.
    pub counts: Counts,
    /// Each program that ended, in order.
    pub programs: Vec<Program>,
    name: String,
    /// Inside the part that shows what passing tests printed.
    hidden: bool,
    /// The test whose output is shown there has said that it skipped.
    skipped_here: bool,
    /// Tests of this program that said so.
    skipped: u64,
}

impl Reader {
    /// Takes one line; returns what of it to show.
    pub fn read(&mut self, line: &str) -> Option<String> {
        if let Some(name) = program_of(line) {
            self.name = name;
            self.skipped = 0;
            return Some(line.to_owned());
        }
        if let Some((counted, seconds)) = summary_of(line) {
            self.hidden = false;
            let skipped = self.skipped.min(counted.passed);
            let counts = Counts {
                passed: counted.passed - skipped,
                failed: counted.failed,
                skipped: counted.skipped + skipped,
            };
            self.skipped = 0;
            self.counts += counts;
            let name = self.name.clone();
            self.programs.push(Program { name, counts, seconds });
            return Some(line.to_owned());
        }
        match line {
            "successes:" => {
                self.hidden = true;
                return None;
            }
            "failures:" => self.hidden = false,
            _ => {}
        }
        if !self.hidden {
            return Some(line.to_owned());
        }
        if line.starts_with("---- ") {
            self.skipped_here = false;
        } else if line.starts_with("SKIPPED:") {
            self.skipped += u64::from(!self.skipped_here);
            self.skipped_here = true;
            return Some(line.to_owned());
        }
        TALK.contains(&self.name.as_str()).then(|| line.to_owned())
    }
}

/// `     Running tests/e2e/main.rs (target/debug/deps/e2e-0123456789abcdef)`, or
/// `   Doc-tests model`.
fn program_of(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("doc {name}"));
    }
    let path = line.strip_prefix("Running ")?.split_once(" (")?.1.strip_suffix(')')?;
    let file = path.rsplit(['/', '\\']).next()?;
    Some(file.rsplit_once('-').map_or(file, |(name, _hash)| name).to_owned())
}

/// `test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in
/// 0.12s`.
fn summary_of(line: &str) -> Option<(Counts, f64)> {
    let (_ok, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let (numbers, seconds) = rest.split_once("; finished in ")?;
    let number = |what: &str| -> Option<u64> {
        numbers.split("; ").find_map(|part| part.strip_suffix(what)?.trim().parse().ok())
    };
    let counts = Counts {
        passed: number("passed")?,
        failed: number("failed")?,
        skipped: number("ignored")?,
    };
    Some((counts, seconds.strip_suffix('s')?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "\
     Running golden/text.rs (target/debug/deps/golden_text-00aa11bb22cc33dd)

running 3 tests
test a ... ok
test b ... ok
test c ... ok

successes:

---- a stdout ----
SKIPPED: big.gguf is not there
SKIPPED: nor is its sibling
---- b stdout ----
chatter

successes:
    a
    b
    c

test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s

     Running sim/main.rs (target/debug/deps/sim-44ee55ff66aa77bb)

running 1 test
test d ... ok

successes:

---- d stdout ----
200 seeds, 17 kills

successes:
    d

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 2.00s

   Doc-tests model

running 1 test
test crates/model/src/lib.rs - (line 3) ... FAILED

failures:

---- crates/model/src/lib.rs - (line 3) stdout ----
why it failed

failures:
    crates/model/src/lib.rs - (line 3)

test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s
";

    #[test]
    fn programs_are_counted_and_a_skip_is_no_pass() {
        let mut reader = Reader::default();
        let shown: Vec<String> = RUN.lines().filter_map(|line| reader.read(line)).collect();
        assert_eq!(reader.counts, Counts { passed: 3, failed: 1, skipped: 1 });
        let first = Counts { passed: 2, failed: 0, skipped: 1 };
        let name = "golden_text".to_owned();
        assert_eq!(reader.programs[0], Program { name, counts: first, seconds: 1.5 });
        assert_eq!(reader.programs[2].name, "doc model");
        assert!(shown.contains(&"SKIPPED: big.gguf is not there".to_owned()));
        assert!(shown.contains(&"200 seeds, 17 kills".to_owned()));
        assert!(shown.contains(&"why it failed".to_owned()), "a failure is shown in full");
        assert!(!shown.contains(&"chatter".to_owned()), "a success is not");
    }
}
