//! Attributes, times and errors between the cluster and FUSE.

use crate::error::ClientError;
use fuser::{Errno, FileType, INodeNo, TimeOrNow};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use wire::FileId;
use wire::mds_api::{FileAttr, FileKind, Special};

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
        FileKind::Special(Special::Fifo) => FileType::NamedPipe,
        FileKind::Special(Special::Socket) => FileType::Socket,
        FileKind::Special(Special::CharacterDevice { .. }) => FileType::CharDevice,
        FileKind::Special(Special::BlockDevice { .. }) => FileType::BlockDevice,
    }
}

fn time(ns: i64) -> SystemTime {
    let far = Duration::from_nanos(ns.unsigned_abs());
    if ns < 0 { UNIX_EPOCH - far } else { UNIX_EPOCH + far }
}

/// Nanoseconds since 1970, or the nearest that is kept (the years 1678 to 2262).
pub fn wall_ns(time: TimeOrNow) -> i64 {
    let time = match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    };
    let ns = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_nanos() as i128,
        // fuser 0.18 takes the kernel's seconds and nanoseconds for both negative; only the seconds are.
        Err(before) => {
            let before = before.duration();
            -i128::from(before.as_secs()) * 1_000_000_000 + i128::from(before.subsec_nanos())
        }
    };
    ns.clamp(i64::MIN.into(), i64::MAX.into()) as i64
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
        atime: time(a.atime_ns),
        mtime: time(a.mtime_ns),
        ctime: time(a.ctime_ns),
        crtime: UNIX_EPOCH,
        kind: kind(a.kind),
        perm: (mode & 0o7777) as u16,
        nlink: a.links,
        uid: over.uid.unwrap_or(a.uid),
        gid: over.gid.unwrap_or(a.gid),
        rdev: match a.kind {
            FileKind::Special(Special::CharacterDevice { device } | Special::BlockDevice { device }) => {
                device
            }
            _ => 0,
        },
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
