//! The measurements as a Markdown table.

use std::fmt;

use anyhow::{Result, ensure};

use super::cluster::Cluster;
use super::floor::Floor;
use super::measure::{NATIVE, Round, SESSIONS};
use super::{RATIO_MIN, SETUPS};

/// Medians over the rounds, one column per setup.
pub struct Table {
    rows: Vec<(String, Vec<String>)>,
    notes: Vec<String>,
    kept: f64,
}

impl Table {
    /// Makes the table; `rounds` are as the setups.
    pub fn new(clusters: &[Cluster], rounds: &[Vec<Round>], floor: &Floor) -> Result<Table> {
        ensure!(rounds.iter().all(|rounds| !rounds.is_empty()), "no round was measured");
        let mut rows = Vec::new();
        let mut row = |name: String, cells: Vec<String>| rows.push((name, cells));
        let column = |value: &dyn Fn(&Round) -> f64| -> Vec<f64> {
            rounds.iter().map(|rounds| median(rounds.iter().map(value).collect())).collect()
        };
        let mut one_session = Vec::new();
        for (index, sessions) in SESSIONS.iter().enumerate() {
            let rates = column(&|round| round.decode[index]);
            let plural = if *sessions == 1 { "" } else { "s" };
            row(format!("decode, {sessions} session{plural}, tokens/s"), with_ratio(&rates, 1));
            if *sessions == 1 {
                one_session = rates;
            }
        }
        row("prefill, tokens/s".into(), with_ratio(&column(&|round| round.prefill), 0));
        let first = column(&|round| round.first_token_s * 1e3);
        row("time to first token, ms".into(), first.iter().map(|ms| format!("{ms:.1}")).collect());
        let per_hop = one_session.iter().zip(&SETUPS).map(|(rate, setup)| {
            let hops = setup.layers.len();
            let extra_ms = 1e3 / rate - 1e3 / one_session[0];
            if hops == 0 { "-".into() } else { format!("{:.2}", extra_ms / hops as f64) }
        });
        row("overhead per hop, ms".into(), per_hop.collect());
        let peaks = clusters.iter().map(|cluster| {
            let peaks = cluster.peaks_mib().into_iter();
            peaks.map(|(_, mib)| format!("{mib:.0}")).collect::<Vec<_>>().join(" + ")
        });
        row("peak memory, MiB".into(), peaks.collect());
        let decode_max = floor.decode_max();
        let notes = vec![
            format!(
                "Medians of {} interleaved rounds; in brackets the share of one process. Decode: \
                 {} tokens after a prompt of {}, all sessions together. Prefill: a prompt of {}, \
                 up to its first token. Memory: the coordinator, then each worker. Two workers \
                 must keep {RATIO_MIN} in the first row.",
                rounds[0].len(),
                NATIVE.decoded,
                NATIVE.short_prompt,
                NATIVE.long_prompt,
            ),
            format!(
                "Floor: a token reads {:.1} MB of weights, and {} cores read {:.1} GB/s here: at \
                 most {decode_max:.0} tokens/s for one session; one process reaches {:.0} % of \
                 that.",
                floor.bytes_per_token as f64 / 1e6,
                floor.cores,
                floor.bytes_per_s / 1e9,
                100.0 * one_session[0] / decode_max,
            ),
        ];
        Ok(Table { rows, notes, kept: one_session[1] / one_session[0] })
    }

    /// The share of one process's decode rate that two workers keep, one session.
    pub fn decode_kept(&self) -> f64 {
        self.kept
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = SETUPS.iter().map(|setup| setup.name).collect();
        writeln!(f, "| | {} |", names.join(" | "))?;
        writeln!(f, "|---|{}", "---:|".repeat(SETUPS.len()))?;
        for (name, cells) in &self.rows {
            writeln!(f, "| {name} | {} |", cells.join(" | "))?;
        }
        for note in &self.notes {
            writeln!(f, "\n{note}")?;
        }
        Ok(())
    }
}

/// Each value, and its share of the first.
fn with_ratio(values: &[f64], decimals: usize) -> Vec<String> {
    let mut cells = vec![format!("{:.decimals$}", values[0])];
    cells.extend(values[1..].iter().map(|v| format!("{v:.decimals$} ({:.2})", v / values[0])));
    cells
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(with_ratio(&[10.0, 9.5], 1), ["10.0", "9.5 (0.95)"]);
    }
}
