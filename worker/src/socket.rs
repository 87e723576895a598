//! A worker's connection over a WebSocket.

use std::collections::VecDeque;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use protocol::{
    CHUNK_BYTES_MAX, CONTROL_BYTES_MAX, Chunks, Reassembler, SUBPROTOCOL, ToWorker, is_relay,
};
use reqwest::Url;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode};
use tokio_tungstenite::tungstenite::protocol::{WebSocketConfig, frame::coding::CloseCode};
use tokio_tungstenite::tungstenite::{Error, Message, error::ProtocolError};
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream};

use crate::link::{Down, Incoming, Lost, Up};

/// How long connecting may take, TLS and upgrade included.
pub const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// A coordinator that sends nothing for so long, not even a ping, is gone.
pub const SILENCE_MAX: Duration = Duration::from_secs(20);
/// A message that cannot be sent for so long: the coordinator is gone.
const SEND_WITHIN: Duration = Duration::from_secs(20);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Trying again may help.
    #[error("cannot reach {url}: {reason}")]
    Unreachable {
        /// Where.
        url: String,
        /// Why, in words.
        reason: String,
    },
    /// The other side is there, but will not do.
    #[error("{url}: {reason}")]
    Unfit {
        /// Where.
        url: String,
        /// Why, in words.
        reason: String,
    },
}

