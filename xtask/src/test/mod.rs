//! `cargo xtask test`: every check of the checkout, in steps; each is timed, all are run even
//! when one fails, and the closing line counts what the test runners counted.

mod arm;
mod count;
mod instructions;
mod report;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::process::{cargo, output, watch};
use crate::tools::WASM;
use crate::{models, tidy, tools, web};
use count::Reader;
use report::{Outcome, Report};

/// Crates that must compile for WASM: the pure ones, and what runs in a browser.
const WASM_CRATES: [&str; 11] = [
    "protocol",
    "api",
    "model",
    "scheduler",
    "worker-core",
    "numerics",
    "reference",
    "engine",
    "shards",
    "browser-worker",
    "web",
];
/// Mutated inputs for each parser, if `WEFT_FUZZ_INPUTS` does not say.
const FUZZ_INPUTS: &str = "1000000";

/// The documentation is for those who work on this, so it shows what is private, and links to
/// it.
const DOC_FLAGS: &str = "-D warnings -A rustdoc::private_intra_doc_links";

const QUICK_MAX: Duration = Duration::from_secs(300);
const BUILD_MAX: Duration = Duration::from_secs(1800);
const TESTS_MAX: Duration = Duration::from_secs(2400);
const FUZZ_MAX: Duration = Duration::from_secs(900);

/// Runs everything; `false` if something failed.
pub fn run(all_models: bool) -> Result<bool> {
    let mut report = Report::default();
    let ready = report.step("tools", || tools::ensure().map(|()| Outcome::ok()))
        && report.step("models", || {
            let fetched = models::fetch(all_models)?;
            Ok(Outcome::skipping(fetched.skipped))
        });
    if ready {
        // First, since the coordinator is built with them in it.
        report.step("pages", || web::build().map(|_| Outcome::ok()));
        report.step("wasm-pack", || {
            let skipped = web::check_wasm_pack()?;
            if let Some(why) = &skipped {
                println!("SKIPPED: {why}");
            }
            Ok(Outcome::skipping(skipped.into_iter().collect()))
        });
        check_sources(&mut report);
        run_tests(&mut report)?;
        report.step("arm", arm::run);
        report.step("instructions", || instructions::run(false));
        fuzz(&mut report);
        report.step("doc", || {
            let mut command =
                cargo(&["doc", "--workspace", "--no-deps", "--locked", "--document-private-items"]);
            quiet(command.env("RUSTDOCFLAGS", DOC_FLAGS), BUILD_MAX)
        });
    }
    Ok(report.close())
}

/// Only the engine's tests on AArch64; `false` if something failed.
pub fn run_arm() -> Result<bool> {
    let mut report = Report::default();
    report.step("arm", arm::run);
    Ok(report.close())
}

/// Only the instruction counts of the kernels, compared with the table or written to it;
/// `false` if they are off.
pub fn run_instructions(write: bool) -> Result<bool> {
    let mut report = Report::default();
    report.step("instructions", || instructions::run(write));
    Ok(report.close())
}

/// As [`run`]; fails as well if that changed a file of the checkout, or left one in it.
pub fn run_ci() -> Result<bool> {
    let before = git_status()?;
    let passed = run(false)?;
    let after = git_status()?;
    if before != after {
        println!("error: the tests changed the checkout; git status says\n{after}");
    }
    Ok(passed && before == after)
}

fn git_status() -> Result<String> {
    let mut git = Command::new("git");
    let bytes = output(git.args(["status", "--porcelain"]).current_dir(crate::root()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn check_sources(report: &mut Report) {
    report.step("fmt", || quiet(&mut cargo(&["fmt", "--all", "--check"]), QUICK_MAX));
    report.step("tidy", || tidy::run().map(Outcome::from_bool));
    // The licences are checked by tidy as well, which needs nothing.
    if output(&mut cargo(&["deny", "--version"])).is_ok() {
        report.step("deny", || {
            quiet(&mut cargo(&["deny", "check", "licenses", "bans", "sources"]), QUICK_MAX)
        });
    }
    report.step("clippy", || {
        let arguments =
            ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
        quiet(&mut cargo(&arguments), BUILD_MAX)
    });
    report.step("wasm", || {
        let mut command = cargo(&["clippy", "--locked", "--target", WASM]);
        command.args(WASM_CRATES.iter().flat_map(|name| ["--package", name]));
        command.args(["--", "-D", "warnings"]);
        quiet(&mut command, BUILD_MAX)
    });
}

/// Builds what the tests run and are, then runs them.
fn run_tests(report: &mut Report) -> Result<()> {
    let folder = models::folder()?;
    // All targets, so that cargo chooses the same features as for the tests below, and
    // builds nothing twice.
    let built = report.step("build", || {
        quiet(&mut cargo(&["build", "--workspace", "--all-targets", "--locked"]), BUILD_MAX)
    });
    if !built {
        return Ok(());
    }
    let binaries = tidy::target_folder()?.join("debug");
    let mut reader = Reader::default();
    report.step("tests", || {
        let arguments =
            ["test", "--workspace", "--locked", "--no-fail-fast", "--", "--show-output"];
        let mut command = cargo(&arguments);
        command.env(models::FOLDER_ENV, &folder);
        command.env("WEFT_BINARIES", &binaries);
        let status = watch(&mut command, TESTS_MAX, |line| {
            if let Some(shown) = reader.read(line) {
                println!("{shown}");
            }
        })?;
        Ok(Outcome::tests(status.success(), reader.counts))
    });
    report.programs(std::mem::take(&mut reader.programs));
    Ok(())
}

/// Feeds each parser mutated inputs. The program is the one that was built with the tests:
/// the parsers are optimised there too, and overflows and assertions are checked.
fn fuzz(report: &mut Report) {
    report.step("fuzz", || {
        let inputs = std::env::var("WEFT_FUZZ_INPUTS").unwrap_or(FUZZ_INPUTS.to_owned());
        let program = tidy::target_folder()?.join("debug").join("fuzz");
        let mut command = Command::new(program);
        quiet(command.args(["all", "--iterations", &inputs]), FUZZ_MAX)
    });
}

/// Runs a command whose success is one thing, and shows what it says.
fn quiet(command: &mut Command, limit: Duration) -> Result<Outcome> {
    let status = watch(command, limit, |line| println!("{line}")).context("a step")?;
    Ok(Outcome::from_bool(status.success()))
}

/// What a run took, for people.
fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}
