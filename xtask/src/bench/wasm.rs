//! `cargo xtask bench --wasm`: the CPU engine inside WASM, in Node and in Chromium.

use anyhow::{Context, Result, ensure};

use crate::models;
use crate::process::cargo;

/// Builds the modules with and without SIMD and prints their tokens per second; `false` if
/// one of them could not be run.
pub fn run(rest: &[String]) -> Result<bool> {
    ensure!(rest.is_empty(), "--wasm takes no further flag; WEFT_WLLAMA names a peer's package");
    models::fetch_required()?;
    let model = models::default_model()?;
    let folder = model.parent().context("the model lies in a folder")?;
    let arguments =
        ["run", "--quiet", "--release", "--package", "tests", "--bin", "wasm_bench", "--", "bench"];
    let mut bench = cargo(&arguments);
    let status = bench.env("WEFT_TEST_MODELS", folder).status().context("cargo cannot be run")?;
    Ok(status.success())
}
