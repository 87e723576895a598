//! Metadata values. Strings and arrays borrow the file.

use std::fmt;

use super::error::GgufError;
use super::read::Reader;
use crate::limits::{GGUF_ARRAY_MAX, GGUF_STRING_BYTES_MAX};

/// One metadata value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Any of the unsigned integer types.
    Uint(u64),
    /// Any of the signed integer types.
    Int(i64),
    /// 32 bits.
    F32(f32),
    /// 64 bits.
    F64(f64),
    /// A truth value.
    Bool(bool),
    /// UTF-8.
    Str(&'a str),
    /// Elements of one type.
    Array(Array<'a>),
}

/// A metadata array. Its bytes were checked, so that reading it cannot fail.
#[derive(Clone, Copy, PartialEq)]
pub struct Array<'a> {
    pub(super) item: ItemType,
    pub(super) len: usize,
    pub(super) bytes: &'a [u8],
}

/// The types that a value, or an array's element, may have; the numbers are the format's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ItemType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Str,
    U64,
    I64,
    F64,
}

const TYPE_ARRAY: u32 = 9;

impl ItemType {
    fn from_number(number: u32) -> Option<ItemType> {
        Some(match number {
            0 => ItemType::U8,
            1 => ItemType::I8,
            2 => ItemType::U16,
            3 => ItemType::I16,
            4 => ItemType::U32,
            5 => ItemType::I32,
            6 => ItemType::F32,
            7 => ItemType::Bool,
            8 => ItemType::Str,
            10 => ItemType::U64,
            11 => ItemType::I64,
            12 => ItemType::F64,
            _ => return None,
        })
    }

    /// Bytes of an element; of a string, its length field alone.
    fn bytes_min(self) -> u64 {
        match self {
            ItemType::U8 | ItemType::I8 | ItemType::Bool => 1,
            ItemType::U16 | ItemType::I16 => 2,
            ItemType::U32 | ItemType::I32 | ItemType::F32 => 4,
            ItemType::Str | ItemType::U64 | ItemType::I64 | ItemType::F64 => 8,
        }
    }
}

/// Reads the value of `key`: its type's number, then the value itself.
pub(super) fn read_value<'a>(r: &mut Reader<'a>, key: &str) -> Result<Value<'a>, GgufError> {
    let at = r.place();
    let number = r.u32("a value's type")?;
    if number == TYPE_ARRAY {
        return read_array(r, key).map(Value::Array);
    }
    let Some(item) = ItemType::from_number(number) else {
        let expected = "a type from 0 to 12";
        return Err(GgufError::ValueType { at, key: key.to_owned(), got: number, expected });
    };
    read_item(r, item)
}

fn read_item<'a>(r: &mut Reader<'a>, item: ItemType) -> Result<Value<'a>, GgufError> {
    const WHAT: &str = "a metadata value";
    Ok(match item {
        ItemType::U8 => Value::Uint(r.u8(WHAT)?.into()),
        ItemType::I8 => Value::Int((r.u8(WHAT)? as i8).into()),
        ItemType::U16 => Value::Uint(r.u16(WHAT)?.into()),
        ItemType::I16 => Value::Int((r.u16(WHAT)? as i16).into()),
        ItemType::U32 => Value::Uint(r.u32(WHAT)?.into()),
        ItemType::I32 => Value::Int((r.u32(WHAT)? as i32).into()),
        ItemType::F32 => Value::F32(f32::from_bits(r.u32(WHAT)?)),
        ItemType::Bool => Value::Bool(read_bool(r)?),
        ItemType::Str => Value::Str(r.string("a metadata string", GGUF_STRING_BYTES_MAX)?),
        ItemType::U64 => Value::Uint(r.u64(WHAT)?),
        ItemType::I64 => Value::Int(r.u64(WHAT)? as i64),
        ItemType::F64 => Value::F64(f64::from_bits(r.u64(WHAT)?)),
    })
}

fn read_bool(r: &mut Reader<'_>) -> Result<bool, GgufError> {
    let at = r.place();
    match r.u8("a boolean")? {
        0 => Ok(false),
        1 => Ok(true),
        got => Err(GgufError::Bool { at, got }),
    }
}

