//! A model made ready to be served.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use model::{KvType, Manifest, check_supported};
use protocol::BlobRef;
use scheduler::{ModelSpec, PartSpec};
use text::{ChatTemplate, Tokenizer, TokenizerData};

use super::convert::{Conversion, convert};
use super::tokenizer_data::tokenizer_data;
use super::{GgufFiles, Home, StoreError};

/// The class that everything computes in by default.
pub const CANONICAL_1: &str = "canonical-1";
/// The class of `--exact`.
pub const EXACT_F32: &str = "exact-f32";

/// A model as the API and the scheduler need it.
#[derive(Clone, Debug)]
pub struct ServedModel {
    /// Its name in requests.
    pub name: String,
    /// For the scheduler.
    pub spec: ModelSpec,
    /// Tokenizer and chat template.
    pub tokenizer: TokenizerData,
    /// Its first file.
    pub path: PathBuf,
    /// When that file was last changed, seconds since 1970.
    pub created_s: u64,
    /// Bytes of its files.
    pub file_bytes: u64,
    /// Whether its blobs were there already.
    pub reused: bool,
}

/// Checks a model, then converts it unless that was done before.
///
/// # Errors
/// [`StoreError::Gguf`] and [`StoreError::Unsupported`], before anything is loaded or
/// written; [`StoreError::DiskFull`] and [`StoreError::Io`].
pub fn prepare(
    home: &Home,
    path: &Path,
    name: &str,
    class: &str,
) -> Result<ServedModel, StoreError> {
    let files = GgufFiles::open(path)?;
    let gguf = files.parse()?;
    let unsupported = |problem: String| StoreError::Unsupported { path: files.first(), problem };
    check_supported(&gguf).map_err(|error| unsupported(error.to_string()))?;
    let tokenizer = tokenizer_data(&gguf).map_err(unsupported)?;
    Tokenizer::new(&tokenizer).map_err(|error| unsupported(error.to_string()))?;
    ChatTemplate::new(&tokenizer).map_err(|error| unsupported(error.to_string()))?;
    drop(gguf);
    let Conversion { manifest, manifest_blob, reused } = convert(home, &files, name)?;
    let changed = std::fs::metadata(files.first()).and_then(|metadata| metadata.modified());
    let created_s = changed
        .ok()
        .and_then(|at: SystemTime| at.duration_since(UNIX_EPOCH).ok())
        .map_or(0, |since| since.as_secs());
    Ok(ServedModel {
        name: name.to_owned(),
        spec: model_spec(&manifest, manifest_blob, class),
        tokenizer,
        path: files.first(),
        created_s,
        file_bytes: files.bytes(),
        reused,
    })
}

fn model_spec(manifest: &Manifest, manifest_blob: BlobRef, class: &str) -> ModelSpec {
    let parts = (0u32..).zip(&manifest.parts).map(|(index, part)| PartSpec {
        blobs: part
            .blobs
            .iter()
            .map(|blob| BlobRef { hash: blob.hash.clone(), bytes: blob.bytes })
            .collect(),
        work_bytes: if index == 0 { 0 } else { manifest.part_bytes(index) },
    });
    let kv = if class == EXACT_F32 { KvType::F32 } else { KvType::F16 };
    ModelSpec {
        name: manifest.name.clone(),
        manifest: manifest_blob,
        class: class.to_owned(),
        parts: parts.collect(),
        d_model: manifest.dims.d_model,
        vocab: manifest.dims.vocab,
        context: manifest.dims.context,
        kv_bytes_per_position: manifest.kv_bytes_per_position(kv),
    }
}
