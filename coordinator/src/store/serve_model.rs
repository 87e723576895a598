//! A model made ready to be served.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use model::{KvType, Manifest, check_supported};
use protocol::BlobRef;
use scheduler::{ClassSpec, ModelSpec, PartSpec};
use text::{ChatTemplate, Tokenizer, TokenizerData};

use super::convert::{Conversion, convert};
use super::tokenizer_data::tokenizer_data;
use super::{GgufFiles, Home, StoreError};

/// 8-bit activations and f16 KV on CPUs and WASM: the same bits everywhere.
pub const CANONICAL_1: &str = "canonical-1";
/// f32 on CPUs and WASM: the same bits everywhere.
pub const EXACT_F32: &str = "exact-f32";
/// f32 with f16 KV on GPUs: within a tolerance of `exact-f32`, not the same bits.
pub const WGSL_F32: &str = "wgsl-f32";
/// The classes that there are.
pub const CLASSES: [&str; 3] = [CANONICAL_1, WGSL_F32, EXACT_F32];

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

/// Checks a model, then converts it unless that was done before. Its workers compute in one
/// of `classes` (at least one), the first ones preferred.
///
/// # Errors
/// [`StoreError::Gguf`] and [`StoreError::Unsupported`], before anything is loaded or
/// written; [`StoreError::DiskFull`] and [`StoreError::Io`].
pub fn prepare(
    home: &Home,
    path: &Path,
    name: &str,
    classes: &[String],
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
        spec: model_spec(&manifest, manifest_blob, classes),
        tokenizer,
        path: files.first(),
        created_s,
        file_bytes: files.bytes(),
        reused,
    })
}

fn model_spec(manifest: &Manifest, manifest_blob: BlobRef, classes: &[String]) -> ModelSpec {
    let parts = (0u32..).zip(&manifest.parts).map(|(index, part)| PartSpec {
        blobs: part
            .blobs
            .iter()
            .map(|blob| BlobRef { hash: blob.hash.clone(), bytes: blob.bytes })
            .collect(),
        work_bytes: if index == 0 { 0 } else { manifest.part_bytes(index) },
    });
    let class = |name: &String| {
        let kv = if name == EXACT_F32 { KvType::F32 } else { KvType::F16 };
        ClassSpec { name: name.clone(), kv_bytes_per_position: manifest.kv_bytes_per_position(kv) }
    };
    ModelSpec {
        name: manifest.name.clone(),
        manifest: manifest_blob,
        classes: classes.iter().map(class).collect(),
        parts: parts.collect(),
        d_model: manifest.dims.d_model,
        vocab: manifest.dims.vocab,
        context: manifest.dims.context,
    }
}
