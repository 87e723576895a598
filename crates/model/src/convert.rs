//! A GGUF model as a manifest and blobs.
//!
//! Each blob is written in order, straight from the mapped file, and hashed on the way;
//! where the bytes go is the caller's [`BlobSink`]. The same file always gives the same
//! bytes.

use std::io::{self, Write};

use thiserror::Error;

use crate::check::{Unsupported, check_supported};
use crate::config::Config;
use crate::gguf::Gguf;
use crate::layout::{LAYOUT_VERSION, Layout, TENSOR_ALIGN};
use crate::limits::NAME_BYTES_MAX;
use crate::manifest::{Blob, MANIFEST_FORMAT, Manifest, Part, Role, Tensor};
use crate::repack::{repack_matrix, repack_vector};

/// Takes a model's blobs, one after the other. A blob's hash is known only once it is
/// complete, so files need a temporary name until then.
pub trait BlobSink {
    /// A blob of `bytes` bytes begins; its bytes follow.
    ///
    /// # Errors
    /// Ends the conversion.
    fn begin(&mut self, bytes: u64) -> io::Result<()>;

    /// The next bytes of the blob, a few 10 KiB at a time or a whole matrix's.
    ///
    /// # Errors
    /// Ends the conversion.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// The blob is complete: this is its hash, its length and what it holds.
    ///
    /// # Errors
    /// Ends the conversion.
    fn finish(&mut self, blob: &Blob) -> io::Result<()>;
}

/// Why a model was not converted.
#[derive(Debug, Error)]
pub enum ConvertError {
    /// The file holds something that we do not run.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// A name that no manifest may have.
    #[error("the model name {name:?} is not allowed: {why}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The sink failed.
    #[error("writing a model's blob failed: {0}")]
    Sink(#[from] io::Error),
}

/// Writes all blobs of a model into `sink`: the embedding, each layer, the final norm, and
/// the head where it is not tied. Returns the manifest that names them.
///
/// # Errors
/// [`ConvertError::Unsupported`] and [`ConvertError::Name`] before anything is written.
pub fn convert(
    gguf: &Gguf<'_>,
    name: &str,
    sink: &mut impl BlobSink,
) -> Result<Manifest, ConvertError> {
    if let Err(why) = check_name(name) {
        return Err(ConvertError::Name { name: name.to_owned(), why });
    }
    let config = check_supported(gguf)?;
    let mut convert = |layer: u32, roles: &[Role]| convert_blob(gguf, &config, layer, roles, sink);
    let embedding = convert(0, &[Role::TokenEmbedding])?;
    let mut parts = vec![Part { blobs: vec![embedding.clone()] }];
    for layer in 0..config.dims.layers {
        parts.push(Part { blobs: vec![convert(layer, config.architecture.layer_roles())?] });
    }
    let norm = convert(0, &[Role::OutputNorm])?;
    let head = if config.tied { embedding } else { convert(0, &[Role::Output])? };
    parts.push(Part { blobs: vec![norm, head] });
    Ok(Manifest {
        format: MANIFEST_FORMAT,
        layout_version: LAYOUT_VERSION,
        name: name.to_owned(),
        architecture: config.architecture,
        dims: config.dims,
        rms_eps_bits: config.rms_eps.to_bits(),
        rope: config.rope,
        parts,
    })
}

/// What a model may be called.
pub(crate) fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        Err("it is empty")
    } else if name.len() > NAME_BYTES_MAX {
        Err("it is longer than 128 bytes")
    } else if name.chars().any(char::is_control) {
        Err("it has control characters")
    } else {
        Ok(())
    }
}

/// The tensors of a blob at their offsets, and the blob's length.
pub(crate) fn place_in_blob(
    shapes: impl Iterator<Item = (Role, Layout, u32, u32)>,
) -> Option<(Vec<Tensor>, u64)> {
    let mut end = 0u64;
    let mut tensors = Vec::new();
    for (role, layout, rows, cols) in shapes {
        let offset = end.checked_next_multiple_of(TENSOR_ALIGN as u64)?;
        end = offset.checked_add(layout.matrix_bytes_u64(rows, cols)?)?;
        tensors.push(Tensor { role, layout, rows, cols, offset });
    }
    Some((tensors, end))
}

fn convert_blob(
    gguf: &Gguf<'_>,
    config: &Config,
    layer: u32,
    roles: &[Role],
    sink: &mut impl BlobSink,
) -> io::Result<Blob> {
    let sources: Vec<_> = roles
        .iter()
        .map(|role| *gguf.tensor(&role.gguf_name(layer)).expect("check_supported saw it"))
        .collect();
    let shapes = roles.iter().zip(&sources).map(|(role, source)| {
        let (rows, cols) = role.shape(&config.dims);
        let layout = match role.is_vector() {
            true => Layout::F32,
            false => source.ggml_type.layout().expect("check_supported saw its type"),
        };
        (*role, layout, rows, cols)
    });
    let (tensors, bytes) = place_in_blob(shapes).expect("check_supported saw the shapes");
    sink.begin(bytes)?;
    let mut out = HashingWriter { sink, hasher: blake3::Hasher::new(), written: 0 };
    for (tensor, source) in tensors.iter().zip(&sources) {
        let padding = tensor.offset - out.written;
        out.write_all(&[0; TENSOR_ALIGN][..usize::try_from(padding).expect("below the align")])?;
        if tensor.role.is_vector() {
            repack_vector(source.ggml_type, source.data(), &mut out)?;
        } else {
            let (rows, cols) = (tensor.rows as usize, tensor.cols as usize);
            repack_matrix(source.ggml_type, rows, cols, source.data(), &mut out)?;
        }
    }
    assert_eq!(out.written, bytes, "a blob has the length that its layouts say");
    let hash = out.hasher.finalize().to_hex().to_string();
    let blob = Blob { hash, bytes, tensors };
    sink.finish(&blob)?;
    Ok(blob)
}

struct HashingWriter<'s, S> {
    sink: &'s mut S,
    hasher: blake3::Hasher,
    written: u64,
}

impl<S: BlobSink> Write for HashingWriter<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sink.write(bytes)?;
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
