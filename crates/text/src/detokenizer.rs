//! Bytes to text as they come, never half a character.

/// Turns a stream of bytes into text: what is whole is given out at once, the beginning of a
/// character waits for its rest, and bytes that are no UTF-8 become U+FFFD, the same ones as
/// [`String::from_utf8_lossy`] gives for the whole stream.
#[derive(Debug, Clone, Default)]
pub struct Detokenizer {
    /// The beginning of a character: at most 3 bytes.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// Takes the bytes of the next token and gives the text that is now certain.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest: &[u8] = &self.pending;
        let kept = loop {
            match std::str::from_utf8(rest) {
                Ok(whole) => {
                    text.push_str(whole);
                    break 0;
                }
                Err(error) => {
                    let (whole, after) = rest.split_at(error.valid_up_to());
                    text.push_str(std::str::from_utf8(whole).unwrap_or_default());
                    let Some(invalid) = error.error_len() else { break after.len() };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &after[invalid..];
                }
            }
        };
        let done = self.pending.len() - kept;
        self.pending.drain(..done);
        text
    }

    /// Ends the stream: a character that was begun becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let begun = !self.pending.is_empty();
        self.pending.clear();
        if begun { char::REPLACEMENT_CHARACTER.to_string() } else { String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let mut detokenizer = Detokenizer::default();
        assert_eq!(detokenizer.push(b"a\xf0\x9f"), "a");
        assert_eq!(detokenizer.push(b"\x9a"), "");
        assert_eq!(detokenizer.push(b"\x80b"), "\u{1f680}b");
        assert_eq!(detokenizer.push(b"\xe6\x9d"), "");
        assert_eq!(detokenizer.finish(), "\u{fffd}");
        assert_eq!(detokenizer.finish(), "");
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_lossy_text_of_the_whole(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..40),
                any::<String>().prop_map(String::into_bytes),
            ],
            cuts in proptest::collection::vec(1usize..5, 0..40),
        ) {
            let mut detokenizer = Detokenizer::default();
            let mut text = String::new();
            let mut rest = bytes.as_slice();
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                text += &detokenizer.push(now);
                rest = later;
            }
            text += &detokenizer.push(rest);
            text += &detokenizer.finish();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
