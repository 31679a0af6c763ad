//! Files and disk operations of a loop.

use super::world::{BlobDone, Happening, Operation, World};
use crate::arena::Arena;
use crate::buf::{BLOCK_BYTES, Buf, BufMut};
use crate::node::{Durability, FileHandle, OpId, OpenHow};
use io_uring::{Submitter, opcode, squeue, types};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

/// The arena's number among the ring's buffers: it is the only one.
const ARENA: u16 = 0;
/// Most parts one writev takes (UIO_MAXIOV).
const MOST_PARTS: usize = 1024;

/// Files that the ring may know by number: the kernel then need not look each up and hold it for every operation.
pub(super) const MOST_REGISTERED: u32 = 64;

#[derive(Default)]
pub(super) struct Files {
    open: Vec<File>,
    /// The first so many of them are registered with the ring, under their own numbers.
    registered: usize,
    /// The kernel would not take them: not asked again.
    refused: bool,
}

/// A file as operations name it.
#[derive(Clone, Copy)]
pub(super) struct Target {
    fd: RawFd,
    registered: bool,
}

impl Files {
    pub fn open(&mut self, dir: &Path, path: &str, how: OpenHow) -> io::Result<FileHandle> {
        let full = dir.join(path);
        if how.create
            && let Some(parent) = full.parent()
        {
            std::fs::create_dir_all(parent)?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(!how.read_only).create(how.create && !how.read_only).truncate(false);
        options.custom_flags(if how.direct { libc::O_DIRECT } else { 0 });
        let is_new = how.create && !full.exists();
        let file = options.open(&full).map_err(|e| explain_open(e, &full, how.direct))?;
        if let Some(parent) = full.parent().filter(|_| is_new) {
            // What is written durably to a file is lost with its name.
            File::open(parent)?.sync_all()?;
        }
        self.open.push(file);
        Ok(FileHandle(self.open.len() as u32 - 1))
    }

    pub fn len(&self, file: FileHandle) -> io::Result<u64> {
        Ok(self.open[file.0 as usize].metadata()?.len())
    }

    pub fn target(&self, file: FileHandle) -> Target {
        let number = file.0 as usize;
        match number < self.registered {
            true => Target { fd: number as RawFd, registered: true },
            false => Target { fd: self.open[number].as_raw_fd(), registered: false },
        }
    }

    /// Tells the ring the files that were opened since the last time. Where the kernel refuses, they go on without.
    pub fn register(&mut self, submitter: &Submitter) {
        while !self.refused && self.registered < self.open.len().min(MOST_REGISTERED as usize) {
            let fd = self.open[self.registered].as_raw_fd();
            self.refused = submitter.register_files_update(self.registered as u32, &[fd]).is_err();
            self.registered += usize::from(!self.refused);
        }
    }
}

fn explain_open(error: io::Error, path: &Path, direct: bool) -> io::Error {
    let hint = if direct && error.raw_os_error() == Some(libc::EINVAL) {
        ": its file system does not support direct I/O (O_DIRECT); use a directory on ext4, XFS or a block device"
    } else {
        ""
    };
    io::Error::new(error.kind(), format!("{}: {error}{hint}", path.display()))
}

enum What {
    Read { buf: BufMut },
    Write { parts: Vec<Buf>, durable: bool },
    Sync,
    Punch { len: u64 },
    Allocate { len: u64 },
}

pub(super) struct DiskOp {
    file: Target,
    op: OpId,
    offset: u64,
    /// Bytes to move, and moved so far.
    total: usize,
    done: usize,
    what: What,
    /// Rebuilt before each submission; points into `what`.
    iovecs: Vec<libc::iovec>,
}

/// Ended operations, kept for their memory.
#[derive(Default)]
pub(super) struct Spares {
    #[allow(clippy::vec_box)] // The boxes themselves are what is used again.
    ops: Vec<Box<DiskOp>>,
    parts: Vec<Vec<Buf>>,
}

/// More than this are never needed at once for long.
const MOST_SPARES: usize = 256;

impl Spares {
    fn take_op(&mut self, op: DiskOp) -> Box<DiskOp> {
        let Some(mut spare) = self.ops.pop() else { return Box::new(op) };
        let iovecs = std::mem::take(&mut spare.iovecs);
        *spare = DiskOp { iovecs, ..op };
        spare
    }

