//! GGUF v2 and v3, as ggml's `docs/gguf.md` describes them.
//!
//! A file is a header, metadata, tensor descriptions and tensor data, all little-endian.
//! [`Gguf`] borrows the bytes it is given (mapped files): strings, arrays and tensor data
//! are never copied, and everything it allocates is bounded by the counts in
//! [`crate::limits`] and by the file's own length. Whatever the bytes are, parsing gives
//! a [`Gguf`] or a [`GgufError`], and what it gives can be read without further checks.

mod error;
mod ggml_type;
mod read;
mod split;
mod value;

use std::collections::BTreeMap;

pub use error::{GgufError, Place};
pub use ggml_type::GgmlType;
pub use value::{Array, Strings, Value};

use crate::limits::{
    GGUF_ALIGNMENT_MAX, GGUF_DIMS_MAX, GGUF_KEY_BYTES_MAX, GGUF_METADATA_MAX, GGUF_NAME_BYTES_MAX,
    GGUF_PARTS_MAX, GGUF_TENSORS_MAX,
};
use read::Reader;
use value::read_value;

const MAGIC: [u8; 4] = *b"GGUF";
/// `general.alignment` where a file does not say.
const ALIGNMENT_DEFAULT: u64 = 32;
/// A metadata entry has at least a key length, a type and one byte.
const METADATA_BYTES_MIN: u64 = 8 + 4 + 1;
/// A tensor description has at least a name length, a dimension count, one dimension, a
/// type and an offset.
const TENSOR_BYTES_MIN: u64 = 8 + 4 + 8 + 4 + 8;

/// A parsed GGUF model of one or several parts.
#[derive(Clone, Debug)]
pub struct Gguf<'a> {
    metadata: BTreeMap<&'a str, Value<'a>>,
    tensors: BTreeMap<&'a str, Tensor<'a>>,
}

/// A tensor's description and data.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// How its elements are stored.
    pub ggml_type: GgmlType,
    dims: [u64; GGUF_DIMS_MAX as usize],
    dim_count: usize,
    data: &'a [u8],
}

impl<'a> Tensor<'a> {
    /// Its shape, fastest dimension first (a `[R, C]` matrix is `[C, R]` here), no zeros.
    pub fn dims(&self) -> &[u64] {
        &self.dims[..self.dim_count]
    }

    /// Its blocks, row after row; exactly as many bytes as its shape and type need. Empty
    /// for a type that we do not run.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }
}

impl<'a> Gguf<'a> {
    /// Parses a model from its files' bytes: one slice, or all the parts of a split model
    /// in any order. Metadata comes from the first part.
    ///
    /// # Errors
    /// A [`GgufError`] for anything that is not whole, consistent and within bounds.
    pub fn parse(files: &[&'a [u8]]) -> Result<Gguf<'a>, GgufError> {
        let parts = match files {
            [only] => vec![Part::parse(only, None)?],
            _ if files.is_empty() || files.len() > GGUF_PARTS_MAX => {
                return Err(GgufError::Files { got: files.len(), max: GGUF_PARTS_MAX });
            }
            _ => files
                .iter()
                .enumerate()
                .map(|(i, bytes)| Part::parse(bytes, Some(i)))
                .collect::<Result<Vec<_>, _>>()?,
        };
        split::join(parts)
    }

    /// A metadata entry.
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.metadata.get(key)
    }

    /// A string entry.
    pub fn get_str(&self, key: &str) -> Option<&'a str> {
        self.get(key)?.as_str()
    }

    /// An integer entry of any width whose value a u32 holds.
    pub fn get_u32(&self, key: &str) -> Option<u32> {
        self.get(key)?.as_u32()
    }

    /// A floating-point entry; an f64 is rounded.
    pub fn get_f32(&self, key: &str) -> Option<f32> {
        self.get(key)?.as_f32()
    }

    /// A boolean entry.
    pub fn get_bool(&self, key: &str) -> Option<bool> {
        self.get(key)?.as_bool()
    }

    /// The strings of an array entry, in order.
    pub fn get_str_array(&self, key: &str) -> Option<Strings<'a>> {
        self.get(key)?.as_array()?.strings()
    }

    /// The numbers of an f32 array entry, in order.
    pub fn get_f32_array(&self, key: &str) -> Option<impl ExactSizeIterator<Item = f32> + use<'a>> {
        self.get(key)?.as_array()?.f32s()
    }

    /// The numbers of an i32 array entry, in order.
    pub fn get_i32_array(&self, key: &str) -> Option<impl ExactSizeIterator<Item = i32> + use<'a>> {
        self.get(key)?.as_array()?.i32s()
    }

    /// All metadata, keys ascending.
    pub fn metadata(&self) -> impl ExactSizeIterator<Item = (&'a str, &Value<'a>)> {
        self.metadata.iter().map(|(key, value)| (*key, value))
    }

    /// A tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor<'a>> {
        self.tensors.get(name)
    }

    /// All tensors, names ascending.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&'a str, &Tensor<'a>)> {
        self.tensors.iter().map(|(name, tensor)| (*name, tensor))
    }
}

/// One file of a model.
struct Part<'a> {
    metadata: BTreeMap<&'a str, Value<'a>>,
    tensors: BTreeMap<&'a str, Tensor<'a>>,
}

/// A tensor's description before its data was found.
struct Described<'a> {
    name: &'a str,
    tensor: Tensor<'a>,
    /// Bytes of data, `None` for a type that we do not run.
    bytes: Option<u64>,
    /// From the start of the part's data.
    offset: u64,
}

