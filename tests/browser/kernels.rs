//! The GPU kernels' table of cases in headless Chromium, on SwiftShader: the one that
//! `tests/kernels/gpu.rs` runs natively.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use engine::gpu::kernels::{Variant, cases};
use serde_json::Value;

use crate::chrome::Chrome;
use crate::harness::machine;

/// The tab's worker with feature `testing`, in a page of its own: cases run in a worker, where
/// they run for a volunteer too. The module says nothing else to a page that does not speak.
const WORKER: &str = "\
import init, { run_kernel_cases } from './browser_worker.js';
try {
  await init();
  postMessage({ cases: await run_kernel_cases() });
} catch (error) {
  postMessage({ failed: String(error) });
}
";
const PAGE: &str = "\
<!doctype html>
<meta charset=utf-8>
<title>kernels</title>
<script>
  const worker = new Worker('/worker.js', { type: 'module' });
  const said = new Promise((say) => {
    worker.onmessage = ({ data }) => { if (data.cases || data.failed) say(data); };
    worker.onerror = (event) => say({ failed: `the worker: ${event.message}` });
  });
  const seconds = (n) => new Promise((say) => setTimeout(() => say(null), n * 1000));
</script>
";
/// Longest time for all cases, most of which SwiftShader spends compiling some 50 pipelines:
/// a minute on cores that have nothing else to do, ten where they have.
const CASES_MAX: Duration = Duration::from_secs(1200);

/// Builds the module, which is not the one that visitors get, in a target folder of its own, and
/// makes of it what a browser can load; the folder that has it.
fn module() -> PathBuf {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernel-cases");
    let cargo = || {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
        command
    };
    let built = cargo()
        .args(["build", "--locked", "--package", "browser-worker", "--features", "testing"])
        .args(["--lib", "--target", "wasm32-unknown-unknown", "--target-dir"])
        .arg(&scratch)
        .status();
    assert!(built.expect("cargo runs").success(), "browser-worker does not build with testing");
    let wasm = scratch.join("wasm32-unknown-unknown/debug/browser_worker.wasm");
    let folder = scratch.join("bound");
    let bound = cargo()
        .args(["run", "--quiet", "--locked", "--package", "bindgen", "--"])
        .arg(wasm)
        .arg(&folder)
        .arg("browser_worker")
        .output()
        .expect("cargo runs");
    assert!(bound.status.success(), "{}", String::from_utf8_lossy(&bound.stderr));
    folder
}

/// Serves the page and the module until the process ends; where.
fn serve(folder: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port of this machine");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        // A browser opens connections that it does not use: each has a thread of its own.
        for stream in listener.incoming().flatten() {
            let folder = folder.clone();
            std::thread::spawn(move || answer(&stream, &folder));
        }
    });
    format!("http://{address}/")
}

fn answer(mut stream: &TcpStream, folder: &Path) -> std::io::Result<()> {
    let mut request = BufReader::new(stream).lines().map_while(Result::ok);
    let first = request.next().unwrap_or_default();
    // The headers, of no interest.
    request.take_while(|line| !line.is_empty()).for_each(drop);
    let path = first.split(' ').nth(1).unwrap_or_default();
    let file = |name: &str| std::fs::read(folder.join(name)).expect("it was bound");
    let (status, kind, content) = match path {
        "/" => ("200 OK", "text/html", PAGE.into()),
        "/worker.js" => ("200 OK", "text/javascript", WORKER.into()),
        "/browser_worker.js" => ("200 OK", "text/javascript", file("browser_worker.js")),
        "/browser_worker_bg.wasm" => ("200 OK", "application/wasm", file("browser_worker_bg.wasm")),
        _ => ("404 Not Found", "text/plain", Vec::new()),
    };
    let length = content.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    )?;
    stream.write_all(&content)
}

/// Why a case is not run here, if it is not.
fn native_only(name: &str) -> Option<&'static str> {
    cases::NATIVE_ONLY.iter().find(|(part, _)| name.contains(part)).map(|(_, reason)| *reason)
}

#[tokio::test]
async fn all_kernels_compute_in_a_browser_what_they_compute_natively() {
    let _machine = machine().await;
    let folder = tokio::task::spawn_blocking(module).await.expect("a module");
    let url = serve(folder);
    let chrome = Chrome::start("kernels").await;
    chrome.open(&url).await;
    let started = Instant::now();
    // A script may take half a minute at most.
    let said = loop {
        match chrome.script("return Promise.race([said, seconds(10)])").await {
            Value::Null => assert!(started.elapsed() < CASES_MAX, "the cases take too long"),
            said => break said,
        }
    };
    let said = said["cases"].as_str().unwrap_or_else(|| panic!("it failed: {said}"));
    let said: Value = serde_json::from_str(said).expect("JSON");
    let variants = said["variants"].as_array().expect("variants");
    assert_eq!(variants.len(), Variant::ALL.len());
    for (variant, said) in Variant::ALL.into_iter().zip(variants) {
        let name = variant.name();
        assert_eq!(said["name"], name);
        if let Some(reason) = said["problem"].as_str() {
            assert_ne!(variant, Variant::Base, "what must run everywhere: {reason}");
            println!("SKIPPED: {name} in Chromium: {reason}");
            continue;
        }
        let cases = said["cases"].as_array().expect("cases");
        let text = |case: &Value| case["name"].as_str().expect("a name").to_owned();
        let names: Vec<String> = cases.iter().map(text).collect();
        let (skipped, wanted): (Vec<String>, Vec<String>) =
            cases::names(variant).into_iter().partition(|name| native_only(name).is_some());
        for name in skipped {
            println!("SKIPPED: {name} in Chromium: {}", native_only(&name).unwrap_or_default());
        }
        assert_eq!(names, wanted, "the table that is run natively");
        let failed: Vec<String> = cases
            .iter()
            .filter_map(|case| Some(format!("{}: {}", text(case), case["problem"].as_str()?)))
            .collect();
        assert!(failed.is_empty(), "{} failed\n{}", failed.len(), failed.join("\n"));
        let mut errors = 0f64;
        let mut guard_words = 0;
        for case in cases {
            let (error, words) = (case["error"].as_f64(), case["guard_words"].as_u64());
            errors = errors.max(error.expect("a number: no NaN is one"));
            guard_words += words.expect("a count");
            assert!(case["values"].as_u64() > Some(0), "{case} compared nothing");
        }
        assert!(errors < 1.0 && guard_words > 0);
        println!(
            "{name}: {} cases in {:.1} s, errors up to {errors:.2} of their bounds, \
             {guard_words} guard words intact",
            cases.len(),
            said["ms"].as_f64().expect("a time") / 1e3,
        );
    }
}