    fn keep_op(&mut self, mut op: Box<DiskOp>) {
        if let What::Write { parts, .. } = &mut op.what {
            let mut parts = std::mem::take(parts);
            parts.clear();
            if self.parts.len() < MOST_SPARES {
                self.parts.push(parts);
            }
        }
        op.what = What::Sync;
        if self.ops.len() < MOST_SPARES {
            self.ops.push(op);
        }
    }

    pub fn take_parts(&mut self) -> Vec<Buf> {
        self.parts.pop().unwrap_or_default()
    }
}

impl DiskOp {
    fn new(file: Target, op: OpId, offset: u64, total: usize, what: What) -> DiskOp {
        DiskOp { file, op, offset, total, done: 0, what, iovecs: Vec::new() }
    }

    pub fn read(file: Target, offset: u64, len: usize, op: OpId) -> DiskOp {
        DiskOp::new(file, op, offset, len, What::Read { buf: BufMut::for_disk(len) })
    }

    pub fn write(file: Target, offset: u64, parts: Vec<Buf>, durability: Durability, op: OpId) -> DiskOp {
        let total = parts.iter().map(|p| p.len()).sum();
        DiskOp::new(
            file,
            op,
            offset,
            total,
            What::Write { parts, durable: durability == Durability::Durable },
        )
    }

    pub fn sync(file: Target, op: OpId) -> DiskOp {
        DiskOp::new(file, op, 0, 0, What::Sync)
    }

    pub fn punch(file: Target, offset: u64, len: u64, op: OpId) -> DiskOp {
        DiskOp::new(file, op, offset, 0, What::Punch { len })
    }

    pub fn allocate(file: Target, len: u64, op: OpId) -> DiskOp {
        DiskOp::new(file, op, 0, 0, What::Allocate { len })
    }

    /// The iovecs of what is still to be written.
    fn gather(&mut self) {
        self.iovecs.clear();
        let What::Write { parts, .. } = &self.what else { return };
        let mut skip = self.done;
        for part in parts {
            if skip >= part.len() {
                skip -= part.len();
                continue;
            }
            if self.iovecs.len() == MOST_PARTS {
                break;
            }
            let rest = &part[skip..];
            skip = 0;
            self.iovecs.push(libc::iovec { iov_base: rest.as_ptr() as *mut _, iov_len: rest.len() });
        }
    }

    fn entry(&mut self, arena: Option<&Arena>) -> squeue::Entry {
        let flags = if self.file.registered { squeue::Flags::FIXED_FILE } else { squeue::Flags::empty() };
        self.operation(arena).flags(flags)
    }

    fn operation(&mut self, arena: Option<&Arena>) -> squeue::Entry {
        let is_registered = |start: *const u8| arena.is_some_and(|a| a.contains(start));
        let fd = types::Fd(self.file.fd);
        let at = self.offset + self.done as u64;
        self.gather();
        match &mut self.what {
            What::Read { buf } => {
                let rest = &mut buf[self.done..];
                if is_registered(rest.as_ptr()) {
                    return opcode::ReadFixed::new(fd, rest.as_mut_ptr(), rest.len() as u32, ARENA)
                        .offset(at)
                        .build();
                }
                opcode::Read::new(fd, rest.as_mut_ptr(), rest.len() as u32).offset(at).build()
            }
            What::Write { durable, .. } => {
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                // One part, the common case of small writes: the kernel need not fetch an array of them.
                if let [only] = self.iovecs[..] {
                    if is_registered(only.iov_base.cast()) {
                        return opcode::WriteFixed::new(fd, only.iov_base.cast(), only.iov_len as u32, ARENA)
                            .offset(at)
                            .rw_flags(flags)
                            .build();
                    }
                    return opcode::Write::new(fd, only.iov_base.cast(), only.iov_len as u32)
                        .offset(at)
                        .rw_flags(flags)
                        .build();
                }
                opcode::Writev::new(fd, self.iovecs.as_ptr(), self.iovecs.len() as u32)
                    .offset(at)
                    .rw_flags(flags)
                    .build()
            }
            What::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            What::Punch { len } => opcode::Fallocate::new(fd, *len)
                .offset(at)
                .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
                .build(),
            What::Allocate { len } => opcode::Fallocate::new(fd, *len).offset(0).mode(0).build(),
        }
    }
}

impl World {
    pub fn start_disk(&mut self, op: DiskOp) {
        if op.total == 0 && matches!(op.what, What::Read { .. } | What::Write { .. }) {
            self.happenings.push_back(Happening::Disk { op: op.op, result: Ok(Buf::empty()) });
            return;
        }
        let mut op = self.spares.take_op(op);
        let entry = op.entry(self.arena.as_deref());
        self.submit(Operation::Disk(op), entry);
    }

