//! What a program costs that runs to its end: time, and memory at its peak.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cluster::peak_mib;
use crate::process::tail;

/// How often a running program is looked at: its time is known to this, and memory that it
/// takes in its very last moments is not seen.
const LOOK_EVERY: Duration = Duration::from_millis(3);

/// A program that ended well.
pub struct Cost {
    /// What it wrote to its standard output.
    pub output: Vec<u8>,
    /// From its start to its end.
    pub seconds: f64,
    /// The most memory that it had, files that it mapped and read included.
    pub peak_mib: f64,
}

/// Runs a program to its end.
///
/// # Errors
/// If it cannot be run or fails; the error has what it wrote to its standard error.
pub fn cost(command: &mut Command) -> Result<Cost> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = Instant::now();
    let mut child = command.spawn().with_context(|| format!("{name} cannot be run"))?;
    let mut streams: [Box<dyn Read + Send>; 2] = [
        Box::new(child.stdout.take().context("standard output is piped")?),
        Box::new(child.stderr.take().context("standard error is piped")?),
    ];
    let (status, seconds, peak, said) = std::thread::scope(|scope| {
        let readers = streams.each_mut().map(|stream| {
            scope.spawn(move || {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).map(|_| bytes)
            })
        });
        let mut peak: f64 = 0.0;
        let status = loop {
            peak = peak.max(peak_mib(&child).unwrap_or_default());
            if let Some(status) = child.try_wait()? {
                break status;
            }
            std::thread::sleep(LOOK_EVERY);
        };
        let seconds = started.elapsed().as_secs_f64();
        let said = readers.map(|reader| reader.join().expect("it only reads"));
        anyhow::Ok((status, seconds, peak, said))
    })?;
    let [output, errors] = said;
    if !status.success() {
        bail!("{name} ended with {status}: {}", tail(&String::from_utf8_lossy(&errors?)));
    }
    Ok(Cost { output: output?, seconds, peak_mib: peak })
}
