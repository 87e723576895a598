//! Decode and prefill tokens per second of the default model inside WASM, on one thread, in
//! Node and in headless Chromium: `cargo xtask bench --wasm`.
//!
//! `WEFT_WLLAMA` may name the unpacked npm package `@wllama/wllama`, which is then measured
//! beside ours in the same browser. Arguments name other jobs: `cases`, `golden`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tests::wasm::{Build, Host, Job};

fn main() -> ExitCode {
    let program = std::env::current_exe().expect("this program has a path");
    let scratch = program.parent().and_then(Path::parent).expect("target folder").join("tmp");
    std::fs::create_dir_all(&scratch).expect("the target folder can be written to");
    let jobs: Vec<Job> = std::env::args()
        .skip(1)
        .map(|name| match name.as_str() {
            "cases" => Job::Cases,
            "golden" => Job::Golden,
            "bench" => Job::Bench,
            other => panic!("no job is called {other}: cases, golden, bench"),
        })
        .collect();
    let jobs = if jobs.is_empty() { vec![Job::Bench] } else { jobs };
    let modules = [Build::Portable, Build::Simd128, Build::Relaxed].map(|b| b.module(&scratch));
    let mut passed = true;
    for job in jobs {
        for host in [Host::Node, Host::Chromium] {
            if job == Job::Bench {
                println!("\n{host:?}, tokens/s on one thread:\n");
                println!("| module | prefill 256 | decode 64 | 8 sessions | GB/s in decode |");
                println!("|---|---:|---:|---:|---:|");
            }
            passed &= run(host, job, &modules, &scratch);
        }
    }
    match std::env::var_os("WEFT_WLLAMA") {
        None => println!("\nSKIPPED: WEFT_WLLAMA names no @wllama/wllama to compare with"),
        Some(_) => passed &= run(Host::Chromium, Job::Wllama, &modules, &scratch),
    }
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(host: Host, job: Job, modules: &[PathBuf], scratch: &Path) -> bool {
    let show = |line: &str| match line.contains('\t') {
        true => println!("| {} |", line.replace('\t', " | ")),
        false => println!("{line}"),
    };
    host.run(job, modules, scratch, show).unwrap_or_else(|reason| {
        println!("SKIPPED: {reason}");
        true
    })
}
