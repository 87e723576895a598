//! The engine on AArch64: `arm-tests` under an emulator, as two processors.

use std::time::Duration;

use anyhow::{Result, bail};

use super::count::{Counts, Reader};
use super::report::Outcome;
use crate::process::{cargo, output, watch};
use crate::{models, tools};

const TARGET: &str = "aarch64-unknown-linux-gnu";
/// Of these two Debian has packages: qemu-user, and gcc-aarch64-linux-gnu with
/// libc6-dev-arm64-cross.
const EMULATOR: &str = "qemu-aarch64";
const LINKER: &str = "aarch64-linux-gnu-gcc";
/// Where Debian puts the libraries that the emulated program loads.
const LIBRARIES: &str = "/usr/aarch64-linux-gnu";

/// A processor to be: its name, the instruction sets that the engine must find there, and
/// the tests that are run on it.
struct Processor {
    name: &'static str,
    isas: &'static str,
    tests: &'static [&'static str],
}

const PROCESSORS: [Processor; 2] = [
    // Everything on the first: each kernel's test runs every instruction set there is.
    Processor { name: "max", isas: "[Portable, Neon, NeonDot]", tests: &[] },
    // The kernels again where a dot product would be an illegal instruction.
    Processor {
        name: "cortex-a53",
        isas: "[Portable, Neon]",
        tests: &["products::", "attention::", "the_processor_has"],
    },
];

/// On a quiet machine about two minutes.
const TESTS_MAX: Duration = Duration::from_secs(1200);

/// Builds and runs the tests; skips them where there is no emulator, but never in CI.
pub fn run() -> Result<Outcome> {
    if cfg!(target_arch = "aarch64") {
        println!("this machine is one: the tests ran above");
        return Ok(Outcome::ok());
    }
    let mut missing = vec![EMULATOR, LINKER];
    missing.retain(|name| output(std::process::Command::new(name).arg("--version")).is_err());
    if !std::path::Path::new(LIBRARIES).join("lib").is_dir() {
        missing.push(LIBRARIES);
    }
    if !missing.is_empty() {
        let why = format!(
            "AArch64: no {} here (Debian: apt-get install qemu-user gcc-aarch64-linux-gnu \
             libc6-dev-arm64-cross)",
            missing.join(" and ")
        );
        if tools::is_ci() {
            bail!("{why}, and nothing is skipped in CI");
        }
        println!("SKIPPED: {why}");
        return Ok(Outcome::skipping(vec![why]));
    }
    tools::ensure_target(TARGET)?;
    let folder = models::folder()?;
    let mut clippy = cargo(&["clippy", "--package", "arm-tests", "--all-targets", "--locked"]);
    clippy.args(["--target", TARGET, "--", "-D", "warnings"]);
    let linted = watch(&mut clippy, TESTS_MAX, |line| println!("{line}"))?.success();
    let (mut passed, mut counts) = (linted, Counts::default());
    for Processor { name, isas, tests } in PROCESSORS {
        println!("as a {name}");
        let mut reader = Reader::default();
        let mut command = cargo(&["test", "--package", "arm-tests", "--locked", "--target"]);
        command.args([TARGET, "--lib", "--", "--show-output"]).args(tests);
        command.env(models::FOLDER_ENV, &folder).env("WEFT_EXPECT_ISAS", isas);
        command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER);
        command.env(
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER",
            format!("{EMULATOR} -cpu {name} -L {LIBRARIES}"),
        );
        let status = watch(&mut command, TESTS_MAX, |line| {
            if let Some(shown) = reader.read(line) {
                println!("{shown}");
            }
        })?;
        passed &= status.success();
        counts += reader.counts;
    }
    Ok(Outcome::tests(passed, counts))
}
