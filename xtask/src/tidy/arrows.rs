//! Which of our crates depends on which: exactly the arrows of ARCHITECTURE.md.

use std::collections::BTreeSet;

use super::metadata::Metadata;

/// From, to. Dependencies of tests are free, and so are the packages that only test.
const ARROWS: [(&str, &[&str]); 15] = [
    ("coordinator", &["scheduler", "text", "model", "api", "protocol", "worker", "worker-core"]),
    ("worker", &["worker-core", "shards", "engine", "protocol", "model"]),
    ("shards", &["worker-core", "engine", "protocol", "model"]),
    ("web", &["api"]),
    ("browser-worker", &["worker-core", "shards", "engine", "model", "protocol", "api"]),
    ("scheduler", &["protocol"]),
    ("worker-core", &["protocol"]),
    ("engine", &["model", "numerics", "shaders"]),
    ("reference", &["model", "numerics"]),
    ("shaders", &[]),
    ("protocol", &["numerics"]),
    ("api", &[]),
    ("model", &[]),
    ("text", &[]),
    ("numerics", &[]),
];
/// Packages that hold tests or tools, on which nothing may depend.
const LEAVES: [&str; 6] = ["tests", "arm-tests", "wasm-tests", "fuzz", "xtask", "bindgen"];

/// One line for each arrow too many or too few.
pub fn check(metadata: &Metadata) -> Vec<String> {
    let mut problems = Vec::new();
    for package in metadata.ours() {
        let name = package.name.as_str();
        let found = metadata.arrows_from(package);
        for leaf in LEAVES.iter().filter(|leaf| found.contains(**leaf)) {
            problems.push(format!("{name} depends on {leaf}, which is for tests and tools"));
        }
        if LEAVES.contains(&name) {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(from, _)| *from == name) else {
            problems
                .push(format!("the crate {name} is new: say in tidy/arrows.rs what it may use"));
            continue;
        };
        let allowed: BTreeSet<String> = allowed.iter().map(|to| (*to).to_owned()).collect();
        for extra in found.difference(&allowed) {
            problems.push(format!("{name} -> {extra} is no arrow of the design"));
        }
        for unused in allowed.difference(&found) {
            problems.push(format!("{name} -> {unused} is an arrow that nothing uses any more"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::super::metadata::tests::metadata;
    use super::*;

    #[test]
    fn the_designs_arrows_pass() {
        let metadata = metadata(&[
            ("engine", &["model", "numerics", "shaders", "dev>protocol"]),
            ("model", &[]),
            ("numerics", &[]),
            ("shaders", &[]),
            ("protocol", &["numerics"]),
            ("tests", &["engine", "protocol"]),
        ]);
        assert_eq!(check(&metadata), Vec::<String>::new());
    }

    #[test]
    fn an_arrow_too_many_and_one_too_few_are_told() {
        let metadata = metadata(&[
            ("scheduler", &["model"]),
            ("model", &[]),
            ("protocol", &["numerics"]),
            ("numerics", &[]),
            ("new", &[]),
        ]);
        let problems = check(&metadata);
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[0].contains("scheduler -> model is no arrow"));
        assert!(problems[1].contains("scheduler -> protocol is an arrow that nothing uses"));
        assert!(problems[2].contains("the crate new is new"));
    }
}
