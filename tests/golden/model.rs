//! Real files: they parse, convert to the same blobs every time, and hold what llama.cpp
//! and an independent implementation of NUMERICS.md read from them.

use std::path::PathBuf;

use model::convert::BlobSink;
use model::dequant::{Matrix, gguf_row};
use model::gguf::GgmlType;
use model::manifest::{Architecture, Blob, Dims, Role, RopePairs};
use model::{Gguf, Layout, Manifest, check_supported, convert};

/// A model's bytes; `None` and a printed line where an optional one is missing.
fn read_model(file: &str, optional: bool) -> Option<Vec<u8>> {
    let folder = std::env::var_os("WEFT_TEST_MODELS").map(PathBuf::from);
    let path = folder.map(|folder| folder.join(file));
    match path.as_ref().map(std::fs::read) {
        Some(Ok(bytes)) => Some(bytes),
        _ if optional => {
            println!("SKIPPED: {file} is not in the folder that WEFT_TEST_MODELS names");
            None
        }
        other => panic!(
            "{file} cannot be read ({}): run `cargo xtask test`, which fetches it and sets \
             WEFT_TEST_MODELS",
            match other {
                Some(Err(error)) => error.to_string(),
                _ => "WEFT_TEST_MODELS is not set".to_owned(),
            }
        ),
    }
}

/// One row of one tensor, as gguf-py 0.19's `GGUFReader` and `dequantize` read it: FNV-1a 64
/// over the little-endian f32s, and the first three of them as bits.
struct Spot {
    tensor: &'static str,
    row: usize,
    hash: u64,
    first: [u32; 3],
}

const fn spot(tensor: &'static str, row: usize, hash: u64, first: [u32; 3]) -> Spot {
    Spot { tensor, row, hash, first }
}

const SMOLLM2: [Spot; 4] = [
    spot("token_embd.weight", 49150, 0xc041112ded28fbe5, [0x3d278000, 0xbd7b4000, 0x3cc90000]),
    spot("blk.0.attn_q.weight", 574, 0xc44f9257d942a7af, [0x3dc94000, 0xbe1a4000, 0xbeacb400]),
    spot("blk.29.ffn_down.weight", 574, 0x0710fb0d8a3dd3c7, [0x3dc42000, 0xbe346000, 0xbd24a000]),
    spot("output_norm.weight", 0, 0xea814bed6299e304, [0x3fe10000, 0x3fe90000, 0x3fe40000]),
];

/// Q8_0, Q5_0, F32, Q6_K, Q4_K.
const QWEN2: [Spot; 5] = [
    spot("output.weight", 151_934, 0x70d4d292808f350e, [0x3c9f5400, 0x3c147700, 0xbcb6dd80]),
    spot("token_embd.weight", 151_934, 0x7dcd8d1b3d3340c1, [0x3c9e2000, 0x3c0fc000, 0xbcbae000]),
    spot("blk.0.attn_norm.weight", 0, 0xf6c6223d4216aa94, [0xbd83a000, 0x3da00000, 0xbd816000]),
    spot("blk.0.ffn_down.weight", 894, 0x47ad0d1754892a05, [0xbc943800, 0x3bcbcd00, 0xbb943800]),
    spot("blk.11.ffn_down.weight", 894, 0x9040efc56678363a, [0x39a06000, 0xbc3a3d00, 0xbbb53a00]),
];

