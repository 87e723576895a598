//! Which tokens are chosen, and how often.

use std::collections::BTreeMap;

use proptest::prelude::*;
use text::{Error, Sampler, SamplingParams};

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}

fn sampler(params: SamplingParams, logits: &[f32]) -> Sampler {
    Sampler::new(params, logits.len()).unwrap()
}

fn choose(params: SamplingParams, logits: &[f32]) -> u32 {
    sampler(params, logits).choose(logits, 0, 0).unwrap().token
}

/// Which tokens ever come, and how often, over many positions.
fn counts(params: SamplingParams, logits: &[f32], draws: u64) -> Vec<u64> {
    let mut sampler = sampler(params, logits);
    let mut counts = vec![0; logits.len()];
    for position in 0..draws {
        counts[sampler.choose(logits, 0, position).unwrap().token as usize] += 1;
    }
    counts
}

fn possible(params: SamplingParams, logits: &[f32]) -> Vec<usize> {
    let counts = counts(params, logits, 4000);
    (0..logits.len()).filter(|&token| counts[token] > 0).collect()
}

#[test]
fn temperature_zero_takes_the_lowest_id_among_equal_maxima() {
    assert_eq!(choose(greedy(), &[1.0, 3.0, 2.0, 3.0]), 1);
    assert_eq!(choose(greedy(), &[-0.0, 0.0]), 0);
    assert_eq!(choose(greedy(), &[-3.0, -2.0]), 1);
    let first = SamplingParams { top_k: 1, ..SamplingParams::default() };
    assert_eq!(choose(first, &[1.0, 3.0, 2.0, 3.0]), 1);
    // A temperature too small to divide by chooses like 0.
    let cold = SamplingParams { temperature: 1e-30, ..SamplingParams::default() };
    assert_eq!(possible(cold, &[1.0, 3.0, 2.0]), [1]);
}

/// Chi-square against the softmax, over seeds: 9 degrees of freedom, above 33.7 once in 10,000.
#[test]
fn tokens_come_as_often_as_they_are_likely() {
    let logits: Vec<f32> = (0..10).map(|token| (token as f32 * 0.7).sin() * 2.0).collect();
    for temperature in [0.5, 1.0, 2.0] {
        for seed in 0..8 {
            let params = SamplingParams { temperature, seed, ..SamplingParams::default() };
            let weights: Vec<f64> =
                logits.iter().map(|&x| f64::from(x / temperature).exp()).collect();
            let total: f64 = weights.iter().sum();
            let draws = 20_000;
            let chi: f64 = counts(params, &logits, draws)
                .iter()
                .zip(&weights)
                .map(|(&got, w)| {
                    let expected = w / total * draws as f64;
                    (got as f64 - expected).powi(2) / expected
                })
                .sum();
            assert!(chi < 33.7, "chi-square {chi}, temperature {temperature}, seed {seed}");
        }
    }
}

#[test]
fn the_same_seed_choice_and_position_draw_the_same() {
    let logits: Vec<f32> = (0..100).map(|token| (token as f32).sin()).collect();
    let params = SamplingParams { seed: 7, ..SamplingParams::default() };
    let mut one = sampler(params.clone(), &logits);
    let forward: Vec<u32> = (0..50).map(|p| one.choose(&logits, 1, p).unwrap().token).collect();
    let mut two = sampler(params.clone(), &logits);
    let mut backward: Vec<u32> =
        (0..50).rev().map(|p| two.choose(&logits, 1, p).unwrap().token).collect();
    backward.reverse();
    assert_eq!(forward, backward);
    let other = |params: SamplingParams, choice| -> Vec<u32> {
        let mut sampler = sampler(params, &logits);
        (0..50).map(|p| sampler.choose(&logits, choice, p).unwrap().token).collect()
    };
    assert_ne!(forward, other(params.clone(), 2));
    assert_ne!(forward, other(SamplingParams { seed: 8, ..params }, 1));
}

