//! The namespace: names, attributes, sizes. Errors are those of POSIX.

use super::answer::{Effect, Refusal, name_refusal, refuse, refuse_name};
use super::data::{Body, Inode};
use super::runs::Runs;
use super::{Op, Placement, State};
use smol_str::SmolStr;
use std::ops::Bound::{Excluded, Unbounded};
use wire::mds_api::{AttrChange, ChangedDirectory, FileAttr, FileKind, LeaseMode, MdsReply, ReleasedLease};
use wire::{ChunkId, ClientId, FileId, LeaseId, ROOT, Status};

type Answered = Result<MdsReply, Refusal>;
const MOST_XATTR_BYTES: usize = 64 << 10;
const NS_PER_MS: i64 = 1_000_000;

pub(super) fn check_name(name: &str) -> Result<(), Refusal> {
    match name {
        "" | "." | ".." => refuse(Status::InvalidArgument, format!("'{name}' is not a file name")),
        _ if name.len() > 255 => refuse(Status::NameTooLong, "names have at most 255 bytes"),
        _ if name.contains(['/', '\0']) => refuse(Status::InvalidArgument, "a name can't contain '/'"),
        _ => Ok(()),
    }
}

fn gone(file: FileId) -> String {
    format!("file {file} is not there any more")
}

impl State {
    pub(super) fn inode(&self, file: FileId) -> Result<&Inode, Refusal> {
        self.data.inodes.get(file).ok_or_else(|| Refusal { status: Status::NotFound, detail: gone(file) })
    }

    pub(super) fn inode_mut(&mut self, file: FileId) -> Result<&mut Inode, Refusal> {
        self.data.inodes.get_mut(file).ok_or_else(|| Refusal { status: Status::NotFound, detail: gone(file) })
    }

    /// The number of names in a directory.
    pub(super) fn directory(&self, file: FileId) -> Result<u32, Refusal> {
        match self.inode(file)?.body {
            Body::Directory { entries, .. } => Ok(entries),
            _ => refuse(Status::NotDirectory, format!("{} is not a directory", self.path_of(file))),
        }
    }

    /// What is in a directory, in order of names behind `after`.
    pub(super) fn entries(&self, directory: FileId, after: &str) -> impl Iterator<Item = (&SmolStr, FileId)> {
        let from = Excluded((directory, SmolStr::new(after)));
        let rest = self.data.names.range((from, Unbounded));
        rest.take_while(move |((parent, _), _)| *parent == directory).map(|((_, name), file)| (name, *file))
    }

    /// What has this name in a directory.
    pub(super) fn entry(&self, directory: FileId, name: &str) -> Result<Option<FileId>, Refusal> {
        self.directory(directory)?;
        Ok(self.data.names.get(&(directory, SmolStr::new(name))).copied())
    }

    fn child(&self, parent: FileId, name: &str) -> Result<FileId, Refusal> {
        self.entry(parent, name)?.ok_or_else(|| name_refusal(Status::NotFound, name))
    }

    /// Puts a name into a directory, or takes it out, and keeps counts and times. Returns the ctime before.
    pub(super) fn enter(
        &mut self,
        parent: FileId,
        name: &str,
        child: Option<FileId>,
        is_directory: bool,
        now: i64,
    ) -> i64 {
        let inode = self.data.inodes.get_mut(parent).expect("looked at before");
        let ctime_was_ns = inode.ctime_ns;
        inode.changed(now);
        inode.mtime_ns = inode.ctime_ns;
        let Body::Directory { entries, subdirectories } = &mut inode.body else {
            unreachable!("looked at before")
        };
        match child {
            Some(child) => {
                self.data.names.insert((parent, SmolStr::new(name)), child);
                *entries += 1;
                *subdirectories += u32::from(is_directory);
            }
            None => {
                self.data.names.remove(&(parent, SmolStr::new(name)));
                *entries -= 1;
                *subdirectories -= u32::from(is_directory);
            }
        }
        ctime_was_ns
    }

    fn changed_directory(&self, file: FileId, ctime_was_ns: i64) -> Result<Box<ChangedDirectory>, Refusal> {
        Ok(Box::new(ChangedDirectory { attr: self.attr(file)?, ctime_was_ns }))
    }

