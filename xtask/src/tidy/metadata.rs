//! The part of `cargo metadata` that the checks look at.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process::{cargo, output};

/// The workspace and all that it depends on.
#[derive(Debug, Default, Deserialize)]
pub struct Metadata {
    /// Where cargo builds.
    pub target_directory: PathBuf,
    /// Ours and others'.
    pub packages: Vec<Package>,
    /// Ids of ours.
    pub workspace_members: Vec<String>,
    resolve: Resolve,
}

/// One package.
#[derive(Debug, Deserialize)]
pub struct Package {
    /// Its id in this metadata.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// An SPDX expression.
    pub license: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// `dev`, `build`, or nothing.
    kind: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<NodeDependency>,
}

#[derive(Debug, Deserialize)]
struct NodeDependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Debug, Deserialize)]
struct DependencyKind {
    kind: Option<String>,
}

impl Metadata {
    /// Asks cargo.
    pub fn read() -> Result<Metadata> {
        let bytes = output(&mut cargo(&["metadata", "--format-version", "1", "--locked"]))?;
        serde_json::from_slice(&bytes).context("cargo metadata says something new")
    }

    /// Our packages.
    pub fn ours(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| self.workspace_members.contains(&package.id))
    }

    /// Names of our packages that this one depends on, tests aside.
    pub fn arrows_from(&self, package: &Package) -> BTreeSet<String> {
        let ours: BTreeSet<&str> = self.ours().map(|p| p.name.as_str()).collect();
        let real = package.dependencies.iter().filter(|d| d.kind.as_deref() != Some("dev"));
        real.map(|d| d.name.clone()).filter(|name| ours.contains(name.as_str())).collect()
    }

    /// Everything that is compiled into this package, tests and build scripts aside, and
    /// through which package of ours or others' it comes.
    pub fn compiled_into(&self, package: &Package) -> BTreeMap<&str, &str> {
        let names: BTreeMap<&str, &str> =
            self.packages.iter().map(|p| (p.id.as_str(), p.name.as_str())).collect();
        let nodes: BTreeMap<&str, &Node> =
            self.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
        let mut found = BTreeMap::new();
        let mut next = vec![package.id.as_str()];
        while let Some(id) = next.pop() {
            for dependency in nodes.get(id).map_or(&[][..], |node| &node.deps) {
                let normal = dependency.dep_kinds.iter().any(|kind| kind.kind.is_none());
                let name = names.get(dependency.pkg.as_str()).copied().unwrap_or_default();
                if normal && !found.contains_key(name) {
                    found.insert(name, names.get(id).copied().unwrap_or_default());
                    next.push(&dependency.pkg);
                }
            }
        }
        found
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Metadata in which `arrows` says who depends on whom; `dev>x` is for tests only, and
    /// names that begin with a capital are others'.
    pub fn metadata(arrows: &[(&str, &[&str])]) -> Metadata {
        let mut metadata = Metadata::default();
        for (name, targets) in arrows {
            let kind = |target: &str| target.starts_with("dev>").then(|| "dev".to_owned());
            let bare = |target: &str| target.trim_start_matches("dev>").to_owned();
            metadata.packages.push(Package {
                id: (*name).to_owned(),
                name: (*name).to_owned(),
                version: "1.0.0".to_owned(),
                license: Some("MIT".to_owned()),
                dependencies: targets
                    .iter()
                    .map(|t| Dependency { name: bare(t), kind: kind(t) })
                    .collect(),
            });
            let deps = targets.iter().map(|t| NodeDependency {
                pkg: bare(t),
                dep_kinds: vec![DependencyKind { kind: kind(t) }],
            });
            metadata.resolve.nodes.push(Node { id: (*name).to_owned(), deps: deps.collect() });
            if !name.starts_with(char::is_uppercase) {
                metadata.workspace_members.push((*name).to_owned());
            }
        }
        metadata
    }

    #[test]
    fn what_is_compiled_in_is_followed_through_others_but_not_through_tests() {
        let metadata = metadata(&[
            ("a", &["Serde", "dev>Rand"]),
            ("Serde", &["Deep", "dev>Tokio"]),
            ("Deep", &[]),
            ("Rand", &[]),
            ("Tokio", &[]),
        ]);
        let found = metadata.compiled_into(&metadata.packages[0]);
        assert_eq!(found, BTreeMap::from([("Serde", "a"), ("Deep", "Serde")]));
    }
}
