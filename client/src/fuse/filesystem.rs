//! The FUSE operations. Each turns its request into one [`Call`] and returns at once; the closure that goes with
//! the call sends the reply.

use super::convert::{self, Overrides};
use super::directory::{OpenDirectories, Reply, text};
use super::info::Info;
use super::xattr;
use crate::call::{Call, OpenFile, SeekFor, WriteHow};
use crate::core::refuse;
use crate::error::Result;
use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use shards::ring::Mailbox;
use shards::{Buf, BufMut};
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};
use wire::mds_api::{AttrChange, FileAttr, FileKind, FsStat, LeaseMode, MdsReply, MdsRequest, Special};
use wire::{ClientId, FileId};

/// How long the kernel believes names and attributes without asking, so that changes of other hosts are seen within a second. Data is
/// covered by leases instead.
pub(super) const TTL: Duration = Duration::from_secs(1).saturating_sub(crate::core::ATTRIBUTES_KEPT);
const MAX_WRITE_BYTES: u32 = wire::MAX_IO_BYTES as u32;
/// Requests the kernel keeps under way in the background (read-ahead, asynchronous direct I/O).
const MAX_BACKGROUND: u16 = 256;

pub struct PstorageFs {
    mailbox: Mailbox<Call>,
    over: Overrides,
    directories: OpenDirectories,
    info: Info,
}

impl PstorageFs {
    pub fn new(mailbox: Mailbox<Call>, over: Overrides, info: Info) -> Self {
        PstorageFs { mailbox, over, directories: OpenDirectories::default(), info }
    }

    fn entry(&self, reply: ReplyEntry) -> crate::Done<FileAttr> {
        let over = self.over;
        Box::new(move |attr: Result<FileAttr>| match attr {
            Ok(attr) => reply.entry(&TTL, &convert::attr(&attr, over), Generation(0)),
            Err(error) => reply.error(convert::errno(&error)),
        })
    }

    fn attr(&self, reply: ReplyAttr) -> crate::Done<FileAttr> {
        let over = self.over;
        Box::new(move |attr: Result<FileAttr>| match attr {
            Ok(attr) => reply.attr(&TTL, &convert::attr(&attr, over)),
            Err(error) => reply.error(convert::errno(&error)),
        })
    }

    fn make(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        kind: FileKind,
        mode: u32,
        target: String,
        reply: ReplyEntry,
    ) {
        match text(name) {
            Ok(name) => self.mailbox.send(Call::Make {
                parent: convert::file(parent),
                name,
                kind,
                mode: mode & 0o7777,
                uid: req.uid(),
                gid: req.gid(),
                target,
                done: self.entry(reply),
            }),
            Err(error) => reply.error(convert::errno(&error)),
        }
    }

    fn remove(&self, parent: INodeNo, name: &OsStr, directory: bool, reply: ReplyEmpty) {
        match text(name) {
            Ok(name) => self.mds(
                MdsRequest::Unlink { client: ClientId(0), parent: convert::file(parent), name, directory },
                reply,
            ),
            Err(error) => reply.error(convert::errno(&error)),
        }
    }

    fn mds(&self, request: MdsRequest, reply: ReplyEmpty) {
        let done = Box::new(move |answer: Result<MdsReply>| finish(reply, answer.map(|_| ())));
        self.mailbox.send(Call::Mds { request, done });
    }
}

fn finish(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(convert::errno(&error)),
    }
}

fn lease_mode(flags: i32) -> LeaseMode {
    match OpenFlags(flags).acc_mode() {
        OpenAccMode::O_RDONLY => LeaseMode::Read,
        OpenAccMode::O_WRONLY | OpenAccMode::O_RDWR => LeaseMode::Write,
    }
}

/// The handle tells the lease mode, so that release can give the right one back.
fn handle(mode: LeaseMode) -> FileHandle {
    FileHandle(match mode {
        LeaseMode::Read => 1,
        LeaseMode::Write => 2,
    })
}

