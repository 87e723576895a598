//! The weights: in the origin's files or in memory, else from the coordinator.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Weak};

use engine::BlobBytes;
use litemap::LiteMap;
use protocol::{BlobHash, BlobRef};
use shards::{Source, SourceError};

use super::download::{self, Landed, PIECE_BYTES, Request, download, is_partial, partial};
use super::http::Cancel;
use super::js;
use super::storage::{StorageError, Store};
use crate::kept::{Gone, Kept, NoRoom};
use crate::meter::Meter;

const INDEX: &str = "index.json";

/// Takes a piece of a blob: its offset and its bytes. Errors are in words.
type Take<'a> = &'a mut dyn FnMut(u64, &[u8]) -> Result<(), String>;

/// Weights by hash.
pub struct Weights {
    store: Option<Rc<Store>>,
    meter: Rc<Meter>,
    kept: RefCell<Kept>,
    disk_bytes_max: Cell<u64>,
    /// Why something is only in memory, in words.
    problem: RefCell<Option<String>>,
    /// What is on disk over the owner's bound, as it is in use.
    over: RefCell<Option<NoRoom>>,
    /// Why a blob that is wanted is not on disk.
    unkept: RefCell<LiteMap<BlobHash, Unkept>>,
    memory: RefCell<LiteMap<BlobHash, Arc<Vec<u8>>>>,
    /// What shards on the CPU share.
    given: RefCell<LiteMap<BlobHash, Weak<Vec<u8>>>>,
    /// Blobs that assignments need, and so many bytes each.
    wanted: RefCell<LiteMap<BlobHash, u64>>,
    token: RefCell<String>,
    /// Blobs that were read or came, whole and right, since the page was loaded.
    verified: RefCell<LiteMap<BlobHash, ()>>,
    /// The index is being written; it has changed since.
    saving: Cell<bool>,
    unsaved: Cell<bool>,
}

/// Why a blob that is wanted is not on disk.
#[derive(Clone, Debug)]
enum Unkept {
    /// It would exceed the owner's bound.
    Limit(NoRoom),
    /// The disk takes no more, in words.
    Disk(String),
}

impl Weights {
    /// Weights in `store`, or in memory alone, for the reason `problem`.
    pub async fn open(
        store: Option<Rc<Store>>,
        problem: Option<String>,
        meter: Rc<Meter>,
    ) -> Weights {
        let mut weights = Weights {
            store,
            meter,
            kept: RefCell::default(),
            disk_bytes_max: Cell::new(u64::MAX),
            problem: RefCell::new(problem),
            over: RefCell::default(),
            unkept: RefCell::default(),
            memory: RefCell::default(),
            given: RefCell::default(),
            wanted: RefCell::default(),
            token: RefCell::default(),
            verified: RefCell::default(),
            saving: Cell::new(false),
            unsaved: Cell::new(false),
        };
        weights.list().await;
        weights
    }

    async fn list(&mut self) {
        let Some(store) = &self.store else { return };
        let known = store.read_small(INDEX).await.ok().flatten();
        let known = known.and_then(|json| serde_json::from_slice::<Kept>(&json).ok());
        match store.blobs().await {
            Ok(files) => {
                // Of an earlier visit, in which nobody came back for them.
                for (name, _) in files.iter().filter(|(name, _)| is_partial(name)) {
                    if let Err(error) = store.remove_blob(name).await {
                        js::warn(&format!("{name} is not removed: {error}"));
                    }
                }
                *self.kept.get_mut() = known.unwrap_or_default().reconcile(files);
            }
            Err(error) => *self.problem.get_mut() = Some(error.to_string()),
        }
    }

    /// The owner's bound for what is kept on disk. What exceeds it goes at once, but for what
    /// is in use.
    pub fn set_disk_bytes_max(self: &Rc<Self>, max: u64) {
        self.disk_bytes_max.set(max);
        self.shrink();
    }

    /// Keeps to the bound, beside what goes on.
    fn shrink(self: &Rc<Self>) {
        let gone = self.exceeding();
        if !gone.is_empty() {
            let weights = self.clone();
            wasm_bindgen_futures::spawn_local(async move { weights.delete_over(gone).await });
        }
    }

    /// Keeps to the bound.
    async fn keep_within(&self) {
        let gone = self.exceeding();
        if !gone.is_empty() {
            self.delete_over(gone).await;
        }
    }

