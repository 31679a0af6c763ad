//! The simulator's disk under real processes: a file system over FUSE whose files live in a [`VirtualDisk`].
//!
//! What was written and not synced can be taken away at any moment, sector by sector, as a loss of power does; writes can
//! be torn, lost, misdirected or damaged, and operations can fail or stall. Writes with O_DSYNC or RWF_DSYNC are durable
//! when they return; fsync and fdatasync make a file durable; names (create, rename, remove) are durable at once.
//!
//! Commands are lines written to the file `.control` in its root, done when the write returns:
//! - `lose SEED`: power is gone and back; the seed chooses what of the un-synced is left;
//! - `sync PATH`: all files whose path contains PATH are durable as they are;
//! - `fault ON EFFECT TIMES SKIP PATH`: ON is read, write, sync or any; EFFECT is eio, enospc, lost, flip, misdirect or
//!   stall-MS; of the operations on files whose path contains PATH, SKIP are let pass and the next TIMES are spoiled;
//! - `mend`: no more faults.
//!
//! Links, extended attributes and shared mappings are not there.

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use shards::sim::{CrashKind, DiskOp, FaultEffect, FaultOn, FaultRule, Rng, VirtualDisk};
use shards::{Buf, Durability, OpenHow};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nothing is cached by the kernel: what is lost must be seen to be lost.
const TTL: Duration = Duration::ZERO;
const CONTROL: u64 = 2;
const CONTROL_NAME: &str = ".control";

pub struct LossyDisk {
    state: Mutex<State>,
}

struct State {
    disk: VirtualDisk,
    /// By inode number less one.
    nodes: Vec<Node>,
    by_path: HashMap<String, u64>,
}

struct Node {
    /// Below the root, without a slash in front.
    path: String,
    /// Number on the disk; `None` for a directory.
    file: Option<usize>,
    mode: u16,
    uid: u32,
    gid: u32,
    changed: SystemTime,
}

impl Default for LossyDisk {
    fn default() -> Self {
        let mut state = State { disk: VirtualDisk::default(), nodes: Vec::new(), by_path: HashMap::new() };
        state.add("", None, 0o755, (0, 0));
        let control = state.disk.open(CONTROL_NAME, creating()).expect("a new disk has room");
        state.add(CONTROL_NAME, Some(control), 0o600, (0, 0));
        LossyDisk { state: Mutex::new(state) }
    }
}

fn creating() -> OpenHow {
    OpenHow { create: true, ..OpenHow::default() }
}

impl State {
    fn add(&mut self, path: &str, file: Option<usize>, mode: u32, owner: (u32, u32)) -> u64 {
        let (mode, (uid, gid), changed) = ((mode & 0o7777) as u16, owner, SystemTime::now());
        self.nodes.push(Node { path: path.into(), file, mode, uid, gid, changed });
        let ino = self.nodes.len() as u64;
        self.by_path.insert(path.into(), ino);
        ino
    }

