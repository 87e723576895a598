//! Pulling from something that answers as the Hub does, on loopback.

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use coordinator::pull::{Hub, PullError, Wanted, fetch};
use coordinator::store::Home;
use futures_util::StreamExt;
use sha2::{Digest, Sha256};

/// What the fake Hub serves and how it misbehaves.
struct Fake {
    content: Bytes,
    /// What it claims the SHA-256 to be.
    sha256: String,
    /// How many of the next downloads break off in the middle.
    breaks: AtomicUsize,
    /// `Range` headers of the downloads, in order.
    ranges: Mutex<Vec<Option<String>>>,
    /// Whether large files lie elsewhere, as the Hub's do.
    redirects: bool,
    address: Mutex<Option<SocketAddr>>,
}

fn hex(hash: impl AsRef<[u8]>) -> String {
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn resolve(State(fake): State<Arc<Fake>>, method: Method, headers: HeaderMap) -> Response {
    let linked = [
        ("x-linked-etag", format!("\"{}\"", fake.sha256)),
        ("x-linked-size", fake.content.len().to_string()),
        ("x-repo-commit", "0".repeat(40)),
    ];
    if fake.redirects {
        // Another host, as far as a client can tell: the name differs.
        let port = fake.address.lock().unwrap().unwrap().port();
        let location = [(header::LOCATION, format!("http://localhost:{port}/storage"))];
        return (StatusCode::FOUND, linked, location).into_response();
    }
    if method == Method::HEAD {
        return (linked, [(header::CONTENT_LENGTH, fake.content.len().to_string())])
            .into_response();
    }
    storage(State(fake), headers).await
}

async fn storage(State(fake): State<Arc<Fake>>, headers: HeaderMap) -> Response {
    let range = headers.get(header::RANGE).map(|value| value.to_str().unwrap().to_owned());
    fake.ranges.lock().unwrap().push(range.clone());
    let total = fake.content.len();
    let start = range.map_or(0, |r| r["bytes=".len()..r.len() - 1].parse::<usize>().unwrap());
    let status = if start > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let rest = fake.content.slice(start..);
    let breaks = fake.breaks.load(Ordering::SeqCst);
    let body = if breaks > 0 {
        fake.breaks.store(breaks - 1, Ordering::SeqCst);
        let half: Vec<Result<Bytes, std::io::Error>> =
            vec![Ok(rest.slice(..rest.len() / 2)), Err(std::io::ErrorKind::BrokenPipe.into())];
        // A turn for the server to send the first half before it breaks off.
        let half = futures_util::stream::iter(half).then(async |item| {
            tokio::task::yield_now().await;
            item
        });
        Body::from_stream(half)
    } else {
        Body::from(rest)
    };
    let length = [(header::CONTENT_LENGTH, (total - start).to_string())];
    let etag = [(header::ETAG, format!("\"{}\"", "f".repeat(64)))];
    (status, length, etag, body).into_response()
}

struct Fixture {
    _folder: tempfile::TempDir,
    home: Home,
    hub: Hub,
    fake: Arc<Fake>,
}

impl Fixture {
    async fn new(change: impl FnOnce(&mut Fake)) -> Fixture {
        let content: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
        let mut fake = Fake {
            sha256: hex(Sha256::digest(&content)),
            content: content.into(),
            breaks: AtomicUsize::new(0),
            ranges: Mutex::default(),
            redirects: true,
            address: Mutex::default(),
        };
        change(&mut fake);
        let fake = Arc::new(fake);
        let app = Router::new()
            .route("/owner/repo/resolve/main/some/m.gguf", get(resolve))
            .route("/storage", get(storage))
            .with_state(fake.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        *fake.address.lock().unwrap() = Some(address);
        tokio::spawn(axum::serve(listener, app).into_future());
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(Some(folder.path().to_owned())).unwrap();
        let hub = Hub::new(&format!("http://{address}/"), None);
        Fixture { _folder: folder, home, hub, fake }
    }

    async fn fetch(&self) -> Result<std::path::PathBuf, PullError> {
        let wanted = Wanted::parse("hf:owner/repo/some/m.gguf", &self.home).unwrap();
        fetch(&self.home, &self.hub, &wanted, true).await
    }

    fn ranges(&self) -> Vec<Option<String>> {
        self.fake.ranges.lock().unwrap().clone()
    }
}

/// What `hf:owner/repo/some/m.gguf` is called.
const NAME: &str = "owner--repo--some--m";

#[tokio::test]
async fn a_file_is_fetched_verified_and_kept() {
    for redirects in [false, true] {
        let fixture = Fixture::new(|fake| fake.redirects = redirects).await;
        let path = fixture.fetch().await.unwrap();
        assert_eq!(path, fixture.home.model(NAME).join("m.gguf"));
        assert_eq!(fs::read(&path).unwrap(), fixture.fake.content);
        fixture.fetch().await.unwrap();
        assert_eq!(fixture.ranges(), [None], "the second time it is here already");
        let stored = Wanted::parse(NAME, &fixture.home).unwrap();
        assert!(matches!(stored, Wanted::Stored(_)));
    }
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_stopped() {
    let fixture = Fixture::new(|fake| fake.breaks = AtomicUsize::new(2)).await;
    for _ in 0..2 {
        let error = fixture.fetch().await.unwrap_err();
        assert!(matches!(error, PullError::Network { .. }), "{error}");
        assert!(error.to_string().contains("what has arrived is kept"), "{error}");
    }
    let path = fixture.fetch().await.unwrap();
    assert_eq!(fs::read(path).unwrap(), fixture.fake.content);
    let (half, three_quarters) = (600_000, 900_000);
    let expected = [None, Some(format!("bytes={half}-")), Some(format!("bytes={three_quarters}-"))];
    assert_eq!(fixture.ranges(), expected);
}

#[tokio::test]
async fn a_rest_of_another_file_is_thrown_away() {
    let fixture = Fixture::new(|_| {}).await;
    fs::write(fixture.home.partial().join(format!("{NAME}--m.gguf.download")), vec![7; 1000])
        .unwrap();
    let path = fixture.fetch().await.unwrap();
    assert_eq!(fs::read(path).unwrap(), fixture.fake.content);
    assert_eq!(fixture.ranges(), [Some("bytes=1000-".to_owned()), None]);
}

#[tokio::test]
async fn a_wrong_hash_leaves_nothing() {
    let fixture = Fixture::new(|fake| fake.sha256 = "a".repeat(64)).await;
    let error = fixture.fetch().await.unwrap_err();
    let PullError::WrongHash { expected, got, .. } = &error else { panic!("{error}") };
    assert_eq!(*expected, "a".repeat(64));
    assert_eq!(*got, hex(Sha256::digest(&fixture.fake.content)));
    assert!(fs::read_dir(fixture.home.model(NAME)).unwrap().next().is_none());
    assert!(!fixture.home.partial().join(format!("{NAME}--m.gguf.download")).exists());
}

#[tokio::test]
async fn what_is_not_there_or_out_of_reach_is_said_so() {
    let fixture = Fixture::new(|_| {}).await;
    let fetch_other = async |text: &str, hub: &Hub| {
        let wanted = Wanted::parse(text, &fixture.home).unwrap();
        fetch(&fixture.home, hub, &wanted, true).await.unwrap_err()
    };
    let error = fetch_other("hf:owner/repo/other.gguf", &fixture.hub).await;
    assert!(matches!(error, PullError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("no such repository or file"), "{error}");
    // A port that nobody listens on: one that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = Hub::new(&format!("http://{}", free.local_addr().unwrap()), None);
    drop(free);
    let error = fetch_other("hf:owner/repo/other.gguf", &nobody).await;
    assert!(matches!(error, PullError::Network { .. }), "{error}");
    let error = Wanted::parse("gpt-5", &fixture.home).unwrap_err().to_string();
    assert!(error.contains("smollm2-135m") && error.contains("qwen2.5-coder-1.5b"), "{error}");
    assert!(matches!(
        Wanted::parse("hf:owner/m.gguf", &fixture.home),
        Err(PullError::HubName { .. })
    ));
}
