//! GGUF files, one or several parts, through parsing, checking and conversion.

use std::hint::black_box;

use model::blobs::NoBlobs;
use model::gguf::GgmlType;
use model::manifest::{Dims, Role};
use model::testing::{Entry, GgufWriter, TinyModel};
use model::{Gguf, Manifest, check_supported, convert};

use super::Target;
use crate::mutate::{Form, Seed};

pub struct GgufTarget;

/// Descriptions and maps of them, per byte of a file that is all tiny descriptions.
const HEAP_BYTES_PER_INPUT_BYTE: usize = 32;
/// The repacking's buffer, the manifest's text, and the names of all tensors of the
/// deepest model that we allow, which a file of any length may claim to be.
const HEAP_BYTES_BASE: usize = 2 << 20;

impl Target for GgufTarget {
    fn name(&self) -> &'static str {
        "gguf"
    }

    fn corpus(&self) -> Vec<Seed> {
        let one_file = |file: GgufWriter| Seed {
            head_bytes: file.head_bytes().len(),
            pieces: vec![file.to_bytes()],
            form: Form::Binary,
        };
        let mut seeds = vec![
            one_file(mixed(TinyModel::llama(1)).writer()),
            one_file(mixed(TinyModel::qwen2(2)).writer()),
            one_file(super_blocks().writer()),
            one_file(every_metadata_type()),
            one_file(TinyModel { tokenizer: true, ..with_dims(TinyModel::llama(5), 259) }.writer()),
        ];
        let parts = mixed(TinyModel::llama(6)).writer().split(3);
        seeds.push(Seed {
            head_bytes: parts[1].head_bytes().len(),
            pieces: parts.iter().map(GgufWriter::to_bytes).collect(),
            form: Form::Binary,
        });
        seeds
    }

    fn accepted(&self) -> &'static str {
        "converted"
    }

    fn feed(&self, input: &[Vec<u8>]) -> &'static str {
        let files: Vec<&[u8]> = input.iter().map(Vec::as_slice).collect();
        let gguf = match Gguf::parse(&files) {
            Ok(gguf) => gguf,
            Err(error) => {
                black_box(error.to_string());
                return "refused by the parser";
            }
        };
        read_all(&gguf);
        let config = match check_supported(&gguf) {
            Ok(config) => config,
            Err(error) => {
                black_box(error.to_string());
                return "refused as not supported";
            }
        };
        let manifest = convert(&gguf, "fuzz", &mut NoBlobs).expect("it was supported");
        assert_eq!(manifest.dims, config.dims);
        let read = Manifest::from_bytes(&manifest.to_bytes()).expect("what we wrote is valid");
        assert_eq!(read, manifest);
        "converted"
    }

    fn heap_bytes_max(&self, input_bytes: usize) -> usize {
        HEAP_BYTES_BASE + HEAP_BYTES_PER_INPUT_BYTE * input_bytes
    }
}

/// Reads all that the parser promised can be read.
fn read_all(gguf: &Gguf<'_>) {
    for (key, value) in gguf.metadata() {
        black_box((gguf.get_u32(key), gguf.get_f32(key), gguf.get_bool(key), gguf.get_str(key)));
        if let Some(array) = value.as_array() {
            let strings = array.strings().map_or(array.len(), Iterator::count);
            assert_eq!(strings, array.len(), "strings of {key:?}");
            black_box(array.f32s().map(Iterator::last));
            black_box(array.i32s().map(Iterator::last));
        }
    }
    for (_, tensor) in gguf.tensors() {
        if let Some((elements, bytes)) = tensor.ggml_type.block() {
            let blocks = tensor.dims().iter().product::<u64>() / elements as u64;
            assert_eq!(tensor.data().len() as u64, blocks * bytes as u64);
            black_box(tensor.data().iter().fold(0u8, |a, b| a ^ b));
        }
    }
}

fn with_dims(model: TinyModel, vocab: u32) -> TinyModel {
    let dims = Dims {
        layers: 2,
        d_model: 32,
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        d_ff: 32,
        vocab,
        context: 64,
    };
    TinyModel { dims, tokenizer: false, ..model }
}

/// All types with blocks of 32 or less.
fn mixed(model: TinyModel) -> TinyModel {
    let matrix_type = |role, layer| match (role, layer) {
        (Role::AttnQ, _) => GgmlType::Q4_0,
        (Role::AttnK, _) => GgmlType::F16,
        (Role::AttnV, _) => GgmlType::F32,
        (Role::FfnDown, _) => GgmlType::Q5_0,
        (_, 0) => GgmlType::Q4_1,
        _ => GgmlType::Q8_0,
    };
    TinyModel { matrix_type, ..with_dims(model, 20) }
}

/// Types with blocks of 256, as few of them as a model can have.
fn super_blocks() -> TinyModel {
    let matrix_type = |role, _| match role {
        Role::AttnOutput | Role::FfnDown => GgmlType::F16,
        Role::AttnV | Role::TokenEmbedding => GgmlType::Q6K,
        _ => GgmlType::Q4K,
    };
    let dims = Dims {
        layers: 1,
        d_model: 256,
        heads: 1,
        kv_heads: 1,
        head_dim: 8,
        d_ff: 8,
        vocab: 17,
        context: 64,
    };
    TinyModel { dims, matrix_type, ..with_dims(TinyModel::llama(3), 17) }
}

/// Version 2, another alignment, scaled RoPE, and a value of every type.
fn every_metadata_type() -> GgufWriter {
    let mut file = mixed(TinyModel::llama(4)).writer();
    file.version = 2;
    file.alignment = 64;
    file.set("general.alignment", Entry::U32(64))
        .set("llama.rope.scaling.type", Entry::Str("linear".to_owned()))
        .set("llama.rope.scaling.factor", Entry::F64(2.0))
        .set("a", Entry::U8(1))
        .set("b", Entry::Raw(1, vec![0xff]))
        .set("c", Entry::U16(2))
        .set("d", Entry::Raw(3, vec![0xff, 0xff]))
        .set("e", Entry::I64(-1))
        .set("f", Entry::U64(u64::MAX))
        .set("g", Entry::Bool(true))
        .set("h", Entry::F32s(vec![1.0, -1.0]))
        .set("i", Entry::I32s(vec![1, -1, 5]))
        .set("j", Entry::Bools(vec![true, false]))
        .set("k", Entry::Strs(vec!["ab".to_owned(), String::new(), "c".to_owned()]))
        .set("l", Entry::Strs(Vec::new()));
    let factors = [1.0f32, 1.0, 1.5, 2.0, 4.0, 4.0, 4.0, 4.0];
    let data = factors.iter().flat_map(|f| f.to_le_bytes()).collect();
    file.tensor("rope_freqs.weight", &[8], GgmlType::F32, data);
    file
}
