//! The coordinator as something between it and the browser would have it.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Bytes that are read at once: the head of a request or an answer comes in one piece.
const PIECE_BYTES: usize = 64 << 10;

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
    loop {
        let read = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(read) => read,
        };
        let mut piece = buffer[..read].to_vec();
        for (from, to) in words {
            while let Some(at) = piece.windows(from.len()).position(|w| w == from.as_bytes()) {
                piece.splice(at..at + from.len(), to.bytes());
            }
        }
        if to.write_all(&piece).await.is_err() {
            break;
        }
    }
    // The other direction may go on.
    let _ = to.shutdown().await;
}
