//! Who holds each part of a model, and what speed stands behind it.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{AssignmentId, Span, WorkerId};

use super::count;

/// Who runs a shard.
pub(crate) type Holder = (WorkerId, AssignmentId);

/// What matters of a shard to who places or routes. Shards of workers that drain are none.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shard {
    pub holder: Holder,
    pub model: usize,
    /// What it computes in: where its model lists that.
    pub class: usize,
    pub span: Span,
    pub ready: bool,
    /// KV pages in all; `u32::MAX` where it needs none.
    pub kv_pages: u32,
    pub pages_free: u32,
    /// Steps of a quarter octave of the seconds that a part of it takes, load counted in.
    pub cost: u32,
    /// Weight bytes a second behind each of its layers.
    pub rate: u64,
    /// Workers of one machine have the same.
    pub machine: u64,
    /// Whether its worker may see text.
    pub trusted: bool,
    /// It is run as a whole or not at all, and replays nothing: a tensor group's.
    pub whole: bool,
}

/// What is held of one model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ModelIndex {
    /// Sessions in flight.
    pub live: usize,
    /// Embedding, layers, head.
    pub parts: Vec<PartIndex>,
    /// By whether their worker is trusted, class, first part and end: shards.
    spans: BTreeMap<(bool, usize, u32, u32), u32>,
}

/// Who holds one part.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PartIndex {
    /// All shards with it, scattered, so that neighbours have nothing in common.
    holders: BTreeMap<(u64, AssignmentId), WorkerId>,
    /// Those that are ready, the fastest first.
    fast: BTreeSet<(u32, AssignmentId, WorkerId)>,
    /// How many shards have so many KV pages.
    kv_pages: BTreeMap<u32, u32>,
    /// How many shards each machine has with it.
    machines: BTreeMap<u64, u32>,
    /// Weight bytes a second behind it, each shard's speed divided among its layers: T_l.
    pub rate: u64,
}

impl ModelIndex {
    pub fn new(parts: usize) -> ModelIndex {
        ModelIndex { live: 0, parts: vec![PartIndex::default(); parts], spans: BTreeMap::new() }
    }

    /// The spans that trusted workers hold in a class, or that strangers do, each once.
    pub fn spans(&self, trusted: bool, class: usize) -> impl Iterator<Item = Span> {
        let range = (trusted, class, 0, 0)..=(trusted, class, u32::MAX, u32::MAX);
        self.spans.range(range).map(|((_, _, first, end), _)| Span { first: *first, end: *end })
    }

    pub(super) fn add(&mut self, shard: &Shard) {
        self.change(shard, true);
    }

    pub(super) fn remove(&mut self, shard: &Shard) {
        self.change(shard, false);
    }

    fn change(&mut self, shard: &Shard, up: bool) {
        let (worker, assignment) = shard.holder;
        let last = self.parts.len() as u32 - 1;
        let scattered = (scatter(assignment.0), assignment);
        let span = (shard.trusted, shard.class, shard.span.first, shard.span.end);
        if !shard.whole {
            count(&mut self.spans, span, up);
        }
        for part in shard.span.first..shard.span.end {
            let index = &mut self.parts[part as usize];
            count(&mut index.kv_pages, shard.kv_pages, up);
            count(&mut index.machines, shard.machine, up);
            let is_layer = part > 0 && part < last;
            let rate = if is_layer { shard.rate } else { 0 };
            let fast = (shard.cost, assignment, worker);
            if up {
                index.holders.insert(scattered, worker);
                index.rate += rate;
                index.fast.extend(shard.ready.then_some(fast));
            } else {
                index.holders.remove(&scattered);
                index.rate -= rate;
                index.fast.remove(&fast);
            }
        }
    }

    /// The same shard with another speed.
    pub(super) fn set_speed(&mut self, old: &Shard, new: &Shard) {
        let (worker, assignment) = new.holder;
        let last = self.parts.len() as u32 - 1;
        for part in new.span.first..new.span.end {
            let index = &mut self.parts[part as usize];
            if part > 0 && part < last {
                index.rate = index.rate - old.rate + new.rate;
            }
            if old.cost != new.cost && new.ready {
                index.fast.remove(&(old.cost, assignment, worker));
                index.fast.insert((new.cost, assignment, worker));
            }
        }
    }
}

