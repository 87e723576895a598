//! llama.cpp's programs, where they are installed.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::cluster::{peak_mib, spawn};
use super::cost::{Cost, cost};
use super::measure::agent;
use crate::process::output;

/// Names the folder of its programs.
pub const FOLDER_ENV: &str = "WEFT_LLAMA_CPP";
/// Longest time until its server answers.
const READY_MAX: Duration = Duration::from_secs(60);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Sessions that its server runs at once.
const SLOTS: usize = 8;
/// Positions of all slots together.
const CONTEXT: usize = 8 * 1024;

/// What one run of a measuring program gave.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Tokens per second.
    pub prefill: f64,
    /// Tokens per second.
    pub decode: f64,
    /// The most memory that the program had.
    pub peak_mib: f64,
}

/// The folder of its programs.
pub struct LlamaCpp(PathBuf);

impl LlamaCpp {
    /// Where [`FOLDER_ENV`] says, if it has all that is asked of it here.
    pub fn find() -> std::result::Result<LlamaCpp, String> {
        let folder = std::env::var_os(FOLDER_ENV);
        let folder = PathBuf::from(folder.ok_or(format!("{FOLDER_ENV} names no folder"))?);
        for name in ["llama-bench", "llama-server", "llama-quantize", "ggml-rpc-server"] {
            if !folder.join(name).is_file() {
                return Err(format!("{FOLDER_ENV}: {} has no {name}", folder.display()));
            }
        }
        Ok(LlamaCpp(folder))
    }

    /// The same weights in Q4_0, which it repacks for its fastest kernels.
    pub fn quantise(&self, model: &Path, folder: &Path) -> Result<PathBuf> {
        let to = folder.join("q4_0.gguf");
        let mut command = Command::new(self.0.join("llama-quantize"));
        output(command.arg("--allow-requantize").arg(model).arg(&to).arg("Q4_0"))?;
        Ok(to)
    }

    /// What prefill and decode give, as its own benchmark says.
    pub fn rates(&self, model: &Path, threads: u32, prompt: u32, decode: u32) -> Result<Rates> {
        let mut command = self.bench(model, threads, prompt, decode);
        let Cost { output, peak_mib, .. } = cost(&mut command)?;
        let said: Value = serde_json::from_slice(&output)?;
        let rate = |key: &str, tokens: u32| {
            let tests = said.as_array().into_iter().flatten();
            let mut tests = tests.filter(|test| test[key] == tokens);
            tests.find_map(|test| test["avg_ts"].as_f64()).context("llama-bench gave no rate")
        };
        let (prefill, decode) = (rate("n_prompt", prompt)?, rate("n_gen", decode)?);
        Ok(Rates { prefill, decode, peak_mib })
    }

    /// Seconds from its start to its end, a prompt's prefill and nothing else between.
    pub fn start_s(&self, model: &Path, threads: u32, prompt: u32) -> Result<f64> {
        Ok(cost(self.bench(model, threads, prompt, 0).arg("--no-warmup"))?.seconds)
    }

    fn bench(&self, model: &Path, threads: u32, prompt: u32, decode: u32) -> Command {
        let mut command = Command::new(self.0.join("llama-bench"));
        command.arg("-m").arg(model).args(["-o", "json", "-r", "1"]);
        command.args(["-t", &threads.to_string()]);
        command.args(["-p", &prompt.to_string(), "-n", &decode.to_string()]);
        command
    }

    /// Starts its server; over `rpc` more servers of one thread each, if there are any.
    pub fn serve(&self, model: &Path, threads: u32, rpc: usize, folder: &Path) -> Result<Server> {
        let mut server = Server { address: String::new(), children: Vec::new() };
        let mut remote = Vec::new();
        for index in 0..rpc {
            let port = free_port()?;
            let mut command = Command::new(self.0.join("ggml-rpc-server"));
            command.args(["-H", "127.0.0.1", "-p", &port.to_string(), "-t", "1"]);
            server.start(command, &folder.join(format!("rpc{index}.log")))?;
            wait_for_port(port)?;
            remote.push(format!("127.0.0.1:{port}"));
        }
        let port = free_port()?;
        let mut command = Command::new(self.0.join("llama-server"));
        command.arg("-m").arg(model).args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["-t", &threads.to_string(), "-np", &SLOTS.to_string()]);
        command.args(["-c", &CONTEXT.to_string()]);
        if rpc > 0 {
            command.args(["--rpc", &remote.join(","), "-ngl", "99"]);
        }
        server.start(command, &folder.join("server.log"))?;
        server.address = format!("http://127.0.0.1:{port}");
        let started = Instant::now();
        let health = format!("{}/health", server.address);
        while !agent().get(&health).call().is_ok_and(|answer| answer.status() == 200) {
            ensure!(started.elapsed() < READY_MAX, "llama-server did not start");
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(server)
    }
}

/// Running programs; they end with this.
pub struct Server {
    /// `http://127.0.0.1:PORT`.
    pub address: String,
    children: Vec<Child>,
}

impl Server {
    fn start(&mut self, command: Command, log: &Path) -> Result<()> {
        let mut child = spawn(command, log)?;
        // What it says must not fill the pipe.
        if let Some(mut output) = child.stdout.take() {
            std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        }
        self.children.push(child);
        Ok(())
    }

    /// The most memory that each program has had, MiB.
    pub fn peaks_mib(&self) -> Vec<f64> {
        self.children.iter().filter_map(peak_mib).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A port that nobody listened on a moment ago.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn wait_for_port(port: u16) -> Result<()> {
    let started = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        if started.elapsed() > READY_MAX {
            bail!("nothing listens on port {port}");
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}
