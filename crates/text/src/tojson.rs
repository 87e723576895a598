//! `tojson` as Hugging Face's templates expect it: Python's `json.dumps`, not Jinja's HTML-safe
//! form.

use std::io;

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Spaces of one level of `indent` at most.
const INDENT_MAX: usize = 16;

/// The filter: `value | tojson(indent=4)`; strings stay Unicode.
pub(crate) fn tojson(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    for ignored in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<Value> = options.get(ignored)?;
    }
    options.assert_all_used()?;
    let mut out = Vec::new();
    match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(INDENT_MAX));
            write(&value, &mut out, PrettyFormatter::with_indent(spaces.as_bytes()))?;
        }
        None => write(&value, &mut out, PythonFormatter)?,
    }
    Ok(Value::from(String::from_utf8_lossy(&out).into_owned()))
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::BadSerialization, format!("tojson: {error}"))
}

fn write(value: &Value, out: &mut Vec<u8>, formatter: impl Formatter) -> Result<(), Error> {
    serde::Serialize::serialize(value, &mut Serializer::with_formatter(out, formatter))
        .map_err(failed)
}

/// Python's separators: ", " and ": ".
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }
}