    pub fn disk_done(&mut self, mut op: Box<DiskOp>, result: i32) {
        if result < 0 {
            let error = io::Error::from_raw_os_error(-result);
            if matches!(-result, libc::EINTR | libc::EAGAIN) {
                return self.again(op);
            }
            return self.disk_ended(op, Err(error));
        }
        op.done += result as usize;
        let ended = match &op.what {
            // Direct reads end at the end of the file in whole sectors; anything short is the end.
            What::Read { .. } => op.done >= op.total || result == 0 || !op.done.is_multiple_of(BLOCK_BYTES),
            What::Write { .. } if result == 0 => {
                let error = io::Error::new(io::ErrorKind::WriteZero, "the disk took no byte");
                return self.disk_ended(op, Err(error));
            }
            What::Write { .. } => op.done >= op.total,
            _ => true,
        };
        if !ended {
            return self.again(op);
        }
        self.disk_ended(op, Ok(()));
    }

    fn disk_ended(&mut self, mut op: Box<DiskOp>, result: io::Result<()>) {
        let done = op.done;
        let data = match &mut op.what {
            What::Read { buf } => {
                buf[done..].fill(0);
                std::mem::replace(buf, BufMut::scratch(0)).freeze()
            }
            _ => Buf::empty(),
        };
        self.happenings.push_back(Happening::Disk { op: op.op, result: result.map(|()| data) });
        self.spares.keep_op(op);
    }

    fn again(&mut self, mut op: Box<DiskOp>) {
        let entry = op.entry(self.arena.as_deref());
        self.submit(Operation::Disk(op), entry);
    }
}

/// Replaces small files atomically on a thread of its own: open, write, sync, rename and syncing the directory
/// have no batch to win from, and must not hold up the loop.
pub(super) struct BlobWriter {
    done: Option<BlobDone>,
    jobs: Option<mpsc::Sender<(PathBuf, Vec<u8>, OpId)>>,
}

impl BlobWriter {
    pub fn new(done: BlobDone) -> Self {
        BlobWriter { done: Some(done), jobs: None }
    }

    pub fn put(&mut self, path: PathBuf, bytes: Vec<u8>, op: OpId) {
        if let Some(done) = self.done.take() {
            let (sender, jobs) = mpsc::channel::<(PathBuf, Vec<u8>, OpId)>();
            std::thread::Builder::new()
                .name("blobs".into())
                .spawn(move || {
                    for (path, bytes, op) in jobs {
                        done(op, replace_file(&path, &bytes).map(|()| Buf::empty()));
                    }
                })
                .expect("a thread can be started");
            self.jobs = Some(sender);
        }
        let jobs = self.jobs.as_ref().expect("started above");
        jobs.send((path, bytes, op)).expect("the thread lives as long as its sender");
    }
}

/// Writes a file aside, syncs it, renames it over the old one and syncs the directory.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, OpenOptions::new().write(true).create(true).truncate(true))
}

/// The same; only its owner (root) can read it.
pub fn replace_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // One that a crash left behind may have other rights.
    none_if_missing(std::fs::remove_file(aside(path)))?;
    replace(path, bytes, OpenOptions::new().write(true).create_new(true).mode(0o600))
}

fn aside(path: &Path) -> PathBuf {
    path.with_extension("new")
}

fn replace(path: &Path, bytes: &[u8], how: &OpenOptions) -> io::Result<()> {
    // That of a bare file name is empty.
    let parent = path.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent)?;
    let aside = aside(path);
    let mut file = how.open(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(&aside, path)?;
    File::open(parent)?.sync_all()
}

pub(super) fn none_if_missing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

pub(super) fn list(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in none_if_missing(std::fs::read_dir(dir))?.into_iter().flatten() {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
