//! SHA-256 of files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::PullError;
use crate::store::StoreError;

/// Bytes read at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// Checks that a file has that SHA-256 (lower-case hex).
///
/// # Errors
/// [`PullError::WrongHash`], or it cannot be read.
pub(super) async fn verify(path: &Path, expected: &str) -> Result<(), PullError> {
    let what = path.to_owned();
    let got = tokio::task::spawn_blocking(move || sha256(&what)).await;
    let got = got.expect("hashing does not panic")?;
    if got == expected {
        return Ok(());
    }
    let what = path.display().to_string();
    Err(PullError::WrongHash { what, expected: expected.to_owned(), got })
}

fn sha256(path: &Path) -> Result<String, StoreError> {
    let mut file = File::open(path).map_err(StoreError::io("cannot open", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer).map_err(StoreError::io("cannot read", path))? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
