//! `cargo xtask bench`: how fast the default model runs in one process and over local workers,
//! measured over HTTP with the real programs, in interleaved rounds, beside the floor.

mod cluster;
mod cost;
mod floor;
mod intensity;
mod llama_cpp;
mod measure;
mod peers;
mod tab;
mod table;
mod wasm;
mod webdriver;
mod webgpu;

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::process::cargo;
use crate::{models, tidy};
use cluster::Cluster;
use measure::{NATIVE, Round, measure};

/// Rounds if nothing else is said; medians are shown.
const ROUNDS: usize = 5;
/// What a split over two local workers must keep of one process's decode rate, one session.
pub const RATIO_MIN: f64 = 0.9;

/// A way to run the model.
pub struct Setup {
    /// In the table.
    pub name: &'static str,
    /// Layers that each worker's memory has room for; empty for one process.
    pub layers: &'static [u64],
    /// Threads of each program; all cores if nothing is said.
    pub threads: Option<u32>,
}

/// What is compared, the one process first. Each worker is needed: without any of them the
/// others could not hold the 30 layers.
pub const SETUPS: [Setup; 3] = [
    Setup { name: "one process", layers: &[], threads: None },
    Setup { name: "2 workers", layers: &[18, 14], threads: None },
    Setup { name: "3 workers", layers: &[14, 11, 7], threads: None },
];

struct Flags {
    markdown: Option<PathBuf>,
    model: Option<PathBuf>,
    rounds: usize,
}

/// Measures and prints; `false` if the split costs more than it may.
pub fn run(arguments: &[String]) -> Result<bool> {
    match arguments.split_first() {
        Some((flag, rest)) if flag == "--wasm" => return wasm::run(rest),
        Some((flag, rest)) if flag == "--intensity" => return intensity::run(rest),
        Some((flag, rest)) if flag == "--tab" => return tab::run(rest),
        Some((flag, rest)) if flag == "--webgpu" => return webgpu::run(rest),
        Some((flag, rest)) if flag == "--peers" => return peers::run(rest),
        _ => {}
    }
    let flags = parse(arguments)?;
    let model = match flags.model {
        Some(model) => std::path::absolute(model)?,
        None => {
            models::fetch_required()?;
            models::default_model()?
        }
    };
    let binaries = programs()?;

    let clusters: Vec<Cluster> = SETUPS
        .iter()
        .map(|setup| Cluster::start(setup, &binaries, &model))
        .collect::<Result<_>>()?;
    let mut rounds: Vec<Vec<Round>> = SETUPS.iter().map(|_| Vec::new()).collect();
    // The first round warms up and is thrown away.
    for number in 0..=flags.rounds {
        for (cluster, rounds) in clusters.iter().zip(&mut rounds) {
            let round = measure(&cluster.address, number as u64, &NATIVE)?;
            eprintln!("round {number}, {}: {round}", cluster.name);
            if number > 0 {
                rounds.push(round);
            }
        }
    }
    let floor = floor::Floor::of(&clusters[0])?;
    let table = table::Table::new(&clusters, &rounds, &floor)?;
    println!("{table}");
    if let Some(path) = flags.markdown {
        std::fs::write(&path, table.to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let kept = table.decode_kept();
    let met = kept >= RATIO_MIN;
    let word = if met { "met" } else { "MISSED" };
    println!("two workers keep {kept:.2} of one process's decode rate; {RATIO_MIN} is {word}");
    Ok(met)
}

/// Builds the programs in release; the folder that they are in.
fn programs() -> Result<PathBuf> {
    let arguments = ["build", "--release", "--package", "coordinator", "--package", "worker"];
    let status = cargo(&arguments).status().context("cargo cannot be run")?;
    ensure!(status.success(), "the programs do not build");
    Ok(tidy::target_folder()?.join("release"))
}

fn parse(arguments: &[String]) -> Result<Flags> {
    let mut flags = Flags { markdown: None, model: None, rounds: ROUNDS };
    let mut rest = arguments.iter();
    while let Some(flag) = rest.next() {
        let mut value = || rest.next().with_context(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--markdown" => flags.markdown = Some(value()?.into()),
            "--model" => flags.model = Some(value()?.into()),
            "--rounds" => flags.rounds = value()?.parse().context("--rounds")?,
            other => bail!("no flag is called {other}"),
        }
    }
    ensure!(flags.rounds > 0, "--rounds: at least 1");
    Ok(flags)
}
