//! Pure crates: no sockets, no clock, no threads, no randomness of their own.

use super::metadata::Metadata;

/// The pure crates; `text` is one too, but its tokenizer is heavy and may use what it likes.
const PURE: [&str; 7] =
    ["protocol", "api", "model", "scheduler", "worker-core", "numerics", "reference"];
/// Crates whose history of inputs must give one history of outputs.
const ORDERED: [&str; 2] = ["scheduler", "worker-core"];

/// Packages that bring sockets, clocks, threads or randomness.
const IMPURE_PACKAGES: [&str; 25] = [
    "async-std",
    "axum",
    "chrono",
    "crossbeam-channel",
    "crossbeam-utils",
    "fastrand",
    "futures-executor",
    "getrandom",
    "hyper",
    "instant",
    "jiff",
    "mio",
    "num_cpus",
    "parking_lot",
    "rand",
    "rand_core",
    "rayon",
    "rayon-core",
    "reqwest",
    "smol",
    "socket2",
    "time",
    "tokio",
    "tungstenite",
    "web-time",
];
/// What pure sources may not say.
const IMPURE_WORDS: [&str; 10] = [
    "Instant",
    "SystemTime",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "RandomState",
    "std::thread",
    "std::net",
    "std::process",
    "std::fs",
];
/// What ordered sources may not say: the order of these differs from run to run.
const UNORDERED_WORDS: [&str; 2] = ["HashMap", "HashSet"];

/// One line for each impure package that is compiled into a pure crate.
pub fn check_dependencies(metadata: &Metadata) -> Vec<String> {
    let mut problems = Vec::new();
    for package in metadata.ours().filter(|package| PURE.contains(&package.name.as_str())) {
        for (name, through) in metadata.compiled_into(package) {
            if IMPURE_PACKAGES.contains(&name) {
                let pure = &package.name;
                problems.push(format!("{pure} is pure, but has {name} through {through}"));
            }
        }
    }
    problems
}

/// One line for each forbidden word in a pure crate's source, its tests aside.
pub fn check_source(file: &str, text: &str) -> Vec<String> {
    let Some((name, inside)) =
        file.strip_prefix("crates/").and_then(|path| path.split_once("/src/"))
    else {
        return Vec::new();
    };
    let is_test = inside.ends_with("tests.rs") || inside.contains("tests/");
    if !inside.ends_with(".rs") || is_test {
        return Vec::new();
    }
    let mut words: Vec<&str> = Vec::new();
    if PURE.contains(&name) || name == "text" {
        words.extend(IMPURE_WORDS);
    }
    if ORDERED.contains(&name) {
        words.extend(UNORDERED_WORDS);
    }
    let mut problems = Vec::new();
    for (index, line) in text.lines().enumerate() {
        // Unit tests come last in a file.
        if line.trim() == "#[cfg(test)]" {
            break;
        }
        let code = line.split("//").next().unwrap_or_default();
        for word in words.iter().filter(|word| has_word(code, word)) {
            problems.push(format!("{file}:{}: {word} in a pure crate", index + 1));
        }
    }
    problems
}

/// Whether the word is there and not only as a part of a longer name.
fn has_word(code: &str, word: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(part_of_name) && !after.is_some_and(part_of_name)
    })
}

#[cfg(test)]
mod tests {
    use super::super::metadata::tests::metadata;
    use super::*;

    #[test]
    fn an_impure_package_is_found_through_others() {
        let mut metadata =
            metadata(&[("model", &["blake3"]), ("blake3", &["rayon"]), ("rayon", &[])]);
        metadata.workspace_members.truncate(1);
        let problems = check_dependencies(&metadata);
        assert_eq!(problems, ["model is pure, but has rayon through blake3"]);
    }

    #[test]
    fn words_are_found_in_code_but_not_in_comments_tests_or_other_names() {
        let find = |file: &str, text: &str| check_source(file, text).len();
        assert_eq!(find("crates/scheduler/src/lib.rs", "use std::time::Instant;"), 1);
        assert_eq!(find("crates/scheduler/src/lib.rs", "let m = HashMap::new();"), 1);
        assert_eq!(find("crates/model/src/lib.rs", "let m = HashMap::new();"), 0);
        assert_eq!(find("crates/model/src/lib.rs", "// no Instant here"), 0);
        assert_eq!(find("crates/model/src/lib.rs", "struct Instantly;"), 0);
        assert_eq!(find("crates/model/src/a.rs", "a();\n#[cfg(test)]\nuse std::fs;"), 0);
        assert_eq!(find("crates/model/src/gguf/tests.rs", "use std::fs;"), 0);
        assert_eq!(find("crates/engine/src/pool.rs", "use std::thread;"), 0);
        assert_eq!(find("worker/src/lib.rs", "use std::net;"), 0);
    }
}
