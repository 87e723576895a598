//! A byte-level BPE vocabulary in the manner of GPT-2's: three special tokens, the 256
//! bytes, then merges of two letters, then unused tokens up to the vocabulary's size.

use super::gguf_writer::{Entry, GgufWriter};

const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// The least vocabulary that holds them.
pub(super) const VOCAB_MIN: u32 = 3 + 256;
/// Pairs that are merged, in this order; all letters are single bytes.
const MERGES: [(&str, &str); 12] = [
    ("Ġ", "t"),
    ("Ġ", "a"),
    ("h", "e"),
    ("i", "n"),
    ("r", "e"),
    ("o", "n"),
    ("Ġt", "he"),
    ("e", "r"),
    ("Ġ", "s"),
    ("a", "t"),
    ("n", "d"),
    ("Ġa", "nd"),
];
const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + \
    '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Adds the tokenizer's metadata for a vocabulary of `vocab` tokens.
pub(super) fn add(file: &mut GgufWriter, vocab: u32) {
    assert!(vocab >= VOCAB_MIN, "a tokenizer needs a vocabulary of at least {VOCAB_MIN}");
    let mut tokens: Vec<String> = SPECIAL.map(str::to_owned).to_vec();
    tokens.extend((0..=255).map(|byte| byte_char(byte).to_string()));
    let merges = &MERGES[..MERGES.len().min((vocab - VOCAB_MIN) as usize)];
    tokens.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
    let used = tokens.len();
    tokens.extend((used..vocab as usize).map(|id| format!("<unused{id}>")));
    let kind = |id: usize| match id {
        0..3 => 3,            // control
        _ if id >= used => 5, // unused
        _ => 1,               // normal
    };
    let kinds = (0..tokens.len()).map(kind).collect();
    let merges = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
    file.set("tokenizer.ggml.model", Entry::Str("gpt2".to_owned()))
        .set("tokenizer.ggml.pre", Entry::Str("smollm".to_owned()))
        .set("tokenizer.ggml.tokens", Entry::Strs(tokens))
        .set("tokenizer.ggml.token_type", Entry::I32s(kinds))
        .set("tokenizer.ggml.merges", Entry::Strs(merges))
        .set("tokenizer.ggml.bos_token_id", Entry::U32(1))
        .set("tokenizer.ggml.eos_token_id", Entry::U32(2))
        .set("tokenizer.ggml.unknown_token_id", Entry::U32(0))
        .set("tokenizer.ggml.add_bos_token", Entry::Bool(false))
        .set("tokenizer.ggml.add_space_prefix", Entry::Bool(false))
        .set("tokenizer.chat_template", Entry::Str(CHAT_TEMPLATE.to_owned()));
}

/// GPT-2's visible stand-in for a byte: itself where it prints, else one from U+0100 on.
fn byte_char(byte: u8) -> char {
    let prints = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    if prints(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !prints(*b)).count() as u32;
    char::from_u32(0x100 + before).expect("below the surrogates")
}
