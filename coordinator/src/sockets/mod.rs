//! `GET /v1/worker`: the workers' WebSocket; `GET /v1/worker/probe`: what to measure a link with.
//!
//! A peer proves its key, says what it can do, is welcomed, and from then on two loops run
//! beside each other: one turns its messages into scheduler events, the other sends what the
//! driver queued for it. Whatever is wrong with a peer ends that peer's connection with a
//! reason and is counted; nobody else notices.

mod connection;
mod handshake;
mod probe;
mod trust;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{ConnectInfo, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use protocol::{CONTROL_BYTES_MAX, SUBPROTOCOL};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use self::probe::PROBE_BYTES_MAX;
pub use self::trust::Trust;
use crate::blobs::Tokens;
use crate::driver::Handle;
use crate::ledger::Ledger;

/// Workers that may be connected; more are told to come back later.
pub const WORKERS_MAX: usize = 4096;
/// Sockets that may be open without a good hello; more are turned away with 503.
pub const STRANGERS_MAX: usize = 256;
/// How long a peer may take over its hello.
pub const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// How long looking a peer up in the database may take.
pub const KNOWN_WITHIN: Duration = Duration::from_secs(8);
/// Between pings, which measure the round trip.
pub const PING_EVERY: Duration = Duration::from_secs(3);
/// A worker that sends nothing for this long, not even a pong, is gone.
pub const SILENCE_MAX: Duration = Duration::from_secs(20);
/// How long a goodbye may take before the socket is dropped.
pub const GOODBYE_WITHIN: Duration = Duration::from_secs(2);

/// What every worker's socket shares.
#[derive(Clone)]
pub struct Sockets {
    shared: Arc<Shared>,
}

struct Shared {
    driver: Handle,
    tokens: Tokens,
    trust: Trust,
    ledger: Ledger,
    counters: Counters,
    strangers: Arc<Semaphore>,
    workers: Arc<Semaphore>,
    shutdown: CancellationToken,
}

/// How often peers went wrong, since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Welcomed.
    pub welcomed: AtomicU64,
    /// Turned away: version, signature, token, or no room.
    pub refused: AtomicU64,
    /// Dismissed for a message that no worker of ours would send.
    pub violations: AtomicU64,
    /// Silent for [`SILENCE_MAX`], or without a hello for [`HELLO_WITHIN`].
    pub silent: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Sockets {
    /// Sockets that report to `driver`, hand out `tokens` for blobs, look workers up in `ledger`
    /// and close on `shutdown`.
    pub fn new(
        driver: Handle,
        tokens: Tokens,
        trust: Trust,
        ledger: Ledger,
        shutdown: CancellationToken,
    ) -> Sockets {
        Sockets {
            shared: Arc::new(Shared {
                driver,
                tokens,
                trust,
                ledger,
                counters: Counters::default(),
                strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
                workers: Arc::new(Semaphore::new(WORKERS_MAX)),
                shutdown,
            }),
        }
    }

    /// How often peers went wrong.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Waits until every worker's connection has ended.
    pub async fn closed(&self) {
        let all = u32::try_from(WORKERS_MAX).expect("a small number");
        // Never closed, so this fails never.
        let _ = self.shared.workers.acquire_many(all).await;
    }

    /// `GET /v1/worker`, which needs `ConnectInfo<SocketAddr>`, and its probe.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/v1/worker", get(upgrade))
            .route("/v1/worker/probe", get(probe::probe))
            .with_state(self.clone())
    }
}

/// Where a socket comes from, as far as trust goes.
#[derive(Clone, Copy, Debug)]
struct Origin {
    address: SocketAddr,
    /// The address is the peer's own and the peer is no web page: no proxy stands between
    /// (it would make everyone loopback), and no browser, where any site may open a socket
    /// to this machine.
    direct: bool,
}

impl Origin {
    /// What workers that are lost together have in common: their address. It is not known of
    /// those that come through a proxy or tunnel on this machine.
    fn machine(self) -> String {
        // One machine is one address, also where the listener speaks IPv6 and the peer IPv4.
        let ip = self.address.ip().to_canonical();
        if ip.is_loopback() && !self.direct { String::new() } else { ip.to_string() }
    }
}

