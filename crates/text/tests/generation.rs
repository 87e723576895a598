//! From tokens to shown text, until it is finished.

use text::{Error, FinishReason, Generation, Special, Step, StopRules, Tokenizer, TokenizerData};

const END: u32 = 256;
const HALF: u32 = 257;

fn tokenizer() -> Tokenizer {
    let mut tokens: Vec<String> = (0..256).map(|byte| format!("<0x{byte:02X}>")).collect();
    let mut token_types = vec![6; 256];
    tokens.extend(["<|im_end|>".into(), "half".into()]);
    token_types.extend([3, 1]);
    Tokenizer::new(&TokenizerData {
        model: "llama".into(),
        scores: vec![0.0; tokens.len()],
        tokens,
        token_types,
        eos: Some(END),
        ..TokenizerData::default()
    })
    .unwrap()
}

fn rules(stop: &[&str], max_tokens: Option<u32>) -> StopRules {
    StopRules {
        stop: stop.iter().map(|&stop| stop.to_owned()).collect(),
        max_tokens,
        ignore_end: false,
    }
}

/// Feeds tokens until the end; gives the deltas and the reason.
fn run(rules: &StopRules, context: u32, tokens: &[u32]) -> (Vec<String>, Option<FinishReason>) {
    let tokenizer = tokenizer();
    let mut generation = Generation::new(rules, 5, context).unwrap();
    let mut deltas = Vec::new();
    for (index, &token) in tokens.iter().enumerate() {
        let Step { text_delta, finished } = generation.push(tokenizer.vocabulary(), token).unwrap();
        deltas.push(text_delta);
        assert_eq!(generation.tokens() as usize, index + 1);
        if finished.is_some() {
            assert_eq!(index + 1, tokens.len(), "finished early");
        }
    }
    (deltas, generation.finished())
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

#[test]
fn text_flows_until_a_token_ends_it() {
    let tokens = [bytes("né"), vec![END]].concat();
    let (deltas, finished) = run(&rules(&[], None), 100, &tokens);
    assert_eq!(deltas, ["n", "", "é", ""]);
    assert_eq!(finished, Some(FinishReason::Stop));
    assert_eq!(FinishReason::Stop.as_str(), "stop");
}

#[test]
fn a_stop_string_is_held_back_and_cut() {
    let (deltas, finished) = run(&rules(&["ok!"], None), 100, &bytes("aok!"));
    assert_eq!(deltas, ["a", "", "", ""]);
    assert_eq!(finished, Some(FinishReason::Stop));
    // What was held is shown when the text ends otherwise.
    let tokens = [bytes("aok"), vec![END]].concat();
    let (deltas, finished) = run(&rules(&["ok!"], None), 100, &tokens);
    assert_eq!(deltas, ["a", "", "", "ok"]);
    assert_eq!(finished, Some(FinishReason::Stop));
    let (deltas, finished) = run(&rules(&["ok!"], Some(3)), 100, &bytes("aok"));
    assert_eq!(deltas, ["a", "", "ok"]);
    assert_eq!(finished, Some(FinishReason::Length));
}

#[test]
fn max_tokens_and_the_context_end_it_by_length() {
    let (deltas, finished) = run(&rules(&[], Some(2)), 100, &bytes("ab"));
    assert_eq!((deltas.concat().as_str(), finished), ("ab", Some(FinishReason::Length)));
    assert_eq!(FinishReason::Length.as_str(), "length");
    // 5 of 7 positions are the prompt's.
    let (deltas, finished) = run(&rules(&[], Some(50)), 7, &bytes("ab"));
    assert_eq!((deltas.concat().as_str(), finished), ("ab", Some(FinishReason::Length)));
    // The last token allowed may still be an end or complete a stop string.
    assert_eq!(run(&rules(&[], Some(2)), 100, &[97, END]).1, Some(FinishReason::Stop));
    assert_eq!(run(&rules(&["ab"], Some(2)), 100, &bytes("ab")).1, Some(FinishReason::Stop));
}

#[test]
fn half_a_character_at_the_end_is_replaced() {
    let (deltas, _) = run(&rules(&[], Some(2)), 100, &bytes("é")[..1].repeat(2));
    assert_eq!(deltas, ["", "\u{fffd}\u{fffd}"]);
}

#[test]
fn ends_can_be_ignored_and_stay_hidden() {
    let rules = StopRules { ignore_end: true, max_tokens: Some(3), ..StopRules::default() };
    let (deltas, finished) = run(&rules, 100, &[97, END, HALF]);
    assert_eq!(deltas, ["a", "", "half"]);
    assert_eq!(finished, Some(FinishReason::Length));
}

#[test]
fn requests_that_cannot_work_are_refused_by_name() {
    for (rules, prompt, context, name) in [
        (rules(&[], Some(0)), 5, 10, "max_tokens"),
        (rules(&[], None), 10, 10, "prompt"),
        (rules(&[], None), 0, 10, "prompt"),
        (rules(&[""], None), 5, 10, "stop"),
    ] {
        let error = Generation::new(&rules, prompt, context).unwrap_err();
        assert!(matches!(&error, Error::BadParameter { name: got, .. } if *got == name), "{error}");
    }
    let tokenizer = tokenizer();
    let mut generation = Generation::new(&rules(&[], None), 5, 10).unwrap();
    let error = generation.push(tokenizer.vocabulary(), 999).unwrap_err();
    assert_eq!(error, Error::UnknownToken { id: 999, vocabulary: 258 });
    assert_eq!(tokenizer.encode("a", Special::AsText).unwrap().len(), 4);
}
