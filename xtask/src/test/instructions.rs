//! Instructions that the CPU engine's kernels execute, counted by callgrind and compared with
//! the table that is committed beside them. A count is the same on a busy machine and on a slow
//! one, so a few per cent show, which no timing would.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::report::Outcome;
use crate::process::{bench_program, output};
use crate::{tidy, tools};

/// The committed counts, in the checkout.
const TABLE: &str = "crates/engine/benches/instructions.txt";
/// What runs the kernels, and its function that is counted.
const PROGRAM: &str = "instructions";
const COUNTED: &str = "instructions::counted";
/// Instruction sets that the table is of.
const ISAS: usize = 2;
/// How far a count may be from the table's, either way, before somebody must look at it.
const APART_MAX: f64 = 0.03;
/// The same where another compiler made the program: it arranges every kernel a little anew, and
/// what is further apart is told, not judged.
const APART_OTHER_COMPILER_MAX: f64 = 0.10;

const HEADER: &str = "\
# Instructions of each kernel, as callgrind counts them: `cargo xtask instructions` compares,
# `cargo xtask instructions --write` writes this file. A kernel that became better is written down
# too, so that the next change cannot lose it again.
";

/// Counts and compares, or writes the table anew; skips where there is no callgrind, but never
/// in CI.
pub fn run(write: bool) -> Result<Outcome> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        let why = "instruction counts: the table is of x86-64 under Linux".to_owned();
        println!("SKIPPED: {why}");
        return Ok(Outcome::skipping(vec![why]));
    }
    if output(Command::new("valgrind").arg("--version")).is_err() {
        let why = "instruction counts: no valgrind here (Debian: apt-get install valgrind)";
        if tools::is_ci() || write {
            bail!("{why}");
        }
        println!("SKIPPED: {why}");
        return Ok(Outcome::skipping(vec![why.to_owned()]));
    }
    let counted = Table { compiler: compiler()?, counts: count()? };
    let path = crate::root().join(TABLE);
    if write {
        let isas = |name: &String| name.split(' ').next().map(str::to_owned);
        let isas: BTreeSet<String> = counted.counts.keys().filter_map(isas).collect();
        ensure!(isas.len() == ISAS, "this processor has only {isas:?}: write it on another one");
        std::fs::write(&path, counted.to_text())?;
        println!("{} counts are written to {TABLE}", counted.counts.len());
        return Ok(Outcome::ok());
    }
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {TABLE}"))?;
    let found = Table::parse(&text)?.compare(&counted);
    found.lines.iter().for_each(|line| println!("{line}"));
    found.skipped.iter().for_each(|line| println!("SKIPPED: {line}"));
    Ok(if found.passed { Outcome::skipping(found.skipped) } else { Outcome::from_bool(false) })
}

/// `rustc 1.95.0 (59807616e 2026-04-14)`.
fn compiler() -> Result<String> {
    let said = output(Command::new("rustc").arg("--version").current_dir(crate::root()))?;
    Ok(String::from_utf8_lossy(&said).trim().to_owned())
}

/// Runs all kernels under callgrind, which writes a file for each time that the counted function
/// returned.
fn count() -> Result<BTreeMap<String, u64>> {
    let program = bench_program("engine", PROGRAM, &["testing"])?;
    let folder = tidy::target_folder()?.join("instructions");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    let dumps = folder.join("dump");
    let mut out = std::ffi::OsString::from("--callgrind-out-file=");
    out.push(&dumps);
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", &format!("--toggle-collect={COUNTED}")]).arg(out);
    valgrind.arg(format!("--dump-after={COUNTED}")).arg(program).current_dir(&folder);
    let said = output(&mut valgrind)?;
    let names = String::from_utf8(said).context("names of kernels")?;
    ensure!(!names.is_empty(), "{PROGRAM} counted nothing");
    let mut counts = BTreeMap::new();
    for (number, name) in (1..).zip(names.lines()) {
        let total = total(&dumps.with_extension(number.to_string()))?;
        ensure!(counts.insert(name.to_owned(), total).is_none(), "{name} is there twice");
    }
    Ok(counts)
}

/// The instructions in one of callgrind's files: its line `totals: 1234`.
fn total(dump: &Path) -> Result<u64> {
    let text = std::fs::read_to_string(dump)
        .with_context(|| format!("callgrind wrote no {}", dump.display()))?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
    total.filter(|total| *total > 0).with_context(|| format!("no count in {}", dump.display()))
}

/// Counts, and the compiler that made what was counted.
struct Table {
    compiler: String,
    /// By instruction set and kernel: `avx2 swiglu [1536]`.
    counts: BTreeMap<String, u64>,
}

/// What a comparison says.
struct Found {
    passed: bool,
    lines: Vec<String>,
    /// What could not be counted here.
    skipped: Vec<String>,
}

impl Table {
    /// Reads the committed file: a line for the compiler, then one for each count.
    fn parse(text: &str) -> Result<Table> {
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        let compiler = lines.next().with_context(|| format!("{TABLE} is empty"))?.to_owned();
        let mut counts = BTreeMap::new();
        for line in lines {
            let parts = line.trim_start().split_once("  ");
            let entry = parts.and_then(|(count, name)| Some((name, count.parse().ok()?)));
            let (name, count) =
                entry.with_context(|| format!("{TABLE}: '{line}' is no count and name"))?;
            counts.insert(name.to_owned(), count);
        }
        Ok(Table { compiler, counts })
    }

    fn to_text(&self) -> String {
        let mut text = format!("{HEADER}{}\n", self.compiler);
        for (name, count) in &self.counts {
            writeln!(text, "{count:10}  {name}").expect("a string");
        }
        text
    }