    fn node(&self, ino: INodeNo) -> Result<&Node, Errno> {
        self.nodes.get(ino.0 as usize - 1).ok_or(Errno::ENOENT)
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> Result<String, Errno> {
        let name = name.to_str().ok_or(Errno::EINVAL)?;
        let parent = &self.node(parent)?.path;
        Ok(if parent.is_empty() { name.into() } else { format!("{parent}/{name}") })
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> Result<u64, Errno> {
        self.by_path.get(&self.child(parent, name)?).copied().ok_or(Errno::ENOENT)
    }

    fn file(&self, ino: INodeNo) -> Result<usize, Errno> {
        self.node(ino)?.file.ok_or(Errno::EISDIR)
    }

    fn attr(&self, ino: u64) -> FileAttr {
        let node = &self.nodes[ino as usize - 1];
        let (size, allocated) =
            node.file.map_or((0, 0), |file| (self.disk.file_len(file), self.disk.allocated(file)));
        FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: allocated / 512,
            atime: node.changed,
            mtime: node.changed,
            ctime: node.changed,
            crtime: UNIX_EPOCH,
            kind: kind(node),
            perm: node.mode,
            nlink: 1,
            uid: node.uid,
            gid: node.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn make(
        &mut self,
        parent: INodeNo,
        name: &OsStr,
        dir: bool,
        mode: u32,
        req: &Request,
    ) -> Result<u64, Errno> {
        let path = self.child(parent, name)?;
        if self.by_path.contains_key(&path) {
            return Err(Errno::EEXIST);
        }
        let file = if dir { None } else { Some(self.disk.open(&path, creating()).map_err(errno)?) };
        Ok(self.add(&path, file, mode, (req.uid(), req.gid())))
    }

    fn is_empty(&self, dir: &str) -> bool {
        let inside = format!("{dir}/");
        !self.by_path.keys().any(|path| path.starts_with(&inside))
    }

    fn remove(&mut self, ino: u64) {
        let node = &mut self.nodes[ino as usize - 1];
        let path = std::mem::take(&mut node.path);
        if let Some(file) = node.file {
            self.disk.rename(file, &format!("(removed {ino})"));
        }
        self.by_path.remove(&path);
    }

    fn rename(&mut self, from: u64, to: String) -> Result<(), Errno> {
        if let Some(&target) = self.by_path.get(&to) {
            if self.nodes[target as usize - 1].file.is_none() && !self.is_empty(&to) {
                return Err(Errno::ENOTEMPTY);
            }
            self.remove(target);
        }
        let old = self.nodes[from as usize - 1].path.clone();
        let below = format!("{old}/");
        for (at, node) in self.nodes.iter_mut().enumerate() {
            let renamed = match node.path.strip_prefix(&below) {
                _ if node.path == old => to.clone(),
                Some(rest) => format!("{to}/{rest}"),
                None => continue,
            };
            self.by_path.remove(&std::mem::replace(&mut node.path, renamed.clone()));
            if let Some(file) = node.file {
                self.disk.rename(file, &renamed);
            }
            self.by_path.insert(renamed, at as u64 + 1);
        }
        Ok(())
    }

    fn command(&mut self, line: &str) -> Option<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["lose", seed] => self.disk.crash(CrashKind::Power, &mut Rng::new(seed.parse().ok()?)),
            ["sync", path] => {
                let named = self.nodes.iter().filter(|n| n.path.contains(path)).filter_map(|n| n.file);
                for file in named.collect::<Vec<_>>() {
                    let (ticket, _) = self.disk.submit(DiskOp::Sync { file });
                    self.disk.complete(ticket).ok()?;
                }
            }
            ["mend"] => self.disk.clear_faults(),
            ["fault", on, effect, times, skip, path] => {
                let on = match on {
                    "read" => FaultOn::Read,
                    "write" => FaultOn::Write,
                    "sync" => FaultOn::Sync,
                    "any" => FaultOn::Any,
                    _ => return None,
                };
                let effect = match effect {
                    "eio" => FaultEffect::Eio,
                    "enospc" => FaultEffect::NoSpace,
                    "lost" => FaultEffect::Lost,
                    "flip" if on == FaultOn::Read => FaultEffect::ReadFlip,
                    "flip" => FaultEffect::WriteFlip,
                    "misdirect" => FaultEffect::Misdirected(1 << 20),
                    _ => FaultEffect::Stall(Duration::from_millis(
                        effect.strip_prefix("stall-")?.parse().ok()?,
                    )),
                };
                let rule = FaultRule::next(on, path, effect);
                self.disk.fault(rule.times(times.parse().ok()?).skipping(skip.parse().ok()?));
            }
            _ => return None,
        }
        Some(())
    }
}

fn kind(node: &Node) -> FileType {
    if node.file.is_some() { FileType::RegularFile } else { FileType::Directory }
}

fn errno(error: io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO))
}

impl LossyDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Carries out an operation; a loss of power meanwhile decides what becomes of it.
    fn disk(&self, op: DiskOp) -> Result<Buf, Errno> {
        let (ticket, stall) = self.state().disk.submit(op);
        if !stall.is_zero() {
            std::thread::sleep(stall);
        }
        let disk = &mut self.state().disk;
        if disk.is_in_flight(ticket) { disk.complete(ticket).map_err(errno) } else { Err(Errno::EIO) }
    }

    fn control(&self, data: &[u8]) -> Result<(), Errno> {
        let text = std::str::from_utf8(data).map_err(|_| Errno::EINVAL)?;
        let mut state = self.state();
        text.lines().try_for_each(|line| state.command(line)).ok_or(Errno::EINVAL)
    }

    fn write_to(&self, ino: INodeNo, offset: u64, data: &[u8], flags: i32) -> Result<(), Errno> {
        if ino.0 == CONTROL {
            return self.control(data);
        }
        let file = self.state().file(ino)?;
        let durable = flags & (libc::O_SYNC | libc::O_DSYNC) != 0;
        let durability = if durable { Durability::Durable } else { Durability::Buffered };
        self.disk(DiskOp::Write { file, offset, parts: vec![Buf::from_slice(data)], durability })?;
        self.state().nodes[ino.0 as usize - 1].changed = SystemTime::now();
        Ok(())
    }

    fn read_from(&self, ino: INodeNo, offset: u64, size: u32) -> Result<Buf, Errno> {
        let file = self.state().file(ino)?;
        let left = self.state().disk.file_len(file).saturating_sub(offset);
        self.disk(DiskOp::Read { file, offset, len: left.min(size.into()) as usize })
    }

    fn change(
        &self,
        ino: INodeNo,
        size: Option<u64>,
        set: impl FnOnce(&mut Node),
    ) -> Result<FileAttr, Errno> {
        let mut state = self.state();
        if let Some(size) = size.filter(|_| ino.0 != CONTROL) {
            let file = state.file(ino)?;
            state.disk.set_len(file, size);
        }
        state.node(ino)?;
        set(&mut state.nodes[ino.0 as usize - 1]);
        Ok(state.attr(ino.0))
    }

    fn sync(&self, ino: INodeNo) -> Result<(), Errno> {
        let file = self.state().file(ino)?;
        self.disk(DiskOp::Sync { file }).map(drop)
    }

    fn allocate(&self, ino: INodeNo, offset: u64, length: u64, mode: i32) -> Result<(), Errno> {
        let file = self.state().file(ino)?;
        let op = match mode {
            0 => DiskOp::Allocate { file, len: offset + length },
            m if m == libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE => {
                DiskOp::Punch { file, offset, len: length }
            }
            _ => return Err(Errno::EOPNOTSUPP),
        };
        self.disk(op).map(drop)
    }

    fn take_away(&self, parent: INodeNo, name: &OsStr, dir: bool) -> Result<(), Errno> {
        let mut state = self.state();
        let ino = state.find(parent, name)?;
        let node = state.node(INodeNo(ino))?;
        match (dir, node.file) {
            (true, Some(_)) => return Err(Errno::ENOTDIR),
            (false, None) => return Err(Errno::EISDIR),
            (true, None) if !state.is_empty(&node.path) => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        state.remove(ino);
        Ok(())
    }
}

