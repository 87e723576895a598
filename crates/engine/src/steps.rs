//! What a step may be, and how its rows are cut into passes: the same for every backend.

use litemap::LiteMap;
use numerics::POSITIONS_MAX;
use numerics::finite::{NOT_FINITE, magnitude_bits};

use crate::types::{Input, Segment, StepError};

/// Rows of one step, over all its segments; a longer step is a [`StepError::Shape`].
pub const STEP_ROWS_MAX: usize = 4096;

/// Rows of one step that may want logits: V floats each; more is a [`StepError::Shape`].
pub const STEP_LOGITS_ROWS_MAX: usize = 512;

/// Consecutive rows of one session in a pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) session: u64,
    /// Position of the first row.
    pub(crate) position: u32,
    /// First row in the pass.
    pub(crate) start: usize,
    pub(crate) rows: usize,
    /// How many of the last rows want logits.
    pub(crate) logits_rows: usize,
}

/// What a step runs through, as far as its shape matters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepShape {
    pub(crate) has_embedding: bool,
    pub(crate) has_layers: bool,
    pub(crate) has_head: bool,
    /// D.
    pub(crate) width: usize,
    /// V.
    pub(crate) vocab: u32,
}

impl StepShape {
    /// Checks everything about a step that does not need the cache; the rows in all.
    pub(crate) fn check(&self, segments: &[Segment], input: Input<'_>) -> Result<usize, StepError> {
        let shape = |what: String| Err(StepError::Shape(what));
        let mut seen: LiteMap<_, ()> = LiteMap::new();
        let (mut rows, mut logits_rows) = (0usize, 0usize);
        for s in segments {
            if s.rows == 0 || seen.insert(s.session, ()).is_some() {
                return shape(format!("session {} has no rows or occurs twice", s.session));
            }
            if self.has_head && s.logits_rows > s.rows {
                let (wanted, rows) = (s.logits_rows, s.rows);
                return shape(format!(
                    "session {} wants logits of {wanted} rows of {rows}",
                    s.session
                ));
            }
            let end = u64::from(s.position) + u64::from(s.rows);
            if self.has_layers && end > u64::from(POSITIONS_MAX) {
                return shape(format!("session {} would reach position {end}", s.session));
            }
            rows = rows.saturating_add(s.rows as usize);
            logits_rows = logits_rows.saturating_add(s.logits_rows as usize);
        }
        if rows == 0 || rows > STEP_ROWS_MAX {
            return shape(format!("{rows} rows, a step has 1 to {STEP_ROWS_MAX}"));
        }
        if self.has_head && logits_rows > STEP_LOGITS_ROWS_MAX {
            let max = STEP_LOGITS_ROWS_MAX;
            return shape(format!("{logits_rows} rows want logits, at most {max} may"));
        }
        match (input, self.has_embedding) {
            (Input::Tokens(tokens), true) => self.check_tokens(segments, tokens, rows)?,
            (Input::Hidden(hidden), false) => self.check_hidden(segments, hidden, rows)?,
            (Input::Tokens(_), false) => return shape("token ids, but no embedding here".into()),
            (Input::Hidden(_), true) => {
                return shape("a hidden state, but the embedding is here".into());
            }
        }
        Ok(rows)
    }

    fn check_tokens(
        &self,
        segments: &[Segment],
        tokens: &[u32],
        rows: usize,
    ) -> Result<(), StepError> {
        if tokens.len() != rows {
            return Err(StepError::Shape(format!("{} token ids for {rows} rows", tokens.len())));
        }
        let vocab = self.vocab;
        match tokens.iter().position(|&t| t >= vocab) {
            None => Ok(()),
            Some(row) => {
                let (session, token) = (locate(segments, row).0, tokens[row]);
                Err(StepError::Token { session, token, vocab })
            }
        }
    }

    fn check_hidden(
        &self,
        segments: &[Segment],
        hidden: &[f32],
        rows: usize,
    ) -> Result<(), StepError> {
        let width = self.width;
        if hidden.len() != rows * width {
            let got = hidden.len();
            return Err(StepError::Shape(format!("{got} values for {rows} rows of {width}")));
        }
        match first_not_finite(hidden) {
            None => Ok(()),
            Some(at) => Err(fault_at(segments, at / width)),
        }
    }
}

/// Index of the first value that is infinite or NaN.
pub(crate) fn first_not_finite(values: &[f32]) -> Option<usize> {
    values.iter().position(|&x| magnitude_bits(x) >= NOT_FINITE)
}

/// The fault of a step's row.
pub(crate) fn fault_at(segments: &[Segment], row: usize) -> StepError {
    let (session, position) = locate(segments, row);
    StepError::NumericFault { session, position }
}

/// The session and position of a step's row.
fn locate(segments: &[Segment], row: usize) -> (u64, u32) {
    let mut first = 0;
    for s in segments {
        if row < first + s.rows as usize {
            return (s.session, s.position.saturating_add((row - first) as u32));
        }
        first += s.rows as usize;
    }
    unreachable!("row {row} is one of the step's {first}")
}

/// The segments' rows in passes of at most `rows_max`, of which `kept_max` want logits; both
/// are at least 1.
pub(crate) fn passes(segments: &[Segment], rows_max: usize, kept_max: usize) -> Vec<Vec<Run>> {
    let mut passes = vec![Vec::new()];
    let (mut filled, mut kept) = (0, 0);
    for s in segments {
        let (mut done, total) = (0, s.rows as usize);
        let silent = total.saturating_sub(s.logits_rows as usize); // rows without logits
        while done < total {
            if filled == rows_max || (kept == kept_max && done >= silent) {
                passes.push(Vec::new());
                (filled, kept) = (0, 0);
            }
            let allowed = silent.saturating_sub(done).saturating_add(kept_max - kept);
            let rows = (total - done).min(rows_max - filled).min(allowed);
            let logits_rows = (done + rows).saturating_sub(silent.max(done));
            let position = s.position.wrapping_add(done as u32);
            let run = Run { session: s.session, position, start: filled, rows, logits_rows };
            passes.last_mut().expect("there is a first pass").push(run);
            done += rows;
            filled += rows;
            kept += logits_rows;
        }
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_keep_rows_positions_and_logits_in_order() {
        let segment =
            |session, position, rows, logits_rows| Segment { session, position, rows, logits_rows };
        let segments = [segment(1, 10, 100, 1), segment(2, 0, 300, 250), segment(3, 5, 1, 1)];
        let cut = |rows_max, kept_max| -> Vec<Vec<_>> {
            let of = |r: &Run| (r.session, r.position, r.start, r.rows, r.logits_rows);
            let passes = passes(&segments, rows_max, kept_max);
            passes.iter().map(|runs| runs.iter().map(of).collect()).collect()
        };
        let first = vec![(1, 10, 0, 100, 1), (2, 0, 100, 156, 106)];
        let second = vec![(2, 156, 0, 144, 144), (3, 5, 144, 1, 1)];
        assert_eq!(cut(256, usize::MAX), [first, second]);
        let first = vec![(1, 10, 0, 100, 1), (2, 0, 100, 149, 99)];
        let second = vec![(2, 149, 0, 100, 100)];
        let third = vec![(2, 249, 0, 51, 51), (3, 5, 51, 1, 1)];
        assert_eq!(cut(256, 100), [first, second, third]);
    }
}
