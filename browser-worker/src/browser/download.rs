//! One blob from the coordinator: hashed while it arrives, resumed where it broke off,
//! written to disk or, where that cannot be, into memory.

use std::rc::Rc;

use protocol::{BlobHash, BlobRef};
use shards::SourceError;

use super::http::{self, Answer, Cancel};
use super::js;
use super::storage::{Access, StorageError, Store};
use crate::meter::Meter;

/// How often a blob is tried.
pub const ATTEMPTS_MAX: u32 = 5;
/// Between attempts, times their number, ms.
const PAUSE_MS: f64 = 200.0;
/// Read from disk at a time.
pub const PIECE_BYTES: usize = 1 << 20;

const PARTIAL: &str = ".part";

/// Why a blob could not be fetched.
#[derive(Clone, Debug)]
enum Failure {
    /// Another attempt may succeed.
    Again(String),
    /// The bytes are not what their name says: once more, from the start.
    WrongHash,
    /// None will; in words.
    Final(String),
    /// None will: there is no memory for it; in words.
    NoRoom(String),
}

/// What a download goes with.
pub struct Request<'a> {
    /// Which blob.
    pub blob: &'a BlobRef,
    /// The coordinator's token.
    pub token: &'a str,
    /// Ends it.
    pub cancel: &'a Cancel,
    /// Counts bytes, and may forbid more.
    pub meter: &'a Rc<Meter>,
}

/// Where a finished blob lies.
pub enum Landed {
    /// Under its partial name on disk, closed.
    Disk,
    /// In memory; why not on disk, in words, if that was tried.
    Memory(Vec<u8>, Option<StorageError>),
}

/// The name of a partial blob.
pub fn partial(hash: &BlobHash) -> String {
    format!("{hash}{PARTIAL}")
}

/// Whether a file's name is that of a partial blob.
pub fn is_partial(name: &str) -> bool {
    name.ends_with(PARTIAL)
}

/// Fetches and verifies a blob, to `store` if there is one. `progress` hears of bytes so far.
///
/// # Errors
/// For the owner and the coordinator.
pub async fn download(
    request: &Request<'_>,
    store: Option<&Store>,
    progress: impl Fn(u64),
) -> Result<Landed, SourceError> {
    let hash = &request.blob.hash;
    let mut sink = Sink::open(request.blob, store).await;
    let mut attempt = 1;
    loop {
        let failure = match run(request, &mut sink, &progress).await {
            Ok(()) => break,
            Err(failure) => failure,
        };
        let reason = match failure {
            Failure::Final(reason) => return Err(format!("blob {hash}: {reason}").into()),
            Failure::NoRoom(reason) => {
                return Err(SourceError::NoRoom(format!("blob {hash}: {reason}")));
            }
            Failure::WrongHash if attempt > 1 => {
                return Err(format!("blob {hash}: what came hashes to something else").into());
            }
            // A partial file may have been damaged before.
            Failure::WrongHash => "what came hashes to something else".into(),
            Failure::Again(reason) => reason,
        };
        if request.cancel.is_cancelled() {
            return Err(format!("blob {hash}: no longer wanted").into());
        }
        if attempt == ATTEMPTS_MAX {
            return Err(format!("blob {hash}: {reason} ({ATTEMPTS_MAX} attempts)").into());
        }
        js::warn(&format!("blob {hash}: {reason}, attempt {attempt} of {ATTEMPTS_MAX}"));
        js::sleep(PAUSE_MS * f64::from(attempt)).await;
        attempt += 1;
    }
    Ok(sink.finish(store, hash).await?)
}

/// One request, from where the sink is.
async fn run(
    request: &Request<'_>,
    sink: &mut Sink,
    progress: &impl Fn(u64),
) -> Result<(), Failure> {
    let bytes = request.blob.bytes;
    if sink.at > bytes {
        sink.restart()?;
    }
    if sink.at < bytes {
        let due = |at: u64| request.meter.expect(bytes - at).map_err(Failure::Final);
        let mut expected = due(sink.at)?;
        let mut answer = ask(request, sink.at).await?;
        if answer.status != 206 && sink.at > 0 {
            sink.restart()?;
            drop(expected);
            expected = due(0)?;
        }
        while let Some(piece) = answer.piece(request.meter).await.map_err(Failure::Again)? {
            if sink.at + piece.len() as u64 > bytes {
                return Err(Failure::Again("more bytes came than were announced".into()));
            }
            expected.came(piece.len());
            sink.write(&piece, bytes)?;
            progress(sink.at);
            if let Some(reason) = request.meter.exhausted() {
                return Err(Failure::Final(reason));
            }
        }
        if sink.at < bytes {
            return Err(Failure::Again("the connection broke off".into()));
        }
    }
    if sink.hasher.finalize().to_hex().as_str() != request.blob.hash {
        sink.restart()?;
        return Err(Failure::WrongHash);
    }
    Ok(())
}

