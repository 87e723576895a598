//! Fake arithmetic whose every bit depends on everything before it: one wrong row, one
//! missing or stale KV entry, and the logits differ.

use std::collections::BTreeMap;

use bytes::Bytes;
use protocol::{Segment, SessionId, Span};

/// Width of a hidden row: four f32, each an integer below 2¹⁶.
pub const D_MODEL: u32 = 4;
/// Vocabulary.
pub const VOCAB: u32 = 16;

fn mix(a: u64, b: u64) -> u64 {
    let mut x = a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn row_of(hash: u64) -> [f32; 4] {
    [0, 16, 32, 48].map(|shift| f32::from((hash >> shift) as u16))
}

fn hash_of(row: &[u8]) -> u64 {
    row.chunks_exact(4)
        .enumerate()
        .map(|(i, b)| (f32::from_le_bytes(b.try_into().unwrap()) as u64) << (16 * i))
        .sum()
}

fn logits_of(hash: u64) -> impl Iterator<Item = f32> {
    (0..u64::from(VOCAB)).map(move |token| f32::from(mix(hash, token) as u16))
}

/// What a session's layers remember: per layer part, a running hash per position.
type Kv = BTreeMap<u32, Vec<u64>>;

/// One layer at the next position: remembers, and answers.
fn layer(kv: &mut Kv, part: u32, input: u64) -> u64 {
    let seen = kv.entry(part).or_default();
    let before = seen.last().copied().unwrap_or(0);
    let now = mix(mix(before, input), u64::from(part));
    seen.push(now);
    now
}

/// The logits after each position of `tokens`, by a whole model in one piece.
pub struct Oracle {
    layers: u32,
    kv: Kv,
    tokens: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

impl Oracle {
    pub fn new(layers: u32) -> Oracle {
        Oracle { layers, kv: Kv::new(), tokens: Vec::new(), logits: Vec::new() }
    }

    pub fn push(&mut self, token: u32) {
        let position = self.tokens.len() as u64;
        let mut hash = mix(u64::from(token), position);
        for part in 1..=self.layers {
            hash = layer(&mut self.kv, part, hash);
        }
        self.tokens.push(token);
        self.logits.push(logits_of(hash).collect());
    }

    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub fn logits_at(&self, position: u32) -> &[f32] {
        &self.logits[position as usize]
    }
}

/// A worker's shard with everything it remembers.
pub struct FakeShard {
    layers: u32,
    pub pages_max: u32,
    sessions: BTreeMap<SessionId, Kv>,
}

impl FakeShard {
    pub fn new(layers: u32, pages_max: u32) -> FakeShard {
        FakeShard { layers, pages_max, sessions: BTreeMap::new() }
    }

    fn positions(&self, session: SessionId) -> usize {
        self.sessions.get(&session).and_then(|kv| kv.values().map(Vec::len).max()).unwrap_or(0)
    }

    /// Pages in use, as a real cache would count them.
    pub fn pages(&self) -> u32 {
        self.sessions.keys().map(|s| self.positions(*s).div_ceil(64) as u32).sum()
    }

    pub fn truncate(&mut self, session: SessionId, positions: u32) {
        if let Some(kv) = self.sessions.get_mut(&session) {
            for seen in kv.values_mut() {
                seen.truncate(positions as usize);
            }
        }
    }

    pub fn release(&mut self, session: SessionId) {
        self.sessions.remove(&session);
    }

    pub fn fork(&mut self, from: SessionId, to: SessionId, positions: u32) {
        let kv = self.sessions.get(&from).cloned().unwrap_or_default();
        self.sessions.insert(to, kv);
        self.truncate(to, positions);
    }

    /// Runs a step; the payload's rows are hashes in four f32, or token ids.
    pub fn run(&mut self, span: Span, segments: &[Segment], payload: &[u8]) -> Bytes {
        let head = self.layers + 1;
        let width = if span.first == 0 { 4 } else { D_MODEL as usize * 4 };
        let mut rows = payload.chunks_exact(width);
        let mut out = Vec::new();
        for segment in segments {
            // The ends keep no KV, whatever layers run beside them.
            if span.first.max(1) < span.end.min(head) {
                self.truncate(segment.session, segment.position);
            }
            for row in 0..segment.rows {
                let input = rows.next().expect("the core checked the payload's length");
                let position = u64::from(segment.position + row);
                let mut hash = match span.first {
                    0 => {
                        let token = u32::from_le_bytes(input.try_into().unwrap());
                        mix(u64::from(token), position)
                    }
                    _ => hash_of(input),
                };
                for part in span.first.max(1)..span.end.min(head) {
                    let kv = self.sessions.entry(segment.session).or_default();
                    hash = layer(kv, part, hash);
                }
                if span.end <= head {
                    out.extend(row_of(hash).into_iter().flat_map(f32::to_le_bytes));
                } else if row >= segment.rows - segment.logits_rows {
                    out.extend(logits_of(hash).flat_map(f32::to_le_bytes));
                }
            }
        }
        assert!(rows.next().is_none());
        out.into()
    }
}