    /// What has to go; the list has already forgotten it.
    fn exceeding(&self) -> Vec<Gone> {
        let max = self.disk_bytes_max.get();
        let wanted = self.wanted.borrow();
        let (gone, over) = self.kept.borrow_mut().shrink(max, |hash| wanted.contains_key(hash));
        *self.over.borrow_mut() = over;
        gone
    }

    async fn delete_over(&self, gone: Vec<Gone>) {
        if let Err(remains) = self.delete(gone).await {
            *self.over.borrow_mut() = Some(remains);
        }
        self.save().await;
    }

    /// For fetching.
    pub fn set_token(&self, token: String) {
        *self.token.borrow_mut() = token;
    }

    /// For the hello: what need not be fetched.
    pub fn cached(&self) -> Vec<BlobHash> {
        self.kept.borrow().listing()
    }

    /// Bytes on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.kept.borrow().bytes()
    }

    /// Why something is only in memory, in words.
    pub fn problem(&self) -> Option<String> {
        let memory_only = "some weights are kept in memory only";
        let unkept = self.unkept.borrow();
        let full = unkept.values().find_map(|why| match why {
            Unkept::Disk(error) => Some(format!("{error}: {memory_only}")),
            Unkept::Limit(_) => None,
        });
        let refused = unkept.values().find_map(|why| match why {
            Unkept::Limit(no_room) => Some(no_room.clone()),
            Unkept::Disk(_) => None,
        });
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let limit = match (self.over.borrow().clone(), refused) {
            (Some(NoRoom { max, in_use }), _) => Some(format!(
                "the disk limit is {:.0} MB, but {:.0} MB are in use: they go when they no longer \
                 are",
                mb(max),
                mb(in_use)
            )),
            (None, _) if self.disk_bytes_max.get() == 0 => {
                Some("the disk limit is 0: weights are kept in memory only".into())
            }
            (None, Some(NoRoom { max, in_use })) => Some(format!(
                "the disk limit is {:.0} MB, {:.0} MB of it in use: {memory_only}",
                mb(max),
                mb(in_use)
            )),
            (None, None) => None,
        };
        let said = [self.problem.borrow().clone(), full, limit];
        said.into_iter().flatten().reduce(|first, second| format!("{first}; {second}"))
    }

    /// Has a blob here until [`Weights::forget`].
    ///
    /// # Errors
    /// It cannot be had.
    pub async fn fetch(
        &self,
        blob: &BlobRef,
        cancel: &Cancel,
        progress: impl Fn(u64),
    ) -> Result<(), SourceError> {
        self.wanted.borrow_mut().insert(blob.hash.clone(), blob.bytes);
        if self.memory.borrow().contains_key(&blob.hash) {
            return Ok(());
        }
        let on_disk = self.kept.borrow().bytes_of(&blob.hash);
        match on_disk {
            Some(bytes) if bytes == blob.bytes => {
                self.meter.spared(bytes);
                self.kept.borrow_mut().used(&blob.hash, bytes);
                self.save().await;
                Ok(())
            }
            Some(_) => {
                self.remove(&blob.hash).await;
                self.download(blob, cancel, progress).await
            }
            None => self.download(blob, cancel, progress).await,
        }
    }

    async fn download(
        &self,
        blob: &BlobRef,
        cancel: &Cancel,
        progress: impl Fn(u64),
    ) -> Result<(), SourceError> {
        let landed = self.land(blob, cancel, progress).await;
        // The bound, or what is wanted, may have changed meanwhile.
        self.keep_within().await;
        landed
    }

    async fn land(
        &self,
        blob: &BlobRef,
        cancel: &Cancel,
        progress: impl Fn(u64),
    ) -> Result<(), SourceError> {
        let store = self.make_room(blob).await;
        let token = self.token.borrow().clone();
        let request = Request { blob, token: &token, cancel, meter: &self.meter };
        let landed = download(&request, store.as_deref(), progress).await;
        let landed = landed.inspect_err(|_| self.kept.borrow_mut().broke_off(&blob.hash))?;
        self.verified.borrow_mut().insert(blob.hash.clone(), ());
        let bytes = match (landed, store) {
            (Landed::Disk, Some(store)) => {
                let renamed = store.rename_blob(&partial(&blob.hash), &blob.hash).await;
                renamed.map_err(|error| {
                    self.kept.borrow_mut().broke_off(&blob.hash);
                    format!("blob {}: {error}", blob.hash)
                })?;
                self.kept.borrow_mut().used(&blob.hash, blob.bytes);
                self.save().await;
                return Ok(());
            }
            (Landed::Disk, None) => return Err(SourceError::Other("there is no disk".into())),
            (Landed::Memory(bytes, error), _) => {
                // Nothing, but where it could not be written to the end.
                let left = self.kept.borrow_mut().abandon(&blob.hash);
                let _ = self.delete(left).await;
                if let Some(error) = error {
                    self.unkept(&blob.hash, Unkept::Disk(error.to_string()));
                }
                bytes
            }
        };
        // Unless it was forgotten meanwhile.
        if self.wanted.borrow().contains_key(&blob.hash) {
            self.memory.borrow_mut().insert(blob.hash.clone(), Arc::new(bytes));
        }
        Ok(())
    }

    /// Room on disk for a blob, by removing what was not used for longest; `None` if it has
    /// to be kept in memory.
    async fn make_room(&self, blob: &BlobRef) -> Option<Rc<Store>> {
        let max = self.disk_bytes_max.get();
        let store = self.store.clone()?;
        let begun = {
            let wanted = self.wanted.borrow();
            let in_use = |hash: &str| wanted.contains_key(hash);
            self.kept.borrow_mut().begin(&blob.hash, blob.bytes, max, in_use)
        };
        let refused = match begun {
            Ok(gone) => match self.delete(gone).await {
                Ok(()) => return Some(store),
                // So there is no room after all.
                Err(remains) => remains,
            },
            Err(no_room) => no_room,
        };
        // An earlier attempt may have left something on disk.
        let left = self.kept.borrow_mut().abandon(&blob.hash);
        let _ = self.delete(left).await;
        self.unkept(&blob.hash, Unkept::Limit(refused));
        None
    }

    /// A blob is not on disk, as long as it is wanted.
    fn unkept(&self, hash: &BlobHash, why: Unkept) {
        js::warn(&format!("blob {hash} is kept in memory only: {why:?}"));
        if self.wanted.borrow().contains_key(hash) {
            self.unkept.borrow_mut().insert(hash.clone(), why);
        }
    }

    /// Deletes files that the list has already forgotten.
    ///
    /// # Errors
    /// Some are still there, and in the list again.
    async fn delete(&self, gone: impl IntoIterator<Item = Gone>) -> Result<(), NoRoom> {
        let Some(store) = &self.store else { return Ok(()) };
        let mut all = true;
        for file in gone {
            let name = match &file {
                Gone::Blob(hash, _) => {
                    self.verified.borrow_mut().remove(hash);
                    hash.clone()
                }
                Gone::Part(hash, _) => partial(hash),
            };
            match store.remove_blob(&name).await {
                Ok(()) | Err(StorageError::Absent) => {}
                Err(error) => {
                    js::warn(&format!("{name} is not removed: {error}"));
                    self.kept.borrow_mut().remains(file);
                    all = false;
                }
            }
        }
        let in_use = self.kept.borrow().bytes();
        if all { Ok(()) } else { Err(NoRoom { max: self.disk_bytes_max.get(), in_use }) }
    }

    async fn remove(&self, hash: &str) {
        if let Some(store) = &self.store
            && let Err(error) = store.remove_blob(hash).await
        {
            js::warn(&format!("blob {hash} is not removed: {error}"));
        }
        self.kept.borrow_mut().removed(hash);
        self.verified.borrow_mut().remove(hash);
    }

    /// Writes down which blobs were used when, one writer at a time. Losing it costs an order
    /// of removal only.
    async fn save(&self) {
        let Some(store) = &self.store else { return };
        self.unsaved.set(true);
        if self.saving.replace(true) {
            return;
        }
        while self.unsaved.replace(false) {
            let json = serde_json::to_vec(&*self.kept.borrow()).unwrap_or_default();
            if let Err(error) = store.write_small(INDEX, &json).await {
                js::warn(&format!("{INDEX} is not written: {error}"));
            }
        }
        self.saving.set(false);
    }

    /// Nobody needs the blob now.
    pub fn forget(self: &Rc<Self>, hash: &str) {
        self.wanted.borrow_mut().remove(hash);
        self.memory.borrow_mut().remove(hash);
        self.unkept.borrow_mut().remove(hash);
        self.shrink();
    }

    /// Nobody needs any now.
    pub fn forget_all(self: &Rc<Self>) {
        self.wanted.borrow_mut().clear();
        self.memory.borrow_mut().clear();
        self.unkept.borrow_mut().clear();
        self.shrink();
    }

    fn is_here(&self, hash: &str) -> bool {
        self.memory.borrow().contains_key(hash) || self.kept.borrow().bytes_of(hash).is_some()
    }

    /// Reads a blob piece by piece from wherever it lies and checks its hash at the end: the
    /// bytes taken count only if this succeeds.
    async fn read(&self, hash: &str, take: Take<'_>) -> Result<(), String> {
        let bytes = self.wanted.borrow().get(hash).copied().ok_or("nobody wanted the blob")?;
        let mut hasher = blake3::Hasher::new();
        let in_memory = self.memory.borrow().get(hash).cloned();
        if let Some(blob) = in_memory {
            for (i, piece) in blob.chunks(PIECE_BYTES).enumerate() {
                hasher.update(piece);
                take((i * PIECE_BYTES) as u64, piece)?;
                js::yield_now().await;
            }
        } else {
            let store = self.store.as_ref().ok_or("the blob is gone")?;
            let file = store.open_blob(hash, false).await.map_err(|e| e.to_string())?;
            let mut buffer = vec![0; PIECE_BYTES];
            let mut at = 0;
            while at < bytes {
                let n = file.read(at, &mut buffer).map_err(|e| e.to_string())?;
                if n == 0 {
                    return Err(format!("it ends at {at} of {bytes} bytes"));
                }
                let piece = &buffer[..n.min((bytes - at) as usize)];
                hasher.update(piece);
                take(at, piece)?;
                at += piece.len() as u64;
                js::yield_now().await;
            }
        }
        match hasher.finalize().to_hex().as_str() == hash {
            true => {
                self.verified.borrow_mut().insert(hash.to_owned(), ());
                Ok(())
            }
            false => Err("what lies on disk hashes to something else".into()),
        }
    }

    /// As [`Weights::read`]; a blob that is not what it should be is fetched anew, once.
    async fn read_again(&self, hash: &str, take: Take<'_>) -> Result<(), SourceError> {
        let reason = match self.read(hash, take).await {
            Ok(()) => return Ok(()),
            Err(reason) => reason,
        };
        js::warn(&format!("blob {hash}: {reason}; it is fetched again"));
        let bytes = self.wanted.borrow().get(hash).copied();
        let bytes = bytes.ok_or_else(|| "nobody wants it any more".to_owned())?;
        self.remove(hash).await;
        let blob = BlobRef { hash: hash.to_owned(), bytes };
        self.download(&blob, &Cancel::new()?, |_| {}).await?;
        Ok(self.read(hash, take).await?)
    }
}

