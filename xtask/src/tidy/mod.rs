//! `cargo xtask tidy`: what DESIGN.md promises of the sources, checked from `cargo metadata`
//! and from the files, not from memory.

mod arrows;
mod files;
mod licences;
mod manifests;
mod metadata;
mod purity;

use std::path::PathBuf;

use anyhow::{Context, Result};

use metadata::Metadata;

/// Checks everything and prints each problem; `true` if there is none.
pub fn run() -> Result<bool> {
    let metadata = Metadata::read()?;
    let root = crate::root();
    let tracked = files::tracked(&root)?;
    let mut problems = Vec::new();
    problems.extend(arrows::check(&metadata));
    problems.extend(purity::check_dependencies(&metadata));
    let deny = std::fs::read_to_string(root.join("deny.toml")).context("deny.toml")?;
    problems.extend(licences::check(&metadata, &deny));
    for file in &tracked {
        let bytes = std::fs::read(root.join(file))?;
        problems.extend(files::check(file, &bytes));
        let Ok(text) = std::str::from_utf8(&bytes) else { continue };
        problems.extend(purity::check_source(file, text));
        problems.extend(manifests::check(file, text));
    }
    for problem in &problems {
        println!("tidy: {problem}");
    }
    println!("tidy: {} files, {} problems", tracked.len(), problems.len());
    Ok(problems.is_empty())
}

/// Where cargo builds.
pub fn target_folder() -> Result<PathBuf> {
    Ok(Metadata::read()?.target_directory)
}
