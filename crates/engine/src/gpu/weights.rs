//! A span's weights as GPU buffers, still empty: which tensor goes where.

use std::ops::Range;

use litemap::LiteMap;
use model::Manifest;
use model::layout::TILE_ROWS;
use model::manifest::{Blob, Role, Tensor};

use crate::types::LoadError;

use super::buffers::Allocator;
use super::kernels::{GpuMatrix, GpuVector, Piece, Place};
use super::upload::Upload;

/// Tiles of a piece of a matrix: workgroups that a dispatch has in one dimension on any device,
/// and no workgroup has less than one to do.
const PIECE_TILES_MAX: u32 = 65_535;

/// One layer's weights. Vectors are f32.
pub(crate) struct Layer {
    pub(crate) attn_norm: GpuVector,
    pub(crate) q: GpuMatrix,
    pub(crate) k: GpuMatrix,
    pub(crate) v: GpuMatrix,
    /// Biases of q, k and v, one after the other, where the model has them.
    pub(crate) biases: Option<GpuVector>,
    pub(crate) output: GpuMatrix,
    pub(crate) ffn_norm: GpuVector,
    pub(crate) gate: GpuMatrix,
    pub(crate) up: GpuMatrix,
    pub(crate) down: GpuMatrix,
}

/// The last part's weights.
pub(crate) struct Head {
    pub(crate) norm: GpuVector,
    pub(crate) output: GpuMatrix,
}

/// Everything that a span holds.
pub(crate) struct Weights {
    pub(crate) embedding: Option<GpuMatrix>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) head: Option<Head>,
}

impl Weights {
    /// Makes the buffers of the parts `span` of a checked manifest and notes in `upload` what
    /// goes into them; a piece of a matrix has `bytes_max` at most.
    ///
    /// # Errors
    /// [`LoadError::OutOfMemory`], or what is wrong with a tensor.
    pub(crate) fn allocate(
        manifest: &Manifest,
        span: Range<u32>,
        bytes_max: u64,
        allocator: &mut Allocator<'_>,
        upload: &mut Upload,
    ) -> Result<Weights, LoadError> {
        let mut maker = Maker { manifest, allocator, upload, bytes_max, made: LiteMap::new() };
        let mut weights = Weights { embedding: None, layers: Vec::new(), head: None };
        for part in span {
            if part == 0 {
                weights.embedding = Some(maker.matrix(part, Role::TokenEmbedding)?);
            } else if part <= manifest.dims.layers {
                weights.layers.push(maker.layer(part)?);
            } else {
                let tied = maker.find(part, Role::Output).is_none();
                let role = if tied { Role::TokenEmbedding } else { Role::Output };
                weights.head = Some(Head {
                    norm: maker.vectors(part, &[Role::OutputNorm])?,
                    output: maker.matrix(part, role)?,
                });
            }
        }
        Ok(weights)
    }
}

struct Maker<'a, 'b> {
    manifest: &'a Manifest,
    allocator: &'a mut Allocator<'b>,
    upload: &'a mut Upload,
    bytes_max: u64,
    /// Matrices by blob and offset: a tied head is the embedding again.
    made: LiteMap<(&'a str, u64), GpuMatrix>,
}

impl<'a> Maker<'a, '_> {
    fn layer(&mut self, part: u32) -> Result<Layer, LoadError> {
        let biases = [Role::AttnQBias, Role::AttnKBias, Role::AttnVBias];
        let biases = match self.find(part, Role::AttnQBias) {
            Some(_) => Some(self.vectors(part, &biases)?),
            None => None,
        };
        let [gate, up] = self.pair(part, [Role::FfnGate, Role::FfnUp])?;
        Ok(Layer {
            attn_norm: self.vectors(part, &[Role::AttnNorm])?,
            q: self.matrix(part, Role::AttnQ)?,
            k: self.matrix(part, Role::AttnK)?,
            v: self.matrix(part, Role::AttnV)?,
            biases,
            output: self.matrix(part, Role::AttnOutput)?,
            ffn_norm: self.vectors(part, &[Role::FfnNorm])?,
            gate,
            up,
            down: self.matrix(part, Role::FfnDown)?,
        })
    }

