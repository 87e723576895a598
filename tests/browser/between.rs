//! What lies between a browser and its coordinator: a relay on loopback that can be cut, led to
//! another coordinator, and that puts a script before the worker's own, as a browser's bad day
//! would.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

/// The worker's first file.
const WORKER: &str = "/worker/worker.js";
/// Read at a time; no request of a browser is longer.
const CHUNK_BYTES: usize = 64 << 10;

/// See the module's documentation. Dropping it cuts it.
pub struct Between {
    /// `127.0.0.1:PORT`.
    pub address: String,
    target: watch::Sender<Option<String>>,
    task: JoinHandle<()>,
}

impl Between {
    /// Leads to `target`; `prelude` runs in each worker before the worker's own code.
    pub async fn start(target: &str, prelude: &'static str) -> Between {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await;
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let (sender, receiver) = watch::channel(Some(target.to_owned()));
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.expect("a connection");
                tokio::spawn(relay(client, receiver.clone(), prelude));
            }
        });
        Between { address, target: sender, task }
    }

    /// Breaks every connection, and lets none through.
    pub fn cut(&self) {
        self.target.send_replace(None);
    }

    /// Leads there from now on; connections that there are break.
    pub fn lead_to(&self, target: &str) {
        self.target.send_replace(Some(target.to_owned()));
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(client: TcpStream, mut target: watch::Receiver<Option<String>>, prelude: &str) {
    let Some(address) = target.borrow_and_update().clone() else { return };
    let Ok(server) = TcpStream::connect(&address).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((mut from_client, to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let to_client = Arc::new(Mutex::new(to_client));
    let up = async {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let n = from_client.read(&mut chunk).await?;
            let asked = format!("GET {WORKER} ");
            if n == 0 {
                return to_server.shutdown().await;
            } else if !prelude.is_empty() && chunk[..n].starts_with(asked.as_bytes()) {
                let answer = with_prelude(&address, prelude).await;
                to_client.lock().await.write_all(&answer).await?;
            } else {
                to_server.write_all(&chunk[..n]).await?;
            }
        }
    };
    let down = async {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let n = from_server.read(&mut chunk).await?;
            if n == 0 {
                return to_client.lock().await.shutdown().await;
            }
            to_client.lock().await.write_all(&chunk[..n]).await?;
        }
    };
    let both = async { tokio::try_join!(up, down) };
    tokio::select! {
        _ = both => {}
        _ = target.changed() => {}
    }
}

/// The worker's file with a script before it, and with the headers that it has.
async fn with_prelude(address: &str, prelude: &str) -> Vec<u8> {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let answer = client.get(format!("http://{address}{WORKER}")).send().await.expect("an answer");
    let mut head = String::from("HTTP/1.1 200 OK\r\n");
    for (name, value) in answer.headers() {
        if !["content-length", "etag", "date", "vary"].contains(&name.as_str()) {
            head += &format!("{name}: {}\r\n", value.to_str().expect("ASCII"));
        }
    }
    let script = format!("{prelude}\n{}", answer.text().await.expect("a body"));
    head += &format!("content-length: {}\r\n\r\n", script.len());
    [head.as_bytes(), script.as_bytes()].concat()
}
