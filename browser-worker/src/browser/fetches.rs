//! The fetches of one connection.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use litemap::LiteMap;
use protocol::{BlobHash, BlobRef};

use super::http::Cancel;
use super::inbox::{Happened, Inbox};
use super::js;
use super::weights::Weights;

/// Blobs fetched at once.
const FETCHES_MAX: usize = 4;
/// Between reports of how far a blob is, ms.
const PROGRESS_EVERY_MS: f64 = 250.0;

/// What is being fetched, and what waits.
pub struct Fetches {
    weights: Rc<Weights>,
    inbox: Inbox,
    running: LiteMap<BlobHash, Cancel>,
    waiting: VecDeque<BlobRef>,
}

impl Fetches {
    /// None yet.
    pub fn new(weights: Rc<Weights>, inbox: Inbox) -> Fetches {
        Fetches { weights, inbox, running: LiteMap::new(), waiting: VecDeque::new() }
    }

    /// Has a blob fetched, as soon as it is its turn.
    pub fn want(&mut self, connection: u64, blob: BlobRef) {
        self.waiting.push_back(blob);
        self.begin(connection);
    }

    /// One ended.
    pub fn ended(&mut self, connection: u64, hash: &str) {
        self.running.remove(hash);
        self.begin(connection);
    }

    /// A blob is not needed any more.
    pub fn forget(&mut self, hash: &str) {
        self.waiting.retain(|blob| blob.hash != hash);
        if let Some(cancel) = self.running.remove(hash) {
            cancel.cancel();
        }
        self.weights.forget(hash);
    }

    /// None is needed any more.
    pub fn forget_all(&mut self) {
        self.waiting.clear();
        for cancel in std::mem::take(&mut self.running).into_iter().map(|(_, cancel)| cancel) {
            cancel.cancel();
        }
        self.weights.forget_all();
    }

    fn begin(&mut self, connection: u64) {
        while self.running.len() < FETCHES_MAX {
            let Some(blob) = self.waiting.pop_front() else { return };
            let hash = blob.hash.clone();
            let cancel = match Cancel::new() {
                Ok(cancel) => cancel,
                Err(reason) => {
                    let result = Err(reason.into());
                    self.inbox.push(Happened::Fetched { connection, hash, result });
                    continue;
                }
            };
            self.running.insert(hash.clone(), cancel.clone());
            let (weights, inbox) = (self.weights.clone(), self.inbox.clone());
            wasm_bindgen_futures::spawn_local(async move {
                let told = Cell::new(js::now_ms());
                let progress = |bytes| {
                    if js::now_ms() - told.get() >= PROGRESS_EVERY_MS {
                        told.set(js::now_ms());
                        let hash = blob.hash.clone();
                        inbox.push(Happened::Progress { connection, hash, bytes });
                    }
                };
                let result = weights.fetch(&blob, &cancel, progress).await;
                // A cancelled one was forgotten, and perhaps wanted anew since.
                if !cancel.is_cancelled() {
                    inbox.push(Happened::Fetched { connection, hash, result });
                }
            });
        }
    }
}
