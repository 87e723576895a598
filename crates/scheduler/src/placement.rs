//! Which worker should hold which parts: the ordered-partition dynamic program.
//!
//! The coordinator is the middle of a star, so a stage costs its worker's hop and its work
//! wherever it stands in the route. A plan minimises
//!
//! ```text
//! Σ (hop + work) over stages + (S − 1) · max (hop + work) over workers
//! ```
//!
//! for S sessions expected at once, under memory caps that count weights, the least useful KV cache and scratch. Up to
//! [`EXACT_WORKERS_MAX`] workers every subset and order is tried (states are sets of used
//! workers × layer boundaries, each with its Pareto front of sum and maximum, of which the
//! [`FRONT_MAX`] cheapest sums are kept); beyond that
//! workers are tried fastest first, each taking a range or none, which is the same program
//! in one fixed order.

use protocol::Span;

/// Up to this many workers the search is over all subsets and orders.
pub const EXACT_WORKERS_MAX: usize = 6;
/// Pareto points kept per state; the cheapest sums survive.
const FRONT_MAX: usize = 12;
/// What fetching a byte that a worker has not cached weighs against speed, seconds a token:
/// 100 MB of missing weights count as 0.1 ms.
const FETCH_S_PER_BYTE: f64 = 1e-12;

/// One part, as the plan sees it.
#[derive(Clone, Debug)]
pub struct PartLoad {
    /// Memory on whoever holds it: weights, least KV, bytes.
    pub memory_bytes: u64,
    /// Weight bytes one row works through.
    pub work_bytes: u64,
}

/// A worker that could hold something.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Memory still free, bytes.
    pub memory_bytes: u64,
    /// May hold the embedding and the head.
    pub ends: bool,
    /// May hold layers.
    pub layers: bool,
    /// Seconds per weight byte at one row.
    pub s_per_byte: f64,
    /// Seconds there and back, without computing.
    pub hop_s: f64,
    /// Seconds that each layer takes besides: what the ranks of a tensor group wait for each
    /// other's messages.
    pub layer_s: f64,
    /// Per part, weight bytes that it would have to fetch.
    pub missing_bytes: Vec<u64>,
}

/// The problem.
#[derive(Clone, Debug)]
pub struct Problem<'a> {
    /// All parts of the model: embedding, layers, head.
    pub parts: &'a [PartLoad],
    /// Bytes that embedding and head share if one worker holds both (a tied matrix).
    pub tied_bytes: u64,
    /// Which of the parts are to be placed.
    pub range: Span,
    /// Who could.
    pub candidates: &'a [Candidate],
    /// Fixed memory per shard (scratch), bytes; an end counts as a shard of its own unless
    /// the layers beside it are on the same worker.
    pub stage_bytes: u64,
    /// S.
    pub sessions: f64,
}

/// Who holds what.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Candidate index and parts, in part order. One worker may have two entries (the
    /// embedding and the head), never two with layers.
    pub stages: Vec<(usize, Span)>,
    /// The objective, seconds.
    pub cost_s: f64,
    /// Its first term: a token's time through all stages alone, seconds.
    pub token_s: f64,
}

/// The best plan, or `None` if the candidates cannot hold the range.
pub fn plan(problem: &Problem<'_>) -> Option<Plan> {
    let last = problem.parts.len() as u32 - 1;
    let needs_embedding = problem.range.first == 0;
    let needs_head = problem.range.end == last + 1;
    let mut best: Option<Plan> = None;
    for (embedding, head) in end_holders(problem, needs_embedding, needs_head) {
        let found = plan_between(problem, embedding, head);
        best = match (best, found) {
            (Some(a), Some(b)) => Some(if b.cost_s < a.cost_s { b } else { a }),
            (a, b) => a.or(b),
        };
    }
    best
}

