//! The origin private file system: one folder of ours, `weft`, with the weights in
//! `weft/blobs` and a few small files beside.

use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use web_sys::{
    File, FileSystemDirectoryHandle, FileSystemFileHandle, FileSystemGetDirectoryOptions,
    FileSystemGetFileOptions, FileSystemHandle, FileSystemReadWriteOptions,
    FileSystemRemoveOptions, FileSystemSyncAccessHandle,
};

use super::js;

const FOLDER: &str = "weft";
const BLOBS: &str = "blobs";
/// Longest small file, bytes: an index of 4096 blobs.
const SMALL_BYTES_MAX: u64 = 1 << 20;
/// Looks at a file that another worker has open, and the time between them, ms.
const BUSY_LOOKS_MAX: u32 = 15;
const BUSY_PAUSE_MS: f64 = 100.0;
/// Files looked at when the folder is listed; more are not seen.
const FILES_MAX: usize = 16_384;

/// Why storage does not do what it should.
#[derive(Clone, Debug)]
pub enum StorageError {
    /// The browser grants no more room.
    Full,
    /// Another worker has the file open, perhaps one that is just ending.
    Busy,
    /// There is no such file.
    Absent,
    /// Something else, in words.
    Other(String),
}

impl std::fmt::Display for StorageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StorageError::Full => f.write_str("the browser grants this page no more disk space"),
            StorageError::Busy => f.write_str("another worker of this page has the file open"),
            StorageError::Absent => f.write_str("there is no such file"),
            StorageError::Other(reason) => f.write_str(reason),
        }
    }
}

impl From<JsValue> for StorageError {
    fn from(error: JsValue) -> StorageError {
        match js::name(&error).as_str() {
            "QuotaExceededError" => StorageError::Full,
            "NoModificationAllowedError" => StorageError::Busy,
            "NotFoundError" => StorageError::Absent,
            _ => StorageError::Other(js::text(&error)),
        }
    }
}

type Result<T> = std::result::Result<T, StorageError>;

/// This origin's folder.
pub struct Store {
    top: FileSystemDirectoryHandle,
    folder: FileSystemDirectoryHandle,
    blobs: FileSystemDirectoryHandle,
}

impl Store {
    /// Opens the folder, and makes it if need be. Also tries whether files can really be
    /// written: private windows give a folder in which none can.
    ///
    /// # Errors
    /// There is no such file system here.
    pub async fn open() -> Result<Store> {
        let storage = js::get(&js::navigator(), "storage");
        if storage.is_undefined() {
            return Err(StorageError::Other("this browser gives the page no storage".into()));
        }
        if js::method(&storage, "getDirectory").is_none() {
            return Err(StorageError::Other("this browser has no file system for pages".into()));
        }
        let top = js::navigator().storage().get_directory();
        let top: FileSystemDirectoryHandle = JsFuture::from(top).await?.unchecked_into();
        let folder = subfolder(&top, FOLDER).await?;
        let blobs = subfolder(&folder, BLOBS).await?;
        let store = Store { top, folder, blobs };
        store.write_small("probe", b"weft").await?;
        Ok(store)
    }

