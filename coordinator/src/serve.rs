//! `coordinator serve`: models, driver, embedded worker and HTTP, from start to stop.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::blobs::{self, Sent, Tokens};
use crate::config::{Config, Embedded};
use crate::driver::{self, Handle};
use crate::embedded;
use crate::http::{self, AppState};
use crate::ledger::Ledger;
use crate::pull::{self, Hub, Wanted};
use crate::server;
use crate::sockets::{GOODBYE_WITHIN, Sockets, Trust};
use crate::store::{self, Home, ServedModel};

/// Between looks at whether all models can be used, to say so.
const READY_POLL: Duration = Duration::from_millis(100);

/// Listens where the configuration says.
///
/// # Errors
/// The address is not one, or in use.
pub async fn bind(config: &Config) -> anyhow::Result<TcpListener> {
    let addresses = config.addresses()?;
    TcpListener::bind(&addresses[..]).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "{} is in use by another program: stop that, or choose another port with --listen",
            config.listen
        ),
        _ => anyhow::anyhow!("cannot listen on {}: {error}", config.listen),
    })
}

/// Serves until `shutdown` completes; then no new requests are taken, streams may end within
/// [`Config::grace`], and the workers are told goodbye.
///
/// # Errors
/// A model cannot be had or run, the folders cannot be used, or something of ours broke.
pub async fn run(
    listener: TcpListener,
    config: Config,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let mut shutdown = pin!(shutdown);
    let tls = config.tls.as_ref().map(server::load_tls).transpose()?;
    let home = Home::open(config.home.clone())?;
    let ledger = Ledger::open(home.root()).await?;
    let models = tokio::select! {
        models = load_models(&home, &config) => models?,
        () = &mut shutdown => return Ok(()),
    };
    let specs = models.iter().map(|model| model.spec.clone()).collect();
    let (driver, mut driver_task) =
        driver::start(config.scheduler.clone(), specs, Some(ledger.clone()));
    let closing = CancellationToken::new();
    let embedded = match config.embedded {
        Embedded::Off => None,
        which => {
            Some(embedded::start(&home, &config, which, driver.clone(), closing.clone()).await?)
        }
    };
    let (tokens, sent) = (Tokens::default(), Sent::default());
    let trust = Trust::new(config.trust_loopback, &config.invite_tokens);
    let sockets =
        Sockets::new(driver.clone(), tokens.clone(), trust, ledger.clone(), closing.clone());
    let names: Vec<String> = models.iter().map(|model| model.name.clone()).collect();
    let state = app_state(driver.clone(), models)?;
    let app = http::router(state.with_blobs_sent(sent.clone()).with_ledger(ledger.clone()))
        .merge(sockets.router())
        .merge(blobs::router(home.blobs(), tokens, sent));

    let address = listener.local_addr().context("the listener has no address")?;
    announce(address, &config);
    let telling =
        tokio::spawn(tell_when_ready(driver.clone(), address, config.tls.is_some(), names));
    let stopping = CancellationToken::new();
    let mut server = tokio::spawn(server::serve(listener, tls, app, stopping.clone()));
    tokio::select! {
        () = &mut shutdown => {}
        ended = &mut server => bail!("the HTTP server ended by itself: {ended:?}"),
        ended = &mut driver_task => bail!("the scheduler broke, which is a bug of ours: {ended:?}"),
    }
    telling.abort();
    tracing::info!("stopping: no new requests, running ones have {} s", config.grace.as_secs());
    stopping.cancel();
    if timeout(config.grace, &mut server).await.is_err() {
        tracing::warn!("some streams did not end in time and are cut");
        server.abort();
    }
    closing.cancel();
    if timeout(2 * GOODBYE_WITHIN, sockets.closed()).await.is_err() {
        tracing::warn!("some workers did not close their connections");
    }
    if let Some(embedded) = embedded {
        // It ends with its connection; a step at hand is not waited for.
        let _ = timeout(GOODBYE_WITHIN, embedded).await;
    }
    driver_task.abort();
    ledger.close().await;
    Ok(())
}

async fn load_models(home: &Home, config: &Config) -> anyhow::Result<Vec<ServedModel>> {
    let hub = Hub::from_env();
    let mut models: Vec<ServedModel> = Vec::new();
    for text in &config.models {
        let wanted = Wanted::parse(text, home)?;
        let taken: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
        let name = store::unique_name(&wanted.name(), &taken);
        let path = pull::fetch(home, &hub, &wanted, false).await?;
        models.push(prepare(home, &path, &name, &config.classes).await?);
    }
    Ok(models)
}

