//! What a request asks of its route, and routes that keep to it.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{Span, WorkerId};

use crate::fleet::has_layers;
use crate::routing::{Leg, Ways, cheapest};
use crate::session::Stage;

/// Workers that a route is tried to be laid around, where the cheapest one does not do.
const HOMES_MAX: usize = 4;
/// Of those, so many are the fastest to begin at; the others hold the most.
const FIRST_HOMES_MAX: usize = 2;
/// Stages on other workers than that, at most, of such a route.
const AWAY_MAX: usize = 7;

/// How the layers of a route are to be spread over workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
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
        let field = match self.parallelism {
            Parallelism::Auto => "weft.nodes",
            Parallelism::None
            | Parallelism::Pipeline
            | Parallelism::Tensor
            | Parallelism::Hybrid => "weft.parallelism",
        };
        let asked = self.in_words().unwrap_or_default();
        (field, format!("no route over the workers that are here has {asked}"))
    }

    /// What a route that keeps to it has, if it is anything.
    pub(crate) fn in_words(self) -> Option<String> {
        let trusted = self.trusted_only.then(|| "trusted workers only".to_owned());
        let nodes_max = self.nodes_max.map(|n| format!("{n} workers at most"));
        let parallelism = match self.parallelism {
            Parallelism::Auto => None,
            Parallelism::None => Some("one worker with all layers"),
            Parallelism::Pipeline => Some("layers on two workers or more"),
            Parallelism::Tensor => Some("all layers in one group that shares them"),
            Parallelism::Hybrid => Some("layers in two groups that share them"),
        };
        let words = trusted.into_iter().chain(nodes_max).chain(parallelism.map(str::to_owned));
        let words: Vec<String> = words.collect();
        (!words.is_empty()).then(|| words.join(" and "))
    }

    /// Whether its layers go over two workers or more.
    fn spreads(self) -> bool {
        matches!(self.parallelism, Parallelism::Pipeline | Parallelism::Hybrid)
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

    /// The cheapest route over `range`, if that is spread as asked.
    pub(crate) fn direct(self, ways: &Ways, range: Span, work_bytes: &[u64]) -> Option<Vec<Leg>> {
        let (legs, _) = cheapest(ways, range, work_bytes, None, self.spreads())?;
        Some(legs).filter(|legs| self.fits(legs, work_bytes.len() - 1))
    }

    /// The same, or where that is not spread as asked, the cheapest of those around each of
    /// [`HOMES_MAX`] workers that have as many other stages as may be.
    pub(crate) fn route(self, ways: &Ways, range: Span, work_bytes: &[u64]) -> Option<Vec<Leg>> {
        let direct = self.direct(ways, range, work_bytes);
        if direct.is_some() || self.parallelism == Parallelism::Auto && self.nodes_max.is_none() {
            return direct;
        }
        let parts = work_bytes.len() - 1;
        let away = self.nodes_max.map_or(AWAY_MAX, |most| (most as usize).saturating_sub(1));
        let found = homes(ways, range).into_iter().filter_map(|home| {
            let home = Some((home, away.min(AWAY_MAX)));
            cheapest(ways, range, work_bytes, home, self.spreads())
                .filter(|(legs, _)| self.fits(legs, parts))
        });
        found.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(legs, _)| legs)
    }
}

/// Workers that a route over `range` may be laid around: the fastest of those that it may begin
/// at, which may be nothing but an end, and those that hold the most, the fastest first.
fn homes(ways: &Ways, range: Span) -> Vec<WorkerId> {
    let mut held: BTreeMap<WorkerId, (u32, f64)> = BTreeMap::new();
    for way in &ways.ways {
        let (parts, s_per_byte) = held.entry(way.holder.0).or_insert((0, f64::INFINITY));
        *parts += way.span.end - way.span.first;
        *s_per_byte = s_per_byte.min(way.s_per_byte);
    }
    let rate = |worker: &WorkerId| held[worker].1;
    let at = ways.at[range.first as usize].iter().map(|way| ways.ways[*way].holder.0);
    let mut first: Vec<WorkerId> = at.collect();
    first.sort_by(|a, b| rate(a).total_cmp(&rate(b)));
    first.dedup();
    first.truncate(FIRST_HOMES_MAX);
    let mut most: Vec<WorkerId> = held.keys().filter(|id| !first.contains(id)).copied().collect();
    most.sort_by(|a, b| held[b].0.cmp(&held[a].0).then(rate(a).total_cmp(&rate(b))));
    most.truncate(HOMES_MAX - first.len());
    first.extend(most);
    first
}