impl<'a> Part<'a> {
    fn parse(bytes: &'a [u8], part: Option<usize>) -> Result<Part<'a>, GgufError> {
        let r = &mut Reader::new(bytes, part);
        let at = r.place();
        let magic = r.magic()?;
        if magic != MAGIC {
            return Err(GgufError::Magic { at, got: magic });
        }
        let at = r.place();
        let version = r.u32("the version")?;
        if !matches!(version, 2 | 3) {
            return Err(GgufError::Version { at, got: version });
        }
        let tensor_count = r.count("the tensor count", GGUF_TENSORS_MAX, TENSOR_BYTES_MIN)?;
        let metadata_count =
            r.count("the metadata count", GGUF_METADATA_MAX, METADATA_BYTES_MIN)?;

        let mut alignment = ALIGNMENT_DEFAULT;
        let mut metadata = BTreeMap::new();
        for _ in 0..metadata_count {
            let at = r.place();
            let key = r.string("a metadata key", GGUF_KEY_BYTES_MAX)?;
            let value = read_value(r, key)?;
            if key == "general.alignment" {
                alignment = check_alignment(&value, at)?;
            }
            if metadata.insert(key, value).is_some() {
                let name = key.to_owned();
                return Err(GgufError::Duplicate { at, what: "metadata key", name });
            }
        }
        let mut described = Vec::new();
        for _ in 0..tensor_count {
            described.push(read_tensor(r)?);
        }
        let data_start = r.position().next_multiple_of(alignment).min(bytes.len() as u64);
        let data = &bytes[usize::try_from(data_start).expect("within the slice")..];
        let tensors = place_tensors(described, data, alignment)?;
        Ok(Part { metadata, tensors })
    }
}

fn check_alignment(value: &Value<'_>, at: Place) -> Result<u64, GgufError> {
    match value.as_u32() {
        Some(n) if n.is_power_of_two() && n <= GGUF_ALIGNMENT_MAX => Ok(n.into()),
        Some(n) => Err(GgufError::Alignment { at, got: n.to_string() }),
        None => Err(GgufError::Alignment { at, got: "not a 32-bit integer".to_owned() }),
    }
}

fn read_tensor<'a>(r: &mut Reader<'a>) -> Result<(Place, Described<'a>), GgufError> {
    let at = r.place();
    let name = r.string("a tensor's name", GGUF_NAME_BYTES_MAX)?;
    let count_at = r.place();
    let dim_count = r.u32("a tensor's dimension count")?;
    if dim_count > GGUF_DIMS_MAX {
        let (what, got, max) = ("a tensor's dimension count", dim_count.into(), GGUF_DIMS_MAX);
        return Err(GgufError::TooLarge { at: count_at, what, got, max: max.into() });
    }
    let dim_count = dim_count as usize;
    let mut dims = [1u64; GGUF_DIMS_MAX as usize];
    for dim in &mut dims[..dim_count] {
        *dim = r.u64("a tensor's dimension")?;
    }
    let ggml_type = GgmlType::from_number(r.u32("a tensor's type")?);
    let offset = r.u64("a tensor's offset")?;
    let tensor = Tensor { ggml_type, dims, dim_count, data: &[] };
    let bytes = tensor_bytes(&tensor).map_err(|why| GgufError::Shape {
        at,
        name: name.to_owned(),
        dims: tensor.dims().to_vec(),
        ggml_type: ggml_type.to_string(),
        why,
    })?;
    Ok((at, Described { name, tensor, bytes, offset }))
}

/// Bytes of a tensor's data, `None` for a type that we do not run.
fn tensor_bytes(tensor: &Tensor<'_>) -> Result<Option<u64>, &'static str> {
    let dims = tensor.dims();
    if dims.is_empty() {
        return Err("expected at least one dimension");
    }
    if dims.contains(&0) {
        return Err("expected no zeros");
    }
    let overflow = "its size overflows";
    let elements = dims.iter().try_fold(1u64, |n, d| n.checked_mul(*d)).ok_or(overflow)?;
    let Some((block_elements, block_bytes)) = tensor.ggml_type.block() else {
        return Ok(None);
    };
    if !dims[0].is_multiple_of(block_elements as u64) {
        return Err("its rows are no whole number of the type's blocks");
    }
    let blocks = elements / block_elements as u64;
    blocks.checked_mul(block_bytes as u64).ok_or(overflow).map(Some)
}

/// Finds each tensor's data, after checking that all lie apart, aligned and in the file.
fn place_tensors<'a>(
    described: Vec<(Place, Described<'a>)>,
    data: &'a [u8],
    alignment: u64,
) -> Result<BTreeMap<&'a str, Tensor<'a>>, GgufError> {
    let left = data.len() as u64;
    let mut tensors = BTreeMap::new();
    let mut ranges = Vec::new();
    for (at, Described { name, mut tensor, bytes, offset }) in described {
        if let Some(bytes) = bytes {
            if !offset.is_multiple_of(alignment) {
                let name = name.to_owned();
                return Err(GgufError::Misaligned { name, offset, alignment });
            }
            let end = offset.checked_add(bytes).filter(|end| *end <= left);
            let Some(end) = end else {
                return Err(GgufError::OutOfRange { name: name.to_owned(), offset, bytes, left });
            };
            tensor.data = &data[offset as usize..end as usize];
            ranges.push((offset, end, name));
        }
        if tensors.insert(name, tensor).is_some() {
            return Err(GgufError::Duplicate { at, what: "tensor", name: name.to_owned() });
        }
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        if pair[1].0 < pair[0].1 {
            let (first, second) = (pair[0].2.to_owned(), pair[1].2.to_owned());
            return Err(GgufError::Overlap { first, second });
        }
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests;
