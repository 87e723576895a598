//! One table of cases for all kernels: run whole natively and in a browser by the tests, and
//! in part at start-up, by [`super::self_test()`].
//!
//! Each case compares an op with `numerics` within a bound that is derived where it stands,
//! looks at what was not to be written (outputs are filled with a NaN beforehand, guard words
//! lie behind them), and then runs the same rows in other company: their bits must not change.

mod attention;
mod compare;
mod products;
mod qkv;
mod rows;

use std::cell::Cell;
use std::fmt::Write as _;

use super::Kernels;
use super::lab::Lab;
use super::types::Variant;

/// What a case looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// Numbers that were compared with what `numerics` says.
    pub values: u64,
    /// The largest error of one, in parts of what it may be.
    pub error: f32,
    /// Words that nothing was to write, each looked at.
    pub guard_words: u64,
}

/// How a case went.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseResult {
    /// Variant, op, layout, shape.
    pub name: String,
    /// What it looked at.
    pub seen: Seen,
    /// What was wrong.
    pub outcome: Result<(), String>,
}

/// How much of the table is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// Every kernel, in few cases with few rows: what a device is asked before it is used.
    Start,
    /// All of it.
    #[cfg(feature = "testing")]
    Whole,
}

/// Parts of the names of cases that are not run in browsers, and why. There SwiftShader takes
/// about a second of a core to compile a pipeline: every kernel, every layout and every way is
/// run, but not all of them with each other.
#[cfg(feature = "testing")]
pub const NATIVE_ONLY: [(&str, &str); 19] = [
    ("product Q4M [1536, 576]", "a real shape, which is much to compute there"),
    ("product Q4M [576, 1536]", "a real shape, which is much to compute there"),
    ("product Q4M [40", "Q4M is added and given biases"),
    ("product Q4M [17", "Q4M is added and given biases"),
    ("product Q4K", "gate_up has this layout"),
    ("product Q6K", "gate_up has this layout"),
    ("product Q5S", "qkv has this layout"),
    ("product Q8", "qkv has this layout"),
    ("product F16", "qkv has this layout"),
    ("product F32", "qkv has this layout"),
    ("gate_up Q4M", "gate_up has other layouts"),
    ("gate_up Q5S", "gate_up has other layouts"),
    ("gate_up F32", "gate_up has other layouts"),
    ("qkv Q4S", "other cases turn halves and join layouts"),
    ("qkv Q8", "other cases turn neighbours, and halves of many rows"),
    ("attention 4/1", "a pipeline for each width of heads: 64 and 10 are run"),
    ("attention 14/2", "a pipeline for each width of heads: 64 and 10 are run"),
    ("attention 2/2", "a pipeline for each width of heads: 64 and 10 are run"),
    ("attention 8/1", "a pipeline for each width of heads: 64 and 10 are run"),
];

/// Runs a variant's cases in order, those whose name `is_wanted`; none where the device does
/// not support the variant.
#[cfg(feature = "testing")]
pub async fn run_all(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    variant: Variant,
    is_wanted: &dyn Fn(&str) -> bool,
) -> Vec<CaseResult> {
    if variant.unsupported(device).is_some() {
        return Vec::new();
    }
    let kernels = Kernels::new(device, variant, products::plain_shapes(4, 4, 4));
    let lab = Lab::new(&kernels, queue);
    let seen = Cell::default();
    let tester = Tester { lab: &lab, extent: Extent::Whole, seen: &seen };
    let mut runner = Runner { tester: Some(tester), is_wanted, variant, results: Vec::new() };
    run(&mut runner, Extent::Whole).await;
    runner.results
}

/// The names of a variant's cases, in order; nothing is run.
#[cfg(feature = "testing")]
pub fn names(variant: Variant) -> Vec<String> {
    let is_wanted = &|_: &str| true;
    let mut runner = Runner { tester: None, is_wanted, variant, results: Vec::new() };
    {
        let mut listing = std::pin::pin!(run(&mut runner, Extent::Whole));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(listing.as_mut().poll(&mut context).is_ready(), "there is nothing to wait for");
    }
    runner.results.into_iter().map(|case| case.name).collect()
}

/// Runs the start-up's cases and gives the first failure: the case, and what was wrong.
pub(super) async fn run_start(kernels: &Kernels, queue: &wgpu::Queue) -> Result<(), String> {
    let (lab, seen) = (Lab::new(kernels, queue), Cell::default());
    let tester = Tester { lab: &lab, extent: Extent::Start, seen: &seen };
    let variant = kernels.variant();
    let is_wanted = &|_: &str| true;
    let mut runner = Runner { tester: Some(tester), is_wanted, variant, results: Vec::new() };
    run(&mut runner, Extent::Start).await;
    let failed = |case: CaseResult| Some((case.name, case.outcome.err()?));
    match runner.results.into_iter().find_map(failed) {
        None => Ok(()),
        Some((name, problem)) => Err(format!("{name}: {problem}")),
    }
}

/// The table.
async fn run(runner: &mut Runner<'_>, extent: Extent) {
    products::run(runner, extent).await;
    qkv::run(runner, extent).await;
    // What follows is the same in all variants.
    if runner.variant == Variant::Base {
        rows::run(runner, extent).await;
        attention::run(runner, extent).await;
    }
}

/// What a case works with.
#[derive(Clone, Copy)]
struct Tester<'a> {
    lab: &'a Lab<'a>,
    extent: Extent,
    seen: &'a Cell<Seen>,
}

struct Runner<'a> {
    /// Without one the cases are listed and not run.
    tester: Option<Tester<'a>>,
    is_wanted: &'a dyn Fn(&str) -> bool,
    variant: Variant,
    results: Vec<CaseResult>,
}

impl Runner<'_> {
    /// Runs one case, if it is asked for; validation errors of the device count against it.
    /// After a failure a start-up runs no more.
    async fn case<F>(&mut self, name: String, case: F)
    where
        F: AsyncFnOnce(Tester<'_>) -> Result<(), String>,
    {
        let name = format!("{} {name}", self.variant.name());
        if !(self.is_wanted)(&name) {
            return;
        }
        let Some(tester) = self.tester else {
            let seen = Seen::default();
            return self.results.push(CaseResult { name, seen, outcome: Ok(()) });
        };
        let ended = self.results.last().is_some_and(|case| case.outcome.is_err());
        if ended && tester.extent == Extent::Start {
            return;
        }
        tester.seen.set(Seen::default());
        let scope = tester.lab.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let mut outcome = case(tester).await;
        if let Some(error) = scope.pop().await {
            let mut text = outcome.err().unwrap_or_default();
            let _ = write!(text, " {error}");
            outcome = Err(text);
        }
        self.results.push(CaseResult { name, seen: tester.seen.get(), outcome });
    }
}