/// [`store::prepare`] off the runtime's threads, with a word about what it does.
///
/// # Errors
/// As [`store::prepare`].
pub async fn prepare(
    home: &Home,
    path: &Path,
    name: &str,
    classes: &[String],
) -> anyhow::Result<ServedModel> {
    let (home, path, name) = (home.clone(), path.to_owned(), name.to_owned());
    let classes = classes.to_vec();
    let began = std::time::Instant::now();
    let prepare = move || store::prepare(&home, &path, &name, &classes);
    let model = tokio::task::spawn_blocking(prepare).await.context("preparing a model")??;
    tracing::info!(
        model = model.name, path = %model.path.display(), reused = model.reused,
        seconds = began.elapsed().as_secs_f32(), "prepared a model"
    );
    Ok(model)
}

fn app_state(driver: Handle, models: Vec<ServedModel>) -> anyhow::Result<AppState> {
    let text_side = |model: ServedModel| {
        let spec = &model.spec;
        let classes: Vec<&str> = spec.classes.iter().map(|class| class.name.as_str()).collect();
        let fingerprint = format!("fp_{}_{}", &spec.manifest.hash[..12], classes.join("+"));
        let (context, name) = (spec.context, model.name.clone());
        http::Model::new(name, &model.tokenizer, context, model.created_s, fingerprint)
            .with_context(|| format!("the text side of {}", model.name))
    };
    Ok(AppState::new(driver, models.into_iter().map(text_side).collect::<Result<_, _>>()?))
}

/// Where to reach what listens on `address`, from this machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// One line that programs may read, then lines for people.
fn announce(address: SocketAddr, config: &Config) {
    let here = reachable(address);
    let s = if config.tls.is_some() { "s" } else { "" };
    println!("listening on http{s}://{here}");
    println!("OpenAI-compatible endpoint: http{s}://{here}/v1");
    let pages = http::pages::are_embedded();
    match pages {
        true => println!("lend a browser: http{s}://{here}/"),
        false => println!(
            "no browser can lend its GPU: this program was built without the pages; \
             `cargo xtask serve` builds them"
        ),
    }
    let token = if config.trust_loopback { "" } else { " --token TOKEN" };
    println!("more workers, on this machine: worker --coordinator ws{s}://{here}{token}");
    if config.trust_loopback {
        println!("  (with a proxy or tunnel on this machine add --no-trust-loopback here)");
    }
    if address.ip().is_loopback() {
        return;
    }
    let port = address.port();
    let there = match address.ip().is_unspecified() {
        true => format!("ADDRESS-OF-THIS-MACHINE:{port}"),
        false => here.to_string(),
    };
    let token = if config.invite_tokens.is_empty() { "" } else { " --token TOKEN" };
    println!("more workers, on other machines: worker --coordinator ws{s}://{there}{token}");
    match (pages, config.tls.is_some()) {
        (true, true) => println!("lend a browser, on other machines: https://{there}/"),
        (true, false) => println!(
            "  (browsers on other machines give their GPU over https only: start this with \
             --tls-cert and --tls-key, or behind a proxy that has a certificate)"
        ),
        (false, _) => {}
    }
    println!("note: whoever reaches {address} can use it; put it behind a proxy that checks");
}

/// Says once when every model can be used, with a request to try.
async fn tell_when_ready(driver: Handle, address: SocketAddr, tls: bool, names: Vec<String>) {
    let mut told_missing = false;
    loop {
        let view = driver.view().await;
        if !view.models.is_empty() && view.models.iter().all(|model| model.covered) {
            break;
        }
        if !told_missing && view.workers.is_empty() {
            println!("waiting for workers");
            told_missing = true;
        }
        tokio::time::sleep(READY_POLL).await;
    }
    let (here, s) = (reachable(address), if tls { "s" } else { "" });
    println!("ready: {}. Try", names.join(", "));
    println!(
        "  curl http{s}://{here}/v1/chat/completions -H 'content-type: application/json' -d \
         '{{\"model\": \"{}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Give me \
         three tips for a healthy life.\"}}], \"max_tokens\": 100}}'",
        names[0]
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_everywhere_is_reached_on_loopback() {
        for (listening, expected) in [
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::]:80", "[::1]:80"),
            ("192.0.2.1:80", "192.0.2.1:80"),
        ] {
            assert_eq!(reachable(listening.parse().unwrap()), expected.parse().unwrap());
        }
    }
}
