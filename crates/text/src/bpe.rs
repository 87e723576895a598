//! Byte-level BPE, the `gpt2` tokenizer of GGUF files (GPT-2, Llama 3, Qwen2, SmolLM2, ...).
//!
//! Text is split into words ([`crate::pre_tokenizer`]), a word's bytes are written in GPT-2's
//! alphabet of 256 printable characters, and neighbours are merged, best rank first. The
//! merging is the `tokenizers` crate's.

use std::collections::{HashMap, HashSet};

use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab};

use crate::error::{Error, Result};
use crate::pre_tokenizer::PreTokenizer;
use crate::vocabulary::{MERGES_MAX, TokenizerData};

/// The BPE model and its word rule.
#[derive(Debug)]
pub(crate) struct ByteLevelBpe {
    pre_tokenizer: PreTokenizer,
    model: BPE,
    /// An id past the vocabulary that marks bytes which no token has.
    missing: u32,
}

impl ByteLevelBpe {
    pub(crate) fn new(
        data: &TokenizerData,
        ids: &HashMap<String, u32>,
        pre_tokenizer: PreTokenizer,
    ) -> Result<Self> {
        let merges = read_merges(&data.merges, ids)?;
        let mut vocab: Vocab = ids.iter().map(|(text, &id)| (text.clone(), id)).collect();
        // llama.cpp drops bytes that the vocabulary lacks (SmolLM2's lacks 21), and does not
        // merge across them. The crate would drop them first and then merge, so they become a
        // token of their own, which no merge names, and which is dropped at the end.
        let missing = data.tokens.len() as u32;
        let mut name = "\u{0}missing".to_owned();
        while vocab.contains_key(&name) {
            name.push('\u{0}');
        }
        vocab.insert(name.clone(), missing);
        let model = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .unk_token(name)
            .ignore_merges(pre_tokenizer.ignore_merges)
            // The crate's caches are per thread and outlive the model: memory without an owner.
            .cache_capacity(0)
            .build()
            .map_err(|error| broken(error.to_string()))?;
        Ok(ByteLevelBpe { pre_tokenizer, model, missing })
    }

    /// Appends the ids of `text` to `out`.
    pub(crate) fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<()> {
        let mut word = String::new();
        for piece in self.pre_tokenizer.split(text)? {
            word.clear();
            word.extend(piece.bytes().map(character_of));
            let tokens = self.model.tokenize(&word).map_err(|error| broken(error.to_string()))?;
            out.extend(tokens.iter().map(|token| token.id).filter(|&id| id != self.missing));
        }
        Ok(())
    }
}

fn broken(problem: String) -> Error {
    Error::BadVocabulary { key: "merges", problem }
}

/// Splits "left right" at the first space that is not the first character, as llama.cpp does;
/// a pair that comes twice keeps its first, better rank.
fn read_merges(merges: &[String], ids: &HashMap<String, u32>) -> Result<Vec<(String, String)>> {
    if merges.len() > MERGES_MAX {
        return Err(broken(format!("{} merges, expected at most {MERGES_MAX}", merges.len())));
    }
    let mut seen = HashSet::with_capacity(merges.len());
    let mut pairs = Vec::with_capacity(merges.len());
    for (index, merge) in merges.iter().enumerate() {
        let Some((left, right)) = merge
            .char_indices()
            .skip(1)
            .find(|&(_, character)| character == ' ')
            .map(|(at, _)| (&merge[..at], &merge[at + 1..]))
        else {
            return Err(broken(format!("merge {index} is {merge:?}, expected two tokens")));
        };
        let joined = format!("{left}{right}");
        for text in [left, right, &joined] {
            if !ids.contains_key(text) {
                return Err(broken(format!("merge {index} ({merge:?}) needs {text:?}, no token")));
            }
        }
        if seen.insert((left, right)) {
            pairs.push((left.to_owned(), right.to_owned()));
        }
    }
    Ok(pairs)
}

/// Bytes that GPT-2's alphabet writes as themselves.
fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// GPT-2's character for a byte: printable Latin-1 as itself, the 68 others from U+0100 on
/// (<https://github.com/openai/gpt-2/blob/master/src/encoder.py>).
pub(crate) fn character_of(byte: u8) -> char {
    let code = if is_printable(byte) {
        u32::from(byte)
    } else {
        let rank = match byte {
            0..=0x20 => u32::from(byte),
            0x7f..=0xa0 => 0x21 + u32::from(byte - 0x7f),
            _ => 0x43, // 0xad, the only one left
        };
        0x100 + rank
    };
    char::from_u32(code).expect("below U+0144")
}

/// The inverse of [`character_of`].
pub(crate) fn byte_of(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ 0..=0xff => Some(code as u8).filter(|&byte| is_printable(byte)),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121) as u8 + 0x7f),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_gpt2s() {
        for (byte, character) in
            [(b' ', 'Ġ'), (b'\n', 'Ċ'), (b'a', 'a'), (0x7f, 'ġ'), (0xa0, 'ł'), (0xad, 'Ń')]
        {
            assert_eq!(character_of(byte), character);
        }
        for byte in 0..=255 {
            assert_eq!(byte_of(character_of(byte)), Some(byte));
        }
        assert_eq!(byte_of('\u{144}'), None);
        assert_eq!(byte_of(' '), None);
    }
}
