//! Models in several parts, as llama.cpp's `gguf-split` writes them: every part says
//! `split.no`, `split.count` and `split.tensors.count`; the first has all the metadata.

use std::collections::BTreeMap;

use super::{Gguf, GgufError, Part, Value};
use crate::limits::GGUF_TENSORS_MAX;

/// Joins the parts of a model; a single file may be whole by itself.
pub(super) fn join(mut parts: Vec<Part<'_>>) -> Result<Gguf<'_>, GgufError> {
    let given = parts.len() as u64;
    check_parts(&parts, given)?;
    parts.sort_by_key(|part| number(part, "split.no"));
    let mut parts = parts.into_iter();
    let first = parts.next().expect("at least one part");
    let metadata = first.metadata;
    let mut tensors = first.tensors;
    for part in parts {
        merge(&mut tensors, part.tensors)?;
    }
    let total = tensors.len() as u64;
    if total > GGUF_TENSORS_MAX {
        let what = "the number of tensors".to_owned();
        return Err(GgufError::Split { what, got: total, expected: GGUF_TENSORS_MAX });
    }
    if let Some(expected) = metadata.get("split.tensors.count").and_then(Value::as_u64)
        && given > 1
        && expected != total
    {
        let what = "the number of tensors in all parts".to_owned();
        return Err(GgufError::Split { what, got: total, expected });
    }
    Ok(Gguf { metadata, tensors })
}

/// Checks that the parts are all of one model, each there once.
fn check_parts(parts: &[Part<'_>], given: u64) -> Result<(), GgufError> {
    let mut seen = BTreeMap::new();
    for (i, part) in parts.iter().enumerate() {
        let count = number(part, "split.count").unwrap_or(1).max(1);
        if count != given {
            let what = format!("the number of files (file {} says split.count {count})", i + 1);
            return Err(GgufError::Split { what, got: given, expected: count });
        }
        let no = number(part, "split.no").unwrap_or(0);
        if no >= count {
            let what = format!("split.no of file {}, from 0,", i + 1);
            return Err(GgufError::Split { what, got: no, expected: count - 1 });
        }
        if let Some(first) = seen.insert(no, i) {
            let what = format!("the number of files with split.no {no} ({}, {})", first + 1, i + 1);
            return Err(GgufError::Split { what, got: 2, expected: 1 });
        }
    }
    let totals = parts.iter().map(|part| number(part, "split.tensors.count"));
    let first = number(&parts[0], "split.tensors.count");
    for (i, total) in totals.enumerate() {
        if total != first {
            let what = format!("split.tensors.count of file {}", i + 1);
            let (got, expected) = (total.unwrap_or(0), first.unwrap_or(0));
            return Err(GgufError::Split { what, got, expected });
        }
    }
    Ok(())
}

fn number(part: &Part<'_>, key: &str) -> Option<u64> {
    part.metadata.get(key).and_then(Value::as_u64)
}

fn merge<'a>(
    tensors: &mut BTreeMap<&'a str, super::Tensor<'a>>,
    more: BTreeMap<&'a str, super::Tensor<'a>>,
) -> Result<(), GgufError> {
    for (name, tensor) in more {
        if tensors.insert(name, tensor).is_some() {
            let what = format!("the number of parts that hold tensor \"{name}\"");
            return Err(GgufError::Split { what, got: 2, expected: 1 });
        }
    }
    Ok(())
}
