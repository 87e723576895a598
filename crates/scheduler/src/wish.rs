//! What a request asks of its route, and routes that keep to it.

use std::collections::BTreeSet;

use protocol::{Span, WorkerId};

use crate::fleet::has_layers;
use crate::routing::{Leg, Ways, cheapest};
use crate::session::Stage;

/// Workers that a route is tried to begin at, where the cheapest one does not do.
const HOMES_MAX: usize = 16;
/// Stages on other workers than that, at most, of such a route.
const AWAY_MAX: usize = 7;

/// How the layers of a route are to be spread over workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Parallelism {
    /// As it costs the least.
    #[default]
    Auto,
    /// One worker runs all layers.
    None,
    /// Two workers or more run them one after the other.
    Pipeline,
    /// Groups of workers share each layer.
    Tensor,
    /// Such groups run layers one after the other.
    Hybrid,
}

/// What a request asks of its route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Different workers at most.
    pub nodes_max: Option<u32>,
    /// Over trusted workers only.
    pub trusted_only: bool,
    /// How its layers are to be spread.
    pub parallelism: Parallelism,
}

impl Wish {
    /// The field and what is wrong where no fleet here can grant it.
    pub(crate) fn impossible(self) -> Option<(&'static str, String)> {
        match self.parallelism {
            Parallelism::Pipeline | Parallelism::Hybrid if self.nodes_max == Some(1) => {
                Some(("weft.nodes", "a pipeline takes two workers at least".to_owned()))
            }
            Parallelism::Auto
            | Parallelism::None
            | Parallelism::Pipeline
            | Parallelism::Tensor
            | Parallelism::Hybrid => None,
        }
    }

    /// The field and what is wrong where the fleet's placement does not grant it.
    pub(crate) fn not_now(self) -> (&'static str, String) {
        let (parallelism, nodes) = match self.parallelism {
            Parallelism::None => ("one worker with all layers", "weft.parallelism"),
            Parallelism::Pipeline => ("layers on two workers or more", "weft.parallelism"),
            Parallelism::Tensor => ("all layers in one group that shares them", "weft.parallelism"),
            Parallelism::Hybrid => ("layers in two groups that share them", "weft.parallelism"),
            Parallelism::Auto => ("", "weft.nodes"),
        };
        let nodes_max = self.nodes_max.map(|n| format!("{n} workers at most"));
        let asked = nodes_max.into_iter().chain([parallelism.to_owned()]);
        let asked: Vec<String> = asked.filter(|text| !text.is_empty()).collect();
        (nodes, format!("no route over the workers that are here has {}", asked.join(" and ")))
    }

    /// What is asked of the way through a part of a route: the whole is judged when it is known.
    pub(crate) fn of_part(self) -> Wish {
        let parallelism = match self.parallelism {
            Parallelism::Pipeline => Parallelism::Auto,
            Parallelism::Hybrid => Parallelism::Tensor,
            other => other,
        };
        Wish { nodes_max: None, parallelism, ..self }
    }

    /// Whether a shard with layers may be in such a route: one that a tensor group shares, or
    /// another.
    pub(crate) fn takes(self, shared: bool) -> bool {
        match self.parallelism {
            Parallelism::Auto => true,
            Parallelism::None | Parallelism::Pipeline => !shared,
            Parallelism::Tensor | Parallelism::Hybrid => shared,
        }
    }

    /// Whether a route is spread as asked, of a model with so many parts.
    pub(crate) fn fits(self, legs: &[Leg], parts: usize) -> bool {
        let workers: BTreeSet<WorkerId> = legs.iter().map(|(holder, _)| holder.0).collect();
        let layered = legs.iter().filter(|(_, span)| has_layers(*span, parts));
        let layered: BTreeSet<WorkerId> = layered.map(|(holder, _)| holder.0).collect();
        let spread = match self.parallelism {
            Parallelism::Auto => true,
            Parallelism::None | Parallelism::Tensor => layered.len() <= 1,
            Parallelism::Pipeline | Parallelism::Hybrid => layered.len() > 1,
        };
        spread && self.nodes_max.is_none_or(|most| workers.len() <= most as usize)
    }

    /// The same of stages that have all a holder.
    pub(crate) fn suits(self, stages: &[Stage], parts: usize) -> bool {
        let legs: Option<Vec<Leg>> = stages.iter().map(|s| Some((s.holder?, s.span))).collect();
        legs.is_some_and(|legs| self.fits(&legs, parts))
    }

    /// The cheapest route over `range`, or where that is not spread as asked, the cheapest of
    /// those that begin at each of the first [`HOMES_MAX`] workers, come back there or not, and
    /// have as many other stages as may be.
    pub(crate) fn route(self, ways: &Ways, range: Span, work_bytes: &[u64]) -> Option<Vec<Leg>> {
        let parts = work_bytes.len() - 1;
        let (legs, _) = cheapest(ways, range, work_bytes, None)?;
        if self.fits(&legs, parts) {
            return Some(legs);
        }
        let away = self.nodes_max.map_or(AWAY_MAX, |most| (most as usize).saturating_sub(1));
        let homes: BTreeSet<WorkerId> = ways.ways.iter().map(|way| way.holder.0).collect();
        let found = homes.into_iter().take(HOMES_MAX).filter_map(|home| {
            cheapest(ways, range, work_bytes, Some((home, away.min(AWAY_MAX))))
                .filter(|(legs, _)| self.fits(legs, parts))
        });
        found.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(legs, _)| legs)
    }
}
