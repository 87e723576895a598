//! Which shards a session's route is chosen among.
//!
//! In a fleet of thousands not all shards are compared: at each part boundary a route may enter
//! the [`FASTEST_MAX`] fastest there and [`SAMPLE_MAX`] others, which the session's number
//! chooses, so that sessions differ in what they are offered. Where no route runs through
//! those, all shards are looked at.

use std::collections::BTreeMap;

use protocol::{AssignmentId, Span};

use crate::Scheduler;
use crate::fleet::{has_layers, pages_for};
use crate::index::{Holder, scatter};
use crate::routing::{Way, Ways};
use crate::session::Stage;
use crate::wish::{Parallelism, Wish};

/// Of the shards that hold a part, so many of the fastest are candidates.
const FASTEST_MAX: usize = 8;
/// And so many of all.
const SAMPLE_MAX: usize = 32;
/// Shards looked at for each candidate at most: some cannot hold the session, or load.
const LOOKS_PER_CANDIDATE: usize = 2;
/// How much dearer a shard counts whose KV cache would have to be cleared first.
const FULL_PENALTY: f64 = 4.0;
/// In a large fleet, shards count up to so much dearer than they are, by chance: a session
/// takes one of the routes within this of the best.
const NEAR_BEST: f64 = 0.1;

/// What a route has to be.
struct Wanted<'a> {
    model: usize,
    range: Span,
    positions: u32,
    /// Not these, for layers.
    not: &'a [AssignmentId],
    /// Whose chance it is.
    seed: u64,
    wish: Wish,
}

impl Scheduler {
    /// A good way through `range` now, over shards that could ever hold `positions`, `not` those
    /// named for layers. `seed` decides between near-equals.
    pub(crate) fn find_route(
        &mut self,
        model: usize,
        range: Span,
        positions: u32,
        not: &[AssignmentId],
        seed: u64,
    ) -> Option<Vec<Stage>> {
        self.find_wished(model, range, positions, not, seed, Wish::default())
    }

    /// The same, of the routes that are as a request wishes.
    pub(crate) fn find_wished(
        &mut self,
        model: usize,
        range: Span,
        positions: u32,
        not: &[AssignmentId],
        seed: u64,
        wish: Wish,
    ) -> Option<Vec<Stage>> {
        self.settle();
        let wanted = Wanted { model, range, positions, not, seed, wish };
        let parts = &self.index.models[model].parts;
        let needed = &parts[range.first as usize..range.end as usize];
        if needed.iter().any(|part| part.ready() == 0) {
            return None;
        }
        let few = FASTEST_MAX + SAMPLE_MAX;
        let sampled = self.ways(&wanted, FASTEST_MAX);
        let all = needed.iter().any(|part| part.ready() > few);
        let work = &self.models[model].work;
        let legs = wish.route(&sampled, range, work);
        let legs = match legs {
            // How a route is spread is not searched for among all of them.
            None if all => wish.direct(&self.ways(&wanted, usize::MAX), range, work),
            legs => legs,
        };
        let parts = parts.len();
        let stage = |(holder, span)| Stage {
            holder: Some(holder),
            span,
            done: 0,
            sent: 0,
            layers: has_layers(span, parts),
        };
        Some(legs?.into_iter().map(stage).collect())
    }

