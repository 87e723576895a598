//! Splits text into the words that byte-pair merges stay inside.
//!
//! `tokenizer.ggml.pre` names the rule. The rules are llama.cpp's (`llama-vocab.cpp`): each is
//! a list of regexes, applied one after the other; a match of one becomes a piece, and so does
//! the gap before it, and the next regex works inside each piece by itself.

use tokenizers::utils::SysRegex;

use crate::error::{Error, Result};

const CONTRACTIONS: &str = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";
/// GPT-2's pattern. llama.cpp's lacks the last alternative and takes what is left between
/// matches as pieces, which comes to the same; with it the pattern covers every text, so that
/// a gap shows that the regex engine gave up.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const WORDS: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+";
const REST: &str = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// One regex of a rule.
#[derive(Debug)]
struct Pattern {
    regex: SysRegex,
    /// It matches everywhere, so a gap between matches is a failure of the engine.
    covers: bool,
}

/// A rule for splitting text into words.
#[derive(Debug)]
pub struct PreTokenizer {
    patterns: Vec<Pattern>,
    /// A word that is itself a token is that token, whatever the merges say.
    pub ignore_merges: bool,
    /// Whether BOS is added when the file does not say.
    pub add_bos: bool,
}

/// Names of `tokenizer.ggml.pre` that are supported.
pub const SUPPORTED: &[&str] = &[
    "default",
    "gpt-2",
    "phi-2",
    "mpt",
    "olmo",
    "exaone4",
    "trillion",
    "jais",
    "smollm",
    "starcoder",
    "refact",
    "command-r",
    "codeshell",
    "exaone",
    "minerva-7b",
    "falcon",
    "qwen2",
    "deepseek-r1-qwen",
    "kormo",
    "megrez",
    "stablelm2",
    "hunyuan",
    "solar-open",
    "qwen35",
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "dbrx",
    "smaug-bpe",
    "glm4",
    "chatglm-bpe",
    "seed-coder",
    "deepseek-coder",
    "deepseek-v3",
];

impl PreTokenizer {
    /// The rule named `pre`; a file that names none gets llama.cpp's "default".
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a name that is not in [`SUPPORTED`].
    pub fn new(pre: Option<&str>) -> Result<Self> {
        let name = pre.filter(|name| !name.is_empty()).unwrap_or("default");
        let mut rule = PreTokenizer { patterns: Vec::new(), ignore_merges: false, add_bos: false };
        // (regex, covers every text)
        let patterns: Vec<(String, bool)> = match name {
            "default" => vec![
                (r"[\p{P}\$\+<=>\^~\|]+".into(), false),
                (GPT2.into(), true),
                (r"\p{N}+".into(), false),
                ("[0-9][0-9][0-9]".into(), false),
            ],
            "gpt-2" | "phi-2" | "mpt" | "olmo" | "exaone4" | "trillion" | "jais" => {
                vec![(GPT2.into(), true)]
            }
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone"
            | "minerva-7b" => vec![(r"\p{N}".into(), false), (GPT2.into(), true)],
            "falcon" => vec![
                (r"[\p{P}\$\+<=>\^~\|`]+".into(), false),
                (GPT2.into(), true),
                ("[0-9][0-9][0-9]".into(), false),
            ],
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "megrez" | "stablelm2" | "hunyuan"
            | "solar-open" => vec![(format!(r"{CONTRACTIONS}|{WORDS}|\p{{N}}|{REST}"), true)],
            "qwen35" => vec![(
                format!(
                    r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                ),
                true,
            )],
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "pixtral" | "midm-2.0" | "lfm2" => {
                rule.ignore_merges = true;
                rule.add_bos = true;
                vec![(format!(r"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{REST}"), true)]
            }
            "dbrx" | "smaug-bpe" | "glm4" | "chatglm-bpe" => {
                vec![(format!(r"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{REST}"), true)]
            }
            "seed-coder" => vec![(
                format!(
                    r"{CONTRACTIONS}|{WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
                ),
                true,
            )],
            "deepseek-coder" => vec![
                (r"[\r\n]".into(), false),
                (r"\s?\p{L}+".into(), false),
                (r"\s?\p{P}+".into(), false),
                (CJK_AND_HANGUL.into(), false),
                (r"\p{N}".into(), false),
            ],
            "deepseek-v3" => vec![
                (r"\p{N}{1,3}".into(), false),
                (r"[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+".into(), false),
                (DEEPSEEK_V3.into(), false),
            ],
            unknown => {
                return Err(Error::Unsupported {
                    key: "tokenizer.ggml.pre",
                    got: unknown.to_owned(),
                    supported: SUPPORTED.join(", "),
                });
            }
        };
        rule.patterns = patterns
            .into_iter()
            .map(|(regex, covers)| Pattern {
                regex: SysRegex::new(&regex).expect("the patterns above are valid"),
                covers,
            })
            .collect();
        Ok(rule)
    }

