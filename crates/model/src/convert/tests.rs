//! Whole synthetic models through the conversion.

use super::*;
use crate::MemoryBlobs;
use crate::dequant::{Matrix, gguf_row};
use crate::gguf::GgmlType;
use crate::manifest::Dims;
use crate::testing::{Entry, GgufWriter, TinyModel};

fn converted(file: &[u8]) -> (Manifest, MemoryBlobs) {
    let mut blobs = MemoryBlobs::default();
    let gguf = Gguf::parse(&[file]).expect("it parses");
    let manifest = convert(&gguf, "tiny", &mut blobs).expect("it converts");
    (manifest, blobs)
}

/// Every weight of every tensor is, to the bit, the file's.
fn check_weights(model: &TinyModel) {
    let file = model.to_bytes();
    let gguf = Gguf::parse(&[&file]).expect("it parses");
    let (manifest, blobs) = converted(&file);
    let mut compared = 0;
    for (index, part) in manifest.parts.iter().enumerate() {
        for blob in &part.blobs {
            let bytes = &blobs.by_hash[&blob.hash];
            assert_eq!(bytes.len() as u64, blob.bytes);
            assert_eq!(blake3::hash(bytes).to_hex().as_str(), blob.hash);
            for tensor in &blob.tensors {
                assert!(tensor.offset.is_multiple_of(TENSOR_ALIGN as u64));
                let name = tensor.role.gguf_name(index.saturating_sub(1) as u32);
                let source = gguf.tensor(&name).expect("the file has it");
                let matrix = Matrix::of_tensor(tensor, bytes).expect("the blob holds it");
                let mut ours = vec![0.0; matrix.cols()];
                let mut theirs = ours.clone();
                let row_bytes = source.data().len() / matrix.rows();
                for (row, data) in source.data().chunks_exact(row_bytes).enumerate() {
                    matrix.dequant_row(row, &mut ours);
                    gguf_row(source.ggml_type, data, &mut theirs);
                    assert!(ours == theirs, "{name}, row {row}");
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 500, "{compared} rows");
}

#[test]
fn every_type_keeps_its_weights() {
    let wide =
        Dims { d_model: 256, d_ff: 256, heads: 16, kv_heads: 16, ..TinyModel::llama(0).dims };
    for (seed, matrix_type) in [
        |_, _| GgmlType::F32,
        |_, _| GgmlType::F16,
        |_, _| GgmlType::Q4_0,
        |_, _| GgmlType::Q4_1,
        |_, _| GgmlType::Q5_0,
        |_, _| GgmlType::Q8_0,
        |_, _| GgmlType::Q4K,
        |_, _| GgmlType::Q6K,
    ]
    .into_iter()
    .enumerate()
    {
        let seed = seed as u64;
        check_weights(&TinyModel { dims: wide, matrix_type, ..TinyModel::llama(seed) });
        check_weights(&TinyModel { dims: wide, matrix_type, ..TinyModel::qwen2(seed) });
    }
}

#[test]
fn odd_shapes_and_mixed_types_keep_their_weights() {
    let dims = Dims {
        layers: 2,
        d_model: 96,
        heads: 6,
        kv_heads: 3,
        head_dim: 32,
        d_ff: 160,
        vocab: 301,
        context: 64,
    };
    let matrix_type = |role, layer| match (role, layer) {
        (Role::TokenEmbedding, _) => GgmlType::Q8_0,
        (Role::FfnDown, 0) => GgmlType::Q5_0,
        (Role::AttnK, _) => GgmlType::F16,
        (_, 1) => GgmlType::Q4_1,
        _ => GgmlType::Q4_0,
    };
    check_weights(&TinyModel { dims, matrix_type, ..TinyModel::qwen2(7) });
}

#[test]
fn a_tied_head_shares_the_embeddings_blob() {
    let (manifest, blobs) = converted(&TinyModel::llama(3).to_bytes());
    assert!(manifest.tied());
    assert_eq!(manifest.parts[4].blobs[1], manifest.parts[0].blobs[0]);
    assert_eq!(blobs.by_hash.len(), 1 + 3 + 1);
    let embedding = manifest.part_bytes(0);
    let norm = 64 * 4;
    assert_eq!(manifest.part_bytes(4), norm + embedding);
    assert_eq!(manifest.span_bytes(0..5), 3 * manifest.part_bytes(1) + embedding + norm);
    assert_eq!(manifest.blobs_of(0..5).len(), 5);
    let (blob, tensor) = manifest.tensor(4, Role::Output).expect("the head");
    assert_eq!((blob, tensor.role), (&manifest.parts[0].blobs[0], Role::TokenEmbedding));
    assert_eq!(manifest.tensor(0, Role::Output), None);

    let (manifest, blobs) = converted(&TinyModel::qwen2(3).to_bytes());
    assert!(!manifest.tied());
    assert_eq!(blobs.by_hash.len(), 1 + 3 + 2);
    let (_, tensor) = manifest.tensor(4, Role::Output).expect("the head");
    assert_eq!((tensor.role, tensor.offset), (Role::Output, 0));
}

#[test]
fn the_same_model_gives_the_same_blobs() {
    let model = TinyModel::llama(5);
    let (manifest, _) = converted(&model.to_bytes());
    assert_eq!(converted(&model.to_bytes()).0, manifest);
    // Neither the tensors' order in the file nor its parts matter.
    let mut file = model.writer();
    file.tensors.reverse();
    assert_eq!(converted(&file.to_bytes()).0, manifest);
    let parts: Vec<_> = file.split(4).iter().map(GgufWriter::to_bytes).collect();
    let parts: Vec<_> = parts.iter().map(Vec::as_slice).collect();
    let gguf = Gguf::parse(&parts).expect("it parses");
    assert_eq!(convert(&gguf, "tiny", &mut crate::blobs::NoBlobs).expect("it converts"), manifest);
    // Another weight is another layer's blob, and no other.
    file.tensor_mut("blk.1.ffn_down.weight").data[7] ^= 1;
    let (changed, _) = converted(&file.to_bytes());
    let differ: Vec<_> = (0..5).filter(|i| changed.parts[*i] != manifest.parts[*i]).collect();
    assert_eq!(differ, [2]);
}

#[test]
fn f16_norms_are_widened() {
    let mut file = TinyModel::llama(5).writer();
    let norm = file.tensor_mut("output_norm.weight");
    norm.ggml_type = GgmlType::F16;
    norm.data = [0x00, 0x3c, 0x00, 0xb8].repeat(32); // 1, -0.5
    let (manifest, blobs) = converted(&file.to_bytes());
    let (blob, tensor) = manifest.tensor(4, Role::OutputNorm).expect("the norm");
    let matrix = Matrix::of_tensor(tensor, &blobs.by_hash[&blob.hash]).expect("the blob holds it");
    let mut row = vec![0.0; 64];
    matrix.dequant_row(0, &mut row);
    assert_eq!(row, [1.0, -0.5].repeat(32));
}

#[test]
fn nothing_is_written_of_what_is_refused() {
    struct Refuses;
    impl BlobSink for Refuses {
        fn begin(&mut self, _: u64) -> io::Result<()> {
            Err(io::Error::other("the disk is full"))
        }
        fn write(&mut self, _: &[u8]) -> io::Result<()> {
            unreachable!("begin failed")
        }
        fn finish(&mut self, _: &Blob) -> io::Result<()> {
            unreachable!("begin failed")
        }
    }
    let mut file = TinyModel::llama(5).writer();
    let convert = |file: &GgufWriter, name: &str| {
        let bytes = file.to_bytes();
        let gguf = Gguf::parse(&[&bytes]).expect("it parses");
        super::convert(&gguf, name, &mut Refuses).expect_err("it fails").to_string()
    };
    assert!(convert(&file, "tiny").contains("the disk is full"));
    assert!(convert(&file, "").contains("empty"));
    assert!(convert(&file, &"x".repeat(129)).contains("128"));
    assert!(convert(&file, "a\nb").contains("control"));
    file.set("llama.expert_count", Entry::U32(4));
    assert!(convert(&file, "tiny").contains("experts"));
}
