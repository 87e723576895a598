//! Text to token ids and back.

use crate::bpe::ByteLevelBpe;
use crate::error::{Error, Result};
use crate::pre_tokenizer::PreTokenizer;
use crate::spm::{SPACE, SentencePiece};
use crate::vocabulary::{Spelling, TokenizerData, Vocabulary};

/// Bytes of a text to tokenize at most: some 200,000 tokens of English, more than any context
/// we serve, and below what the regex engine's own limits allow in one run of spaces.
pub const INPUT_BYTES_MAX: usize = 960 * 1024;

/// What [`Tokenizer::encode`] does with special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// `<|im_end|>` in the text is text. User-defined tokens are parsed all the same.
    AsText,
    /// `<|im_end|>` in the text is that token: for rendered chat templates.
    Parse,
}

#[derive(Debug)]
enum Algorithm {
    Bpe(Box<ByteLevelBpe>),
    SentencePiece(SentencePiece),
}

/// A model's tokenizer, as its file defines it.
#[derive(Debug)]
pub struct Tokenizer {
    vocabulary: Vocabulary,
    algorithm: Algorithm,
    add_bos: bool,
    add_eos: bool,
    add_space_prefix: bool,
}

impl Tokenizer {
    /// Checks the metadata and builds the tokenizer: the cost of some hundred milliseconds for
    /// the largest vocabularies.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another kind of tokenizer or word rule, and
    /// [`Error::BadVocabulary`] for metadata that contradicts itself.
    pub fn new(data: &TokenizerData) -> Result<Self> {
        let tokenizer = match data.model.as_str() {
            "gpt2" => {
                let pre_tokenizer = PreTokenizer::new(data.pre.as_deref())?;
                let add_bos = data.add_bos.unwrap_or(pre_tokenizer.add_bos);
                let (vocabulary, ids) = Vocabulary::new(data, Spelling::ByteLevel)?;
                let algorithm =
                    Algorithm::Bpe(Box::new(ByteLevelBpe::new(data, &ids, pre_tokenizer)?));
                let add_eos = data.add_eos.unwrap_or(false);
                Tokenizer { vocabulary, algorithm, add_bos, add_eos, add_space_prefix: false }
            }
            "llama" => {
                let (vocabulary, ids) = Vocabulary::new(data, Spelling::SentencePiece)?;
                let pieces = SentencePiece::new(data, &vocabulary, ids)?;
                Tokenizer {
                    vocabulary,
                    algorithm: Algorithm::SentencePiece(pieces),
                    add_bos: data.add_bos.unwrap_or(true),
                    add_eos: data.add_eos.unwrap_or(false),
                    add_space_prefix: data.add_space_prefix.unwrap_or(true),
                }
            }
            other => {
                return Err(Error::Unsupported {
                    key: "tokenizer.ggml.model",
                    got: other.to_owned(),
                    supported: "gpt2, llama".to_owned(),
                });
            }
        };
        for (wanted, id, key) in [
            (tokenizer.add_bos, tokenizer.vocabulary.bos, "bos_token_id"),
            (tokenizer.add_eos, tokenizer.vocabulary.eos, "eos_token_id"),
        ] {
            if wanted && id.is_none() {
                let problem = "it is to be added to every text, but is not set".to_owned();
                return Err(Error::BadVocabulary { key, problem });
            }
        }
        Ok(tokenizer)
    }

    /// What each token is.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The ids of a whole prompt, with BOS and EOS where the file asks for them. A rendered
    /// template that begins with BOS gets no second one (llama.cpp's library adds it and
    /// warns, its server strips it).
    ///
    /// # Errors
    /// [`Error::InputTooLong`] past [`INPUT_BYTES_MAX`], [`Error::InputTooComplex`] if the word
    /// rule's regex gives up.
    pub fn encode_prompt(&self, text: &str, special: Special) -> Result<Vec<u32>> {
        let mut ids = self.encode(text, special)?;
        if let Some(bos) = self.vocabulary.bos.filter(|_| self.add_bos)
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        if let Some(eos) = self.vocabulary.eos.filter(|_| self.add_eos)
            && ids.last() != Some(&eos)
        {
            ids.push(eos);
        }
        Ok(ids)
    }

    /// The ids of `text` alone.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_prompt`].
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>> {
        if text.len() > INPUT_BYTES_MAX {
            return Err(Error::InputTooLong { got: text.len(), limit: INPUT_BYTES_MAX });
        }
        let mut ids = Vec::with_capacity(text.len() / 4);
        let mut after_special = true;
        for fragment in self.fragments(text, special) {
            match fragment {
                Fragment::Token(id) => {
                    ids.push(id);
                    after_special = true;
                }
                Fragment::Text(piece) => {
                    self.encode_fragment(piece, after_special, &mut ids)?;
                    after_special = false;
                }
            }
        }
        Ok(ids)
    }

    fn encode_fragment(&self, text: &str, first: bool, ids: &mut Vec<u32>) -> Result<()> {
        match &self.algorithm {
            Algorithm::Bpe(bpe) => bpe.encode(text, ids),
            Algorithm::SentencePiece(pieces) => {
                let prefix = if self.add_space_prefix && first { " " } else { "" };
                let spaced = format!("{prefix}{text}").replace(' ', SPACE.encode_utf8(&mut [0; 4]));
                pieces.encode(&spaced, ids);
                Ok(())
            }
        }
    }

    /// Cuts special tokens out of a text: the longest first, each everywhere it occurs in what
    /// the longer ones left, as llama.cpp does.
    fn fragments<'t>(&self, text: &'t str, special: Special) -> Vec<Fragment<'t>> {
        let mut fragments = vec![Fragment::Text(text)];
        fragments.retain(|_| !text.is_empty());
        for (id, needle) in &self.vocabulary.specials {
            let hidden = self.vocabulary.kind(*id).is_ok_and(|kind| kind.is_hidden());
            if (hidden && special == Special::AsText) || !text.contains(needle.as_str()) {
                continue;
            }
            let mut next = Vec::with_capacity(fragments.len() + 2);
            for fragment in fragments {
                match fragment {
                    Fragment::Token(_) => next.push(fragment),
                    Fragment::Text(piece) => cut(piece, needle, *id, &mut next),
                }
            }
            fragments = next;
        }
        fragments
    }

    /// The text of `ids`, hidden tokens left out, bytes that are no UTF-8 replaced; the inverse
    /// of [`Tokenizer::encode`], so the space that it put before a text is taken off.
    ///
    /// # Errors
    /// [`Error::UnknownToken`].
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let mut bytes = Vec::new();
        for &id in ids {
            bytes.extend_from_slice(self.vocabulary.text_bytes(id)?);
        }
        let prefix = self.add_space_prefix && bytes.first() == Some(&b' ');
        Ok(String::from_utf8_lossy(&bytes[usize::from(prefix)..]).into_owned())
    }
}

enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

fn cut<'t>(mut piece: &'t str, needle: &str, id: u32, out: &mut Vec<Fragment<'t>>) {
    while let Some(at) = piece.find(needle) {
        if at > 0 {
            out.push(Fragment::Text(&piece[..at]));
        }
        out.push(Fragment::Token(id));
        piece = &piece[at + needle.len()..];
    }
    if !piece.is_empty() {
        out.push(Fragment::Text(piece));
    }
}
