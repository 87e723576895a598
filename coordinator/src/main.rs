//! The `coordinator` program.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use coordinator::admin;
use coordinator::bench::Bench;
use coordinator::cli::{BenchArgs, Cli, Command, PlanArgs, PullArgs, ServeArgs};
use coordinator::config::Settings;
use coordinator::plan::{EXAMPLE, FleetFile, Load, predict};
use coordinator::pull::{self, Hub, Wanted};
use coordinator::serve;
use coordinator::store::{CANONICAL_1, Home};
use tracing_subscriber::EnvFilter;

/// What is logged where neither `WEFT_LOG` nor `RUST_LOG` says.
const LOG_DEFAULT: &str = "info";

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("WEFT_LOG")
        .or_else(|_| EnvFilter::try_from_default_env())
        .unwrap_or_else(|_| EnvFilter::new(LOG_DEFAULT));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_writer(std::io::stderr)
        .init();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the system gives no threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => serve(*args).await,
            Command::Pull(args) => pull(args).await,
            Command::Plan(args) => plan(args).await,
            Command::Bench(args) => bench(args).await,
            Command::Invite(args) => {
                admin::invite(args.home.folder()?, &args.name, args.expires).await
            }
            Command::Invites(args) => admin::invites(args.folder()?).await,
            Command::Revoke(args) => admin::revoke(args.home.folder()?, args.id).await,
            Command::Workers(args) => admin::workers(args.folder()?).await,
            Command::Unban(args) => admin::unban(args.home.folder()?, &args.key).await,
        }
    });
    // A conversion that runs on is safe to cut: it leaves nothing that is not whole.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let file = match &args.config {
        Some(path) => Settings::read(path)?,
        None => Settings::default(),
    };
    let config = args.settings.over(file).resolve()?;
    let listener = serve::bind(&config).await?;
    serve::run(listener, config, stop_signal()?).await
}

async fn pull(args: PullArgs) -> anyhow::Result<()> {
    let home = Home::open(args.home.folder()?)?;
    let wanted = Wanted::parse(&args.model, &home)?;
    let path = pull::fetch(&home, &Hub::from_env(), &wanted, true).await?;
    let model = serve::prepare(&home, &path, &wanted.name(), &[CANONICAL_1.to_owned()]).await?;
    println!(
        "{} is ready: {} ({} MB, {} layers). Serve it with: coordinator serve --model {}",
        model.name,
        model.path.display(),
        model.file_bytes / 1_000_000,
        model.spec.parts.len() - 2,
        if matches!(wanted, Wanted::Path(_)) { args.model } else { model.name.clone() },
    );
    Ok(())
}

async fn plan(args: PlanArgs) -> anyhow::Result<()> {
    if args.example {
        print!("{EXAMPLE}");
        return Ok(());
    }
    // The command line asks for it otherwise.
    let fleet = FleetFile::read(&args.fleet.unwrap_or_default())?;
    let settings = Settings { classes: args.classes, ..Settings::default() };
    let classes = settings.resolve()?.classes;
    let home = Home::open(args.home.folder()?)?;
    let wanted = Wanted::parse(&args.model, &home)?;
    let path = pull::fetch(&home, &Hub::from_env(), &wanted, false).await?;
    let model = serve::prepare(&home, &path, &wanted.name(), &classes).await?;
    let load = Load { sessions: args.sessions, prompt: args.prompt, tokens: args.tokens };
    let prediction = predict(&model.spec, &fleet, &load);
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&prediction)?),
        false => print!("{}", prediction.table()),
    }
    match prediction.fits {
        true => Ok(()),
        false => anyhow::bail!("{} does not fit this fleet", prediction.model),
    }
}

async fn bench(args: BenchArgs) -> anyhow::Result<()> {
    let bench = Bench {
        fleet: args.fleet,
        model: args.model,
        parallelism: args.parallelism,
        sessions: args.sessions,
        prompt: args.prompt,
        tokens: args.tokens,
        rounds: args.rounds,
        save: args.save,
    };
    let report = bench.run().await?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => print!("{}", report.table()),
    }
    Ok(())
}

/// Completes at the first SIGTERM, SIGINT or Ctrl-C; the second ends the process at once.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
    #[cfg(unix)]
    let mut terminate = {
        use tokio::signal::unix::{SignalKind, signal};
        signal(SignalKind::terminate())?
    };
    tokio::spawn(async move {
        let mut sender = Some(sender);
        loop {
            #[cfg(unix)]
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            #[cfg(not(unix))]
            let _ = tokio::signal::ctrl_c().await;
            match sender.take() {
                Some(first) => drop(first.send(())),
                None => std::process::exit(130),
            }
        }
    });
    Ok(async move {
        let _ = receiver.await;
    })
}
