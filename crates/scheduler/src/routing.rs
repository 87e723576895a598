//! Which way a session's rows go: a shortest path over part boundaries.

use protocol::{AssignmentId, Span, WorkerId};

/// A ready shard that a route may use, or any part of it.
#[derive(Clone, Debug)]
pub struct Way {
    /// Who holds it.
    pub holder: (WorkerId, AssignmentId),
    /// Which parts.
    pub span: Span,
    /// Seconds that one row takes through one weight byte, load counted in.
    pub s_per_byte: f64,
    /// Seconds there and back.
    pub hop_s: f64,
    /// It is run from its first part to its last, or not at all.
    pub whole: bool,
}

/// The shards that a route may use.
#[derive(Clone, Debug)]
pub struct Ways {
    /// All of them.
    pub ways: Vec<Way>,
    /// By part: the ways that may be entered there.
    pub at: Vec<Vec<usize>>,
}

impl Ways {
    /// None yet, for a model of so many parts.
    pub fn new(parts: usize) -> Ways {
        Ways { ways: Vec::new(), at: vec![Vec::new(); parts] }
    }

    /// Adds a shard that may be entered at every part of it.
    pub fn add(&mut self, way: Way) {
        for part in way.span.first..way.span.end {
            self.at[part as usize].push(self.ways.len());
        }
        self.ways.push(way);
    }
}

/// One stage of a route: who, and which parts.
pub type Leg = ((WorkerId, AssignmentId), Span);

/// The cheapest route over `range`, entering and leaving shards anywhere, or `None` if some
/// part is held by nobody; `work_bytes` are the weight bytes of all parts before each part,
/// and of all. No shard is entered twice for layers: where the path would come back to one,
/// that shard runs everything between, which it holds.
pub fn route(ways: &Ways, range: Span, work_bytes: &[u64]) -> Option<Vec<Leg>> {
    cheapest(ways, range, work_bytes, None, false).map(|(legs, _)| legs)
}

/// The same with its cost in seconds. With a `home`, no two stages with layers that follow each
/// other are on that worker, and so many stages at most are on others. Where it `spreads`, no
/// stage has all layers.
pub(crate) fn cheapest(
    ways: &Ways,
    range: Span,
    work_bytes: &[u64],
    home: Option<(WorkerId, usize)>,
    spreads: bool,
) -> Option<(Vec<Leg>, f64)> {
    let (len, parts) = ((range.end - range.first) as usize, work_bytes.len() - 1);
    // What matters of a path so far: stages away from home, and whether its last one is there.
    let away_max = home.map_or(0, |(_, away)| away);
    let states = 2 * (away_max + 1);
    // best[b * states + s]: seconds to have run the range's first b parts in state s; by: the
    // way, and where the path was before.
    let mut best = vec![f64::INFINITY; (len + 1) * states];
    let mut by: Vec<Option<(usize, usize)>> = vec![None; (len + 1) * states];
    best[0] = 0.0;
    for at in 0..len * states {
        if best[at].is_infinite() {
            continue;
        }
        let (part, state) = (range.first as usize + at / states, at % states);
        for &w in &ways.at[part] {
            let way = &ways.ways[w];
            let is_home = home.is_none_or(|(home, _)| home == way.holder.0);
            let away = state / 2 + usize::from(!is_home);
            if away > away_max {
                continue;
            }
            let entered = best[at] + way.hop_s;
            let (first, end) = (way.span.first as usize, way.span.end as usize);
            if way.whole && (part != first || end > range.end as usize) {
                continue;
            }
            let leave = if way.whole { end } else { part + 1 };
            for to in leave..=end.min(range.end as usize) {
                let span = Span { first: part as u32, end: to as u32 };
                if spreads && part <= 1 && to + 1 >= parts {
                    break;
                }
                let settles = home.is_some() && is_home && crate::fleet::has_layers(span, parts);
                if settles && state % 2 == 1 {
                    continue;
                }
                let work = (work_bytes[to] - work_bytes[part]) as f64;
                let seconds = entered + work * way.s_per_byte;
                let b = (to - range.first as usize) * states + 2 * away + usize::from(settles);
                if seconds < best[b] {
                    best[b] = seconds;
                    by[b] = Some((w, at));
                }
            }
        }
    }
    let ends = len * states..(len + 1) * states;
    let mut at = ends.min_by(|a, b| best[*a].total_cmp(&best[*b]))?;
    let seconds = best[at];
    let mut legs: Vec<Leg> = Vec::new();
    while at >= states {
        let (w, from) = by[at]?;
        let first = range.first + (from / states) as u32;
        legs.push((ways.ways[w].holder, Span { first, end: range.first + (at / states) as u32 }));
        at = from;
    }
    legs.reverse();
    Some((merge_returns(legs, parts), seconds))
}

