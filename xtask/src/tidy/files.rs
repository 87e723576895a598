//! Every tracked file: its size, and what must not be in it.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::process::output;

/// Lines of a source file at most: more is several concepts.
const LINES_MAX: usize = 700;
/// Bytes of any file at most: weights and other binaries are not kept here.
const BYTES_MAX: usize = 1 << 20;

/// Folders of some machine, written so that this file does not hold them itself.
const MACHINE_PATHS: [&str; 5] = [
    concat!("/", "work/"),
    concat!("/", "root/"),
    concat!("/", "tmp/"),
    concat!("/", "home/"),
    concat!("/", "Users/"),
];
/// Hosts of package registries; clients know them by themselves.
const REGISTRIES: [&str; 7] = [
    concat!("py", "pi.org"),
    concat!("python", "hosted.org"),
    concat!("crates", ".io"),
    concat!("registry.", "npmjs"),
    concat!("deb.", "debian.org"),
    concat!("static.", "rust-lang.org"),
    concat!("arti", "factory"),
];
/// What tests and unfinished code may not say.
const UNFINISHED: [&str; 4] = [
    concat!("#[", "ignore"),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("dbg", "!("),
];

/// The files that git tracks or would track, relative to the root, with `/` between folders.
pub fn tracked(root: &Path) -> Result<Vec<String>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"]);
    let bytes = output(git.current_dir(root))?;
    let names = String::from_utf8(bytes)?;
    let here = |name: &&str| !name.is_empty() && root.join(name).is_file();
    Ok(names.split('\0').filter(here).map(str::to_owned).collect())
}

/// One line for each thing wrong with a file.
pub fn check(file: &str, bytes: &[u8]) -> Vec<String> {
    let mut problems = Vec::new();
    if bytes.len() > BYTES_MAX {
        problems.push(format!("{file}: {} bytes, more than {BYTES_MAX}", bytes.len()));
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        problems.push(format!("{file}: not UTF-8; binaries are not kept here"));
        return problems;
    };
    let source = file.ends_with(".rs");
    let lines = text.lines().count();
    if source && lines > LINES_MAX {
        problems.push(format!("{file}: {lines} lines, more than {LINES_MAX}: split it"));
    }
    for (index, line) in text.lines().enumerate() {
        let mut say = |what: &str| problems.push(format!("{file}:{}: {what}", index + 1));
        for path in MACHINE_PATHS.iter().filter(|path| has_path(line, path)) {
            say(&format!("{path} is a folder of some machine"));
        }
        // The lock file names the registry, as cargo writes it.
        if file != "Cargo.lock" {
            for host in REGISTRIES.iter().filter(|host| line.contains(**host)) {
                say(&format!("{host} is a registry's host"));
            }
        }
        if source {
            for word in UNFINISHED.iter().filter(|word| line.contains(**word)) {
                say(&format!("{word} may not be left in"));
            }
        }
    }
    problems
}

/// Whether the folder stands at the start of a path, not within one.
fn has_path(line: &str, path: &str) -> bool {
    let within = |c: char| c.is_alphanumeric() || "_-.~}".contains(c);
    line.match_indices(path).any(|(at, _)| !line[..at].chars().next_back().is_some_and(within))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_bounds() {
        assert_eq!(check("a.rs", "//\n".repeat(LINES_MAX).as_bytes()).len(), 0);
        assert_eq!(check("a.rs", "//\n".repeat(LINES_MAX + 1).as_bytes()).len(), 1);
        assert_eq!(check("a.json", "{}\n".repeat(LINES_MAX + 1).as_bytes()).len(), 0);
        assert_eq!(check("a.json", &vec![b' '; BYTES_MAX + 1]).len(), 1);
        assert_eq!(check("a.gguf", &[0xff, 0xfe]).len(), 1);
    }

    #[test]
    fn machine_paths_hosts_and_unfinished_code_are_found() {
        let find = |file: &str, text: String| check(file, text.as_bytes()).len();
        for path in MACHINE_PATHS {
            assert_eq!(find("README.md", format!("see {path}x")), 1);
            assert_eq!(find("README.md", format!("see some{path}x")), 0);
        }
        assert_eq!(find("a.rs", format!("// https://{}", REGISTRIES[0])), 1);
        assert_eq!(find("Cargo.lock", format!("registry+{}", REGISTRIES[2])), 0);
        assert_eq!(find("a.rs", format!("{}]", UNFINISHED[0])), 1);
        assert_eq!(find("a.md", format!("{}]", UNFINISHED[0])), 0);
    }
}