    fn find(&self, part: u32, role: Role) -> Option<(&'a Blob, &'a Tensor)> {
        self.manifest.parts[part as usize]
            .blobs
            .iter()
            .find_map(|blob| blob.tensors.iter().find(|t| t.role == role).map(|t| (blob, t)))
    }

    fn tensor(&self, part: u32, role: Role) -> Result<(&'a Blob, &'a Tensor), LoadError> {
        self.find(part, role).ok_or(LoadError::TensorMissing { part, role })
    }

    /// Some vectors, one after the other.
    fn vectors(&mut self, part: u32, roles: &[Role]) -> Result<GpuVector, LoadError> {
        let tensors: Vec<_> =
            roles.iter().map(|&role| self.tensor(part, role)).collect::<Result<_, _>>()?;
        let len: u32 = tensors.iter().map(|(_, tensor)| tensor.cols).sum();
        let what = format!("{:?} of part {part}", roles[0]);
        let buffer = self.allocator.storage(&what, u64::from(len) * 4)?;
        let mut start = 0;
        for (blob, tensor) in tensors {
            let bytes = u64::from(tensor.cols) * 4;
            let range = tensor.offset..tensor.offset + bytes;
            self.upload.want(&blob.hash, blob.bytes, range, &buffer, start);
            start += bytes;
        }
        Ok(GpuVector { place: Place { buffer, offset_bytes: 0 }, len })
    }

    /// How many rows of a matrix a kernel can see in one buffer and compute in one dispatch.
    fn rows_max(&self, part: u32, role: Role) -> Result<u32, LoadError> {
        let (_, tensor) = self.tensor(part, role)?;
        let tile = TILE_ROWS as u32;
        let tile_bytes = bytes_of(part, tensor, tile)?;
        let tiles = (self.bytes_max / tile_bytes).min(u64::from(PIECE_TILES_MAX)) as u32;
        if tiles == 0 {
            let reason = format!("16 rows exceed the {} bytes of a buffer", self.bytes_max);
            return Err(LoadError::Tensor { part, role, reason });
        }
        Ok(tiles * tile)
    }

    fn matrix(&mut self, part: u32, role: Role) -> Result<GpuMatrix, LoadError> {
        let rows_max = self.rows_max(part, role)?;
        self.cut_matrix(part, role, rows_max)
    }

    /// Two matrices of as many rows, cut into pieces of the same rows.
    fn pair(&mut self, part: u32, roles: [Role; 2]) -> Result<[GpuMatrix; 2], LoadError> {
        let rows_max = self.rows_max(part, roles[0])?.min(self.rows_max(part, roles[1])?);
        Ok([self.cut_matrix(part, roles[0], rows_max)?, self.cut_matrix(part, roles[1], rows_max)?])
    }

    /// A matrix in pieces of `rows_max` rows, a multiple of 16.
    fn cut_matrix(&mut self, part: u32, role: Role, rows_max: u32) -> Result<GpuMatrix, LoadError> {
        let (blob, tensor) = self.tensor(part, role)?;
        if let Some(made) = self.made.get(&(blob.hash.as_str(), tensor.offset)) {
            return Ok(made.clone());
        }
        let mut pieces = Vec::new();
        let mut start = tensor.offset;
        for first_row in (0..tensor.rows).step_by(rows_max as usize) {
            let rows = rows_max.min(tensor.rows - first_row);
            let bytes = bytes_of(part, tensor, rows)?;
            let buffer = self.allocator.storage(&format!("{role:?} of part {part}"), bytes)?;
            self.upload.want(&blob.hash, blob.bytes, start..start + bytes, &buffer, 0);
            pieces.push(Piece { place: Place { buffer, offset_bytes: 0 }, first_row, rows });
            start += bytes;
        }
        let Tensor { layout, rows, cols, offset, .. } = *tensor;
        let matrix = GpuMatrix { layout, rows, cols, pieces };
        self.made.insert((blob.hash.as_str(), offset), matrix.clone());
        Ok(matrix)
    }
}

/// Bytes of so many rows of a matrix.
fn bytes_of(part: u32, tensor: &Tensor, rows: u32) -> Result<u64, LoadError> {
    tensor.layout.matrix_bytes_u64(rows, tensor.cols).ok_or_else(|| LoadError::Tensor {
        part,
        role: tensor.role,
        reason: format!("{} columns do not divide into cells", tensor.cols),
    })
}
