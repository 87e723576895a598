//! What a machine must have, and installing what can be installed without a question.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::output;

/// The target that the pure crates must compile for.
pub const WASM: &str = "wasm32-unknown-unknown";

/// Makes sure of git, rustfmt, clippy and the wasm target; adds the latter through rustup.
pub fn ensure() -> Result<()> {
    output(Command::new("git").arg("--version")).context("git is needed: install it")?;
    for (component, probe) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if output(&mut crate::process::cargo(&[probe, "--version"])).is_err() {
            println!("adding the component {component}");
            rustup(&["component", "add", component])?;
        }
    }
    ensure_wasm()
}

/// Makes sure of the wasm target, which the pages are compiled for.
pub fn ensure_wasm() -> Result<()> {
    // Without rustup the target may still be there.
    let mut sysroot = Command::new("rustc");
    sysroot.args(["--print", "target-libdir", "--target", WASM]).current_dir(crate::root());
    let folder = output(&mut sysroot).unwrap_or_default();
    if Path::new(String::from_utf8_lossy(&folder).trim()).is_dir() {
        return Ok(());
    }
    let targets = rustup(&["target", "list", "--installed"])?;
    if !targets.lines().any(|line| line == WASM) {
        println!("adding the target {WASM}");
        rustup(&["target", "add", WASM])?;
    }
    Ok(())
}

/// A Python with pip, which fetches the packages that the test models lie in.
pub fn python() -> Result<&'static str> {
    for name in ["python3", "python"] {
        if output(Command::new(name).args(["-m", "pip", "--version"])).is_ok() {
            return Ok(name);
        }
    }
    bail!(
        "Python 3 with pip is needed to fetch the test models: install it \
         (Debian: apt-get install python3-pip), or put the files into a folder and name it in \
         {}",
        crate::models::FOLDER_ENV
    )
}

fn rustup(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("rustup");
    command.args(arguments).current_dir(crate::root());
    let bytes = output(&mut command).context("rustup is needed to add what the tests need")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
