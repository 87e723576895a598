//! Models on disk: found, checked, converted once, whatever happened before.

use std::fs;
use std::path::{Path, PathBuf};

use coordinator::store::{CANONICAL_1, EXACT_F32, GgufFiles, Home, StoreError, prepare};
use model::testing::TinyModel;

struct Fixture {
    folder: tempfile::TempDir,
    home: Home,
}

impl Fixture {
    fn new() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(Some(folder.path().join("home"))).unwrap();
        Fixture { folder, home }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn model(&self) -> PathBuf {
        self.file("tiny.gguf", &tiny().to_bytes())
    }

    /// Name and length of every blob.
    fn blobs(&self) -> Vec<(String, u64)> {
        listing(&self.home.blobs())
    }
}

fn tiny() -> TinyModel {
    TinyModel { tokenizer: true, ..TinyModel::llama(7) }
}

fn only(class: &str) -> [String; 1] {
    [class.to_owned()]
}

fn listing(folder: &Path) -> Vec<(String, u64)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut listing: Vec<_> = entries
        .map(|e| (e.file_name().into_string().unwrap(), e.metadata().unwrap().len()))
        .collect();
    listing.sort();
    listing
}

#[test]
fn a_model_is_converted_once() {
    let fixture = Fixture::new();
    let path = fixture.model();
    let first = prepare(&fixture.home, &path, "tiny", &only(CANONICAL_1)).unwrap();
    assert!(!first.reused);
    for part in &first.spec.parts {
        for blob in &part.blobs {
            let bytes = fs::read(fixture.home.blobs().join(&blob.hash)).unwrap();
            assert_eq!(bytes.len() as u64, blob.bytes);
            assert_eq!(blake3::hash(&bytes).to_hex().as_str(), blob.hash);
        }
    }
    let manifest = fs::read(fixture.home.blobs().join(&first.spec.manifest.hash)).unwrap();
    assert_eq!(manifest.len() as u64, first.spec.manifest.bytes);
    assert_eq!(first.spec.parts.len() as u32, tiny().dims.layers + 2);
    assert_eq!(first.spec.parts[0].work_bytes, 0, "the embedding is a lookup");
    assert!(first.spec.parts[1].work_bytes > 0);
    assert_eq!(first.tokenizer.tokens.len() as u32, first.spec.vocab);

    let before = fixture.blobs();
    let again = prepare(&fixture.home, &path, "tiny", &only(EXACT_F32)).unwrap();
    assert!(again.reused);
    assert_eq!(fixture.blobs(), before);
    assert_eq!(again.spec.manifest, first.spec.manifest);
    assert_eq!(again.spec.kv_bytes_per_position(), 2 * first.spec.kv_bytes_per_position());
}

#[test]
fn what_is_missing_or_cut_short_is_made_anew() {
    let fixture = Fixture::new();
    let path = fixture.model();
    prepare(&fixture.home, &path, "tiny", &only(CANONICAL_1)).unwrap();
    let whole = fixture.blobs();
    // As if a conversion had been killed: some blobs, rubbish in progress, no record.
    let blobs = fixture.home.blobs();
    fs::remove_file(blobs.join(&whole[0].0)).unwrap();
    fs::write(blobs.join(&whole[1].0), b"short").unwrap();
    fs::write(fixture.home.partial().join("0123.blob"), b"half a blob").unwrap();
    for (record, _) in listing(&fixture.home.manifests()) {
        fs::remove_file(fixture.home.manifests().join(record)).unwrap();
    }
    assert!(!prepare(&fixture.home, &path, "tiny", &only(CANONICAL_1)).unwrap().reused);
    assert_eq!(fixture.blobs(), whole);
    let left = listing(&fixture.home.partial());
    assert!(left.iter().all(|(name, _)| !name.ends_with(".blob")), "{left:?}");
    // With the record there, a blob that is gone is noticed too.
    fs::remove_file(blobs.join(&whole[2].0)).unwrap();
    assert!(!prepare(&fixture.home, &path, "tiny", &only(CANONICAL_1)).unwrap().reused);
    assert_eq!(fixture.blobs(), whole);
}

