//! A coordinator's sockets on loopback, with a model that exists in name only, and peers
//! made by hand.

use std::net::SocketAddr;

use axum::http::HeaderValue;
use coordinator::blobs::{self, Sent, Tokens};
use coordinator::driver::{self, Handle};
use coordinator::ledger::Ledger;
use coordinator::sockets::{Sockets, Trust};
use ed25519_dalek::{Signer, SigningKey};
use futures_util::{SinkExt, StreamExt};
use protocol::payload::to_payload;
use protocol::{
    BlobRef, Chunks, Dtype, Frame, FrameKind, FromWorker, Hello, PROTOCOL_VERSION, Reassembler,
    SUBPROTOCOL, Status, ToWorker, WorkerId, WorkerKind, challenge_bytes, invited_bytes,
};
use scheduler::{ClassSpec, Config, ModelSpec, PartSpec};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tokio_util::sync::CancellationToken;

pub const VOCAB: u32 = 5;
pub const WIDTH: u32 = 4;
pub const LAYERS: u32 = 2;

fn blob(number: u64, bytes: u64) -> BlobRef {
    BlobRef { hash: format!("{number:064x}"), bytes }
}

fn model() -> ModelSpec {
    let part = |part| PartSpec { blobs: vec![blob(part, 1000)], work_bytes: 1000 * part.min(1) };
    ModelSpec {
        name: "m".into(),
        manifest: blob(99, 100),
        classes: vec![ClassSpec { name: "canonical-1".into(), kv_bytes_per_position: 16 }],
        parts: (0..u64::from(LAYERS) + 2).map(part).collect(),
        d_model: WIDTH,
        vocab: VOCAB,
        context: 1024,
        divisions: Vec::new(),
    }
}

/// The sockets and blobs of a coordinator.
pub struct Server {
    pub address: SocketAddr,
    pub driver: Handle,
    pub sockets: Sockets,
    pub ledger: Ledger,
    pub closing: CancellationToken,
    _home: tempfile::TempDir,
    /// Where its blobs lie.
    pub blobs: tempfile::TempDir,
}

