//! The tokenizer and the chat template of real files against llama.cpp's.

mod real;

use real::tokenizer_data;
use serde_json::Value;
use text::{ChatTemplate, Generation, Message, Special, StopRules, Tokenizer, TokenizerData};

fn smollm2() -> TokenizerData {
    tokenizer_data(&tests::required_model())
}

fn cases() -> Vec<Value> {
    tests::golden("smollm2-135m-llama.cpp.json")["cases"].as_array().unwrap().clone()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn prompt_ids_are_llama_cpps() {
    let tokenizer = Tokenizer::new(&smollm2()).unwrap();
    let cases = cases();
    assert!(cases.len() >= 5, "only {} cases", cases.len());
    for case in &cases {
        let special =
            if case["parse_special"].as_bool().unwrap() { Special::Parse } else { Special::AsText };
        let got = tokenizer.encode_prompt(case["text"].as_str().unwrap(), special).unwrap();
        assert_eq!(got, ids(&case["prompt_tokens"]), "{}", case["id"]);
    }
}

/// The goldens' texts show control tokens, so the bytes of every token are joined.
#[test]
fn generated_texts_are_llama_cpps() {
    let tokenizer = Tokenizer::new(&smollm2()).unwrap();
    for case in cases() {
        for path in ["llama_cpp_default", "f32_exact"] {
            let run = &case[path];
            let mut bytes = Vec::new();
            for id in ids(&run["generated_tokens"]) {
                bytes.extend_from_slice(tokenizer.vocabulary().token_bytes(id).unwrap());
            }
            let text = String::from_utf8_lossy(&bytes);
            assert_eq!(text, run["generated_text"].as_str().unwrap(), "{} {path}", case["id"]);
        }
    }
}

#[test]
fn generation_ends_where_llama_cpp_ends_it() {
    let tokenizer = Tokenizer::new(&smollm2()).unwrap();
    for case in cases() {
        for path in ["llama_cpp_default", "f32_exact"] {
            let run = &case[path];
            let first = ids(&run["generated_tokens"])
                .iter()
                .position(|&id| tokenizer.vocabulary().is_end(id))
                .map_or(-1, |at| at as i64);
            assert_eq!(first, run["first_eog_index"].as_i64().unwrap(), "{} {path}", case["id"]);
        }
    }
}

#[test]
fn rendered_prompts_are_llama_cpps() {
    let template = ChatTemplate::new(&smollm2()).unwrap();
    assert!(!template.is_fallback());
    let mut rendered = 0;
    for case in cases() {
        let Some(turns) = case["messages"].as_array() else { continue };
        let messages: Vec<Message> = turns
            .iter()
            .map(|turn| Message {
                role: turn["role"].as_str().unwrap().to_owned(),
                content: turn["content"].as_str().unwrap().to_owned(),
            })
            .collect();
        let text = template.render(&messages, true, 0).unwrap();
        assert_eq!(text, case["text"].as_str().unwrap(), "{}", case["id"]);
        rendered += 1;
    }
    assert!(rendered >= 2, "only {rendered} cases with messages");
}

/// A whole answer, streamed: what is shown is the golden's text up to its end token.
#[test]
fn a_streamed_answer_is_the_text_before_the_end_token() {
    let tokenizer = Tokenizer::new(&smollm2()).unwrap();
    for case in cases() {
        let run = &case["f32_exact"];
        let rules = StopRules { max_tokens: Some(64), ..StopRules::default() };
        let mut generation = Generation::new(&rules, 60, 8192).unwrap();
        let mut shown = String::new();
        for id in ids(&run["generated_tokens"]) {
            let step = generation.push(tokenizer.vocabulary(), id).unwrap();
            shown += &step.text_delta;
            if step.finished.is_some() {
                break;
            }
        }
        let whole = run["generated_text"].as_str().unwrap();
        let end = whole.find("<|im_end|>").unwrap_or(whole.len());
        assert_eq!(shown, whole[..end], "{}", case["id"]);
    }
}

/// Qwen2's well-known ids, its template's default system prompt, and texts that come back.
#[test]
fn qwen2_5_coder_tokenizes_and_renders() {
    let Some(path) = tests::optional_model("qwen2.5-coder-0.5b") else { return };
    let data = tokenizer_data(&path);
    let tokenizer = Tokenizer::new(&data).unwrap();
    let encode = |text| tokenizer.encode_prompt(text, Special::Parse).unwrap();
    assert_eq!(encode("Hello world"), [9707, 1879]);
    assert_eq!(encode("<|im_start|>user\n"), [151644, 872, 198]);
    assert_eq!(encode("You are a helpful assistant."), [2610, 525, 264, 10950, 17847, 13]);
    assert_eq!(tokenizer.vocabulary().len(), 151_936);
    for id in [151_643, 151_645] {
        assert!(tokenizer.vocabulary().is_end(id), "{id}");
    }
    for case in cases() {
        let text = case["text"].as_str().unwrap();
        let ids = tokenizer.encode(text, Special::AsText).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
    let message = Message { role: "user".into(), content: "Hi".into() };
    let text = ChatTemplate::new(&data).unwrap().render(&[message], true, 0).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
}
