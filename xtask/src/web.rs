//! `cargo xtask web`: the pages and the worker that runs in them, for the coordinator to embed.
//!
//! Both are compiled to wasm in target folders of their own, so that they wait for no other
//! build and no other build for them; `bindgen` makes of each what a browser can load; with
//! the files that are written by hand that is the folder `web-dist`:
//!
//! ```text
//! web-dist/index.html, start.js, style.css, ...              web/static
//! web-dist/web.js, web_bg.wasm                               web
//! web-dist/worker/worker.js, ...                             browser-worker/static
//! web-dist/worker/simd128/browser_worker.js, ..._bg.wasm     browser-worker
//! web-dist/worker/relaxed/browser_worker.js, ..._bg.wasm     the same with relaxed SIMD
//! ```
//!
//! `worker.js` takes the module that the browser at hand can run.
//!
//! Nothing is done again whose source has not changed, and no file is written that is the same
//! already: what depends on the folder is then not built again either.

mod wasm_pack;

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
/// The cargo profile of all modules.
const PROFILE: &str = "wasm-release";

/// What modules may use of WASM. Each set of flags has a target folder of its own: with others
/// cargo builds everything again.
struct Flags {
    /// Of the folders.
    name: &'static str,
    features: &'static str,
}

/// Browsers that have WebGPU have these instructions too, and so do all others of the last years.
const SIMD128: Flags = Flags { name: "wasm", features: "+simd128" };
/// A module with one of these is refused by a browser that lacks them.
const RELAXED: Flags = Flags { name: "wasm-relaxed", features: "+simd128,+relaxed-simd" };

impl Flags {
    /// Named by the target folder, so that `cargo clean` takes it along.
    fn target(&self, target: &Path) -> PathBuf {
        target.join(self.name)
    }

    /// For rustc. Where this machine keeps things is not for everyone who opens the page.
    fn apply(&self, command: &mut Command, target: &Path) {
        let mut flags = vec![format!("-Ctarget-feature={}", self.features)];
        for (path, name) in [(target, "target"), (&crate::root(), "weft"), (&cargo_home(), "cargo")]
        {
            flags.push(format!("--remap-path-prefix={}=/{name}", path.display()));
        }
        // Paths may have spaces.
        command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")).env_remove("RUSTFLAGS");
    }
}

/// Where cargo keeps the sources of dependencies.
fn cargo_home() -> PathBuf {
    let home = || std::env::home_dir().unwrap_or_default().join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

/// One wasm module.
struct Module {
    package: &'static str,
    /// As cargo and the browser's files name it.
    name: &'static str,
    flags: &'static Flags,
    /// Under `web-dist`; empty for the folder itself.
    folder: &'static str,
    /// Bytes on the wire at most.
    gzip_max: u64,
}

/// A visitor waits for it after the click on Start.
const WORKER_GZIP_MAX: u64 = 500_000;

/// The page's first paint waits for none; a browser loads one of the workers.
const MODULES: [Module; 3] = [
    Module { package: "web", name: "web", flags: &SIMD128, folder: "", gzip_max: 250_000 },
    Module {
        package: "browser-worker",
        name: "browser_worker",
        flags: &SIMD128,
        folder: "worker/simd128",
        gzip_max: WORKER_GZIP_MAX,
    },
    Module {
        package: "browser-worker",
        name: "browser_worker",
        flags: &RELAXED,
        folder: "worker/relaxed",
        gzip_max: WORKER_GZIP_MAX,
    },
];
/// Files written by hand, and their folders under `web-dist`.
const BY_HAND: [(&str, &str); 2] = [("web/static", ""), ("browser-worker/static", "worker")];

/// Makes the folder and returns where it is.
///
/// # Errors
/// If something does not compile, or a module is larger than its budget.
pub fn build() -> Result<PathBuf> {
    let target = tidy::target_folder()?;
    for flags in [&SIMD128, &RELAXED] {
        compile(flags, &target)?;
    }
    let mut files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    for module in &MODULES {
        let bound = bind(module, &module.flags.target(&target))?;
        read_all(&bound, Path::new(module.folder), &mut files)?;
    }
    for (by_hand, folder) in BY_HAND {
        read_all(&crate::root().join(by_hand), Path::new(folder), &mut files)?;
    }
    let folder = target.join("web-dist");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    write_all(&folder, &files)?;
    Ok(FOLDER.get_or_init(|| folder).clone())
}

/// Checks that `wasm-pack`, which others know, builds the worker as well; says why not where it
/// is not installed. With `CI=true` in the environment it is installed first.
pub fn check_wasm_pack() -> Result<Option<String>> {
    let target = tidy::target_folder()?;
    let tools = match wasm_pack::find_or_install(&target)? {
        Ok(tools) => tools,
        Err(why) => return Ok(Some(why)),
    };
    let mut command = Command::new(tools.program);
    command.args(["build", "browser-worker", "--target", "web", "--mode", "no-install"]);
    command.args(["--profile", PROFILE, "--out-dir"]).arg(target.join("wasm-pack"));
    command.current_dir(crate::root()).env("PATH", tools.path);
    // What the modules above are built from, as far as features are the same.
    command.env("CARGO_TARGET_DIR", SIMD128.target(&target));
    SIMD128.apply(&mut command, &target);
    output(&mut command).context("wasm-pack does not build the worker")?;
    let module = target.join("wasm-pack/browser_worker_bg.wasm");
    ensure!(module.is_file(), "wasm-pack made no {}", module.display());
    Ok(None)
}

fn compile(flags: &Flags, target: &Path) -> Result<()> {
    let mut command = cargo(&["build", "--locked", "--target", WASM, "--profile", PROFILE]);
    let modules = MODULES.iter().filter(|module| module.flags.name == flags.name);
    command.args(modules.flat_map(|module| ["--package", module.package]));
    command.arg("--target-dir").arg(flags.target(target));
    flags.apply(&mut command, target);
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
    let folder = if module.folder.is_empty() { "." } else { module.folder };
    eprintln!("{folder}/{name}: {gzip} bytes gzipped, of at most {}", module.gzip_max);
    if gzip > module.gzip_max {
        bail!(
            "{folder}/{name} is {} bytes over its budget: a visitor waits for that",
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
