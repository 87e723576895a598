//! Binds a manifest's tensors to the bytes of their blobs, checking every shape.

use std::ops::Range;

use model::layout::{TENSOR_ALIGN, TILE_ROWS};
use model::manifest::{Architecture, Role};
use model::{Layout, Manifest};

use crate::plan::TensorRef;
use crate::types::{BlobBytes, LoadError};

/// A weight matrix `[rows, cols]` in its blob.
pub(crate) struct Matrix {
    pub(crate) layout: Layout,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    blob: BlobBytes,
    range: Range<usize>,
}

impl Matrix {
    /// A matrix that is a blob by itself.
    pub(crate) fn whole(layout: Layout, rows: usize, cols: usize, blob: BlobBytes) -> Matrix {
        let range = 0..(*blob).as_ref().len();
        Matrix { layout, rows, cols, blob, range }
    }

    /// A matrix that lies in a blob at `range`, as long as its layout has it.
    pub(crate) fn within(
        layout: Layout,
        (rows, cols): (usize, usize),
        blob: BlobBytes,
        range: Range<usize>,
    ) -> Matrix {
        Matrix { layout, rows, cols, blob, range }
    }

    /// Some tiles of a tiled matrix.
    pub(crate) fn tiles(&self, tiles: Range<usize>) -> &[u8] {
        let tile_bytes = self.layout.matrix_bytes(TILE_ROWS, self.cols).expect("whole cells");
        &self.bytes()[tiles.start * tile_bytes..tiles.end * tile_bytes]
    }

    /// The matrix in its [`Layout`].
    pub(crate) fn bytes(&self) -> &[u8] {
        &(*self.blob).as_ref()[self.range.clone()]
    }
}

/// One layer's weights.
pub(crate) struct Layer {
    pub(crate) attn_norm: Vec<f32>,
    pub(crate) q: Matrix,
    pub(crate) k: Matrix,
    pub(crate) v: Matrix,
    /// Biases of q, k, v; empty where there are none.
    pub(crate) q_bias: Vec<f32>,
    pub(crate) k_bias: Vec<f32>,
    pub(crate) v_bias: Vec<f32>,
    pub(crate) output: Matrix,
    pub(crate) ffn_norm: Vec<f32>,
    pub(crate) gate: Matrix,
    pub(crate) up: Matrix,
    pub(crate) down: Matrix,
}

impl Layer {
    fn matrix(&self, role: Role) -> Option<&Matrix> {
        match role {
            Role::AttnQ => Some(&self.q),
            Role::AttnK => Some(&self.k),
            Role::AttnV => Some(&self.v),
            Role::AttnOutput => Some(&self.output),
            Role::FfnGate => Some(&self.gate),
            Role::FfnUp => Some(&self.up),
            Role::FfnDown => Some(&self.down),
            _ => None,
        }
    }

    fn vector(&self, role: Role) -> Option<&[f32]> {
        match role {
            Role::AttnNorm => Some(&self.attn_norm),
            Role::AttnQBias => Some(&self.q_bias),
            Role::AttnKBias => Some(&self.k_bias),
            Role::AttnVBias => Some(&self.v_bias),
            Role::FfnNorm => Some(&self.ffn_norm),
            _ => None,
        }
    }
}

/// The last part's weights.
pub(crate) struct Head {
    pub(crate) norm: Vec<f32>,
    pub(crate) output: Matrix,
}

/// Everything that a span holds.
pub(crate) struct Weights {
    pub(crate) embedding: Option<Matrix>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) head: Option<Head>,
}

/// Checks what the manifest says about itself, before anything is looked up.
pub(crate) fn check_manifest(manifest: &Manifest, span: &Range<u32>) -> Result<(), LoadError> {
    let parts = manifest.parts.len() as u32;
    if span.is_empty() || span.end > parts {
        return Err(LoadError::Span { start: span.start, end: span.end, parts });
    }
    manifest.validate().map_err(|error| LoadError::Manifest(error.to_string()))
}

impl Weights {
    /// The matrix that a plan names.
    pub(crate) fn matrix(&self, name: TensorRef) -> &Matrix {
        let found = match name.layer {
            Some(index) => self.layers[index].matrix(name.role),
            None if name.role == Role::TokenEmbedding => self.embedding.as_ref(),
            None => self.head.as_ref().map(|h| &h.output),
        };
        found.expect("a plan names only what its shard holds")
    }

    /// The vector that a plan names.
    pub(crate) fn vector(&self, name: TensorRef) -> &[f32] {
        let found = match name.layer {
            Some(index) => self.layers[index].vector(name.role),
            None => self.head.as_ref().map(|h| &h.norm[..]),
        };
        found.expect("a plan names only what its shard holds")
    }

