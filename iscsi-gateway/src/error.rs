//! Why something can't be done, for administrators.

use client::ClientError;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum Error {
    /// The cluster said no, or nothing.
    #[error("{path}: {source}")]
    Cluster { path: String, source: ClientError },
    #[error("{path}: {}", shards::text::cause(source))]
    File { path: String, source: std::io::Error },
    /// A record in the cluster that can't be read.
    #[error("{path} is damaged: {source}; restore it, or delete the target")]
    Record { path: String, source: serde_json::Error },
    /// What was asked for can't be; the text says what to do.
    #[error("{0}")]
    Refused(String),
}

pub type Result<T = ()> = std::result::Result<T, Error>;

impl Error {
    pub fn cluster(path: &str) -> impl FnOnce(ClientError) -> Error {
        let path = path.to_string();
        move |source| Error::Cluster { path, source }
    }

    pub fn file(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.display().to_string();
        move |source| Error::File { path, source }
    }

    pub fn refused<T>(why: impl Into<String>) -> Result<T> {
        Err(Error::Refused(why.into()))
    }

    /// Whether a name is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Error::Cluster { source, .. } if source.status() == Some(wire::Status::NotFound))
    }

    /// Whether somebody else has the file.
    pub fn is_busy(&self) -> bool {
        let busy = [wire::Status::FileBusy, wire::Status::HolderAway].map(Some);
        matches!(self, Error::Cluster { source, .. } if busy.contains(&source.status()))
    }
}
