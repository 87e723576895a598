//! `cargo xtask web`: the pages and the worker that runs in them, for the coordinator to embed.
//!
//! Both are compiled to wasm in a target folder of their own, so that they wait for no other
//! build and no other build for them; `bindgen` makes of each what a browser can load; with
//! the files that are written by hand that is the folder `web-dist`:
//!
//! ```text
//! web-dist/index.html, start.js, style.css, ...        web/static
//! web-dist/web.js, web_bg.wasm                         web
//! web-dist/worker/worker.js, ...                       browser-worker/static
//! web-dist/worker/browser_worker.js, ..._bg.wasm       browser-worker
//! ```
//!
//! Nothing is done again whose source has not changed, and no file is written that is the same
//! already: what depends on the folder is then not built again either.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::process::{cargo, output};
use crate::tidy;
use crate::tools::WASM;

/// Names the folder for the coordinator's build.
pub const FOLDER_ENV: &str = "WEFT_WEB_DIST";
/// The folder, once it is made: every later command of this run is told, so that the coordinator
/// is built once.
pub static FOLDER: OnceLock<PathBuf> = OnceLock::new();
/// Browsers that have WebGPU have these instructions too, and so do all others of the last years.
const FLAGS: &str = "-Ctarget-feature=+simd128";
/// The cargo profile of both modules.
const PROFILE: &str = "wasm-release";

/// One wasm module.
struct Module {
    package: &'static str,
    /// As cargo and the browser's files name it.
    name: &'static str,
    /// Under `web-dist`; empty for the folder itself.
    folder: &'static str,
    /// Files written by hand that go with it.
    by_hand: &'static str,
    /// Bytes on the wire at most.
    gzip_max: u64,
}

/// The page's first paint waits for neither; the click on Start waits for the worker.
const MODULES: [Module; 2] = [
    Module { package: "web", name: "web", folder: "", by_hand: "web/static", gzip_max: 250_000 },
    Module {
        package: "browser-worker",
        name: "browser_worker",
        folder: "worker",
        by_hand: "browser-worker/static",
        gzip_max: 500_000,
    },
];

/// Makes the folder and returns where it is.
///
/// # Errors
/// If something does not compile, or a module is larger than its budget.
pub fn build() -> Result<PathBuf> {
    let target = tidy::target_folder()?;
    // Named by the target, so that `cargo clean` takes it along.
    let wasm_target = target.join("wasm");
    compile(&wasm_target)?;
    let mut files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    for module in &MODULES {
        let bound = bind(module, &wasm_target)?;
        read_all(&bound, Path::new(module.folder), &mut files)?;
        let by_hand = crate::root().join(module.by_hand);
        read_all(&by_hand, Path::new(module.folder), &mut files)?;
    }
    let folder = target.join("web-dist");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    write_all(&folder, &files)?;
    Ok(FOLDER.get_or_init(|| folder).clone())
}

/// Checks that `wasm-pack`, which others know, builds the worker as well; says why not where it
/// is not installed.
pub fn check_wasm_pack() -> Result<Option<String>> {
    for tool in ["wasm-pack", "wasm-bindgen"] {
        if output(Command::new(tool).arg("--version")).is_err() {
            return Ok(Some(format!("{tool} is not installed, so it is not tried")));
        }
    }
    let target = tidy::target_folder()?;
    let mut command = Command::new("wasm-pack");
    command.args(["build", "browser-worker", "--target", "web", "--mode", "no-install"]);
    command.arg("--out-dir").arg(target.join("wasm-pack")).current_dir(crate::root());
    // What the modules above are built from, as far as the flags are the same.
    command.env("CARGO_TARGET_DIR", target.join("wasm")).env("RUSTFLAGS", FLAGS);
    output(&mut command)?;
    ensure!(target.join("wasm-pack/browser_worker_bg.wasm").is_file(), "it made no module");
    Ok(None)
}

