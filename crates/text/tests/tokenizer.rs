//! Tokenizers of small made-up vocabularies, worked out by hand, and what broken ones get.

use proptest::prelude::*;
use text::{Error, Fault, Special, TokenKind, Tokenizer, TokenizerData};

/// GPT-2's alphabet: printable Latin-1 as itself, the other bytes from U+0100 on.
fn alphabet() -> Vec<String> {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0x100..;
    (0..=0xffu32)
        .map(|byte| if printable(byte) { byte } else { others.next().unwrap() })
        .map(|code| char::from_u32(code).unwrap().to_string())
        .collect()
}

const IM_END: u32 = 256;
const TOOL: u32 = 257;
const HE: u32 = 258;
const LL: u32 = 259;
const HELL: u32 = 260;
const SPACE_HE: u32 = 261;

/// All 256 bytes, two special tokens, and merges h+e, l+l, he+ll, Ġ+he.
fn byte_level() -> TokenizerData {
    let mut tokens = alphabet();
    let mut token_types = vec![1; 256];
    for (text, kind) in
        [("<|im_end|>", 3), ("<tool>", 4), ("he", 1), ("ll", 1), ("hell", 1), ("Ġhe", 1)]
    {
        tokens.push(text.into());
        token_types.push(kind);
    }
    TokenizerData {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens,
        token_types,
        merges: ["h e", "l l", "he ll", "Ġ he"].map(String::from).to_vec(),
        eos: Some(IM_END),
        ..TokenizerData::default()
    }
}

