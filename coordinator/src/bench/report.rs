//! What was measured, and what follows from it.

use std::fmt::Write;

use api::{Fleet, FleetModel, FleetWorker};
use serde::Serialize;

use super::wave::Measured;
use super::{AUTO, Bench};

/// A kind of parallelism has to be so much faster than the default to be recommended, by the
/// median of the rounds, and faster in each of them.
const BETTER_BY: f64 = 1.05;
/// A load that gives so much of the best rate is enough.
const NEARLY: f64 = 0.95;

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The model.
    pub model: String,
    /// Its layers.
    pub layers: u32,
    /// Who was there.
    pub workers: Vec<Member>,
    /// Numbers of sessions at once.
    pub sessions: Vec<u32>,
    /// Words of each prompt, tokens of each answer, rounds.
    pub load: [u32; 3],
    /// Of each kind of parallelism.
    pub rows: Vec<Row>,
    /// What to ask for at which load, where that is not the default.
    pub recommended: Vec<Recommended>,
    /// `--sessions-max`: with more at once, all sessions together get next to nothing more.
    pub sessions_max: Option<u32>,
}

/// A worker.
#[derive(Clone, Debug, Serialize)]
pub struct Member {
    /// For people.
    pub name: String,
    /// `embedded`, `native` or `browser`.
    pub kind: String,
    /// What it holds.
    pub holds: Vec<String>,
    /// Layers × tokens per second, one row a step.
    pub layer_tokens_per_s: f64,
    /// Round trip less computing, milliseconds.
    pub hop_ms: f64,
}

/// One kind of parallelism.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `weft.parallelism`.
    pub parallelism: String,
    /// Why the coordinator does not do it, if so.
    pub refused: Option<String>,
    /// For each number of sessions.
    pub loads: Vec<Cell>,
}

/// One kind of parallelism at one number of sessions.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Cell {
    /// Each round's figures.
    pub rounds: Vec<Measured>,
    /// Why it was not measured any further, if so.
    pub refused: Option<String>,
}

/// Something better than the default.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recommended {
    /// Sessions at once.
    pub sessions: u32,
    /// `weft.parallelism`.
    pub parallelism: String,
    /// Its rate over the default's, when both were measured once more.
    pub ratio: f64,
}

/// By how much something was faster than the default, of each round's ratio, if it clearly was.
fn clearly_faster(ratios: Vec<f64>) -> Option<f64> {
    let always = ratios.iter().all(|ratio| *ratio > 1.0);
    let ratio = median(ratios);
    (always && ratio >= BETTER_BY).then_some(ratio)
}

/// The middle one; of an even number the mean of the middle two.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

impl Row {
    /// The median at a load, if it was measured.
    fn median(&self, at: usize, of: impl Fn(&Measured) -> f64) -> Option<f64> {
        let cell = &self.loads[at];
        let values: Vec<f64> = cell.rounds.iter().map(of).collect();
        (cell.refused.is_none() && !values.is_empty()).then(|| median(values))
    }
}

impl Report {
    pub(super) fn new(fleet: &Fleet, model: &FleetModel, bench: &Bench, rows: Vec<Row>) -> Report {
        let mut report = Report {
            model: model.name.clone(),
            layers: model.layers,
            workers: fleet.workers.iter().map(|worker| member(worker, &model.name)).collect(),
            sessions: bench.sessions.clone(),
            load: [bench.prompt, bench.tokens, bench.rounds],
            rows,
            recommended: Vec::new(),
            sessions_max: None,
        };
        report.sessions_max = report.enough();
        report
    }

    /// The kind that was clearly faster than the default at a load, if one was: by the median
    /// of the ratios within each round.
    pub(super) fn candidate(&self, at: usize) -> Option<String> {
        let default = self.rows.iter().find(|row| row.parallelism == AUTO)?;
        let faster = |row: &Row| {
            let pairs = row.loads[at].rounds.iter().zip(&default.loads[at].rounds);
            clearly_faster(pairs.map(|(a, b)| a.tokens_per_s / b.tokens_per_s).collect())
        };
        let others =
            self.rows.iter().filter(|row| row.parallelism != AUTO && row.refused.is_none());
        let found = others.filter_map(|row| Some((faster(row)?, &row.parallelism)));
        let best = found.max_by(|a, b| a.0.total_cmp(&b.0))?;
        Some(best.1.clone())
    }

    /// It was measured once more: its rate over the default's in each round.
    pub(super) fn confirmed(&mut self, at: usize, parallelism: String, ratios: Vec<f64>) {
        if let Some(ratio) = clearly_faster(ratios) {
            let sessions = self.sessions[at];
            self.recommended.push(Recommended { sessions, parallelism, ratio });
        }
    }

