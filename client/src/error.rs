//! Why a request failed, by what the caller can do about it, and the errno a file system shows for it.

use wire::Status;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClientError {
    /// A server answered no. Trying again unchanged gives the same answer.
    #[error("{}", if .detail.is_empty() { .status.text() } else { .detail })]
    Refused { status: Status, detail: String },
    /// No metadata server answered in time; `detail` names each one tried and why it failed.
    #[error("no metadata server of the cluster can be reached: {detail}")]
    MdsUnreachable { detail: String },
    /// Chunk servers did not do the work within the time allowed; `detail` holds the last reason.
    #[error("input/output error: {detail}")]
    Io { detail: String },
    /// Another client or an administrator took the file; open it again.
    #[error("the lease of the file was lost: {detail}; open it again")]
    LeaseLost { detail: String },
    /// The handle is not open, or the client is stopping.
    #[error("{0}")]
    Closed(&'static str),
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    #[error("beyond the largest size of a file")]
    TooLarge,
}

pub type Result<T> = std::result::Result<T, ClientError>;

impl ClientError {
    pub(crate) fn refused(status: Status, detail: impl Into<String>) -> Self {
        ClientError::Refused { status, detail: detail.into() }
    }

    pub fn status(&self) -> Option<Status> {
        match self {
            ClientError::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The errno a program sees.
    pub fn errno(&self) -> i32 {
        match self {
            ClientError::Refused { status, .. } => status_errno(*status),
            ClientError::MdsUnreachable { .. } | ClientError::Io { .. } | ClientError::LeaseLost { .. } => {
                libc::EIO
            }
            ClientError::Closed(_) => libc::EBADF,
            ClientError::Invalid(_) => libc::EINVAL,
            ClientError::TooLarge => libc::EFBIG,
        }
    }
}

fn status_errno(status: Status) -> i32 {
    match status {
        Status::NoSpace | Status::TooFewServers => libc::ENOSPC,
        Status::NotFound => libc::ENOENT,
        Status::Exists => libc::EEXIST,
        Status::NotDirectory => libc::ENOTDIR,
        Status::IsDirectory => libc::EISDIR,
        Status::NotEmptyDirectory => libc::ENOTEMPTY,
        Status::FileBusy | Status::HolderAway => libc::EBUSY,
        Status::InvalidArgument => libc::EINVAL,
        Status::NoAttribute => libc::ENODATA,
        Status::NotSupported => libc::EOPNOTSUPP,
        Status::NameTooLong => libc::ENAMETOOLONG,
        Status::StaleHandle => libc::ESTALE,
        Status::ReadOnly => libc::EROFS,
        Status::WrongPassword | Status::TakenOut => libc::EACCES,
        _ => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_a_text_and_an_errno() {
        let e = ClientError::refused(Status::NotFound, "");
        assert_eq!((e.errno(), e.to_string()), (libc::ENOENT, "no such file or directory".to_string()));
        let e = ClientError::refused(Status::NoSpace, "all chunk servers are full");
        assert_eq!((e.errno(), e.to_string()), (libc::ENOSPC, "all chunk servers are full".to_string()));
    }
}