impl PartIndex {
    /// Shards with it, ready or not.
    pub fn held(&self) -> usize {
        self.holders.len()
    }

    /// Those that take steps.
    pub fn ready(&self) -> usize {
        self.fast.len()
    }

    /// Whether a shard has so many KV pages, or needs none.
    pub fn has_room_for(&self, pages: u32) -> bool {
        self.most_kv_pages().is_some_and(|most| most >= pages)
    }

    /// KV pages of the shard that has the most; `u32::MAX` where one needs none.
    pub fn most_kv_pages(&self) -> Option<u32> {
        self.kv_pages.last_key_value().map(|(pages, _)| *pages)
    }

    /// Machines with it.
    pub fn machines(&self) -> usize {
        self.machines.len()
    }

    pub fn is_on_machine(&self, machine: u64) -> bool {
        self.machines.contains_key(&machine)
    }

    /// Who holds it, in no telling order.
    pub fn holders(&self) -> impl Iterator<Item = Holder> {
        self.holders.iter().map(|((_, assignment), worker)| (*worker, *assignment))
    }

    /// Who holds it, beginning at a place that `seed` says and going round.
    pub fn holders_from(&self, seed: u64) -> impl Iterator<Item = Holder> {
        let start = (scatter(seed), AssignmentId(0));
        let round = self.holders.range(start..).chain(self.holders.range(..start));
        round.map(|((_, assignment), worker)| (*worker, *assignment))
    }

    /// Who is ready to run it, the fastest first.
    pub fn fastest(&self) -> impl Iterator<Item = Holder> {
        self.fast.iter().map(|(_, assignment, worker)| (*worker, *assignment))
    }
}

/// A step of a quarter octave for a number of seconds, in whole numbers, so that all machines
/// agree.
pub(super) fn quarter_octaves(seconds: f64) -> u32 {
    let ns = (seconds * 1e9).clamp(4.0, 1e18) as u64;
    let octave = ns.ilog2();
    4 * octave + ((ns >> (octave - 2)) & 3) as u32
}

/// A number that has nothing to do with its neighbours' (splitmix64's last step).
pub(crate) fn scatter(n: u64) -> u64 {
    let n = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_octave_is_a_fifth_more_or_so() {
        let steps: Vec<u32> =
            [1.0, 1.25, 1.5, 1.75, 2.0].map(|s| quarter_octaves(s * 1.024e-6)).to_vec();
        assert_eq!(steps, [40, 41, 42, 43, 44]);
        assert_eq!(quarter_octaves(0.0), 8);
        assert!(quarter_octaves(f64::INFINITY) < 4 * 64);
    }

    #[test]
    fn a_walk_round_the_holders_meets_each_once() {
        let mut model = ModelIndex::new(3);
        for id in 1..=20 {
            let shard = Shard {
                holder: (WorkerId(id), AssignmentId(id)),
                model: 0,
                class: 1,
                span: Span { first: 1, end: 2 },
                ready: id % 2 == 0,
                kv_pages: id as u32,
                pages_free: 0,
                cost: 100 - id as u32,
                rate: 5,
                machine: id % 4,
                trusted: id == 7,
                whole: false,
            };
            model.add(&shard);
        }
        let part = &model.parts[1];
        let mut met: Vec<u64> = part.holders_from(7).map(|h| h.0.0).collect();
        assert_ne!(met[0], part.holders_from(8).next().unwrap().0.0);
        met.sort();
        assert_eq!(met, (1..=20).collect::<Vec<u64>>());
        assert_eq!(model.spans(true, 1).collect::<Vec<_>>(), [Span { first: 1, end: 2 }]);
        assert_eq!(model.spans(true, 0).count(), 0);
        assert_eq!(part.fastest().next(), Some((WorkerId(20), AssignmentId(20))));
        assert_eq!((part.held(), part.ready(), part.machines(), part.rate), (20, 10, 4, 100));
        assert_eq!((part.has_room_for(20), part.has_room_for(21)), (true, false));
    }
}
