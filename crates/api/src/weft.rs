//! What a request may ask of the fleet: `"weft": {"nodes": 2, "trust": "trusted-only",
//! "parallelism": "pipeline"}`.

use serde::{Deserialize, Serialize};

use crate::error::Invalid;
use crate::fields::{Fields, invalid_value};

/// Workers that a request may allow at most; a route never has more.
pub const NODES_MAX: u32 = 1024;

/// How the layers of a route are to be spread over workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parallelism {
    /// As it costs the least.
    #[default]
    Auto,
    /// One worker runs all layers.
    None,
    /// Two workers or more run them one after the other; `layer` is read as this.
    Pipeline,
    /// Groups of workers share each layer.
    Tensor,
    /// Such groups run layers one after the other.
    Hybrid,
}

/// What a request asks of its route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WeftOptions {
    /// Different workers at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<u32>,
    /// Over trusted workers only: `"trust": "trusted-only"`.
    #[serde(rename = "trust", serialize_with = "write_trust")]
    pub trusted_only: bool,
    /// How its layers are to be spread.
    pub parallelism: Parallelism,
}

impl WeftOptions {
    /// Whether nothing is asked.
    pub fn is_default(&self) -> bool {
        *self == WeftOptions::default()
    }

    /// Takes the field `weft` out of a request.
    pub(crate) fn take(fields: &mut Fields) -> Result<WeftOptions, Invalid> {
        let Some(value) = fields.take("weft") else { return Ok(WeftOptions::default()) };
        let mut inner = Fields::of_value(value, "weft")?;
        let trusted_only = match inner.string("trust")?.as_deref() {
            None | Some("any") => false,
            Some("trusted-only") => true,
            Some(other) => {
                let problem = format!("it is '{other}', and can be 'any' or 'trusted-only'.");
                return Err(invalid_value("weft.trust", &problem));
            }
        };
        let parallelism = match inner.string("parallelism")?.as_deref() {
            None | Some("auto") => Parallelism::Auto,
            Some("none") => Parallelism::None,
            Some("pipeline" | "layer") => Parallelism::Pipeline,
            Some("tensor") => Parallelism::Tensor,
            Some("hybrid") => Parallelism::Hybrid,
            Some(other) => {
                let kinds = "'auto', 'none', 'pipeline' (or 'layer'), 'tensor' or 'hybrid'";
                let problem = format!("it is '{other}', and can be {kinds}.");
                return Err(invalid_value("weft.parallelism", &problem));
            }
        };
        let nodes = inner.integer_in("nodes", 1..=NODES_MAX)?;
        // A misspelt wish would be granted to nobody's knowledge.
        if let Some(name) = inner.left().next() {
            let problem = "it has no such option; there are 'nodes', 'trust' and 'parallelism'.";
            return Err(invalid_value(&format!("weft.{name}"), problem));
        }
        Ok(WeftOptions { nodes, trusted_only, parallelism })
    }
}

fn write_trust<S: serde::Serializer>(trusted_only: &bool, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(if *trusted_only { "trusted-only" } else { "any" })
}
