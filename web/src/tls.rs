//! The certificate that a server shows.

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::PathBuf;
use std::sync::Arc;

/// In PEM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// The server's certificate, then those between it and the authority that browsers know.
    pub certificates: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{}: {error}; certificates and their key are expected in PEM", path.display())]
    Read { path: PathBuf, error: pem::Error },
    #[error("{}: {error}", files.certificates.display())]
    Use { files: TlsFiles, error: rustls::Error },
}

impl TlsFiles {
    pub(crate) fn load(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let failed = |path: &PathBuf| {
            let path = path.clone();
            |error| TlsError::Read { path, error }
        };
        let certificates: Vec<CertificateDer> = CertificateDer::pem_file_iter(&self.certificates)
            .and_then(Iterator::collect)
            .map_err(failed(&self.certificates))?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(failed(&self.key))?;
        ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key))
            .map(Arc::new)
            .map_err(|error| TlsError::Use { files: self.clone(), error })
    }
}