fn byte_ids(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

#[test]
fn bytes_merge_best_rank_first_inside_words() {
    let tokenizer = Tokenizer::new(&byte_level()).unwrap();
    let encode = |text| tokenizer.encode(text, Special::AsText).unwrap();
    assert_eq!(encode("hello"), [HELL, u32::from(b'o')]);
    // "Ġ he" ranks below "he ll", so the space stays alone before hell.
    assert_eq!(encode(" hello"), [u32::from(b' '), HELL, u32::from(b'o')]);
    assert_eq!(encode(" he"), [SPACE_HE]);
    assert_eq!(encode("hehe"), [HE, HE]);
    assert_eq!(encode("lll"), [LL, u32::from(b'l')]);
    assert_eq!(encode("é"), byte_ids("é"));
    assert_eq!(encode(""), [0; 0]);
}

#[test]
fn special_tokens_are_parsed_when_asked_and_user_defined_ones_always() {
    let tokenizer = Tokenizer::new(&byte_level()).unwrap();
    let text = "he<|im_end|><tool>he";
    assert_eq!(tokenizer.encode(text, Special::Parse).unwrap(), [HE, IM_END, TOOL, HE]);
    let as_text = tokenizer.encode(text, Special::AsText).unwrap();
    let mut expected = vec![HE];
    expected.extend(byte_ids("<|im_end|>"));
    expected.extend([TOOL, HE]);
    assert_eq!(as_text, expected);
    assert_eq!(tokenizer.decode(&as_text).unwrap(), text);
    // The control token is hidden, the user-defined one is text.
    assert_eq!(tokenizer.decode(&[HE, IM_END, TOOL, HE]).unwrap(), "he<tool>he");
}

#[test]
fn the_longest_special_token_wins_wherever_it_is() {
    let mut data = byte_level();
    for text in ["<a>", "<a><b>", "b><c"] {
        data.tokens.push(text.into());
        data.token_types.push(3);
    }
    let tokenizer = Tokenizer::new(&data).unwrap();
    let first = SPACE_HE + 1;
    let encode = |text| tokenizer.encode(text, Special::Parse).unwrap();
    assert_eq!(encode("<a><b><a>"), [first + 1, first]);
    // llama.cpp takes the longer one out first, though the shorter one begins earlier.
    assert_eq!(encode("<a><b><c"), [&[first + 1][..], &byte_ids("<c")].concat());
    assert_eq!(encode("<b><c"), [&[u32::from(b'<')][..], &[first + 2]].concat());
}

#[test]
fn bytes_that_the_vocabulary_lacks_are_dropped_and_not_merged_across() {
    let mut data = byte_level();
    data.tokens[0x1d] = "never".into();
    let tokenizer = Tokenizer::new(&data).unwrap();
    let encode = |text| tokenizer.encode(text, Special::AsText).unwrap();
    assert_eq!(encode("h\u{1d}e"), byte_ids("he"));
    assert_eq!(encode("\u{1d}"), [0; 0]);
}

#[test]
fn llama_3_takes_whole_words_and_adds_bos() {
    let mut data = byte_level();
    data.tokens.push("ole".into());
    data.token_types.push(1);
    data.bos = Some(TOOL);
    let whole = SPACE_HE + 1;
    let without = Tokenizer::new(&data).unwrap();
    assert_eq!(without.encode_prompt("ole", Special::AsText).unwrap(), byte_ids("ole"));
    data.pre = Some("llama-bpe".into());
    let with = Tokenizer::new(&data).unwrap();
    assert_eq!(with.encode_prompt("ole", Special::AsText).unwrap(), [TOOL, whole]);
    assert_eq!(with.encode("ole", Special::AsText).unwrap(), [whole]);
    // A template that wrote BOS itself gets no second one.
    assert_eq!(with.encode_prompt("<tool>ole", Special::Parse).unwrap(), [TOOL, whole]);
    data.add_bos = Some(false);
    data.add_eos = Some(true);
    let ends = Tokenizer::new(&data).unwrap();
    assert_eq!(ends.encode_prompt("ole", Special::AsText).unwrap(), [whole, IM_END]);
}

#[test]
fn ends_are_found_by_id_and_by_text() {
    let mut data = byte_level();
    data.eos = Some(7);
    data.eot = Some(8);
    data.token_types[IM_END as usize] = 1;
    let tokenizer = Tokenizer::new(&data).unwrap();
    let vocabulary = tokenizer.vocabulary();
    assert_eq!(vocabulary.end_ids().collect::<Vec<_>>(), [7, 8, IM_END]);
    // Whatever the file says, this text is a control token.
    assert_eq!(vocabulary.kind(IM_END), Ok(TokenKind::Control));
    assert!(!vocabulary.is_end(TOOL));
}

const SPM_FIRST: u32 = 259;

/// `<unk> <s> </s>`, 256 bytes, then pieces with scores.
fn sentence_piece(pieces: &[(&str, f32)]) -> TokenizerData {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    let mut token_types = vec![2, 3, 3];
    let mut scores = vec![0.0; 259];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    token_types.extend([6; 256]);
    for &(text, score) in pieces {
        tokens.push(text.into());
        token_types.push(1);
        scores.push(score);
    }
    TokenizerData { model: "llama".into(), tokens, token_types, scores, ..Default::default() }
}

fn spm_byte(byte: u8) -> u32 {
    3 + u32::from(byte)
}

#[test]
fn sentence_pieces_merge_best_score_first() {
    // ids from 259: ▁ h e l o he ll ▁he llo hello
    let data = sentence_piece(&[
        ("▁", -10.0),
        ("h", -11.0),
        ("e", -12.0),
        ("l", -13.0),
        ("o", -14.0),
        ("he", -2.0),
        ("ll", -1.0),
        ("▁he", -3.0),
        ("llo", -5.0),
        ("hello", -4.0),
    ]);
    let tokenizer = Tokenizer::new(&data).unwrap();
    let encode = |text| tokenizer.encode(text, Special::AsText).unwrap();
    let id = |index: u32| SPM_FIRST + index;
    // ▁hello: ll (-1), he (-2), then ▁he (-3) before hello (which would need he+llo), llo (-5).
    assert_eq!(encode("hello"), [id(7), id(8)]);
    assert_eq!(encode("lhe"), [id(0), id(3), id(5)]);
    // The leftmost of equals.
    assert_eq!(encode("lll"), [id(0), id(6), id(3)]);
    // A space is a piece of its own; the prefix is one more.
    assert_eq!(encode(" o"), [id(0), id(0), id(4)]);
    // What is no piece becomes bytes.
    assert_eq!(encode("é"), [id(0), spm_byte(0xc3), spm_byte(0xa9)]);
    assert_eq!(encode("\n"), [id(0), spm_byte(b'\n')]);
    assert_eq!(tokenizer.encode_prompt("o", Special::AsText).unwrap(), [1, id(0), id(4)]);
    assert_eq!(tokenizer.encode_prompt("", Special::AsText).unwrap(), [1]);
    assert_eq!(tokenizer.decode(&encode("hello é\n")).unwrap(), "hello é\n");
}

#[test]
fn neighbours_may_join_though_neither_is_a_piece() {
    let data = sentence_piece(&[("▁", -10.0), ("ab", -1.0)]);
    let tokenizer = Tokenizer::new(&data).unwrap();
    let ids = tokenizer.encode("aba", Special::AsText).unwrap();
    assert_eq!(ids, [SPM_FIRST, SPM_FIRST + 1, spm_byte(b'a')]);
}

#[test]
fn the_space_prefix_follows_special_tokens_and_can_be_switched_off() {
    let mut data = sentence_piece(&[("▁", -10.0), ("a", -1.0)]);
    let (space, a) = (SPM_FIRST, SPM_FIRST + 1);
    let tokenizer = Tokenizer::new(&data).unwrap();
    assert_eq!(tokenizer.encode("a</s>a", Special::Parse).unwrap(), [space, a, 2, space, a]);
    data.add_space_prefix = Some(false);
    let tokenizer = Tokenizer::new(&data).unwrap();
    assert_eq!(tokenizer.encode("a</s>a", Special::Parse).unwrap(), [a, 2, a]);
}

#[test]
fn plain_text_never_becomes_a_control_token() {
    // "<s" joins, and so would "<s>" with its score of 0, if it were a piece of text.
    let data = sentence_piece(&[("▁", -10.0), ("<s", -1.0), ("<", -2.0), (">", -2.0)]);
    let tokenizer = Tokenizer::new(&data).unwrap();
    let ids = tokenizer.encode("<s>", Special::AsText).unwrap();
    assert_eq!(ids, [SPM_FIRST, SPM_FIRST + 1, SPM_FIRST + 3]);
}

#[track_caller]
fn refused(change: impl FnOnce(&mut TokenizerData), spm: bool, part: &str) {
    let mut data = if spm { sentence_piece(&[("a", -1.0)]) } else { byte_level() };
    change(&mut data);
    let error = Tokenizer::new(&data).unwrap_err();
    assert_eq!(error.fault(), Fault::File);
    assert!(error.to_string().contains(part), "{error}");
}

#[test]
fn metadata_that_contradicts_itself_is_refused() {
    refused(|d| d.tokens.clear(), false, "0 tokens");
    refused(|d| d.token_types.truncate(9), false, "token_type: 9 entries for 262 tokens");
    refused(|d| d.tokens[5] = "he".into(), false, "both token 5 and token 258");
    refused(|d| d.merges.push("he x y".into()), false, "x y");
    refused(|d| d.merges.push("nospace".into()), false, "expected two tokens");
    refused(|d| d.merges.push(" ".into()), false, "expected two tokens");
    refused(|d| d.merges.push("h zz".into()), false, "\"zz\"");
    refused(|d| d.merges.push("l e".into()), false, "\"le\"");
    refused(|d| d.tokens[5] = "x".repeat(5000), false, "5000 bytes");
    refused(|d| d.eos = Some(262), false, "eos_token_id: 262");
    refused(|d| d.eot = Some(u32::MAX), false, "eot_token_id");
    refused(|d| d.add_bos = Some(true), false, "bos_token_id");
    refused(|d| d.token_types[3] = 6, false, "byte token");
    refused(|d| d.model = "t5".into(), false, "\"t5\"");
    refused(|d| d.pre = Some("martian".into()), false, "\"martian\"");
    refused(|d| d.scores.clear(), true, "scores: 0 for 260 tokens");
    refused(|d| d.scores[4] = f32::NAN, true, "token 4 is not a number");
    refused(|d| d.tokens[4] = "<0xZZ>".into(), true, "<0xZZ>");
}

#[test]
fn long_texts_and_unknown_ids_are_refused() {
    let tokenizer = Tokenizer::new(&byte_level()).unwrap();
    let long = "a".repeat(text::INPUT_BYTES_MAX + 1);
    let error = tokenizer.encode(&long, Special::AsText).unwrap_err();
    assert!(matches!(error, Error::InputTooLong { .. }), "{error}");
    assert_eq!(tokenizer.decode(&[262]), Err(Error::UnknownToken { id: 262, vocabulary: 262 }));
}

proptest! {
    #[test]
    fn byte_level_texts_come_back(text in any::<String>(), pre in 0..text::PRE_TOKENIZERS.len()) {
        let mut data = byte_level();
        data.pre = Some(text::PRE_TOKENIZERS[pre].into());
        data.add_bos = Some(false);
        let tokenizer = Tokenizer::new(&data).unwrap();
        let ids = tokenizer.encode(&text, Special::AsText).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }

    #[test]
    fn sentence_piece_texts_come_back(text in "[ hélo\u{1f680}\n]{0,40}") {
        let data = sentence_piece(&[("▁", -3.0), ("he", -1.0), ("▁hé", -2.0), ("lo", -1.0)]);
        let tokenizer = Tokenizer::new(&data).unwrap();
        let ids = tokenizer.encode(&text, Special::AsText).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }

    #[test]
    fn arbitrary_metadata_never_panics(
        tokens in proptest::collection::vec("[ab▁<>0x]{0,4}", 1..20),
        types in proptest::collection::vec(-1i32..8, 1..20),
        merges in proptest::collection::vec("[ab ]{0,4}", 0..8),
        spm in any::<bool>(),
        bos in proptest::option::of(0u32..30),
        text in "[ab<> é]{0,20}",
    ) {
        let data = TokenizerData {
            model: if spm { "llama" } else { "gpt2" }.into(),
            scores: vec![-1.0; tokens.len()],
            tokens, token_types: types, merges, bos,
            ..TokenizerData::default()
        };
        if let Ok(tokenizer) = Tokenizer::new(&data) {
            let ids = tokenizer.encode_prompt(&text, Special::Parse).unwrap();
            tokenizer.decode(&ids).unwrap();
        }
    }
}