    pub(super) fn file_op(
        &mut self,
        client: ClientId,
        now_ms: u64,
        op: &Op,
        effects: &mut Vec<Effect>,
    ) -> Answered {
        let now = (now_ms as i64).saturating_mul(NS_PER_MS);
        match op {
            Op::SetAttr { file, change } => self.set_attr(*file, change, now, effects),
            Op::Create { parent, name, kind, mode, uid, gid, symlink_target, exclusive, open, first } => {
                check_name(name)?;
                if let Some(existing) = self.entry(*parent, name)? {
                    let is_file = self.inode(existing)?.kind() == FileKind::File && *kind == FileKind::File;
                    if *exclusive || !is_file {
                        return refuse_name(Status::Exists, name);
                    }
                    let lease =
                        if *open { Some(self.open(client, existing, LeaseMode::Write)?) } else { None };
                    let attr = self.attr(existing)?;
                    return Ok(MdsReply::Created { attr, lease, first: None, directory: None });
                }
                let above = self.inode(*parent)?;
                let (policy, chunk_bytes) = (above.policy, above.chunk_bytes);
                if above.parent == FileId(0) && *parent != ROOT {
                    return refuse(Status::NotFound, "the directory was removed");
                }
                let body = match kind {
                    FileKind::File => Body::File { size_bytes: 0, chunks: Runs::default() },
                    FileKind::Directory => Body::Directory { entries: 0, subdirectories: 0 },
                    FileKind::Symlink => Body::Symlink { target: symlink_target.as_str().into() },
                    FileKind::Special(special) => Body::Special(*special),
                };
                let file = FileId(self.data.counters.next_file);
                self.data.counters.next_file += 1;
                let inode = Inode {
                    mode: *mode,
                    uid: *uid,
                    gid: *gid,
                    atime_ns: now,
                    mtime_ns: now,
                    ctime_ns: now,
                    ..Inode::new(body, policy, chunk_bytes, *parent)
                };
                self.data.inodes.insert(file, inode);
                let ctime_was_ns = self.enter(*parent, name, Some(file), *kind == FileKind::Directory, now);
                let lease = if *open && *kind == FileKind::File {
                    let lease = self.open(client, file, LeaseMode::Write)?;
                    if !first.is_empty() {
                        let placement = Placement { index: 0, replicas: first.clone() };
                        self.allocate(client, file, lease, 0, 1, &[placement], effects)?;
                    }
                    Some(lease)
                } else {
                    None
                };
                let directory = Some(self.changed_directory(*parent, ctime_was_ns)?);
                Ok(MdsReply::Created { attr: self.attr(file)?, lease, first: None, directory })
            }
            Op::Clone { file, parent, name } => self.clone_file(*file, *parent, name, now, effects),
            Op::Settle { lease } => self.settle(client, lease, now),
            Op::Unlink { parent, name, directory } => {
                let file = self.child(*parent, name)?;
                let kind = self.inode(file)?.kind();
                match (kind, directory) {
                    (FileKind::Directory, false) => return refuse_name(Status::IsDirectory, name),
                    (FileKind::File | FileKind::Symlink | FileKind::Special(_), true) => {
                        return refuse_name(Status::NotDirectory, name);
                    }
                    (FileKind::Directory, true) if self.directory(file)? > 0 => {
                        return refuse_name(Status::NotEmptyDirectory, name);
                    }
                    _ => {}
                }
                let ctime_was_ns = self.enter(*parent, name, None, kind == FileKind::Directory, now);
                self.unlinked(file, now, effects);
                Ok(MdsReply::Removed(self.changed_directory(*parent, ctime_was_ns)?))
            }
            Op::Rename { from_parent, from_name, to_parent, to_name, no_replace, exchange } => self.rename(
                (*from_parent, from_name),
                (*to_parent, to_name),
                *no_replace,
                *exchange,
                now,
                effects,
            ),
            Op::SetXattr { file, name, value, create_only, replace_only } => {
                if value.len() > MOST_XATTR_BYTES || name.len() > 255 {
                    return refuse(
                        Status::InvalidArgument,
                        "attributes have at most 64 KiB, names 255 bytes",
                    );
                }
                let inode = self.inode_mut(*file)?;
                match (inode.xattr(name).is_some(), create_only, replace_only) {
                    (true, true, _) => return refuse(Status::Exists, name.clone()),
                    (false, _, true) => return refuse(Status::NoAttribute, name.clone()),
                    _ => inode.change_extras(|extras| extras.xattrs.insert(name.clone(), value.clone())),
                };
                inode.changed(now);
                Ok(MdsReply::Done)
            }
            Op::RemoveXattr { file, name } => {
                let inode = self.inode_mut(*file)?;
                inode.changed(now);
                match inode.change_extras(|extras| extras.xattrs.remove(name)) {
                    Some(_) => Ok(MdsReply::Done),
                    None => refuse(Status::NoAttribute, name.clone()),
                }
            }
            Op::Open { file, mode, reclaim } => {
                self.check_reclaim(*file, *reclaim)?;
                match self.inode(*file)?.kind() {
                    FileKind::File => {}
                    FileKind::Directory => return refuse(Status::IsDirectory, format!("file {file}")),
                    FileKind::Symlink => {
                        return refuse(Status::InvalidArgument, "a symbolic link can't be opened");
                    }
                    FileKind::Special(_) => {
                        return refuse(Status::InvalidArgument, "only the kernel of a host opens this");
                    }
                }
                let written_by = self.inode(*file)?.last_writer;
                let lease = self.open(client, *file, *mode)?;
                Ok(MdsReply::Opened { attr: self.attr(*file)?, lease, written_by, first: None })
            }
            Op::Release { leases } => {
                for ReleasedLease { file, lease, size_bytes, mtime_ns } in leases {
                    let changed = size_bytes.is_some() || mtime_ns.is_some();
                    if changed && self.holds(client, *file, *lease) {
                        self.written(*file, size_bytes.unwrap_or(0), *mtime_ns, now)?;
                    }
                    self.release(client, *file, *lease, effects);
                    self.drop_unwritten(*file, effects);
                }
                Ok(MdsReply::Done)
            }
            Op::Extend { file, lease, size_bytes, mtime_ns } => {
                if !self.holds(client, *file, *lease) {
                    return refuse(Status::LeaseLost, format!("lease {lease} of file {file}"));
                }
                self.written(*file, *size_bytes, Some(*mtime_ns), now)?;
                Ok(MdsReply::Done)
            }
            other => refuse(Status::BadRequest, format!("{other:?} is not a file operation")),
        }
    }

