//! A liar: stands between an honest worker and its coordinator and alters what the worker
//! computed, with good checksums. The worker's key and all else that it says are its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{SinkExt, StreamExt};
use protocol::{Chunks, Frame, Reassembler, SUBPROTOCOL};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::{accept_hdr_async, client_async};

use super::rng::Rng;

/// How a request for a worker's socket begins; all else is relayed as it is.
const SOCKET: &[u8] = b"GET /v1/worker ";
/// The lower bits of an f32 that are altered: what is left is within 2⁻⁷ of what was computed.
const ALTERED_BITS: u32 = 0xffff;

/// See the module's documentation.
pub struct Forger {
    /// `127.0.0.1:PORT`, where the worker finds the coordinator.
    pub address: String,
    /// Values altered so far.
    altered: Arc<AtomicU64>,
    accepts: JoinHandle<()>,
}

impl Forger {
    /// Leads to `target`. Tells the truth about so many rows first, counted over all
    /// connections, then alters one value of each row.
    pub async fn start(target: &str, honest_rows: u64) -> Forger {
        let target: SocketAddr = target.parse().expect("an address");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let altered = Arc::new(AtomicU64::new(0));
        let lie = Lie {
            honest_rows,
            rows: Arc::default(),
            altered: altered.clone(),
            rng: Rng::new(honest_rows),
        };
        let accepts = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (worker, _) = listener.accept().await.expect("a connection");
                connections.spawn(relay(worker, target, lie.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Forger { address, altered, accepts }
    }

    /// Values altered so far.
    pub fn altered(&self) -> u64 {
        self.altered.load(Ordering::Relaxed)
    }
}

impl Drop for Forger {
    fn drop(&mut self) {
        self.accepts.abort();
    }
}

async fn relay(mut worker: TcpStream, target: SocketAddr, lie: Lie) {
    let mut start = [0; SOCKET.len()];
    while let Ok(seen @ 1..) = worker.peek(&mut start).await {
        if seen == start.len() || !SOCKET.starts_with(&start[..seen]) {
            break;
        }
        tokio::task::yield_now().await;
    }
    let Ok(mut coordinator) = TcpStream::connect(target).await else { return };
    let _ = (worker.set_nodelay(true), coordinator.set_nodelay(true));
    if start == SOCKET {
        relay_socket(worker, coordinator, target, lie).await;
    } else {
        let _ = copy_bidirectional(&mut worker, &mut coordinator).await;
    }
}

/// Both directions of a worker's socket, until one of them ends.
async fn relay_socket(worker: TcpStream, coordinator: TcpStream, target: SocketAddr, lie: Lie) {
    let ours = HeaderValue::from_static(SUBPROTOCOL);
    let mut request =
        format!("ws://{target}/v1/worker").into_client_request().expect("a good address");
    request.headers_mut().insert("Sec-WebSocket-Protocol", ours.clone());
    let Ok((coordinator, _)) = client_async(request, coordinator).await else { return };
    #[expect(clippy::result_large_err, reason = "the library's callback has that type")]
    let agree = |_: &Request, mut response: Response| {
        response.headers_mut().insert("Sec-WebSocket-Protocol", ours);
        Ok(response)
    };
    let accepted = accept_hdr_async(worker, agree).await;
    let Ok(worker) = accepted else { return };
    let (mut to_worker, mut from_worker) = worker.split();
    let (mut to_coordinator, mut from_coordinator) = coordinator.split();
    let down = async {
        while let Some(Ok(message)) = from_coordinator.next().await {
            if to_worker.send(message).await.is_err() {
                break;
            }
        }
    };
    let up = async {
        let (mut frames, mut number, mut lie) = (Reassembler::new(), 0, lie);
        while let Some(Ok(message)) = from_worker.next().await {
            let Message::Binary(chunk) = message else {
                if to_coordinator.send(message).await.is_err() {
                    break;
                }
                continue;
            };
            let Some(frame) = frames.push(chunk).expect("the worker speaks the protocol") else {
                continue;
            };
            let chunks = Chunks::new(&lie.told(frame), number).expect("it is as good as it was");
            number = number.wrapping_add(1);
            for chunk in chunks {
                if to_coordinator.send(Message::Binary(chunk)).await.is_err() {
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = down => {}
        () = up => {}
    }
}

/// What is told instead of what was computed.
#[derive(Clone)]
struct Lie {
    honest_rows: u64,
    rows: Arc<AtomicU64>,
    altered: Arc<AtomicU64>,
    rng: Rng,
}

impl Lie {
    /// An answer with one value of each row altered.
    fn told(&mut self, mut frame: Frame) -> Frame {
        let rows = frame.payload_rows(false) as usize;
        if rows == 0 {
            return frame;
        }
        let mut payload = frame.payload.to_vec();
        let width = payload.len() / rows;
        for row in payload.chunks_exact_mut(width) {
            if self.rows.fetch_add(1, Ordering::Relaxed) < self.honest_rows {
                continue;
            }
            let at = 4 * self.rng.below(width as u64 / 4) as usize;
            let value = u32::from_le_bytes(row[at..at + 4].try_into().expect("4 bytes"));
            let flips = 1 + self.rng.next() as u32 % ALTERED_BITS;
            row[at..at + 4].copy_from_slice(&(value ^ flips).to_le_bytes());
            self.altered.fetch_add(1, Ordering::Relaxed);
        }
        frame.payload = payload.into();
        frame
    }
}
