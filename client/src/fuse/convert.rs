//! Attributes, times and errors between the cluster and FUSE.

use crate::error::ClientError;
use fuser::{Errno, FileType, INodeNo, TimeOrNow};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use wire::FileId;
use wire::mds_api::{FileAttr, FileKind};

/// What `pstorage-mount -u -g -m` shows instead of the stored owner and mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Overrides {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Permission bits of files; directories get x where they get r.
    pub mode: Option<u32>,
}

pub fn inode(file: FileId) -> INodeNo {
    INodeNo(file.0)
}

pub fn file(inode: INodeNo) -> FileId {
    FileId(inode.0)
}

pub fn kind(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
    }
}

fn time(ms: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(ms)).unwrap_or(UNIX_EPOCH)
}

pub fn wall_ms(time: TimeOrNow) -> u64 {
    let time = match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    };
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

pub fn attr(a: &FileAttr, over: Overrides) -> fuser::FileAttr {
    let directory = a.kind == FileKind::Directory;
    let mode = match over.mode {
        Some(mode) if directory => mode | (mode & 0o444) >> 2,
        Some(mode) if a.kind == FileKind::File => mode,
        _ => a.mode,
    };
    fuser::FileAttr {
        ino: inode(a.file),
        size: a.size_bytes,
        blocks: a.allocated_bytes.min(a.size_bytes.next_multiple_of(4096)) / 512,
        atime: time(a.mtime_ms),
        mtime: time(a.mtime_ms),
        ctime: time(a.ctime_ms.max(a.mtime_ms)),
        crtime: UNIX_EPOCH,
        kind: kind(a.kind),
        perm: (mode & 0o7777) as u16,
        nlink: a.links,
        uid: over.uid.unwrap_or(a.uid),
        gid: over.gid.unwrap_or(a.gid),
        rdev: 0,
        blksize: 1 << 20,
        flags: 0,
    }
}

pub fn errno(error: &ClientError) -> Errno {
    let code = error.errno();
    if code == libc::EIO || code == libc::ENOSPC {
        tracing::error!(%error, "request_failed");
    }
    Errno::from_i32(code)
}
