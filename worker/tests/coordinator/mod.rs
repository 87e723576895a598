//! A coordinator of a few lines: lets workers in, gives blobs, and hands each connection to
//! the test.

#![allow(dead_code)] // each test binary uses its own part

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use ed25519_dalek::{Signature, VerifyingKey};
use model::testing::TinyModel;
use model::{Gguf, Manifest, MemoryBlobs, convert};
use protocol::*;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use worker::Up;

/// Everything in these tests happens within this time, or they fail.
pub const SOON: Duration = Duration::from_secs(60);
pub const TOKEN: &str = "blob-token";

/// A synthetic model, its blobs and its manifest's blob.
#[derive(Clone)]
pub struct Model {
    pub manifest: Manifest,
    pub manifest_blob: BlobRef,
    pub blobs: BTreeMap<String, Vec<u8>>,
}

impl Model {
    pub fn tiny() -> Model {
        let file = TinyModel::llama(5).to_bytes();
        let gguf = Gguf::parse(&[&file]).unwrap();
        let mut blobs = MemoryBlobs::default();
        let manifest = convert(&gguf, "tiny", &mut blobs).unwrap();
        let bytes = manifest.to_bytes();
        let hash = blake3::hash(&bytes).to_hex().to_string();
        let manifest_blob = BlobRef { hash: hash.clone(), bytes: bytes.len() as u64 };
        let mut blobs = blobs.by_hash;
        blobs.insert(hash, bytes);
        Model { manifest, manifest_blob, blobs }
    }

    pub fn assignment(&self, id: u64, first: u32, end: u32) -> Assignment {
        let parts = &self.manifest.parts[first as usize..end as usize];
        let blobs: BTreeMap<String, u64> =
            parts.iter().flat_map(|p| &p.blobs).map(|b| (b.hash.clone(), b.bytes)).collect();
        Assignment {
            id: AssignmentId(id),
            model: "tiny".into(),
            manifest: self.manifest_blob.clone(),
            span: Span { first, end },
            class: "canonical-1".into(),
            blobs: blobs.into_iter().map(|(hash, bytes)| BlobRef { hash, bytes }).collect(),
            kv_pages: 16,
            tensor: None,
        }
    }
}

/// How blobs are given, and who asked.
#[derive(Default)]
pub struct Blobs {
    pub by_hash: BTreeMap<String, Vec<u8>>,
    /// Each request's hash and range.
    pub requests: Vec<(String, Option<String>)>,
    /// The next answer breaks off after so many bytes.
    pub cut_after: Option<usize>,
}

#[derive(Clone)]
struct Shared {
    blobs: Arc<Mutex<Blobs>>,
    sockets: mpsc::Sender<WebSocket>,
}

pub struct Coordinator {
    pub address: SocketAddr,
    pub blobs: Arc<Mutex<Blobs>>,
    sockets: mpsc::Receiver<WebSocket>,
}

impl Coordinator {
    pub async fn start(model: &Model) -> Coordinator {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let by_hash = model.blobs.clone();
        let blobs = Arc::new(Mutex::new(Blobs { by_hash, ..Blobs::default() }));
        let (sender, sockets) = mpsc::channel(8);
        let app = Router::new()
            .route("/v1/worker", get(worker))
            .route("/v1/blobs/{hash}", get(blob))
            .with_state(Shared { blobs: blobs.clone(), sockets: sender });
        tokio::spawn(axum::serve(listener, app).into_future());
        Coordinator { address, blobs, sockets }
    }

    pub fn url(&self) -> reqwest::Url {
        worker::socket::parse_address(&format!("ws://{}", self.address)).unwrap()
    }

    /// The next worker to connect, not yet greeted.
    pub async fn connection(&mut self) -> Peer {
        let socket = timeout(SOON, self.sockets.recv()).await.expect("no worker came").unwrap();
        Peer { socket, frames: Reassembler::new(), sent_frames: 0 }
    }

    /// The next worker, greeted and welcomed.
    pub async fn joined(&mut self) -> (Peer, Hello) {
        let mut peer = self.connection().await;
        let hello = peer.greet().await;
        (peer, hello)
    }

    pub fn requests(&self) -> Vec<(String, Option<String>)> {
        self.blobs.lock().unwrap().requests.clone()
    }
}

async fn worker(State(shared): State<Shared>, upgrade: WebSocketUpgrade) -> Response {
    upgrade
        .protocols([SUBPROTOCOL])
        .on_upgrade(move |socket| async move { drop(shared.sockets.send(socket).await) })
}

