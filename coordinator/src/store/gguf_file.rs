//! A model's GGUF files: found, mapped, parsed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use model::gguf::Gguf;

use super::StoreError;

/// Parts of one model at most; llama.cpp's splitter counts with five digits.
const PARTS_MAX: u32 = 1024;

/// A model's mapped files.
pub struct GgufFiles {
    paths: Vec<PathBuf>,
    maps: Vec<Mmap>,
}

impl GgufFiles {
    /// Maps a model's files: `path` is its only file, or any of its parts, or a folder that
    /// holds one model.
    ///
    /// # Errors
    /// No such file, a part is missing, or the folder holds another number of models.
    pub fn open(path: &Path) -> Result<GgufFiles, StoreError> {
        let paths = find_parts(path)?;
        let mut maps = Vec::new();
        for path in &paths {
            let file = File::open(path).map_err(StoreError::io("cannot open", path))?;
            // SAFETY: the mapping is read-only and read through byte slices only. Someone
            // who changes the file meanwhile changes those bytes, which the parser is made
            // for, and whose blobs are hashed as they are written; one who cuts it short
            // ends this process with a signal, as with every program that maps its models.
            let map = unsafe { Mmap::map(&file) };
            maps.push(map.map_err(StoreError::io("cannot map", path))?);
        }
        Ok(GgufFiles { paths, maps })
    }

    /// The files' metadata and tensors.
    ///
    /// # Errors
    /// They are no sound GGUF.
    pub fn parse(&self) -> Result<Gguf<'_>, StoreError> {
        let slices: Vec<&[u8]> = self.maps.iter().map(|map| &map[..]).collect();
        Gguf::parse(&slices)
            .map_err(|error| StoreError::Gguf { path: self.first(), error: Box::new(error) })
    }

    /// The files, the first part first.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// The first file, for messages.
    pub fn first(&self) -> PathBuf {
        self.paths[0].clone()
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.maps.iter().map(|map| map.len() as u64).sum()
    }
}

/// All files of the model that `path` belongs to, in order.
///
/// # Errors
/// As [`GgufFiles::open`].
pub fn find_parts(path: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let problem = |problem: String| StoreError::Files { path: path.to_owned(), problem };
    let path = if path.is_dir() { &only_model(path)? } else { path };
    if !path.is_file() {
        return Err(problem("there is no such file".into()));
    }
    let Some((prefix, count)) = split_name(path) else { return Ok(vec![path.to_owned()]) };
    let mut parts = Vec::new();
    for number in 1..=count {
        let part = path.with_file_name(part_name(&prefix, number, count));
        if !part.is_file() {
            let name = part.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Err(problem(format!("part {name} of the model is missing beside it")));
        }
        parts.push(part);
    }
    Ok(parts)
}

/// The names of all parts of the split model that a file called `name` belongs to, or just
/// `name`.
pub(crate) fn part_names(name: &str) -> Vec<String> {
    match split_name(Path::new(name)) {
        Some((prefix, count)) => {
            let folder = Path::new(name).parent().unwrap_or(Path::new(""));
            let path = |n| folder.join(part_name(&prefix, n, count));
            (1..=count).map(|n| path(n).to_string_lossy().into_owned()).collect()
        }
        None => vec![name.to_owned()],
    }
}

fn part_name(prefix: &str, number: u32, count: u32) -> String {
    format!("{prefix}-{number:05}-of-{count:05}.gguf")
}

/// A model's name by its file's: the stem, without the part's number.
pub(crate) fn stem(path: &Path) -> String {
    match split_name(path) {
        Some((prefix, _)) => prefix,
        None => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
    }
}

/// `prefix` and `count` of `prefix-00001-of-00003.gguf`.
fn split_name(path: &Path) -> Option<(String, u32)> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let five_digits = |t: &str| t.len() == 5 && t.bytes().all(|b| b.is_ascii_digit());
    if !five_digits(number) || !five_digits(count) {
        return None;
    }
    let (number, count) = (number.parse::<u32>().ok()?, count.parse::<u32>().ok()?);
    (1..=count.min(PARTS_MAX)).contains(&number).then(|| (prefix.to_owned(), count))
}

/// The file, or first part, of the one model in a folder.
fn only_model(folder: &Path) -> Result<PathBuf, StoreError> {
    let mut models: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder).map_err(StoreError::io("cannot list", folder))? {
        let path = entry.map_err(StoreError::io("cannot list", folder))?.path();
        let gguf = path.extension().is_some_and(|extension| extension == "gguf");
        if gguf && !models.iter().any(|known| stem(known) == stem(&path)) {
            models.push(path);
        }
    }
    match models.len() {
        1 => Ok(models.remove(0)),
        n => Err(StoreError::Files {
            path: folder.to_owned(),
            problem: format!("one model is expected there, {n} are: name the .gguf file instead"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_files_name_each_other() {
        assert_eq!(part_names("a/m-00002-of-00003.gguf")[2], "a/m-00003-of-00003.gguf");
        assert_eq!(part_names("m-00002-of-00003.gguf").len(), 3);
        for single in ["m.gguf", "m-00004-of-00003.gguf", "m-0001-of-0003.gguf", "m-1-of-x.gguf"] {
            assert_eq!(part_names(single), [single]);
        }
        assert_eq!(stem(Path::new("a/m.Q4_1.gguf")), "m.Q4_1");
        assert_eq!(stem(Path::new("a/m-00002-of-00003.gguf")), "m");
    }
}