/// Choices of who holds embedding and head: one worker for both where any can, else pairs.
fn end_holders(
    problem: &Problem<'_>,
    embedding: bool,
    head: bool,
) -> Vec<(Option<usize>, Option<usize>)> {
    let parts = problem.parts;
    let last = parts.len() - 1;
    let able = |bytes: u64| -> Vec<usize> {
        let fits = |c: &Candidate| c.ends && c.memory_bytes >= bytes + problem.stage_bytes;
        let mut found: Vec<usize> =
            (0..problem.candidates.len()).filter(|&i| fits(&problem.candidates[i])).collect();
        let key = |i: &usize| {
            let c = &problem.candidates[*i];
            c.hop_s + parts[last].work_bytes as f64 * c.s_per_byte
        };
        found.sort_by(|a, b| key(a).total_cmp(&key(b)));
        found.truncate(EXACT_WORKERS_MAX);
        found
    };
    match (embedding, head) {
        (false, false) => vec![(None, None)],
        (true, false) => able(parts[0].memory_bytes).into_iter().map(|i| (Some(i), None)).collect(),
        (false, true) => {
            able(parts[last].memory_bytes).into_iter().map(|i| (None, Some(i))).collect()
        }
        (true, true) => {
            let both = parts[0].memory_bytes + parts[last].memory_bytes + problem.stage_bytes
                - problem.tied_bytes;
            let one: Vec<_> = able(both).into_iter().map(|i| (Some(i), Some(i))).collect();
            let mut pairs = one;
            for e in able(parts[0].memory_bytes) {
                for h in able(parts[last].memory_bytes) {
                    if e != h {
                        pairs.push((Some(e), Some(h)));
                    }
                }
            }
            pairs
        }
    }
}

/// One way to reach a state.
#[derive(Clone, Copy, Debug)]
struct Point {
    sum_s: f64,
    max_s: f64,
    /// State and point that it came from, and the worker that took the parts between.
    from: Option<(usize, usize)>,
    worker: usize,
}

fn plan_between(
    problem: &Problem<'_>,
    embedding: Option<usize>,
    head: Option<usize>,
) -> Option<Plan> {
    let search = Search::new(problem, embedding, head);
    if problem.candidates.len() <= EXACT_WORKERS_MAX {
        search.over_subsets()
    } else {
        search.in_order()
    }
}

struct Search<'a> {
    problem: &'a Problem<'a>,
    embedding: Option<usize>,
    head: Option<usize>,
    /// Layer parts to place: `first..end`.
    first: usize,
    end: usize,
    /// Prefix sums over parts of memory and work.
    memory: Vec<u64>,
    work: Vec<u64>,
    /// By candidate: the same of the bytes that it would have to fetch.
    missing: Vec<Vec<u64>>,
}

impl<'a> Search<'a> {
    fn new(problem: &'a Problem<'a>, embedding: Option<usize>, head: Option<usize>) -> Self {
        let last = problem.parts.len() - 1;
        let prefix = |f: fn(&PartLoad) -> u64| -> Vec<u64> {
            let mut sums = vec![0];
            for part in problem.parts {
                sums.push(sums.last().unwrap() + f(part));
            }
            sums
        };
        Search {
            problem,
            embedding,
            head,
            first: (problem.range.first as usize).max(1),
            end: (problem.range.end as usize).min(last),
            memory: prefix(|p| p.memory_bytes),
            work: prefix(|p| p.work_bytes),
            missing: problem
                .candidates
                .iter()
                .map(|c| {
                    let sums = c.missing_bytes.iter().scan(0, |sum, bytes| {
                        *sum += bytes;
                        Some(*sum)
                    });
                    std::iter::once(0).chain(sums).collect()
                })
                .collect(),
        }
    }

    /// Memory that worker `w` has left for layers, after the ends it holds.
    fn memory_left(&self, w: usize) -> u64 {
        let parts = self.problem.parts;
        let mut used = 0;
        if self.embedding == Some(w) {
            used += parts[0].memory_bytes + self.problem.stage_bytes;
        }
        if self.head == Some(w) {
            used += parts[parts.len() - 1].memory_bytes + self.problem.stage_bytes;
        }
        if self.embedding == Some(w) && self.head == Some(w) {
            used -= self.problem.tied_bytes;
        }
        self.problem.candidates[w].memory_bytes.saturating_sub(used)
    }

    /// Seconds of the stage `[from, to)` on `w`, the ends that merge with it aside, and of all
    /// that `w` then does for a token; `None` if it does not fit.
    fn stage_s(&self, w: usize, from: usize, to: usize, memory_left: u64) -> Option<(f64, f64)> {
        let c = &self.problem.candidates[w];
        // A stage beside an end on the same worker shares that end's hop; between both ends it
        // makes one of their two.
        let after = self.embedding == Some(w) && from == 1;
        let before = self.head == Some(w) && to == self.problem.parts.len() - 1;
        let scratch = if after || before { 0 } else { self.problem.stage_bytes };
        if !c.layers || self.memory[to] - self.memory[from] + scratch > memory_left {
            return None;
        }
        let hop = c.hop_s * (1.0 - f64::from(u8::from(after)) - f64::from(u8::from(before)));
        let missing = self.missing[w][to] - self.missing[w][from];
        let work = (self.work[to] - self.work[from]) as f64 * c.s_per_byte;
        let work = work + (to - from) as f64 * c.layer_s;
        let stage = hop + work + missing as f64 * FETCH_S_PER_BYTE;
        Some((stage, stage + self.ends_on(w)))
    }

