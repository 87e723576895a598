//! What the tests of this package share: where the real models and the goldens lie.
//!
//! The tests are in `golden/` (against llama.cpp and an independent implementation),
//! `kernels/` (one case table per op), `wasm_simd/` (the same inside WASM), `sim/` (the
//! scheduler and worker-cores over a fake network) and `e2e/` (real processes).

use std::path::{Path, PathBuf};

pub mod wasm;

/// The environment variable that names the folder of test models.
pub const MODELS_ENV: &str = "WEFT_TEST_MODELS";

/// The default model's file, which no test may do without.
///
/// # Panics
/// If it is not there: `cargo xtask test` fetches it.
pub fn required_model() -> PathBuf {
    find("smollm2-135m").unwrap_or_else(|| {
        panic!("smollm2-135m.gguf is not in ${MODELS_ENV}: run the tests with `cargo xtask test`")
    })
}

/// The text whose perplexity is measured, the GNU GPL in version 3.
///
/// # Panics
/// If it is not there: `cargo xtask test` fetches it.
pub fn required_text() -> PathBuf {
    const NAME: &str = "gpl-3.txt";
    let folder = std::env::var_os(MODELS_ENV).map(PathBuf::from).unwrap_or_default();
    let path = folder.join(NAME);
    assert!(
        path.is_file(),
        "{NAME} is not in ${MODELS_ENV}: run the tests with `cargo xtask test`, or copy Debian's \
         /usr/share/common-licenses/GPL-3 there"
    );
    path
}

/// A model that a test can do without; prints the skip when it is not there.
pub fn optional_model(name: &str) -> Option<PathBuf> {
    let found = find(name);
    if found.is_none() {
        println!("SKIPPED: {name}.gguf is not in ${MODELS_ENV}");
    }
    found
}

fn find(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(MODELS_ENV)?;
    let path = Path::new(&folder).join(format!("{name}.gguf"));
    path.is_file().then_some(path)
}

/// A golden file of this package as JSON.
pub fn golden(name: &str) -> serde_json::Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