/// Gives shards their weights.
pub struct Supply(pub Rc<Weights>);

impl Source for Supply {
    async fn whole(&mut self, hash: &str) -> Result<BlobBytes, SourceError> {
        let weights = &self.0;
        let shared = weights.given.borrow().get(hash).and_then(Weak::upgrade);
        if let Some(blob) = shared {
            return Ok(blob);
        }
        // What is in memory was verified when it came, and nobody changes it there.
        let in_memory = weights.memory.borrow().get(hash).cloned();
        let blob = match in_memory {
            Some(blob) => blob,
            None => {
                let bytes = weights.wanted.borrow().get(hash).copied().unwrap_or_default();
                let mut blob = download::room(bytes).map_err(SourceError::NoRoom)?;
                weights
                    .read_again(hash, &mut |at, piece| {
                        blob.truncate(at as usize);
                        blob.extend_from_slice(piece);
                        Ok(())
                    })
                    .await?;
                Arc::new(blob)
            }
        };
        let mut given = weights.given.borrow_mut();
        given.retain(|_, blob| blob.strong_count() > 0);
        given.insert(hash.to_owned(), Arc::downgrade(&blob));
        Ok(blob)
    }

    async fn pieces(
        &mut self,
        hash: &str,
        take: &mut dyn FnMut(u64, &[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        let weights = &self.0;
        // What a device has taken cannot be taken back: nothing goes there unchecked.
        if !weights.verified.borrow().contains_key(hash) || !weights.is_here(hash) {
            let read = weights.read_again(hash, &mut |_, _| Ok(())).await;
            read.map_err(|error| error.to_string())?;
        }
        let mut refused = false;
        let mut take = |at, piece: &[u8]| take(at, piece).inspect_err(|_| refused = true);
        let read = weights.read(hash, &mut take).await;
        if let Err(reason) = read {
            // What cannot be read any more is fetched again by the next assignment.
            if !refused {
                weights.remove(hash).await;
            }
            return Err(reason);
        }
        // They are on the device now; whoever wants them again has them fetched again.
        weights.memory.borrow_mut().remove(hash);
        Ok(())
    }
}
