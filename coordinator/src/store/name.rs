//! Names of models that come from file names.

/// Bytes of a name made from a file's.
const NAME_BYTES_MAX: usize = 96;

/// A name fit for requests, folders and URLs: letters, digits and `.-_`, the rest as `-`.
pub fn clean_name(stem: &str) -> String {
    let mut name: String = stem
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '-' })
        .take(NAME_BYTES_MAX)
        .collect();
    // Hidden files, `..`, and what a command line takes for a flag.
    while name.starts_with(['.', '-']) {
        name.remove(0);
    }
    if name.is_empty() { "model".into() } else { name }
}

/// `name`, or `name-2`, `name-3`, ... if it is taken.
pub fn unique_name(name: &str, taken: &[&str]) -> String {
    let numbered = (2..).map(|n| format!("{name}-{n}"));
    std::iter::once(name.to_owned())
        .chain(numbered)
        .find(|candidate| !taken.contains(&candidate.as_str()))
        .expect("one of endlessly many names is free")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_paths_and_urls() {
        for (stem, expected) in [
            ("SmolLM2-135M-Instruct.Q4_1", "SmolLM2-135M-Instruct.Q4_1"),
            ("my model (v2)", "my-model--v2-"),
            ("../../etc/passwd", "etc-passwd"),
            ("..", "model"),
            ("--exact", "exact"),
            ("ü", "model"),
            ("", "model"),
        ] {
            assert_eq!(clean_name(stem), expected, "{stem:?}");
        }
        assert_eq!(clean_name(&"a".repeat(1000)).len(), NAME_BYTES_MAX);
    }

    #[test]
    fn a_taken_name_gets_a_number() {
        assert_eq!(unique_name("m", &[]), "m");
        assert_eq!(unique_name("m", &["m", "m-2"]), "m-3");
    }
}