    /// Binds the parts of `span`; see [`crate::Shard::load`]. Each layer goes through `keep`,
    /// which gives what is kept of it, before the next one's blobs are asked for.
    pub(crate) fn bind(
        manifest: &Manifest,
        span: Range<u32>,
        blobs: &mut dyn FnMut(&str) -> Option<BlobBytes>,
        keep: &dyn Fn(Layer) -> Result<Layer, LoadError>,
    ) -> Result<Weights, LoadError> {
        let d = manifest.dims;
        let width = d.d_model as usize;
        let (q, kv) = ((d.heads * d.head_dim) as usize, (d.kv_heads * d.head_dim) as usize);
        let (ff, vocab) = (d.d_ff as usize, d.vocab as usize);
        let mut weights = Weights { embedding: None, layers: Vec::new(), head: None };
        for index in span {
            let part = Part::open(manifest, index, blobs)?;
            if index == 0 {
                weights.embedding = Some(part.matrix(Role::TokenEmbedding, vocab, width)?);
            } else if index <= d.layers {
                let biased = manifest.architecture == Architecture::Qwen2;
                weights.layers.push(keep(Layer {
                    attn_norm: part.vector(Role::AttnNorm, width)?,
                    q: part.matrix(Role::AttnQ, q, width)?,
                    k: part.matrix(Role::AttnK, kv, width)?,
                    v: part.matrix(Role::AttnV, kv, width)?,
                    q_bias: part.bias(Role::AttnQBias, q, biased)?,
                    k_bias: part.bias(Role::AttnKBias, kv, biased)?,
                    v_bias: part.bias(Role::AttnVBias, kv, biased)?,
                    output: part.matrix(Role::AttnOutput, width, q)?,
                    ffn_norm: part.vector(Role::FfnNorm, width)?,
                    gate: part.matrix(Role::FfnGate, ff, width)?,
                    up: part.matrix(Role::FfnUp, ff, width)?,
                    down: part.matrix(Role::FfnDown, width, ff)?,
                })?);
            } else {
                let tied = !part.has(Role::Output);
                let role = if tied { Role::TokenEmbedding } else { Role::Output };
                weights.head = Some(Head {
                    norm: part.vector(Role::OutputNorm, width)?,
                    output: part.matrix(role, vocab, width)?,
                });
            }
        }
        Ok(weights)
    }
}

/// A part with the bytes of its blobs.
struct Part<'a> {
    index: u32,
    blobs: Vec<(&'a model::manifest::Blob, BlobBytes)>,
}

impl<'a> Part<'a> {
    fn open(
        manifest: &'a Manifest,
        index: u32,
        blobs: &mut dyn FnMut(&str) -> Option<BlobBytes>,
    ) -> Result<Part<'a>, LoadError> {
        let open = |blob: &'a model::manifest::Blob| {
            let hash = || blob.hash.clone();
            let bytes = blobs(&blob.hash).ok_or_else(|| LoadError::BlobMissing { hash: hash() })?;
            let got = (*bytes).as_ref().len() as u64;
            if got != blob.bytes {
                return Err(LoadError::BlobLength { hash: hash(), expected: blob.bytes, got });
            }
            Ok((blob, bytes))
        };
        let blobs =
            manifest.parts[index as usize].blobs.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Part { index, blobs })
    }

    fn find(&self, role: Role) -> Option<(&model::manifest::Tensor, &BlobBytes)> {
        self.blobs.iter().find_map(|(blob, bytes)| {
            blob.tensors.iter().find(|t| t.role == role).map(|t| (t, bytes))
        })
    }

    fn has(&self, role: Role) -> bool {
        self.find(role).is_some()
    }

    fn matrix(&self, role: Role, rows: usize, cols: usize) -> Result<Matrix, LoadError> {
        let part = self.index;
        let (t, blob) = self.find(role).ok_or(LoadError::TensorMissing { part, role })?;
        let wrong = |reason: String| Err(LoadError::Tensor { part, role, reason });
        if (t.rows as usize, t.cols as usize) != (rows, cols) {
            return wrong(format!("[{}, {}], expected [{rows}, {cols}]", t.rows, t.cols));
        }
        let Some(bytes) = t.layout.matrix_bytes(rows, cols) else {
            return wrong(format!("{cols} columns do not divide into cells of {:?}", t.layout));
        };
        let held = (**blob).as_ref().len();
        let range = usize::try_from(t.offset)
            .ok()
            .filter(|start| start.is_multiple_of(TENSOR_ALIGN))
            .and_then(|start| Some(start..start.checked_add(bytes)?))
            .filter(|range| range.end <= held);
        let Some(range) = range else {
            return wrong(format!("{bytes} bytes at {} of a blob of {held}", t.offset));
        };
        Ok(Matrix { layout: t.layout, rows, cols, blob: blob.clone(), range })
    }

    fn vector(&self, role: Role, len: usize) -> Result<Vec<f32>, LoadError> {
        let m = self.matrix(role, 1, len)?;
        if m.layout != Layout::F32 {
            let reason = format!("{:?}, norms and biases are F32", m.layout);
            return Err(LoadError::Tensor { part: self.index, role, reason });
        }
        let (words, _) = m.bytes().as_chunks::<4>();
        Ok(words.iter().map(|&b| f32::from_le_bytes(b)).collect())
    }

    fn bias(&self, role: Role, len: usize, required: bool) -> Result<Vec<f32>, LoadError> {
        if required || self.has(role) { self.vector(role, len) } else { Ok(Vec::new()) }
    }
}
