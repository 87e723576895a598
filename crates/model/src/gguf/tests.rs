//! Files written by hand: what is read, and what is refused.

use super::*;
use crate::testing::{Entry, GgufWriter};

fn small() -> GgufWriter {
    let mut file = GgufWriter::default();
    file.set("general.architecture", Entry::Str("llama".to_owned()))
        .set("a.u8", Entry::U8(200))
        .set("a.i64", Entry::I64(-5))
        .set("a.u64", Entry::U64(1 << 40))
        .set("a.f64", Entry::F64(0.1))
        .set("a.bool", Entry::Bool(true))
        .set("a.strs", Entry::Strs(vec!["x".to_owned(), String::new(), "añ".to_owned()]))
        .set("a.f32s", Entry::F32s(vec![1.5, f32::NEG_INFINITY]))
        .set("a.i32s", Entry::I32s(vec![-1, 7]))
        .set("a.bools", Entry::Bools(vec![true, false]))
        .tensor("one", &[3], GgmlType::F32, vec![1; 12])
        .tensor("two", &[32, 2], GgmlType::Q8_0, vec![2; 68])
        .tensor("odd", &[5], GgmlType::Other(30), vec![3; 10]);
    file
}

fn refused(bytes: &[u8]) -> GgufError {
    Gguf::parse(&[bytes]).expect_err("the file is wrong")
}

#[test]
fn metadata_and_tensors_are_read() {
    for version in [2, 3] {
        let mut file = small();
        file.version = version;
        let bytes = file.to_bytes();
        let gguf = Gguf::parse(&[&bytes]).expect("a good file");
        assert_eq!(gguf.get_str("general.architecture"), Some("llama"));
        assert_eq!(gguf.get_u32("a.u8"), Some(200));
        assert_eq!(gguf.get_u32("a.i64"), None);
        assert_eq!(gguf.get("a.i64"), Some(&Value::Int(-5)));
        assert_eq!(gguf.get_u32("a.u64"), None);
        assert_eq!(gguf.get_f32("a.f64"), Some(0.1));
        assert_eq!(gguf.get_bool("a.bool"), Some(true));
        let strings: Vec<_> = gguf.get_str_array("a.strs").expect("strings").collect();
        assert_eq!(strings, ["x", "", "añ"]);
        let numbers: Vec<_> = gguf.get_f32_array("a.f32s").expect("numbers").collect();
        assert_eq!(numbers, [1.5, f32::NEG_INFINITY]);
        let numbers: Vec<_> = gguf.get_i32_array("a.i32s").expect("numbers").collect();
        assert_eq!(numbers, [-1, 7]);
        assert!(gguf.get_i32_array("a.f32s").is_none());
        assert!(gguf.get_str("a.bool").is_none() && gguf.get("a").is_none());
        assert_eq!(gguf.metadata().len(), 10);

        let two = gguf.tensor("two").expect("it is there");
        assert_eq!((two.dims(), two.ggml_type), (&[32, 2][..], GgmlType::Q8_0));
        assert_eq!(two.data(), [2; 68]);
        assert_eq!(gguf.tensor("one").expect("it is there").data(), [1; 12]);
        assert!(gguf.tensor("odd").expect("it is there").data().is_empty());
    }
}

#[test]
fn every_truncation_is_refused_or_reads_the_same() {
    let bytes = small().to_bytes();
    // The last tensor is of a type that is not located, and the file ends with padding.
    let needed = bytes.len() - 32 - 28;
    for len in 0..bytes.len() {
        assert_eq!(Gguf::parse(&[&bytes[..len]]).is_err(), len < needed, "{len} bytes");
    }
}

#[test]
fn headers_that_are_not_ours_are_named() {
    let mut bytes = small().to_bytes();
    bytes[4] = 1;
    assert!(matches!(refused(&bytes), GgufError::Version { got: 1, .. }));
    bytes[4..8].copy_from_slice(&3u32.to_be_bytes());
    assert!(refused(&bytes).to_string().contains("big-endian"));
    bytes[0] = b'g';
    assert!(matches!(refused(&bytes), GgufError::Magic { .. }));
    assert!(matches!(refused(b"GG"), GgufError::Truncated { left: 2, needed: 4, .. }));
}

#[test]
fn counts_and_lengths_are_bounded_before_use() {
    let with_count = |at: usize, count: u64| {
        let mut bytes = small().to_bytes();
        bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
        refused(&bytes)
    };
    for at in [8, 16] {
        assert!(matches!(with_count(at, u64::MAX), GgufError::TooLarge { .. }));
        assert!(matches!(with_count(at, 1 << 13), GgufError::Truncated { .. }));
    }
    let with_value = |number: u32, value: &[u8]| {
        let mut file = GgufWriter::default();
        file.set("k", Entry::Raw(number, value.to_vec()));
        refused(&file.to_bytes())
    };
    let mut array = Vec::from(4u32.to_le_bytes());
    array.extend(u64::MAX.to_le_bytes());
    assert!(matches!(with_value(9, &array), GgufError::TooLarge { got: u64::MAX, .. }));
    array[4..].copy_from_slice(&(1u64 << 20).to_le_bytes());
    assert!(matches!(with_value(9, &array), GgufError::Truncated { .. }));
    assert!(matches!(with_value(8, &u64::MAX.to_le_bytes()), GgufError::TooLarge { .. }));
    assert!(matches!(with_value(13, &[]), GgufError::ValueType { got: 13, .. }));
    array[..4].copy_from_slice(&9u32.to_le_bytes());
    assert!(matches!(with_value(9, &array), GgufError::ValueType { got: 9, .. }));
    assert!(matches!(with_value(7, &[2]), GgufError::Bool { got: 2, .. }));
    assert!(matches!(with_value(8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]), GgufError::Utf8 { .. }));
}