/// A coordinator's address: `ws://HOST:PORT` or `wss://HOST:PORT`, a path before `/v1` allowed.
///
/// # Errors
/// Another scheme, or no address at all, with what was meant.
pub fn parse_address(text: &str) -> Result<Url, String> {
    let example = "ws://HOST:PORT or wss://HOST:PORT";
    let mut url =
        Url::parse(text).map_err(|e| format!("`{text}` is no address ({e}): {example}"))?;
    let scheme = url.scheme();
    match scheme {
        "ws" | "wss" => {}
        "http" => return Err(format!("`{text}`: workers join by ws:// in place of http://")),
        "https" => return Err(format!("`{text}`: workers join by wss:// in place of https://")),
        _ => return Err(format!("`{text}`: the scheme {scheme} is not known here: {example}")),
    }
    if url.host_str().is_none_or(str::is_empty) || url.query().is_some() || url.fragment().is_some()
    {
        return Err(format!("`{text}` is not an address alone: {example}"));
    }
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

/// The same place by http or https, for blobs.
///
/// # Errors
/// The address is not one that [`parse_address`] gave.
pub fn http_address(url: &Url) -> Result<Url, String> {
    let text = url.as_str();
    let rest = text.strip_prefix("ws").ok_or_else(|| format!("{text} is no ws address"))?;
    Url::parse(&format!("http{rest}")).map_err(|e| format!("{text}: {e}"))
}

/// What TLS trusts: the system's certificates, and those of a PEM file.
///
/// # Errors
/// The file cannot be read or holds no certificate.
pub fn tls_config(ca_cert: Option<&Path>) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    if let Some(path) = ca_cert {
        let problem = |e: &dyn std::fmt::Display| format!("--ca-cert {}: {e}", path.display());
        let file = File::open(path).map_err(|e| problem(&e))?;
        let mut added = 0;
        for certificate in CertificateDer::pem_reader_iter(BufReader::new(file)) {
            let certificate = certificate.map_err(|e| problem(&e))?;
            roots.add(certificate).map_err(|e| problem(&e))?;
            added += 1;
        }
        if added == 0 {
            return Err(problem(&"no certificate in it (PEM is needed)"));
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("TLS: {e}"))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// Connects to `{url}v1/worker`.
///
/// # Errors
/// [`ConnectError`], one line each.
pub async fn connect(
    url: &Url,
    tls: Option<Arc<rustls::ClientConfig>>,
) -> Result<(Reader, Writer), ConnectError> {
    let unfit = |reason: String| ConnectError::Unfit { url: url.to_string(), reason };
    let lost = |reason: String| ConnectError::Unreachable { url: url.to_string(), reason };
    let endpoint = url.join("v1/worker").map_err(|e| unfit(e.to_string()))?;
    let mut request = endpoint.as_str().into_client_request().map_err(|e| unfit(e.to_string()))?;
    let subprotocol = HeaderValue::from_static(SUBPROTOCOL);
    request.headers_mut().insert("Sec-WebSocket-Protocol", subprotocol);
    let config = WebSocketConfig::default()
        .max_message_size(Some(CONTROL_BYTES_MAX.max(CHUNK_BYTES_MAX)))
        .max_frame_size(Some(CONTROL_BYTES_MAX.max(CHUNK_BYTES_MAX)))
        .max_write_buffer_size(CONTROL_BYTES_MAX + 4 * CHUNK_BYTES_MAX);
    let connector = tls.map_or(Connector::Plain, Connector::Rustls);
    let connecting = tokio_tungstenite::connect_async_tls_with_config(
        request,
        Some(config),
        true,
        Some(connector),
    );
    let connected = timeout(CONNECT_WITHIN, connecting).await;
    let connected = connected.map_err(|_| lost(format!("no answer in {CONNECT_WITHIN:?}")))?;
    let (socket, _) = connected.map_err(|error| match error {
        Error::Http(response) => match response.status() {
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                lost(format!("it answers {status}"))
            }
            StatusCode::NOT_FOUND => unfit("there is no coordinator (404)".into()),
            status => unfit(format!("it does not let workers in ({status})")),
        },
        Error::Protocol(ProtocolError::SecWebSocketSubProtocolError(_)) => {
            unfit(format!("no coordinator that speaks {SUBPROTOCOL}: update the older one"))
        }
        Error::Protocol(
            error @ (ProtocolError::HandshakeIncomplete
            | ProtocolError::ResetWithoutClosingHandshake),
        ) => lost(error.to_string()),
        error @ (Error::Protocol(_) | Error::HttpFormat(_)) => {
            unfit(format!("what answers there is no coordinator ({error})"))
        }
        Error::Url(error) => unfit(error.to_string()),
        Error::Io(error) if certificate_problem(&error).is_some() => {
            let problem = certificate_problem(&error).unwrap_or_default();
            unfit(format!("its certificate is not accepted ({problem}): see --ca-cert"))
        }
        error => lost(error.to_string()),
    })?;
    let (sink, source) = socket.split();
    let heard = Instant::now();
    Ok((Reader { source, frames: Reassembler::new(), heard }, Writer { sink, next_frame: 0 }))
}

/// What is wrong with a certificate, if that is what is wrong.
fn certificate_problem(error: &std::io::Error) -> Option<String> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(problem) => Some(problem.to_string()),
        _ => None,
    }
}

/// The receiving half.
pub struct Reader {
    source: SplitStream<Socket>,
    frames: Reassembler,
    /// When anything came last.
    heard: Instant,
}

