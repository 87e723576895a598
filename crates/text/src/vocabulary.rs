//! The vocabulary: what each token is, which bytes it stands for, which tokens end a text.
//!
//! Follows llama.cpp's reading of the metadata (`llama-vocab.cpp`), but refuses what
//! contradicts itself where llama.cpp warns and guesses.

use std::collections::{BTreeSet, HashMap};

use crate::error::{Error, Result};

/// Tokens of a vocabulary at most.
pub const VOCABULARY_MAX: usize = 1 << 20;
/// Merges of a vocabulary at most.
pub const MERGES_MAX: usize = 1 << 21;
/// Bytes of one token's text at most.
pub const TOKEN_BYTES_MAX: usize = 4096;
/// Special tokens of a vocabulary at most: each one present in a text costs a pass over it.
pub const SPECIAL_TOKENS_MAX: usize = 16_384;

/// What the GGUF metadata says of the tokenizer; keys are under `tokenizer.`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenizerData {
    /// `ggml.model`: "gpt2" (byte-level BPE) or "llama" (SentencePiece).
    pub model: String,
    /// `ggml.pre`: the rule that splits text into words, for "gpt2".
    pub pre: Option<String>,
    /// `ggml.tokens`: the text of each id, V of them.
    pub tokens: Vec<String>,
    /// `ggml.token_type`: V of them, or none (all normal).
    pub token_types: Vec<i32>,
    /// `ggml.scores`: V of them; needed by "llama" only.
    pub scores: Vec<f32>,
    /// `ggml.merges`: "left right", best first; for "gpt2" only.
    pub merges: Vec<String>,
    /// `ggml.bos_token_id`: begins a text.
    pub bos: Option<u32>,
    /// `ggml.eos_token_id`: ends a text.
    pub eos: Option<u32>,
    /// `ggml.eot_token_id`: ends a turn.
    pub eot: Option<u32>,
    /// `ggml.eom_token_id`: ends a message that waits for a tool.
    pub eom: Option<u32>,
    /// `ggml.unknown_token_id`.
    pub unknown: Option<u32>,
    /// `ggml.padding_token_id`.
    pub padding: Option<u32>,
    /// `ggml.add_bos_token`; by default true for "llama" and Llama 3, else false.
    pub add_bos: Option<bool>,
    /// `ggml.add_eos_token`; false by default.
    pub add_eos: Option<bool>,
    /// `ggml.add_space_prefix`; true by default, used by "llama" only.
    pub add_space_prefix: Option<bool>,
    /// `chat_template`: a Jinja template.
    pub chat_template: Option<String>,
}

/// What a token is; the numbers are GGUF's token types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// 1: a piece of text.
    Normal,
    /// 2: stands for what the vocabulary lacks.
    Unknown,
    /// 3: steers the model (`<|im_end|>`); never part of the text.
    Control,
    /// 4: text that is always this one token.
    UserDefined,
    /// 5: never occurs.
    Unused,
    /// 6: one byte, written `<0x0A>`.
    Byte,
    /// 0, and any other number.
    Undefined,
}

impl TokenKind {
    fn from_gguf(number: i32) -> Self {
        match number {
            1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => TokenKind::Undefined,
        }
    }

    /// Not shown in generated text, and not parsed from text unless asked to.
    pub fn is_hidden(self) -> bool {
        matches!(self, TokenKind::Control | TokenKind::Unknown)
    }
}

/// How normal tokens are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// One character of GPT-2's alphabet per byte.
    ByteLevel,
    /// Plain text with U+2581 for a space.
    SentencePiece,
}

/// Texts of tokens that end a generation, whatever type the file gives them.
const END_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];
/// Tokens of fill-in-the-middle prompts that end a generation: the first of each row that the
/// vocabulary has (padding, repository, file separator).
const END_FIM_TEXTS: &[&[&str]] = &[
    &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    &["<|file_sep|>"],
];
/// Other tokens of such prompts, which are control tokens whatever type the file gives them.
const FIM_TEXTS: &[&[&str]] = &[
    &["<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>"],
    &["<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>"],
    &["<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>"],
];

/// What each of the V tokens is.
#[derive(Debug)]
pub struct Vocabulary {
    kinds: Vec<TokenKind>,
    /// The bytes of all tokens, one after the other; token i's end at `ends[i]`.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Control, unknown and user-defined tokens with their text, longest first.
    pub(crate) specials: Vec<(u32, String)>,
    end_ids: BTreeSet<u32>,
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Stands for what the vocabulary lacks.
    pub unknown: Option<u32>,
    /// Fills a batch.
    pub padding: Option<u32>,
}

fn bad(key: &'static str, problem: impl Into<String>) -> Error {
    Error::BadVocabulary { key, problem: problem.into() }
}

