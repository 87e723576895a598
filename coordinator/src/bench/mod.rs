//! `coordinator bench`: measures a fleet that runs, through its HTTP endpoint, as its clients see
//! it: each kind of parallelism at several loads, in interleaved rounds. It recommends what was
//! faster, and only what was faster again when it was measured once more.

mod report;
mod saved;
mod wave;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use api::{Fleet, FleetModel};
use reqwest::{Client, Url};

pub use self::report::{Cell, Report, Row};
use self::wave::{Asked, wave};
use crate::random;

/// Sessions at once at most: each is a connection.
pub const SESSIONS_MAX: u32 = 512;
/// Rounds at most.
pub const ROUNDS_MAX: u32 = 100;
/// How long connecting may take, and the answer to a question about the fleet.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// Bytes of such an answer at most.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// The default: the fleet chooses.
pub const AUTO: &str = "auto";

/// What to measure.
#[derive(Clone, Debug)]
pub struct Bench {
    /// The coordinator, `http://HOST:PORT`.
    pub fleet: Url,
    /// The model; the first one that is served if `None`.
    pub model: Option<String>,
    /// Kinds of parallelism to ask for; [`AUTO`] is always measured.
    pub parallelism: Vec<String>,
    /// Numbers of sessions at once.
    pub sessions: Vec<u32>,
    /// Words of each prompt, of about one token each.
    pub prompt: u32,
    /// Tokens that each session generates.
    pub tokens: u32,
    /// How often everything is measured.
    pub rounds: u32,
    /// Where to write the fleet for `coordinator plan`, if anywhere.
    pub save: Option<PathBuf>,
}

impl Bench {
    /// Measures.
    ///
    /// # Errors
    /// The coordinator cannot be reached, serves no such model, has nobody for some of its parts,
    /// or does not answer a request as it comes.
    pub async fn run(&self) -> anyhow::Result<Report> {
        let client = Client::builder().connect_timeout(ANSWER_WITHIN).build()?;
        let before = self.fleet(&client).await?;
        let model = self.chosen(&before)?.clone();
        // Of its own in every run: a prompt that came before may be found in a KV cache.
        let mut seeds = random::word();
        let mut rows = Vec::new();
        for parallelism in self.kinds() {
            let asked = self.asked(&model.name, parallelism, 1, &mut seeds);
            // It warms up as well: what a worker has not touched yet is slower.
            let refused = wave(&client, &self.fleet, &asked).await.err();
            match refused {
                Some(reason) if parallelism == AUTO => bail!("{}: {reason}", self.fleet),
                _ => eprintln!("{parallelism}: {}", refused.as_deref().unwrap_or("measured")),
            }
            let loads = self.sessions.iter().map(|_| Cell::default()).collect();
            rows.push(Row { parallelism: parallelism.to_owned(), refused, loads });
        }
        self.rounds(&client, &model.name, &mut rows, &mut seeds).await;
        let mut report = Report::new(&before, &model, self, rows);
        for at in 0..self.sessions.len() {
            self.confirm(&client, &mut report, at, &mut seeds).await;
        }
        if let Some(path) = &self.save {
            // Its rates are those of real steps by this time.
            let text = saved::yaml(&self.fleet(&client).await?);
            std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(report)
    }

    /// The kinds to measure, the default first, each once.
    fn kinds(&self) -> Vec<&str> {
        let mut kinds = vec![AUTO];
        for kind in &self.parallelism {
            if !kinds.contains(&kind.as_str()) {
                kinds.push(kind);
            }
        }
        kinds
    }

    /// Every kind at every load, once a round, so that all have the same weather.
    async fn rounds(&self, client: &Client, model: &str, rows: &mut [Row], seeds: &mut u64) {
        for round in 0..self.rounds {
            for (at, &sessions) in self.sessions.iter().enumerate() {
                for row in rows.iter_mut().filter(|row| row.refused.is_none()) {
                    let cell = &mut row.loads[at];
                    if cell.refused.is_some() {
                        continue;
                    }
                    let asked = self.asked(model, &row.parallelism, sessions, seeds);
                    match wave(client, &self.fleet, &asked).await {
                        Ok(measured) => cell.rounds.push(measured),
                        Err(refused) => cell.refused = Some(refused),
                    }
                }
            }
            eprintln!("round {} of {}", round + 1, self.rounds);
        }
    }

    /// Measures what seemed best at a load beside the default once more: what was best of
    /// several by luck alone is not recommended.
    async fn confirm(&self, client: &Client, report: &mut Report, at: usize, seeds: &mut u64) {
        let Some(kind) = report.candidate(at) else { return };
        let mut ratios = Vec::new();
        for _ in 0..self.rounds {
            let mut rates = Vec::new();
            for kind in [AUTO, &kind] {
                let asked = self.asked(&report.model, kind, self.sessions[at], seeds);
                match wave(client, &self.fleet, &asked).await {
                    Ok(measured) => rates.push(measured.tokens_per_s),
                    // Nothing is recommended that does not always work.
                    Err(_) => return,
                }
            }
            ratios.push(rates[1] / rates[0]);
        }
        report.confirmed(at, kind, ratios);
    }

    fn asked(&self, model: &str, parallelism: &str, sessions: u32, seeds: &mut u64) -> Asked {
        *seeds = seeds.wrapping_add(1);
        Asked {
            model: model.to_owned(),
            // An older coordinator does not know the option: the default goes without it.
            parallelism: (parallelism != AUTO).then(|| parallelism.to_owned()),
            sessions,
            prompt: self.prompt,
            tokens: self.tokens,
            seed: *seeds,
        }
    }

    async fn fleet(&self, client: &Client) -> anyhow::Result<Fleet> {
        let url = self.fleet.join("v1/fleet").context("the address")?;
        let asked = client.get(url.clone()).timeout(ANSWER_WITHIN).send().await;
        let mut answer = asked.with_context(|| format!("no coordinator answers at {url}"))?;
        let status = answer.status();
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await? {
            if body.len() + piece.len() > ANSWER_BYTES_MAX {
                bail!("{url}: more than {ANSWER_BYTES_MAX} bytes came");
            }
            body.extend_from_slice(&piece);
        }
        if !status.is_success() {
            bail!("{url}: status {status}");
        }
        serde_json::from_slice(&body).with_context(|| format!("{url} is not a coordinator's fleet"))
    }

    /// The model to measure.
    fn chosen<'a>(&self, fleet: &'a Fleet) -> anyhow::Result<&'a FleetModel> {
        let names = || fleet.models.iter().map(|m| m.name.as_str()).collect::<Vec<_>>().join(", ");
        let model = match &self.model {
            Some(name) => fleet.models.iter().find(|model| &model.name == name),
            None => fleet.models.first(),
        };
        let Some(model) = model else {
            bail!("the coordinator does not serve this model; it serves: {}", names());
        };
        if let Some(missing) = &model.missing {
            bail!("{} is not ready: nobody holds {missing}. Start more workers", model.name);
        }
        let most = self.prompt + self.tokens;
        if most > model.context {
            let (prompt, tokens, context) = (self.prompt, self.tokens, model.context);
            bail!("--prompt {prompt} and --tokens {tokens} exceed the context of {context}");
        }
        Ok(model)
    }
}