    /// The smallest load that gives nearly the best rate; of the default, which most requests
    /// will be.
    fn enough(&self) -> Option<u32> {
        let default = self.rows.iter().find(|row| row.parallelism == AUTO)?;
        let rates: Vec<(u32, f64)> = (self.sessions.iter().enumerate())
            .filter_map(|(at, &n)| Some((n, default.median(at, |m| m.tokens_per_s)?)))
            .collect();
        let best = rates.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
        rates.into_iter().filter(|(_, rate)| *rate >= NEARLY * best).map(|(n, _)| n).min()
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!("{}: {} layers\n\nworkers\n", self.model, self.layers);
        for worker in &self.workers {
            let holds = match worker.holds.is_empty() {
                true => "nothing".to_owned(),
                false => worker.holds.join("; "),
            };
            let _ = writeln!(
                text,
                "  {:20} {:8} {:7.0} layer tokens/s  hop {:7.3} ms  {holds}",
                worker.name, worker.kind, worker.layer_tokens_per_s, worker.hop_ms
            );
        }
        let [prompt, tokens, rounds] = self.load;
        let _ = writeln!(
            text,
            "\nmedians of {rounds} rounds, {prompt} words of prompt, {tokens} tokens: tokens/s of \
             all sessions from their requests on,\ntokens/s of each from its first token on, ms \
             to the first token, ms of the slowest of 100 tokens"
        );
        for (at, sessions) in self.sessions.iter().enumerate() {
            let plural = if *sessions == 1 { "" } else { "s" };
            let _ = writeln!(
                text,
                "  {:24}{:>9}{:>9}{:>9}{:>9}",
                format!("{sessions} session{plural}"),
                "all",
                "each",
                "first",
                "p99"
            );
            for row in self.rows.iter().filter(|row| row.refused.is_none()) {
                let of = |figure: fn(&Measured) -> f64| row.median(at, figure).unwrap_or(f64::NAN);
                let _ = match &row.loads[at].refused {
                    Some(refused) => writeln!(text, "    {:22} {refused}", row.parallelism),
                    None => writeln!(
                        text,
                        "    {:22}{:9.1}{:9.1}{:9.0}{:9.1}",
                        row.parallelism,
                        of(|m| m.tokens_per_s),
                        of(|m| m.each_per_s),
                        of(|m| m.first_token_s) * 1e3,
                        of(|m| m.gap_p99_s) * 1e3
                    ),
                };
            }
        }
        for row in &self.rows {
            if let Some(refused) = &row.refused {
                let _ = writeln!(text, "  not here: {}: {refused}", row.parallelism);
            }
        }
        let _ = writeln!(text, "\nrecommended");
        for Recommended { sessions, parallelism, ratio } in &self.recommended {
            let _ = writeln!(
                text,
                "  {sessions} at once: \"weft\": {{\"parallelism\": \"{parallelism}\"}}, {ratio:.2} \
                 times the default"
            );
        }
        if self.recommended.is_empty() {
            let _ = writeln!(text, "  requests as they are: nothing was clearly faster");
        }
        let most = self.sessions.iter().max();
        match self.sessions_max {
            Some(enough) if Some(&enough) == most => {
                let _ = writeln!(text, "  more sessions at once than {enough} may still give more");
            }
            Some(enough) => {
                let _ = writeln!(
                    text,
                    "  --sessions-max {enough}: more at once give all of them together less than \
                     {:.0} % more, and each of them less",
                    (1.0 / NEARLY - 1.0) * 100.0
                );
            }
            None => {}
        }
        text
    }
}

fn member(worker: &FleetWorker, model: &str) -> Member {
    let held = worker.shards.iter().filter(|shard| shard.model == model && shard.ready);
    let describe = |shard: &api::FleetShard| {
        let layers = shard.first_layer.zip(shard.last_layer);
        let mut parts = Vec::new();
        if shard.embedding {
            parts.push("embedding".to_owned());
        }
        if let Some((first, last)) = layers {
            parts.push(format!("layers {first} to {last}"));
        }
        if shard.head {
            parts.push("head".to_owned());
        }
        parts.join(", ")
    };
    Member {
        name: worker.name.clone(),
        kind: worker.kind.clone(),
        holds: held.map(describe).collect(),
        layer_tokens_per_s: worker.layer_tokens_per_s,
        hop_ms: worker.hop_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(parallelism: &str, rates: &[&[f64]]) -> Row {
        let of = |&tokens_per_s: &f64| Measured {
            tokens_per_s,
            each_per_s: 1.0,
            first_token_s: 0.1,
            gap_p99_s: 0.01,
        };
        let cell = |load: &&[f64]| Cell { rounds: load.iter().map(of).collect(), refused: None };
        let loads = rates.iter().map(cell).collect();
        Row { parallelism: parallelism.into(), refused: None, loads }
    }

    fn report(rows: Vec<Row>) -> Report {
        Report {
            model: "m".into(),
            layers: 2,
            workers: Vec::new(),
            sessions: vec![1, 8, 16],
            load: [64, 64, 3],
            rows,
            recommended: Vec::new(),
            sessions_max: None,
        }
    }

    #[test]
    fn what_is_clearly_faster_in_the_same_rounds_is_a_candidate() {
        // By medians over all rounds `none` would be slower at the first load.
        let rows = vec![
            row(AUTO, &[&[100.0, 10.0, 50.0], &[300.0; 3], &[305.0; 3]]),
            row("none", &[&[110.0, 11.0, 56.0], &[310.0; 3], &[1.0; 3]]),
            Row { refused: Some("no group".into()), ..row("tensor", &[&[], &[], &[]]) },
        ];
        let mut report = report(rows);
        assert_eq!(report.candidate(0).as_deref(), Some("none"));
        assert_eq!(report.candidate(1), None, "3 % is too little");
        assert_eq!(report.candidate(2), None);
        report.confirmed(0, "none".into(), vec![1.01, 1.02, 1.01]);
        report.confirmed(0, "none".into(), vec![0.9, 1.4, 1.4]);
        assert_eq!(report.recommended, [], "it was luck");
        report.confirmed(0, "none".into(), vec![1.3, 1.2, 1.1]);
        assert_eq!(report.enough(), Some(8), "16 at once give 2 % more");
        report.sessions_max = report.enough();
        let table = report.table();
        assert!(
            table.contains("1 at once: \"weft\": {\"parallelism\": \"none\"}, 1.20"),
            "{table}"
        );
        assert!(table.contains("--sessions-max 8"), "{table}");
        assert!(table.contains("not here: tensor: no group"), "{table}");
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }
}