fn empty(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn entry(reply: ReplyEntry, state: &State, found: Result<u64, Errno>) {
    match found {
        Ok(ino) => reply.entry(&TTL, &state.attr(ino), Generation(0)),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for LossyDisk {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let state = self.state();
        let found = state.find(parent, name);
        entry(reply, &state, found);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.state().attr(ino.0));
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changed = self.change(ino, size, |node| {
            node.mode = mode.map_or(node.mode, |m| (m & 0o7777) as u16);
            (node.uid, node.gid) = (uid.unwrap_or(node.uid), gid.unwrap_or(node.gid));
        });
        match changed {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let mut state = self.state();
        let made = state.make(parent, name, true, mode, req);
        entry(reply, &state, made);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.take_away(parent, name, false));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.take_away(parent, name, true));
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
        let mut state = self.state();
        let renamed = match flags.is_empty() {
            true => state
                .find(parent, name)
                .and_then(|from| Ok((from, state.child(newparent, newname)?)))
                .and_then(|(from, to)| state.rename(from, to)),
            false => Err(Errno::EINVAL),
        };
        empty(reply, renamed);
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mut state = self.state();
        match state.make(parent, name, false, mode, req) {
            Ok(ino) => reply.created(
                &TTL,
                &state.attr(ino),
                Generation(0),
                FileHandle(0),
                FopenFlags::FOPEN_DIRECT_IO,
            ),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.read_from(ino, offset, size) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.write_to(ino, offset, data, flags.0) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        empty(reply, self.sync(ino));
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let state = self.state();
        let Ok(node) = state.node(ino) else { return reply.error(Errno::ENOENT) };
        let prefix = if node.path.is_empty() { String::new() } else { format!("{}/", node.path) };
        let inside = |path: &str| {
            path.strip_prefix(&prefix)
                .filter(|rest| !rest.is_empty() && !rest.contains('/'))
                .map(str::to_string)
        };
        let dots = [".", ".."].map(|name| (ino.0, FileType::Directory, name.to_string()));
        let named = state.nodes.iter().zip(1..).filter_map(|(node, ino)| {
            // What was removed has no path, as the root has none.
            let name = inside(&node.path).filter(|_| !node.path.is_empty())?;
            Some((ino, kind(node), name))
        });
        for (at, (ino, kind, name)) in dots.into_iter().chain(named).enumerate().skip(offset as usize) {
            if reply.add(INodeNo(ino), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let (total, free) = self.state().disk.space();
        reply.statfs(total / 4096, free / 4096, free / 4096, 0, u64::MAX >> 1, 4096, 255, 4096);
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        empty(reply, self.allocate(ino, offset, length, mode));
    }
}

/// Serves a lossy disk at `dir` until it is unmounted.
pub fn serve(dir: &std::path::Path) -> io::Result<()> {
    let mut config = fuser::Config::default();
    config.mount_options =
        vec![fuser::MountOption::FSName("lossy-disk".into()), fuser::MountOption::DefaultPermissions];
    config.acl = fuser::SessionACL::All;
    // Stalled operations must not hold up others.
    config.n_threads = Some(4);
    fuser::Session::new(LossyDisk::default(), dir, &config)?.run()
}
