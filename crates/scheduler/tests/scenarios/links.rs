//! Slow links: what is on its way is waited for, and holds up little else.

use std::time::Duration;

use protocol::{Frame, WorkerId};
use scheduler::{Config, Event, Holds, ModelSpec, RequestId};

use crate::bench::{Bench, MIB, model};

const ENDS: WorkerId = WorkerId(1);
const SLOW: u64 = 2;
/// Bytes of a row: D of SmolLM2-135M.
const D_MODEL: u32 = 576;
const ROW_BYTES: usize = 4 * D_MODEL as usize;
/// V of the same.
const VOCAB: u32 = 49152;
const HOP_US: u64 = 500;

/// A fleet whose workers, but for the one with the ends, are behind links of a rate.
struct Roads {
    bench: Bench,
    /// By connection, bytes a second.
    bytes_per_s: Vec<(WorkerId, f64)>,
    /// When each direction of such a link, and its worker, is free again.
    free: Vec<(WorkerId, [u64; 3])>,
    /// Answers that are on their way, and when they will be here.
    due: Vec<(u64, WorkerId, Frame)>,
    /// When tokens were due to be chosen, and for which session.
    sampled: Vec<(u64, u64)>,
    /// Bytes of the slow workers' steps and answers.
    steps_bytes: Vec<usize>,
}

impl Roads {
    fn new() -> Roads {
        let model = ModelSpec { d_model: D_MODEL, vocab: VOCAB, ..model() };
        let mut bench = Bench::serving(Config::default(), model);
        bench.join(ENDS.0, 100 * MIB, true, Holds::Ends);
        Roads {
            bench,
            bytes_per_s: Vec::new(),
            free: Vec::new(),
            due: Vec::new(),
            sampled: Vec::new(),
            steps_bytes: Vec::new(),
        }
    }

    fn join(&mut self, id: u64, bytes_per_s: f64) {
        self.bytes_per_s.push((WorkerId(id), bytes_per_s));
        self.free.push((WorkerId(id), [0; 3]));
        self.bench.join(id, 100 * MIB, false, Holds::Anything);
    }

    /// Puts the steps that were sent on their way.
    fn send(&mut self) {
        for (worker, step) in std::mem::take(&mut self.bench.steps) {
            let answer = self.bench.answer_to(&step);
            let mut at = self.bench.now + HOP_US;
            let rate = self.bytes_per_s.iter().find(|(id, _)| *id == worker).map(|r| r.1);
            if let Some(rate) = rate {
                self.steps_bytes.push(step.payload.len() + answer.payload.len());
                let free = self.free.iter_mut().find(|(id, _)| *id == worker);
                let [up, busy, down] = &mut free.expect("it joined").1;
                let over = |bytes: usize| (bytes as f64 / rate * 1e6) as u64;
                for (free, took) in [
                    (up, over(step.payload.len())),
                    (busy, u64::from(answer.compute_us)),
                    (down, over(answer.payload.len())),
                ] {
                    at = at.max(*free) + took;
                    *free = at;
                }
            }
            self.due.push((at, worker, answer));
        }
        self.due.sort_by_key(|(at, ..)| *at);
    }

    /// Goes on until so many tokens were chosen, or `limit` has passed; whose sessions are in
    /// `chosen` get their tokens.
    fn run(&mut self, tokens: usize, limit: Duration, chosen: &[RequestId]) {
        let until = self.bench.now + limit.as_micros() as u64;
        while self.sampled.len() < tokens && self.bench.now < until {
            self.send();
            let answer = self.due.first().map_or(u64::MAX, |(at, ..)| *at);
            let tick = self.bench.scheduler.next_deadline().map_or(u64::MAX, |(at, _)| at.0);
            self.bench.now = self.bench.now.max(answer.min(tick));
            let samples = self.bench.samples.len();
            if answer <= tick {
                let (_, worker, frame) = self.due.remove(0);
                self.bench.tell(Event::Result { worker, frame });
            } else {
                self.bench.tell(Event::Tick);
            }
            for (session, _) in self.bench.samples.split_off(samples) {
                self.sampled.push((self.bench.now, session.0));
                if chosen.iter().any(|r| self.bench.session(r.0) == session) {
                    self.bench.tell(Event::Sampled { session, token: 1 });
                }
            }
        }
    }
}