async fn upgrade(
    State(sockets): State<Sockets>,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    socket: WebSocketUpgrade,
) -> Response {
    let shared = sockets.shared;
    if !is_our_page(&headers) {
        let reason = "a page of another site may not make its visitors workers here\n";
        return (StatusCode::FORBIDDEN, reason).into_response();
    }
    let Some(offered) = offered_version(&socket) else {
        let reason = format!("a worker's socket needs the subprotocol {SUBPROTOCOL}\n");
        return (StatusCode::BAD_REQUEST, reason).into_response();
    };
    let Ok(stranger) = shared.strangers.clone().try_acquire_owned() else {
        let reason = "too many sockets are waiting to say hello, try again later\n";
        return (StatusCode::SERVICE_UNAVAILABLE, reason).into_response();
    };
    let proxied = ["forwarded", "x-forwarded-for", "x-real-ip", "via"];
    let direct = !headers.contains_key("origin")
        && !proxied.iter().any(|name| headers.contains_key(*name))
        && asks_for_loopback(&headers);
    let origin = Origin { address, direct };
    let other_version = (offered != SUBPROTOCOL).then(|| offered.clone());
    socket
        .protocols([offered])
        .max_message_size(CONTROL_BYTES_MAX)
        .max_frame_size(CONTROL_BYTES_MAX)
        .on_upgrade(move |socket| async move {
            connection::serve(&shared, socket, origin, other_version, stranger).await;
        })
}

/// Whether the peer is no web page, or one of this coordinator's own: any site may open
/// sockets in its visitors' names. A proxy that asks for another host passes on the one that
/// it was asked for, which no page can.
fn is_our_page(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get("origin") else { return true };
    let host = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    let Some((_, host)) = host else { return false };
    let asked = ["host", "x-forwarded-host"].map(|name| headers.get(name));
    let mut asked = asked.into_iter().flatten().filter_map(|asked| asked.to_str().ok());
    asked.any(|asked| asked.trim().eq_ignore_ascii_case(host))
}

/// Whether the peer asked for this machine by a name that only this machine has: a tunnel or
/// proxy usually passes on the public name that it was asked for.
fn asks_for_loopback(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get("host").and_then(|host| host.to_str().ok()) else { return false };
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    let address = name.parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost")
        || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Ours if the peer offers it, else the first weft version that it does offer: that peer is
/// let in as far as being told which version is spoken here.
fn offered_version(socket: &WebSocketUpgrade) -> Option<String> {
    let offered: Vec<String> = socket
        .requested_protocols()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_owned())
        .filter(|name| name.starts_with("weft.") && name.len() <= 32)
        .collect();
    let ours = offered.iter().find(|name| *name == SUBPROTOCOL);
    ours.or(offered.first()).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_this_host_may_open_workers_sockets() {
        let check = |headers: &[(&'static str, &str)], expected: bool| {
            let headers: HeaderMap = headers
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect::<Vec<(axum::http::HeaderName, axum::http::HeaderValue)>>()
                .into_iter()
                .collect();
            assert_eq!(is_our_page(&headers), expected, "{headers:?}");
        };
        let host = ("host", "weft.example:8080");
        check(&[host], true);
        check(&[host, ("origin", "http://weft.example:8080")], true);
        check(&[host, ("origin", "https://WEFT.example:8080")], true);
        check(&[host, ("origin", "http://weft.example")], false);
        check(&[host, ("origin", "https://elsewhere.example")], false);
        check(&[host, ("origin", "null")], false);
        check(&[("origin", "http://weft.example:8080")], false);
        let proxied = ("x-forwarded-host", "weft.example");
        check(&[("host", "127.0.0.1:8080"), proxied, ("origin", "https://weft.example")], true);
    }

    #[test]
    fn one_machine_has_one_name_whichever_way_it_comes() {
        for (address, direct, expected) in [
            ("192.0.2.1:9", false, "192.0.2.1"),
            ("[::ffff:192.0.2.1]:9", false, "192.0.2.1"),
            ("[2001:db8::1]:9", false, "2001:db8::1"),
            ("127.0.0.1:9", false, ""),
            ("[::ffff:127.0.0.1]:9", false, ""),
            ("[::ffff:127.0.0.1]:9", true, "127.0.0.1"),
        ] {
            let origin = Origin { address: address.parse().unwrap(), direct };
            assert_eq!(origin.machine(), expected, "{address}");
        }
    }

    #[test]
    fn only_loopback_names_ask_for_loopback() {
        for (host, expected) in [
            ("localhost:8080", true),
            ("127.0.0.1:8080", true),
            ("[::1]:8080", true),
            ("127.0.0.1", true),
            ("weft.example.org", false),
            ("192.0.2.1:8080", false),
            ("localhost.example.org", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(axum::http::header::HOST, host.parse().unwrap())]);
            assert_eq!(asks_for_loopback(&headers), expected, "{host}");
        }
        assert!(!asks_for_loopback(&HeaderMap::new()));
    }
}
