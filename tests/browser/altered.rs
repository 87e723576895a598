//! The coordinator as something between it and the browser would have it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Bytes that are read at once.
const PIECE_BYTES: usize = 64 << 10;
/// How long the last bytes are held back if they may be the beginning of a word.
const HELD_BACK_MAX: Duration = Duration::from_millis(50);

/// Passes everything on, and replaces some words by others, in both directions.
pub struct Altered {
    address: SocketAddr,
    accepts: JoinHandle<()>,
}

impl Altered {
    /// Before that coordinator. Words are replaced where they stand, so in bodies without
    /// encoding lengths must be the same.
    pub async fn start(to: &str, words: &[(&str, &str)]) -> Altered {
        let words: Vec<(String, String)> =
            words.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect();
        let to: SocketAddr = to.parse().expect("an address");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let accepts = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let words = words.clone();
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(to).await else { return };
                    let ((near_in, near_out), (far_in, far_out)) =
                        (near.into_split(), far.into_split());
                    let there = pass(near_in, far_out, &words);
                    let back = pass(far_in, near_out, &words);
                    tokio::join!(there, back);
                });
            }
        });
        Altered { address, accepts }
    }

    /// The page's address.
    pub fn url(&self, query: &str) -> String {
        format!("http://{}/{query}", self.address)
    }
}

impl Drop for Altered {
    fn drop(&mut self) {
        self.accepts.abort();
    }
}

async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    words: &[(String, String)],
) {
    let mut buffer = vec![0; PIECE_BYTES];
    // What may be the beginning of a word, until the next bytes come, or none do.
    let mut held = Vec::new();
    loop {
        let read = match timeout(HELD_BACK_MAX, from.read(&mut buffer)).await {
            Ok(Ok(read)) => read,
            Ok(Err(_)) => break,
            Err(_) if held.is_empty() => continue,
            Err(_) => 0,
        };
        let ends = read == 0 && held.is_empty();
        held.extend_from_slice(&buffer[..read]);
        let (piece, taken) = replaced(&held, words, read == 0);
        held.drain(..taken);
        if ends || to.write_all(&piece).await.is_err() {
            break;
        }
    }
    // The other direction may go on.
    let _ = to.shutdown().await;
}

/// The bytes with their words replaced, up to where a word may begin that goes on in later ones,
/// and how many that were; all of them if they are the `last`.
fn replaced(bytes: &[u8], words: &[(String, String)], last: bool) -> (Vec<u8>, usize) {
    let (mut passed, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let rest = &bytes[at..];
        if let Some((from, to)) = words.iter().find(|(from, _)| rest.starts_with(from.as_bytes())) {
            passed.extend_from_slice(to.as_bytes());
            at += from.len();
        } else if !last && words.iter().any(|(from, _)| from.as_bytes().starts_with(rest)) {
            break;
        } else {
            passed.push(bytes[at]);
            at += 1;
        }
    }
    (passed, at)
}

#[test]
fn a_word_is_replaced_wherever_it_is_cut() {
    let words = [("warp".to_owned(), "weft".to_owned()), ("loom".to_owned(), "loo".to_owned())];
    let whole = b"a warp, a loom, a war and a loo";
    for cut in 0..whole.len() {
        let (mut passed, taken) = replaced(&whole[..cut], &words, false);
        passed.extend(replaced(&whole[taken..], &words, true).0);
        assert_eq!(passed, b"a weft, a loo, a war and a loo", "cut after {cut} bytes");
    }
    assert_eq!(replaced(b"a wa", &words, false), (b"a ".to_vec(), 2), "held back");
    assert_eq!(replaced(b"a wa", &words, true), (b"a wa".to_vec(), 4), "or not");
}