    /// Its writer says how far a file reaches, and when it was written.
    pub(super) fn written(
        &mut self,
        file: FileId,
        size: u64,
        mtime_ns: Option<i64>,
        now: i64,
    ) -> Result<(), Refusal> {
        let inode = self.inode_mut(file)?;
        inode.mtime_ns = mtime_ns.unwrap_or(inode.mtime_ns);
        inode.drop_privileges(true);
        inode.changed(now);
        if let Body::File { size_bytes, .. } = &mut inode.body {
            *size_bytes = (*size_bytes).max(size);
        }
        Ok(())
    }

    /// A file that nobody has open any more and that is empty does not keep the chunk that it was created with.
    fn drop_unwritten(&mut self, file: FileId, effects: &mut Vec<Effect>) {
        let Some(inode) = self.data.inodes.get_mut(file).filter(|i| i.leases().is_empty()) else { return };
        if let Body::File { size_bytes: 0, chunks } = &mut inode.body
            && !chunks.is_empty()
        {
            let unwritten = chunks.split_off(0);
            self.give_up_chunks(file, &unwritten, effects);
        }
    }

    fn set_attr(
        &mut self,
        file: FileId,
        change: &AttrChange,
        now: i64,
        effects: &mut Vec<Effect>,
    ) -> Answered {
        let inode = self.inode_mut(file)?;
        if change.size_bytes.is_some() && inode.kind() != FileKind::File {
            let status = if inode.kind() == FileKind::Directory {
                Status::IsDirectory
            } else {
                Status::InvalidArgument
            };
            return refuse(status, format!("file {file} has no size to set"));
        }
        inode.changed(now);
        inode.mode = change.mode.unwrap_or(inode.mode);
        if change.drops_privileges && inode.kind() != FileKind::Directory {
            inode.drop_privileges(change.mode.is_some());
        }
        inode.uid = change.uid.unwrap_or(inode.uid);
        inode.gid = change.gid.unwrap_or(inode.gid);
        let mut dropped: Vec<ChunkId> = Vec::new();
        if let (Some(size), Body::File { size_bytes, chunks }) = (change.size_bytes, &mut inode.body) {
            let first_gone = size.div_ceil(u64::from(inode.chunk_bytes)).min(u64::from(u32::MAX)) as u32;
            dropped = chunks.split_off(first_gone);
            *size_bytes = size;
            inode.mtime_ns = now;
        }
        inode.mtime_ns = change.mtime_ns.unwrap_or(inode.mtime_ns);
        inode.atime_ns = change.atime_ns.unwrap_or(inode.atime_ns);
        self.give_up_chunks(file, &dropped, effects);
        Ok(MdsReply::Attr(self.attr(file)?))
    }

