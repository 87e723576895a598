//! Which blobs lie on disk, and which of them go when there is no room.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{BlobHash, CACHED_MAX};
use serde::{Deserialize, Serialize};

/// The blobs on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    blobs: BTreeMap<BlobHash, KeptBlob>,
    /// Counts uses: the latest has the highest number.
    uses: u64,
    /// Blobs of which something may be on disk, of this visit only; they count as if they were
    /// complete, in bytes.
    #[serde(skip)]
    parts: BTreeMap<BlobHash, u64>,
    /// Those of them that are being fetched.
    #[serde(skip)]
    running: BTreeSet<BlobHash>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptBlob {
    bytes: u64,
    used: u64,
}

/// A file that has to go, and the bytes that it counts for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gone {
    /// A blob.
    Blob(BlobHash, u64),
    /// What there is of a blob that nobody fetches now.
    Part(BlobHash, u64),
}

/// There is no room, and none can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// The bound.
    pub max: u64,
    /// Bytes of blobs that shards use or that are being fetched.
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
        Kept { blobs, uses: self.uses, ..Kept::default() }
    }

    /// How long a blob is, if it is there.
    pub fn bytes_of(&self, hash: &str) -> Option<u64> {
        self.blobs.get(hash).map(|blob| blob.bytes)
    }

    /// All bytes of blobs on disk.
    pub fn bytes(&self) -> u64 {
        self.blobs.values().map(|blob| blob.bytes).fold(0, u64::saturating_add)
    }

    /// The same with what is not complete.
    fn bytes_taken(&self) -> u64 {
        self.parts.values().copied().fold(self.bytes(), u64::saturating_add)
    }

    /// A blob is there and was used now.
    pub fn used(&mut self, hash: &str, bytes: u64) {
        self.uses += 1;
        self.elsewhere(hash);
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

    /// Sets room aside for a blob that is about to be fetched. What has to go for it is known
    /// here no longer: the longest unused first, and parts before blobs.
    ///
    /// # Errors
    /// `max` is too low for what is in use and for this; nothing has to go then.
    pub fn begin(
        &mut self,
        hash: &str,
        bytes: u64,
        max: u64,
        in_use: impl Fn(&str) -> bool,
    ) -> Result<Vec<Gone>, NoRoom> {
        let before = self.parts.remove(hash);
        let (gone, left) = self.removable(bytes, max, in_use);
        if left > max {
            if let Some(part) = before {
                self.parts.insert(hash.into(), part);
            }
            return Err(NoRoom { max, in_use: left.saturating_sub(bytes) });
        }
        self.remove_all(&gone);
        self.parts.insert(hash.into(), bytes);
        self.running.insert(hash.into());
        Ok(gone)
    }

    /// A fetch ended before its blob was there; perhaps a part of it is.
    pub fn broke_off(&mut self, hash: &str) {
        self.running.remove(hash);
    }

    /// Nothing is on disk of a blob that is being fetched.
    pub fn elsewhere(&mut self, hash: &str) {
        self.parts.remove(hash);
        self.running.remove(hash);
    }

    /// What may be on disk of a blob that is kept elsewhere now: it has to go.
    pub fn abandon(&mut self, hash: &str) -> Option<Gone> {
        self.running.remove(hash);
        self.parts.remove(hash).map(|bytes| Gone::Part(hash.into(), bytes))
    }

    /// A file that had to go did not: it counts as before, and is the first to go next time.
    pub fn remains(&mut self, file: Gone) {
        match file {
            Gone::Blob(hash, bytes) => {
                self.blobs.entry(hash).or_insert(KeptBlob { bytes, used: 0 });
            }
            Gone::Part(hash, bytes) => {
                self.parts.entry(hash).or_insert(bytes);
            }
        }
    }

    /// What has to go under this bound, as in [`Kept::begin`], and what still exceeds it then.
    pub fn shrink(
        &mut self,
        max: u64,
        in_use: impl Fn(&str) -> bool,
    ) -> (Vec<Gone>, Option<NoRoom>) {
        let (gone, left) = self.removable(0, max, in_use);
        self.remove_all(&gone);
        (gone, (left > max).then_some(NoRoom { max, in_use: left }))
    }

    /// What can go so that `needed` more bytes stay within `max`, no more of it than needed,
    /// and how many bytes are taken then.
    fn removable(&self, needed: u64, max: u64, in_use: impl Fn(&str) -> bool) -> (Vec<Gone>, u64) {
        let mut left = self.bytes_taken().saturating_add(needed);
        let parts = self.parts.iter().filter(|(hash, _)| !self.running.contains(*hash));
        let parts = parts.map(|(hash, bytes)| (Gone::Part(hash.clone(), *bytes), *bytes));
        let blobs = self.by_use().into_iter().filter(|hash| !in_use(hash));
        let blobs = blobs.map(|hash| (hash, self.blobs[hash].bytes));
        let blobs = blobs.map(|(hash, bytes)| (Gone::Blob(hash.clone(), bytes), bytes));
        let mut gone = Vec::new();
        for (file, bytes) in parts.chain(blobs) {
            if left <= max {
                break;
            }
            left = left.saturating_sub(bytes);
            gone.push(file);
        }
        (gone, left)
    }

    fn remove_all(&mut self, gone: &[Gone]) {
        for file in gone {
            match file {
                Gone::Blob(hash, _) => self.blobs.remove(hash).map(|_| ()),
                Gone::Part(hash, _) => self.parts.remove(hash).map(|_| ()),
            };
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

    fn blobs(digits: &str) -> Vec<Gone> {
        let bytes = |digit| u64::from(u32::from(digit) - u32::from('a') + 1) * 10;
        digits.chars().map(|digit| Gone::Blob(hash(digit), bytes(digit))).collect()
    }

    #[test]
    fn the_longest_unused_goes_first_and_no_more_than_needed() {
        assert_eq!(three().listing(), [hash('a'), hash('c'), hash('b')]);
        let begin = |needed, max| three().begin(&hash('d'), needed, max, |_| false);
        assert_eq!(begin(40, 100), Ok(vec![]));
        assert_eq!(begin(41, 100), Ok(blobs("b")));
        assert_eq!(begin(61, 100), Ok(blobs("bc")));
        assert_eq!(begin(100, 100), Ok(blobs("bca")));
        assert_eq!(begin(101, 100), Err(NoRoom { max: 100, in_use: 0 }));
    }

    #[test]
    fn what_shards_use_stays() {
        let in_use = |h: &str| h == hash('b');
        assert_eq!(three().begin(&hash('d'), 41, 100, in_use), Ok(blobs("c")));
        let refused = three().begin(&hash('d'), 81, 100, in_use);
        assert_eq!(refused, Err(NoRoom { max: 100, in_use: 20 }));
    }

    #[test]
    fn what_is_being_fetched_takes_its_room_already() {
        let mut kept = three();
        let mut begin = |digit, needed| kept.begin(&hash(digit), needed, 100, |_| false);
        assert_eq!(begin('d', 30), Ok(vec![]));
        assert_eq!(begin('e', 30), Ok(blobs("b")));
        assert_eq!(begin('f', 41), Err(NoRoom { max: 100, in_use: 60 }));
        // One that broke off goes before any blob, one that is there counts once.
        kept.broke_off(&hash('d'));
        kept.used(&hash('e'), 30);
        assert_eq!(kept.bytes(), 70);
        let goes = kept.begin(&hash('f'), 30, 100, |_| false);
        assert_eq!(goes, Ok(vec![Gone::Part(hash('d'), 30)]));
        // Begun again it takes no more room than before; kept in memory it takes none.
        assert_eq!(kept.begin(&hash('f'), 30, 100, |_| false), Ok(vec![]));
        kept.elsewhere(&hash('f'));
        assert_eq!(kept.begin(&hash('d'), 30, 100, |_| false), Ok(vec![]));
    }

    #[test]
    fn a_lower_bound_removes_what_it_can_and_says_what_it_cannot() {
        let mut kept = three();
        assert_eq!(kept.shrink(60, |_| false), (vec![], None));
        assert_eq!(kept.shrink(40, |_| false), (blobs("b"), None));
        let over = NoRoom { max: 5, in_use: 30 };
        assert_eq!(kept.shrink(5, |h| h == hash('c')), (blobs("a"), Some(over)));
        assert_eq!(kept.shrink(5, |_| false), (blobs("c"), None));
        assert_eq!(kept.bytes(), 0);
    }

    #[test]
    fn what_could_not_be_deleted_counts_and_is_the_first_to_go() {
        let mut kept = three();
        assert_eq!(kept.begin(&hash('d'), 7, 100, |_| false), Ok(vec![]));
        kept.broke_off(&hash('d'));
        let (gone, over) = kept.shrink(10, |_| false);
        assert_eq!((gone.len(), over), (3, None), "the part, and the two blobs not used since");
        for file in gone.clone() {
            kept.remains(file);
        }
        assert_eq!(kept.bytes(), 60);
        assert_eq!(kept.shrink(10, |_| false), (gone, None), "the same again");
        // Meanwhile another has come in its place: that one counts.
        kept.used(&hash('b'), 21);
        kept.remains(Gone::Blob(hash('b'), 20));
        assert_eq!(kept.bytes(), 31);
    }

    #[test]
    fn what_is_on_disk_of_a_blob_kept_elsewhere_goes() {
        let mut kept = three();
        assert_eq!(kept.begin(&hash('d'), 40, 100, |_| false), Ok(vec![]));
        kept.broke_off(&hash('d'));
        let refused = kept.begin(&hash('d'), 40, 0, |_| true);
        assert_eq!(refused, Err(NoRoom { max: 0, in_use: 60 }));
        assert_eq!(kept.abandon(&hash('d')), Some(Gone::Part(hash('d'), 40)));
        assert_eq!(kept.abandon(&hash('d')), None);
        assert_eq!(kept.abandon(&hash('a')), None, "it is complete");
        assert_eq!(kept.bytes(), 60);
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
