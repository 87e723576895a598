//! What this browser gave in all, kept in the origin's files. Tabs take turns there: whoever
//! writes holds the lock, and adds to what it finds.

use std::cell::Cell;

use super::js;
use super::storage::Store;

const FILE: &str = "credit";
/// Between looks whether an earlier write has ended, ms, and how many there are.
const LOOK_EVERY_MS: f64 = 50.0;
const LOOKS_MAX: u32 = 40;

/// Rows × layers.
#[derive(Debug, Default)]
pub struct Credit {
    /// What the file said last.
    kept: Cell<u64>,
    /// Given since.
    unkept: Cell<u64>,
    writing: Cell<bool>,
}

impl Credit {
    /// More was given.
    pub fn give(&self, layer_tokens: u64) {
        self.unkept.set(self.unkept.get().saturating_add(layer_tokens));
    }

    /// All that is known of.
    pub fn total(&self) -> u64 {
        self.kept.get().saturating_add(self.unkept.get())
    }

    /// Looks what the file says. The lock must be held.
    pub async fn look(&self, store: &Store) {
        self.kept.set(self.kept.get().max(read(store).await));
    }

    /// Adds what was given to what the file says. The lock must be held until it has.
    pub async fn keep(&self, store: &Store) {
        let mut looks = 0;
        while self.writing.replace(true) {
            looks += 1;
            if looks > LOOKS_MAX {
                return js::warn("the credit is not written down: a write does not end");
            }
            js::sleep(LOOK_EVERY_MS).await;
        }
        let given = self.unkept.get();
        if given > 0 {
            // It never shrinks, so a file that cannot be read does not undo it.
            let before = self.kept.get().max(read(store).await);
            let total = before.saturating_add(given);
            match store.write_small(FILE, total.to_string().as_bytes()).await {
                Ok(()) => {
                    self.kept.set(total);
                    self.unkept.set(self.unkept.get() - given);
                }
                Err(error) => js::warn(&format!("the credit is not written down: {error}")),
            }
        }
        self.writing.set(false);
    }
}

async fn read(store: &Store) -> u64 {
    let text = store.read_small(FILE).await.unwrap_or_default();
    std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}
