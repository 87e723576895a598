//! When steps go out, and which rows go together.

use std::time::Duration;

use protocol::SessionId;
use scheduler::{Config, Event, Holds};

use crate::bench::{Bench, MIB, alone};

/// Sessions of requests 1 to 4 whose prompts were answered.
fn four(bench: &mut Bench) -> Vec<SessionId> {
    for request in 1..=4 {
        bench.submit(request, vec![request as u32; 2], 1);
    }
    for _ in 0..10 {
        bench.pass(Duration::from_millis(10));
        bench.answer_all();
    }
    assert_eq!(bench.samples.len(), 4, "all prompts are through");
    (1..=4).map(|r| bench.session(r)).collect()
}

fn choose(bench: &mut Bench, sessions: &[SessionId]) {
    for &session in sessions {
        bench.tell(Event::Sampled { session, token: 1 });
    }
}

/// Segments of the steps that are out.
fn widths(bench: &Bench) -> Vec<usize> {
    bench.steps.iter().map(|(_, frame)| frame.segments.len()).collect()
}

#[test]
fn decodes_wait_for_the_tokens_of_those_beside_them() {
    let mut bench = alone();
    let sessions = four(&mut bench);
    for token in 0..3 {
        choose(&mut bench, &sessions[..3]);
        assert_eq!(widths(&bench), [0; 0], "token {token}: one is missing");
        choose(&mut bench, &sessions[3..]);
        assert_eq!(widths(&bench), [4]);
        bench.answer_all();
    }
    // One that ends is not waited for.
    bench.tell(Event::Finish { session: sessions[0] });
    choose(&mut bench, &sessions[1..]);
    assert_eq!(widths(&bench), [3]);
}

#[test]
fn who_takes_long_to_choose_is_waited_for_once() {
    let mut bench = alone();
    let sessions = four(&mut bench);
    choose(&mut bench, &sessions[..3]);
    bench.pass(Duration::from_millis(6));
    assert_eq!(widths(&bench), [3], "5 ms are the most");
    bench.answer_all();
    choose(&mut bench, &sessions[..3]);
    assert_eq!(widths(&bench), [3]);
    // Its token has come: it goes with the others again.
    choose(&mut bench, &sessions[3..]);
    assert_eq!(widths(&bench), [3], "a step is being computed");
    bench.answer();
    assert_eq!(widths(&bench), [0; 0]);
    choose(&mut bench, &sessions[..3]);
    assert_eq!(widths(&bench), [4]);
}

#[test]
fn what_comes_while_a_step_is_computed_goes_with_the_next() {
    let mut bench = alone();
    bench.submit(1, vec![1, 1], 1);
    assert_eq!(widths(&bench), [1]);
    bench.submit(2, vec![2, 2], 1);
    bench.submit(3, vec![3, 3], 1);
    assert_eq!(widths(&bench), [1], "a second step would only read the weights once more");
    bench.answer();
    assert_eq!(widths(&bench), [2]);
}

#[test]
fn two_workers_in_a_row_share_the_decodes() {
    let mut bench = Bench::new(Config::default());
    bench.join(1, 4 * MIB, true, Holds::Anything);
    bench.join(2, 4 * MIB, true, Holds::Anything);
    let sessions = four(&mut bench);
    choose(&mut bench, &sessions);
    bench.pass(Duration::from_millis(50));
    let first = widths(&bench)[0];
    assert!(first < 4, "the second worker would have nothing to do: {first}");
    bench.answer();
    let workers: std::collections::BTreeSet<u64> = bench.steps.iter().map(|(w, _)| w.0).collect();
    assert_eq!(workers.len(), 2, "both compute");
}