impl Server {
    pub async fn start(trust: Trust) -> Server {
        let config = Config { place_delay: std::time::Duration::ZERO, ..Config::default() };
        let home = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(home.path()).await.unwrap();
        let (driver, _task) = driver::start(config, vec![model()], Some(ledger.clone()));
        let (tokens, closing) = (Tokens::default(), CancellationToken::new());
        let (seen, handed) = (driver.clone(), tokens.clone());
        let sockets = Sockets::new(seen, handed, trust, ledger.clone(), closing.clone());
        let blobs = tempfile::tempdir().unwrap();
        let app =
            sockets.router().merge(blobs::router(blobs.path().to_owned(), tokens, Sent::default()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = app.into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(axum::serve(listener, service).into_future());
        Server { address, driver, sockets, ledger, closing, blobs, _home: home }
    }

    /// Connects with some subprotocol and headers.
    pub async fn connect(
        &self,
        subprotocol: Option<&str>,
        headers: &[(&'static str, &str)],
    ) -> Result<Peer, Error> {
        let mut request = format!("ws://{}/v1/worker", self.address).into_client_request()?;
        let subprotocol = subprotocol.map(|name| ("sec-websocket-protocol", name));
        for (name, value) in headers.iter().copied().chain(subprotocol) {
            request.headers_mut().insert(name, HeaderValue::from_str(value).unwrap());
        }
        let (socket, _response) = tokio_tungstenite::connect_async(request).await?;
        Ok(Peer { socket, frames: Reassembler::new(), frames_sent: 0 })
    }

    /// Connects as our workers do, up to the challenge.
    pub async fn meet(&self) -> (Peer, String) {
        let mut peer = self.connect(Some(SUBPROTOCOL), &[]).await.unwrap();
        match peer.next().await {
            Heard::Control(ToWorker::Challenge { protocol: PROTOCOL_VERSION, nonce }) => {
                (peer, nonce)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Connects, says hello as `change` has it, and hears the answer.
    pub async fn hello(&self, key: u8, change: impl FnOnce(&mut Hello)) -> (Peer, Heard) {
        let (mut peer, nonce) = self.meet().await;
        let mut hello = hello(key, &nonce);
        change(&mut hello);
        peer.text(&serde_json::to_string(&FromWorker::Hello(Box::new(hello))).unwrap()).await;
        let heard = peer.next().await;
        (peer, heard)
    }

    /// Connects and is welcomed.
    pub async fn join(&self, key: u8) -> (Peer, Welcome) {
        match self.hello(key, |_| {}).await {
            (peer, Heard::Control(ToWorker::Welcome { worker, blob_token, trusted })) => {
                (peer, Welcome { worker, blob_token, trusted })
            }
            (_, other) => panic!("{other:?}"),
        }
    }
}

pub struct Welcome {
    pub worker: WorkerId,
    pub blob_token: String,
    pub trusted: bool,
}

/// A good hello of the worker whose secret key is `[key; 32]`.
pub fn hello(key: u8, nonce: &str) -> Hello {
    let key = SigningKey::from_bytes(&[key; 32]);
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    Hello {
        protocol: PROTOCOL_VERSION,
        public_key: hex(key.verifying_key().as_bytes()),
        signature: hex(&key.sign(&challenge_bytes(PROTOCOL_VERSION, nonce)).to_bytes()),
        token: None,
        name: "by hand".into(),
        kind: WorkerKind::Native,
        backend: "none".into(),
        device: String::new(),
        notes: Vec::new(),
        classes: vec!["canonical-1".into()],
        memory_bytes: 1 << 30,
        boundaries: Vec::new(),
        bytes_per_s: [1e9, 4e9],
        step_credits: 2,
        cached: Vec::new(),
    }
}

/// The same with a token, which it signs.
pub fn invited(key: u8, nonce: &str, token: &str) -> Hello {
    let signing = SigningKey::from_bytes(&[key; 32]);
    let signature = signing.sign(&invited_bytes(PROTOCOL_VERSION, nonce, token)).to_bytes();
    let signature = signature.iter().map(|byte| format!("{byte:02x}")).collect();
    Hello { signature, token: Some(token.into()), ..hello(key, nonce) }
}

/// The worker's end of a socket.
pub struct Peer {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    frames: Reassembler,
    frames_sent: u32,
}

/// What a peer hears; pings are answered on the way.
#[derive(Debug)]
pub enum Heard {
    Control(ToWorker),
    Step(Frame),
    Closed,
}

impl Peer {
    pub async fn next(&mut self) -> Heard {
        loop {
            match self.socket.next().await {
                None | Some(Err(_)) | Some(Ok(Message::Close(_))) => return Heard::Closed,
                Some(Ok(Message::Text(json))) => match ToWorker::from_json(&json).unwrap() {
                    ToWorker::Ping { nonce } => {
                        // The other end may have closed meanwhile.
                        let pong = FromWorker::Pong { nonce }.to_json().unwrap();
                        let _ = self.socket.send(Message::Text(pong.into())).await;
                    }
                    message => return Heard::Control(message),
                },
                Some(Ok(Message::Binary(chunk))) => {
                    if let Some(frame) = self.frames.push(chunk).unwrap() {
                        return Heard::Step(frame);
                    }
                }
                Some(Ok(_)) => {}
            }
        }
    }

    /// The reason and `retry` of the dismissal that comes, and that the socket closes.
    pub async fn dismissed(&mut self) -> (String, bool) {
        loop {
            match self.next().await {
                Heard::Control(ToWorker::Dismiss { reason, retry }) => {
                    assert!(matches!(self.next().await, Heard::Closed));
                    return (reason, retry);
                }
                Heard::Closed => panic!("closed without a word"),
                Heard::Control(_) | Heard::Step(_) => {}
            }
        }
    }

    pub async fn text(&mut self, text: &str) {
        self.socket.send(Message::Text(text.into())).await.unwrap();
    }

    pub async fn binary(&mut self, bytes: Vec<u8>) {
        // The other end may close before all of it is out.
        let _ = self.socket.send(Message::Binary(bytes.into())).await;
    }

    pub async fn say(&mut self, message: FromWorker) {
        self.text(&message.to_json().unwrap()).await;
    }

    pub async fn frame(&mut self, frame: &Frame) {
        for chunk in Chunks::new(frame, self.frames_sent).unwrap() {
            self.socket.send(Message::Binary(chunk)).await.unwrap();
        }
        self.frames_sent += 1;
    }

    /// Does as it is told until a step comes.
    pub async fn until_step(&mut self) -> Frame {
        loop {
            match self.next().await {
                Heard::Step(frame) => return frame,
                Heard::Control(ToWorker::Assign(assignment)) => {
                    self.say(FromWorker::Ready { assignment: assignment.id }).await;
                }
                Heard::Control(ToWorker::Dismiss { reason, .. }) => panic!("{reason}"),
                Heard::Control(_) => {}
                Heard::Closed => panic!("closed"),
            }
        }
    }

    pub async fn close(mut self) {
        self.socket.close(None).await.unwrap();
        while !matches!(self.next().await, Heard::Closed) {}
    }
}

/// The answer to a step, every value of it `value`.
pub fn answer(step: &Frame, value: f32) -> Frame {
    let head = step.span.end == LAYERS + 2;
    let width = if head { VOCAB } else { WIDTH };
    let mut frame = Frame { kind: FrameKind::Result, dtype: Dtype::F32, ..step.clone() };
    for segment in &mut frame.segments {
        segment.status = Status::Ok;
    }
    let values = frame.payload_rows(head) * width;
    frame.payload = to_payload(vec![value; values as usize]);
    frame
}
