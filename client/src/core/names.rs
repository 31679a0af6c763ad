//! Directories and attributes: requests to the MDS, with what this client knows better (sizes of files it writes).

use super::leases::unexpected;
use super::{ClientCore, Then};
use crate::call::OpenFile;
use crate::error::ClientError;
use shards::Io;
use wire::mds_api::{AttrChange, DirEntry, FileAttr, FileKind, LeaseMode, MdsReply, MdsRequest};
use wire::{FileId, Status};

/// Set-uid and set-gid.
const PRIVILEGES: u32 = 0o6000;

#[derive(Clone)]
pub(super) struct NewFile {
    pub parent: FileId,
    pub name: String,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub exclusive: bool,
}

pub(super) struct NewName {
    pub parent: FileId,
    pub name: String,
    pub kind: FileKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub target: String,
}

impl ClientCore {
    /// What this client knows of an open file goes before what the MDS says.
    fn overlay(&mut self, attr: FileAttr) -> FileAttr {
        match self.files.get_mut(&attr.file) {
            Some(f) => {
                f.refresh_attr(attr);
                f.current_attr()
            }
            None => attr,
        }
    }

    fn attr_call(&mut self, io: &mut dyn Io, request: MdsRequest, then: Then<FileAttr>) {
        self.mds_call(
            io,
            request,
            Box::new(move |core, io, reply| {
                let result = match reply {
                    Ok(MdsReply::Attr(attr) | MdsReply::Created { attr, .. }) => Ok(core.overlay(attr)),
                    Ok(other) => Err(unexpected(&other)),
                    Err(e) => Err(e),
                };
                then(core, io, result);
            }),
        );
    }

    pub(super) fn lookup(&mut self, io: &mut dyn Io, parent: FileId, name: String, then: Then<FileAttr>) {
        self.attr_call(io, MdsRequest::Lookup { parent, name }, then);
    }

    pub(super) fn get_attr(&mut self, io: &mut dyn Io, file: FileId, then: Then<FileAttr>) {
        self.attr_call(io, MdsRequest::GetAttr { file }, then);
    }

    pub(super) fn set_attr(
        &mut self,
        io: &mut dyn Io,
        file: FileId,
        change: AttrChange,
        then: Then<FileAttr>,
    ) {
        if change.size_bytes.is_some() {
            return self.truncate(io, file, change, then);
        }
        if let (Some(mtime_ns), Some(f)) = (change.mtime_ns, self.files.get_mut(&file)) {
            f.mtime_given(mtime_ns);
        }
        let client = self.mds.client().unwrap_or_default();
        self.attr_call(io, MdsRequest::SetAttr { client, file, change }, then);
    }

    /// Clears the set-uid and set-gid bits of an open file, if it has any.
    pub(super) fn drop_privileges(&mut self, io: &mut dyn Io, file: FileId, then: Then<()>) {
        if self.files.get(&file).is_none_or(|f| f.attr.mode & PRIVILEGES == 0) {
            return then(self, io, Ok(()));
        }
        let change = AttrChange { drops_privileges: true, ..AttrChange::default() };
        self.set_attr(io, file, change, Box::new(move |core, io, result| then(core, io, result.map(|_| ()))));
    }

    pub(super) fn read_dir(
        &mut self,
        io: &mut dyn Io,
        directory: FileId,
        after: String,
        limit: u32,
        then: Then<(Vec<DirEntry>, bool)>,
    ) {
        self.mds_call(
            io,
            MdsRequest::ReadDir { directory, after, limit },
            Box::new(move |core, io, reply| {
                let result = match reply {
                    Ok(MdsReply::Entries { mut entries, more }) => {
                        for entry in &mut entries {
                            entry.attr = core.overlay(entry.attr.clone());
                        }
                        Ok((entries, more))
                    }
                    Ok(other) => Err(unexpected(&other)),
                    Err(e) => Err(e),
                };
                then(core, io, result);
            }),
        );
    }

    pub(super) fn create(&mut self, io: &mut dyn Io, new: NewFile, then: Then<OpenFile>) {
        let NewFile { parent, name, mode, uid, gid, exclusive } = new.clone();
        let client = self.mds.client().unwrap_or_default();
        let request = MdsRequest::Create {
            client,
            parent,
            name,
            kind: FileKind::File,
            mode,
            uid,
            gid,
            symlink_target: String::new(),
            exclusive,
            open: true,
        };
        self.mds_call(
            io,
            request,
            Box::new(move |core, io, reply| match reply {
                Ok(MdsReply::Created { attr, lease: Some(lease), first, .. }) => {
                    let opened = core.created_open(io, attr, lease, first);
                    then(core, io, Ok(opened));
                }
                Ok(MdsReply::Created { attr, lease: None, .. }) => {
                    core.open(io, attr.file, LeaseMode::Write, then);
                }
                Ok(other) => then(core, io, Err(unexpected(&other))),
                Err(e) if matches!(e.status(), Some(Status::FileBusy | Status::HolderAway)) => {
                    core.open_there(io, new, then);
                }
                Err(e) => then(core, io, Err(e)),
            }),
        );
    }

    /// Opens a file that was to be made, and that another client has open: waits for it as every open does.
    fn open_there(&mut self, io: &mut dyn Io, new: NewFile, then: Then<OpenFile>) {
        self.lookup(
            io,
            new.parent,
            new.name.clone(),
            Box::new(move |core, io, found| match found {
                Ok(attr) => core.open(io, attr.file, LeaseMode::Write, then),
                Err(e) if e.status() == Some(Status::NotFound) => core.create(io, new, then),
                Err(e) => then(core, io, Err(e)),
            }),
        );
    }

    pub(super) fn make(&mut self, io: &mut dyn Io, new: NewName, then: Then<FileAttr>) {
        let NewName { parent, name, kind, mode, uid, gid, target } = new;
        if name.is_empty() {
            return then(self, io, Err(ClientError::Invalid("empty name")));
        }
        let client = self.mds.client().unwrap_or_default();
        let request = MdsRequest::Create {
            client,
            parent,
            name,
            kind,
            mode,
            uid,
            gid,
            symlink_target: target,
            exclusive: true,
            open: false,
        };
        self.attr_call(io, request, then);
    }
}