    /// What `counted` has that this table has not, and the other way round.
    fn compare(&self, counted: &Table) -> Found {
        let same_compiler = self.compiler == counted.compiler;
        let apart_max = if same_compiler { APART_MAX } else { APART_OTHER_COMPILER_MAX };
        let (mut lines, mut off) = (Vec::new(), Vec::new());
        let mut missing_isas: BTreeSet<&str> = BTreeSet::new();
        for (name, &expected) in &self.counts {
            let Some(&got) = counted.counts.get(name) else {
                let isa = name.split(' ').next().unwrap_or_default();
                if counted.counts.keys().any(|name| name.starts_with(isa)) {
                    lines.push(format!("{name}: in the table, but not counted any more"));
                } else {
                    missing_isas.insert(isa);
                }
                continue;
            };
            let ratio = got as f64 / expected as f64;
            if (ratio - 1.0).abs() > apart_max {
                let (word, percent) = if ratio > 1.0 {
                    ("MORE", (ratio - 1.0) * 100.0)
                } else {
                    ("fewer", (1.0 - ratio) * 100.0)
                };
                off.push(format!(
                    "{name}: {got} instructions, {percent:.1} % {word} than {expected}"
                ));
            }
        }
        for (name, got) in &counted.counts {
            if !self.counts.contains_key(name) {
                lines.push(format!("{name}: {got} instructions, not in the table"));
            }
        }
        let passed = lines.is_empty() && (off.is_empty() || !same_compiler);
        let isas = missing_isas.iter().map(|isa| format!("instructions: no {isa} here"));
        let mut skipped: Vec<String> = isas.collect();
        // A new compiler's doing is nobody's fault: it is told, and does not stop anyone.
        if !off.is_empty() && !same_compiler {
            skipped.push(format!("instructions: {} are off, by another compiler", off.len()));
        }
        let advises = !(lines.is_empty() && off.is_empty());
        lines.append(&mut off);
        if !same_compiler {
            lines.push(format!(
                "The table is of {}, this is {}: counts may be {:.0} % apart, not {:.0} %.",
                self.compiler,
                counted.compiler,
                APART_OTHER_COMPILER_MAX * 100.0,
                APART_MAX * 100.0
            ));
        }
        if advises {
            lines.push(advice(same_compiler).to_owned());
        }
        let all = self.counts.len();
        lines.push(format!("{} kernels counted, {all} in {TABLE}", counted.counts.len()));
        Found { passed, lines, skipped }
    }
}

/// What to do about counts that are off.
fn advice(same_compiler: bool) -> &'static str {
    if same_compiler {
        "If a kernel became worse, mend it. If it is better, or the price is worth it, run `cargo \
         xtask instructions --write` and commit the table with the change, and say why."
    } else {
        "Another compiler alone may do that. Run `cargo xtask instructions` on the unchanged \
         sources: if they are off as well, then a kernel with MORE instructions is worth a look, \
         since users get that compiler too; run `cargo xtask instructions --write` there and \
         commit the table by itself. What is left after that is your change's."
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(compiler: &str, counts: &[(&str, u64)]) -> Table {
        let counts = counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        Table { compiler: compiler.to_owned(), counts }
    }

    #[test]
    fn what_was_written_is_read() {
        let written = table("rustc 1", &[("avx2 add [576]", 250), ("portable add [576]", 900)]);
        let read = Table::parse(&written.to_text()).expect("its own text");
        assert_eq!((read.compiler, read.counts), (written.compiler, written.counts));
        assert!(Table::parse("rustc 1\nnot a count\n").is_err());
    }

    #[test]
    fn worse_better_new_and_gone_are_all_told() {
        let committed = table("rustc 1", &[("avx2 a", 1000), ("avx2 b", 1000), ("avx2 c", 1000)]);
        let off = |counts: &[(&str, u64)], compiler: &str| {
            let found = committed.compare(&table(compiler, counts));
            (found.passed, found.lines.join("\n"))
        };
        let (passed, _) = off(&[("avx2 a", 1029), ("avx2 b", 971), ("avx2 c", 1000)], "rustc 1");
        assert!(passed, "within the bound");
        let (passed, said) = off(&[("avx2 a", 1040), ("avx2 b", 950), ("avx2 d", 1)], "rustc 1");
        assert!(!passed);
        for part in ["avx2 a: 1040 instructions, 4.0 % MORE", "5.0 % fewer", "not counted", "d: 1"]
        {
            assert!(said.contains(part), "{part} is not in:\n{said}");
        }
        let all = |a| [("avx2 a", a), ("avx2 b", 1000), ("avx2 c", 1000)];
        let (passed, said) = off(&all(1090), "rustc 2");
        assert!(passed && said.contains("rustc 1, this is rustc 2"), "{said}");
        let (passed, said) = off(&all(1110), "rustc 2");
        assert!(passed && said.contains("unchanged sources"), "{said}");
        let (passed, _) = off(&[("avx2 a", 1000), ("avx2 b", 1000)], "rustc 2");
        assert!(!passed, "one is gone, whatever the compiler");
    }

    #[test]
    fn a_processor_without_an_instruction_set_skips_its_kernels() {
        let committed = table("rustc 1", &[("avx2 a", 1000), ("portable a", 2000)]);
        let found = committed.compare(&table("rustc 1", &[("portable a", 2000)]));
        assert!(found.passed);
        assert_eq!(found.skipped, ["instructions: no avx2 here"]);
    }
}