    /// The last name is gone: the inode too, unless somebody has it open.
    fn unlinked(&mut self, file: FileId, now: i64, effects: &mut Vec<Effect>) {
        let Some(inode) = self.data.inodes.get_mut(file) else { return };
        inode.parent = FileId(0);
        inode.changed(now);
        self.drop_if_unused(file, effects);
    }

    pub(super) fn drop_if_unused(&mut self, file: FileId, effects: &mut Vec<Effect>) {
        let unused =
            self.data.inodes.get(file).is_some_and(|i| i.parent == FileId(0) && i.leases().is_empty());
        if !unused || file == ROOT {
            return;
        }
        if let Some(Inode { body: Body::File { chunks, .. }, .. }) = self.data.inodes.remove(file) {
            let all: Vec<ChunkId> = chunks.chunks().collect();
            self.give_up_chunks(file, &all, effects);
        }
    }

    fn rename(
        &mut self,
        from: (FileId, &str),
        to: (FileId, &str),
        no_replace: bool,
        exchange: bool,
        now: i64,
        effects: &mut Vec<Effect>,
    ) -> Answered {
        check_name(to.1)?;
        let file = self.child(from.0, from.1)?;
        let is_dir = self.inode(file)?.kind() == FileKind::Directory;
        let over = self.entry(to.0, to.1)?;
        if self.inode(to.0)?.parent == FileId(0) && to.0 != ROOT {
            return refuse(Status::NotFound, "the target directory was removed");
        }
        if is_dir && self.lies_in(to.0, file) {
            return refuse(Status::InvalidArgument, "a directory can't be moved into itself");
        }
        let ctime_was_ns = (self.inode(from.0)?.ctime_ns, self.inode(to.0)?.ctime_ns);
        if exchange {
            let other = self.child(to.0, to.1)?;
            let other_is_dir = self.inode(other)?.kind() == FileKind::Directory;
            if other_is_dir && self.lies_in(from.0, other) {
                return refuse(Status::InvalidArgument, "a directory can't be moved into itself");
            }
            self.enter(from.0, from.1, None, is_dir, now);
            self.enter(to.0, to.1, None, other_is_dir, now);
            self.enter(from.0, from.1, Some(other), other_is_dir, now);
            self.enter(to.0, to.1, Some(file), is_dir, now);
            self.inode_mut(other)?.parent = from.0;
            self.inode_mut(file)?.parent = to.0;
            return self.renamed(from.0, to.0, ctime_was_ns);
        }
        if let Some(over) = over {
            if over == file {
                return Ok(MdsReply::Done);
            }
            let over_is_dir = self.inode(over)?.kind() == FileKind::Directory;
            match (is_dir, over_is_dir) {
                _ if no_replace => return refuse_name(Status::Exists, to.1),
                (true, false) => return refuse_name(Status::NotDirectory, to.1),
                (false, true) => return refuse_name(Status::IsDirectory, to.1),
                (true, true) if self.directory(over)? > 0 => {
                    return refuse_name(Status::NotEmptyDirectory, to.1);
                }
                _ => {}
            }
            self.enter(to.0, to.1, None, over_is_dir, now);
            self.unlinked(over, now, effects);
        }
        self.enter(from.0, from.1, None, is_dir, now);
        self.enter(to.0, to.1, Some(file), is_dir, now);
        let inode = self.inode_mut(file)?;
        inode.parent = to.0;
        inode.changed(now);
        self.renamed(from.0, to.0, ctime_was_ns)
    }

    fn renamed(&self, from: FileId, to: FileId, ctime_was_ns: (i64, i64)) -> Answered {
        let to = if from == to { None } else { Some(self.changed_directory(to, ctime_was_ns.1)?) };
        Ok(MdsReply::Renamed { from: self.changed_directory(from, ctime_was_ns.0)?, to })
    }

    /// Whether `directory` is `ancestor` or lies below it.
    fn lies_in(&self, mut directory: FileId, ancestor: FileId) -> bool {
        loop {
            if directory == ancestor {
                return true;
            }
            match self.data.inodes.get(directory) {
                Some(inode) if directory != ROOT && inode.parent != FileId(0) => directory = inode.parent,
                _ => return false,
            }
        }
    }

    pub(super) fn holds(&self, client: ClientId, file: FileId, lease: LeaseId) -> bool {
        let is_his = |i: &Inode| i.leases().iter().any(|l| l.id == lease && l.client == client);
        !self.data.revoking.contains_key(&lease) && self.data.inodes.get(file).is_some_and(is_his)
    }

    pub fn attr(&self, file: FileId) -> Result<FileAttr, Refusal> {
        Ok(self.inode(file)?.attr(file))
    }
}