#[test]
fn a_flipped_bit_is_healed() {
    let fixture = Fixture::new();
    let path = fixture.model();
    let model = prepare(&fixture.home, &path, "tiny", &only(CANONICAL_1)).unwrap();
    let hash = &model.spec.parts[1].blobs[0].hash;
    let blob = fixture.home.blobs().join(hash);
    let mut bytes = fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&blob, &bytes).unwrap();
    assert!(!prepare(&fixture.home, &path, "tiny", &only(CANONICAL_1)).unwrap().reused);
    assert_eq!(blake3::hash(&fs::read(&blob).unwrap()).to_hex().as_str(), hash);
    assert!(prepare(&fixture.home, &path, "tiny", &only(CANONICAL_1)).unwrap().reused);
}

#[test]
fn another_file_under_the_same_path_is_another_model() {
    let fixture = Fixture::new();
    let first = prepare(&fixture.home, &fixture.model(), "tiny", &only(CANONICAL_1)).unwrap();
    let other = TinyModel { seed: 8, ..tiny() };
    let path = fixture.file("tiny.gguf", &other.to_bytes());
    // The same length: only the time of change tells, and file systems may be coarse.
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
    let second = prepare(&fixture.home, &path, "tiny", &only(CANONICAL_1)).unwrap();
    assert!(!second.reused);
    assert_ne!(first.spec.manifest, second.spec.manifest);
}

#[test]
fn what_cannot_be_run_is_refused_before_anything_is_written() {
    let fixture = Fixture::new();
    let good = tiny().to_bytes();
    let cases = [
        ("cut.gguf", good[..good.len() / 2].to_vec(), "no sound GGUF"),
        ("text.gguf", b"no model at all".to_vec(), "no sound GGUF"),
        ("empty.gguf", Vec::new(), ""),
    ];
    for (name, bytes, expected) in cases {
        let path = fixture.file(name, &bytes);
        let error = prepare(&fixture.home, &path, "m", &only(CANONICAL_1)).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(name), "{name}: {error}");
    }
    let without = TinyModel { tokenizer: false, ..tiny() };
    let path = fixture.file("mute.gguf", &without.to_bytes());
    let error = prepare(&fixture.home, &path, "m", &only(CANONICAL_1)).unwrap_err();
    assert!(matches!(error, StoreError::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("tokenizer"), "{error}");
    let mut template = good.clone();
    let (word, other) = (b"endfor", b"endfro");
    let at = template.windows(word.len()).position(|bytes| bytes == word).unwrap();
    template[at..at + word.len()].copy_from_slice(other);
    let path = fixture.file("template.gguf", &template);
    let error = prepare(&fixture.home, &path, "m", &only(CANONICAL_1)).unwrap_err();
    assert!(matches!(error, StoreError::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("template"), "{error}");
    assert!(fixture.blobs().is_empty());
    assert!(listing(&fixture.home.manifests()).is_empty());
}

#[test]
fn files_and_folders_are_found() {
    let fixture = Fixture::new();
    let folder = fixture.home.model("pulled");
    fs::create_dir_all(&folder).unwrap();
    let problem = |path: &Path| match GgufFiles::open(path) {
        Ok(files) => panic!("{:?} was found", files.paths()),
        Err(error) => error.to_string(),
    };
    assert!(problem(&folder).contains("one model is expected there, 0 are"));
    assert!(problem(&folder.join("no.gguf")).contains("no such file"));
    fs::write(folder.join("a.gguf"), tiny().to_bytes()).unwrap();
    fs::write(folder.join("notes.txt"), b"").unwrap();
    let files = GgufFiles::open(&folder).unwrap();
    assert_eq!(files.paths(), [folder.join("a.gguf")]);
    fs::write(folder.join("b-00001-of-00002.gguf"), b"x").unwrap();
    assert!(problem(&folder).contains("2 are"));
    let part = folder.join("b-00001-of-00002.gguf");
    assert!(problem(&part).contains("b-00002-of-00002.gguf"));
}
