//! `cargo xtask bench --intensity`: whether four machines that each lend a quarter of their time
//! are worth four of them. They stand for machines of their own on one whose cores they share.

use anyhow::{Context, Result, bail, ensure};

use super::cluster::Cluster;
use super::measure::{Load, measure_decode};
use super::programs;
use super::table::median;
use crate::models;

/// Share of its time that each worker computes, percent.
const PERCENT: &str = "25";
/// Layers, or as much memory for KV, that each worker has room for: all 30, and 16 sessions.
const ROOM_LAYERS: u64 = 90;
const WORKERS: [usize; 2] = [1, 4];
const SESSIONS: usize = 16;
const LOAD: Load = Load { decoded: 64, short_prompt: 16, long_prompt: 16 };
/// Rounds if nothing else is said; medians are shown.
const ROUNDS: usize = 5;
/// What four must give of what one gives.
const RATIO_MIN: f64 = 3.2;

/// Measures and prints; `false` if four are not worth enough.
pub fn run(arguments: &[String]) -> Result<bool> {
    let rounds = match arguments {
        [] => ROUNDS,
        [flag, rounds] if flag == "--rounds" => rounds.parse().context("--rounds")?,
        other => bail!("--intensity takes --rounds N only, not {other:?}"),
    };
    ensure!(rounds > 0, "--rounds: at least 1");
    models::fetch_required()?;
    let (model, binaries) = (models::default_model()?, programs()?);
    let flags = ["--threads", "1", "--intensity", PERCENT].map(str::to_owned);
    let mut clusters = Vec::new();
    for workers in WORKERS {
        let ends = ["--embedded", "ends", "--threads", "1"].map(str::to_owned);
        let name = if workers == 1 { "1 worker" } else { "4 workers" };
        let mut cluster = Cluster::coordinator(name, &ends, &binaries, &model)?;
        for index in 0..workers {
            cluster.add_worker(&binaries, index, ROOM_LAYERS, &flags)?;
        }
        cluster.wait_until_ready(workers, "native")?;
        clusters.push(cluster);
    }
    let mut rates = [Vec::new(), Vec::new()];
    // The first round warms up and is thrown away.
    for round in 0..=rounds as u64 {
        for (cluster, rates) in clusters.iter().zip(&mut rates) {
            let rate = measure_decode(&cluster.address, round, SESSIONS, &LOAD)?;
            eprintln!("round {round}, {}: {rate:.1} tokens/s", cluster.name);
            if round > 0 {
                rates.push(rate);
            }
        }
    }
    let [one, four] = rates.map(median);
    let ratio = four / one;
    let word = if ratio >= RATIO_MIN { "met" } else { "MISSED" };
    println!(
        "at --intensity {PERCENT} with {SESSIONS} sessions one worker gives {one:.1} tokens/s and \
         four {four:.1}: {ratio:.2} times as many; {RATIO_MIN} is {word}"
    );
    Ok(ratio >= RATIO_MIN)
}
