//! Log probabilities in the API's two shapes.

use std::collections::BTreeMap;

use api::{ChatLogprobs, CompletionLogprobs, LOGPROB_MIN, TokenLogprob, TopLogprob};
use text::Vocabulary;

use super::generation::TokenInfo;

/// For a chat completion.
pub(super) fn chat_logprobs(vocabulary: &Vocabulary, tokens: &[TokenInfo]) -> ChatLogprobs {
    let top = |&(token, logprob): &(u32, f32)| {
        let bytes = bytes_of(vocabulary, token);
        let token = String::from_utf8_lossy(bytes).into_owned();
        TopLogprob { token, logprob: finite(logprob), bytes: Some(bytes.to_vec()) }
    };
    let content = tokens.iter().map(|info| {
        let TopLogprob { token, logprob, bytes } = top(&(info.token, info.logprob));
        TokenLogprob { token, logprob, bytes, top_logprobs: info.top.iter().map(top).collect() }
    });
    ChatLogprobs { content: content.collect(), refusal: None }
}

/// For a completion.
pub(super) fn completion_logprobs(
    vocabulary: &Vocabulary,
    tokens: &[TokenInfo],
) -> CompletionLogprobs {
    let mut lists = CompletionLogprobs::default();
    for info in tokens {
        lists.tokens.push(spelled(bytes_of(vocabulary, info.token)));
        lists.token_logprobs.push(finite(info.logprob));
        lists.text_offset.push(info.offset);
        // The chosen token is among them, as OpenAI says; of two tokens that are spelled the
        // same the likelier stays.
        let mut top = BTreeMap::new();
        for &(token, logprob) in info.top.iter().chain([&(info.token, info.logprob)]) {
            let entry = top.entry(spelled(bytes_of(vocabulary, token))).or_insert(LOGPROB_MIN);
            *entry = finite(logprob).max(*entry);
        }
        lists.top_logprobs.push(top);
    }
    lists
}

fn bytes_of(vocabulary: &Vocabulary, token: u32) -> &[u8] {
    vocabulary.token_bytes(token).unwrap_or_default()
}

/// JSON has no minus infinity.
fn finite(logprob: f32) -> f32 {
    logprob.max(LOGPROB_MIN)
}

/// A token's text, or its bytes as OpenAI spells them if they are no text by themselves.
fn spelled(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |s, b| s + &format!("\\x{b:02x}")),
    }
}

#[cfg(test)]
mod tests {
    use super::spelled;

    #[test]
    fn half_a_character_is_spelled_in_bytes() {
        assert_eq!(spelled("é".as_bytes()), "é");
        assert_eq!(spelled(b"\xe2\x82"), "bytes:\\xe2\\x82");
    }
}
