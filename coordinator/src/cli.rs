//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config::Settings;
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
    /// A YAML file as of `coordinator serve`, of which only `home` counts here
    #[arg(long, env = "WEFT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where models are kept [default: `weft` in the platform's data folder]
    #[arg(long, env = "WEFT_HOME", value_name = "DIR")]
    pub home: Option<PathBuf>,
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
