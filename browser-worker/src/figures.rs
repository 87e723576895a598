//! What a tab gave: counts, and rates over the last seconds.

use std::collections::VecDeque;

use protocol::{Frame, Span, Status};

/// Over which tokens per second are told, ms.
pub const RATE_WINDOW_MS: f64 = 10_000.0;
/// Over which the share of the time spent computing is told, ms.
pub const BUSY_WINDOW_MS: f64 = 1000.0;
/// Answers and runs that are remembered for the rates; of more the oldest go, and the rates
/// are too low.
const REMEMBERED_MAX: usize = 8192;

/// Counts and rates; times are ms since any start.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Steps answered.
    pub steps: u64,
    /// Rows computed.
    pub tokens: u64,
    /// Rows × layers.
    pub layer_tokens: u64,
    /// (when, rows) of answers.
    answers: VecDeque<(f64, u64)>,
    /// (began, ended) of runs.
    runs: VecDeque<(f64, f64)>,
}

impl Figures {
    /// A step was answered by a shard of a model of `layers` layers.
    pub fn answered(&mut self, now_ms: f64, answer: &Frame, layers: u32) {
        let ok = answer.segments.iter().filter(|s| s.status == Status::Ok);
        let rows: u64 = ok.map(|s| u64::from(s.rows)).sum();
        let through = layers_of(answer.span, layers).map_or(0, |(first, last)| last - first + 1);
        self.steps += 1;
        self.tokens += rows;
        self.layer_tokens += rows * u64::from(through);
        push(&mut self.answers, (now_ms, rows));
    }

    /// Something was computed.
    pub fn computed(&mut self, began_ms: f64, ended_ms: f64) {
        push(&mut self.runs, (began_ms, ended_ms));
    }

    /// Rows per second over [`RATE_WINDOW_MS`].
    pub fn tokens_per_s(&mut self, now_ms: f64) -> f64 {
        while self.answers.front().is_some_and(|(at, _)| *at <= now_ms - RATE_WINDOW_MS) {
            self.answers.pop_front();
        }
        let rows: u64 = self.answers.iter().map(|(_, rows)| rows).sum();
        rows as f64 * 1000.0 / RATE_WINDOW_MS
    }

    /// Of [`BUSY_WINDOW_MS`], the share spent computing, 0 to 1.
    pub fn busy(&mut self, now_ms: f64) -> f64 {
        let from = now_ms - BUSY_WINDOW_MS;
        while self.runs.front().is_some_and(|(_, ended)| *ended <= from) {
            self.runs.pop_front();
        }
        let within = |&(began, ended): &(f64, f64)| (ended.min(now_ms) - began.max(from)).max(0.0);
        (self.runs.iter().map(within).sum::<f64>() / BUSY_WINDOW_MS).min(1.0)
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.len() == REMEMBERED_MAX {
        queue.pop_front();
    }
    queue.push_back(item);
}

/// First and last layer within a span of a model of `layers` layers, counted from 0; `None`
/// if it has only ends.
pub fn layers_of(span: Span, layers: u32) -> Option<(u32, u32)> {
    let (first, end) = (span.first.max(1), span.end.min(layers + 1));
    (first < end).then(|| (first - 1, end - 2))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use protocol::{AssignmentId, Dtype, FrameKind, Segment, SessionId};

    use super::*;

    fn answer(first: u32, end: u32, rows: &[(u32, Status)]) -> Frame {
        let segments = rows.iter().zip(0..).map(|(&(rows, status), session)| Segment {
            session: SessionId(session),
            epoch: 0,
            position: 0,
            rows,
            logits_rows: 0,
            status,
        });
        Frame {
            kind: FrameKind::Result,
            assignment: AssignmentId(1),
            span: Span { first, end },
            step: 1,
            compute_us: 1,
            dtype: Dtype::F32,
            answer: Dtype::F32,
            segments: segments.collect(),
            payload: Bytes::new(),
        }
    }

    #[test]
    fn only_rows_that_were_computed_count_and_only_layers_are_credited() {
        let mut figures = Figures::default();
        // Layers 0 to 2 of 4.
        figures.answered(0.0, &answer(1, 4, &[(5, Status::Ok), (7, Status::Stale)]), 4);
        assert_eq!((figures.steps, figures.tokens, figures.layer_tokens), (1, 5, 15));
        // The last layer and the head.
        figures.answered(0.0, &answer(4, 6, &[(1, Status::Ok)]), 4);
        assert_eq!((figures.steps, figures.tokens, figures.layer_tokens), (2, 6, 16));
        // The head alone.
        figures.answered(0.0, &answer(5, 6, &[(1, Status::Ok)]), 4);
        assert_eq!((figures.steps, figures.tokens, figures.layer_tokens), (3, 7, 16));
    }

    #[test]
    fn rates_forget_what_is_long_past() {
        let mut figures = Figures::default();
        for second in 0..5 {
            figures.answered(f64::from(second) * 1000.0, &answer(1, 2, &[(20, Status::Ok)]), 4);
        }
        assert_eq!(figures.tokens_per_s(5000.0), 10.0);
        assert_eq!(figures.tokens_per_s(11_500.0), 6.0);
        assert_eq!(figures.tokens_per_s(60_000.0), 0.0);
        figures.computed(0.0, 500.0);
        figures.computed(600.0, 700.0);
        assert_eq!(figures.busy(1000.0), 0.6);
        assert!((figures.busy(1400.0) - 0.2).abs() < 1e-9);
        assert_eq!(figures.busy(9000.0), 0.0);
    }

    #[test]
    fn layers_are_counted_without_the_ends() {
        let layers = |first, end| layers_of(Span { first, end }, 30);
        assert_eq!(layers(0, 32), Some((0, 29)));
        assert_eq!(layers(1, 2), Some((0, 0)));
        assert_eq!(layers(30, 32), Some((29, 29)));
        assert_eq!(layers(0, 1), None);
        assert_eq!(layers(31, 32), None);
    }
}