fn compile(wasm_target: &Path) -> Result<()> {
    let mut command = cargo(&["build", "--locked", "--target", WASM, "--profile", PROFILE]);
    command.args(MODULES.iter().flat_map(|module| ["--package", module.package]));
    command.arg("--target-dir").arg(wasm_target);
    command.env("RUSTFLAGS", FLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS");
    let status = command.status().context("cargo cannot be run")?;
    ensure!(status.success(), "the pages do not compile");
    Ok(())
}

/// Binds a module, if it is another one than the last time; returns the folder with the result.
fn bind(module: &Module, wasm_target: &Path) -> Result<PathBuf> {
    let Module { name, .. } = module;
    let wasm = wasm_target.join(WASM).join(PROFILE).join(format!("{name}.wasm"));
    let bytes = fs::read(&wasm).with_context(|| format!("no {}", wasm.display()))?;
    let optimiser = output(Command::new("wasm-opt").arg("--version")).unwrap_or_default();
    let source = fs::read(crate::root().join("xtask/bindgen/src/main.rs"))?;
    let lock = fs::read_to_string(crate::root().join("Cargo.lock"))?;
    let binder = lock.split("[[package]]").find(|p| p.contains("\"wasm-bindgen-cli-support\""));
    let made_of = [&bytes, &optimiser, &source, binder.unwrap_or_default().as_bytes()];
    let stamp = made_of.iter().map(|part| hex(&Sha256::digest(part))).collect::<Vec<_>>().join(" ");

    let bound = wasm_target.join("bound").join(name);
    let stamp_file = wasm_target.join("bound").join(format!("{name}.stamp"));
    let known = fs::read_to_string(&stamp_file).unwrap_or_default();
    let gzip = match known.split_once('\n').filter(|(before, _)| *before == stamp) {
        Some((_, size)) => size.trim().parse().context("a stamp without a size")?,
        None => {
            let size = run_bindgen(&wasm, &bound, name)?;
            fs::write(&stamp_file, format!("{stamp}\n{size}\n"))?;
            size
        }
    };
    // The standard output is for what a command is asked for.
    eprintln!("{name}: {gzip} bytes gzipped, of at most {}", module.gzip_max);
    if gzip > module.gzip_max {
        bail!(
            "{name} is {} bytes over its budget: a visitor waits for that",
            gzip - module.gzip_max
        );
    }
    Ok(bound)
}

fn run_bindgen(wasm: &Path, bound: &Path, name: &str) -> Result<u64> {
    let mut command = cargo(&["run", "--quiet", "--locked", "--package", "bindgen", "--"]);
    let said = output(command.arg(wasm).arg(bound).arg(name))?;
    let said = String::from_utf8_lossy(&said);
    eprint!("{said}");
    let size = said.lines().rev().find_map(|line| line.strip_prefix("gzip "));
    size.and_then(|size| size.trim().parse().ok()).context("bindgen did not say the size")
}

/// Reads a folder and those in it; names are put under `to`.
fn read_all(folder: &Path, to: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("no {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            read_all(&entry.path(), &name, files)?;
        } else {
            let before = files.insert(name.clone(), fs::read(entry.path())?);
            ensure!(before.is_none(), "two files would be {}", name.display());
        }
    }
    Ok(())
}

/// Makes a folder hold exactly these files.
fn write_all(folder: &Path, files: &BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
    let mut there = BTreeMap::new();
    read_all(folder, Path::new(""), &mut there)?;
    for name in there.keys().filter(|name| !files.contains_key(*name)) {
        fs::remove_file(folder.join(name))?;
    }
    for (name, bytes) in files.iter().filter(|(name, bytes)| there.get(*name) != Some(*bytes)) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("it lies in the folder"))?;
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_to_hold_these_files_and_no_others() {
        let folder = std::env::temp_dir().join(format!("weft-xtask-web-{}", std::process::id()));
        fs::create_dir_all(folder.join("old")).expect("a folder");
        fs::write(folder.join("old/gone.js"), "x").expect("a file");
        fs::write(folder.join("same.css"), "same").expect("a file");
        let modified = |name: &str| {
            let about = fs::metadata(folder.join(name)).expect("it is there");
            about.modified().expect("a time")
        };
        let before = modified("same.css");
        let mut files = BTreeMap::new();
        files.insert(PathBuf::from("same.css"), b"same".to_vec());
        files.insert(PathBuf::from("worker/new.js"), b"new".to_vec());
        write_all(&folder, &files).expect("it can be written");
        let mut there = BTreeMap::new();
        read_all(&folder, Path::new(""), &mut there).expect("it can be read");
        assert_eq!(there, files);
        assert_eq!(modified("same.css"), before, "what is the same is not written");
        fs::remove_dir_all(&folder).expect("it is ours");
    }
}
