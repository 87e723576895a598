//! Which blobs lie on disk, and which of them go when there is no room.

use std::collections::BTreeMap;

use protocol::{BlobHash, CACHED_MAX};
use serde::{Deserialize, Serialize};

/// The blobs on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    blobs: BTreeMap<BlobHash, KeptBlob>,
    /// Counts uses: the latest has the highest number.
    uses: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptBlob {
    bytes: u64,
    used: u64,
}

/// There is no room, and none can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// The bound.
    pub max: u64,
    /// Bytes of blobs that shards use.
    pub in_use: u64,
}

impl Kept {
    /// What is known of the files that are really there, (name, bytes) each; whatever else
    /// was known is forgotten. Files whose name is no hash are left out.
    pub fn reconcile(mut self, files: impl IntoIterator<Item = (String, u64)>) -> Kept {
        let mut blobs = BTreeMap::new();
        for (name, bytes) in files {
            if is_hash(&name) {
                let used = self.blobs.remove(&name).map_or(0, |known| known.used);
                blobs.insert(name, KeptBlob { bytes, used });
            }
        }
        Kept { blobs, uses: self.uses }
    }

    /// How long a blob is, if it is there.
    pub fn bytes_of(&self, hash: &str) -> Option<u64> {
        self.blobs.get(hash).map(|blob| blob.bytes)
    }

    /// All bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.blobs.values().map(|blob| blob.bytes).fold(0, u64::saturating_add)
    }

    /// A blob is there and was used now.
    pub fn used(&mut self, hash: &str, bytes: u64) {
        self.uses += 1;
        self.blobs.insert(hash.into(), KeptBlob { bytes, used: self.uses });
    }

    /// A blob is gone.
    pub fn removed(&mut self, hash: &str) {
        self.blobs.remove(hash);
    }

    /// For the hello: the most recently used first, up to [`CACHED_MAX`].
    pub fn listing(&self) -> Vec<BlobHash> {
        self.by_use().into_iter().rev().take(CACHED_MAX).cloned().collect()
    }

    fn by_use(&self) -> Vec<&BlobHash> {
        let mut hashes: Vec<&BlobHash> = self.blobs.keys().collect();
        hashes.sort_by_key(|hash| self.blobs[*hash].used);
        hashes
    }

    /// Which blobs to remove, the longest unused first, so that `needed` more bytes stay
    /// within `max`.
    ///
    /// # Errors
    /// The bound is too low for what is in use and `needed`; nothing is to be removed then.
    pub fn to_remove(
        &self,
        needed: u64,
        max: u64,
        in_use: impl Fn(&str) -> bool,
    ) -> Result<Vec<BlobHash>, NoRoom> {
        let mut left = self.bytes().saturating_add(needed);
        let mut remove = Vec::new();
        for hash in self.by_use() {
            if left <= max {
                break;
            }
            if !in_use(hash) {
                left -= self.blobs[hash].bytes;
                remove.push(hash.clone());
            }
        }
        match left <= max {
            true => Ok(remove),
            false => Err(NoRoom { max, in_use: left - needed }),
        }
    }
}

fn is_hash(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    fn three() -> Kept {
        let mut kept = Kept::default();
        for (digit, bytes) in [('a', 10), ('b', 20), ('c', 30)] {
            kept.used(&hash(digit), bytes);
        }
        kept.used(&hash('a'), 10);
        kept
    }

    #[test]
    fn the_longest_unused_goes_first_and_no_more_than_needed() {
        let kept = three();
        assert_eq!(kept.listing(), [hash('a'), hash('c'), hash('b')]);
        let remove = |needed, max| kept.to_remove(needed, max, |_| false);
        assert_eq!(remove(40, 100), Ok(vec![]));
        assert_eq!(remove(41, 100), Ok(vec![hash('b')]));
        assert_eq!(remove(61, 100), Ok(vec![hash('b'), hash('c')]));
        assert_eq!(remove(100, 100), Ok(vec![hash('b'), hash('c'), hash('a')]));
        assert_eq!(remove(101, 100), Err(NoRoom { max: 100, in_use: 0 }));
    }

    #[test]
    fn what_shards_use_stays() {
        let kept = three();
        let in_use = |h: &str| h == hash('b');
        assert_eq!(kept.to_remove(41, 100, in_use), Ok(vec![hash('c')]));
        assert_eq!(kept.to_remove(81, 100, in_use), Err(NoRoom { max: 100, in_use: 20 }));
    }

    #[test]
    fn the_files_count_and_not_what_was_written_of_them() {
        let text = serde_json::to_string(&three()).unwrap();
        let known: Kept = serde_json::from_str(&text).unwrap();
        let files = [(hash('b'), 20), (hash('d'), 7), ("index.json".into(), 9)];
        let mut kept = known.reconcile(files);
        assert_eq!(kept.bytes(), 27);
        assert_eq!(kept.bytes_of(&hash('a')), None, "it was evicted by the browser");
        assert_eq!(kept.listing(), [hash('b'), hash('d')], "of unknown use, so the first to go");
        kept.used(&hash('d'), 7);
        assert_eq!(kept.listing(), [hash('d'), hash('b')]);
        kept.removed(&hash('b'));
        assert_eq!(kept.bytes(), 7);
    }
}
