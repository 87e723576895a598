//! What a machine must have, and installing what can be installed without a question.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::output;

/// The target that the pure crates must compile for.
pub const WASM: &str = "wasm32-unknown-unknown";

/// Whether this is continuous integration: what is missing is installed there, not skipped.
pub fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|ci| ci == "true" || ci == "1")
}

/// Makes sure of git, rustfmt, clippy and the wasm target; adds the latter through rustup.
pub fn ensure() -> Result<()> {
    output(Command::new("git").arg("--version")).context("git is needed: install it")?;
    for (component, probe) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if output(&mut crate::process::cargo(&[probe, "--version"])).is_err() {
            println!("adding the component {component}");
            rustup(&["component", "add", component])?;
        }
    }
    ensure_wasm()?;
    ensure_browser()
}

/// Debian's packages: a browser, what drives it, and the software GPU of the native tests.
const BROWSER_PACKAGES: [&str; 4] =
    ["chromium", "chromium-driver", "mesa-vulkan-drivers", "libvulkan1"];

/// Makes sure of Chromium, chromedriver and a Vulkan driver; installs them where apt does so
/// without a question.
fn ensure_browser() -> Result<()> {
    let missing = || {
        let driver = output(Command::new("chromedriver").arg("--version")).is_err();
        let mut browsers = ["chromium", "google-chrome"].iter();
        let browser = !browsers.any(|name| output(Command::new(name).arg("--version")).is_ok());
        let drivers = std::fs::read_dir("/usr/share/vulkan/icd.d");
        let vulkan =
            cfg!(target_os = "linux") && drivers.map_or(true, |mut icds| icds.next().is_none());
        let all = [(browser, "a browser"), (driver, "chromedriver"), (vulkan, "a Vulkan driver")];
        all.into_iter().filter(|(missing, _)| *missing).map(|(_, name)| name).collect::<Vec<_>>()
    };
    let wanted = missing();
    if wanted.is_empty() {
        return Ok(());
    }
    println!("installing {}", wanted.join(", "));
    let root = output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim_ascii() == b"0");
    let apt = |arguments: &[&str]| {
        let mut command = Command::new(if root { "apt-get" } else { "sudo" });
        if !root {
            command.args(["-n", "apt-get"]);
        }
        output(command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    let mut install = vec!["install", "-y", "-qq", "--no-install-recommends"];
    install.extend(BROWSER_PACKAGES);
    let installed = apt(&["update", "-qq"]).and_then(|_| apt(&install));
    let still = missing();
    if still.is_empty() {
        return Ok(());
    }
    let why = installed.err().map_or(String::new(), |error| format!(" ({error:#})"));
    bail!(
        "{} missing, and apt-get cannot install it{why}: install Chromium, a chromedriver of the \
         same version and a Vulkan driver (Debian: apt-get install {})",
        still.join(" and "),
        BROWSER_PACKAGES.join(" ")
    )
}

/// Makes sure of the wasm target, which the pages are compiled for.
pub fn ensure_wasm() -> Result<()> {
    ensure_target(WASM)
}

/// Makes sure of a target's standard library; adds it through rustup.
pub fn ensure_target(target: &str) -> Result<()> {
    // Without rustup the target may still be there.
    let mut sysroot = Command::new("rustc");
    sysroot.args(["--print", "target-libdir", "--target", target]).current_dir(crate::root());
    let folder = output(&mut sysroot).unwrap_or_default();
    if Path::new(String::from_utf8_lossy(&folder).trim()).is_dir() {
        return Ok(());
    }
    let targets = rustup(&["target", "list", "--installed"])?;
    if !targets.lines().any(|line| line == target) {
        println!("adding the target {target}");
        rustup(&["target", "add", target])?;
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
