//! The library for programs: a [`ClientCore`] on a thread of its own, with blocking calls, and [`Cluster::submit`]
//! for requests whose completion is a closure. Payload is handed over, never copied: [`Buf`] in, [`Buf`] out.

use crate::call::{Call, Done, FileMap, OpenFile, Stats, WriteHow};
use crate::config::ClientConfig;
use crate::core::ClientCore;
use crate::error::{ClientError, Result};
use shards::Buf;
use shards::ring::{Mailbox, RingConfig, RunningShard};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wire::mds_api::{AttrChange, DirEntry, FileAttr, FileKind, FsStat, LeaseMode, MdsReply, MdsRequest};
use wire::{FileId, ROOT, Status};

/// A client of one cluster. Cheap to clone; the last clone that goes ends the session.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    mailbox: Mailbox<Call>,
    shard: Mutex<Option<RunningShard<Call>>>,
}

impl Inner {
    fn finished(&self) -> bool {
        self.shard.lock().expect("no panic under this lock").as_ref().is_none_or(|s| s.is_finished())
    }

    fn end(&self) -> Result<()> {
        let Some(shard) = self.shard.lock().expect("no panic under this lock").take() else { return Ok(()) };
        shard.shutdown();
        shard.join().map_err(|e| ClientError::Io { detail: e.to_string() })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(%error, "client_ended_badly");
        }
    }
}

impl Cluster {
    /// Starts a client and waits until its session stands, or for the reason why it can't.
    pub fn connect(config: ClientConfig) -> Result<Cluster> {
        Self::connect_with(config, |core| core)
    }

    /// The same with a core that `prepare` has told more, such as what is to hear of lost leases.
    pub fn connect_with(
        config: ClientConfig,
        prepare: impl FnOnce(ClientCore) -> ClientCore + Send + 'static,
    ) -> Result<Cluster> {
        if config.mds.is_empty() {
            return Err(ClientError::Invalid("no metadata server is configured"));
        }
        let ring = RingConfig::new("client", "/", wire::framing);
        let make = move || prepare(ClientCore::new(config));
        let shard = shards::ring::spawn(ring, make).map_err(|e| ClientError::Io { detail: e.to_string() })?;
        let cluster =
            Cluster { inner: Arc::new(Inner { mailbox: shard.mailbox(), shard: Mutex::new(Some(shard)) }) };
        match cluster.call(|done| Call::Ready { done }) {
            Ok(_) => Ok(cluster),
            Err(ClientError::Closed(_)) => Err(cluster.inner.end().err().unwrap_or(STOPPED)),
            Err(why) => Err(why),
        }
    }

    /// Hands in a request; its completion runs on the client's thread and must not block.
    pub fn submit(&self, call: Call) {
        self.inner.mailbox.send(call);
    }

    pub fn mailbox(&self) -> Mailbox<Call> {
        self.inner.mailbox.clone()
    }