impl Incoming for Reader {
    async fn next(&mut self) -> Result<Down, Lost> {
        let lost = |reason: String| Lost { reason, orderly: false };
        loop {
            let message = timeout_at(self.heard + SILENCE_MAX, self.source.next()).await;
            let silent = |_| lost(format!("nothing came for {} s", SILENCE_MAX.as_secs()));
            let message = match message.map_err(silent)? {
                Some(Ok(message)) => message,
                Some(Err(error)) => return Err(lost(error.to_string())),
                None => return Err(lost("the connection broke off".into())),
            };
            self.heard = Instant::now();
            match message {
                Message::Text(json) => {
                    let message = ToWorker::from_json(&json).map_err(|e| lost(e.to_string()))?;
                    return Ok(Down::Control(message));
                }
                Message::Binary(piece) if is_relay(&piece) => return Ok(Down::Relay(piece)),
                Message::Binary(chunk) => {
                    let frame = self.frames.push(chunk).map_err(|e| lost(e.to_string()))?;
                    if let Some(frame) = frame {
                        return Ok(Down::Frame(frame));
                    }
                }
                Message::Close(close) => {
                    let orderly = close.as_ref().is_none_or(|c| {
                        matches!(c.code, CloseCode::Normal | CloseCode::Away | CloseCode::Restart)
                    });
                    let reason = close.map(|c| c.reason.to_string()).filter(|r| !r.is_empty());
                    let reason = reason.unwrap_or_else(|| "the coordinator closed it".into());
                    return Err(Lost { reason, orderly });
                }
                // Pings are answered by the library when the socket is read or written next.
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }
}

/// The sending half.
pub struct Writer {
    sink: SplitSink<Socket, Message>,
    next_frame: u32,
}

impl Writer {
    /// Sends what comes until the sender is gone, then closes. Control messages go between
    /// the chunks of a frame.
    ///
    /// # Errors
    /// Why sending failed, in words.
    pub async fn run(mut self, mut messages: mpsc::Receiver<Up>) -> Result<(), String> {
        let mut frames = VecDeque::new();
        let mut chunks: Option<Chunks> = None;
        loop {
            let next = match chunks.is_some() || !frames.is_empty() {
                // Look for control messages, but do not wait for any.
                true => messages.try_recv().ok(),
                false => match messages.recv().await {
                    None => break,
                    some => some,
                },
            };
            match next {
                Some(Up::Control(message)) => {
                    let json = message.to_json().map_err(|e| e.to_string())?;
                    self.send(Message::Text(json.into())).await?;
                    continue;
                }
                // Other ranks wait for it: it goes ahead of frames.
                Some(Up::Relay(piece)) => {
                    self.send(Message::Binary(piece)).await?;
                    continue;
                }
                Some(Up::Frame(frame)) => {
                    frames.push_back(frame);
                    continue;
                }
                None => {}
            }
            if chunks.is_none()
                && let Some(frame) = frames.pop_front()
            {
                chunks = Some(Chunks::new(&frame, self.next_frame).map_err(|e| e.to_string())?);
                self.next_frame = self.next_frame.wrapping_add(1);
            }
            match chunks.as_mut().and_then(Chunks::next) {
                Some(chunk) => self.send(Message::Binary(chunk)).await?,
                None => chunks = None,
            }
        }
        let _ = timeout(SEND_WITHIN, self.sink.close()).await;
        Ok(())
    }

    async fn send(&mut self, message: Message) -> Result<(), String> {
        match timeout(SEND_WITHIN, self.sink.send(message)).await {
            Ok(sent) => sent.map_err(|e| e.to_string()),
            Err(_) => Err(format!("nothing could be sent for {} s", SEND_WITHIN.as_secs())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_with_a_hint() {
        let url = parse_address("ws://127.0.0.1:8080").unwrap();
        assert_eq!(url.join("v1/worker").unwrap().as_str(), "ws://127.0.0.1:8080/v1/worker");
        assert_eq!(http_address(&url).unwrap().as_str(), "http://127.0.0.1:8080/");
        let url = parse_address("wss://example.org/weft").unwrap();
        assert_eq!(http_address(&url).unwrap().as_str(), "https://example.org/weft/");
        let refused = |text: &str| parse_address(text).unwrap_err();
        assert!(refused("http://h:1").contains("by ws://"), "{}", refused("http://h:1"));
        assert!(refused("https://h").contains("by wss://"));
        assert!(refused("ftp://h").contains("scheme ftp"));
        assert!(refused("localhost:8080").contains("ws://HOST:PORT"));
        assert!(refused("").contains("ws://HOST:PORT"));
        assert!(refused("ws://h?x=1").contains("not an address alone"));
    }

    #[test]
    fn a_ca_file_is_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let refused = || tls_config(Some(&path)).unwrap_err();
        assert!(refused().contains("ca.pem"), "{}", refused());
        std::fs::write(&path, "no certificate").unwrap();
        assert!(refused().contains("no certificate in it"), "{}", refused());
        std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
            .unwrap();
        assert!(refused().starts_with("--ca-cert"), "{}", refused());
    }
}
