//! `cargo xtask bench --peers`: the CPU engine beside llama.cpp, with the same weights and
//! threads, on one machine, in interleaved rounds.
//!
//! A machine's speed changes from minute to minute: only the ratios say much.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Setup;
use super::cluster::Cluster;
use super::llama_cpp::LlamaCpp;
use super::measure::{NATIVE, Round, measure};
use super::table::median;
use crate::process::{cargo, output};
use crate::{models, tidy};

/// Rounds if nothing else is said; medians are shown.
const ROUNDS: usize = 5;
/// Tokens of the prompt whose prefill is measured, and tokens decoded.
const PROMPT: u32 = 512;
const DECODED: u32 = 128;
/// Over HTTP: all cores in one process, one thread in one process, and that split over two.
const SERVED: [Setup; 3] = [
    Setup { name: "served", layers: &[], threads: None },
    Setup { name: "served by 1 thread", layers: &[], threads: Some(1) },
    Setup { name: "split over 2 workers of 1 thread", layers: &[18, 14], threads: Some(1) },
];

/// What is compared: ours first, then llama.cpp on the same file, then on Q4_0.
#[derive(Default)]
struct Row {
    name: String,
    engines: [Vec<f64>; 3],
}

/// Measures and prints; `false` where there is nothing to compare with.
pub fn run(rest: &[String]) -> Result<bool> {
    let (mut rounds, mut markdown) = (ROUNDS, None);
    let mut flags = rest.iter();
    while let Some(flag) = flags.next() {
        let mut value = || flags.next().with_context(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--rounds" => rounds = value()?.parse().context("--rounds")?,
            "--markdown" => markdown = Some(PathBuf::from(value()?)),
            other => bail!("no flag is called {other}"),
        }
    }
    ensure!(rounds > 0, "--rounds: at least 1");
    let llama = match LlamaCpp::find() {
        Ok(llama) => llama,
        Err(reason) => {
            println!("SKIPPED: {reason}");
            return Ok(false);
        }
    };
    models::fetch_required()?;
    let model = models::default_model()?;
    let folder = tidy::target_folder()?.join("peers");
    std::fs::create_dir_all(&folder)?;
    let q4_0 = llama.quantise(&model, &folder)?;
    let bench = Bench { llama, speed: speed()?, model, q4_0, folder, rounds };
    let mut rows = bench.in_process()?;
    rows.extend(bench.with_busy_cores()?);
    rows.extend(bench.served()?);
    let table = table(&rows, rounds);
    println!("{table}");
    if let Some(path) = markdown {
        std::fs::write(&path, table).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(true)
}

struct Bench {
    llama: LlamaCpp,
    /// Our measuring program.
    speed: PathBuf,
    model: PathBuf,
    q4_0: PathBuf,
    folder: PathBuf,
    rounds: usize,
}

impl Bench {
    /// Prefill and decode without a server, on one thread and on two.
    fn in_process(&self) -> Result<Vec<Row>> {
        let names = [1, 2].map(|threads| {
            let plural = if threads == 1 { "" } else { "s" };
            ["prefill", "decode"].map(|what| format!("{what}, {threads} thread{plural}"))
        });
        let mut rows = names.concat().into_iter().map(Row::named).collect::<Vec<_>>();
        for round in 0..self.rounds {
            for threads in [1, 2] {
                let at = 2 * (threads as usize - 1);
                let found = [
                    ours(&self.speed, &self.model, threads)?,
                    self.llama.rates(&self.model, threads, PROMPT, DECODED)?,
                    self.llama.rates(&self.q4_0, threads, PROMPT, DECODED)?,
                ];
                eprintln!("round {round}, {threads} thread(s): {found:.0?}");
                for (engine, rates) in found.iter().enumerate() {
                    for (what, rate) in rates.iter().enumerate() {
                        rows[at + what].engines[engine].push(*rate);
                    }
                }
            }
        }
        Ok(rows)
    }

    /// Decode while all cores but one compute something else: one thread, and two.
    fn with_busy_cores(&self) -> Result<Vec<Row>> {
        let name = |threads| format!("decode, {threads} thread(s), the other cores busy");
        let mut rows = [1, 2].map(|threads| Row::named(name(threads)));
        for round in 0..self.rounds {
            let _busy = Busy::start();
            for (threads, row) in (1..).zip(&mut rows) {
                let [_, our] = ours(&self.speed, &self.model, threads)?;
                let [_, theirs] = self.llama.rates(&self.model, threads, 16, DECODED)?;
                eprintln!("round {round}, busy, {threads} thread(s): {our:.0} {theirs:.0}");
                row.engines[0].push(our);
                row.engines[1].push(theirs);
            }
        }
        Ok(rows.into())
    }

    /// Over HTTP, several sessions at once, and split over two processes.
    fn served(&self) -> Result<Vec<Row>> {
        let arguments = ["build", "--release", "--package", "coordinator", "--package", "worker"];
        let status = cargo(&arguments).status().context("cargo cannot be run")?;
        ensure!(status.success(), "the programs do not build");
        let binaries = tidy::target_folder()?.join("release");
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let mut rows = Vec::new();
        // One pair at a time: what waits takes memory, and threads that poll.
        for (setup, (threads, rpc)) in SERVED.iter().zip([(cores, 0), (1, 0), (1, 2)]) {
            let ours = Cluster::start(setup, &binaries, &self.model)?;
            let theirs = self.llama.serve(&self.model, threads, rpc, &self.folder)?;
            let [one, eight, prefill, first] =
                ["1 session", "8 sessions", "prefill", "time to first token, ms"];
            let mut of = [one, eight, prefill, first]
                .map(|what| Row::named(format!("{}: {what}", setup.name)));
            for number in 0..=self.rounds {
                for (engine, address) in [&ours.address, &theirs.address].into_iter().enumerate() {
                    let round = measure(address, number as u64, &NATIVE)?;
                    eprintln!("round {number}, {}, engine {engine}: {round}", setup.name);
                    // The first one warms up.
                    if number > 0 {
                        let Round { decode, prefill, first_token_s } = round;
                        let values = [decode[0], decode[2], prefill, first_token_s * 1e3];
                        of.iter_mut().zip(values).for_each(|(r, v)| r.engines[engine].push(v));
                    }
                }
            }
            let mut memory = Row::named(format!("{}: peak memory, MiB", setup.name));
            memory.engines[0] = vec![ours.peaks_mib().iter().map(|(_, mib)| mib).sum()];
            memory.engines[1] = vec![theirs.peaks_mib().iter().sum()];
            rows.extend(of);
            rows.push(memory);
        }
        Ok(rows)
    }
}

impl Row {
    fn named(name: String) -> Row {
        Row { name, ..Row::default() }
    }
}

/// Builds the measuring program; its path.
fn speed() -> Result<PathBuf> {
    let mut command = cargo(&["bench", "--package", "engine", "--bench", "speed", "--no-run"]);
    let said = output(command.arg("--message-format=json"))?;
    let messages = String::from_utf8_lossy(&said).into_owned();
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program = messages
        .filter(|message| message["target"]["name"] == "speed")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    program.context("cargo built no program called speed")
}

/// Our prefill and decode rates.
fn ours(speed: &Path, model: &Path, threads: u32) -> Result<[f64; 2]> {
    let mut command = Command::new(speed);
    command.arg("--model").arg(model).args(["--threads", &threads.to_string()]);
    command.args(["--prompt", &PROMPT.to_string(), "--decode", &DECODED.to_string()]);
    let said: Value = serde_json::from_slice(&output(&mut command)?)?;
    let rate = |name: &str| said[name].as_f64().with_context(|| format!("no {name}"));
    Ok([rate("prefill")?, rate("decode")?])
}

/// Threads that compute without end, one for each core but one; they end with this.
struct Busy {
    stop: &'static AtomicBool,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Busy {
    fn start() -> Busy {
        // One run starts a handful of these.
        let stop: &AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let spin = move || {
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        };
        Busy { stop, threads: (1..cores).map(|_| std::thread::spawn(spin)).collect() }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().expect("it only spins"));
    }
}

fn table(rows: &[Row], rounds: usize) -> String {
    let mut out =
        String::from("| tokens/s | Weft | llama.cpp, same file | ratio | Q4_0 | ratio |\n");
    out.push_str("|---|---:|---:|---:|---:|---:|\n");
    for row in rows {
        let medians =
            row.engines.clone().map(|values| (!values.is_empty()).then(|| median(values)));
        let ours = medians[0].unwrap_or(f64::NAN);
        write!(out, "| {} | {ours:.1} |", row.name).expect("a string");
        for theirs in &medians[1..] {
            match theirs {
                Some(rate) => write!(out, " {rate:.1} | {:.2} |", ours / rate),
                None => write!(out, " | |"),
            }
            .expect("a string");
        }
        out.push('\n');
    }
    write!(
        out,
        "\nMedians of {rounds} interleaved rounds. Prefill of {PROMPT} tokens, {DECODED} decoded; \
         over HTTP {} after a prompt of {}, all sessions together. Of times and memory a ratio \
         below 1 is the better one.\n",
        NATIVE.decoded, NATIVE.short_prompt
    )
    .expect("a string");
    out
}
