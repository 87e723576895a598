//! Embeds the built pages, so that the binary alone is enough.
//!
//! `cargo xtask` builds them into a folder and names it in `WEFT_WEB_DIST`; without that
//! variable `target/web-dist` of the workspace is taken if it is there. Otherwise the list is
//! empty, and the coordinator says so.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

/// Files that the pages may consist of.
const FILES_MAX: usize = 64;
/// Their bytes altogether.
const BYTES_MAX: usize = 16 << 20;
/// A compressed file is kept if it is smaller than this share of the file.
const GZIP_SHARE_MAX: f64 = 0.9;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=WEFT_WEB_DIST");
    let out = PathBuf::from(variable("OUT_DIR"));
    let folder = dist();
    let files = folder.as_deref().map(files).unwrap_or_default();
    let mut list = String::from("&[\n");
    for (number, (path, bytes)) in files.iter().enumerate() {
        let plain = keep(&out.join(format!("page-{number}")), bytes);
        let gzip = gzip(bytes).map(|gzip| keep(&out.join(format!("page-{number}.gz")), &gzip));
        let gzip = gzip.map_or("None".to_owned(), |gzip| format!("Some({gzip})"));
        writeln!(list, "Asset {{ path: {path:?}, plain: {plain}, gzip: {gzip} }},").unwrap();
    }
    list.push(']');
    fs::write(out.join("pages.rs"), list).expect("OUT_DIR can be written");
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

/// The folder with the built pages, if there is one.
fn dist() -> Option<PathBuf> {
    let index = |folder: &Path| folder.join("index.html").is_file();
    if let Some(folder) = std::env::var_os("WEFT_WEB_DIST").filter(|name| !name.is_empty()) {
        let folder = PathBuf::from(folder);
        assert!(index(&folder), "WEFT_WEB_DIST={}: no index.html there", folder.display());
        return Some(folder);
    }
    let folder = Path::new(&variable("CARGO_MANIFEST_DIR")).join("../target/web-dist");
    index(&folder).then_some(folder)
}

/// Every file below `folder`: its path as in a URL, and its bytes.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    // Also tells when a file is added: a folder's time changes with its entries.
    println!("cargo:rerun-if-changed={}", folder.display());
    let mut files = Vec::new();
    let mut folders = vec![(folder.to_owned(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of pages") {
            let path = entry.expect("an entry of it").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            assert!(!name.is_empty() && name.chars().all(plain), "{}: an odd name", path.display());
            let url = format!("{prefix}{name}");
            if path.is_dir() {
                folders.push((path, format!("{url}/")));
            } else {
                println!("cargo:rerun-if-changed={}", path.display());
                files.push((url, fs::read(&path).expect("a page's file")));
            }
        }
    }
    files.sort();
    let bytes: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(files.len() <= FILES_MAX, "{} files of pages, at most {FILES_MAX}", files.len());
    assert!(bytes <= BYTES_MAX, "pages of {bytes} bytes, at most {BYTES_MAX}");
    files
}

/// The bytes compressed, where that helps.
fn gzip(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("memory can be written");
    let gzip = encoder.finish().expect("memory can be written");
    ((gzip.len() as f64) < bytes.len() as f64 * GZIP_SHARE_MAX).then_some(gzip)
}

/// Writes a file for the compiler; the expression that includes it.
fn keep(path: &Path, bytes: &[u8]) -> String {
    fs::write(path, bytes).expect("OUT_DIR can be written");
    format!("include_bytes!({:?})", path.to_str().expect("OUT_DIR is text"))
}
