//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use reqwest::Url;

use crate::admin::Expires;
use crate::bench;
use crate::config::Settings;
use crate::plan;
use crate::pull::catalogue;

/// Runs language models on the machines that people lend.
#[derive(Debug, Parser)]
#[command(
    name = "coordinator",
    version,
    about,
    after_help = "WEFT_LOG sets what is logged to stderr, for example `debug` or \
                  `coordinator=debug` [default: info]; RUST_LOG counts where it is not set."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve models behind an OpenAI-compatible endpoint.
    ///
    /// Every setting may be a flag, an environment variable or a line of the YAML file; a flag
    /// counts before the environment, and that before the file.
    Serve(Box<ServeArgs>),
    /// Fetch a model, verify, check and convert it, so that it can be served.
    Pull(PullArgs),
    /// Predict who would hold what of a model and how many tokens per second come of it, for a
    /// fleet that is written down. Needs none of its machines.
    Plan(PlanArgs),
    /// Measure a fleet that runs, as its clients see it: each kind of parallelism at several
    /// loads. Recommends settings.
    Bench(BenchArgs),
    /// Make an invite: a token that makes one native worker trusted with text, on whatever
    /// machine. It is printed once and kept nowhere.
    Invite(InviteArgs),
    /// List the invites.
    Invites(HomeArgs),
    /// Take an invite back; the worker that came with it is sent away.
    Revoke(RevokeArgs),
    /// List the workers that were here: how long, what they computed, who is banned.
    Workers(HomeArgs),
    /// Let a worker's banned key in again.
    Unban(UnbanArgs),
}

/// `coordinator plan`.
#[derive(Debug, clap::Args)]
pub struct PlanArgs {
    /// The fleet, a YAML file: see --example
    #[arg(long, value_name = "FILE", required_unless_present = "example")]
    pub fleet: Option<PathBuf>,
    /// Print an example of such a file, then end
    #[arg(long)]
    pub example: bool,
    /// The model: NAME of the catalogue or of a pulled model, PATH of a .gguf file, or
    /// hf:owner/repo/file.gguf. Fetched if absent
    #[arg(long, value_name = "NAME|PATH", default_value = catalogue::DEFAULT)]
    pub model: String,
    /// How workers may compute, the preferred ways first, with commas between, as of
    /// `coordinator serve` [default: canonical-1,wgsl-f32]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub classes: Vec<String>,
    /// Sessions at once to predict for, with commas between
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,4,16",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(plan::SESSIONS_MAX)))]
    pub sessions: Vec<u32>,
    /// Tokens of each session's prompt
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub prompt: u32,
    /// Tokens that each session generates while it is looked at
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub tokens: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where the coordinator is.
    #[command(flatten)]
    pub home: HomeArgs,
}

/// `coordinator bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// The coordinator that serves it, for example http://127.0.0.1:8080
    #[arg(long, value_name = "URL")]
    pub fleet: Url,
    /// The model [default: the first one that it serves]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Kinds of parallelism to ask for beside the default, with commas between
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "none,pipeline,tensor,hybrid"
    )]
    pub parallelism: Vec<String>,
    /// Sessions at once, with commas between
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,4,16",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(bench::SESSIONS_MAX)))]
    pub sessions: Vec<u32>,
    /// Words of each session's prompt, of about a token each
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub prompt: u32,
    /// Tokens that each session generates
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(2..=10_000))]
    pub tokens: u32,
    /// How often everything is measured
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(bench::ROUNDS_MAX)))]
    pub rounds: u32,
    /// Write the fleet into a file, with what was measured of its workers, for `coordinator plan`
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Where a coordinator keeps its data.
#[derive(Debug, clap::Args)]
pub struct HomeArgs {
    /// Where the coordinator keeps models and its database [default: `weft` in the platform's
    /// data folder]
    #[arg(long, env = "WEFT_HOME", value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// A YAML file as of `coordinator serve`, of which only `home` counts here
    #[arg(long, env = "WEFT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl HomeArgs {
    /// The folder that is named, if one is.
    ///
    /// # Errors
    /// The YAML file cannot be read.
    pub fn folder(self) -> anyhow::Result<Option<PathBuf>> {
        let file = self.config.as_deref().map(Settings::read).transpose()?.unwrap_or_default();
        Ok(self.home.or(file.home))
    }
}

/// `coordinator invite`.
#[derive(Debug, clap::Args)]
pub struct InviteArgs {
    /// Whom it is for, for the list of invites
    #[arg(long, default_value = "", value_name = "NAME")]
    pub name: String,
    /// How long it may wait to be used for the first time: 30d, 12h, 90m, or never. The worker
    /// that used it stays trusted until it is revoked
    #[arg(long, default_value = "7d", value_name = "TIME")]
    pub expires: Expires,
    /// Where the coordinator is.
    #[command(flatten)]
    pub home: HomeArgs,
}

/// `coordinator revoke`.
#[derive(Debug, clap::Args)]
pub struct RevokeArgs {
    /// The invite's number, as `coordinator invites` lists it
    #[arg(value_name = "ID")]
    pub id: i64,
    /// Where the coordinator is.
    #[command(flatten)]
    pub home: HomeArgs,
}

/// `coordinator unban`.
#[derive(Debug, clap::Args)]
pub struct UnbanArgs {
    /// The worker's key, or how it begins, as `coordinator workers` lists it
    #[arg(value_name = "KEY")]
    pub key: String,
    /// Where the coordinator is.
    #[command(flatten)]
    pub home: HomeArgs,
}

/// `coordinator serve`.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// A YAML file with any of these settings, named as the flags with underscores, for example
    /// `memory_mib: 4096`. An unknown name is an error
    #[arg(long, env = "WEFT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The settings themselves.
    #[command(flatten)]
    pub settings: Settings,
}

/// `coordinator pull`.
#[derive(Debug, clap::Args)]
pub struct PullArgs {
    /// NAME of the catalogue, PATH of a .gguf file, or hf:owner/repo/file.gguf
    #[arg(value_name = "NAME|PATH|hf:owner/repo/file.gguf", long_help = pull_help())]
    pub model: String,
    /// Where models are kept.
    #[command(flatten)]
    pub home: HomeArgs,
}

fn pull_help() -> String {
    let mut help = String::from(
        "What to fetch: the name of a known model, the path of a .gguf file (which is only \
         checked and converted), or hf:owner/repo/file.gguf, a file of the Hugging Face Hub.\n\n\
         Known models:",
    );
    for entry in catalogue::CATALOGUE {
        help.push_str(&format!("\n  {:<20} {}", entry.name, entry.about));
    }
    help.push_str(
        "\n\nHF_TOKEN gives access to files that are not for everyone, HF_ENDPOINT names a \
         mirror of the Hub, HTTPS_PROXY a proxy.",
    );
    help
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound_and_every_setting_explained() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        for subcommand in command.get_subcommands() {
            for argument in subcommand.get_arguments() {
                let explained = argument.get_help().is_some();
                assert!(explained, "{} {}", subcommand.get_name(), argument.get_id());
            }
        }
    }
}
