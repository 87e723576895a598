//! Random models of any shapes.

use super::{Entry, GgufWriter, Random, tiny_tokenizer};
use crate::f16::f32_to_f16;
use crate::gguf::GgmlType;
use crate::manifest::{Architecture, Dims, Role};

/// What a random model shall be. Its weights are of a size that keeps every number of a
/// forward pass finite, and unlike enough that a wrong one shows.
#[derive(Clone, Debug)]
pub struct TinyModel {
    /// The family.
    pub architecture: Architecture,
    /// Shapes; a matrix's columns must divide into its type's blocks.
    pub dims: Dims,
    /// True if the embedding is also the head.
    pub tied: bool,
    /// The type of each matrix, by its role and layer (0 outside the layers).
    pub matrix_type: fn(Role, u32) -> GgmlType,
    /// RoPE's base.
    pub rope_base: f32,
    /// RMS norm epsilon.
    pub rms_eps: f32,
    /// Adds a small byte-level BPE and a chat template; the vocabulary then needs 259
    /// tokens at least.
    pub tokenizer: bool,
    /// Other seeds give other weights.
    pub seed: u64,
}

impl TinyModel {
    /// A tied llama of 3 layers, D 64, 4/2 heads of 16, F 96, V 288 with a tokenizer,
    /// context 512, all matrices Q8_0.
    pub fn llama(seed: u64) -> TinyModel {
        let dims = Dims {
            layers: 3,
            d_model: 64,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            d_ff: 96,
            vocab: 288,
            context: 512,
        };
        TinyModel {
            architecture: Architecture::Llama,
            dims,
            tied: true,
            matrix_type: |_, _| GgmlType::Q8_0,
            rope_base: 10_000.0,
            rms_eps: 1e-5,
            tokenizer: true,
            seed,
        }
    }

    /// A qwen2 with a head of its own, else as [`TinyModel::llama`].
    pub fn qwen2(seed: u64) -> TinyModel {
        let (architecture, rope_base) = (Architecture::Qwen2, 1e6);
        TinyModel { architecture, tied: false, rope_base, rms_eps: 1e-6, ..TinyModel::llama(seed) }
    }

    /// The model's file as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.writer().to_bytes()
    }

    /// The model's file, still open to changes.
    pub fn writer(&self) -> GgufWriter {
        let mut file = GgufWriter::default();
        self.add_metadata(&mut file);
        let mut add = |role: Role, layer: u32| self.add_tensor(&mut file, role, layer);
        add(Role::TokenEmbedding, 0);
        for layer in 0..self.dims.layers {
            for role in self.architecture.layer_roles() {
                add(*role, layer);
            }
        }
        add(Role::OutputNorm, 0);
        if !self.tied {
            add(Role::Output, 0);
        }
        file
    }

    fn add_metadata(&self, file: &mut GgufWriter) {
        let dims = &self.dims;
        let name = self.architecture.name();
        file.set("general.architecture", Entry::Str(name.to_owned()))
            .set("general.name", Entry::Str(format!("tiny {name} {}", self.seed)));
        for (key, value) in [
            ("block_count", dims.layers),
            ("context_length", dims.context),
            ("embedding_length", dims.d_model),
            ("feed_forward_length", dims.d_ff),
            ("attention.head_count", dims.heads),
            ("attention.head_count_kv", dims.kv_heads),
            ("attention.key_length", dims.head_dim),
            ("attention.value_length", dims.head_dim),
            ("rope.dimension_count", dims.head_dim),
        ] {
            file.set(&format!("{name}.{key}"), Entry::U32(value));
        }
        file.set(&format!("{name}.rope.freq_base"), Entry::F32(self.rope_base));
        let key = format!("{name}.attention.layer_norm_rms_epsilon");
        file.set(&key, Entry::F32(self.rms_eps));
        if self.tokenizer {
            tiny_tokenizer::add(file, dims.vocab);
        }
    }

    fn add_tensor(&self, file: &mut GgufWriter, role: Role, layer: u32) {
        let (rows, cols) = role.shape(&self.dims);
        // A stream of its own for each tensor, so that one's type changes no other.
        let mut random =
            Random::new(self.seed ^ (role as u64 + 1) << 56 ^ u64::from(layer + 1) << 40);
        let name = role.gguf_name(layer);
        if role.is_vector() {
            let bias = matches!(role, Role::AttnQBias | Role::AttnKBias | Role::AttnVBias);
            let (center, spread) = if bias { (0.0, 0.5) } else { (1.0, 0.25) };
            let numbers = (0..cols).map(|_| center + spread * random.unit());
            let data = numbers.flat_map(f32::to_le_bytes).collect();
            file.tensor(&name, &[cols.into()], GgmlType::F32, data);
            return;
        }
        let ggml_type = (self.matrix_type)(role, layer);
        // Products of a row with a normalised column are about this size.
        let gain = if role == Role::TokenEmbedding { 4.0 } else { 1.5 };
        let deviation = gain / (cols as f32).sqrt();
        let data = random_blocks(ggml_type, rows as usize, cols as usize, deviation, &mut random);
        file.tensor(&name, &[cols.into(), rows.into()], ggml_type, data);
    }
}

/// A random `[rows, cols]` matrix of GGUF blocks whose weights have about that standard
/// deviation and a mean near 0.
///
/// # Panics
/// If the columns do not divide into the type's blocks.
pub fn random_blocks(
    ggml_type: GgmlType,
    rows: usize,
    cols: usize,
    deviation: f32,
    random: &mut Random,
) -> Vec<u8> {
    let (block_cols, block_bytes) = ggml_type.block().expect("a supported type");
    assert!(cols.is_multiple_of(block_cols), "{cols} columns of {ggml_type}");
    let blocks = rows * cols / block_cols;
    let mut out = Vec::with_capacity(blocks * block_bytes);
    for _ in 0..blocks {
        // Scales differ from block to block by up to a third.
        let size = deviation * (1.0 + random.unit() / 3.0);
        let half = |x: f32| f32_to_f16(x).expect("a small number").to_le_bytes();
        let start = out.len();
        // Per type: deviation of a random quant (times its scale), and where the middle is.
        match ggml_type {
            GgmlType::F32 => out.extend((size * 1.7 * random.unit()).to_le_bytes()),
            GgmlType::F16 => out.extend(half(size * 1.7 * random.unit())),
            GgmlType::Q4_0 => out.extend(half(size / 4.6)),
            GgmlType::Q4_1 => {
                let d = size / 4.6;
                out.extend(half(d));
                out.extend(half(-d * (7.5 + random.unit())));
            }
            GgmlType::Q5_0 => out.extend(half(size / 9.2)),
            GgmlType::Q8_0 => out.extend(half(size / 74.0)),
            GgmlType::Q4K => {
                let d = size / 250.0;
                out.extend(half(d));
                out.extend(half(d * (7.5 + random.unit())));
            }
            GgmlType::Q6K => {}
            GgmlType::Other(_) => unreachable!("it has no block"),
        }
        let tail = if ggml_type == GgmlType::Q6K { 2 } else { 0 };
        while out.len() < start + block_bytes - tail {
            out.push((random.next() >> 32) as u8);
        }
        if tail > 0 {
            out.extend(half(size / 1366.0));
        }
    }
    out
}