/// How the kernel is to treat a file opened with `flags`.
pub fn open_flags(flags: i32) -> FopenFlags {
    if flags & libc::O_DIRECT != 0 {
        FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
    } else {
        FopenFlags::empty()
    }
}

/// What the mount asks of the kernel.
pub fn negotiate(config: &mut KernelConfig) {
    let wanted = [
        InitFlags::FUSE_ASYNC_DIO,
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_DO_READDIRPLUS,
        InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        // Without it the kernel asks for security.capability before every write.
        InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        // File handles (open_by_handle_at, NFS servers): the kernel looks up "." and ".." of what it has forgotten.
        InitFlags::FUSE_EXPORT_SUPPORT,
    ];
    for flag in wanted {
        if config.add_capabilities(flag).is_err() {
            tracing::debug!(?flag, "fuse_capability_missing");
        }
    }
    let _ = config.set_max_write(MAX_WRITE_BYTES);
    let _ = config.set_max_readahead(MAX_WRITE_BYTES).map_err(|most| config.set_max_readahead(most));
    let _ = config.set_max_background(MAX_BACKGROUND);
}

fn owned(data: &[u8]) -> Buf {
    let mut buf = BufMut::scratch(data.len());
    buf.copy_from_slice(data);
    buf.freeze()
}

