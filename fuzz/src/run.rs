//! Runs one target over a range of broken inputs.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use model::testing::Random;

use crate::heap::peak_of;
use crate::mutate::{Seed, mutate};
use crate::targets::Target;

/// How far the inputs came.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How many inputs ended at each of the target's stages.
    pub stages: BTreeMap<&'static str, u64>,
    /// The most heap that one input took, bytes.
    pub heap_bytes_peak: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (stage, count) in &self.stages {
            writeln!(f, "  {count:>9} {stage}")?;
        }
        write!(f, "  at most {} KiB of heap for one input", self.heap_bytes_peak.div_ceil(1024))
    }
}

/// An input that a parser did not withstand.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// The input's number.
    pub iteration: u64,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "input {} failed: {}", self.iteration, self.what)
    }
}

/// Feeds the inputs of those numbers; each depends on the seed and its own number alone.
///
/// # Errors
/// The first [`Failure`].
pub fn run(target: &dyn Target, seed: u64, numbers: Range<u64>) -> Result<Report, Failure> {
    let corpus = target.corpus();
    let mut report = Report::default();
    for (i, valid) in corpus.iter().enumerate() {
        let fail = |what| Failure { iteration: numbers.start, what: format!("seed {i}: {what}") };
        let (stage, _) = feed(target, &valid.pieces).map_err(fail)?;
        if stage != target.accepted() {
            return Err(fail(format!("a valid input ended as \"{stage}\"")));
        }
    }
    let mut input = Vec::new();
    for iteration in numbers {
        let mut random = Random::new(seed);
        let mut random = Random::new(random.next() ^ iteration);
        let mut pick = || -> &Seed { &corpus[random.below(corpus.len() as u64) as usize] };
        let (valid, donor) = (pick(), pick());
        mutate(valid, donor, &mut random, &mut input);
        let (stage, peak) = feed(target, &input).map_err(|what| Failure { iteration, what })?;
        *report.stages.entry(stage).or_default() += 1;
        report.heap_bytes_peak = report.heap_bytes_peak.max(peak);
    }
    Ok(report)
}

/// The stage that one input came to, and the heap that it took.
fn feed(target: &dyn Target, input: &[Vec<u8>]) -> Result<(&'static str, usize), String> {
    let (result, peak) = peak_of(|| catch_unwind(AssertUnwindSafe(|| target.feed(input))));
    let stage = result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        format!("it panicked: {}", text.unwrap_or("(no message)"))
    })?;
    let max = target.heap_bytes_max(input.iter().map(Vec::len).sum());
    if peak > max {
        return Err(format!("it took {peak} bytes of heap, expected at most {max}"));
    }
    Ok((stage, peak))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutate::Form;

    /// A parser with two bugs, to see that they are found.
    struct Buggy {
        panics: bool,
        takes: bool,
    }

    impl Target for Buggy {
        fn name(&self) -> &'static str {
            "buggy"
        }
        fn corpus(&self) -> Vec<Seed> {
            let pieces = vec![vec![4, 0, 0, 0, 1, 2, 3, 4]];
            vec![Seed { pieces, head_bytes: 8, form: Form::Binary }]
        }
        fn accepted(&self) -> &'static str {
            "read"
        }
        fn feed(&self, input: &[Vec<u8>]) -> &'static str {
            let Some(bytes) = input.first().filter(|bytes| bytes.len() >= 4) else {
                return "short";
            };
            let len = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
            if self.takes {
                std::hint::black_box(Vec::<u8>::with_capacity(len));
            }
            if self.panics {
                std::hint::black_box(&bytes[4..4 + len]);
            }
            "read"
        }
        fn heap_bytes_max(&self, _: usize) -> usize {
            1 << 20
        }
    }

    #[test]
    fn a_good_parser_passes_and_every_run_is_the_same() {
        let good = Buggy { panics: false, takes: false };
        let report = run(&good, 1, 0..5000).expect("it has no bug");
        assert_eq!(report.stages.keys().copied().collect::<Vec<_>>(), ["read", "short"]);
        assert_eq!(run(&good, 1, 0..5000), Ok(report));
    }

    #[test]
    fn bugs_are_found_and_can_be_repeated() {
        for (buggy, expected) in [
            (Buggy { panics: true, takes: false }, "panicked"),
            (Buggy { panics: false, takes: true }, "bytes of heap"),
        ] {
            let failure = run(&buggy, 1, 0..5000).expect_err("it has a bug");
            assert!(failure.what.contains(expected), "{failure}");
            let one = failure.iteration..failure.iteration + 1;
            assert_eq!(run(&buggy, 1, one), Err(failure));
        }
    }
}
