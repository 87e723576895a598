//! A model's weights, unpacked.

use model::Manifest;
use model::dequant;
use model::layout::BLOCK_COLS;
use model::manifest::{Architecture, Dims, Role, RopePairs};
use numerics::product::{Block, Row};
use numerics::rope::Pairs;

/// A matrix `[R, C]`.
pub struct Matrix {
    /// `[R]` rows of quants; `None` for F16 and F32 matrices.
    pub quants: Option<Vec<Row>>,
    /// `[R][C]` f32 weights, each rounded as NUMERICS.md says.
    pub weights: Vec<Vec<f32>>,
}

/// One layer.
pub struct Layer {
    /// `[D]`.
    pub attn_norm: Vec<f32>,
    /// `[H·hd, D]`.
    pub q: Matrix,
    /// `[K·hd, D]`.
    pub k: Matrix,
    /// `[K·hd, D]`.
    pub v: Matrix,
    /// Biases of q, k and v, where the family has them.
    pub biases: Option<[Vec<f32>; 3]>,
    /// `[D, H·hd]`.
    pub output: Matrix,
    /// `[D]`.
    pub ffn_norm: Vec<f32>,
    /// `[F, D]`.
    pub gate: Matrix,
    /// `[F, D]`.
    pub up: Matrix,
    /// `[D, F]`.
    pub down: Matrix,
}

/// A whole model.
pub struct Model {
    /// Shapes.
    pub dims: Dims,
    /// RMS norm epsilon.
    pub eps: f32,
    /// `[hd / 2]`.
    pub inv_freq: Vec<f64>,
    /// RoPE's pairs.
    pub pairs: Pairs,
    /// `[V, D]`.
    pub embedding: Matrix,
    /// `[L]`.
    pub layers: Vec<Layer>,
    /// `[D]`.
    pub output_norm: Vec<f32>,
    /// `[V, D]`.
    pub head: Matrix,
}

impl Model {
    /// Unpacks a model; `blob` gives the bytes of a hash.
    ///
    /// # Panics
    /// If a tensor is missing or a blob has other bytes than the manifest says: this is
    /// for tests, which made both.
    pub fn new<'b>(manifest: &Manifest, blob: impl Fn(&str) -> &'b [u8]) -> Model {
        let tensor = |part: u32, role: Role| -> dequant::Matrix<'b> {
            let (place, tensor) = manifest.tensor(part, role).expect("the manifest has it");
            dequant::Matrix::of_tensor(tensor, blob(&place.hash)).expect("the blob holds it")
        };
        let matrix = |part, role| unpack(tensor(part, role));
        let vector = |part, role| unpack(tensor(part, role)).weights.remove(0);
        let layer = |part| Layer {
            attn_norm: vector(part, Role::AttnNorm),
            q: matrix(part, Role::AttnQ),
            k: matrix(part, Role::AttnK),
            v: matrix(part, Role::AttnV),
            biases: (manifest.architecture == Architecture::Qwen2).then(|| {
                [Role::AttnQBias, Role::AttnKBias, Role::AttnVBias].map(|role| vector(part, role))
            }),
            output: matrix(part, Role::AttnOutput),
            ffn_norm: vector(part, Role::FfnNorm),
            gate: matrix(part, Role::FfnGate),
            up: matrix(part, Role::FfnUp),
            down: matrix(part, Role::FfnDown),
        };
        let head = manifest.head_part();
        Model {
            dims: manifest.dims,
            eps: manifest.rms_eps(),
            inv_freq: manifest.rope.inv_freq_bits.iter().map(|&b| f64::from_bits(b)).collect(),
            pairs: match manifest.rope.pairs {
                RopePairs::Adjacent => Pairs::Adjacent,
                RopePairs::HalfSplit => Pairs::HalfSplit,
            },
            embedding: matrix(0, Role::TokenEmbedding),
            layers: (1..head).map(layer).collect(),
            output_norm: vector(head, Role::OutputNorm),
            head: matrix(head, Role::Output),
        }
    }
}

/// All rows of a matrix, as quants where it has them, and as f32.
pub fn unpack(matrix: dequant::Matrix<'_>) -> Matrix {
    let weights = |r| {
        let mut row = vec![0.0; matrix.cols()];
        matrix.dequant_row(r, &mut row);
        row
    };
    let quants = matrix
        .layout()
        .is_tiled()
        .then(|| (0..matrix.rows()).map(|r| unpack_row(matrix, r)).collect());
    Matrix { quants, weights: (0..matrix.rows()).map(weights).collect() }
}

/// A row as blocks that each have one scale: of 32 columns, or of 16 where halves differ.
fn unpack_row(matrix: dequant::Matrix<'_>, r: usize) -> Row {
    let halves = matrix.layout() == model::Layout::Q6K;
    let mut row = Row::new();
    for b in 0..matrix.cols() / BLOCK_COLS {
        let block = matrix.block(r, b).expect("a tiled layout");
        if halves {
            for (half, d) in block.scale.into_iter().enumerate() {
                let q = block.q[16 * half..16 * half + 16].to_vec();
                row.push(Block { d, m: None, q });
            }
        } else {
            row.push(Block { d: block.scale[0], m: block.min, q: block.q.to_vec() });
        }
    }
    row
}
