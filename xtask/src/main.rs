//! The commands of a checkout: `cargo xtask serve|web|test|arm|instructions|ci|tidy|models|
//! bench`.

mod bench;
mod models;
mod process;
mod serve;
mod test;
mod tidy;
mod tools;
mod web;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "\
Usage: cargo xtask COMMAND

  serve [FLAGS]           build the pages and the coordinator, and run `coordinator serve FLAGS`; the default
                          model is fetched first (`cargo xtask serve --help` lists the flags)
  web                     only build the pages and the worker in them, and print their folder
  test [--all-models]     install what the tests need and run all of them; --all-models also
                          fetches the 1.5B model (1.1 GB)
  arm                     only the engine's tests on an emulated Arm processor
  instructions [--write]  only count the kernels' instructions under callgrind and compare them
                          with the table; --write writes the table anew
  ci                      test, and check that it left the checkout as it was
  tidy                    only the checks of the sources: arrows, purity, licences, sizes
  models [--all-models]   only fetch the test models, and print their folder
  bench [--markdown FILE] [--model FILE] [--rounds N]
                          measure decode and prefill over local workers
  bench --intensity [--rounds N]  four workers at a quarter of their time beside one such
  bench --wasm            the same of the engine inside WASM, in Node and in Chromium
  bench --tab [--rounds N]  the same of all layers in one tab of headless Chromium
  bench --webgpu          the GPU kernels in headless Chromium, beside onnxruntime-web, whose
                          npm package lies in the folder that WEFT_ONNXRUNTIME_WEB names
  bench --peers [--model NAME|FILE] [--rounds N] [--markdown FILE]
                          the CPU engine beside llama.cpp, whose programs lie in the folder
                          that WEFT_LLAMA_CPP names; served and split only the default model

WEFT_TEST_MODELS names the folder of the test models (default: weft/test-models in the user's
cache folder).
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one command; `false` if what it checked is not in order, and it has said why.
fn run(arguments: &[String]) -> Result<bool> {
    let Some((command, rest)) = arguments.split_first() else {
        print!("{HELP}");
        return Ok(false);
    };
    match command.as_str() {
        "serve" => serve::run(rest).map(|()| true),
        "web" => {
            no_more(rest)?;
            tools::ensure_wasm()?;
            println!("{}", web::build()?.display());
            Ok(true)
        }
        "test" => test::run(all_models(rest)?),
        "arm" => {
            no_more(rest)?;
            models::fetch_required()?;
            test::run_arm()
        }
        "instructions" => match rest {
            [] => test::run_instructions(false),
            [flag] if flag == "--write" => test::run_instructions(true),
            _ => bail!("the only flag here is --write"),
        },
        "ci" => {
            no_more(rest)?;
            test::run_ci()
        }
        "tidy" => {
            no_more(rest)?;
            tidy::run()
        }
        "models" => models::run(all_models(rest)?).map(|()| true),
        "bench" => bench::run(rest),
        "help" | "-h" | "--help" => {
            print!("{HELP}");
            Ok(true)
        }
        other => bail!("no command is called '{other}'; `cargo xtask help` lists them"),
    }
}

fn all_models(rest: &[String]) -> Result<bool> {
    match rest {
        [] => Ok(false),
        [flag] if flag == "--all-models" => Ok(true),
        _ => bail!("the only flag here is --all-models"),
    }
}

fn no_more(rest: &[String]) -> Result<()> {
    if rest.is_empty() { Ok(()) } else { bail!("'{}' is one flag too many", rest[0]) }
}

/// The root of the checkout.
fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("xtask lies in the checkout").to_path_buf()
}
