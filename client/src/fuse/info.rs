//! `.pstorage.info/` in the root of a mount: files that show figures of this mount. They exist here only, are not listed
//! in the root (so that copying tools pass by), and say what holds at the moment they are opened.

use super::convert;
use super::filesystem::TTL;
use crate::call::{CacheState, Call, Stats};
use crate::error::Result;
use fuser::{
    Errno, FileHandle, FileType, FopenFlags, Generation, INodeNo, OpenAccMode, OpenFlags, ReplyData,
};
use fuser::{ReplyDirectory, ReplyDirectoryPlus, ReplyOpen};
use shards::ring::Mailbox;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::UNIX_EPOCH;
use wire::ROOT;

const NAME: &str = ".pstorage.info";
/// Inodes above all those of files.
const DIRECTORY: INodeNo = INodeNo(1 << 63);
const FILES: [(INodeNo, &str); 2] =
    [(INodeNo(1 << 63 | 1), "read_cache"), (INodeNo(1 << 63 | 2), "statistics")];

#[derive(Clone)]
pub struct Info {
    cache_path: Option<PathBuf>,
    /// Texts of open files, by handle.
    open: Arc<Mutex<(u64, HashMap<u64, String>)>>,
}

impl Info {
    pub fn new(cache_path: Option<PathBuf>) -> Info {
        Info { cache_path, open: Arc::new(Mutex::new((0, HashMap::new()))) }
    }

    pub fn has(&self, inode: INodeNo) -> bool {
        inode.0 >= DIRECTORY.0
    }

    pub fn lookup(&self, parent: INodeNo, name: &OsStr) -> Option<fuser::FileAttr> {
        if parent == convert::inode(ROOT) {
            return (name == NAME).then(|| attr(DIRECTORY));
        }
        let of_file = |&(inode, file): &(INodeNo, &str)| (name == file).then(|| attr(inode));
        FILES.iter().filter(|_| parent == DIRECTORY).find_map(of_file)
    }

    pub fn attr(&self, inode: INodeNo) -> fuser::FileAttr {
        attr(inode)
    }

    pub fn open(&self, mailbox: &Mailbox<Call>, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        let this = self.clone();
        let done = Box::new(move |stats: Result<Stats>| match stats {
            Ok(stats) => {
                let text = if inode == FILES[0].0 { this.read_cache(&stats) } else { statistics(&stats) };
                let mut open = this.open.lock().expect("no panic under this lock");
                open.0 += 1;
                let handle = open.0;
                open.1.insert(handle, text);
                reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO);
            }
            Err(error) => reply.error(convert::errno(&error)),
        });
        mailbox.send(Call::Stats { done });
    }

    pub fn read(&self, handle: FileHandle, offset: u64, size: u32, reply: ReplyData) {
        let open = self.open.lock().expect("no panic under this lock");
        let text = open.1.get(&handle.0).map_or(&[][..], |t| t.as_bytes());
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
        reply.data(&text[from..text.len().min(from.saturating_add(size as usize))]);
    }

    pub fn release(&self, handle: FileHandle) {
        self.open.lock().expect("no panic under this lock").1.remove(&handle.0);
    }

    pub fn list(&self, offset: u64, mut reply: ReplyDirectory) {
        for (next, (inode, kind, name)) in entries().skip(offset as usize) {
            if reply.add(inode, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    pub fn list_plus(&self, offset: u64, mut reply: ReplyDirectoryPlus) {
        for (next, (inode, _, name)) in entries().skip(offset as usize) {
            if reply.add(inode, next, name, &TTL, &attr(inode), Generation(0)) {
                break;
            }
        }
        reply.ok();
    }

    fn read_cache(&self, stats: &Stats) -> String {
        let Some(c) = &stats.cache else {
            return "state: none\nhint: mount with -C FILE -R SIZE_MB\n".into();
        };
        let state = match c.state {
            CacheState::Starting => "starting",
            CacheState::Active => "active",
            CacheState::Ending => "ending",
            CacheState::Off => "off (the log of the mount says why)",
        };
        let path = self.cache_path.as_ref().map_or(String::new(), |p| p.display().to_string());
        let mut out = format!("path: {path}\nstate: {state}\nchecksum: crc32\n");
        let n = &c.counts;
        let asked = n.hits + n.misses;
        let percent = if asked == 0 { 0.0 } else { n.hits as f64 / asked as f64 * 100.0 };
        let _ = writeln!(out, "hit_percent: {percent:.1}");
        lines(
            &mut out,
            &[
                ("file_bytes", c.file_bytes),
                ("block_bytes", c.block_bytes),
                ("blocks", c.blocks),
                ("used_blocks", c.used_blocks),
                ("hits", n.hits),
                ("misses", n.misses),
                ("hit_bytes", n.hit_bytes),
                ("admitted", n.admitted),
                ("evicted", n.evicted),
                ("invalidated", n.invalidated),
                ("checksum_errors", n.checksum_errors),
                ("io_errors", c.io_errors),
            ],
        );
        out
    }
}

fn statistics(s: &Stats) -> String {
    let mut out = String::new();
    lines(
        &mut out,
        &[
            ("reads", s.reads),
            ("writes", s.writes),
            ("read_bytes", s.read_bytes),
            ("write_bytes", s.write_bytes),
            ("edge_reads", s.edge_reads),
            ("longest_us", s.longest_us),
            ("retries", s.retries),
            ("refreshes", s.refreshes),
            ("checksum_errors", s.checksum_errors),
            ("cs_connects", s.connects),
            ("mds_requests", s.mds_requests),
            ("mds_connects", s.mds_connects),
        ],
    );
    out
}

fn lines(out: &mut String, figures: &[(&str, u64)]) {
    for (name, value) in figures {
        let _ = writeln!(out, "{name}: {value}");
    }
}

/// Each with the offset behind it.
fn entries() -> impl Iterator<Item = (u64, (INodeNo, FileType, &'static str))> {
    let dots = [(DIRECTORY, FileType::Directory, "."), (convert::inode(ROOT), FileType::Directory, "..")];
    let files = FILES.map(|(inode, name)| (inode, FileType::RegularFile, name));
    (1..).zip(dots.into_iter().chain(files))
}

/// Sizes are 0, as in /proc: what a file says is made when it is opened.
fn attr(inode: INodeNo) -> fuser::FileAttr {
    let directory = FILES.iter().all(|(file, _)| *file != inode);
    fuser::FileAttr {
        ino: inode,
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if directory { FileType::Directory } else { FileType::RegularFile },
        perm: if directory { 0o555 } else { 0o444 },
        nlink: if directory { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}