    /// Seconds that worker `w` spends on the ends it holds.
    fn ends_on(&self, w: usize) -> f64 {
        let parts = self.problem.parts;
        let c = &self.problem.candidates[w];
        let ends = [(self.embedding, 0), (self.head, parts.len() - 1)];
        let held = ends.into_iter().filter(|(holder, _)| *holder == Some(w));
        held.map(|(_, part)| {
            let missing = c.missing_bytes[part] as f64 * FETCH_S_PER_BYTE;
            c.hop_s + parts[part].work_bytes as f64 * c.s_per_byte + missing
        })
        .sum()
    }

    /// What the ends cost by themselves: sum and maximum.
    fn ends_s(&self) -> (f64, f64) {
        let on = |holder: Option<usize>| holder.map_or(0.0, |w| self.ends_on(w));
        if self.embedding == self.head {
            let both = on(self.head);
            return (both, both);
        }
        let (e, h) = (on(self.embedding), on(self.head));
        (e + h, e.max(h))
    }

    /// Every subset and order: state = used set × boundary.
    fn over_subsets(&self) -> Option<Plan> {
        let n = self.problem.candidates.len();
        let width = self.end - self.first + 1;
        let state = |mask: usize, at: usize| mask * width + (at - self.first);
        let mut fronts: Vec<Vec<Point>> = vec![Vec::new(); (1 << n) * width];
        fronts[state(0, self.first)].push(self.start());
        for mask in 0..1usize << n {
            for at in self.first..self.end {
                let here = state(mask, at);
                if fronts[here].is_empty() {
                    continue;
                }
                for w in (0..n).filter(|w| mask & (1 << w) == 0) {
                    let left = self.memory_left(w);
                    for to in at + 1..=self.end {
                        let Some(s) = self.stage_s(w, at, to, left) else { break };
                        let there = state(mask | (1 << w), to);
                        extend(&mut fronts, here, there, w, s);
                    }
                }
            }
        }
        let goals: Vec<usize> = (0..1 << n).map(|mask| state(mask, self.end)).collect();
        self.best(&fronts, &goals, |s| self.first + s % width)
    }

    /// Fastest first, each taking a range or none: state = workers considered × boundary.
    fn in_order(&self) -> Option<Plan> {
        let n = self.problem.candidates.len();
        let width = self.end - self.first + 1;
        let mut order: Vec<usize> = (0..n).collect();
        let cost = |w: &usize| {
            let c = &self.problem.candidates[*w];
            let layers = (self.end - self.first).max(1);
            c.hop_s
                + (self.work[self.end] - self.work[self.first]) as f64 / layers as f64
                    * c.s_per_byte
                + c.layer_s
        };
        order.sort_by(|a, b| cost(a).total_cmp(&cost(b)).then(a.cmp(b)));
        // The embedding's holder first and the head's last, so that they can merge.
        order.sort_by_key(|&w| {
            if self.embedding == Some(w) {
                0
            } else if self.head == Some(w) {
                2
            } else {
                1
            }
        });
        let state = |i: usize, at: usize| i * width + (at - self.first);
        let mut fronts: Vec<Vec<Point>> = vec![Vec::new(); (n + 1) * width];
        fronts[state(0, self.first)].push(self.start());
        for (i, &w) in order.iter().enumerate() {
            let left = self.memory_left(w);
            for at in self.first..=self.end {
                let here = state(i, at);
                if fronts[here].is_empty() {
                    continue;
                }
                extend(&mut fronts, here, state(i + 1, at), usize::MAX, (0.0, 0.0));
                for to in at + 1..=self.end {
                    let Some(s) = self.stage_s(w, at, to, left) else { break };
                    extend(&mut fronts, here, state(i + 1, to), w, s);
                }
            }
        }
        self.best(&fronts, &[state(n, self.end)], |s| self.first + s % width)
    }

    fn start(&self) -> Point {
        let (sum_s, max_s) = self.ends_s();
        Point { sum_s, max_s, from: None, worker: usize::MAX }
    }