impl Vocabulary {
    /// Checks the metadata; also gives the ids by text.
    pub(crate) fn new(
        data: &TokenizerData,
        spelling: Spelling,
    ) -> Result<(Self, HashMap<String, u32>)> {
        let count = data.tokens.len();
        if count == 0 || count > VOCABULARY_MAX {
            return Err(bad("tokens", format!("{count} tokens, expected 1 to {VOCABULARY_MAX}")));
        }
        if !data.token_types.is_empty() && data.token_types.len() != count {
            return Err(bad(
                "token_type",
                format!("{} entries for {count} tokens", data.token_types.len()),
            ));
        }
        let ids = ids_by_text(&data.tokens)?;
        let mut kinds: Vec<TokenKind> = if data.token_types.is_empty() {
            vec![TokenKind::Normal; count]
        } else {
            data.token_types.iter().map(|&number| TokenKind::from_gguf(number)).collect()
        };

        let by_default = |id: Option<u32>, default: u32| match spelling {
            // llama.cpp's defaults for SentencePiece; it has some for BPE too, which are right
            // for no model we know, so there a missing id stays missing.
            Spelling::SentencePiece => id.or(((default as usize) < count).then_some(default)),
            Spelling::ByteLevel => id,
        };
        let bos = by_default(data.bos, 1);
        let eos = by_default(data.eos, 2);
        let unknown = by_default(data.unknown, 0);
        for (key, id) in [
            ("bos_token_id", bos),
            ("eos_token_id", eos),
            ("eot_token_id", data.eot),
            ("eom_token_id", data.eom),
            ("unknown_token_id", unknown),
            ("padding_token_id", data.padding),
        ] {
            if let Some(id) = id.filter(|&id| id as usize >= count) {
                return Err(bad(key, format!("{id}, but there are {count} tokens")));
            }
        }

        let mut end_ids: BTreeSet<u32> = [eos, data.eot, data.eom].into_iter().flatten().collect();
        let first_of = |row: &[&str]| row.iter().find_map(|&text| ids.get(text).copied());
        for id in END_TEXTS.iter().filter_map(|&text| ids.get(text).copied()) {
            end_ids.insert(id);
            kinds[id as usize] = TokenKind::Control;
        }
        for id in END_FIM_TEXTS.iter().filter_map(|row| first_of(row)) {
            end_ids.insert(id);
            kinds[id as usize] = TokenKind::Control;
        }
        for id in FIM_TEXTS.iter().filter_map(|row| first_of(row)) {
            kinds[id as usize] = TokenKind::Control;
        }

        let mut specials: Vec<(u32, String)> = (0..count as u32)
            .filter(|&id| {
                let kind = kinds[id as usize];
                kind.is_hidden() || kind == TokenKind::UserDefined
            })
            .filter(|&id| !data.tokens[id as usize].is_empty())
            .map(|id| (id, data.tokens[id as usize].clone()))
            .collect();
        if specials.len() > SPECIAL_TOKENS_MAX {
            return Err(bad(
                "token_type",
                format!("{} special tokens, expected at most {SPECIAL_TOKENS_MAX}", specials.len()),
            ));
        }
        specials.sort_by_key(|(_, text)| std::cmp::Reverse(text.len()));

        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(count);
        for (text, &kind) in data.tokens.iter().zip(&kinds) {
            push_token_bytes(text, kind, spelling, &mut bytes)?;
            ends.push(bytes.len());
        }
        let padding = data.padding;
        let vocabulary =
            Vocabulary { kinds, bytes, ends, specials, end_ids, bos, eos, unknown, padding };
        Ok((vocabulary, ids))
    }

    /// V.
    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Never: a vocabulary has at least one token.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// What token `id` is.
    ///
    /// # Errors
    /// [`Error::UnknownToken`].
    pub fn kind(&self, id: u32) -> Result<TokenKind> {
        self.kinds
            .get(id as usize)
            .copied()
            .ok_or(Error::UnknownToken { id, vocabulary: self.len() })
    }

    /// The bytes that token `id` stands for, special tokens' text included. They need not be
    /// whole characters.
    ///
    /// # Errors
    /// [`Error::UnknownToken`].
    pub fn token_bytes(&self, id: u32) -> Result<&[u8]> {
        self.kind(id)?;
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        Ok(&self.bytes[start..self.ends[id]])
    }

    /// The bytes that token `id` adds to a text: none for hidden ones (control, unknown).
    ///
    /// # Errors
    /// [`Error::UnknownToken`].
    pub fn text_bytes(&self, id: u32) -> Result<&[u8]> {
        Ok(if self.kind(id)?.is_hidden() { &[] } else { self.token_bytes(id)? })
    }

    /// Whether token `id` ends a generation: the file's end of text, turn or message, and
    /// tokens with the texts that llama.cpp takes for such.
    pub fn is_end(&self, id: u32) -> bool {
        self.end_ids.contains(&id)
    }

    /// All tokens that end a generation, ascending.
    pub fn end_ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.end_ids.iter().copied()
    }
}

fn ids_by_text(tokens: &[String]) -> Result<HashMap<String, u32>> {
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, text) in tokens.iter().enumerate() {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(bad(
                "tokens",
                format!("token {id} has {} bytes, expected at most {TOKEN_BYTES_MAX}", text.len()),
            ));
        }
        // Some files leave tokens empty; nothing in a text can be such a token.
        if text.is_empty() {
            continue;
        }
        if let Some(other) = ids.insert(text.clone(), id as u32) {
            return Err(bad("tokens", format!("{text:?} is both token {other} and token {id}")));
        }
    }
    Ok(ids)
}

fn push_token_bytes(
    text: &str,
    kind: TokenKind,
    spelling: Spelling,
    out: &mut Vec<u8>,
) -> Result<()> {
    match kind {
        TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined => {
            out.extend_from_slice(text.as_bytes());
        }
        TokenKind::Normal => match spelling {
            Spelling::ByteLevel => {
                for character in text.chars() {
                    match crate::bpe::byte_of(character) {
                        Some(byte) => out.push(byte),
                        None => out.extend_from_slice(character.to_string().as_bytes()),
                    }
                }
            }
            Spelling::SentencePiece => {
                out.extend_from_slice(text.replace('\u{2581}', " ").as_bytes());
            }
        },
        TokenKind::Byte => match byte_token(text) {
            Some(byte) => out.push(byte),
            None => {
                return Err(bad(
                    "tokens",
                    format!("byte token {text:?}, expected <0x00> to <0xFF>"),
                ));
            }
        },
        TokenKind::Unused | TokenKind::Undefined => {}
    }
    Ok(())
}

/// The byte of a token written `<0x0A>`.
fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let hexadecimal = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    hexadecimal.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}
