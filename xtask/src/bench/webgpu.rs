//! `cargo xtask bench --webgpu`: the GPU kernels at the default model's shapes in headless
//! Chromium, on its software adapter, and onnxruntime-web's on the same one.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::webdriver::Browser;
use crate::process::cargo;
use crate::{tidy, tools};

/// Names the folder of the npm package `onnxruntime-web`.
const ORT_ENV: &str = "WEFT_ONNXRUNTIME_WEB";
/// Longest time for all of it: a software GPU compiles and computes slowly.
const PAGE_MAX: Duration = Duration::from_secs(900);
const PROFILE: &str = "wasm-release";
/// Our files, beside the module's.
const FILES: [(&str, &str, &str); 3] = [
    ("/", "text/html", include_str!("webgpu/page.html")),
    ("/ours.js", "text/javascript", include_str!("webgpu/ours.js")),
    ("/ort.js", "text/javascript", include_str!("webgpu/ort.js")),
];

/// Measures and prints; `false` if ours could not be.
pub fn run(rest: &[String]) -> Result<bool> {
    ensure!(rest.is_empty(), "--webgpu takes no further flag; {ORT_ENV} names a peer's package");
    tools::ensure_wasm()?;
    let folder = tidy::target_folder()?.join("webgpu-bench");
    let module = module(&folder)?;
    let ort = std::env::var_os(ORT_ENV).map(|package| PathBuf::from(package).join("dist"));
    if ort.is_none() {
        println!("SKIPPED: {ORT_ENV} names no onnxruntime-web to compare with");
    }
    let address = serve(Site { module, ort: ort.clone() })?;
    let Some(browser) = Browser::start(&folder)? else {
        println!("SKIPPED: chromedriver is not installed");
        return Ok(false);
    };
    browser.open(&address)?;
    browser.wait("return window.said !== undefined", PAGE_MAX)?;
    let said = browser.script("return window.said")?;
    println!("| kernel, Chromium's software WebGPU | ms | GFLOP/s |\n|---|---:|---:|");
    let ours = rows(&said["ours"]);
    if ort.is_some() {
        rows(&said["ort"]);
    }
    Ok(ours)
}

/// Prints what one engine measured; `false` if it failed.
fn rows(said: &Value) -> bool {
    let Some(measured) = said["measured"].as_array() else {
        println!("| FAILED: {} | | |", said["failed"]);
        return false;
    };
    for row in measured {
        let seconds = row["seconds"].as_f64().unwrap_or(f64::NAN);
        let gflops = row["flops"].as_f64().unwrap_or(f64::NAN) / seconds / 1e9;
        let name = row["name"].as_str().unwrap_or_default();
        println!("| {name} | {:.2} | {gflops:.3} |", seconds * 1e3);
    }
    true
}

/// Builds the tab's worker with feature `testing`, and makes of it what a browser can load.
fn module(folder: &Path) -> Result<PathBuf> {
    let mut build = cargo(&["build", "--locked", "--package", "browser-worker", "--lib"]);
    build.args(["--features", "testing", "--target", tools::WASM, "--profile", PROFILE]);
    build.arg("--target-dir").arg(folder);
    build.env("RUSTFLAGS", "-Ctarget-feature=+simd128").env_remove("CARGO_ENCODED_RUSTFLAGS");
    ensure!(build.status().context("cargo cannot be run")?.success(), "it does not compile");
    let wasm = folder.join(tools::WASM).join(PROFILE).join("browser_worker.wasm");
    let bound = folder.join("bound");
    let mut bind = cargo(&["run", "--quiet", "--locked", "--package", "bindgen", "--"]);
    bind.arg(wasm).arg(&bound).arg("browser_worker");
    ensure!(bind.status().context("cargo cannot be run")?.success(), "it cannot be bound");
    Ok(bound)
}

struct Site {
    module: PathBuf,
    ort: Option<PathBuf>,
}

/// Serves the page until the process ends; its address.
fn serve(site: Site) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("http://{}/", listener.local_addr()?);
    let site = Arc::new(site);
    std::thread::spawn(move || {
        // A browser opens connections that it does not use: each has a thread of its own.
        for stream in listener.incoming().flatten() {
            let site = site.clone();
            std::thread::spawn(move || site.answer(&stream));
        }
    });
    Ok(address)
}

impl Site {
    fn answer(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        let mut request = BufReader::new(stream).lines().map_while(Result::ok);
        let first = request.next().unwrap_or_default();
        // The headers, of no interest.
        request.take_while(|line| !line.is_empty()).for_each(drop);
        let path = first.split(' ').nth(1).unwrap_or_default();
        let (status, kind, content) = match self.file(path) {
            Some((kind, content)) => ("200 OK", kind, content),
            None => ("404 Not Found", "text/plain", Vec::new()),
        };
        // Isolated, so that its clock is as fine as it can be.
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
             Cross-Origin-Opener-Policy: same-origin\r\n\
             Cross-Origin-Embedder-Policy: require-corp\r\nConnection: close\r\n\r\n",
            content.len()
        )?;
        stream.write_all(&content)
    }

    fn file(&self, path: &str) -> Option<(&'static str, Vec<u8>)> {
        if let Some((_, kind, content)) = FILES.iter().find(|(name, _, _)| *name == path) {
            return Some((kind, content.as_bytes().to_vec()));
        }
        let (folder, name) = match path.strip_prefix("/ort/") {
            Some(name) => (self.ort.as_ref()?, name),
            None => (&self.module, path.strip_prefix('/')?),
        };
        let kind = match name.rsplit_once('.')?.1 {
            "js" | "mjs" => "text/javascript",
            "wasm" => "application/wasm",
            _ => return None,
        };
        let is_plain = !name.contains('/') && !name.contains("..");
        is_plain.then(|| fs::read(folder.join(name)).ok()).flatten().map(|bytes| (kind, bytes))
    }
}
