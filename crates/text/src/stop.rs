//! Stop strings, found across the borders of tokens.

use crate::error::{Error, Result};

/// Stop strings of a request at most; OpenAI allows 4.
pub const STOP_STRINGS_MAX: usize = 16;
/// Bytes of a stop string at most.
pub const STOP_BYTES_MAX: usize = 1024;

/// Looks for stop strings in a stream of text and holds back what could become one.
///
/// The stop string that is complete first wins, the longer of two that end together, and the
/// text ends before it: so the outcome does not depend on how the text is cut into tokens.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// The end of the text so far, as long as it could begin a stop string.
    held: String,
}

impl StopMatcher {
    /// # Errors
    /// [`Error::BadParameter`] for more than [`STOP_STRINGS_MAX`] stop strings, an empty one,
    /// or one of more than [`STOP_BYTES_MAX`] bytes.
    pub fn new(stops: &[String]) -> Result<Self> {
        let bad = |problem: String| Err(Error::BadParameter { name: "stop", problem });
        if stops.len() > STOP_STRINGS_MAX {
            return bad(format!("{} strings, expected at most {STOP_STRINGS_MAX}", stops.len()));
        }
        for stop in stops {
            if stop.is_empty() || stop.len() > STOP_BYTES_MAX {
                let got = stop.len();
                return bad(format!("a string of {got} bytes, expected 1 to {STOP_BYTES_MAX}"));
            }
        }
        Ok(StopMatcher { stops: stops.to_vec(), held: String::new() })
    }

    /// Takes more text; gives what may be shown now, and whether a stop string was found, after
    /// which there is nothing more to show.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let found = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()).map(|at| (at + stop.len(), at)))
            .min();
        if let Some((_, start)) = found {
            self.held.truncate(start);
            return (self.finish(), true);
        }
        let keep = self.stops.iter().map(|stop| begun(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// Ends the text: gives what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes at the end of `text` that begin `stop`, the most there are; never all of `stop`.
fn begun(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest)
        .rev()
        .find(|&bytes| text.as_bytes().ends_with(&stop.as_bytes()[..bytes]))
        .filter(|&bytes| text.is_char_boundary(text.len() - bytes))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        StopMatcher::new(&stops).unwrap()
    }

    fn check(stops: &[&str], pieces: &[&str], expected: &[&str], stopped: bool) {
        let mut matcher = matcher(stops);
        let mut shown = Vec::new();
        let mut found = false;
        for piece in pieces {
            assert!(!found, "text after the stop in {pieces:?}");
            let (text, stop) = matcher.push(piece);
            shown.push(text);
            found = stop;
        }
        shown.push(matcher.finish());
        assert_eq!(shown, expected, "{stops:?} in {pieces:?}");
        assert_eq!(found, stopped, "{stops:?} in {pieces:?}");
    }

    #[test]
    fn a_stop_string_is_found_across_tokens_and_cut_off() {
        check(&["\n\nUser:"], &["Hi", "\n", "\nUs", "er:"], &["Hi", "", "", "", ""], true);
        check(&["END"], &["xEN", "Dy"], &["x", "", ""], true);
        check(&["END"], &["xENDy"], &["x", ""], true);
    }

    #[test]
    fn what_did_not_become_one_is_shown_after_all() {
        check(&["END"], &["E", "N", "X"], &["", "", "ENX", ""], false);
        check(&["END"], &["EN"], &["", "EN"], false);
        check(&["aab"], &["aa", "a", "b"], &["", "a", "", ""], true);
    }

    #[test]
    fn the_first_to_be_complete_wins() {
        check(&["abc", "b"], &["abc"], &["a", ""], true);
        check(&["bc", "abc"], &["xabc"], &["x", ""], true);
        check(&["é!"], &["café", "!"], &["caf", "", ""], true);
        check(&[], &["abc"], &["abc", ""], false);
    }

    #[test]
    fn bad_stop_strings_are_refused_by_name() {
        for stops in [vec!["x".to_owned(); 17], vec![String::new()], vec!["x".repeat(1025)]] {
            let error = StopMatcher::new(&stops).unwrap_err();
            assert!(error.to_string().starts_with("stop: "), "{error}");
        }
    }

    /// The definition, on the whole text.
    fn expected(stops: &[String], text: &str) -> (String, bool) {
        for end in 1..=text.len() {
            let Some(before) = text.get(..end) else { continue };
            let hit = stops.iter().filter(|stop| before.ends_with(stop.as_str())).map(String::len);
            if let Some(longest) = hit.max() {
                return (text[..end - longest].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    proptest! {
        #[test]
        fn cutting_the_text_differently_changes_nothing(
            stops in proptest::collection::vec("[abé]{1,4}", 0..4),
            pieces in proptest::collection::vec("[abcé]{0,4}", 0..12),
        ) {
            let mut matcher = StopMatcher::new(&stops).unwrap();
            let mut shown = String::new();
            let mut found = false;
            for piece in &pieces {
                let (text, stop) = matcher.push(piece);
                shown += &text;
                found = stop;
                if found { break }
            }
            shown += &matcher.finish();
            prop_assert_eq!((shown, found), expected(&stops, &pieces.concat()));
        }
    }
}