async fn blob(
    State(shared): State<Shared>,
    Path(hash): Path<String>,
    headers: HeaderMap,
) -> Response {
    let bearer = format!("Bearer {TOKEN}");
    if headers.get(header::AUTHORIZATION).is_none_or(|value| *value != *bearer) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let mut blobs = shared.blobs.lock().unwrap();
    let range = headers.get(header::RANGE).map(|r| r.to_str().unwrap().to_string());
    blobs.requests.push((hash.clone(), range.clone()));
    let Some(bytes) = blobs.by_hash.get(&hash).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let start: Option<usize> = range
        .map(|r| r.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap());
    let from = start.unwrap_or(0);
    let body = match blobs.cut_after.take() {
        Some(cut) => {
            // Of no announced length, so that its end is where the bytes stop coming.
            let first = Bytes::copy_from_slice(&bytes[from..from + cut]);
            let pieces = [Ok::<_, std::io::Error>(first)];
            Body::from_stream(futures_util::stream::iter(pieces))
        }
        None => Body::from(bytes[from..].to_vec()),
    };
    let total = bytes.len();
    match start {
        Some(from) => {
            let range = format!("bytes {from}-{}/{total}", total - 1);
            (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, range)], body).into_response()
        }
        None => body.into_response(),
    }
}

/// A worker, seen from the coordinator.
pub struct Peer {
    socket: WebSocket,
    frames: Reassembler,
    sent_frames: u32,
}

impl Peer {
    pub async fn greet(&mut self) -> Hello {
        let nonce = "5a".repeat(32);
        let protocol = PROTOCOL_VERSION;
        self.say(ToWorker::Challenge { protocol, nonce: nonce.clone() }).await;
        let FromWorker::Hello(hello) = self.control().await else { panic!("no hello") };
        let key: [u8; 32] = unhex(&hello.public_key).try_into().unwrap();
        let signature = Signature::from_slice(&unhex(&hello.signature)).unwrap();
        let key = VerifyingKey::from_bytes(&key).unwrap();
        let signed = match &hello.token {
            Some(token) => invited_bytes(protocol, &nonce, token),
            None => challenge_bytes(protocol, &nonce),
        };
        key.verify_strict(&signed, &signature).unwrap();
        let (worker, blob_token) = (WorkerId(1), TOKEN.to_string());
        self.say(ToWorker::Welcome { worker, blob_token, trusted: true }).await;
        *hello
    }

    pub async fn say(&mut self, message: ToWorker) {
        self.socket.send(Message::Text(message.to_json().unwrap().into())).await.unwrap();
    }

    pub async fn send(&mut self, frame: &Frame) {
        for chunk in Chunks::new(frame, self.sent_frames).unwrap() {
            self.socket.send(Message::Binary(chunk)).await.unwrap();
        }
        self.sent_frames += 1;
    }

    /// The next control message but for progress.
    pub async fn control(&mut self) -> FromWorker {
        loop {
            match self.next().await {
                Up::Control(FromWorker::Progress { .. }) => {}
                Up::Control(message) => return message,
                Up::Frame(frame) => panic!("a frame: {frame:?}"),
                Up::Relay(piece) => panic!("a relayed piece: {piece:?}"),
            }
        }
    }

    pub async fn answer(&mut self) -> Frame {
        match self.next().await {
            Up::Frame(frame) => frame,
            Up::Control(message) => panic!("a control message: {message:?}"),
            Up::Relay(piece) => panic!("a relayed piece: {piece:?}"),
        }
    }

    pub async fn assign(&mut self, assignment: Assignment) -> FromWorker {
        self.say(ToWorker::Assign(assignment)).await;
        self.control().await
    }

    async fn next(&mut self) -> Up {
        loop {
            let message = timeout(SOON, self.socket.recv()).await.expect("the worker is silent");
            match message.expect("the worker closed").unwrap() {
                Message::Text(json) => return Up::Control(FromWorker::from_json(&json).unwrap()),
                Message::Binary(piece) if is_relay(&piece) => return Up::Relay(piece),
                Message::Binary(chunk) => {
                    if let Some(frame) = self.frames.push(chunk).unwrap() {
                        return Up::Frame(frame);
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Waits for the worker to close the connection.
    pub async fn closed(&mut self) {
        let message = timeout(SOON, self.socket.recv()).await.expect("the worker stays");
        assert!(matches!(message, None | Some(Ok(Message::Close(_)))), "{message:?}");
    }
}

fn unhex(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().map(|c| c.to_digit(16).unwrap() as u8).collect();
    digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect()
}
