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
use super::cost::{Cost, cost};
use super::llama_cpp::{LlamaCpp, Rates};
use super::measure::{NATIVE, Round, measure};
use super::table::median;
use crate::process::{bench_program, cargo, output};
use crate::{models, tidy};

/// Rounds if nothing else is said; medians are shown.
const ROUNDS: usize = 5;
/// Tokens of the prompt whose prefill is measured, and tokens decoded.
const PROMPT: u32 = 512;
const DECODED: u32 = 128;
/// Tokens of the prompt whose first token a program is started for.
const FIRST_PROMPT: u32 = 16;
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

struct Flags {
    rounds: usize,
    markdown: Option<PathBuf>,
    /// A test model's name, or a file; the default model if nothing is said.
    model: Option<String>,
}

/// Measures and prints; `false` where there is nothing to compare with.
pub fn run(rest: &[String]) -> Result<bool> {
    let flags = parse(rest)?;
    let llama = match LlamaCpp::find() {
        Ok(llama) => llama,
        Err(reason) => {
            println!("SKIPPED: {reason}");
            return Ok(false);
        }
    };
    let model = match &flags.model {
        Some(file) if Path::new(file).is_file() => std::path::absolute(file)?,
        Some(name) => models::fetch_named(name)?,
        None => models::fetch_named(models::MODELS[0].name)?,
    };
    let is_default = model == models::default_model()?;
    let folder = tidy::target_folder()?.join("peers");
    std::fs::create_dir_all(&folder)?;
    let q4_0 = if is_default { Some(llama.quantise(&model, &folder)?) } else { None };
    let speed = bench_program("engine", "speed", &[])?;
    let rounds = flags.rounds;
    let bench = Bench { llama, speed, model, q4_0, folder, rounds };
    let mut rows = bench.in_process()?;
    if is_default {
        rows.extend(bench.with_busy_cores()?);
        rows.extend(bench.served()?);
    }
    let table = table(&rows, &bench);
    println!("{table}");
    if let Some(path) = flags.markdown {
        std::fs::write(&path, table).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(true)
}

fn parse(rest: &[String]) -> Result<Flags> {
    let mut parsed = Flags { rounds: ROUNDS, markdown: None, model: None };
    let mut flags = rest.iter();
    while let Some(flag) = flags.next() {
        let mut value = || flags.next().with_context(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--rounds" => parsed.rounds = value()?.parse().context("--rounds")?,
            "--markdown" => parsed.markdown = Some(PathBuf::from(value()?)),
            "--model" => parsed.model = Some(value()?.clone()),
            other => bail!("no flag is called {other}"),
        }
    }
    ensure!(parsed.rounds > 0, "--rounds: at least 1");
    Ok(parsed)
}

struct Bench {
    llama: LlamaCpp,
    /// Our measuring program.
    speed: PathBuf,
    model: PathBuf,
    /// The same weights for llama.cpp's fastest kernels; only of the default model, whose file
    /// is in a type that it is slow at.
    q4_0: Option<PathBuf>,
    folder: PathBuf,
    rounds: usize,
}

impl Bench {
    /// Prefill, decode, start and memory without a server, on one thread and on two.
    fn in_process(&self) -> Result<Vec<Row>> {
        self.store()?;
        let names = [1, 2].map(|threads| {
            let plural = if threads == 1 { "" } else { "s" };
            ["prefill", "decode", "peak memory, MiB", "start to first token, ms"]
                .map(|what| format!("{what}, {threads} thread{plural}"))
        });
        let mut rows = names.map(|names| names.map(Row::named));
        for round in 0..self.rounds {
            for (threads, rows) in (1..).zip(&mut rows) {
                let mut files = vec![&self.model];
                files.extend(&self.q4_0);
                let mut found = vec![(self.ours(threads)?, self.our_start_s(threads)?)];
                for file in files {
                    let rates = self.llama.rates(file, threads, PROMPT, DECODED)?;
                    found.push((rates, self.llama.start_s(file, threads, FIRST_PROMPT)?));
                }
                eprintln!("round {round}, {threads} thread(s): {found:.0?}");
                for (engine, (rates, start_s)) in found.into_iter().enumerate() {
                    let Rates { prefill, decode, peak_mib } = rates;
                    let values = [prefill, decode, peak_mib, start_s * 1e3];
                    rows.iter_mut().zip(values).for_each(|(r, v)| r.engines[engine].push(v));
                }
            }
        }
        Ok(rows.into_iter().flatten().collect())
    }

    /// Decode while all cores but one compute something else: one thread, and two.
    fn with_busy_cores(&self) -> Result<Vec<Row>> {
        let name = |threads| format!("decode, {threads} thread(s), the other cores busy");
        let mut rows = [1, 2].map(|threads| Row::named(name(threads)));
        for round in 0..self.rounds {
            let _busy = Busy::start();
            for (threads, row) in (1..).zip(&mut rows) {
                let our = self.ours(threads)?.decode;
                let theirs = self.llama.rates(&self.model, threads, 16, DECODED)?.decode;
                eprintln!("round {round}, busy, {threads} thread(s): {our:.0} {theirs:.0}");
                row.engines[0].push(our);
                row.engines[1].push(theirs);
            }
        }
        Ok(rows.into())
    }

    /// Brings the weights into our layouts, which a worker has on its disk when it starts.
    fn store(&self) -> Result<()> {
        let folder = self.blobs();
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        let mut command = self.speed(1, 0, 0);
        output(command.arg("--model").arg(&self.model)).map(|_| ())
    }

    fn blobs(&self) -> PathBuf {
        let name = self.model.file_stem().unwrap_or_default();
        self.folder.join(name).with_added_extension("blobs")
    }

    fn speed(&self, threads: u32, prompt: u32, decode: u32) -> Command {
        let mut command = Command::new(&self.speed);
        command.arg("--blobs").arg(self.blobs());
        command.args(["--threads", &threads.to_string(), "--prompt", &prompt.to_string()]);
        command.args(["--decode", &decode.to_string()]);
        command
    }

    /// Our prefill and decode rates.
    fn ours(&self, threads: u32) -> Result<Rates> {
        let Cost { output, peak_mib, .. } = cost(&mut self.speed(threads, PROMPT, DECODED))?;
        let said: Value = serde_json::from_slice(&output)?;
        let rate = |name: &str| said[name].as_f64().with_context(|| format!("no {name}"));
        Ok(Rates { prefill: rate("prefill")?, decode: rate("decode")?, peak_mib })
    }

    fn our_start_s(&self, threads: u32) -> Result<f64> {
        Ok(cost(self.speed(threads, FIRST_PROMPT, 0).arg("--no-warmup"))?.seconds)
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

fn table(rows: &[Row], Bench { model, rounds, .. }: &Bench) -> String {
    let model = model.file_name().unwrap_or_default().to_string_lossy();
    let mut out =
        format!("| tokens/s, {model} | Weft | llama.cpp, same file | ratio | Q4_0 | ratio |\n");
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
         a start is a whole program's time, from its call until it has ended with the logits \
         after a prompt of {FIRST_PROMPT}, ours with the check of all weights' hashes; over \
         HTTP {} tokens after a prompt of {}, all sessions together. Of times and memory a ratio \
         below 1 is the better one.\n",
        NATIVE.decoded, NATIVE.short_prompt
    )
    .expect("a string");
    out
}