#[test]
fn top_k_keeps_the_k_most_likely_and_lower_ids_among_equals() {
    let logits = [0.0, 1.0, 0.5, 1.0, 0.5];
    let top_k = |top_k| SamplingParams { top_k, ..SamplingParams::default() };
    assert_eq!(possible(top_k(2), &logits), [1, 3]);
    assert_eq!(possible(top_k(3), &logits), [1, 2, 3]);
    assert_eq!(possible(top_k(99), &logits), [0, 1, 2, 3, 4]);
    assert_eq!(possible(top_k(0), &logits), [0, 1, 2, 3, 4]);
}

#[test]
fn top_p_keeps_the_fewest_that_reach_it() {
    // Probabilities 0.5, 0.25, 0.125, 0.125.
    let logits: Vec<f32> = [4.0f32, 2.0, 1.0, 1.0].iter().map(|w| w.ln()).collect();
    let top_p = |top_p| SamplingParams { top_p, ..SamplingParams::default() };
    assert_eq!(possible(top_p(0.0), &logits), [0]);
    assert_eq!(possible(top_p(0.49), &logits), [0]);
    assert_eq!(possible(top_p(0.6), &logits), [0, 1]);
    assert_eq!(possible(top_p(0.8), &logits), [0, 1, 2]);
    assert_eq!(possible(top_p(0.9), &logits), [0, 1, 2, 3]);
    assert_eq!(possible(top_p(1.0), &logits), [0, 1, 2, 3]);
    // top_p counts what top_k left: of 4 and 2 the first has 2/3.
    let both = SamplingParams { top_k: 2, top_p: 0.6, ..SamplingParams::default() };
    assert_eq!(possible(both, &logits), [0]);
}

#[test]
fn min_p_keeps_what_is_likely_enough_beside_the_best() {
    let logits: Vec<f32> = [8.0f32, 3.9, 4.1, 1.0].iter().map(|w| w.ln()).collect();
    let min_p = |min_p| SamplingParams { min_p, ..SamplingParams::default() };
    assert_eq!(possible(min_p(0.5), &logits), [0, 2]);
    assert_eq!(possible(min_p(0.1), &logits), [0, 1, 2, 3]);
    assert_eq!(possible(min_p(1.0), &logits), [0]);
    let both = SamplingParams { min_p: 0.5, top_k: 3, ..SamplingParams::default() };
    assert_eq!(possible(both, &logits), [0, 2]);
}

#[test]
fn biases_and_penalties_move_the_choice() {
    let logits = [2.0, 1.9, -1.0];
    let bias = |id, value| SamplingParams { logit_bias: BTreeMap::from([(id, value)]), ..greedy() };
    assert_eq!(choose(bias(0, -100.0), &logits), 1);
    assert_eq!(choose(bias(2, 100.0), &logits), 2);

    // 2.0 − 0.15 = 1.85 after one use.
    let params = SamplingParams { presence_penalty: 0.15, ..greedy() };
    let mut present = sampler(params, &logits);
    present.see_prompt(&[0, 0, 0]);
    assert_eq!(present.choose(&logits, 0, 0).unwrap().token, 0, "prompts do not count");
    present.accept(0);
    assert_eq!(present.choose(&logits, 0, 1).unwrap().token, 1);

    // 2.0 − 0.06 = 1.94 after one use, 1.88 after two.
    let mut frequent = sampler(SamplingParams { frequency_penalty: 0.06, ..greedy() }, &logits);
    frequent.accept(0);
    assert_eq!(frequent.choose(&logits, 0, 1).unwrap().token, 0);
    frequent.accept(0);
    assert_eq!(frequent.choose(&logits, 0, 2).unwrap().token, 1);

    // 2.0 / 1.1 = 1.82, for the prompt's tokens too.
    let mut repeated = sampler(SamplingParams { repetition_penalty: 1.1, ..greedy() }, &logits);
    repeated.see_prompt(&[0]);
    assert_eq!(repeated.choose(&logits, 0, 0).unwrap().token, 1);
    // −1.0 · 1.1 = −1.1: negative logits go down as well.
    let negative = [-1.05, -1.0];
    let mut repeated = sampler(SamplingParams { repetition_penalty: 1.1, ..greedy() }, &negative);
    repeated.see_prompt(&[1]);
    assert_eq!(repeated.choose(&negative, 0, 0).unwrap().token, 0);
}

