//! Cargo.toml files: one table of dependencies, a reason beside each.

/// One line for each dependency without a reason, or with a version of its own.
pub fn check(file: &str, text: &str) -> Vec<String> {
    if file != "Cargo.toml" && !file.ends_with("/Cargo.toml") {
        return Vec::new();
    }
    let mut problems = Vec::new();
    let mut section = "";
    // Brackets that are open: a list that goes over several lines.
    let mut depth = 0;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        let inside = depth > 0;
        if !inside && line.starts_with('[') {
            section = line;
            continue;
        }
        depth += line.matches('[').count();
        depth -= line.matches(']').count().min(depth);
        if inside || line.is_empty() || line.starts_with('#') || !section.contains("dependencies") {
            continue;
        }
        let at = format!("{file}:{}", index + 1);
        let (code, comment) = line.split_once(" #").unwrap_or((line, ""));
        if section == "[workspace.dependencies]" {
            let ours = code.contains("path = ");
            if !ours && comment.trim().is_empty() {
                problems.push(format!("{at}: no reason beside this dependency"));
            }
        } else if !code.contains("workspace = true") {
            problems.push(format!("{at}: versions belong into the workspace's table"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_and_one_table_are_wanted() {
        let root = "\
[workspace]
members = [\"a\"]
[workspace.dependencies]
# ours
a = { path = \"a\" }
anyhow = \"1\" # errors
bytes = \"1\"
";
        assert_eq!(check("Cargo.toml", root), ["Cargo.toml:7: no reason beside this dependency"]);
        let member = "[package]\nname = \"a\"\n[dev-dependencies]\nb.workspace = true\nc = \"1\"\n";
        assert_eq!(check("a/Cargo.toml", member).len(), 1);
        assert_eq!(check("a/other.toml", member).len(), 0);
        let long = "[dependencies]\nb = { workspace = true, features = [\n\"x\",\n] }\nc = \"1\"\n";
        assert_eq!(check("a/Cargo.toml", long).len(), 1);
    }
}
