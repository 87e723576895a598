//! Values of a YAML file that are checked where they stand, so that what is wrong is told with
//! its own line: an error that a visitor returns is given the place of what it visited.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Error, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Reads a `T` and makes an `R` of it, or says in words why not.
pub(super) fn checked<'de, D, T, R>(
    deserializer: D,
    check: impl FnOnce(T) -> Result<R, String>,
) -> Result<R, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_any(Checked { check, of: PhantomData })
}

struct Checked<T, F> {
    check: F,
    of: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>, R, F: FnOnce(T) -> Result<R, String>> Checked<T, F> {
    fn read<D: Deserializer<'de>>(self, value: D) -> Result<R, D::Error> {
        (self.check)(T::deserialize(value)?).map_err(D::Error::custom)
    }
}

impl<'de, T: Deserialize<'de>, R, F: FnOnce(T) -> Result<R, String>> Visitor<'de>
    for Checked<T, F>
{
    type Value = R;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<R, E> {
        self.read(value.into_deserializer())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<R, E> {
        self.read(value.into_deserializer())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<R, E> {
        self.read(value.into_deserializer())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<R, E> {
        self.read(value.into_deserializer())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<R, E> {
        self.read(value.into_deserializer())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, values: A) -> Result<R, A::Error> {
        self.read(SeqAccessDeserializer::new(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, values: A) -> Result<R, A::Error> {
        self.read(MapAccessDeserializer::new(values))
    }
}
