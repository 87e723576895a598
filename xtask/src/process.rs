//! Running programs: with a time limit, and with every line of theirs seen.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// How often a running program is asked whether it has ended.
const POLL: Duration = Duration::from_millis(50);
/// What a program that has ended may still take to close its output: something that it
/// started may hold it open.
const CLOSE_MAX: Duration = Duration::from_secs(10);
/// Lines that may wait to be read.
const LINES_MAX: usize = 4096;

/// A cargo command in the checkout's root.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(crate::root());
    // Set by cargo for this program, meant for nobody else.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME"] {
        command.env_remove(name);
    }
    if let Some(pages) = crate::web::FOLDER.get() {
        command.env(crate::web::FOLDER_ENV, pages);
    }
    command
}

/// Builds one of a package's benchmarks, with these features; the program's path.
///
/// # Errors
/// If it does not build.
pub fn bench_program(package: &str, bench: &str, features: &[&str]) -> Result<PathBuf> {
    let mut command = cargo(&["bench", "--package", package, "--bench", bench, "--no-run"]);
    command.args(["--features", &features.join(","), "--message-format=json", "--locked"]);
    let said = output(&mut command)?;
    let messages = String::from_utf8_lossy(&said).into_owned();
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program = messages
        .filter(|message| message["target"]["name"] == bench)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    program.with_context(|| format!("cargo built no program called {bench}"))
}

/// Runs a program to its end and returns what it wrote to its standard output.
///
/// # Errors
/// If it cannot be run or fails; the error has what it wrote to its standard error.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let name = name_of(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("no {name}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name} ended with {}: {}", output.status, tail(&said));
    }
    Ok(output.stdout)
}

/// Runs a program, shows it each line of `line`'s choosing, and ends it, with all that it
/// started, after `limit`. Standard output and error come in one stream.
///
/// # Errors
/// If it cannot be run, or took too long.
pub fn watch(
    command: &mut Command,
    limit: Duration,
    mut line: impl FnMut(&str),
) -> Result<ExitStatus> {
    let name = name_of(command);
    let (reader, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("{name} cannot be run"))?;
    // The command holds the pipe's other ends until then.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let (sender, lines) = mpsc::sync_channel::<String>(LINES_MAX);
    std::thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
            if sender.send(String::from_utf8_lossy(&bytes).trim_end().to_owned()).is_err() {
                return;
            }
            bytes.clear();
        }
    });

    let started = Instant::now();
    let mut ended: Option<(ExitStatus, Instant)> = None;
    loop {
        match lines.recv_timeout(POLL) {
            Ok(text) => line(&text),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        if ended.is_none() {
            ended = child.try_wait()?.map(|status| (status, Instant::now()));
        }
        match ended {
            Some((_, at)) if at.elapsed() > CLOSE_MAX => break,
            None if started.elapsed() > limit => {
                end_with_descendants(&mut child);
                bail!("{name} took longer than {} s and was ended", limit.as_secs());
            }
            _ => {}
        }
    }
    Ok(child.wait()?)
}

/// Kills a program and what it started, as far as that can be found out here.
fn end_with_descendants(child: &mut Child) {
    for id in descendants(child.id()) {
        let _ = Command::new("kill").args(["-9", &id.to_string()]).status();
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// The processes that descend from this one; empty where there is no `/proc`.
fn descendants(of: u32) -> Vec<u32> {
    let mut parents: Vec<(u32, u32)> = Vec::new();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for entry in processes {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // `pid (name, which may hold anything) state parent ...`
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        if let Some(parent) = after_name.split_whitespace().nth(1).and_then(|p| p.parse().ok()) {
            parents.push((id, parent));
        }
    }
    let mut found: Vec<u32> = vec![of];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(id, _)| *id));
        next += 1;
    }
    found.split_off(1)
}

fn name_of(command: &Command) -> String {
    let mut name = command.get_program().to_string_lossy().into_owned();
    if let Some(base) = std::path::Path::new(&name).file_name() {
        name = base.to_string_lossy().into_owned();
    }
    if let Some(first) = command.get_args().next() {
        name.push(' ');
        name.push_str(&first.to_string_lossy());
    }
    name
}

/// The last lines of what a program said.
pub fn tail(text: &str) -> String {
    const LINES: usize = 12;
    let lines: Vec<&str> = text.trim().lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn both_streams_are_seen_and_the_status_is_known() {
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; exit 3"]);
        let status =
            watch(&mut command, Duration::from_secs(60), |line| lines.push(line.to_owned()));
        assert_eq!(status.expect("it runs").code(), Some(3));
        assert_eq!(lines, ["one", "two"]);
    }

    #[cfg(unix)]
    #[test]
    fn what_takes_too_long_is_ended() {
        let mut command = Command::new("sleep");
        let error = watch(command.arg("600"), Duration::from_millis(100), |_| {});
        assert!(error.expect_err("it must not wait").to_string().contains("took longer"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn ending_a_program_ends_all_that_it_started() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & echo $!; wait"]).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it runs");
        let mut output = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        output.read_line(&mut line).expect("it says the id of what it started");
        assert!(descendants(child.id()).contains(&line.trim().parse().expect("an id")));
        end_with_descendants(&mut child);
        // What it started holds the pipe open for as long as it lives.
        line.clear();
        assert_eq!(output.read_line(&mut line).expect("a pipe"), 0);
    }
}