    fn best(
        &self,
        fronts: &[Vec<Point>],
        goals: &[usize],
        boundary: impl Fn(usize) -> usize,
    ) -> Option<Plan> {
        let cost = |p: &Point| p.sum_s + (self.problem.sessions - 1.0).max(0.0) * p.max_s;
        let (state, index, point) = goals
            .iter()
            .flat_map(|&g| fronts[g].iter().enumerate().map(move |(i, p)| (g, i, *p)))
            .min_by(|a, b| cost(&a.2).total_cmp(&cost(&b.2)))?;
        let mut layers = Vec::new();
        let (mut state, mut index) = (state, index);
        while let Some((before, i)) = fronts[state][index].from {
            let worker = fronts[state][index].worker;
            if worker != usize::MAX {
                let span = Span { first: boundary(before) as u32, end: boundary(state) as u32 };
                layers.push((worker, span));
            }
            (state, index) = (before, i);
        }
        layers.reverse();
        Some(Plan { stages: self.with_ends(layers), cost_s: cost(&point), token_s: point.sum_s })
    }

    /// Puts embedding and head before and behind, merged where the same worker is next to them.
    fn with_ends(&self, mut stages: Vec<(usize, Span)>) -> Vec<(usize, Span)> {
        let head_part = self.problem.parts.len() as u32 - 1;
        if let Some(w) = self.embedding {
            match stages.first_mut() {
                Some((first, span)) if *first == w => span.first = 0,
                _ => stages.insert(0, (w, Span { first: 0, end: 1 })),
            }
        }
        if let Some(w) = self.head {
            match stages.last_mut() {
                Some((last, span)) if *last == w && span.end == head_part => {
                    span.end = head_part + 1;
                }
                _ => stages.push((w, Span { first: head_part, end: head_part + 1 })),
            }
        }
        stages
    }
}

/// Adds to `there` every point of `here` with one more stage, keeping the Pareto front.
fn extend(
    fronts: &mut [Vec<Point>],
    here: usize,
    there: usize,
    worker: usize,
    stage_s: (f64, f64),
) {
    for i in 0..fronts[here].len() {
        let p = fronts[here][i];
        let point = Point {
            sum_s: p.sum_s + stage_s.0,
            max_s: p.max_s.max(stage_s.1),
            from: Some((here, i)),
            worker,
        };
        insert(&mut fronts[there], point);
    }
}