#[test]
fn duplicates_are_refused() {
    let mut file = small();
    file.metadata.push(("a.u8".to_owned(), Entry::U8(1)));
    assert!(matches!(refused(&file.to_bytes()), GgufError::Duplicate { .. }));
    let mut file = small();
    file.tensor("one", &[1], GgmlType::F32, vec![0; 4]);
    assert!(matches!(refused(&file.to_bytes()), GgufError::Duplicate { .. }));
}

#[test]
fn impossible_shapes_are_refused() {
    for dims in [&[][..], &[0], &[32, 0], &[u64::MAX, 2], &[1 << 40, 1 << 40], &[31]] {
        let mut file = GgufWriter::default();
        file.tensor("t", dims, GgmlType::Q8_0, vec![0; 34]);
        let error = refused(&file.to_bytes());
        assert!(matches!(error, GgufError::Shape { .. }), "{dims:?}: {error}");
    }
    let mut file = GgufWriter::default();
    file.tensor("t", &[1, 1, 1, 1, 1], GgmlType::F32, vec![0; 4]);
    assert!(matches!(refused(&file.to_bytes()), GgufError::TooLarge { got: 5, max: 4, .. }));
    let mut file = GgufWriter::default();
    file.tensor("t", &[1 << 60, 1], GgmlType::F32, vec![0; 4]);
    assert!(matches!(refused(&file.to_bytes()), GgufError::OutOfRange { .. }));
}

#[test]
fn offsets_are_checked() {
    let file = small();
    let bytes = file.to_bytes();
    let place = |name: &[u8]| {
        let at = bytes.windows(name.len()).position(|w| w == name).expect("its name");
        at + name.len()
    };
    // After "two" come the dimension count, two dimensions and the type.
    let offset_at = place(b"two") + 4 + 16 + 4;
    for (offset, expected) in [
        (0, "overlap"),
        (33, "multiple of 32"),
        (1 << 40, "truncated or damaged"),
        (u64::MAX - 31, "truncated or damaged"),
    ] {
        let mut bytes = bytes.clone();
        bytes[offset_at..offset_at + 8].copy_from_slice(&u64::to_le_bytes(offset));
        let error = refused(&bytes).to_string();
        assert!(error.contains(expected), "{offset}: {error}");
    }
}

#[test]
fn alignment_is_read_and_bounded() {
    let mut file = small();
    file.alignment = 256;
    file.set("general.alignment", Entry::U32(256));
    let bytes = file.to_bytes();
    let gguf = Gguf::parse(&[&bytes]).expect("a good file");
    assert_eq!(gguf.tensor("two").expect("it is there").data(), [2; 68]);
    for bad in [Entry::U32(0), Entry::U32(24), Entry::U32(1 << 21), Entry::Bool(true)] {
        file.set("general.alignment", bad);
        assert!(matches!(refused(&file.to_bytes()), GgufError::Alignment { .. }));
    }
}

#[test]
fn parts_make_one_model_in_any_order() {
    let parts: Vec<_> = small().split(3).iter().map(GgufWriter::to_bytes).collect();
    let joined = Gguf::parse(&[&parts[2], &parts[0], &parts[1]]).expect("all are there");
    assert_eq!(joined.tensors().len(), 3);
    assert_eq!(joined.tensor("two").expect("it is there").data(), [2; 68]);
    assert_eq!(joined.get_bool("a.bool"), Some(true));
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let parts = small().split(3);
    let bytes: Vec<_> = parts.iter().map(GgufWriter::to_bytes).collect();
    let refused = |files: &[&[u8]], expected: &str| {
        let error = Gguf::parse(files).expect_err("parts that do not fit").to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(&[], "0 files");
    refused(&[&bytes[0]], "the number of files (file 1 says split.count 3) is 1, expected 3");
    refused(&[&bytes[0], &bytes[1], &bytes[1]], "split.no 1");
    refused(&[&small().to_bytes(), &bytes[1], &bytes[2]], "split.count 1");
    let mut wrong = parts[1].clone();
    wrong.set("split.tensors.count", Entry::I32(4));
    refused(&[&bytes[0], &wrong.to_bytes(), &bytes[2]], "split.tensors.count");
    let mut wrong = parts[1].clone();
    wrong.set("split.no", Entry::U16(3));
    refused(&[&bytes[0], &wrong.to_bytes(), &bytes[2]], "split.no of file 2");
    let mut wrong = parts[1].clone();
    wrong.tensor("one", &[1], GgmlType::F32, vec![0; 4]);
    refused(&[&bytes[0], &wrong.to_bytes(), &bytes[2]], "tensor \"one\"");
    let mut wrong = parts[1].clone();
    wrong.tensors.clear();
    refused(&[&bytes[0], &wrong.to_bytes(), &bytes[2]], "number of tensors");
    let short = &bytes[1][..30];
    refused(&[&bytes[0], short, &bytes[2]], "of file 2");
}
