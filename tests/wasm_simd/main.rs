//! The engine inside WASM: `tests/wasm`, in Node and in headless Chromium, with plain and
//! with relaxed SIMD, against `numerics`, `reference` and the real model's hashes.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tests::wasm::{Build, Host, Job};

fn scratch() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// The modules, built once for all tests.
fn modules() -> &'static [PathBuf] {
    static MODULES: OnceLock<Vec<PathBuf>> = OnceLock::new();
    MODULES.get_or_init(|| [Build::Simd128, Build::Relaxed].map(|b| b.module(scratch())).into())
}

fn passes(host: Host, job: Job) {
    let mut said = Vec::new();
    match host.run(job, modules(), scratch(), |line| said.push(line.to_owned())) {
        Err(reason) => println!("SKIPPED: {host:?}: {reason}"),
        Ok(passed) => {
            let said = said.join("\n");
            println!("{said}");
            assert!(passed, "{host:?}, {job:?}:\n{said}");
            // Every module was asked, and the fast kernels are in them.
            assert!(said.contains("simd128: instruction sets: [Portable, Simd128]"), "{said}");
            let relaxed = "relaxed: instruction sets: [Portable, Simd128, RelaxedSimd]";
            assert!(said.contains(relaxed), "{said}");
        }
    }
}

#[test]
fn the_kernels_cases_pass_in_node() {
    passes(Host::Node, Job::Cases);
}

#[test]
fn the_kernels_cases_pass_in_chromium() {
    passes(Host::Chromium, Job::Cases);
}

#[test]
fn the_real_model_meets_its_hashes_in_node() {
    passes(Host::Node, Job::Golden);
}

#[test]
fn the_real_model_meets_its_hashes_in_chromium() {
    passes(Host::Chromium, Job::Golden);
}
