//! A model made ready to be served.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use model::tensor::{Division, TensorForm};
use model::{KvType, Manifest, check_supported};
use protocol::BlobRef;
use scheduler::{ClassSpec, DivisionSpec, ModelSpec, PartSpec, RankSpec};
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

/// How layers may be divided among 2 or 4 workers, by rank.
const DIVISIONS: [&[u32]; 8] = [
    &[1, 1],
    &[3, 2],
    &[2, 1],
    &[3, 1],
    &[1, 1, 1, 1],
    &[2, 1, 1, 1],
    &[2, 2, 1, 1],
    &[3, 2, 2, 1],
];

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
        divisions: divisions(manifest, classes),
    }
}

/// The ways in which its layers are divided among workers: equally, and for workers whose
/// speeds differ.
fn divisions(manifest: &Manifest, classes: &[String]) -> Vec<DivisionSpec> {
    let form = TensorForm::Rows;
    let on_cpus = [CANONICAL_1, EXACT_F32];
    let classes: Vec<String> =
        classes.iter().filter(|name| on_cpus.contains(&name.as_str())).cloned().collect();
    let layers = 1..manifest.dims.layers + 1;
    let (weights, kv) = (manifest.span_bytes(layers.clone()), KvType::F16);
    let of = |shares: &&[u32]| {
        // A model that cannot be divided so is served without.
        let division = Division::of(manifest, form, shares).ok()?;
        let rank = |rank: usize| RankSpec {
            weights: division.weight_bytes(manifest, layers.clone(), rank) as f64 / weights as f64,
            kv: division.kv_bytes_per_position(manifest, kv, rank) as f64
                / manifest.kv_bytes_per_position(kv) as f64,
        };
        Some(DivisionSpec {
            form: form.name().to_owned(),
            weights: shares.to_vec(),
            ranks: (0..shares.len()).map(rank).collect(),
            exchanges: form.exchanges(),
            classes: classes.clone(),
        })
    };
    DIVISIONS.iter().filter_map(of).filter(|_| !classes.is_empty()).collect()
}