fn fnv1a(row: &[f32]) -> u64 {
    row.iter().flat_map(|x| x.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Checks each blob as it comes, without keeping it: its length, its hash, and that every
/// tensor's first, middle and last rows are those of the file.
struct Check<'g> {
    gguf: &'g Gguf<'g>,
    open: Vec<u8>,
    blobs: usize,
    rows_compared: usize,
    spots: &'g [Spot],
    spots_seen: usize,
}

impl BlobSink for Check<'_> {
    fn begin(&mut self, bytes: u64) -> std::io::Result<()> {
        self.open = Vec::with_capacity(bytes as usize);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.open.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(&mut self, blob: &Blob) -> std::io::Result<()> {
        assert_eq!(self.open.len() as u64, blob.bytes);
        assert_eq!(blake3::hash(&self.open).to_hex().as_str(), blob.hash);
        // Blob 0 is the embedding, then come the layers.
        let layer = self.blobs.saturating_sub(1) as u32;
        for tensor in &blob.tensors {
            let name = tensor.role.gguf_name(layer);
            let source = self.gguf.tensor(&name).expect("the file has it");
            let matrix = Matrix::of_tensor(tensor, &self.open).expect("the blob holds it");
            for spot in self.spots.iter().filter(|spot| spot.tensor == name) {
                let mut row = vec![0.0; tensor.cols as usize];
                matrix.dequant_row(spot.row, &mut row);
                assert_eq!([row[0], row[1], row[2]].map(f32::to_bits), spot.first, "{name}");
                assert_eq!(fnv1a(&row), spot.hash, "{name}, row {}", spot.row);
                self.spots_seen += 1;
            }
            let row_bytes = source.data().len() / tensor.rows as usize;
            let mut ours = vec![0.0; tensor.cols as usize];
            let mut theirs = ours.clone();
            for row in [0, tensor.rows as usize / 2, tensor.rows as usize - 1] {
                matrix.dequant_row(row, &mut ours);
                gguf_row(
                    source.ggml_type,
                    &source.data()[row * row_bytes..][..row_bytes],
                    &mut theirs,
                );
                assert!(ours == theirs, "{name}, row {row}");
                self.rows_compared += 1;
            }
        }
        self.blobs += 1;
        Ok(())
    }
}

fn check_conversion(gguf: &Gguf<'_>, name: &str, blobs: usize, spots: &[Spot]) -> Manifest {
    let convert_once = || {
        let mut check =
            Check { gguf, open: Vec::new(), blobs: 0, rows_compared: 0, spots, spots_seen: 0 };
        let manifest = convert(gguf, name, &mut check).expect("it converts");
        assert_eq!(check.blobs, blobs);
        assert_eq!(check.spots_seen, spots.len());
        assert!(check.rows_compared > 3 * blobs);
        manifest
    };
    let manifest = convert_once();
    assert_eq!(convert_once(), manifest, "the second conversion gave another manifest");
    let read = Manifest::from_bytes(&manifest.to_bytes()).expect("it reads its own bytes");
    assert_eq!(read, manifest);
    manifest
}

#[test]
fn smollm2_is_what_the_goldens_say() {
    let bytes = read_model("smollm2-135m.gguf", false).expect("not optional");
    let gguf = Gguf::parse(&[&bytes]).expect("it parses");
    let config = check_supported(&gguf).expect("it is supported");
    assert_eq!(config.architecture, Architecture::Llama);
    let dims = Dims {
        layers: 30,
        d_model: 576,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        d_ff: 1536,
        vocab: 49152,
        context: 8192,
    };
    assert_eq!(config.dims, dims);
    assert_eq!(config.rms_eps, 1e-5);
    assert!(config.tied);
    assert_eq!(config.rope.pairs, RopePairs::Adjacent);

    let golden: serde_json::Value =
        serde_json::from_str(include_str!("canonical1_smollm2.json")).expect("the golden is JSON");
    let golden = golden["inv_freq_f64_bits"].as_array().expect("the golden has frequencies");
    let ours: Vec<String> =
        config.rope.inv_freq_bits.iter().map(|bits| format!("{bits:016x}")).collect();
    assert_eq!(golden.len(), 32);
    assert!(golden.iter().zip(&ours).all(|(a, b)| a == b), "{ours:?}");

    assert_eq!(gguf.get_str("tokenizer.ggml.pre"), Some("smollm"));
    let mut tokens = gguf.get_str_array("tokenizer.ggml.tokens").expect("it has tokens");
    assert_eq!(tokens.len(), 49152);
    assert_eq!(tokens.next(), Some("<|endoftext|>"));
    assert_eq!(tokens.count(), 49151);
    assert_eq!(gguf.get_i32_array("tokenizer.ggml.token_type").map(|t| t.len()), Some(49152));

    let manifest = check_conversion(&gguf, "smollm2-135m", 32, &SMOLLM2);
    assert!(manifest.tied());
    let (_, head) = manifest.tensor(31, Role::Output).expect("the tied head");
    assert_eq!((head.role, head.layout), (Role::TokenEmbedding, Layout::Q8));
    let (_, down) = manifest.tensor(30, Role::FfnDown).expect("the last layer's");
    assert_eq!((down.layout, down.rows, down.cols), (Layout::Q4M, 576, 1536));
}

#[test]
fn qwen2_is_what_its_publisher_says() {
    let Some(bytes) = read_model("qwen2.5-coder-0.5b.gguf", true) else { return };
    let gguf = Gguf::parse(&[&bytes]).expect("it parses");
    let config = check_supported(&gguf).expect("it is supported");
    assert_eq!(config.architecture, Architecture::Qwen2);
    let dims = Dims {
        layers: 24,
        d_model: 896,
        heads: 14,
        kv_heads: 2,
        head_dim: 64,
        d_ff: 4864,
        vocab: 151_936,
        context: config.dims.context,
    };
    assert_eq!(config.dims, dims);
    assert_eq!(config.rms_eps, 1e-6);
    assert_eq!(config.rope.pairs, RopePairs::HalfSplit);
    assert!(!config.tied);
    let types: std::collections::BTreeSet<_> = gguf.tensors().map(|(_, t)| t.ggml_type).collect();
    for ggml_type in [GgmlType::Q5_0, GgmlType::Q8_0, GgmlType::Q4K, GgmlType::Q6K] {
        assert!(types.contains(&ggml_type), "no tensor of type {ggml_type}");
    }
    let manifest = check_conversion(&gguf, "qwen2.5-coder-0.5b", 27, &QWEN2);
    assert!(!manifest.tied());
    let (_, bias) = manifest.tensor(1, Role::AttnQBias).expect("the first layer's");
    assert_eq!((bias.layout, bias.cols), (Layout::F32, 896));
}