    /// The shards that may be entered at each part: so many of the fastest, and a sample.
    fn ways(&self, wanted: &Wanted<'_>, fastest_max: usize) -> Ways {
        let parts = &self.index.models[wanted.model].parts;
        let mut ways = Ways::new(parts.len());
        // By shard: its way, or that it is none.
        let mut known: BTreeMap<AssignmentId, Option<usize>> = BTreeMap::new();
        for part in wanted.range.first..wanted.range.end {
            let index = &parts[part as usize];
            let mut at: Vec<usize> = Vec::new();
            let few = index.ready() <= FASTEST_MAX + SAMPLE_MAX;
            let fastest_max = if few { usize::MAX } else { fastest_max };
            let sample_max = if few { 0 } else { SAMPLE_MAX };
            let mut enter = |holder: Holder, ways: &mut Ways, at: &mut Vec<usize>| {
                let known = known.entry(holder.1).or_insert_with(|| {
                    ways.ways.push(self.way(wanted, holder)?);
                    Some(ways.ways.len() - 1)
                });
                let way = known.or_else(|| {
                    // A shard whose layers are of no use may still serve with an end.
                    ways.ways.push(self.end_way(wanted, holder, part)?);
                    Some(ways.ways.len() - 1)
                });
                at.extend(way.filter(|w| !at.contains(w)));
            };
            let looks = fastest_max.saturating_mul(LOOKS_PER_CANDIDATE);
            for holder in index.fastest().take(looks) {
                if at.len() >= fastest_max {
                    break;
                }
                enter(holder, &mut ways, &mut at);
            }
            let most = at.len() + sample_max;
            for holder in index.holders_from(wanted.seed).take(sample_max * LOOKS_PER_CANDIDATE) {
                if at.len() >= most {
                    break;
                }
                enter(holder, &mut ways, &mut at);
            }
            ways.at[part as usize] = at;
        }
        ways
    }

    /// A ready shard as a route would use it, or `None` if its layers are of no use.
    fn way(&self, wanted: &Wanted<'_>, holder: Holder) -> Option<Way> {
        let shard = &self.workers[&holder.0].held[&holder.1];
        let pages = pages_for(wanted.positions);
        let parts = self.models[wanted.model].spec.parts.len();
        let layers = has_layers(shard.span, parts);
        let whole = shard.span.first <= 1 && shard.span.end as usize + 1 >= parts;
        let alone = wanted.wish.parallelism == Parallelism::None;
        if wanted.wish.trusted_only && !self.workers[&holder.0].spec.trusted
            || alone && layers && !whole
            || layers && !wanted.wish.takes(shard.rank.is_some())
        {
            return None;
        }
        if !shard.ready || layers && (shard.kv_pages < pages || wanted.not.contains(&holder.1)) {
            return None;
        }
        let full = layers && shard.pages_free() < pages;
        Some(self.way_through(wanted, holder, shard.span, full))
    }

    /// The embedding or the head of a ready shard.
    fn end_way(&self, wanted: &Wanted<'_>, holder: Holder, part: u32) -> Option<Way> {
        let last = self.models[wanted.model].spec.parts.len() as u32 - 1;
        let worker = &self.workers[&holder.0];
        let ready =
            worker.held[&holder.1].ready && (worker.spec.trusted || !wanted.wish.trusted_only);
        let span = Span { first: part, end: part + 1 };
        (ready && (part == 0 || part == last))
            .then(|| self.way_through(wanted, holder, span, false))
    }

    fn way_through(&self, wanted: &Wanted<'_>, holder: Holder, span: Span, full: bool) -> Way {
        let worker = &self.workers[&holder.0];
        let penalty = if full { FULL_PENALTY } else { 1.0 };
        let chance = match self.is_large() {
            // Load alone decides between few.
            false => 0.0,
            true => (scatter(wanted.seed ^ scatter(holder.1.0)) >> 11) as f64 / (1u64 << 53) as f64,
        };
        let dearer = 1.0 + NEAR_BEST * chance;
        // A token's time is in proportion to the work: that of so many bytes tells that of one.
        let bytes = 1 << 20;
        let others = self.index.load(holder.0);
        Way {
            holder,
            span,
            s_per_byte: worker.token_s(bytes, others) / bytes as f64 * penalty * dearer,
            hop_s: worker.row_hop_s(&self.models[wanted.model].spec, span) / worker.survival()
                * dearer,
            whole: worker.held[&holder.1].rank.is_some(),
        }
    }
}
