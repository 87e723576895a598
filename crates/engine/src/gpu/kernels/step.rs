//! A pass's own data: positions, page tables, tokens, rotations; one buffer, one upload.

use numerics::rope::sin_cos;
use shaders::attention::{STEP_HEAD, STEP_ROW};

/// One row of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepRow {
    /// Its position.
    pub position: u32,
    /// Which of [`StepData::page_tables`] is its session's.
    pub session: u32,
    /// Its token; used only where the shard holds the embedding.
    pub token: u32,
}

/// A pass. Rows of one session follow each other in ascending, gapless positions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepData {
    /// T rows.
    pub rows: Vec<StepRow>,
    /// Of each session, the pages of its positions from 0 on: indices of pages in the
    /// layers' KV buffers.
    pub page_tables: Vec<Vec<u32>>,
    /// Which rows want logits, ascending.
    pub kept: Vec<u32>,
}

/// What decides how a pass is dispatched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShape {
    /// T.
    pub rows: u32,
    /// T'.
    pub kept_rows: u32,
    /// One more than the largest position.
    pub keys_max: u32,
}

impl StepData {
    /// The words of the step buffer. `inv_freq` is `[hd / 2]`.
    ///
    /// # Panics
    /// If a row names no page table.
    pub fn words(&self, inv_freq: &[f64]) -> Vec<u32> {
        let table_at = STEP_HEAD + STEP_ROW * self.rows.len() as u32;
        let mut tables = Vec::new();
        let starts: Vec<u32> = self
            .page_tables
            .iter()
            .map(|table| {
                let start = table_at + tables.len() as u32;
                tables.extend_from_slice(table);
                start
            })
            .collect();
        // Pairs of floats are read as such.
        let turns_at = (table_at + tables.len() as u32).next_multiple_of(2);
        let turns_len = 2 * inv_freq.len() * self.rows.len();
        let mut words = Vec::with_capacity(turns_at as usize + turns_len);
        words.extend([self.rows.len() as u32, self.kept.len() as u32, turns_at, 0]);
        for (i, row) in self.rows.iter().enumerate() {
            let kept = self.kept.get(i).copied().unwrap_or(0);
            words.extend([row.position, starts[row.session as usize], row.token, kept]);
        }
        words.extend(tables);
        words.resize(turns_at as usize, 0);
        for row in &self.rows {
            for &frequency in inv_freq {
                let (sin, cos) = sin_cos(row.position, frequency);
                words.extend([cos.to_bits(), sin.to_bits()]);
            }
        }
        words
    }

    /// How it is dispatched.
    pub fn shape(&self) -> StepShape {
        StepShape {
            rows: self.rows.len() as u32,
            kept_rows: self.kept.len() as u32,
            keys_max: self.rows.iter().map(|r| r.position + 1).max().unwrap_or(0),
        }
    }

    /// Bytes of the largest step buffer: so many rows, and page tables of so many entries
    /// in all.
    pub fn bytes_max(rows: u32, page_table_entries: u32, head_dim: u32) -> u64 {
        let words = u64::from(STEP_HEAD)
            + u64::from(rows) * u64::from(STEP_ROW + head_dim)
            + u64::from(page_table_entries)
            + 1;
        (4 * words).next_multiple_of(16)
    }
}
