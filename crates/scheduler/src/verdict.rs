//! What an audit's replays say: how rows are compared, and what follows from several replays.

use std::sync::Arc;

use protocol::{Dtype, boundary};

use crate::standing::keyed_hash;

/// Values that have a scale in common in int8 rows.
const BLOCK: usize = 32;
/// What a step of f16 is at most, of the value: 2⁻¹⁰.
const F16_STEP: f64 = 1.0 / 1024.0;
/// And of the smallest values: 2⁻²⁴.
const F16_STEP_MIN: f64 = 1.0 / 16_777_216.0;

/// Largest distance ‖a − b‖ / ‖b‖ of a row of a `wgsl-f32` stage to the same row of another
/// GPU's or of `exact-f32`'s. Lavapipe is at most 4e-3 of the largest value away from
/// `exact-f32` over three layers (`tests/golden/engine_gpu.rs`, `TINY_TOLERANCE`); other
/// adapters fuse and reassociate otherwise, so ten times that is allowed.
pub const BAND_WGSL: f64 = 4e-2;
/// The same to a row of `canonical-1`, whose activations are rounded to 8 bits: over all
/// layers of SmolLM2 it is at most 0.111 away from `exact-f32` (200 rows; 0.076 over 42), over
/// tiny models 0.107 (`tests/golden/engine.rs`), and three times that is allowed. It finds
/// garbage and other weights, no more.
pub const BAND_WGSL_CANONICAL: f64 = 0.33;
/// Replays of one audit that count at most, those of strangers left out where some are trusted;
/// without a verdict by then there is none.
pub const FINDINGS_MAX: usize = 5;
/// Other owners that must agree with each other, where nobody trusted can replay.
pub const PEERS_MIN: usize = 2;
/// Other owners that must all say the same against a worker before it counts as wrong: one
/// more than could be in league without having been noticed.
pub const PEERS_AGAINST_MIN: usize = 3;

/// How rows of two workers are compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Comparison {
    /// One bit off is a lie or a fault.
    Bits,
    /// Each row within this relative distance.
    Within(f64),
}

/// How rows computed in one class are compared with those of another; `None`: not at all.
pub fn comparison(audited: &str, replayed: &str) -> Option<Comparison> {
    match (audited, replayed) {
        ("canonical-1", "canonical-1") | ("exact-f32", "exact-f32") => Some(Comparison::Bits),
        ("wgsl-f32", "wgsl-f32" | "exact-f32") => Some(Comparison::Within(BAND_WGSL)),
        ("wgsl-f32", "canonical-1") => Some(Comparison::Within(BAND_WGSL_CANONICAL)),
        _ => None,
    }
}

impl Comparison {
    /// The first of the rows that differ, counted from 0. Both are sound rows `[T, width]` in
    /// `dtype` (`protocol::boundary`), of the same length. What was rounded alike is compared as
    /// it was sent; within a band, what one step of rounding may have made of nothing does not
    /// count.
    pub fn first_difference(
        self,
        got: &[u8],
        wanted: &[u8],
        dtype: Dtype,
        width: usize,
    ) -> Option<u32> {
        debug_assert_eq!(got.len(), wanted.len());
        let row_bytes = dtype.row_bytes(width);
        let mut rows = got.chunks_exact(row_bytes).zip(wanted.chunks_exact(row_bytes));
        let apart = |(got, wanted): (&[u8], &[u8])| match self {
            Comparison::Bits => got != wanted,
            Comparison::Within(band) => {
                let values = |row| boundary::decode(row, dtype, width);
                let (Some(got), Some(wanted)) = (values(got), values(wanted)) else { return true };
                distance(&got, &wanted, dtype) > band
            }
        };
        rows.position(apart).map(|row| row as u32)
    }
}

/// ‖a − b‖ / ‖b‖ of two rows `[D]` of finite values, what is within one step of `dtype` left out.
fn distance(a: &[f32], b: &[f32], dtype: Dtype) -> f64 {
    let (mut apart, mut size) = (0.0, 0.0);
    for (a, b) in a.chunks(BLOCK).zip(b.chunks(BLOCK)) {
        let largest = a.iter().chain(b).fold(0.0f64, |max, x| max.max(f64::from(x.abs())));
        for (a, b) in a.iter().zip(b).map(|(a, b)| (f64::from(*a), f64::from(*b))) {
            let step = match dtype {
                Dtype::U32 | Dtype::F32 => 0.0,
                Dtype::F16 => (a.abs().max(b.abs()) * F16_STEP).max(F16_STEP_MIN),
                Dtype::I8 => largest / 127.0,
            };
            let off = ((a - b).abs() - step).max(0.0);
            apart += off * off;
            size += b * b;
        }
    }
    match apart == 0.0 {
        true => 0.0,
        false => (apart / size).sqrt(),
    }
}

/// What one replay gave.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The key of whoever replayed.
    pub key: Arc<str>,
    /// Whether it is trusted.
    pub trusted: bool,
    /// The first position whose rows differ, and the digest of what it gave there.
    pub differs: Option<(u32, u64)>,
}

/// A digest of a row, equal for equal bytes.
pub fn digest(secret: [u64; 2], row: &[u8]) -> u64 {
    keyed_hash(secret, &[row])
}