    /// Hands in a request and waits for its end.
    pub fn call<T: Send + 'static>(&self, make: impl FnOnce(Done<T>) -> Call) -> Result<T> {
        let (tell, hear) = sync_channel(1);
        self.submit(make(Box::new(move |result| {
            let _ = tell.send(result); // Nobody waits any more: nothing to tell.
        })));
        loop {
            match hear.recv_timeout(Duration::from_secs(1)) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) if !self.inner.finished() => {}
                Err(_) => return Err(STOPPED),
            }
        }
    }

    /// Hands in what is unsaved, gives all leases back and ends the session.
    pub fn close(self) -> Result<()> {
        self.inner.end()
    }

    /// Any request to the metadata service; `client` fields are filled in.
    pub fn mds(&self, request: MdsRequest) -> Result<MdsReply> {
        self.call(|done| Call::Mds { request, done })
    }

    pub fn stats(&self) -> Result<Stats> {
        self.call(|done| Call::Stats { done })
    }

    // Names. Paths start at the root of the cluster, with or without a leading slash.

    pub fn stat(&self, path: &str) -> Result<FileAttr> {
        let mut parts = parts(path);
        let Some(name) = parts.pop() else { return self.attr(ROOT) };
        let parent = self.directory(&parts)?;
        self.call(|done| Call::Lookup { parent, name: name.to_string(), done })
    }

    pub fn attr(&self, file: FileId) -> Result<FileAttr> {
        self.call(|done| Call::GetAttr { file, done })
    }

    fn directory(&self, parts: &[&str]) -> Result<FileId> {
        let mut at = ROOT;
        for name in parts {
            let attr = self.call(|done| Call::Lookup { parent: at, name: name.to_string(), done })?;
            at = attr.file;
        }
        Ok(at)
    }

    fn parent<'a>(&self, path: &'a str) -> Result<(FileId, &'a str)> {
        let mut parts = parts(path);
        let name = parts.pop().ok_or(ClientError::Invalid("the root has no name"))?;
        Ok((self.directory(&parts)?, name))
    }

    pub fn open(&self, path: &str, mode: LeaseMode) -> Result<File> {
        let attr = self.stat(path)?;
        match attr.kind {
            FileKind::File => {}
            FileKind::Directory => return Err(ClientError::refused(Status::IsDirectory, "")),
            FileKind::Symlink => {
                return Err(ClientError::refused(Status::InvalidArgument, "is a symbolic link"));
            }
            FileKind::Special(_) => {
                return Err(ClientError::refused(Status::InvalidArgument, "is a device, FIFO or socket"));
            }
        }
        self.open_id(attr.file, mode)
    }

    pub fn open_id(&self, file: FileId, mode: LeaseMode) -> Result<File> {
        let OpenFile { attr } = self.call(|done| Call::Open { file, mode, done })?;
        Ok(File { cluster: self.clone(), id: attr.file, mode, open: true })
    }

    /// Creates a file and opens it for writing; an existing one is opened unless `exclusive`.
    pub fn create(&self, path: &str, mode: u32, exclusive: bool) -> Result<File> {
        let (parent, name) = self.parent(path)?;
        let name = name.to_string();
        let opened =
            self.call(|done| Call::Create { parent, name, mode, uid: 0, gid: 0, exclusive, done })?;
        Ok(File { cluster: self.clone(), id: opened.attr.file, mode: LeaseMode::Write, open: true })
    }

    pub fn mkdir(&self, path: &str, mode: u32) -> Result<FileAttr> {
        self.make(path, FileKind::Directory, mode, "")
    }

    pub fn symlink(&self, path: &str, target: &str) -> Result<FileAttr> {
        self.make(path, FileKind::Symlink, 0o777, target)
    }

    fn make(&self, path: &str, kind: FileKind, mode: u32, target: &str) -> Result<FileAttr> {
        let (parent, name) = self.parent(path)?;
        let (name, target) = (name.to_string(), target.to_string());
        self.call(|done| Call::Make { parent, name, kind, mode, uid: 0, gid: 0, target, done })
    }

    pub fn read_link(&self, path: &str) -> Result<String> {
        let file = self.stat(path)?.file;
        match self.mds(MdsRequest::ReadLink { file })? {
            MdsReply::Link { target } => Ok(target),
            other => Err(ClientError::Io { detail: format!("unexpected answer {other:?}") }),
        }
    }

    pub fn unlink(&self, path: &str) -> Result<()> {
        self.remove(path, false)
    }

    pub fn rmdir(&self, path: &str) -> Result<()> {
        self.remove(path, true)
    }

    fn remove(&self, path: &str, directory: bool) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        let request =
            MdsRequest::Unlink { client: Default::default(), parent, name: name.to_string(), directory };
        self.mds(request).map(|_| ())
    }

    /// Renames, replacing what has the new name.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        let (from_parent, from_name) = self.parent(from)?;
        let (to_parent, to_name) = self.parent(to)?;
        self.mds(MdsRequest::Rename {
            client: Default::default(),
            from_parent,
            from_name: from_name.to_string(),
            to_parent,
            to_name: to_name.to_string(),
            no_replace: false,
            exchange: false,
        })
        .map(|_| ())
    }

    pub fn list(&self, path: &str) -> Result<Vec<DirEntry>> {
        let directory = self.stat(path)?.file;
        let mut entries: Vec<DirEntry> = Vec::new();
        loop {
            let after = entries.last().map_or_else(String::new, |e| e.name.clone());
            let (page, more) = self.call(|done| Call::ReadDir { directory, after, limit: 256, done })?;
            let empty = page.is_empty();
            entries.extend(page);
            if !more || empty {
                return Ok(entries);
            }
        }
    }

    pub fn set_attr(&self, path: &str, change: AttrChange) -> Result<FileAttr> {
        let file = self.stat(path)?.file;
        self.call(|done| Call::SetAttr { file, change, done })
    }

    /// Sets an attribute of the cluster by the name the guide gives it: replicas, tier, failure-domain, chunk-size.
    pub fn set_policy(&self, path: &str, name: &str, value: &str, recursive: bool) -> Result<()> {
        let file = self.stat(path)?.file;
        let (name, value) = (name.to_string(), value.to_string());
        self.mds(MdsRequest::SetPolicy { file, name, value, recursive }).map(|_| ())
    }

    /// Where the chunks of a file lie.
    pub fn map(&self, path: &str) -> Result<FileMap> {
        let file = self.stat(path)?.file;
        self.call(|done| Call::Map { file, done })
    }

    pub fn statfs(&self) -> Result<FsStat> {
        match self.mds(MdsRequest::StatFs)? {
            MdsReply::Fs(fs) => Ok(fs),
            other => Err(ClientError::Io { detail: format!("unexpected answer {other:?}") }),
        }
    }
}

