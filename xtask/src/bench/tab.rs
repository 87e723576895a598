//! `cargo xtask bench --tab`: all layers in one tab of headless Chromium, which is lent as a
//! person would lend it, measured over HTTP: a socket, a page and a Web Worker included.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::cluster::Cluster;
use super::measure::{Load, Round, SESSIONS, measure};
use super::table::median;
use super::webdriver::Browser;
use crate::process::cargo;
use crate::{models, tidy, tools, web};

/// Rounds if nothing else is said; medians are shown.
const ROUNDS: usize = 3;
/// Longest time for the page's own steps: loading, the benchmark, fetching all layers.
const PAGE_MAX: Duration = Duration::from_secs(120);
/// What is asked of WASM, and of a GPU that is a CPU, which takes a second for a token.
const WASM: Load = Load { decoded: 48, short_prompt: 16, long_prompt: 256 };
const SOFTWARE_GPU: Load = Load { decoded: 3, short_prompt: 4, long_prompt: 16 };

/// A way to lend a tab.
struct Setup {
    name: &'static str,
    /// Of the page's address.
    query: &'static str,
    /// To choose in the page, if it offers that.
    cores: Option<u32>,
    load: Load,
}

const SETUPS: [Setup; 4] = [
    Setup { name: "WASM, 1 thread", query: "backend=wasm", cores: Some(1), load: WASM },
    Setup { name: "WASM, 2 threads", query: "backend=wasm", cores: Some(2), load: WASM },
    Setup {
        name: "plain SIMD, 1 thread",
        query: "backend=wasm&simd=128",
        cores: Some(1),
        load: WASM,
    },
    Setup { name: "SwiftShader", query: "backend=webgpu", cores: None, load: SOFTWARE_GPU },
];

/// Measures and prints; `false` where there is no browser.
pub fn run(rest: &[String]) -> Result<bool> {
    let rounds = match rest {
        [] => ROUNDS,
        [flag, rounds] if flag == "--rounds" => rounds.parse().context("--rounds")?,
        [other, ..] => bail!("--tab takes --rounds N, not {other}"),
    };
    ensure!(rounds > 0, "--rounds: at least 1");
    models::fetch_required()?;
    let model = models::default_model()?;
    tools::ensure_wasm()?;
    web::build()?;
    let status = cargo(&["build", "--release", "--package", "coordinator"]).status()?;
    ensure!(status.success(), "the coordinator does not build");
    let binaries = tidy::target_folder()?.join("release");

    let mut lent = Vec::new();
    for setup in &SETUPS {
        let flags = ["--embedded", "ends"].map(str::to_owned);
        let cluster = Cluster::coordinator(setup.name, &flags, &binaries, &model)?;
        let Some(browser) = Browser::start(cluster.folder())? else {
            println!("SKIPPED: chromedriver is not installed");
            return Ok(false);
        };
        let device = lend(&browser, &cluster, setup)?;
        eprintln!("{}: {device}", setup.name);
        lent.push((setup, browser, cluster, device, Vec::new()));
    }
    // The first round warms up and is thrown away.
    for number in 0..=rounds {
        for (setup, _, cluster, _, measured) in &mut lent {
            let round = measure(&cluster.address, number as u64, &setup.load)?;
            eprintln!("round {number}, {}: {round}", setup.name);
            if number > 0 {
                measured.push(round);
            }
        }
    }
    println!("| all layers in one tab | {} |", SESSIONS.map(title).join(" | "));
    println!("|---|{}", "---:|".repeat(SESSIONS.len() + 2));
    for (_, _, _, device, measured) in &lent {
        let of = |value: &dyn Fn(&Round) -> f64| median(measured.iter().map(value).collect());
        let decode = [0, 1, 2].map(|n| format!("{:.1}", of(&|round| round.decode[n])));
        let first_ms = of(&|round| round.first_token_s) * 1e3;
        let prefill = of(&|round| round.prefill);
        println!("| {device} | {} | {prefill:.1} | {first_ms:.0} |", decode.join(" | "));
    }
    println!("\nMedians of {rounds} interleaved rounds, tokens/s of all sessions together.");
    Ok(true)
}

fn title(sessions: usize) -> String {
    match SESSIONS.last() == Some(&sessions) {
        true => format!("decode, {sessions} sessions | prefill | first token, ms"),
        false => format!("decode, {sessions}"),
    }
}

/// Opens the page, chooses, clicks on Start and waits for all layers; what the tab computes on.
fn lend(browser: &Browser, cluster: &Cluster, setup: &Setup) -> Result<String> {
    browser.open(&format!("{}/?{}", cluster.address, setup.query))?;
    browser.wait("return document.querySelector('#start:enabled') !== null", PAGE_MAX)?;
    if let Some(cores) = setup.cores {
        let choose = format!(
            "const list = document.querySelector('#threads');
             if (!list || ![...list.options].some((o) => o.value === '{cores}')) return false;
             list.value = '{cores}';
             list.dispatchEvent(new Event('change', {{bubbles: true}}));
             return true;"
        );
        ensure!(browser.script(&choose)? == true, "{}: the page does not offer that", setup.name);
    }
    browser.script("document.querySelector('#start').click()")?;
    let serving = "return document.querySelector('#status').dataset.phase === 'serving'";
    browser.wait(serving, PAGE_MAX)?;
    cluster.wait_until_ready(1, "browser")?;
    let device = browser.script("return document.querySelector('#device').innerText")?;
    Ok(device.as_str().unwrap_or(setup.name).replace('\n', " "))
}
