//! Accepts connections and hands their requests to the router.
//!
//! What `axum::serve` does, with bounds: how many connections there may be, how long a client
//! may take over a request's head and may leave its answer unread, and TLS.

mod stall;
mod tls;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

pub use stall::STALL_MAX;
use stall::Stalls;
pub use tls::{TlsError, TlsFiles, load as load_tls};

/// HTTP connections at a time, workers' sockets not counted; further ones wait until one ends.
pub const CONNECTIONS_MAX: usize = 2048;
/// How long a client may take over a request's head, and between two requests.
pub const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// How long a client may take over TLS's greeting.
const TLS_WITHIN: Duration = Duration::from_secs(10);
/// A pause when the system gives no connection, most likely for want of file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);
/// The first byte of a TLS greeting: a handshake record.
const TLS_HANDSHAKE: u8 = 22;
/// For who speaks HTTP where TLS is spoken.
const PLAIN_ANSWER: &str = "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\n\
                            connection: close\r\n\r\nThis port speaks TLS: ask for https:// (or \
                            wss://) instead of http://.\n";

/// Serves `app` until `stopping`; then takes no more connections, and returns when those that
/// there are have had their answers. Dropped before that, it cuts them.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    app: Router,
    stopping: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await;
            (place.expect("it is never closed"), listener.accept().await)
        };
        tokio::select! {
            () = stopping.cancelled() => break,
            Some(_ended) = connections.join_next() => {}
            (place, accepted) = accepted => match accepted {
                Ok((stream, address)) => {
                    let (tls, app, stopping) = (tls.clone(), app.clone(), stopping.clone());
                    connections.spawn(async move {
                        let _place = place;
                        connection(stream, address, tls, app, stopping).await;
                    });
                }
                Err(error) if is_the_peers(&error) => {}
                Err(error) => {
                    tracing::error!(%error, "no connection can be taken");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Whether a failure to accept is only this peer's.
fn is_the_peers(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn connection(
    mut stream: TcpStream,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    app: Router,
    stopping: CancellationToken,
) {
    // A step's answer is small and urgent: it must not wait to be joined with others.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return requests(Stalls::new(stream), address, app, stopping).await;
    };
    let greeted = timeout(TLS_WITHIN, async {
        let mut first = [0];
        stream.peek(&mut first).await?;
        if first[0] != TLS_HANDSHAKE {
            stream.write_all(PLAIN_ANSWER.as_bytes()).await?;
            stream.shutdown().await?;
            return Ok(None);
        }
        tls.accept(Stalls::new(stream)).await.map(Some)
    });
    match greeted.await {
        Ok(Ok(Some(stream))) => requests(stream, address, app, stopping).await,
        Ok(Ok(None)) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(%address, %error, "no TLS with a peer"),
    }
}

/// Answers one connection's requests, until it is idle once a shutdown has begun.
async fn requests(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    address: SocketAddr,
    app: Router,
    stopping: CancellationToken,
) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(address));
        let answer = app.clone().oneshot(request.map(Body::new));
        async move { Ok::<Response, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    // How a client went is its own business.
    tokio::select! {
        _ended = &mut connection => return,
        () = stopping.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ended = connection.await;
}
