//! Builds `tests/wasm` for WASM and runs it in Node or in headless Chromium.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

mod page;

/// The one that a tab's worker is built with.
const PROFILE: &str = "wasm-release";
/// The longest run in a browser.
const PAGE_MAX: Duration = Duration::from_secs(600);

/// The folder of the crate and its JavaScript.
fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("wasm")
}

/// What a module may use of WASM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// What the target has by itself: plain Rust.
    Portable,
    /// 128-bit vectors.
    Simd128,
    /// Relaxed SIMD as well.
    Relaxed,
}

impl Build {
    /// File name and name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Build::Portable => "portable",
            Build::Simd128 => "simd128",
            Build::Relaxed => "relaxed",
        }
    }

    fn flags(self) -> &'static str {
        match self {
            Build::Portable => "",
            Build::Simd128 => "-Ctarget-feature=+simd128",
            Build::Relaxed => "-Ctarget-feature=+simd128,+relaxed-simd",
        }
    }

    /// Builds the module, in a target folder of its own below `scratch`.
    ///
    /// # Panics
    /// If it does not build.
    pub fn module(self, scratch: &Path) -> PathBuf {
        let target = scratch.join("wasm").join(self.name());
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "--profile", PROFILE, "--locked", "--package", "wasm-tests"])
            .args(["--target", "wasm32-unknown-unknown", "--target-dir"])
            .arg(&target)
            .env("RUSTFLAGS", self.flags())
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .expect("cargo runs");
        assert!(status.success(), "{} does not build", self.name());
        let built = target.join("wasm32-unknown-unknown").join(PROFILE).join("wasm_tests.wasm");
        let named = target.join(self.name()).with_extension("wasm");
        std::fs::copy(built, &named).expect("the module was built");
        named
    }
}

/// What `run.mjs` is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// The cases of `tests/kernels`.
    Cases,
    /// The real model's hashes.
    Golden,
    /// Tokens per second of the real model.
    Bench,
    /// The same of the npm package `@wllama/wllama` that `WEFT_WLLAMA` names; in Chromium.
    Wllama,
}

impl Job {
    fn name(self) -> &'static str {
        match self {
            Job::Cases => "cases",
            Job::Golden => "golden",
            Job::Bench => "bench",
            Job::Wllama => "wllama",
        }
    }

    fn needs_model(self) -> bool {
        self != Job::Cases
    }
}

/// A program that runs WASM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// Node, from 16 on.
    Node,
    /// Headless.
    Chromium,
}

impl Host {
    /// The program, or why it is not used.
    fn program(self) -> Result<&'static str, String> {
        let names: &[&str] = match self {
            Host::Node => &["node"],
            Host::Chromium => &["chromium", "chromium-browser", "google-chrome"],
        };
        let answers = |name: &&&str| {
            let mut command = Command::new(name);
            command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        let found = names.iter().find(answers).copied();
        found.ok_or_else(|| format!("no {} is installed", names.join(", ")))
    }

    /// Runs a job with modules that [`Build::module`] made, telling `line` each line that it
    /// says; `Ok(false)` if something failed.
    ///
    /// # Errors
    /// Why it cannot run here.
    ///
    /// # Panics
    /// If the host breaks off or takes more than ten minutes.
    pub fn run(
        self,
        job: Job,
        modules: &[PathBuf],
        scratch: &Path,
        mut line: impl FnMut(&str),
    ) -> Result<bool, String> {
        let program = self.program()?;
        let model = if job.needs_model() { crate::required_model() } else { PathBuf::new() };
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/canonical1_smollm2.json");
        match self {
            Host::Node => {
                let mut node = Command::new(program)
                    .arg(source().join("node.mjs"))
                    .arg(job.name())
                    .args([model, golden])
                    .args(modules)
                    .stdout(Stdio::piped())
                    .spawn()
                    .expect("it answered before");
                let output = node.stdout.take().expect("it is piped");
                BufReader::new(output).lines().map_while(Result::ok).for_each(|said| line(&said));
                Ok(node.wait().expect("it was started").success())
            }
            Host::Chromium => {
                let page = page::Page {
                    source: source(),
                    what: job.name(),
                    modules,
                    files: [("model", model), ("golden", golden)]
                        .into_iter()
                        .filter(|_| job.needs_model())
                        .collect(),
                    wllama: std::env::var_os("WEFT_WLLAMA").map(PathBuf::from),
                };
                let profile = scratch.join("wasm").join(format!("profile-{}", job.name()));
                Ok(page.run(program, &profile, PAGE_MAX, line))
            }
        }
    }
}
