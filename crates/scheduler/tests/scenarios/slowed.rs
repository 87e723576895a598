//! Machines that become slow for a while: new sessions begin elsewhere, and there again later.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::{Frame, WorkerId};
use scheduler::{Config, Event, Holds, RequestId};

use crate::bench::{Bench, MIB};

const ENDS: WorkerId = WorkerId(1);
const SLOWED: WorkerId = WorkerId(2);
/// What all layers take for a row, and for each of many, of a machine as it should be.
const ROW_US: u32 = 4_000;
const HOP_US: u64 = 500;
/// How much slower the machine becomes.
const SLOWER: u32 = 5;
/// Requests that are answered at once.
const AT_ONCE: u64 = 6;
/// Sessions that are begun at once to see where they go.
const SESSIONS: u64 = 12;

/// Two machines alike, of which one can be slowed down.
struct Pair {
    bench: Bench,
    slow: bool,
    requests: u64,
}

impl Pair {
    fn new() -> Pair {
        let mut bench = Bench::new(Config::default());
        bench.join(ENDS.0, 2 * MIB, true, Holds::Ends);
        bench.join(SLOWED.0, 100 * MIB, false, Holds::Anything);
        bench.join(3, 100 * MIB, false, Holds::Anything);
        Pair { bench, slow: false, requests: 0 }
    }

    /// Answers everything, each step when its worker is through with it.
    fn answer_all(&mut self) {
        let mut due: Vec<(u64, WorkerId, Frame)> = Vec::new();
        let mut free: BTreeMap<WorkerId, u64> = BTreeMap::new();
        loop {
            for (worker, step) in std::mem::take(&mut self.bench.steps) {
                let mut answer = self.bench.answer_to(&step);
                let rows: u32 = step.segments.iter().map(|s| s.rows).sum();
                let slower = if self.slow && worker == SLOWED { SLOWER } else { 1 };
                answer.compute_us = if worker == ENDS { 100 } else { ROW_US * rows * slower };
                let free = free.entry(worker).or_default();
                *free = self.bench.now.max(*free) + u64::from(answer.compute_us);
                due.push((*free + HOP_US, worker, answer));
            }
            due.sort_by_key(|(at, ..)| std::cmp::Reverse(*at));
            let Some((at, worker, frame)) = due.pop() else { return };
            self.bench.now = self.bench.now.max(at);
            self.bench.tell(Event::Result { worker, frame });
        }
    }

    /// Has requests of so many rows answered that come at once.
    fn ask(&mut self, rows: usize) {
        let all = self.requests + 1..=self.requests + AT_ONCE;
        for request in all.clone() {
            self.bench.submit(request, vec![request as u32 % 8; rows], 1);
        }
        self.requests += AT_ONCE;
        self.answer_all();
        for request in all {
            self.bench.tell(Event::Cancel { request: RequestId(request) });
        }
    }

    /// Of sessions that are begun now, how many run on the machine that may be slow.
    fn share(&mut self) -> usize {
        let first = self.requests + 1;
        for _ in 0..SESSIONS {
            self.requests += 1;
            self.bench.submit(self.requests, vec![1], 1);
        }
        let view = self.bench.scheduler.view();
        assert_eq!(view.sessions.len() as u64, SESSIONS);
        let on = |s: &&scheduler::SessionView| s.route.iter().any(|r| r.0 == SLOWED);
        let share = view.sessions.iter().filter(on).count();
        for request in first..=self.requests {
            self.bench.tell(Event::Cancel { request: RequestId(request) });
        }
        self.answer_all();
        share
    }

    /// Nobody asks anything for so long; workers are pinged all the same.
    fn rest(&mut self, time: Duration) {
        for _ in 0..time.as_secs() / 5 {
            self.bench.pass(Duration::from_secs(5));
            self.bench.tell(Event::Tick);
        }
    }
}

fn a_slowed_machine_loses_and_regains_its_share(rows: usize) {
    let half = SESSIONS as usize / 2;
    let mut pair = Pair::new();
    for _ in 0..30 {
        pair.ask(rows);
    }
    let before = pair.share();
    assert!((half - 1..=half + 1).contains(&before), "{before} of {SESSIONS} before");
    pair.slow = true;
    for _ in 0..8 {
        pair.ask(rows);
    }
    let slow = pair.share();
    assert!(slow <= half / 2, "{slow} of {SESSIONS} while it is slow");
    pair.slow = false;
    pair.rest(Duration::from_secs(180));
    for _ in 0..8 {
        pair.ask(rows);
    }
    let after = pair.share();
    assert!(after + 1 >= half, "{after} of {SESSIONS} afterwards");
}

#[test]
fn a_machine_slow_at_tokens_loses_its_share_and_regains_it() {
    a_slowed_machine_loses_and_regains_its_share(1);
}

#[test]
fn a_machine_slow_at_prompts_loses_its_share_and_regains_it() {
    a_slowed_machine_loses_and_regains_its_share(16);
}
