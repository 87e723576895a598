//! `wasm-pack` and the `wasm-bindgen` that it calls: found, or installed where nobody minds.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::process::{cargo, output, tail, watch};
use crate::tools;

/// The version that is installed.
const WASM_PACK: &str = "0.15.1";

/// Longest time to install one of them.
const INSTALL_MAX: Duration = Duration::from_secs(1200);

/// How to call it.
pub struct Tools {
    /// `wasm-pack`.
    pub program: PathBuf,
    /// The search path with both tools on it.
    pub path: OsString,
}

/// The tools on the search path or in the target folder; where `CI` is `true` they are installed
/// into the latter if need be. Else, in words, what is missing.
///
/// # Errors
/// If they cannot be installed.
pub fn find_or_install(target: &Path) -> Result<Result<Tools, String>> {
    let root = target.join("tools");
    let bindgen = locked_version("wasm-bindgen").context("no wasm-bindgen in Cargo.lock")?;
    let before = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(root.join("bin")).chain(std::env::split_paths(&before));
    let path = std::env::join_paths(folders).context("the target folder's path has a colon")?;
    let wanted =
        [("wasm-pack", "wasm-pack", None), ("wasm-bindgen", "wasm-bindgen-cli", Some(&bindgen))];
    for (program, package, exactly) in wanted {
        let version = version_of(program, &path);
        if version.as_ref().is_some_and(|v| exactly.is_none_or(|exactly| v == exactly)) {
            continue;
        }
        if !tools::is_ci() {
            let there = version.map_or("is not installed".to_owned(), |v| format!("is {v}"));
            let wanted = exactly.map_or(String::new(), |v| format!(" ({v} is needed)"));
            return Ok(Err(format!("{program} {there}{wanted}, so it is not tried")));
        }
        let version = exactly.map_or(WASM_PACK, String::as_str);
        println!("installing {package} {version}");
        // The package's own lock file may name what a mirror of the registry does not have yet.
        install(package, version, &root, &["--locked"])
            .or_else(|first| {
                println!("{first:#}; once more without its lock file");
                install(package, version, &root, &[]).map_err(|e| anyhow!("{first:#}; then {e:#}"))
            })
            .with_context(|| format!("{package} {version} cannot be installed"))?;
    }
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("wasm-pack"));
    let program = on_path.into_iter().find(|file| file.is_file());
    Ok(Ok(Tools { program: program.unwrap_or_else(|| "wasm-pack".into()), path }))
}

fn install(package: &str, version: &str, root: &Path, flags: &[&str]) -> Result<()> {
    let mut install = cargo(&["install", "--quiet", "--no-default-features"]);
    install.args(flags).args(["--version", version, "--root"]).arg(root).arg(package);
    // A folder of its own, which cargo removes afterwards, and none of our flags.
    for name in ["CARGO_TARGET_DIR", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"] {
        install.env_remove(name);
    }
    let mut said = String::new();
    let status = watch(&mut install, INSTALL_MAX, |line| said = said.clone() + line + "\n")?;
    ensure!(status.success(), "{}", tail(&said));
    Ok(())
}

/// What `PROGRAM --version` says behind the name.
fn version_of(program: &str, path: &OsString) -> Option<String> {
    let mut folders = std::env::split_paths(path).map(|folder| folder.join(program));
    let said = output(Command::new(folders.find(|file| file.is_file())?).arg("--version")).ok()?;
    String::from_utf8_lossy(&said).split_whitespace().nth(1).map(str::to_owned)
}

/// A package's version in Cargo.lock.
fn locked_version(package: &str) -> Option<String> {
    let lock = std::fs::read_to_string(crate::root().join("Cargo.lock")).ok()?;
    let name = format!("name = \"{package}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name).skip(1);
    Some(lines.next()?.strip_prefix("version = \"")?.trim_end_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_file_names_the_version_that_is_installed() {
        let version = locked_version("wasm-bindgen").expect("we depend on it");
        assert_eq!(version.split('.').count(), 3, "{version}");
        assert_eq!(locked_version("no-such-package"), None);
    }
}
