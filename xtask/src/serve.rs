//! `cargo xtask serve`: the coordinator, in release.

use anyhow::{Context, Result};

use crate::process::cargo;
use crate::{tools, web};

/// Builds the pages and the coordinator, and runs `coordinator serve` with these flags, until it ends.
///
/// On Unix the coordinator takes this process's place (cargo does the same), so signals reach
/// it directly.
pub fn run(flags: &[String]) -> Result<()> {
    tools::ensure_wasm()?;
    web::build()?;
    let mut command = cargo(&["run", "--release", "--package", "coordinator", "--", "serve"]);
    command.args(flags);
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt;
        Err(command.exec()).context("cargo cannot be run")
    }
    #[cfg(not(unix))]
    {
        let status = command.status().context("cargo cannot be run")?;
        if status.success() { Ok(()) } else { anyhow::bail!("the coordinator ended with {status}") }
    }
}