fn read_array<'a>(r: &mut Reader<'a>, key: &str) -> Result<Array<'a>, GgufError> {
    let at = r.place();
    let number = r.u32("an array's element type")?;
    let Some(item) = ItemType::from_number(number) else {
        let expected = "elements of a type from 0 to 12 that are no arrays";
        return Err(GgufError::ValueType { at, key: key.to_owned(), got: number, expected });
    };
    let len = r.count("an array's length", GGUF_ARRAY_MAX, item.bytes_min())?;
    let bytes = match item {
        ItemType::Str => {
            // A second cursor finds the end and checks every string on the way.
            let rest = r.rest();
            let start = r.position();
            for _ in 0..len {
                r.string("a string in an array", GGUF_STRING_BYTES_MAX)?;
            }
            let count = usize::try_from(r.position() - start).expect("within a slice");
            &rest[..count]
        }
        ItemType::Bool => {
            let rest = r.rest();
            for _ in 0..len {
                read_bool(r)?;
            }
            &rest[..usize::try_from(len).expect("within a slice")]
        }
        _ => r.take(len * item.bytes_min(), "an array")?,
    };
    let len = usize::try_from(len).expect("at most GGUF_ARRAY_MAX");
    Ok(Array { item, len, bytes })
}

impl<'a> Value<'a> {
    /// The integer, where it is one and at least 0.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::Uint(v) => Some(v),
            Value::Int(v) => u64::try_from(v).ok(),
            _ => None,
        }
    }

    /// The integer, where it is one that a u32 holds.
    pub fn as_u32(&self) -> Option<u32> {
        self.as_u64().and_then(|v| u32::try_from(v).ok())
    }

    /// The number, where it is f32; an f64 is rounded.
    pub fn as_f32(&self) -> Option<f32> {
        match *self {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => None,
        }
    }

    /// The truth value, where it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Value::Bool(v) => Some(v),
            _ => None,
        }
    }

    /// The string, where it is one.
    pub fn as_str(&self) -> Option<&'a str> {
        match *self {
            Value::Str(v) => Some(v),
            _ => None,
        }
    }

    /// The array, where it is one.
    pub fn as_array(&self) -> Option<Array<'a>> {
        match *self {
            Value::Array(v) => Some(v),
            _ => None,
        }
    }
}

impl fmt::Debug for Array<'_> {
    /// Its type and length: a vocabulary's elements would fill the screen.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} x {}", self.item, self.len)
    }
}

impl<'a> Array<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its strings, where they are strings.
    pub fn strings(&self) -> Option<Strings<'a>> {
        (self.item == ItemType::Str).then_some(Strings { left: self.len, bytes: self.bytes })
    }

    /// Its numbers, where they are f32.
    pub fn f32s(&self) -> Option<impl ExactSizeIterator<Item = f32> + use<'a>> {
        (self.item == ItemType::F32).then(|| words(self.bytes).map(f32::from_bits))
    }

    /// Its numbers, where they are i32.
    pub fn i32s(&self) -> Option<impl ExactSizeIterator<Item = i32> + use<'a>> {
        (self.item == ItemType::I32).then(|| words(self.bytes).map(|w| w as i32))
    }

    /// Its numbers, where they are u32.
    pub fn u32s(&self) -> Option<impl ExactSizeIterator<Item = u32> + use<'a>> {
        (self.item == ItemType::U32).then(|| words(self.bytes))
    }
}

fn words<'a>(bytes: &'a [u8]) -> impl ExactSizeIterator<Item = u32> + use<'a> {
    bytes.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().expect("4 bytes")))
}

/// The strings of an array, in order.
#[derive(Clone, Debug)]
pub struct Strings<'a> {
    left: usize,
    bytes: &'a [u8],
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.left = self.left.checked_sub(1)?;
        let (len, rest) = self.bytes.split_first_chunk().expect("checked when parsed");
        let len = usize::try_from(u64::from_le_bytes(*len)).expect("checked when parsed");
        let (text, rest) = rest.split_at(len);
        self.bytes = rest;
        Some(std::str::from_utf8(text).expect("checked when parsed"))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Strings<'_> {}
