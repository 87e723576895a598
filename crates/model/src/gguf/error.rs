//! Why a file is not a readable GGUF file.

use std::fmt;

use thiserror::Error;

/// A byte of a file, and of which part where a model has several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the slice handed to the parser; `None` where there was only one.
    pub part: Option<usize>,
    /// Bytes from the start of that slice.
    pub offset: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part {
            Some(part) => write!(f, "byte {} of file {}", self.offset, part + 1),
            None => write!(f, "byte {}", self.offset),
        }
    }
}

/// Why a file is not a readable GGUF file. Nothing of it was used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GgufError {
    /// No file, or more than a model may have.
    #[error("{got} files given for one model, expected 1 to {max}")]
    Files {
        /// How many were given.
        got: usize,
        /// [`crate::limits::GGUF_PARTS_MAX`].
        max: usize,
    },
    /// The first four bytes are not `GGUF`.
    #[error("not a GGUF file: at {at} it has {got:02x?}, expected \"GGUF\"")]
    Magic {
        /// Where.
        at: Place,
        /// The four bytes.
        got: [u8; 4],
    },
    /// A version, or a byte order, that we do not read.
    #[error("GGUF version {got} at {at} is not supported, expected 2 or 3{}", byte_order(*got))]
    Version {
        /// Where.
        at: Place,
        /// The version, read as little-endian.
        got: u32,
    },
    /// The file ends inside something.
    #[error("the file is truncated: {what} at {at} needs {needed} bytes, {left} are left")]
    Truncated {
        /// Where that something begins.
        at: Place,
        /// What it is.
        what: &'static str,
        /// Bytes it needs.
        needed: u64,
        /// Bytes that are left.
        left: u64,
    },
    /// A count or length beyond its bound, or beyond what the rest of the file can hold.
    #[error("{what} at {at} is {got}, expected at most {max}")]
    TooLarge {
        /// Where it stands.
        at: Place,
        /// What it counts.
        what: &'static str,
        /// Its value.
        got: u64,
        /// The most that is allowed.
        max: u64,
    },
    /// A string that is not UTF-8.
    #[error("{what} at {at} is not UTF-8")]
    Utf8 {
        /// Where it begins.
        at: Place,
        /// What it is.
        what: &'static str,
    },
    /// A metadata type that the format does not have, or an array of arrays.
    #[error("metadata \"{key}\" at {at} has value type {got}, expected {expected}")]
    ValueType {
        /// Where the type stands.
        at: Place,
        /// The entry's key.
        key: String,
        /// The type's number.
        got: u32,
        /// What is allowed there.
        expected: &'static str,
    },
    /// A boolean that is neither 0 nor 1.
    #[error("a boolean at {at} is {got}, expected 0 or 1")]
    Bool {
        /// Where.
        at: Place,
        /// The byte.
        got: u8,
    },
    /// A metadata key or tensor name that stands there twice.
    #[error("{what} \"{name}\" at {at} stands there twice")]
    Duplicate {
        /// Where the second begins.
        at: Place,
        /// Metadata key or tensor.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// `general.alignment` that is no power of two within the bound.
    #[error(
        "general.alignment at {at} is {got}, expected a power of two that is at most {}",
        crate::limits::GGUF_ALIGNMENT_MAX
    )]
    Alignment {
        /// Where the entry begins.
        at: Place,
        /// What it says.
        got: String,
    },
    /// A tensor whose shape has a zero, too many dimensions, an overflow, or rows that
    /// are no whole number of its type's blocks.
    #[error("tensor \"{name}\" at {at} has the shape {dims:?} in type {ggml_type}: {why}")]
    Shape {
        /// Where its description begins.
        at: Place,
        /// Its name.
        name: String,
        /// Its dimensions, fastest first.
        dims: Vec<u64>,
        /// Its type's name.
        ggml_type: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A tensor whose data starts at no multiple of the alignment.
    #[error("tensor \"{name}\" starts at {offset} of the data, expected a multiple of {alignment}")]
    Misaligned {
        /// Its name.
        name: String,
        /// From the start of the data, bytes.
        offset: u64,
        /// `general.alignment`.
        alignment: u64,
    },
    /// A tensor whose data lies beyond the end of the file.
    #[error(
        "tensor \"{name}\" takes bytes {offset} to {offset}+{bytes} of the data, which has only \
         {left} bytes: the file is truncated or damaged, fetch it again"
    )]
    OutOfRange {
        /// Its name.
        name: String,
        /// From the start of the data, bytes.
        offset: u64,
        /// Its length.
        bytes: u64,
        /// Bytes of data that the file has.
        left: u64,
    },
    /// Two tensors that share bytes.
    #[error("tensors \"{first}\" and \"{second}\" overlap")]
    Overlap {
        /// The one that starts earlier.
        first: String,
        /// The other.
        second: String,
    },
    /// Parts that do not make one model.
    #[error("the parts do not make one model: {what} is {got}, expected {expected}")]
    Split {
        /// Which statement does not fit.
        what: String,
        /// What the files say.
        got: u64,
        /// What would fit.
        expected: u64,
    },
}

fn byte_order(version: u32) -> &'static str {
    match version.swap_bytes() {
        2 | 3 => " in little-endian order (this file is big-endian)",
        _ => "",
    }
}
