//! `null-fuse DIR`: a mount like ours with nothing behind it: one file, `data`, whose reads are answered from a buffer in memory
//! and whose writes are swallowed. What FUSE and the crate fuser cost alone; `perf/fuse.sh` compares the mount with it.

use clap::Parser;
use client::fuse::{self, MountOptions};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, Session,
    WriteFlags,
};
use shards::text::parse_size;
use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

/// Mounts it and serves until it is unmounted.
#[derive(Parser)]
struct Args {
    /// Where to mount.
    dir: PathBuf,
    /// Of the file.
    #[arg(long, default_value = "512M", value_parser = |s: &str| parse_size(s, 1))]
    size: u64,
}

const TTL: Duration = Duration::from_secs(1);
const FILE: INodeNo = INodeNo(2);

struct Null {
    size: u64,
    data: Vec<u8>,
}

fn main() -> io::Result<()> {
    let args = Args::parse();
    let null = Null { size: args.size, data: vec![0x5a; wire::MAX_IO_BYTES] };
    Session::new(null, args.dir, &fuse::config("null", &MountOptions::default()))?.run()
}

impl Null {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let file = ino == FILE;
        FileAttr {
            ino,
            size: if file { self.size } else { 0 },
            blocks: self.size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if file { FileType::RegularFile } else { FileType::Directory },
            perm: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Null {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        fuse::negotiate(config);
        Ok(())
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name.to_str() {
            Some("data") => reply.entry(&TTL, &self.attr(FILE), Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), fuse::open_flags(flags.0));
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        reply.data(&self.data[..left.min(size as usize)]);
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.written(data.len() as u32);
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }
}