fn insert(front: &mut Vec<Point>, point: Point) {
    if front.iter().any(|p| p.sum_s <= point.sum_s && p.max_s <= point.max_s) {
        return;
    }
    // Points are referred to by index only once their state is complete, and states are
    // completed in order, so a dominated point may go.
    front.retain(|p| p.sum_s < point.sum_s || p.max_s < point.max_s);
    front.push(point);
    if front.len() > FRONT_MAX {
        let worst = (0..front.len()).max_by(|&a, &b| front[a].sum_s.total_cmp(&front[b].sum_s));
        front.swap_remove(worst.expect("the front is not empty"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn parts(layers: usize) -> Vec<PartLoad> {
        let layer = PartLoad { memory_bytes: 4 * MIB, work_bytes: 3 * MIB };
        let mut parts = vec![PartLoad { memory_bytes: 30 * MIB, work_bytes: 0 }];
        parts.extend(std::iter::repeat_n(layer, layers));
        parts.push(PartLoad { memory_bytes: 30 * MIB, work_bytes: 30 * MIB });
        parts
    }

    fn worker(memory_mib: u64, gb_per_s: f64, hop_ms: f64) -> Candidate {
        Candidate {
            memory_bytes: memory_mib * MIB,
            ends: true,
            layers: true,
            s_per_byte: 1e-9 / gb_per_s,
            hop_s: hop_ms * 1e-3,
            layer_s: 0.0,
            missing_bytes: vec![0; 64],
        }
    }

    fn solve(parts: &[PartLoad], candidates: &[Candidate], sessions: f64) -> Option<Plan> {
        let range = Span { first: 0, end: parts.len() as u32 };
        plan(&Problem {
            parts,
            tied_bytes: 30 * MIB,
            range,
            candidates,
            stage_bytes: MIB,
            sessions,
        })
    }

    /// Every way to cut the layers over every order of workers, ends on each worker that can.
    fn brute_force(parts: &[PartLoad], candidates: &[Candidate], sessions: f64) -> Option<f64> {
        fn go(s: &Search<'_>, at: usize, used: usize, sum: f64, max: f64, best: &mut f64, k: f64) {
            if at == s.end {
                *best = best.min(sum + (k - 1.0) * max);
                return;
            }
            for w in (0..s.problem.candidates.len()).filter(|w| used & (1 << w) == 0) {
                for to in at + 1..=s.end {
                    if let Some(t) = s.stage_s(w, at, to, s.memory_left(w)) {
                        go(s, to, used | (1 << w), sum + t.0, max.max(t.1), best, k);
                    }
                }
            }
        }
        let range = Span { first: 0, end: parts.len() as u32 };
        let problem =
            Problem { parts, tied_bytes: 30 * MIB, range, candidates, stage_bytes: MIB, sessions };
        let mut best = f64::INFINITY;
        for (e, h) in end_holders(&problem, true, true) {
            let search = Search::new(&problem, e, h);
            let (sum, max) = search.ends_s();
            go(&search, 1, 0, sum, max, &mut best, sessions);
        }
        best.is_finite().then_some(best)
    }

    #[test]
    fn one_big_worker_holds_everything_in_one_stage() {
        let parts = parts(6);
        let plan = solve(&parts, &[worker(1000, 10.0, 0.1)], 1.0).unwrap();
        assert_eq!(plan.stages, [(0, Span { first: 0, end: 8 })]);
    }

    #[test]
    fn memory_caps_force_a_split_and_none_is_exceeded() {
        let parts = parts(6);
        let candidates = [worker(44, 10.0, 0.1), worker(14, 10.0, 0.1)];
        let plan = solve(&parts, &candidates, 1.0).unwrap();
        let layers = |w: usize| -> u32 {
            let of = plan.stages.iter().filter(|(i, _)| *i == w);
            of.map(|(_, s)| s.end.min(7) - s.first.max(1).min(s.end.min(7))).sum()
        };
        assert_eq!((layers(0), layers(1)), (3, 3), "{plan:?}");
        let small = [worker(43, 10.0, 0.1), worker(14, 10.0, 0.1)];
        assert_eq!(solve(&parts, &small, 1.0), None);
    }

    #[test]
    fn only_workers_that_may_hold_the_ends_do() {
        let parts = parts(4);
        let mut candidates = [worker(1000, 50.0, 0.1), worker(1000, 1.0, 0.1)];
        candidates[0].ends = false;
        candidates[1].layers = false;
        let plan = solve(&parts, &candidates, 1.0).unwrap();
        let spans: Vec<_> = plan.stages.iter().map(|(w, s)| (*w, s.first, s.end)).collect();
        assert_eq!(spans, [(1, 0, 1), (0, 1, 5), (1, 5, 6)]);
    }

    #[test]
    fn more_sessions_balance_the_stages() {
        let parts = parts(8);
        let candidates = [worker(1000, 10.0, 0.01), worker(1000, 10.0, 0.01)];
        assert_eq!(solve(&parts, &candidates, 1.0).unwrap().stages.len(), 1);
        assert!(solve(&parts, &candidates, 16.0).unwrap().stages.len() > 1);
    }

    #[test]
    fn equals_brute_force_on_small_fleets() {
        let mut seed = 7u64;
        let mut next = |n: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        let mut feasible = 0;
        for _ in 0..60 {
            let parts = parts(2 + next(4) as usize);
            let candidates: Vec<Candidate> = (0..1 + next(3))
                .map(|_| {
                    let mut w = worker(5 + next(60), 1.0 + next(20) as f64, next(30) as f64 / 10.0);
                    w.ends = next(3) > 0;
                    w
                })
                .collect();
            let sessions = 1.0 + next(4) as f64;
            let expected = brute_force(&parts, &candidates, sessions);
            let got = solve(&parts, &candidates, sessions).map(|p| p.cost_s);
            match (got, expected) {
                (Some(g), Some(e)) => {
                    feasible += 1;
                    assert!((g - e).abs() < 1e-12, "{g} against {e}");
                }
                (g, e) => assert_eq!(g, e),
            }
        }
        assert!(feasible > 10, "only {feasible} cases were feasible");
    }

    #[test]
    fn many_workers_are_planned_within_their_memory() {
        let parts = parts(32);
        let candidates: Vec<Candidate> =
            (0..200).map(|i| worker(40 + i % 9, 1.0 + (i % 7) as f64, 1.0)).collect();
        let plan = solve(&parts, &candidates, 4.0).unwrap();
        for (w, span) in &plan.stages {
            let bytes: u64 =
                parts[span.first as usize..span.end as usize].iter().map(|p| p.memory_bytes).sum();
            assert!(bytes + MIB <= candidates[*w].memory_bytes);
        }
        assert_eq!(plan.stages.last().unwrap().1.end, 34);
    }
}