const STOPPED: ClientError = ClientError::Closed("the client has stopped");

fn parts(path: &str) -> Vec<&str> {
    path.split('/').filter(|p| !p.is_empty() && *p != ".").collect()
}

/// An open file. Dropping it closes it without waiting; [`File::close`] says whether all was recorded.
pub struct File {
    cluster: Cluster,
    id: FileId,
    mode: LeaseMode,
    open: bool,
}

impl File {
    pub fn id(&self) -> FileId {
        self.id
    }

    pub fn attr(&self) -> Result<FileAttr> {
        self.cluster.attr(self.id)
    }

    /// At most `len` bytes at `offset`; fewer at the end of the file.
    pub fn read_at(&self, offset: u64, len: usize) -> Result<Buf> {
        let file = self.id;
        self.cluster.call(|done| Call::Read { file, offset, len, done })
    }

    /// Done when durable on all in-sync replicas.
    pub fn write_at(&self, offset: u64, data: Buf) -> Result<()> {
        let file = self.id;
        self.cluster.call(|done| Call::Write { file, offset, data, how: WriteHow::default(), done })
    }

    /// Like [`File::read_at`]; `done` runs on the client's thread.
    pub fn submit_read(&self, offset: u64, len: usize, done: Done<Buf>) {
        self.cluster.submit(Call::Read { file: self.id, offset, len, done });
    }

    /// Like [`File::write_at`]; `done` runs on the client's thread.
    pub fn submit_write(&self, offset: u64, data: Buf, done: Done<()>) {
        let how = WriteHow::default();
        self.cluster.submit(Call::Write { file: self.id, offset, data, how, done });
    }

    pub fn fsync(&self) -> Result<()> {
        let file = self.id;
        self.cluster.call(|done| Call::Sync { file, done })
    }

    pub fn truncate(&self, size: u64) -> Result<()> {
        let file = self.id;
        let change = AttrChange { size_bytes: Some(size), ..AttrChange::default() };
        self.cluster.call(|done| Call::SetAttr { file, change, done }).map(|_| ())
    }

    /// Zeroes a range and gives its space back.
    pub fn zero(&self, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        let file = self.id;
        self.cluster.call(|done| Call::Zero { file, offset, len, keep_size, done })
    }

    pub fn map(&self) -> Result<FileMap> {
        let file = self.id;
        self.cluster.call(|done| Call::Map { file, done })
    }

    /// Closes; the last close of a file records its size and gives the lease back.
    pub fn close(mut self) -> Result<()> {
        self.open = false;
        let (file, mode) = (self.id, self.mode);
        self.cluster.call(|done| Call::Close { file, mode, done })
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if self.open {
            let (file, mode) = (self.id, self.mode);
            let done: Done<()> = Box::new(move |result| {
                if let Err(error) = result {
                    tracing::warn!(%file, %error, "close_failed");
                }
            });
            self.cluster.submit(Call::Close { file, mode, done });
        }
    }
}