impl Filesystem for PstorageFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        negotiate(config);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if let Some(attr) = self.info.lookup(parent, name) {
            return reply.entry(&TTL, &attr, Generation(0));
        }
        if name == "." {
            return self.mailbox.send(Call::GetAttr { file: convert::file(parent), done: self.entry(reply) });
        }
        match text(name) {
            Ok(name) => {
                self.mailbox.send(Call::Lookup {
                    parent: convert::file(parent),
                    name,
                    done: self.entry(reply),
                });
            }
            Err(error) => reply.error(convert::errno(&error)),
        }
    }

    fn forget(&self, _req: &Request, _ino: INodeNo, _nlookup: u64) {}

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        if self.info.has(ino) {
            return reply.attr(&TTL, &self.info.attr(ino));
        }
        self.mailbox.send(Call::GetAttr { file: convert::file(ino), done: self.attr(reply) });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if self.info.has(ino) {
            return reply.error(Errno::EROFS);
        }
        let change = AttrChange {
            mode: mode.map(|m| m & 0o7777),
            uid,
            gid,
            size_bytes: size,
            // The kernel leaves this to us (FUSE_HANDLE_KILLPRIV_V2).
            drops_privileges: uid.is_some() || gid.is_some() || size.is_some() && req.uid() != 0,
            atime_ns: atime.map(convert::wall_ns),
            mtime_ns: mtime.map(convert::wall_ns),
        };
        let (file, done) = (convert::file(ino), self.attr(reply));
        if change == AttrChange::default() {
            self.mailbox.send(Call::GetAttr { file, done });
        } else {
            self.mailbox.send(Call::SetAttr { file, change, done });
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.mailbox.send(Call::Mds {
            request: MdsRequest::ReadLink { file: convert::file(ino) },
            done: Box::new(move |answer| match answer {
                Ok(MdsReply::Link { target }) => reply.data(target.as_bytes()),
                Ok(_) => reply.error(Errno::EIO),
                Err(error) => reply.error(convert::errno(&error)),
            }),
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let kind = match mode & libc::S_IFMT {
            libc::S_IFREG | 0 => FileKind::File,
            libc::S_IFIFO => FileKind::Special(Special::Fifo),
            libc::S_IFSOCK => FileKind::Special(Special::Socket),
            libc::S_IFCHR => FileKind::Special(Special::CharacterDevice { device: rdev }),
            libc::S_IFBLK => FileKind::Special(Special::BlockDevice { device: rdev }),
            _ => return reply.error(Errno::EINVAL),
        };
        self.make(req, parent, name, kind, mode, String::new(), reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        self.make(req, parent, name, FileKind::Directory, mode, String::new(), reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        match target.to_str() {
            Some(t) => self.make(req, parent, link_name, FileKind::Symlink, 0o777, t.to_string(), reply),
            None => reply.error(Errno::EINVAL),
        }
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, false, reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, true, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if flags.contains(RenameFlags::RENAME_WHITEOUT) {
            return reply.error(Errno::EINVAL);
        }
        let (from_name, to_name) = match (text(name), text(newname)) {
            (Ok(from), Ok(to)) => (from, to),
            (Err(error), _) | (_, Err(error)) => return reply.error(convert::errno(&error)),
        };
        let request = MdsRequest::Rename {
            client: ClientId(0),
            from_parent: convert::file(parent),
            from_name,
            to_parent: convert::file(newparent),
            to_name,
            no_replace: flags.contains(RenameFlags::RENAME_NOREPLACE),
            exchange: flags.contains(RenameFlags::RENAME_EXCHANGE),
        };
        self.mds(request, reply);
    }

    /// Hard links do not exist in this file system.
    fn link(&self, _req: &Request, _ino: INodeNo, _newparent: INodeNo, _newname: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.info.has(ino) {
            return self.info.open(&self.mailbox, ino, flags, reply);
        }
        let mode = lease_mode(flags.0);
        self.mailbox.send(Call::Open {
            file: convert::file(ino),
            mode,
            done: Box::new(move |opened: Result<OpenFile>| match opened {
                Ok(_) => reply.opened(handle(mode), open_flags(flags.0)),
                Err(error) => reply.error(convert::errno(&error)),
            }),
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let name = match text(name) {
            Ok(name) => name,
            Err(error) => return reply.error(convert::errno(&error)),
        };
        let over = self.over;
        self.mailbox.send(Call::Create {
            parent: convert::file(parent),
            name,
            mode: mode & 0o7777,
            uid: req.uid(),
            gid: req.gid(),
            exclusive: flags & libc::O_EXCL != 0,
            done: Box::new(move |opened: Result<OpenFile>| match opened {
                Ok(OpenFile { attr }) => {
                    let attr = convert::attr(&attr, over);
                    reply.created(&TTL, &attr, Generation(0), handle(LeaseMode::Write), open_flags(flags));
                }
                Err(error) => reply.error(convert::errno(&error)),
            }),
        });
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if self.info.has(ino) {
            return self.info.read(fh, offset, size, reply);
        }
        self.mailbox.send(Call::Read {
            file: convert::file(ino),
            offset,
            len: size as usize,
            done: Box::new(move |data: Result<Buf>| match data {
                Ok(data) => reply.data(&data),
                Err(error) => reply.error(convert::errno(&error)),
            }),
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let len = data.len() as u32;
        let has = |flags: i32, any: i32| flags & any != 0;
        let how = WriteHow {
            sync: has(flags.0, libc::O_SYNC | libc::O_DSYNC),
            drops_privileges: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            // Who goes past the kernel's cache wants to know that it is done.
            may_wait: !has(flags.0, libc::O_DIRECT),
        };
        self.mailbox.send(Call::Write {
            file: convert::file(ino),
            offset,
            data: owned(data),
            how,
            done: Box::new(move |result| match result {
                Ok(()) => reply.written(len),
                Err(error) => reply.error(convert::errno(&error)),
            }),
        });
    }

    fn flush(&self, _req: &Request, ino: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        if self.info.has(ino) || fh == handle(LeaseMode::Read) {
            return reply.ok();
        }
        // The size too, before `close` returns: whoever looks at the file on another host next must find it whole, as the kernel there
        // believes what it has seen for a second.
        self.fsync_file(ino, reply);
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if self.info.has(ino) {
            self.info.release(fh);
            return reply.ok();
        }
        let mode = if fh == handle(LeaseMode::Write) { LeaseMode::Write } else { LeaseMode::Read };
        let done = Box::new(move |result| finish(reply, result));
        self.mailbox.send(Call::Close { file: convert::file(ino), mode, done });
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.fsync_file(ino, reply);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(self.directories.open()), FopenFlags::empty());
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        if self.info.has(ino) {
            return self.info.list(offset, reply);
        }
        self.directories.read(&self.mailbox, ino, fh.0, offset, self.over, Reply::Plain(reply));
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        if self.info.has(ino) {
            return self.info.list_plus(offset, reply);
        }
        self.directories.read(&self.mailbox, ino, fh.0, offset, self.over, Reply::Plus(reply));
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.directories.close(fh.0);
        reply.ok();
    }

    /// Names are durable when the metadata service has answered.
    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.mailbox.send(Call::Mds {
            request: MdsRequest::StatFs,
            done: Box::new(move |answer| match answer {
                Ok(MdsReply::Fs(fs)) => {
                    let (total, free) = logical_space(&fs);
                    reply.statfs(
                        total / 4096,
                        free / 4096,
                        free / 4096,
                        fs.files,
                        u64::MAX >> 1,
                        4096,
                        255,
                        4096,
                    );
                }
                Ok(_) => reply.error(Errno::EIO),
                Err(error) => reply.error(convert::errno(&error)),
            }),
        });
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        xattr::set(&self.mailbox, convert::file(ino), name, value, flags, reply);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        xattr::get(&self.mailbox, convert::file(ino), name, size, reply);
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if self.info.has(ino) {
            return if size == 0 { reply.size(0) } else { reply.data(&[]) };
        }
        xattr::list(&self.mailbox, convert::file(ino), size, reply);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        xattr::remove(&self.mailbox, convert::file(ino), name, reply);
    }

    /// The kernel checks permissions itself (`default_permissions`).
    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let file: FileId = convert::file(ino);
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let done: crate::Done<()> = Box::new(move |result| finish(reply, result));
        let call = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            libc::FALLOC_FL_PUNCH_HOLE => Call::Zero { file, offset, len: length, keep_size: true, done },
            libc::FALLOC_FL_ZERO_RANGE => Call::Zero { file, offset, len: length, keep_size, done },
            // Space is thin: nothing to set aside within the size.
            0 if keep_size => Call::Reserve { file, offset: 0, len: 0, done },
            0 => Call::Reserve { file, offset, len: length, done },
            _ => return done(Err(crate::ClientError::refused(wire::Status::NotSupported, ""))),
        };
        if req.uid() == 0 {
            return self.mailbox.send(call);
        }
        // As for a write, of which the kernel says so itself.
        let mailbox = self.mailbox.clone();
        let done = Box::new(move |dropped| match dropped {
            Ok(()) => mailbox.send(call),
            Err(error) => refuse(call, error),
        });
        self.mailbox.send(Call::DropPrivileges { file, done });
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let what = match whence {
            libc::SEEK_DATA => SeekFor::Data,
            libc::SEEK_HOLE => SeekFor::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        self.mailbox.send(Call::Seek {
            file: convert::file(ino),
            offset,
            what,
            done: Box::new(move |found: Result<Option<u64>>| match found {
                Ok(Some(at)) => reply.offset(at as i64),
                Ok(None) => reply.error(Errno::ENXIO),
                Err(error) => reply.error(convert::errno(&error)),
            }),
        });
    }
}

impl PstorageFs {
    fn fsync_file(&self, ino: INodeNo, reply: ReplyEmpty) {
        let done = Box::new(move |result| finish(reply, result));
        self.mailbox.send(Call::Sync { file: convert::file(ino), done });
    }
}

/// Space as a program sees it, without replicas: all, and what is available.
fn logical_space(fs: &FsStat) -> (u64, u64) {
    (fs.used_bytes + fs.available_bytes, fs.available_bytes)
}