/// What an audit's replays say together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Another replay is needed.
    More,
    /// The audited rows are right.
    Right,
    /// They are wrong from this position on.
    Wrong {
        /// The first wrong position.
        position: u32,
    },
    /// Nothing can be said: the replays contradict each other.
    Unclear,
}

/// Judges the replays so far. `bits`: rows were compared bit for bit, so those that are
/// right are equal to each other.
pub fn judge(findings: &[Finding], bits: bool) -> Verdict {
    let trusted: Vec<&Finding> = findings.iter().filter(|f| f.trusted).collect();
    let (judges, agree, against) = match trusted.is_empty() {
        // One replay that agrees is enough; one that differs may have failed itself.
        false => (trusted, 1, 2),
        true => (findings.iter().collect(), PEERS_MIN, PEERS_AGAINST_MIN),
    };
    let differing: Vec<(u32, u64)> = judges.iter().filter_map(|f| f.differs).collect();
    let agreeing = judges.len() - differing.len();
    let like = |a: (u32, u64)| differing.iter().filter(|b| !bits || **b == a).count();
    let said = differing.iter().filter(|a| like(**a) >= against);
    let position = said.map(|(position, _)| *position).min();
    match position {
        Some(position) if agreeing == 0 => Verdict::Wrong { position },
        _ if agreeing >= agree && agreeing > differing.len() => Verdict::Right,
        _ if judges.len() >= FINDINGS_MAX => Verdict::Unclear,
        _ => Verdict::More,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(findings: &[(bool, Option<u32>, u64)], expected: Verdict) {
        let finding = |(trusted, at, digest): &(bool, Option<u32>, u64)| Finding {
            key: "k".into(),
            trusted: *trusted,
            differs: at.map(|at| (at, *digest)),
        };
        let findings: Vec<Finding> = findings.iter().map(finding).collect();
        assert_eq!(judge(&findings, true), expected, "{findings:?}");
    }

    #[test]
    fn a_trusted_replay_clears_at_once_and_condemns_only_twice() {
        check(&[], Verdict::More);
        check(&[(true, None, 1)], Verdict::Right);
        check(&[(true, Some(7), 2)], Verdict::More);
        check(&[(true, Some(7), 2), (true, Some(7), 2)], Verdict::Wrong { position: 7 });
        // The trusted machine failed once.
        check(&[(true, Some(7), 2), (true, None, 1)], Verdict::More);
        check(&[(true, Some(7), 2), (true, None, 1), (true, None, 1)], Verdict::Right);
        // It gives something else each time.
        check(&[(true, Some(7), 2), (true, Some(3), 3)], Verdict::More);
    }

    #[test]
    fn strangers_clear_two_together_and_condemn_three_together() {
        check(&[(false, None, 1)], Verdict::More);
        check(&[(false, None, 1), (false, None, 1)], Verdict::Right);
        let (a, b, c) = ((false, Some(4), 2), (false, Some(4), 2), (false, Some(4), 2));
        check(&[a, b], Verdict::More);
        check(&[a, b, c], Verdict::Wrong { position: 4 });
        check(&[a, b, (false, None, 1)], Verdict::More);
        check(&[a, b, c, (false, None, 1)], Verdict::More);
        check(&[a, b, c, (false, None, 1), (false, None, 1)], Verdict::Unclear);
        // A liar among them is outvoted.
        check(&[a, (false, None, 1), (false, None, 1)], Verdict::Right);
    }

    #[test]
    fn whoever_is_trusted_outweighs_all_others() {
        check(&[(false, Some(4), 2), (false, Some(4), 2), (true, None, 1)], Verdict::Right);
        // However many others there are, a second trusted one is still asked for.
        let four = [(false, None, 1); 4];
        check(&[&four[..], &[(true, Some(4), 2)]].concat(), Verdict::More);
        let twice = [(true, Some(4), 2); 2];
        check(&[&four[..], &twice].concat(), Verdict::Wrong { position: 4 });
    }

    #[test]
    fn classes_are_compared_by_bits_within_a_band_or_not_at_all() {
        let rows = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
        let wanted = rows(&[1.0, 2.0, 3.0, 4.0]);
        let near = rows(&[1.0, 2.0, 3.0, 4.01]);
        let far = rows(&[1.0, 2.0, 3.0, -4.0]);
        let of = |a, b, got: &[u8]| {
            comparison(a, b).unwrap().first_difference(got, &wanted, Dtype::F32, 2)
        };
        assert_eq!(of("canonical-1", "canonical-1", &wanted), None);
        assert_eq!(of("canonical-1", "canonical-1", &near), Some(1));
        for replayed in ["wgsl-f32", "exact-f32", "canonical-1"] {
            assert_eq!(of("wgsl-f32", replayed, &near), None);
            assert_eq!(of("wgsl-f32", replayed, &far), Some(1));
        }
        assert_eq!(comparison("canonical-1", "exact-f32"), None);
        assert_eq!(comparison("canonical-1", "wgsl-f32"), None);
        let zeros = rows(&[0.0, 0.0]);
        assert_eq!(Comparison::Within(0.1).first_difference(&zeros, &zeros, Dtype::F32, 2), None);
        assert_eq!(
            Comparison::Within(0.1).first_difference(&wanted[..8], &zeros, Dtype::F32, 2),
            Some(0)
        );
    }
}