/// Lets a shard that a route comes back to run all that lies between.
fn merge_returns(mut legs: Vec<Leg>, parts: usize) -> Vec<Leg> {
    let layered = |leg: &Leg| crate::fleet::has_layers(leg.1, parts);
    let mut i = 0;
    while i < legs.len() {
        let returns = |leg: &Leg| leg.0 == legs[i].0 && layered(leg);
        let again = legs.iter().rposition(returns).filter(|&j| j > i && layered(&legs[i]));
        if let Some(j) = again {
            legs[i].1.end = legs[j].1.end;
            legs.drain(i + 1..=j);
        }
        i += 1;
    }
    legs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(worker: u64, first: u32, end: u32, part_s: f64, hop_s: f64) -> Way {
        let holder = (WorkerId(worker), AssignmentId(worker));
        Way { holder, span: Span { first, end }, s_per_byte: part_s, hop_s, whole: false }
    }

    fn check(all: &[Way], expected: Option<&[(u64, u32, u32)]>) {
        // The embedding is no work, every other part is as much as the next.
        let work: Vec<u64> = std::iter::once(0).chain(0..8).collect();
        let mut ways = Ways::new(8);
        all.iter().for_each(|way| ways.add(way.clone()));
        let legs = route(&ways, Span { first: 0, end: 8 }, &work);
        let got: Option<Vec<_>> =
            legs.map(|l| l.iter().map(|((w, _), s)| (w.0, s.first, s.end)).collect());
        assert_eq!(got.as_deref(), expected);
    }

    #[test]
    fn a_gap_is_no_route() {
        check(&[way(1, 0, 4, 1.0, 1.0), way(2, 5, 8, 1.0, 1.0)], None);
    }

    #[test]
    fn overlapping_shards_are_entered_mid_way() {
        let ways = [way(1, 0, 5, 1.0, 1.0), way(2, 3, 8, 2.0, 1.0)];
        check(&ways, Some(&[(1, 0, 5), (2, 5, 8)]));
    }

    #[test]
    fn a_faster_replica_wins_unless_its_hop_costs_more() {
        let slow = way(1, 0, 8, 2.0, 0.0);
        check(&[slow.clone(), way(2, 2, 6, 1.0, 1.0)], Some(&[(1, 0, 8)]));
        check(&[slow.clone(), way(2, 0, 8, 1.0, 1.0)], Some(&[(2, 0, 8)]));
        check(&[slow, way(2, 0, 8, 1.0, 9.0)], Some(&[(1, 0, 8)]));
    }

    #[test]
    fn what_is_run_as_a_whole_is_neither_entered_nor_left_midway() {
        let group = Way { whole: true, ..way(2, 2, 6, 0.1, 0.0) };
        check(&[way(1, 0, 8, 1.0, 0.0), group.clone()], Some(&[(1, 0, 8)]));
        let (before, behind) = (way(1, 0, 2, 1.0, 0.0), way(3, 6, 8, 1.0, 0.0));
        let route = [(1, 0, 2), (2, 2, 6), (3, 6, 8)];
        check(&[before.clone(), group.clone(), behind], Some(&route));
        check(&[way(1, 0, 3, 1.0, 0.0), group.clone(), way(3, 7, 8, 1.0, 0.0)], None);
        // Others may be entered behind it, midway.
        check(&[before, group, way(3, 4, 8, 1.0, 0.0)], Some(&route));
    }

    #[test]
    fn the_ends_may_frame_the_layers_on_one_shard() {
        let ends = way(1, 0, 8, 100.0, 0.0);
        check(&[ends, way(2, 1, 7, 1.0, 1.0)], Some(&[(1, 0, 1), (2, 1, 7), (1, 7, 8)]));
    }
}
