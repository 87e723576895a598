//! Whether a file can be run, decided before anything of it is loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use thiserror::Error;

use crate::config::{Config, ROPE_FREQS};
use crate::gguf::{GgmlType, Gguf, Tensor};
use crate::limits::{GGUF_DIMS_MAX, PROBLEMS_MAX};
use crate::manifest::Role;

/// One thing about a file that we cannot run.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// A family whose graph we do not have.
    #[error("architecture \"{got}\" is not supported, only llama and qwen2 are")]
    Architecture {
        /// What `general.architecture` says.
        got: String,
    },
    /// A metadata entry that has to be there.
    #[error("metadata \"{key}\" is missing")]
    MissingMetadata {
        /// Its key.
        key: String,
    },
    /// A metadata entry of another type or value.
    #[error("metadata \"{key}\" is not what it should be, expected {expected}")]
    Metadata {
        /// Its key.
        key: String,
        /// What should stand there.
        expected: &'static str,
    },
    /// Something that would change the graph.
    #[error("{feature} (metadata \"{key}\") is not supported")]
    Feature {
        /// What it is called.
        feature: &'static str,
        /// The entry that asks for it.
        key: String,
    },
    /// Scaling of RoPE other than none, linear and Llama 3's.
    #[error("RoPE scaling \"{got}\" is not supported, only none, linear and llama3 are")]
    RopeScaling {
        /// What the file asks for.
        got: String,
    },
    /// Numbers that do not fit each other or our bounds.
    #[error("the model has {what}")]
    Shapes {
        /// Which, and what is expected.
        what: String,
    },
    /// A tensor that has to be there.
    #[error("tensor \"{name}\" is missing")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor type that we do not run.
    #[error(
        "tensor type {ggml_type} is not supported ({count} tensors, the first \"{first}\"), \
         only F32, F16, Q4_0, Q4_1, Q5_0, Q8_0, Q4_K and Q6_K are"
    )]
    TensorType {
        /// The type.
        ggml_type: GgmlType,
        /// How many tensors have it.
        count: usize,
        /// The first of them by name.
        first: String,
    },
    /// A tensor of another shape or type than its place in the graph needs.
    #[error("tensor \"{name}\" is {got}, expected {expected}")]
    Tensor {
        /// Its name.
        name: String,
        /// Its type or shape, fastest dimension first.
        got: String,
        /// What should be there.
        expected: String,
    },
    /// A tensor that the graph has no place for: leaving it out would change the output.
    #[error("tensor \"{name}\" has no place in the {architecture} graph")]
    UnknownTensor {
        /// Its name.
        name: String,
        /// The family.
        architecture: &'static str,
    },
}

/// Everything about a file that we cannot run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Error)]
pub struct Unsupported {
    /// What it is, at most [`PROBLEMS_MAX`].
    pub problems: Vec<Problem>,
    /// How many more there are.
    pub more: usize,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this model cannot be run: ")?;
        for (i, problem) in self.problems.iter().enumerate() {
            write!(f, "{}{problem}", if i > 0 { "; " } else { "" })?;
        }
        if self.more > 0 {
            write!(f, "; and {} more", self.more)?;
        }
        Ok(())
    }
}

/// Collects problems, a bounded number by name.
#[derive(Default)]
pub(crate) struct Problems {
    found: Unsupported,
}

impl Problems {
    pub(crate) fn add(&mut self, problem: Problem) {
        if self.found.problems.contains(&problem) {
            return;
        }
        if self.found.problems.len() < PROBLEMS_MAX {
            self.found.problems.push(problem);
        } else {
            self.found.more += 1;
        }
    }
}

/// Reads what a file is and checks that all of it can be run.
///
/// # Errors
/// Everything that is missing or not supported, in one [`Unsupported`].
pub fn check_supported(gguf: &Gguf<'_>) -> Result<Config, Unsupported> {
    let mut problems = Problems::default();
    check_types(gguf, &mut problems);
    let config = Config::read(gguf, &mut problems);
    if let Some(config) = &config {
        check_tensors(gguf, config, &mut problems);
    }
    match config {
        Some(config) if problems.found.problems.is_empty() => Ok(config),
        _ => Err(problems.found),
    }
}

/// Notes each tensor type that we do not run once.
fn check_types(gguf: &Gguf<'_>, problems: &mut Problems) {
    let mut counts = BTreeMap::new();
    for (name, tensor) in gguf.tensors() {
        if tensor.ggml_type.block().is_none() {
            counts.entry(tensor.ggml_type).or_insert((0, name)).0 += 1;
        }
    }
    for (ggml_type, (count, first)) in counts {
        problems.add(Problem::TensorType { ggml_type, count, first: first.to_owned() });
    }
}

/// Checks that exactly the graph's tensors are there, with the graph's shapes.
fn check_tensors(gguf: &Gguf<'_>, config: &Config, problems: &mut Problems) {
    let mut known = BTreeSet::from([ROPE_FREQS.to_owned()]);
    let mut check = |role: Role, layer: u32| {
        let name = role.gguf_name(layer);
        match gguf.tensor(&name) {
            Some(tensor) => check_tensor(&name, tensor, role, config, problems),
            None => problems.add(Problem::MissingTensor { name: name.clone() }),
        }
        known.insert(name);
    };
    check(Role::TokenEmbedding, 0);
    for layer in 0..config.dims.layers {
        for role in config.architecture.layer_roles() {
            check(*role, layer);
        }
    }
    check(Role::OutputNorm, 0);
    if !config.tied {
        check(Role::Output, 0);
    }
    for (name, _) in gguf.tensors() {
        if !known.contains(name) {
            let architecture = config.architecture.name();
            problems.add(Problem::UnknownTensor { name: name.to_owned(), architecture });
        }
    }
}

fn check_tensor(
    name: &str,
    tensor: &Tensor<'_>,
    role: Role,
    config: &Config,
    problems: &mut Problems,
) {
    if tensor.ggml_type.block().is_none() {
        return; // noted once per type
    }
    let (rows, cols) = role.shape(&config.dims);
    let mut shape = [1; GGUF_DIMS_MAX as usize];
    shape[..tensor.dims().len()].copy_from_slice(tensor.dims());
    if shape != [cols.into(), rows.into(), 1, 1] {
        let got = format!("{:?}", tensor.dims());
        let expected =
            if role.is_vector() { format!("[{cols}]") } else { format!("[{cols}, {rows}]") };
        problems.add(Problem::Tensor { name: name.to_owned(), got, expected });
    }
    if role.is_vector() && !matches!(tensor.ggml_type, GgmlType::F32 | GgmlType::F16) {
        let (got, expected) = (tensor.ggml_type.to_string(), "F32 or F16".to_owned());
        problems.add(Problem::Tensor { name: name.to_owned(), got, expected });
    }
}

#[cfg(test)]
mod tests;