    /// The words of `text`, in order; joined they are `text`.
    ///
    /// # Errors
    /// [`Error::InputTooComplex`] if the regex engine ran into its own limits.
    pub fn split<'t>(&self, text: &'t str) -> Result<Vec<&'t str>> {
        let mut pieces = vec![text];
        pieces.retain(|piece| !piece.is_empty());
        for pattern in &self.patterns {
            let mut next = Vec::with_capacity(pieces.len());
            for piece in pieces {
                pattern.split_into(piece, &mut next)?;
            }
            pieces = next;
        }
        Ok(pieces)
    }
}

impl Pattern {
    fn split_into<'t>(&self, piece: &'t str, out: &mut Vec<&'t str>) -> Result<()> {
        let mut end_of_last = 0;
        for (start, end) in self.regex.find_iter(piece) {
            if self.covers && start != end_of_last {
                break;
            }
            if start > end_of_last {
                out.push(&piece[end_of_last..start]);
            }
            if end > start {
                out.push(&piece[start..end]);
            }
            end_of_last = end;
        }
        if end_of_last < piece.len() {
            if self.covers {
                return Err(Error::InputTooComplex { at: end_of_last, bytes: piece.len() });
            }
            out.push(&piece[end_of_last..]);
        }
        Ok(())
    }
}

const CJK_AND_HANGUL: &str = r"[\u{4e00}-\u{9fa5}\u{0800}-\u{4e00}\u{ac00}-\u{d7ff}]+";
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pre: &str, text: &str, expected: &[&str]) {
        let rule = PreTokenizer::new(Some(pre)).unwrap();
        assert_eq!(rule.split(text).unwrap(), expected, "{pre} on {text:?}");
    }

    #[test]
    fn gpt2_keeps_a_leading_space_with_its_word() {
        check(
            "gpt-2",
            "I'm  here, 2024\n\nok ",
            &["I", "'m", " ", " here", ",", " 2024", "\n", "\n", "ok", " "],
        );
        // A newline alone before a word belongs to no alternative of llama.cpp's pattern.
        check("gpt-2", "a\nb", &["a", "\n", "b"]);
    }

    #[test]
    fn smollm_takes_digits_one_by_one() {
        check("smollm", "in 2024: x12", &["in", " ", "2", "0", "2", "4", ":", " x", "1", "2"]);
    }

    #[test]
    fn qwen2_and_llama3_differ_in_digits() {
        check(
            "qwen2",
            "HE'LL pay $1234\r\n  now",
            &["HE", "'LL", " pay", " $", "1", "2", "3", "4", "\r\n", " ", " now"],
        );
        check("llama-bpe", "pay 12345.6!\n\n", &["pay", " ", "123", "45", ".", "6", "!\n\n"]);
    }

    #[test]
    fn the_rest_split_as_their_regexes_say() {
        check("default", "a<b 1234", &["a", "<", "b", " ", "123", "4"]);
        check("falcon", "a`b 1234", &["a", "`", "b", " ", "123", "4"]);
        check("deepseek-coder", "if x1:\n 東京", &["if", " x", "1", ":", "\n", " ", "東京"]);
        check("deepseek-v3", "a.b 1234\n", &["a", ".b", " ", "123", "4", "\n"]);
        check("qwen35", "a\u{301}b", &["a\u{301}b"]);
        check("seed-coder", "a!\n", &["a", "!", "\n"]);
    }

    #[test]
    fn every_supported_name_covers_every_text() {
        let text = "Ünï — 12,345 'tis\r\n\t x\u{0}\u{301}  \u{1f680}東京의 <|im_end|>  ";
        for name in SUPPORTED {
            let rule = PreTokenizer::new(Some(name)).unwrap();
            assert_eq!(rule.split(text).unwrap().concat(), text, "{name}");
        }
    }

    #[test]
    fn an_unknown_name_is_refused_by_name() {
        let error = PreTokenizer::new(Some("martian")).unwrap_err();
        assert!(error.to_string().contains("\"martian\""), "{error}");
        assert!(error.to_string().contains("tokenizer.ggml.pre"), "{error}");
    }

    #[test]
    fn long_runs_are_linear_and_complete() {
        for run in [" ", "a", "\n", "!", "'", "\u{3000}", " \n", "1", "é"] {
            let text = run.repeat(crate::INPUT_BYTES_MAX / run.len());
            for pre in ["gpt-2", "qwen2", "llama-bpe", "smollm", "deepseek-v3"] {
                let rule = PreTokenizer::new(Some(pre)).unwrap();
                let length: usize = rule.split(&text).unwrap().iter().map(|w| w.len()).sum();
                assert_eq!(length, text.len(), "{pre} on a run of {run:?}");
            }
        }
    }
}
