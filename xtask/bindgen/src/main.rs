//! `bindgen WASM FOLDER NAME`: makes a folder that a browser can load out of a wasm module, and
//! says how large it is on the wire.
//!
//! Writes `NAME.js` (an ES module whose default export loads the rest), `NAME_bg.wasm` and what
//! the module's own snippets need. The last line of the output is `gzip BYTES`, the size of the
//! wasm as a server sends it. `wasm-opt` is used where it is installed: it takes some percent
//! more off.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use wasm_bindgen_cli_support::Bindgen;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [wasm, folder, name] = arguments.as_slice() else {
        bail!("usage: bindgen WASM FOLDER NAME");
    };
    let folder = Path::new(folder);
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    Bindgen::new()
        .input_path(wasm)
        .out_name(name)
        .web(true)?
        .omit_default_module_path(false)
        .typescript(false)
        .remove_name_section(true)
        .remove_producers_section(true)
        .generate(folder)
        .with_context(|| format!("{wasm} cannot be bound"))?;
    let bound = folder.join(format!("{name}_bg.wasm"));
    optimise(&bound)?;
    let bytes = fs::read(&bound)?;
    println!("{name}: {} bytes", bytes.len());
    println!("gzip {}", gzipped(&bytes)?);
    Ok(())
}

/// Runs `wasm-opt` over the module, if there is one.
fn optimise(wasm: &Path) -> Result<()> {
    let smaller = wasm.with_extension("smaller");
    // Not --all-features: that writes encodings which browsers do not read.
    let features = ["--enable-simd", "--enable-bulk-memory", "--enable-reference-types"];
    let more =
        ["--enable-nontrapping-float-to-int", "--enable-sign-ext", "--enable-mutable-globals"];
    // Only the module that has such instructions gets any.
    let features = features.into_iter().chain(["--enable-relaxed-simd"]);
    let mut command = Command::new("wasm-opt");
    command.args(["-Os", "--enable-multivalue"]).args(features).args(more);
    match command.arg(wasm).arg("-o").arg(&smaller).output() {
        Err(_) => println!("no wasm-opt here: the module is a little larger than it could be"),
        Ok(ran) if ran.status.success() => fs::rename(&smaller, wasm)?,
        Ok(ran) => {
            let said = String::from_utf8_lossy(&ran.stderr);
            println!("wasm-opt failed, so its result is not used: {}", said.trim());
        }
    }
    Ok(())
}

fn gzipped(bytes: &[u8]) -> Result<usize> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?.len())
}
