//! Tensor types: those we run, and the names of the others.

use std::fmt;

use crate::layout::Layout;

/// How a GGUF tensor's elements are stored. A tensor's elements come in blocks along its
/// rows; the block structures are ggml's (`ggml-common.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GgmlType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// 32 × 4 bits, scale.
    Q4_0,
    /// 32 × 4 bits, scale and min.
    Q4_1,
    /// 32 × 5 bits, scale.
    Q5_0,
    /// 32 × 8 bits, scale.
    Q8_0,
    /// 256 × 4 bits, 6-bit scales and mins.
    Q4K,
    /// 256 × 6 bits, 8-bit scales.
    Q6K,
    /// A type that we do not run, by its number.
    Other(u32),
}

impl GgmlType {
    /// The types that we run.
    pub const SUPPORTED: [GgmlType; 8] = [
        GgmlType::F32,
        GgmlType::F16,
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q8_0,
        GgmlType::Q4K,
        GgmlType::Q6K,
    ];

    /// The type of that number in the format.
    pub const fn from_number(number: u32) -> GgmlType {
        match number {
            0 => GgmlType::F32,
            1 => GgmlType::F16,
            2 => GgmlType::Q4_0,
            3 => GgmlType::Q4_1,
            6 => GgmlType::Q5_0,
            8 => GgmlType::Q8_0,
            12 => GgmlType::Q4K,
            14 => GgmlType::Q6K,
            other => GgmlType::Other(other),
        }
    }

    /// Its number in the format.
    pub const fn number(self) -> u32 {
        match self {
            GgmlType::F32 => 0,
            GgmlType::F16 => 1,
            GgmlType::Q4_0 => 2,
            GgmlType::Q4_1 => 3,
            GgmlType::Q5_0 => 6,
            GgmlType::Q8_0 => 8,
            GgmlType::Q4K => 12,
            GgmlType::Q6K => 14,
            GgmlType::Other(number) => number,
        }
    }

    /// (elements, bytes) of a block; `None` for a type that we do not run.
    pub const fn block(self) -> Option<(usize, usize)> {
        match self {
            GgmlType::F32 => Some((1, 4)),
            GgmlType::F16 => Some((1, 2)),
            GgmlType::Q4_0 => Some((32, 18)),
            GgmlType::Q4_1 => Some((32, 20)),
            GgmlType::Q5_0 => Some((32, 22)),
            GgmlType::Q8_0 => Some((32, 34)),
            GgmlType::Q4K => Some((256, 144)),
            GgmlType::Q6K => Some((256, 210)),
            GgmlType::Other(_) => None,
        }
    }

    /// The layout that a matrix of this type becomes; `None` for a type that we do not run.
    pub const fn layout(self) -> Option<Layout> {
        match self {
            GgmlType::F32 => Some(Layout::F32),
            GgmlType::F16 => Some(Layout::F16),
            GgmlType::Q4_0 => Some(Layout::Q4S),
            GgmlType::Q4_1 => Some(Layout::Q4M),
            GgmlType::Q5_0 => Some(Layout::Q5S),
            GgmlType::Q8_0 => Some(Layout::Q8),
            GgmlType::Q4K => Some(Layout::Q4K),
            GgmlType::Q6K => Some(Layout::Q6K),
            GgmlType::Other(_) => None,
        }
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.number() {
            0 => "F32",
            1 => "F16",
            2 => "Q4_0",
            3 => "Q4_1",
            6 => "Q5_0",
            7 => "Q5_1",
            8 => "Q8_0",
            9 => "Q8_1",
            10 => "Q2_K",
            11 => "Q3_K",
            12 => "Q4_K",
            13 => "Q5_K",
            14 => "Q6_K",
            15 => "Q8_K",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            20 => "IQ4_NL",
            21 => "IQ3_S",
            22 => "IQ2_S",
            23 => "IQ4_XS",
            24 => "I8",
            25 => "I16",
            26 => "I32",
            27 => "I64",
            28 => "F64",
            29 => "IQ1_M",
            30 => "BF16",
            34 => "TQ1_0",
            35 => "TQ2_0",
            39 => "MXFP4",
            other => return write!(f, "number {other}"),
        })
    }
}