#[test]
fn a_long_prompt_crosses_a_slow_link_and_nobody_is_sent_away() {
    for bytes_per_s in [33e3, 100e3, 1e6] {
        let mut roads = Roads::new();
        roads.join(SLOW, bytes_per_s);
        roads.bench.submit(1, vec![1; 300], 1);
        roads.run(1, Duration::from_secs(60), &[]);
        assert_eq!(roads.bench.dismissed, [], "at {bytes_per_s} bytes a second");
        assert_eq!(roads.sampled.len(), 1, "at {bytes_per_s} bytes a second");
        // Up and down at once, it could not be there sooner.
        let least = 300.0 * ROW_BYTES as f64 / bytes_per_s;
        let took = roads.sampled[0].0 as f64 * 1e-6;
        assert!(took < 2.0 * least + 5.0, "{took} s at {bytes_per_s} bytes a second");
        // Before the first is answered, which tells the rate, a second is on its way.
        let longest = *roads.steps_bytes[2..].iter().max().unwrap() as f64 / bytes_per_s;
        assert!(longest <= 1.1, "a step takes {longest} s at {bytes_per_s} bytes a second");
    }
}

#[test]
fn a_link_that_becomes_slow_costs_its_worker_one_dismissal_at_most() {
    let mut roads = Roads::new();
    roads.join(SLOW, 1e9);
    roads.bench.submit(1, vec![1; 300], 1);
    roads.run(1, Duration::from_secs(10), &[]);
    assert_eq!(roads.sampled.len(), 1);
    roads.bench.tell(Event::Finish { session: roads.bench.session(1) });
    roads.bytes_per_s[0].1 = 50e3;
    roads.bench.submit(2, vec![2; 300], 1);
    for id in SLOW + 1..SLOW + 4 {
        let gone = roads.bench.dismissed.len();
        while roads.bench.dismissed.len() == gone && roads.sampled.len() == 1 {
            roads.run(2, Duration::from_millis(100), &[]);
        }
        if roads.sampled.len() == 2 {
            break;
        }
        let gone = roads.bench.dismissed[gone].0;
        roads.due.retain(|(_, worker, _)| *worker != gone);
        roads.join(id, 50e3);
    }
    assert_eq!(roads.sampled.len(), 2);
    assert!(roads.bench.dismissed.len() <= 1, "{:?}", roads.bench.dismissed);
}

#[test]
fn a_decode_waits_little_for_a_prompt_on_the_same_slow_link() {
    let mut roads = Roads::new();
    roads.join(SLOW, 100e3);
    roads.bench.submit(1, vec![1; 60], 1);
    roads.run(2, Duration::from_secs(10), &[RequestId(1)]);
    roads.bench.submit(2, vec![2; 400], 1);
    roads.run(8, Duration::from_secs(60), &[RequestId(1)]);
    let decoding = roads.bench.session(1).0;
    let tokens = roads.sampled.iter().filter(|(_, session)| *session == decoding);
    let at: Vec<u64> = tokens.map(|(at, _)| *at).collect();
    assert_eq!(at.len(), 8, "the prompt goes on meanwhile: {:?}", roads.sampled);
    let longest = at.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap() as f64 * 1e-6;
    assert!(longest < 2.5, "a token took {longest} s");
}

#[test]
fn a_worker_that_answers_with_logits_alone_is_sent_whole_prompts() {
    let model = ModelSpec { d_model: D_MODEL, vocab: VOCAB, ..model() };
    let mut bench = Bench::serving(Config::default(), model);
    bench.join(1, 100 * MIB, true, Holds::Anything);
    bench.submit(1, vec![1; 200], 1);
    assert_eq!(bench.steps[0].1.segments[0].rows, 200, "four bytes a row there, none back");
}

#[test]
fn sessions_begin_where_the_link_is_fast() {
    let mut roads = Roads::new();
    roads.join(SLOW, 100e3);
    roads.bench.submit(1, vec![1; 100], 1);
    roads.run(1, Duration::from_secs(30), &[]);
    roads.join(SLOW + 1, 1e8);
    roads.bench.submit(2, vec![2; 100], 1);
    roads.run(2, Duration::from_secs(30), &[]);
    roads.bench.tell(Event::Finish { session: roads.bench.session(1) });
    // Between equals it is the emptier one.
    roads.bench.submit(3, vec![3; 2], 1);
    let view = roads.bench.scheduler.view();
    let third = view.sessions.iter().find(|s| s.id == roads.bench.session(3)).unwrap();
    let workers: Vec<u64> = third.route.iter().map(|(worker, ..)| worker.0).collect();
    assert!(workers.contains(&(SLOW + 1)) && !workers.contains(&SLOW), "{workers:?}");
}
