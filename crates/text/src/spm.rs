//! SentencePiece BPE, the `llama` tokenizer of GGUF files (Llama 1 and 2, Mistral, TinyLlama).
//!
//! Starts from characters and keeps joining the neighbours whose joined text is the token with
//! the highest score, the leftmost of equals; what is no token in the end becomes byte tokens.
//! This is llama.cpp's `llm_tokenizer_spm`. It is written out here because the `tokenizers`
//! crate cannot express it exactly: its merges are pairs of tokens with one rank each, whereas
//! here any two neighbours may join, tokens or not, equal scores go by position, and bytes are
//! substituted after the merging instead of before.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use crate::error::{Error, Result};
use crate::vocabulary::{TokenKind, TokenizerData, Vocabulary};

/// Stands for a space in tokens.
pub(crate) const SPACE: char = '\u{2581}';

/// Tokens by text, with scores.
#[derive(Debug)]
pub(crate) struct SentencePiece {
    ids: HashMap<String, u32>,
    scores: Vec<f32>,
    token_bytes_max: usize,
    /// The token for each byte that is in no other token.
    byte_ids: Box<[u32; 256]>,
}

impl SentencePiece {
    /// `ids` by text; hidden tokens are left out, since plain text never means them.
    pub(crate) fn new(
        data: &TokenizerData,
        vocabulary: &Vocabulary,
        mut ids: HashMap<String, u32>,
    ) -> Result<Self> {
        if data.scores.len() != data.tokens.len() {
            return Err(Error::BadVocabulary {
                key: "scores",
                problem: format!("{} for {} tokens", data.scores.len(), data.tokens.len()),
            });
        }
        if let Some(id) = data.scores.iter().position(|score| score.is_nan()) {
            return Err(Error::BadVocabulary {
                key: "scores",
                problem: format!("that of token {id} is not a number"),
            });
        }
        let mut byte_ids = Box::new([0; 256]);
        for (byte, slot) in byte_ids.iter_mut().enumerate() {
            let text = format!("<0x{byte:02X}>");
            let plain =
                u8::try_from(byte).ok().filter(u8::is_ascii).map(|b| char::from(b).to_string());
            *slot = ids
                .get(&text)
                .or_else(|| ids.get(&plain?))
                .copied()
                .or(vocabulary.unknown)
                .ok_or_else(|| Error::BadVocabulary {
                    key: "tokens",
                    problem: format!("no byte token {text} and no unknown token"),
                })?;
        }
        ids.retain(|_, id| {
            let kind = vocabulary.kind(*id).unwrap_or(TokenKind::Undefined);
            !kind.is_hidden() && kind != TokenKind::Byte
        });
        let token_bytes_max = ids.keys().map(String::len).max().unwrap_or(0);
        Ok(SentencePiece { ids, scores: data.scores.clone(), token_bytes_max, byte_ids })
    }

    /// Appends the ids of `text` to `out`, spaces already written as [`SPACE`].
    pub(crate) fn encode(&self, text: &str, out: &mut Vec<u32>) {
        let mut symbols = Symbols::new(text);
        let mut queue = BinaryHeap::new();
        for right in 1..symbols.list.len() {
            queue.extend(self.join(&symbols, right - 1, right));
        }
        while let Some(join) = queue.pop() {
            if !symbols.merge(&join) {
                continue;
            }
            let merged = join.left;
            if let Some(previous) = symbols.list[merged].previous {
                queue.extend(self.join(&symbols, previous, merged));
            }
            if let Some(next) = symbols.list[merged].next {
                queue.extend(self.join(&symbols, merged, next));
            }
        }
        let mut at = (!symbols.list.is_empty()).then_some(0);
        while let Some(index) = at {
            let symbol = symbols.list[index];
            let piece = &text[symbol.start..symbol.end];
            match self.ids.get(piece) {
                Some(&id) => out.push(id),
                None => out.extend(piece.bytes().map(|byte| self.byte_ids[usize::from(byte)])),
            }
            at = symbol.next;
        }
    }

    fn join(&self, symbols: &Symbols<'_>, left: usize, right: usize) -> Option<Join> {
        let (start, end) = (symbols.list[left].start, symbols.list[right].end);
        if end - start > self.token_bytes_max {
            return None;
        }
        let id = *self.ids.get(&symbols.text[start..end])?;
        Some(Join { score: self.scores[id as usize], left, right, bytes: end - start })
    }
}

#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    /// Equal to `start` once joined into its left neighbour.
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// The text's characters as a linked list.
struct Symbols<'t> {
    text: &'t str,
    list: Vec<Symbol>,
}

impl<'t> Symbols<'t> {
    fn new(text: &'t str) -> Self {
        let mut list: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(index, (start, character))| Symbol {
                start,
                end: start + character.len_utf8(),
                previous: index.checked_sub(1),
                next: Some(index + 1),
            })
            .collect();
        if let Some(last) = list.last_mut() {
            last.next = None;
        }
        Symbols { text, list }
    }

    /// Joins two neighbours; false if either has changed since the join was proposed.
    fn merge(&mut self, join: &Join) -> bool {
        let (left, right) = (self.list[join.left], self.list[join.right]);
        let live = left.end > left.start && right.end > right.start;
        if !live || (left.end - left.start) + (right.end - right.start) != join.bytes {
            return false;
        }
        self.list[join.left].end = right.end;
        self.list[join.left].next = right.next;
        self.list[join.right].end = right.start;
        if let Some(next) = right.next {
            self.list[next].previous = Some(join.left);
        }
        true
    }
}

/// A proposal to join two neighbours; the greatest is done first.
#[derive(Debug, Clone, Copy)]
struct Join {
    score: f32,
    left: usize,
    right: usize,
    bytes: usize,
}

impl Ord for Join {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Join {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Join {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Join {}
