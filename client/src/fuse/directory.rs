//! Reading directories by pages. A FUSE offset is the number of entries before; the handle remembers the name at
//! each offset given out, so that every page is asked for fresh: attributes handed to the kernel are never older
//! than the request (a stale size would cut a file that is being written).

use super::convert::{self, Overrides};
use super::filesystem::TTL;
use crate::call::Call;
use crate::error::{ClientError, Result};
use fuser::{Errno, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};
use shards::ring::Mailbox;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use wire::mds_api::{DirEntry, FileAttr, FileKind};

/// Entries asked for at once: about what fits, with attributes, the 32 KiB that `ls` reads at a time.
const PAGE: u32 = 192;
/// "." and "..".
const DOTS: u64 = 2;

/// Open directories: names in the order they were given out.
#[derive(Clone, Default)]
pub struct OpenDirectories {
    next: Arc<Mutex<u64>>,
    names: Arc<Mutex<HashMap<u64, Vec<String>>>>,
}

/// A page to read: what begins behind `after`, `from` entries from the start; shown from `offset` on.
struct Page {
    dir: INodeNo,
    handle: u64,
    offset: u64,
    from: u64,
    after: String,
}

/// Where entries go, of either form.
pub enum Reply {
    Plain(ReplyDirectory),
    Plus(ReplyDirectoryPlus),
}

impl OpenDirectories {
    pub fn open(&self) -> u64 {
        let mut next = self.next.lock().expect("no panic under this lock");
        *next += 1;
        self.names.lock().expect("no panic under this lock").insert(*next, Vec::new());
        *next
    }

    pub fn close(&self, handle: u64) {
        self.names.lock().expect("no panic under this lock").remove(&handle);
    }

    /// The nearest place to `offset` that is known, at most that far: how many entries are before it, and the last of them.
    fn before(&self, handle: u64, offset: u64) -> (u64, String) {
        let mut names = self.names.lock().expect("no panic under this lock");
        let Some(names) = names.get_mut(&handle) else { return (DOTS, String::new()) };
        if offset == 0 {
            names.clear(); // rewinddir: begins anew.
        }
        let known = names.len().min(offset.saturating_sub(DOTS) as usize);
        (DOTS + known as u64, if known == 0 { String::new() } else { names[known - 1].clone() })
    }

    fn note(&self, handle: u64, offset: u64, name: &str) {
        let mut names = self.names.lock().expect("no panic under this lock");
        if let Some(names) = names.get_mut(&handle) {
            let at = (offset - DOTS) as usize;
            if at <= names.len() {
                names.truncate(at);
                names.push(name.to_string());
            }
        }
    }

    pub fn read(
        &self,
        mailbox: &Mailbox<Call>,
        dir: INodeNo,
        handle: u64,
        offset: u64,
        over: Overrides,
        mut reply: Reply,
    ) {
        for at in offset..DOTS {
            if reply.add_dot(dir, at + 1, if at == 0 { "." } else { ".." }) {
                return reply.ok();
            }
        }
        let (from, after) = self.before(handle, offset);
        self.page(mailbox, Page { dir, handle, offset, from, after }, over, reply);
    }

    fn page(&self, mailbox: &Mailbox<Call>, page: Page, over: Overrides, reply: Reply) {
        let (this, again) = (self.clone(), mailbox.clone());
        mailbox.send(Call::ReadDir {
            directory: convert::file(page.dir),
            after: page.after.clone(),
            limit: PAGE,
            done: Box::new(move |entries| this.answer(&again, page, over, entries, reply)),
        });
    }

    fn answer(
        &self,
        mailbox: &Mailbox<Call>,
        mut page: Page,
        over: Overrides,
        entries: Result<(Vec<DirEntry>, bool)>,
        mut reply: Reply,
    ) {
        let (entries, more) = match entries {
            Ok(entries) => entries,
            Err(error) => return reply.error(convert::errno(&error)),
        };
        for entry in &entries {
            if page.from >= page.offset && reply.add(page.from + 1, entry, over) {
                return reply.ok();
            }
            self.note(page.handle, page.from, &entry.name);
            page.from += 1;
        }
        match entries.last() {
            // An offset of another handle (seekdir, an NFS server): its place is looked for.
            // A page that ends just before it has nothing to show yet: an empty answer would be the directory's end.
            Some(last) if more && page.from <= page.offset => {
                page.after = last.name.clone();
                self.page(mailbox, page, over, reply);
            }
            _ => reply.ok(),
        }
    }
}

impl Reply {
    /// True when full.
    fn add_dot(&mut self, dir: INodeNo, next: u64, name: &str) -> bool {
        match self {
            Reply::Plain(r) => r.add(dir, next, fuser::FileType::Directory, name),
            Reply::Plus(r) => {
                // The kernel takes nothing but the type of these two.
                let attr = FileAttr::unknown(convert::file(dir), FileKind::Directory);
                r.add(dir, next, name, &TTL, &convert::attr(&attr, Overrides::default()), Generation(0))
            }
        }
    }

    fn add(&mut self, next: u64, entry: &DirEntry, over: Overrides) -> bool {
        let inode = convert::inode(entry.attr.file);
        match self {
            Reply::Plain(r) => r.add(inode, next, convert::kind(entry.attr.kind), &entry.name),
            Reply::Plus(r) => {
                r.add(inode, next, &entry.name, &TTL, &convert::attr(&entry.attr, over), Generation(0))
            }
        }
    }

    fn ok(self) {
        match self {
            Reply::Plain(r) => r.ok(),
            Reply::Plus(r) => r.ok(),
        }
    }

    fn error(self, errno: Errno) {
        match self {
            Reply::Plain(r) => r.error(errno),
            Reply::Plus(r) => r.error(errno),
        }
    }
}

/// Name as text: the cluster stores names in UTF-8.
pub fn text(name: &std::ffi::OsStr) -> Result<String> {
    let name = name.to_str().ok_or(ClientError::Invalid("names must be UTF-8"))?;
    if name.len() > 255 {
        return Err(ClientError::refused(wire::Status::NameTooLong, ""));
    }
    Ok(name.to_string())
}
