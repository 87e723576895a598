//! A worker's identity: an Ed25519 key that it made itself.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use ed25519_dalek::{Signer, SigningKey};

/// Workers without a name of their own that one machine may run from one home folder.
const UNNAMED_MAX: usize = 256;

/// A key, and the lock that keeps a second worker on this machine from using it: workers
/// with one key replace each other at the coordinator.
#[derive(Debug)]
pub struct Identity {
    key: SigningKey,
    /// Held locked as long as this lives.
    _file: Option<File>,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A running worker has it.
    #[error(
        "a running worker uses the key {0} already, and two with one key would replace each \
         other: give this one another --name, --key or --home"
    )]
    InUse(PathBuf),
    /// The file cannot be read or made.
    #[error("cannot read or make the key {path}: {error}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file holds something else.
    #[error("{path} holds {got} bytes, a key has 32 (raw): move it away to have one made")]
    NotAKey {
        /// Which.
        path: PathBuf,
        /// Its length.
        got: usize,
    },
    /// The operating system has no random numbers.
    #[error("cannot make a key: {0}")]
    Random(getrandom::Error),
}

impl Identity {
    /// A key for this process only, as the embedded worker uses.
    ///
    /// # Errors
    /// No random numbers.
    pub fn ephemeral() -> Result<Identity, IdentityError> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(IdentityError::Random)?;
        Ok(Identity { key: SigningKey::from_bytes(&secret), _file: None })
    }

    /// The key in that file, made (readable by its owner only) if there is none.
    ///
    /// # Errors
    /// In use, unreadable, or not a key.
    pub fn open(path: &Path) -> Result<Identity, IdentityError> {
        let io = |error| IdentityError::Io { path: path.into(), error };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(io)?;
        }
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(IdentityError::InUse(path.into())),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        let mut bytes = Vec::new();
        (&mut file).take(33).read_to_end(&mut bytes).map_err(io)?;
        if bytes.is_empty() {
            bytes = vec![0; 32];
            getrandom::fill(&mut bytes).map_err(IdentityError::Random)?;
            file.rewind().and_then(|()| file.write_all(&bytes)).map_err(io)?;
            file.sync_all().map_err(io)?;
        }
        let got = bytes.len();
        let secret = bytes.try_into();
        let secret = secret.map_err(|_| IdentityError::NotAKey { path: path.into(), got })?;
        Ok(Identity { key: SigningKey::from_bytes(&secret), _file: Some(file) })
    }

    /// The key of `keys/NAME.key` under `home`, or of `keys/NAME-2.key` and so on if running
    /// workers have those before; gives the name as well.
    ///
    /// # Errors
    /// As [`Identity::open`].
    pub fn open_free(home: &Path, name: &str) -> Result<(Identity, String), IdentityError> {
        let mut in_use = None;
        for i in 1..=UNNAMED_MAX {
            let name = if i == 1 { name.to_string() } else { format!("{name}-{i}") };
            match Identity::open(&key_path(home, &name)) {
                Ok(identity) => return Ok((identity, name)),
                Err(error @ IdentityError::InUse(_)) => in_use = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(in_use.unwrap_or_else(|| IdentityError::InUse(key_path(home, name))))
    }

    /// The public key, hex.
    pub fn public_key(&self) -> String {
        hex(self.key.verifying_key().as_bytes())
    }

    /// A signature, hex.
    pub fn sign(&self, message: &[u8]) -> String {
        hex(&self.key.sign(message).to_bytes())
    }
}

/// Where the key of a worker of that name lies. Characters that a file name might not bear
/// are replaced.
pub fn key_path(home: &Path, name: &str) -> PathBuf {
    let plain = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = name.chars().map(plain).take(64).collect();
    home.join("keys").join(format!("{name}.key"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signature, VerifyingKey};

    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.chars().map(|c| c.to_digit(16).unwrap() as u8).collect();
        digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect()
    }

    #[test]
    fn a_key_is_made_once_and_signs() {
        let home = tempfile::tempdir().unwrap();
        let path = key_path(home.path(), "otter");
        let first = Identity::open(&path).unwrap();
        let public_key = first.public_key();
        let signature = first.sign(b"challenge");
        let key: [u8; 32] = bytes(&public_key).try_into().unwrap();
        let signature = Signature::from_slice(&bytes(&signature)).unwrap();
        let key = VerifyingKey::from_bytes(&key).unwrap();
        assert!(key.verify_strict(b"challenge", &signature).is_ok());
        assert!(key.verify_strict(b"another", &signature).is_err());
        drop(first);
        assert_eq!(Identity::open(&path).unwrap().public_key(), public_key);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn two_workers_on_one_machine_differ() {
        let home = tempfile::tempdir().unwrap();
        let (first, name) = Identity::open_free(home.path(), "host").unwrap();
        assert_eq!(name, "host");
        let (second, name) = Identity::open_free(home.path(), "host").unwrap();
        assert_eq!(name, "host-2");
        assert_ne!(first.public_key(), second.public_key());
        let error = Identity::open(&key_path(home.path(), "host")).unwrap_err();
        assert!(matches!(error, IdentityError::InUse(_)), "{error}");
        drop(first);
        assert_eq!(Identity::open_free(home.path(), "host").unwrap().1, "host");
    }

    #[test]
    fn a_file_that_is_no_key_is_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("letter.txt");
        fs::write(&path, "dear reader").unwrap();
        let error = Identity::open(&path).unwrap_err();
        assert!(matches!(error, IdentityError::NotAKey { got: 11, .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"dear reader");
    }

    #[test]
    fn names_make_harmless_file_names() {
        let path = key_path(Path::new("h"), "../../etc/passwd\0 x");
        assert_eq!(path, Path::new("h/keys/.._.._etc_passwd__x.key"));
    }
}
