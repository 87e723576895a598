//! The tokenizer and the chat template of real files against llama.cpp's.

use std::path::Path;

use model::gguf::Gguf;
use serde_json::Value;
use text::{Special, Tokenizer, TokenizerData};

fn tokenizer_data(path: &Path) -> TokenizerData {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let gguf = Gguf::parse(&[&bytes]).unwrap();
    let strings = |key: &str| -> Vec<String> {
        gguf.get_str_array(key).map(|array| array.map(str::to_owned).collect()).unwrap_or_default()
    };
    TokenizerData {
        model: gguf.get_str("tokenizer.ggml.model").unwrap().to_owned(),
        pre: gguf.get_str("tokenizer.ggml.pre").map(str::to_owned),
        tokens: strings("tokenizer.ggml.tokens"),
        token_types: gguf
            .get_i32_array("tokenizer.ggml.token_type")
            .map(|array| array.collect())
            .unwrap_or_default(),
        scores: gguf
            .get_f32_array("tokenizer.ggml.scores")
            .map(|array| array.collect())
            .unwrap_or_default(),
        merges: strings("tokenizer.ggml.merges"),
        bos: gguf.get_u32("tokenizer.ggml.bos_token_id"),
        eos: gguf.get_u32("tokenizer.ggml.eos_token_id"),
        eot: gguf.get_u32("tokenizer.ggml.eot_token_id"),
        eom: gguf.get_u32("tokenizer.ggml.eom_token_id"),
        unknown: gguf.get_u32("tokenizer.ggml.unknown_token_id"),
        padding: gguf.get_u32("tokenizer.ggml.padding_token_id"),
        add_bos: gguf.get_bool("tokenizer.ggml.add_bos_token"),
        add_eos: gguf.get_bool("tokenizer.ggml.add_eos_token"),
        add_space_prefix: gguf.get_bool("tokenizer.ggml.add_space_prefix"),
        chat_template: gguf.get_str("tokenizer.chat_template").map(str::to_owned),
    }
}

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
