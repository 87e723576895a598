//! The certificate and key of `--tls-cert` and `--tls-key`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is no PEM.
    #[error("{path}: {error}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        error: PemError,
    },
    /// The certificate's file has none.
    #[error("{0}: no certificate in it: a PEM file with BEGIN CERTIFICATE is needed")]
    NoCertificate(PathBuf),
    /// The key's file has none.
    #[error("{0}: no private key in it: a PEM file with BEGIN PRIVATE KEY is needed")]
    NoKey(PathBuf),
    /// The two are not usable together.
    #[error("{certificate} with {key}: {error}")]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        error: rustls::Error,
    },
}

/// The two files' paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM: the server's certificate, then those that lead to a known one.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
}

/// Reads both files.
///
/// # Errors
/// [`TlsError`].
pub fn load(files: &TlsFiles) -> Result<TlsAcceptor, TlsError> {
    let TlsFiles { certificate, key } = files;
    let read = |path: &Path, error| TlsError::Read { path: path.to_owned(), error };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| read(certificate, error))?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate(certificate.clone()));
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| match error {
        PemError::NoItemsFound => TlsError::NoKey(key.clone()),
        error => read(key, error),
    })?;
    let pair = |error| TlsError::Pair { certificate: certificate.clone(), key: key.clone(), error };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(chain, secret))
        .map_err(pair)?;
    // The workers' WebSockets are upgrades of HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use rcgen::generate_simple_self_signed;

    use super::*;

    /// Writes a certificate and its key.
    fn write(folder: &Path, name: &str) -> TlsFiles {
        let made = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let path = |end| folder.join(format!("{name}.{end}"));
        std::fs::write(path("crt"), made.cert.pem()).unwrap();
        std::fs::write(path("key"), made.signing_key.serialize_pem()).unwrap();
        TlsFiles { certificate: path("crt"), key: path("key") }
    }

    #[test]
    fn a_pair_is_taken_and_what_is_wrong_with_another_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (write(folder.path(), "one"), write(folder.path(), "two"));
        assert!(load(&one).is_ok());
        let check = |files: TlsFiles, expected: &str| {
            let error = load(&files).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(TlsFiles { certificate: one.key.clone(), ..one.clone() }, "no certificate in it");
        check(TlsFiles { key: one.certificate.clone(), ..one.clone() }, "no private key in it");
        check(TlsFiles { key: two.key, ..one.clone() }, "one.crt with");
        let missing = folder.path().join("missing.crt");
        check(TlsFiles { certificate: missing, ..one }, "missing.crt");
    }
}