    /// The files among the blobs: names and bytes.
    pub async fn blobs(&self) -> Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        let entries = self.blobs.values();
        while files.len() < FILES_MAX {
            let next = JsFuture::from(entries.next_iterator()?).await?;
            if js::get(&next, "done").is_truthy() {
                break;
            }
            let handle: FileSystemHandle = js::get(&next, "value").unchecked_into();
            let Ok(file) = handle.clone().dyn_into::<FileSystemFileHandle>() else { continue };
            let file: File = JsFuture::from(file.get_file()).await?.unchecked_into();
            files.push((handle.name(), file.size() as u64));
        }
        Ok(files)
    }

    /// Opens a blob's file for reading and writing.
    ///
    /// # Errors
    /// It is not there and not to be made, or somebody has it open.
    pub async fn open_blob(&self, name: &str, create: bool) -> Result<Access> {
        Access::open(&self.blobs, name, create).await
    }

    /// Gives a blob its final name. The file must not be open.
    pub async fn rename_blob(&self, from: &str, to: &str) -> Result<()> {
        let handle = JsFuture::from(self.blobs.get_file_handle(from)).await?;
        if let Some(rename) = js::method(&handle, "move") {
            let renamed = rename.call1(&handle, &JsValue::from_str(to))?;
            JsFuture::from(js_sys::Promise::resolve(&renamed)).await?;
            return Ok(());
        }
        // A browser that cannot rename.
        {
            let source = self.open_blob(from, false).await?;
            let target = self.open_blob(to, true).await?;
            target.truncate(0)?;
            let mut buffer = vec![0; 1 << 20];
            let mut at = 0;
            loop {
                match source.read(at, &mut buffer)? {
                    0 => break,
                    n => target.write(at, &buffer[..n])?,
                }
                at += buffer.len() as u64;
            }
            target.flush()?;
        }
        self.remove_blob(from).await
    }

    /// Removes a blob's file.
    pub async fn remove_blob(&self, name: &str) -> Result<()> {
        JsFuture::from(self.blobs.remove_entry(name)).await?;
        Ok(())
    }

    /// A small file; `None` if it is not there.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub async fn read_small(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let file = match Access::open(&self.folder, name, false).await {
            Ok(file) => file,
            Err(StorageError::Absent) => return Ok(None),
            Err(error) => return Err(error),
        };
        let bytes = file.bytes()?;
        if bytes > SMALL_BYTES_MAX {
            return Err(StorageError::Other(format!("{name} has {bytes} bytes")));
        }
        let mut content = vec![0; bytes as usize];
        let read = file.read(0, &mut content)?;
        content.truncate(read);
        Ok(Some(content))
    }

    /// Writes a small file. What it held is cut off last: a worker that is ended in between
    /// leaves no empty file.
    pub async fn write_small(&self, name: &str, content: &[u8]) -> Result<()> {
        let file = Access::open(&self.folder, name, true).await?;
        file.write(0, content)?;
        file.truncate(content.len() as u64)?;
        file.flush()
    }

    /// Removes everything.
    pub async fn clear(&self) -> Result<()> {
        let options = FileSystemRemoveOptions::new();
        options.set_recursive(true);
        JsFuture::from(self.top.remove_entry_with_options(FOLDER, &options)).await?;
        Ok(())
    }
}

async fn subfolder(
    folder: &FileSystemDirectoryHandle,
    name: &str,
) -> Result<FileSystemDirectoryHandle> {
    let options = FileSystemGetDirectoryOptions::new();
    options.set_create(true);
    let handle = folder.get_directory_handle_with_options(name, &options);
    Ok(JsFuture::from(handle).await?.unchecked_into())
}

/// An open file; closed when dropped. Nobody else can open it meanwhile.
pub struct Access {
    handle: FileSystemSyncAccessHandle,
}

impl Access {
    /// Whoever else has it open is a worker that is just ending: that is waited for.
    async fn open(folder: &FileSystemDirectoryHandle, name: &str, create: bool) -> Result<Access> {
        let options = FileSystemGetFileOptions::new();
        options.set_create(create);
        let file = folder.get_file_handle_with_options(name, &options);
        let file: FileSystemFileHandle = JsFuture::from(file).await?.unchecked_into();
        let mut looks = 1;
        loop {
            let opened = JsFuture::from(file.create_sync_access_handle()).await;
            match opened.map_err(StorageError::from) {
                Ok(handle) => return Ok(Access { handle: handle.unchecked_into() }),
                Err(StorageError::Busy) if looks < BUSY_LOOKS_MAX => looks += 1,
                Err(error) => return Err(error),
            }
            js::sleep(BUSY_PAUSE_MS).await;
        }
    }

    /// Its length.
    pub fn bytes(&self) -> Result<u64> {
        Ok(self.handle.get_size()? as u64)
    }

    /// Reads at `offset`; fewer bytes than the buffer has only at the end.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let options = at(offset);
        Ok(self.handle.read_with_u8_array_and_options(buffer, &options)? as usize)
    }

    /// Writes all of `bytes` at `offset`.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let written = self.handle.write_with_u8_array_and_options(bytes, &at(offset))? as usize;
        // Some browsers write what fits and say how much that was.
        if written < bytes.len() { Err(StorageError::Full) } else { Ok(()) }
    }

    /// Cuts it.
    pub fn truncate(&self, bytes: u64) -> Result<()> {
        self.handle.truncate_with_f64(bytes as f64)?;
        Ok(())
    }

    /// Has it on disk.
    pub fn flush(&self) -> Result<()> {
        self.handle.flush()?;
        Ok(())
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        self.handle.close();
    }
}

fn at(offset: u64) -> FileSystemReadWriteOptions {
    let options = FileSystemReadWriteOptions::new();
    options.set_at(offset as f64);
    options
}