async fn ask(request: &Request<'_>, start: u64) -> Result<Answer, Failure> {
    let BlobRef { hash, bytes } = request.blob;
    let (bearer, range) = (format!("Bearer {}", request.token), format!("bytes={start}-"));
    let headers = [("authorization", bearer.as_str()), ("range", range.as_str())];
    let headers = &headers[..if start > 0 { 2 } else { 1 }];
    let answer = http::get(&format!("/v1/blobs/{hash}"), headers, request.cancel).await;
    let answer = answer.map_err(Failure::Again)?;
    match answer.status {
        200 => Ok(answer),
        206 => {
            let due = format!("bytes {start}-{}/{bytes}", bytes - 1);
            match answer.header("content-range") {
                Some(range) if range == due => Ok(answer),
                range => Err(Failure::Again(format!("range {range:?} came, {due:?} was due"))),
            }
        }
        status @ (429 | 500..) => Err(Failure::Again(format!("the coordinator answers {status}"))),
        status => Err(Failure::Final(format!("the coordinator answers {status}"))),
    }
}

/// What has arrived, and its hash.
struct Sink {
    place: Place,
    hasher: blake3::Hasher,
    at: u64,
}

enum Place {
    Disk(Access),
    Memory(Vec<u8>, Option<StorageError>),
}

impl Sink {
    /// Goes on with a partial file, or begins one, or memory.
    async fn open(blob: &BlobRef, store: Option<&Store>) -> Sink {
        let memory = |error| Sink {
            place: Place::Memory(Vec::new(), error),
            hasher: blake3::Hasher::new(),
            at: 0,
        };
        let Some(store) = store else { return memory(None) };
        let access = match store.open_blob(&partial(&blob.hash), true).await {
            Ok(access) => access,
            Err(error) => return memory(Some(error)),
        };
        match Sink::resume(access, blob.bytes).await {
            Ok(sink) => sink,
            Err(error) => memory(Some(error)),
        }
    }

    /// Hashes what an earlier attempt left. More than `bytes` of it cannot be right.
    async fn resume(access: Access, bytes: u64) -> Result<Sink, StorageError> {
        if access.bytes()? > bytes {
            access.truncate(0)?;
        }
        let (mut hasher, mut at) = (blake3::Hasher::new(), 0);
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            match access.read(at, &mut buffer)? {
                0 => break,
                n => {
                    hasher.update(&buffer[..n]);
                    at += n as u64;
                    js::yield_now().await;
                }
            }
        }
        Ok(Sink { place: Place::Disk(access), hasher, at })
    }

    fn restart(&mut self) -> Result<(), Failure> {
        match &mut self.place {
            Place::Disk(access) => {
                access.truncate(0).map_err(|e| Failure::Final(e.to_string()))?;
            }
            Place::Memory(bytes, _) => bytes.clear(),
        }
        self.hasher.reset();
        self.at = 0;
        Ok(())
    }

    /// Takes a piece of a blob of `bytes` bytes. A disk that takes no more is given up for
    /// memory.
    fn write(&mut self, piece: &[u8], bytes: u64) -> Result<(), Failure> {
        if let Place::Disk(access) = &self.place
            && let Err(error) = access.write(self.at, piece)
        {
            let mut memory = reserve(bytes)?;
            memory.resize(self.at as usize, 0);
            let read = access.read(0, &mut memory).map_err(|e| Failure::Final(e.to_string()))?;
            if (read as u64) < self.at {
                return Err(Failure::Final(format!("{error}, and lost what it had")));
            }
            // The room is better used by what is complete.
            let _ = access.truncate(0);
            self.place = Place::Memory(memory, Some(error));
        }
        if let Place::Memory(memory, _) = &mut self.place {
            if memory.capacity() == 0 {
                *memory = reserve(bytes)?;
            }
            memory.extend_from_slice(piece);
        }
        self.hasher.update(piece);
        self.at += piece.len() as u64;
        Ok(())
    }

    async fn finish(self, store: Option<&Store>, hash: &BlobHash) -> Result<Landed, String> {
        match self.place {
            Place::Disk(access) => {
                access.flush().map_err(|e| e.to_string())?;
                drop(access);
                Ok(Landed::Disk)
            }
            Place::Memory(bytes, error) => {
                if let (Some(store), Some(_)) = (store, &error) {
                    let _ = store.remove_blob(&partial(hash)).await;
                }
                Ok(Landed::Memory(bytes, error))
            }
        }
    }
}

/// Room for so many bytes, or why there is none.
pub fn room(bytes: u64) -> Result<Vec<u8>, String> {
    let none = || format!("the browser gives no memory for {:.0} MB more", bytes as f64 / 1e6);
    let mut memory = Vec::new();
    memory.try_reserve_exact(usize::try_from(bytes).map_err(|_| none())?).map_err(|_| none())?;
    Ok(memory)
}

fn reserve(bytes: u64) -> Result<Vec<u8>, Failure> {
    room(bytes).map_err(Failure::NoRoom)
}
