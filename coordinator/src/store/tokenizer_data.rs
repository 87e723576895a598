//! What a GGUF file says of its tokenizer.

use model::gguf::Gguf;
use text::TokenizerData;

/// Reads the `tokenizer.*` metadata.
///
/// # Errors
/// Names an entry that is missing.
pub(super) fn tokenizer_data(gguf: &Gguf<'_>) -> Result<TokenizerData, String> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let missing =
        |name: &str| format!("the file has no tokenizer: metadata {} is missing", key(name));
    let string = |name: &str| gguf.get_str(&key(name)).map(str::to_owned);
    let id = |name: &str| gguf.get_u32(&key(name));
    let flag = |name: &str| gguf.get_bool(&key(name));
    let strings = |name: &str| {
        gguf.get_str_array(&key(name)).map(|array| array.map(str::to_owned).collect::<Vec<_>>())
    };
    let types = gguf.get_i32_array(&key("token_type")).map(Iterator::collect);
    let scores = gguf.get_f32_array(&key("scores")).map(Iterator::collect);
    Ok(TokenizerData {
        model: string("model").ok_or_else(|| missing("model"))?,
        pre: string("pre"),
        tokens: strings("tokens").ok_or_else(|| missing("tokens"))?,
        token_types: types.unwrap_or_default(),
        scores: scores.unwrap_or_default(),
        merges: strings("merges").unwrap_or_default(),
        bos: id("bos_token_id"),
        eos: id("eos_token_id"),
        eot: id("eot_token_id"),
        eom: id("eom_token_id"),
        unknown: id("unknown_token_id"),
        padding: id("padding_token_id"),
        add_bos: flag("add_bos_token"),
        add_eos: flag("add_eos_token"),
        add_space_prefix: flag("add_space_prefix"),
        chat_template: gguf.get_str("tokenizer.chat_template").map(str::to_owned),
    })
}