#[test]
fn logprobs_are_the_models_own_whatever_is_done_to_the_logits() {
    let logits: Vec<f32> = [1.0f32, 4.0, 2.0, 1.0].iter().map(|w| w.ln()).collect();
    let params = SamplingParams {
        logit_bias: BTreeMap::from([(0, 100.0)]),
        temperature: 0.5,
        logprobs: Some(3),
        ..SamplingParams::default()
    };
    let chosen = sampler(params, &logits).choose(&logits, 0, 0).unwrap();
    assert_eq!(chosen.token, 0);
    let logprobs = chosen.logprobs.unwrap();
    let near =
        |got: f32, p: f32| assert!((got - p.ln()).abs() < 1e-6, "{got}, expected {}", p.ln());
    near(logprobs.chosen, 0.125);
    assert_eq!(logprobs.top.iter().map(|&(token, _)| token).collect::<Vec<_>>(), [1, 2, 0]);
    near(logprobs.top[0].1, 0.5);
    near(logprobs.top[1].1, 0.25);
    near(logprobs.top[2].1, 0.125);
    let params = SamplingParams { logprobs: Some(0), ..greedy() };
    let none = sampler(params, &logits).choose(&logits, 0, 0).unwrap().logprobs.unwrap();
    assert!(none.top.is_empty());
    assert_eq!(sampler(greedy(), &logits).choose(&logits, 0, 0).unwrap().logprobs, None);
}

#[test]
fn logits_that_are_not_finite_are_an_error() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = sampler(greedy(), &[0.0; 3]).choose(&[1.0, 2.0, bad], 0, 0).unwrap_err();
        assert!(matches!(error, Error::NonFiniteLogit { token: 2, .. }), "{error}");
    }
    let error = sampler(greedy(), &[0.0; 3]).choose(&[1.0], 0, 0).unwrap_err();
    assert_eq!(error, Error::LogitsLength { expected: 3, got: 1 });
    // The largest finite ones are handled.
    let huge = SamplingParams { logit_bias: BTreeMap::from([(0, 100.0)]), ..Default::default() };
    assert_eq!(possible(huge, &[f32::MAX, f32::MIN, 0.0]), [0]);
}

proptest! {
    /// What stays, by the definition, with a full sort.
    #[test]
    fn partial_selection_keeps_what_a_full_sort_would(
        logits in proptest::collection::vec(-6.0f32..6.0, 300..1500),
        top_k in prop_oneof![Just(0u32), 2u32..1200],
        top_p in prop_oneof![Just(1.0f32), 0.0f32..1.0],
        position in any::<u64>(),
    ) {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        if top_k > 0 { order.truncate(top_k as usize); }
        let weight = |token: &usize| f64::from(logits[*token]).exp();
        let total: f64 = order.iter().map(weight).sum();
        let mut sum = 0.0;
        let mut kept = Vec::new();
        for token in order {
            // One more than the border, since sums differ in their last bits.
            let done = sum > f64::from(top_p) * total * (1.0 + 1e-5);
            if done { break }
            sum += weight(&token);
            kept.push(token);
        }
        let params = SamplingParams { top_k, top_p, ..SamplingParams::default() };
        let chosen = sampler(params, &logits).choose(&logits, 0, position).unwrap().token;
        prop_assert!(kept.contains(&(chosen as usize)), "{chosen} is not among {}", kept.len());
    }
}
