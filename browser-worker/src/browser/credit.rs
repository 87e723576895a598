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

    /// Looks what the file says, which may be less than before: another tab may have deleted
    /// it. The lock must be held.
    pub async fn look(&self, store: &Store) {
        match read(store).await {
            Ok(kept) => self.kept.set(kept),
            Err(reason) => js::warn(&format!("the credit is not read: {reason}")),
        }
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
            // A file that cannot be read does not undo what was in it.
            self.look(store).await;
            let total = self.kept.get().saturating_add(given);
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

/// What the file says, 0 where there is none. Errors are in words.
async fn read(store: &Store) -> Result<u64, String> {
    let Some(text) = store.read_small(FILE).await.map_err(|error| error.to_string())? else {
        return Ok(0);
    };
    let number = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| format!("'{FILE}' holds no number"))
}
