//! The licences of everything that is built: each must be one that we may pass on.
//!
//! `cargo deny` checks the same from deny.toml where it is installed; this check needs
//! nothing, and takes its list from there, so that both say the same.

use std::collections::BTreeSet;

use super::metadata::Metadata;

/// One line for each package without a licence that is on the list of deny.toml.
pub fn check(metadata: &Metadata, deny: &str) -> Vec<String> {
    let allowed = allowed(deny);
    let mut problems = Vec::new();
    for package in &metadata.packages {
        let (name, version) = (&package.name, &package.version);
        match &package.license {
            None => problems.push(format!("{name} {version} names no licence")),
            Some(licence) => {
                if !permits(licence, &allowed) {
                    problems.push(format!("{name} {version} is under {licence}: not on the list"));
                }
            }
        }
    }
    problems
}

/// The strings of `allow = [...]` under `[licenses]`.
fn allowed(deny: &str) -> BTreeSet<&str> {
    let section = deny.split_once("[licenses]").map_or("", |(_, rest)| rest);
    let list = section.split_once("allow = [").map_or("", |(_, rest)| rest);
    let list = list.split_once(']').map_or("", |(list, _)| list);
    let lines = list.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines.flat_map(|line| line.split('"').skip(1).step_by(2)).collect()
}

/// Whether an SPDX expression can be met with these licences.
fn permits(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    // Old packages write `MIT/Apache-2.0`.
    let text = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut at = 0;
    let met = any(&words, &mut at, allowed);
    met && at == words.len()
}

fn any(words: &[&str], at: &mut usize, allowed: &BTreeSet<&str>) -> bool {
    let mut met = all(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= all(words, at, allowed);
    }
    met
}

fn all(words: &[&str], at: &mut usize, allowed: &BTreeSet<&str>) -> bool {
    let mut met = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(words, at, allowed);
    }
    met
}

fn one(words: &[&str], at: &mut usize, allowed: &BTreeSet<&str>) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let met = any(words, at, allowed);
        *at += usize::from(words.get(*at) == Some(&")"));
        return met;
    }
    if words.get(*at) == Some(&"WITH") {
        let exception = words.get(*at + 1).copied().unwrap_or_default();
        *at += 2;
        // An exception only permits more.
        return allowed.contains(word)
            || allowed.contains(format!("{word} WITH {exception}").as_str());
    }
    allowed.contains(word)
}

#[cfg(test)]
mod tests {
    use super::super::metadata::tests::metadata;
    use super::*;

    #[test]
    fn expressions_are_met_or_not() {
        let allowed = BTreeSet::from(["MIT", "ISC", "Apache-2.0"]);
        let met = |expression| permits(expression, &allowed);
        assert!(met("MIT"));
        assert!(met("MIT/Unlicense"));
        assert!(met("GPL-3.0 OR MIT"));
        assert!(met("ISC AND (MIT OR GPL-3.0)"));
        assert!(met("Apache-2.0 WITH LLVM-exception OR GPL-3.0"));
        assert!(!met("GPL-3.0"));
        assert!(!met("ISC AND GPL-3.0"));
        assert!(!met("ISC AND (GPL-3.0 OR MPL-2.0)"));
        assert!(!met("MIT )"), "nonsense permits nothing");
    }

    #[test]
    fn packages_without_a_permitted_licence_are_told() {
        let mut metadata = metadata(&[("Serde", &[]), ("Mystery", &[])]);
        let deny = "[licenses]\nallow = [\"MIT\"]\n";
        assert_eq!(check(&metadata, deny), Vec::<String>::new());
        metadata.packages[1].license = None;
        assert_eq!(check(&metadata, deny), ["Mystery 1.0.0 names no licence"]);
        metadata.packages[1].license = Some("GPL-3.0".to_owned());
        assert_eq!(check(&metadata, deny).len(), 1);
    }

    #[test]
    fn the_list_is_read_from_deny_toml() {
        let allowed = allowed("[licenses]\nallow = [\n  \"MIT\", # \"GPL-3.0\"\n  \"ISC\",\n]\n");
        assert_eq!(allowed, BTreeSet::from(["MIT", "ISC"]));
        assert!(super::allowed("[bans]\nallow = [\"MIT\"]\n").is_empty());
    }
}
