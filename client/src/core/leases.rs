//! Open files: their leases, reference counts and sizes.
//!
//! One lease per file and client, however many handles are open: a read lease while only readers are, a write
//! lease from the first writer until the last handle is closed.
//!
//! Invariants:
//! - at most one of Open, Release and "record the size" is under way per file (`asking`, `releasing`, `recording`);
//! - under a write lease the size kept here is the truth; the MDS learns it by Extend, SetAttr or Release;
//! - a file whose lease was lost fails all requests until it is opened again;
//! - a lease that nobody uses any more is given back a moment later, together with others, unless its file is opened again;
//!   if that is closed within the moment too, at once: a program that opens a file again and again does not keep others from it.

use super::gather::Gathered;
use super::locks::RangeLocks;
use super::maps::Slot;
use super::{ClientCore, Then};
use crate::call::OpenFile;
use crate::config::EXTEND_AFTER;
use crate::error::{ClientError, Result};
use shards::sabotage::{Sabotage, on};
use shards::{Io, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use wire::mds_api::{ChunkMap, FileAttr, FileKind, LeaseMode, MdsReply, MdsRequest, ReleasedLease};
use wire::{FileId, LeaseId, Status};

/// Pause before asking again for something another client or a recovery holds.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How long a lease that nobody uses may keep other hosts from the file. They ask again every [`ASK_AGAIN`].
const KEEP_UNUSED: Duration = Duration::from_millis(20);
/// Leases given back by one request.
const MOST_UNUSED: usize = 64;
/// A session whose client is away ends after one timeout, or after two if the master changes meanwhile; and one more for
/// the election.
const HOLDER_TIMEOUTS: u32 = 3;

pub(super) struct File {
    pub attr: FileAttr,
    pub lease: Option<(LeaseId, LeaseMode)>,
    pub lost: Option<String>,
    readers: u32,
    writers: u32,
    pub asking: bool,
    releasing: bool,
    /// The change that keeps all others waiting while a clone is made.
    pub settling: Option<u64>,
    /// Stands in [`ClientCore::unused`].
    kept_unused: bool,
    /// The session that held this lease is gone: ask the next one for it.
    recover: Option<LeaseId>,
    /// Waiting for a lease: asked for by `open`.
    opening: Vec<(LeaseMode, Then<OpenFile>)>,
    /// Waiting for Release to end.
    on_closed: Vec<Then<()>>,
    /// Parts that wait until the lease is there again.
    pub waiting_lease: Vec<u64>,

    pub size: u64,
    pub mtime_ns: i64,
    unrecorded_since: Option<Timestamp>,
    mtime_unrecorded: bool,
    pub recording: bool,
    /// With the size that must be recorded.
    after_record: Vec<(u64, Then<()>)>,
    /// Nothing but zeros lies behind the size.
    pub tail_clean: bool,

    pub locks: RangeLocks<Then<()>>,
    /// Requests of programs under way.
    active: u32,
    /// Changes under way, by start; for `sync`.
    changes: BTreeSet<u64>,
    syncs: Vec<(u64, Then<()>)>,

    pub slots: BTreeMap<u32, Slot>,
    /// Grows when cached maps are thrown away: answers to older questions are too.
    pub maps_version: u64,
    /// Where the last write ended: writers that go on there get their next chunk ahead.
    pub last_write_end: u64,
    /// Of programs that were answered: what is not yet being written, how many writes are under way, and why one failed.
    pub gathered: Option<Gathered>,
    pub behind: usize,
    pub write_failed: Option<ClientError>,
    /// Block and contents that the last write left partly filled.
    pub edge: Option<(u64, shards::Buf)>,
}

impl File {
    fn new(attr: FileAttr) -> Self {
        File {
            size: attr.size_bytes,
            mtime_ns: attr.mtime_ns,
            attr,
            lease: None,
            lost: None,
            readers: 0,
            writers: 0,
            asking: false,
            releasing: false,
            settling: None,
            kept_unused: false,
            recover: None,
            opening: Vec::new(),
            on_closed: Vec::new(),
            waiting_lease: Vec::new(),
            unrecorded_since: None,
            mtime_unrecorded: false,
            recording: false,
            after_record: Vec::new(),
            tail_clean: false,
            locks: RangeLocks::default(),
            active: 0,
            changes: BTreeSet::new(),
            syncs: Vec::new(),
            slots: BTreeMap::new(),
            maps_version: 0,
            last_write_end: 0,
            gathered: None,
            behind: 0,
            write_failed: None,
            edge: None,
        }
    }

    fn is_open(&self) -> bool {
        self.readers + self.writers > 0
    }

    fn is_unused(&self) -> bool {
        !self.is_open()
            && self.opening.is_empty()
            && self.active == 0
            && self.locks.is_idle()
            && !(self.asking || self.releasing || self.recording)
    }

    pub fn unrecorded(&self) -> bool {
        self.unrecorded_since.is_some()
    }

    pub fn chunk_bytes(&self) -> u64 {
        u64::from(self.attr.chunk_bytes.max(shards::BLOCK_BYTES as u32))
    }

    pub fn is_settling(&self) -> bool {
        self.settling.is_some()
    }

    /// What the MDS has to hear with the end of the lease, or a pause of it.
    pub fn handed_in(&self, file: FileId, lease: LeaseId) -> ReleasedLease {
        ReleasedLease {
            file,
            lease,
            size_bytes: self.unrecorded().then_some(self.size),
            mtime_ns: self.mtime_unrecorded.then_some(self.mtime_ns),
        }
    }

    fn covers(&self, mode: LeaseMode) -> bool {
        self.lost.is_none()
            && self.lease.is_some_and(|(_, held)| held == LeaseMode::Write || mode == LeaseMode::Read)
    }

    fn add(&mut self, mode: LeaseMode) {
        match mode {
            LeaseMode::Read => self.readers += 1,
            LeaseMode::Write => self.writers += 1,
        }
    }

    /// Attributes with what only this client knows.
    pub fn current_attr(&self) -> FileAttr {
        let ctime_ns =
            if self.mtime_unrecorded { self.attr.ctime_ns.max(self.mtime_ns) } else { self.attr.ctime_ns };
        FileAttr { size_bytes: self.size, mtime_ns: self.mtime_ns, ctime_ns, ..self.attr.clone() }
    }

    /// Takes over fresh attributes of the MDS, keeping what it has not been told yet.
    pub fn refresh_attr(&mut self, mut attr: FileAttr) {
        if self.lease.is_some_and(|(_, m)| m == LeaseMode::Write) || self.unrecorded() || self.recording {
            attr.size_bytes = self.size;
            if self.mtime_unrecorded {
                attr.mtime_ns = self.mtime_ns;
            }
        }
        self.size = attr.size_bytes;
        self.mtime_ns = attr.mtime_ns;
        self.attr = attr;
    }

    /// A write has ended at `end`.
    pub fn grown_to(&mut self, end: u64, now: Timestamp, wall_ms: u64) {
        self.mtime_ns = (wall_ms as i64).saturating_mul(1_000_000);
        self.mtime_unrecorded = true;
        if end > self.size {
            self.size = end;
            self.unrecorded_since.get_or_insert(now);
        }
    }

    /// A program has set the time itself: it stays until the next write.
    pub fn mtime_given(&mut self, mtime_ns: i64) {
        self.mtime_ns = mtime_ns;
        self.mtime_unrecorded = false;
    }

    /// The MDS was told the size by other means.
    pub fn size_set(&mut self, size: u64, mtime_ns: i64) {
        self.size = size;
        self.unrecorded_since = None;
        self.mtime_ns = mtime_ns;
        self.mtime_unrecorded = false;
    }
}

impl ClientCore {
    /// The file if it is open and usable.
    pub(super) fn open_file(&mut self, file: FileId) -> Result<&mut File> {
        match self.files.get_mut(&file) {
            Some(f) if f.lost.is_some() => {
                Err(ClientError::LeaseLost { detail: f.lost.clone().unwrap_or_default() })
            }
            Some(f) => Ok(f),
            None => Err(ClientError::Closed("the file is not open")),
        }
    }

    pub(super) fn open(&mut self, io: &mut dyn Io, file: FileId, mode: LeaseMode, then: Then<OpenFile>) {
        if !self.files.contains_key(&file) {
            let unknown = FileAttr::unknown(file, FileKind::File);
            self.files.insert(file, File::new(unknown));
        }
        let f = self.files.get_mut(&file).expect("inserted above");
        f.opening.push((mode, then));
        if !f.asking && !f.releasing {
            self.serve_opening(io, file);
        }
    }

    /// Completes the opens the lease allows; asks for a stronger lease for the others.
    fn serve_opening(&mut self, io: &mut dyn Io, file: FileId) {
        let Some(f) = self.files.get_mut(&file) else { return };
        let (ready, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut f.opening).into_iter().partition(|(mode, _)| f.covers(*mode));
        f.opening = waiting;
        let mode = match f.opening.iter().any(|(m, _)| *m == LeaseMode::Write) {
            true => LeaseMode::Write,
            false => LeaseMode::Read,
        };
        let ask = !f.opening.is_empty();
        for (mode, _) in &ready {
            f.add(*mode);
        }
        let attr = f.current_attr();
        if ask {
            let until = io.now().after(self.config.busy_wait);
            self.ask_lease(io, file, mode, LeaseId(0), until);
        }
        for (_, then) in ready {
            then(self, io, Ok(OpenFile { attr: attr.clone() }));
        }
    }

    pub(super) fn ask_lease(
        &mut self,
        io: &mut dyn Io,
        file: FileId,
        mode: LeaseMode,
        reclaim: LeaseId,
        until: Timestamp,
    ) {
        let Some(f) = self.files.get_mut(&file) else { return };
        f.asking = true;
        let client = self.mds.client().unwrap_or_default();
        let request = MdsRequest::Open { client, file, mode, reclaim };
        self.mds_call(
            io,
            request,
            Box::new(move |core, io, reply| match reply {
                Ok(MdsReply::Opened { attr, lease, written_by, first }) => {
                    core.lease_granted(io, file, mode, (lease, first), attr, written_by);
                }
                Err(e) if core.may_come_free(&e, io.now(), until) => {
                    core.after(
                        io,
                        ASK_AGAIN,
                        Box::new(move |core, io| core.ask_lease(io, file, mode, reclaim, until)),
                    );
                }
                Err(e) => core.lease_refused(io, file, mode, e),
                Ok(other) => core.lease_refused(io, file, mode, unexpected(&other)),
            }),
        );
    }

    /// Whether to ask again for a lease that was refused: until `until` if its holder is there, and else until the
    /// holder's session has ended for sure.
    fn may_come_free(&self, refusal: &ClientError, now: Timestamp, until: Timestamp) -> bool {
        match refusal.status() {
            Some(Status::FileBusy) => now < until,
            Some(Status::HolderAway) => now < until.after(HOLDER_TIMEOUTS * self.mds.lease_timeout()),
            _ => false,
        }
    }

    fn lease_granted(
        &mut self,
        io: &mut dyn Io,
        file: FileId,
        mode: LeaseMode,
        (lease, first): (LeaseId, Option<Box<ChunkMap>>),
        attr: FileAttr,
        written_by: LeaseId,
    ) {
        if self.files.contains_key(&file) {
            let now = if mode == LeaseMode::Write { lease } else { written_by };
            self.cache_granted(file, written_by, now, lease);
        }
        let Some(f) = self.files.get_mut(&file) else {
            // Closed while a new session asked for its lease.
            let client = self.mds.client().unwrap_or_default();
            let leases = vec![ReleasedLease::unchanged(file, lease)];
            return self.mds_call(io, MdsRequest::Release { client, leases }, Box::new(|_, _, _| ()));
        };
        f.asking = false;
        let fresh = f.lease.is_none() || f.lost.is_some();
        if fresh {
            f.tail_clean = attr.allocated_bytes == 0;
            f.edge = None;
        }
        // While others could have the file, or a clone of it could be made.
        if fresh || f.lease.is_some_and(|(held, _)| held != lease) {
            f.forget_maps(0);
        }
        f.learn_first(first);
        f.lost = None;
        f.lease = None; // What follows takes the size of the MDS unless ours is ahead of it.
        let theirs = attr.size_bytes;
        f.refresh_attr(attr);
        f.size = f.size.max(theirs);
        f.lease = Some((lease, mode));
        let waiting = std::mem::take(&mut f.waiting_lease);
        for part in waiting {
            self.part_run(io, part);
        }
        self.end_settling(io, file);
        self.serve_opening(io, file);
        self.maybe_release(io, file);
    }

    fn lease_refused(&mut self, io: &mut dyn Io, file: FileId, mode: LeaseMode, why: ClientError) {
        let Some(f) = self.files.get_mut(&file) else { return };
        f.asking = false;
        // An open for reading may still do when writing was refused.
        let (failed, other): (Vec<_>, Vec<_>) = std::mem::take(&mut f.opening)
            .into_iter()
            .partition(|(m, _)| *m == mode || mode == LeaseMode::Read);
        f.opening = other;
        let needed = f.is_open() || f.active > 0 || f.unrecorded();
        if f.lease.is_none() && needed && f.lost.is_none() {
            self.file_lost(io, file, &why.to_string());
        }
        for (_, then) in failed {
            then(self, io, Err(why.clone()));
        }
        self.serve_opening(io, file);
        self.maybe_release(io, file);
    }

    /// A file just created came with its write lease.
    pub(super) fn created_open(
        &mut self,
        io: &mut dyn Io,
        attr: FileAttr,
        lease: LeaseId,
        first: Option<Box<ChunkMap>>,
    ) -> OpenFile {
        let file = attr.file;
        // Who wrote it before is not known: nothing is, of a file that was there.
        self.cache_granted(file, LeaseId(u64::MAX), lease, lease);
        let f = self.files.entry(file).or_insert_with(|| File::new(attr.clone()));
        if f.lease.is_none() {
            f.tail_clean = attr.allocated_bytes == 0;
        }
        f.refresh_attr(attr);
        f.learn_first(first);
        f.lost = None;
        f.lease = Some((lease, LeaseMode::Write));
        f.add(LeaseMode::Write);
        let opened = OpenFile { attr: f.current_attr() };
        if !f.asking && !f.releasing {
            self.serve_opening(io, file);
        }
        opened
    }

    pub(super) fn close(&mut self, io: &mut dyn Io, file: FileId, mode: LeaseMode, then: Then<()>) {
        self.write_gathered(io, file);
        let Some(f) = self.files.get_mut(&file) else {
            return then(self, io, Err(ClientError::Closed("the file is not open")));
        };
        let count = match mode {
            LeaseMode::Read => &mut f.readers,
            LeaseMode::Write => &mut f.writers,
        };
        if *count == 0 {
            return then(self, io, Err(ClientError::Closed("the file is not open in this mode")));
        }
        *count -= 1;
        if f.is_open() {
            return then(self, io, Ok(()));
        }
        f.on_closed.push(then);
        self.maybe_release(io, file);
    }

    /// The client stops: whoever still holds the file has lost it.
    pub(super) fn close_all(&mut self, io: &mut dyn Io, file: FileId) {
        self.write_gathered(io, file);
        if let Some(f) = self.files.get_mut(&file) {
            (f.readers, f.writers) = (0, 0);
            self.maybe_release(io, file);
        }
    }

    /// Gives the lease back once nobody needs it.
    fn maybe_release(&mut self, io: &mut dyn Io, file: FileId) {
        let Some(f) = self.files.get_mut(&file) else { return };
        if !f.is_unused() {
            return;
        }
        if f.lease.is_none() || f.lost.is_some() {
            let on_closed = std::mem::take(&mut f.on_closed);
            let lost = f.lost.take();
            self.files.remove(&file);
            for then in on_closed {
                let outcome = lost.clone().map_or(Ok(()), |detail| Err(ClientError::LeaseLost { detail }));
                then(self, io, outcome);
            }
            return;
        }
        // Who closes a file whose size is yet to be recorded waits until it is.
        if f.unrecorded() || f.kept_unused || self.stopping.is_some() {
            return self.release(io, &[file]);
        }
        f.kept_unused = true;
        let on_closed = std::mem::take(&mut f.on_closed);
        let result = f.write_failed.take().map_or(Ok(()), Err);
        self.unused.push(file);
        match self.unused.len() {
            1 => self.after(io, KEEP_UNUSED, Box::new(|core, io| core.release_unused(io))),
            MOST_UNUSED.. => self.release_unused(io),
            _ => {}
        }
        for then in on_closed {
            then(self, io, result.clone());
        }
    }

    pub(super) fn release_unused(&mut self, io: &mut dyn Io) {
        let mut unused = std::mem::take(&mut self.unused);
        unused.retain(|file| {
            self.files.get_mut(file).is_some_and(|f| {
                f.kept_unused = false;
                f.is_unused()
            })
        });
        self.release(io, &unused);
    }

    /// Gives the leases of unused files back.
    fn release(&mut self, io: &mut dyn Io, files: &[FileId]) {
        let mut leases = Vec::with_capacity(files.len());
        for &file in files {
            let Some(f) = self.files.get_mut(&file) else { continue };
            let Some((lease, _)) = f.lease.filter(|_| !f.releasing) else { continue };
            f.releasing = true;
            leases.push(f.handed_in(file, lease));
            self.cache_closed(file);
        }
        if leases.is_empty() {
            return;
        }
        let client = self.mds.client().unwrap_or_default();
        let given_back: Vec<_> = leases.iter().map(|l| (l.file, l.lease)).collect();
        self.mds_call(
            io,
            MdsRequest::Release { client, leases },
            Box::new(move |core, io, reply| {
                let result = reply.map(|_| ());
                for (file, lease) in given_back {
                    core.released(io, file, lease, result.clone());
                }
            }),
        );
    }

    fn released(&mut self, io: &mut dyn Io, file: FileId, lease: LeaseId, result: Result<()>) {
        let Some(f) = self.files.get_mut(&file) else { return };
        f.releasing = false;
        if result.is_err() && f.lease.is_none_or(|(now, _)| now != lease) && f.lost.is_none() {
            // The session changed meanwhile; the lease of the new one is released as well.
            return self.maybe_release(io, file);
        }
        if let Err(error) = &result {
            tracing::warn!(%file, %error, size = f.size, "release_failed");
        }
        f.lease = None;
        f.unrecorded_since = None;
        f.mtime_unrecorded = false;
        let on_closed = std::mem::take(&mut f.on_closed);
        let result = result.and_then(|()| f.write_failed.take().map_or(Ok(()), Err));
        if f.opening.is_empty() {
            self.files.remove(&file);
        } else {
            self.serve_opening(io, file);
        }
        for then in on_closed {
            then(self, io, result.clone());
        }
    }

    /// A request of a program on an open file begins; `change` for those that `sync` waits for.
    pub(super) fn op_begin(&mut self, file: FileId, change: bool) -> Result<u64> {
        let id = self.next_id();
        let f = self.open_file(file)?;
        f.active += 1;
        if change {
            f.changes.insert(id);
        }
        Ok(id)
    }

    pub(super) fn op_end(&mut self, io: &mut dyn Io, file: FileId, op: u64) {
        let Some(f) = self.files.get_mut(&file) else { return };
        f.active -= 1;
        if f.changes.remove(&op) {
            let oldest = f.changes.first().copied().unwrap_or(u64::MAX);
            let (ready, waiting): (Vec<_>, Vec<_>) =
                std::mem::take(&mut f.syncs).into_iter().partition(|(after, _)| *after < oldest);
            f.syncs = waiting;
            for (_, then) in ready {
                then(self, io, Ok(()));
            }
        }
        self.maybe_release(io, file);
    }

    /// Holds `blocks` of the file for `op`, then goes on.
    pub(super) fn lock(
        &mut self,
        io: &mut dyn Io,
        file: FileId,
        op: u64,
        blocks: super::locks::Blocks,
        then: Then<()>,
    ) {
        let Some(f) = self.files.get_mut(&file) else {
            return then(self, io, Err(ClientError::Closed("the file is not open")));
        };
        if let Some(then) = f.locks.lock(op, blocks, then) {
            then(self, io, Ok(()));
        }
    }

    pub(super) fn unlock(&mut self, io: &mut dyn Io, file: FileId, op: u64) {
        let Some(f) = self.files.get_mut(&file) else { return };
        for then in f.locks.unlock(op) {
            then(self, io, Ok(()));
        }
    }

    /// All changes begun before are durable and the size is recorded.
    pub(super) fn sync(&mut self, io: &mut dyn Io, file: FileId, then: Then<()>) {
        if !on(Sabotage::SyncLeavesGathered) {
            self.write_gathered(io, file);
        }
        let op = match self.op_begin(file, false) {
            Ok(op) => op,
            Err(e) => return then(self, io, Err(e)),
        };
        let f = self.files.get_mut(&file).expect("begun above");
        let record: Then<()> = Box::new(move |core, io, _| {
            core.record_size(
                io,
                file,
                Box::new(move |core, io, result| {
                    let failed = core.files.get(&file).and_then(|f| f.write_failed.clone());
                    then(core, io, result.and_then(|()| failed.map_or(Ok(()), Err)));
                    core.op_end(io, file, op);
                }),
            );
        });
        match f.changes.first() {
            Some(oldest) if *oldest < op => {
                f.syncs.push((op, record));
                // The size that writes behind the program reach is known: both at once.
                if f.behind > 0 && f.unrecorded() {
                    self.start_record(io, file);
                }
            }
            _ => record(self, io, Ok(())),
        }
    }

    /// Makes the MDS know the size reached by now.
    pub(super) fn record_size(&mut self, io: &mut dyn Io, file: FileId, then: Then<()>) {
        let f = match self.open_file(file) {
            Ok(f) => f,
            Err(e) => return then(self, io, Err(e)),
        };
        if !f.unrecorded() {
            return then(self, io, Ok(()));
        }
        f.after_record.push((f.size, then));
        self.start_record(io, file);
    }

    fn start_record(&mut self, io: &mut dyn Io, file: FileId) {
        let Some(f) = self.files.get_mut(&file) else { return };
        if f.recording {
            return;
        }
        let Some((lease, _)) = f.lease.filter(|_| f.lost.is_none()) else {
            if f.lost.is_some() {
                let detail = f.lost.clone().unwrap_or_default();
                return self.recorded(io, file, 0, Err(ClientError::LeaseLost { detail }));
            }
            // The session is being renewed.
            return self.after(io, ASK_AGAIN, Box::new(move |core, io| core.start_record(io, file)));
        };
        f.recording = true;
        let (size_bytes, mtime_ns) = (f.size, f.mtime_ns);
        let client = self.mds.client().unwrap_or_default();
        let request = MdsRequest::Extend { client, file, lease, size_bytes, mtime_ns };
        self.mds_call(
            io,
            request,
            Box::new(move |core, io, reply| {
                let Some(f) = core.files.get_mut(&file) else { return };
                f.recording = false;
                let stale = reply
                    .as_ref()
                    .is_err_and(|e| matches!(e.status(), Some(Status::LeaseLost | Status::StaleHandle)));
                if stale && f.lost.is_none() && f.lease.is_none_or(|(now, _)| now != lease) {
                    return core.start_record(io, file); // Under the lease of the new session.
                }
                if stale && f.lost.is_none() {
                    core.file_lost(io, file, "the metadata server no longer knows it");
                }
                core.recorded(io, file, size_bytes, reply.map(|_| ()));
            }),
        );
    }

    fn recorded(&mut self, io: &mut dyn Io, file: FileId, size: u64, result: Result<()>) {
        let Some(f) = self.files.get_mut(&file) else { return };
        if result.is_ok() && f.size <= size {
            f.unrecorded_since = None;
        } else if let Some(since) = &mut f.unrecorded_since {
            *since = io.now();
        }
        let (done, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut f.after_record)
            .into_iter()
            .partition(|(wanted, _)| result.is_err() || *wanted <= size);
        f.after_record = waiting;
        let more = !f.after_record.is_empty();
        for (_, then) in done {
            then(self, io, result.clone());
        }
        if more {
            self.start_record(io, file);
        }
        self.maybe_release(io, file);
    }

    /// Keeps everybody else from telling the MDS a size until [`Self::end_size_change`].
    pub(super) fn begin_size_change(&mut self, io: &mut dyn Io, file: FileId, then: Then<()>) {
        let Some(f) = self.files.get_mut(&file) else {
            return then(self, io, Err(ClientError::Closed("the file is not open")));
        };
        if f.recording {
            let again: Then<()> = Box::new(move |core, io, _| core.begin_size_change(io, file, then));
            f.after_record.push((0, again));
        } else {
            f.recording = true;
            then(self, io, Ok(()));
        }
    }

    pub(super) fn end_size_change(&mut self, io: &mut dyn Io, file: FileId) {
        let Some(f) = self.files.get_mut(&file) else { return };
        f.recording = false;
        let size = if f.unrecorded() { 0 } else { f.size };
        self.recorded(io, file, size, Ok(()));
    }

    pub(super) fn leases_tick(&mut self, io: &mut dyn Io) {
        let now = io.now();
        let due = |f: &File| {
            !f.recording
                && !f.releasing
                && f.lease.is_some()
                && f.lost.is_none()
                && f.unrecorded_since.is_some_and(|since| now.since(since) >= EXTEND_AFTER)
        };
        let files: Vec<FileId> = self.files.iter().filter(|(_, f)| due(f)).map(|(id, _)| *id).collect();
        for file in files {
            self.start_record(io, file);
        }
    }

    pub(super) fn leases_revoked(&mut self, io: &mut dyn Io, leases: &[LeaseId]) {
        let hit: Vec<FileId> = self
            .files
            .iter()
            .filter(|(_, f)| f.lease.is_some_and(|(id, _)| leases.contains(&id)))
            .map(|(id, _)| *id)
            .collect();
        for file in hit {
            let lease = self.files.get(&file).and_then(|f| f.lease).map(|(lease, _)| lease);
            self.file_lost(io, file, "it was revoked");
            if let Some(lease) = lease {
                self.tell_stopped(io, file, lease);
            }
        }
    }

    /// Tells the MDS that nothing goes on under a revoked lease any more, as soon as that is so: then others may have the
    /// file. Should it not hear of it, it waits until this client can't believe in the lease any more.
    fn tell_stopped(&mut self, io: &mut dyn Io, file: FileId, lease: LeaseId) {
        if self.parts.values().any(|p| p.file == file && p.lease == lease) {
            return self.after(io, ASK_AGAIN, Box::new(move |core, io| core.tell_stopped(io, file, lease)));
        }
        let Some(client) = self.mds.client() else { return };
        let leases = vec![ReleasedLease::unchanged(file, lease)];
        self.mds_call(io, MdsRequest::Release { client, leases }, Box::new(|_, _, _| ()));
    }

    /// All requests on the file fail from now on; caches of it are told.
    pub(super) fn file_lost(&mut self, io: &mut dyn Io, file: FileId, why: &str) {
        let Some(f) = self.files.get_mut(&file) else { return };
        if f.lost.is_some() {
            return;
        }
        tracing::warn!(%file, why, unrecorded = f.unrecorded(), "lease_lost");
        self.drop_gathered(file);
        let Some(f) = self.files.get_mut(&file) else { return };
        f.lost = Some(why.to_string());
        f.lease = None;
        f.unrecorded_since = None;
        f.mtime_unrecorded = false;
        let mut waiting = std::mem::take(&mut f.waiting_lease);
        waiting.extend(f.slots.values_mut().flat_map(|s| std::mem::take(&mut s.waiting)));
        for part in waiting {
            self.part_run(io, part);
        }
        self.cache_lost(file);
        if let Some(notify) = &mut self.on_lease_lost {
            notify(file);
        }
        self.end_settling(io, file);
        self.maybe_release(io, file);
    }

    pub(super) fn leases_lost_with_session(&mut self) {
        for f in self.files.values_mut() {
            if let Some((lease, _)) = f.lease.take()
                && !f.asking
            {
                (f.asking, f.recover) = (true, Some(lease));
            }
        }
    }

    /// A new session: asks for the leases of all open files again. If somebody could write to a file meanwhile, what
    /// this client has under way there must not be repeated: the file is lost.
    pub(super) fn leases_recover(&mut self, io: &mut dyn Io) {
        let files: Vec<(FileId, LeaseMode, LeaseId)> = self
            .files
            .iter_mut()
            .filter_map(|(id, f)| {
                let write = f.writers > 0 || f.unrecorded() || !f.changes.is_empty();
                let mode = if write { LeaseMode::Write } else { LeaseMode::Read };
                let old = f.recover.take().filter(|_| f.lost.is_none())?;
                Some((*id, mode, if write { old } else { LeaseId(0) }))
            })
            .collect();
        let until = io.now().after(self.config.busy_wait);
        for (file, mode, reclaim) in files {
            if let Some(notify) = &mut self.on_lease_lost {
                notify(file); // Somebody may have written meanwhile.
            }
            self.ask_lease(io, file, mode, reclaim, until);
        }
    }
}

pub(super) fn unexpected(reply: &MdsReply) -> ClientError {
    ClientError::Io { detail: format!("the metadata server sent an unexpected answer: {reply:?}") }
}
