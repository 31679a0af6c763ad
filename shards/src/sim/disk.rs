//! A virtual disk: the files of one node, kept over its restarts.
//!
//! Model, per file:
//! - `seen` is what reads return: every completed operation;
//! - `durable` is what is certain to survive a loss of power;
//! - between the two lie *versions*: for each page the contents that completed but un-synced writes gave it, oldest
//!   first. A loss of power leaves any one of them (or the durable one) in each 512-byte sector of it.
//!
//! An operation takes effect when it completes. A write still in flight at a crash may have reached none,
//! all, or any subset of its sectors. A blob is replaced wholly or not at all. Creating and removing files is
//! durable at once, as the real driver syncs the directory.
//! Punched ranges count as un-synced writes of zeros: nobody may rely on them being zero after a loss of
//! power unless a sync followed.

use super::faults::{FaultEffect, FaultOn, FaultRule, Faults, einval, eio, enospc};
use super::image::{Image, PAGE_BYTES, pages_of};
use super::rng::Rng;
use crate::{BLOCK_BYTES, Buf, BufMut, Durability, OpenHow};
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

/// What a disk writes or loses as a whole.
pub const SECTOR_BYTES: u64 = 512;

/// How a node ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CrashKind {
    /// Loss of power: un-synced writes may be lost, sector by sector.
    Power,
    /// kill -9: the kernel keeps what completed; only operations in flight are uncertain.
    Process,
}

/// An operation on an open file (by its number on the disk) or a blob.
#[derive(Clone, Debug)]
pub enum DiskOp {
    Read { file: usize, offset: u64, len: usize },
    Write { file: usize, offset: u64, parts: Vec<Buf>, durability: Durability },
    Sync { file: usize },
    Punch { file: usize, offset: u64, len: u64 },
    Allocate { file: usize, len: u64 },
    PutBlob { path: String, bytes: Vec<u8> },
}

/// What an un-synced write made of a page; `None` is zeros.
#[derive(Clone, Debug)]
struct Version {
    number: u64,
    bytes: Option<Buf>,
}

#[derive(Clone, Debug, Default)]
struct File {
    path: String,
    seen: Image,
    durable: Image,
    /// By page.
    versions: BTreeMap<u64, Vec<Version>>,
    allocated: u64,
}

#[derive(Clone, Debug)]
struct InFlight {
    op: DiskOp,
    effect: Option<FaultEffect>,
    /// Of a sync: the newest version it covers.
    covers: u64,
}

/// One node's disk. `Clone` gives a copy of everything, for comparing outcomes.
#[derive(Clone, Debug)]
pub struct VirtualDisk {
    files: Vec<File>,
    blobs: BTreeMap<String, Vec<u8>>,
    in_flight: BTreeMap<u64, InFlight>,
    next_ticket: u64,
    last_version: u64,
    /// A write or sync has begun or ended since [`VirtualDisk::take_changed`].
    changed: bool,
    capacity_bytes: u64,
    faults: Faults,
}

impl Default for VirtualDisk {
    fn default() -> Self {
        VirtualDisk {
            files: Vec::new(),
            blobs: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            next_ticket: 1,
            last_version: 0,
            changed: false,
            capacity_bytes: 64 << 30,
            faults: Faults::default(),
        }
    }
}

impl VirtualDisk {
    pub fn set_capacity(&mut self, bytes: u64) {
        self.capacity_bytes = bytes;
    }

    pub fn fault(&mut self, rule: FaultRule) {
        self.faults.add(rule);
    }

    pub fn clear_faults(&mut self) {
        self.faults.clear();
    }

    /// Whether a write or sync has begun or ended since the last call: a crash now may leave something that no crash
    /// before could. For tests that cut at every write.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Turns one bit of a file (or blob), as a decaying disk does. Says whether there is such a file.
    pub fn flip_bit(&mut self, path: &str, offset: u64, bit: u8) -> bool {
        if let Some(byte) = self.blobs.get_mut(path).and_then(|b| b.get_mut(offset as usize)) {
            *byte ^= 1 << (bit % 8);
            return true;
        }
        let Some(file) = self.files.iter_mut().find(|f| f.path == path) else { return false };
        file.seen.flip_bit(offset, bit);
        file.durable.flip_bit(offset, bit);
        for version in file.versions.get_mut(&(offset / PAGE_BYTES)).into_iter().flatten() {
            let mut page = BufMut::zeroed(PAGE_BYTES as usize);
            if let Some(bytes) = &version.bytes {
                page.copy_from_slice(bytes);
            }
            page[(offset % PAGE_BYTES) as usize] ^= 1 << (bit % 8);
            version.bytes = Some(page.freeze());
        }
        true
    }

    /// Paths of all files and blobs.
    pub fn paths(&self) -> Vec<String> {
        let mut paths: Vec<String> = self.files.iter().map(|f| f.path.clone()).collect();
        paths.extend(self.blobs.keys().cloned());
        paths.sort();
        paths
    }

    /// What a read of this range would return now; `None` without such a file.
    pub fn peek(&self, path: &str, offset: u64, len: usize) -> Option<Vec<u8>> {
        let file = self.files.iter().find(|f| f.path == path)?;
        let mut bytes = vec![0; len];
        file.seen.read(offset, &mut bytes);
        Some(bytes)
    }

    /// The pages of 4 KiB of a file that were ever written.
    pub fn pages_of(&self, path: &str) -> Vec<u64> {
        let file = self.files.iter().find(|f| f.path == path);
        file.map_or_else(Vec::new, |f| f.seen.pages().collect())
    }

    /// Makes an empty file, past the node, if it is not there.
    pub fn touch(&mut self, path: &str) {
        let how = OpenHow { create: true, ..OpenHow::default() };
        self.open(path, how).expect("files can be made");
    }

    /// Overwrites a range durably, past the node: for tests that damage files.
    pub fn poke(&mut self, path: &str, offset: u64, bytes: &[u8]) -> bool {
        let Some(file) = self.files.iter().position(|f| f.path == path) else { return false };
        self.write_durably(file, offset, &Buf::from_slice(bytes));
        true
    }

    pub fn len_of(&self, path: &str) -> Option<u64> {
        self.files.iter().find(|f| f.path == path).map(|f| f.seen.len)
    }

    pub fn used_bytes(&self) -> u64 {
        let files: u64 = self.files.iter().map(|f| f.seen.used_bytes().max(f.allocated)).sum();
        files + self.blobs.values().map(|b| b.len() as u64).sum::<u64>()
    }

    /// Total and free bytes.
    pub fn space(&self) -> (u64, u64) {
        (self.capacity_bytes, self.capacity_bytes.saturating_sub(self.used_bytes()))
    }

    /// The number of a file, which is made if `how` says so.
    pub fn open(&mut self, path: &str, how: OpenHow) -> io::Result<usize> {
        if let Some(at) = self.files.iter().position(|f| f.path == path) {
            return Ok(at);
        }
        if !how.create {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{path}: no such file")));
        }
        self.files.push(File { path: path.to_string(), ..File::default() });
        Ok(self.files.len() - 1)
    }

    pub fn file_len(&self, file: usize) -> u64 {
        self.files[file].seen.len
    }

    pub(super) fn get_blob(&self, path: &str) -> Option<Vec<u8>> {
        if let Some(bytes) = self.blobs.get(path) {
            return Some(bytes.clone());
        }
        let file = self.files.iter().find(|f| f.path == path)?;
        let mut bytes = vec![0; file.seen.len as usize];
        file.seen.read(0, &mut bytes);
        Some(bytes)
    }

    /// Gives a file another name; whoever had that is nameless from now on, and lives on for those who have it open.
    /// Durable at once, as the real driver syncs the directory.
    pub fn rename(&mut self, file: usize, to: &str) {
        if let Some(old) = self.files.iter_mut().find(|f| f.path == to) {
            old.path.clear();
        }
        self.files[file].path = to.into();
    }

    /// Sets a file's length, durably.
    pub fn set_len(&mut self, file: usize, len: u64) {
        let File { seen, durable, versions, .. } = &mut self.files[file];
        for image in [seen, durable] {
            image.zero(len, image.len.saturating_sub(len));
            image.len = len;
        }
        versions.retain(|page, _| page * PAGE_BYTES < len);
    }

    /// Bytes that a file takes.
    pub fn allocated(&self, file: usize) -> u64 {
        self.files[file].seen.used_bytes().max(self.files[file].allocated)
    }

    /// Whether the operation has not ended; a crash ends all.
    pub fn is_in_flight(&self, ticket: u64) -> bool {
        self.in_flight.contains_key(&ticket)
    }

    pub(super) fn remove(&mut self, path: &str) {
        self.blobs.remove(path);
        // The slot stays, nameless: open handles are numbers into `files`, and an unlinked file lives on.
        if let Some(file) = self.files.iter_mut().find(|f| f.path == path) {
            *file = File::default();
        }
    }

    /// Names directly below a directory, files and directories alike.
    pub(super) fn list(&self, dir: &str) -> Vec<String> {
        let prefix = match dir.trim_matches('/') {
            "" | "." => String::new(),
            dir => format!("{dir}/"),
        };
        let paths = self.files.iter().map(|f| &f.path).chain(self.blobs.keys());
        let mut names: Vec<String> = paths
            .filter_map(|p| p.strip_prefix(&prefix))
            .filter(|rest| !rest.is_empty())
            .map(|rest| rest.split('/').next().unwrap_or(rest).to_string())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Takes an operation. Returns its ticket and how much longer than usual it takes.
    pub fn submit(&mut self, op: DiskOp) -> (u64, Duration) {
        let path_of = |file: &usize| self.files[*file].path.as_str();
        let (on, path, range) = match &op {
            DiskOp::Read { file, offset, len } => {
                (FaultOn::Read, path_of(file), *offset..*offset + *len as u64)
            }
            DiskOp::Write { file, offset, parts, .. } => {
                (FaultOn::Write, path_of(file), *offset..*offset + len_of(parts))
            }
            DiskOp::Punch { file, offset, len } => (FaultOn::Write, path_of(file), *offset..*offset + *len),
            DiskOp::Allocate { file, len } => (FaultOn::Write, path_of(file), 0..*len),
            DiskOp::Sync { file } => (FaultOn::Sync, path_of(file), 0..u64::MAX),
            DiskOp::PutBlob { path, bytes } => (FaultOn::PutBlob, path.as_str(), 0..bytes.len() as u64),
        };
        let effect = self.faults.due(on, path, range);
        self.changed |= on != FaultOn::Read;
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.in_flight.insert(ticket, InFlight { op, effect, covers: self.last_version });
        let stall = if let Some(FaultEffect::Stall(wait)) = effect { wait } else { Duration::ZERO };
        (ticket, stall)
    }

    /// Ends an operation: its effect becomes visible (and durable, if it says so).
    pub fn complete(&mut self, ticket: u64) -> io::Result<Buf> {
        let InFlight { op, effect, covers } = self.in_flight.remove(&ticket).expect("operation in flight");
        self.changed |= !matches!(op, DiskOp::Read { .. });
        match (op, effect) {
            (DiskOp::Write { file, offset, parts, .. }, Some(FaultEffect::Eio)) => {
                let bytes = join(&parts);
                let half = (bytes.len() as u64 / 2).next_multiple_of(SECTOR_BYTES).min(bytes.len() as u64);
                self.write_durably(file, offset, &bytes.slice(0..half as usize));
                Err(eio())
            }
            (_, Some(FaultEffect::Eio)) => Err(eio()),
            (_, Some(FaultEffect::NoSpace)) => Err(enospc()),
            (DiskOp::Read { .. }, Some(FaultEffect::Lost)) => Err(eio()),
            (_, Some(FaultEffect::Lost)) => Ok(Buf::empty()),
            (DiskOp::Write { file, offset, parts, durability }, Some(FaultEffect::Misdirected(by))) => {
                self.apply(DiskOp::Write { file, offset: offset + by, parts, durability }, covers)?;
                Ok(Buf::empty())
            }
            (DiskOp::Write { file, offset, parts, durability }, Some(FaultEffect::WriteFlip)) => {
                let mut bytes = BufMut::from_slice(&join(&parts));
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x10;
                self.apply(DiskOp::Write { file, offset, parts: vec![bytes.freeze()], durability }, covers)?;
                Ok(Buf::empty())
            }
            (DiskOp::Read { file, offset, len }, effect) => {
                let mut bytes = BufMut::scratch(len);
                self.files[file].seen.read(offset, &mut bytes);
                if effect == Some(FaultEffect::ReadFlip) && len > 0 {
                    bytes[len / 2] ^= 0x10;
                }
                Ok(bytes.freeze())
            }
            (op, _) => self.apply(op, covers).map(|()| Buf::empty()),
        }
    }

    fn apply(&mut self, op: DiskOp, covers: u64) -> io::Result<()> {
        match op {
            DiskOp::Read { .. } => unreachable!("reads have no effect"),
            DiskOp::Write { file, offset, parts, durability } => {
                let len = len_of(&parts);
                let grows = (offset + len).saturating_sub(self.files[file].seen.len);
                if grows > self.space().1 {
                    return Err(enospc());
                }
                let mut at = offset;
                for part in &parts {
                    match durability {
                        Durability::Durable => self.write_durably(file, at, part),
                        Durability::Buffered => self.files[file].seen.write(at, part),
                    }
                    at += part.len() as u64;
                }
                if durability == Durability::Buffered {
                    self.add_versions(file, offset, len);
                }
            }
            DiskOp::Sync { file } => self.sync(file, covers),
            DiskOp::Punch { file, offset, len } => {
                let len = len.min(self.files[file].seen.len.saturating_sub(offset));
                self.files[file].seen.zero(offset, len);
                self.files[file].allocated = self.files[file].allocated.saturating_sub(len);
                self.add_versions(file, offset, len);
            }
            DiskOp::Allocate { file, len } => {
                if len.saturating_sub(self.files[file].seen.len) > self.space().1 {
                    return Err(enospc());
                }
                let file = &mut self.files[file];
                file.allocated = file.allocated.max(len);
                file.seen.len = file.seen.len.max(len);
                file.durable.len = file.durable.len.max(len);
            }
            DiskOp::PutBlob { path, bytes } => {
                self.blobs.insert(path, bytes);
            }
        }
        Ok(())
    }

    /// What un-synced writes left in the pages becomes durable as well: the kernel writes whole pages.
    fn write_durably(&mut self, file: usize, offset: u64, bytes: &Buf) {
        let File { versions, durable, seen, .. } = &mut self.files[file];
        seen.write(offset, bytes);
        durable.write(offset, bytes);
        if versions.is_empty() {
            return;
        }
        for page in pages_of(offset, bytes.len() as u64) {
            if versions.remove(&page).is_some() {
                make_durable(durable, seen.len, page, seen.page(page));
            }
        }
    }

    /// Notes what the pages of a range now hold as un-synced versions.
    fn add_versions(&mut self, file: usize, offset: u64, len: u64) {
        self.last_version += 1;
        let File { versions, seen, .. } = &mut self.files[file];
        for page in pages_of(offset, len) {
            let version = Version { number: self.last_version, bytes: seen.page(page) };
            versions.entry(page).or_default().push(version);
        }
    }

    fn sync(&mut self, file: usize, covers: u64) {
        let File { versions, durable, seen, .. } = &mut self.files[file];
        versions.retain(|page, list| {
            let done = list.partition_point(|v| v.number <= covers);
            if let Some(last) = list.drain(..done).next_back() {
                make_durable(durable, seen.len, *page, last.bytes);
            }
            !list.is_empty()
        });
        durable.len = durable.len.max(if versions.is_empty() { seen.len } else { durable.len });
    }

    /// The node is gone; what is left on its disk. Operations in flight end somehow, without a completion.
    pub fn crash(&mut self, kind: CrashKind, rng: &mut Rng) {
        if kind == CrashKind::Power {
            for file in &mut self.files {
                lose_unsynced(file, rng);
            }
        }
        for (_, in_flight) in std::mem::take(&mut self.in_flight) {
            if !matches!(in_flight.effect, None | Some(FaultEffect::Stall(_))) {
                continue;
            }
            match in_flight.op {
                DiskOp::Write { file, offset, parts, .. } => self.tear(file, offset, &join(&parts), rng),
                DiskOp::PutBlob { path, bytes } if rng.one_in(2) => {
                    self.blobs.insert(path, bytes);
                }
                DiskOp::Punch { file, offset, len } => {
                    let len = len.min(self.files[file].seen.len.saturating_sub(offset));
                    self.tear(file, offset, &BufMut::zeroed(len as usize).freeze(), rng);
                }
                _ => {}
            }
        }
    }

    /// A write cut off by a crash: none, all, or any subset of its sectors is on disk.
    fn tear(&mut self, file: usize, offset: u64, bytes: &Buf, rng: &mut Rng) {
        let mode = rng.below(3);
        if mode == 1 {
            return self.write_durably(file, offset, bytes);
        }
        let mut at = 0;
        while at < bytes.len() && mode != 0 {
            let inside = (offset + at as u64) % SECTOR_BYTES;
            let count = ((SECTOR_BYTES - inside) as usize).min(bytes.len() - at);
            if rng.one_in(2) {
                self.write_durably(file, offset + at as u64, &bytes.slice(at..at + count));
            }
            at += count;
        }
    }
}

fn len_of(parts: &[Buf]) -> u64 {
    parts.iter().map(|p| p.len() as u64).sum()
}

fn join(parts: &[Buf]) -> Buf {
    let mut bytes = BufMut::scratch(len_of(parts) as usize);
    let mut at = 0;
    for part in parts {
        bytes[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    bytes.freeze()
}

/// Puts a page in place but does not let its rest lengthen the file.
fn make_durable(durable: &mut Image, len_limit: u64, page: u64, bytes: Option<Buf>) {
    durable.set_page(page, bytes);
    durable.len = durable.len.max(len_limit.min((page + 1) * PAGE_BYTES));
}

fn lose_unsynced(file: &mut File, rng: &mut Rng) {
    let mode = rng.below(3); // nothing, everything, or any mix survives
    for (page, mut list) in std::mem::take(&mut file.versions) {
        let kept = match mode {
            0 => continue,
            1 => list.pop().expect("no page has an empty list").bytes,
            _ => Some(mix(file.durable.page(page), &list, rng)),
        };
        make_durable(&mut file.durable, file.seen.len, page, kept);
    }
    file.seen = file.durable.clone();
}

/// A page each sector of which is as some version, or as the durable one, has it.
fn mix(durable: Option<Buf>, versions: &[Version], rng: &mut Rng) -> Buf {
    let mut page = BufMut::zeroed(PAGE_BYTES as usize);
    for (n, sector) in page.chunks_mut(SECTOR_BYTES as usize).enumerate() {
        let from = match rng.between(0, versions.len() as u64) as usize {
            0 => &durable,
            version => &versions[version - 1].bytes,
        };
        if let Some(bytes) = from {
            sector.copy_from_slice(&bytes[n * SECTOR_BYTES as usize..][..SECTOR_BYTES as usize]);
        }
    }
    page.freeze()
}

/// Checks the rules of O_DIRECT, so that what runs here also runs on a real disk.
pub(super) fn check_direct(
    how: OpenHow,
    offset: u64,
    len: usize,
    parts: Option<&[Buf]>,
    path: &str,
) -> io::Result<()> {
    let block = BLOCK_BYTES as u64;
    if !how.direct {
        return Ok(());
    }
    if !offset.is_multiple_of(block) || !(len as u64).is_multiple_of(block) {
        return Err(einval(format!("{path}: O_DIRECT at {offset} for {len} bytes")));
    }
    match parts.into_iter().flatten().find(|p| !p.is_aligned() || !p.len().is_multiple_of(BLOCK_BYTES)) {
        Some(bad) => Err(einval(format!("{path}: O_DIRECT from an unaligned buffer of {} bytes", bad.len()))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(disk: &mut VirtualDisk, file: usize, offset: u64, byte: u8, len: usize, durability: Durability) {
        let parts = vec![Buf::from_slice(&vec![byte; len])];
        let (ticket, _) = disk.submit(DiskOp::Write { file, offset, parts, durability });
        disk.complete(ticket).unwrap();
    }

    fn disk_with_file() -> (VirtualDisk, usize) {
        let mut disk = VirtualDisk::default();
        let file = disk.open("d/f", OpenHow { create: true, ..OpenHow::default() }).unwrap();
        (disk, file)
    }

    #[test]
    fn durable_writes_survive_every_crash_and_buffered_ones_only_after_sync() {
        let mut kept_unsynced = 0;
        for seed in 0..50 {
            let (mut disk, file) = disk_with_file();
            write(&mut disk, file, 0, 1, 4096, Durability::Durable);
            write(&mut disk, file, 4096, 2, 4096, Durability::Buffered);
            let (sync, _) = disk.submit(DiskOp::Sync { file });
            write(&mut disk, file, 8192, 3, 4096, Durability::Buffered);
            disk.complete(sync).unwrap();
            disk.crash(CrashKind::Power, &mut Rng::new(seed));
            let bytes = disk.peek("d/f", 0, 12288).unwrap();
            assert!(bytes[..4096].iter().all(|&b| b == 1) && bytes[4096..8192].iter().all(|&b| b == 2));
            let kept = bytes[8192..].chunks(512).filter(|s| s[0] == 3).count();
            assert!(bytes[8192..].chunks(512).all(|s| s.iter().all(|&b| b == s[0])), "sectors are whole");
            kept_unsynced += kept;
        }
        assert!(kept_unsynced > 0 && kept_unsynced < 50 * 8, "{kept_unsynced}: all kinds of loss happen");
    }

    #[test]
    fn a_killed_process_loses_nothing_that_completed() {
        let (mut disk, file) = disk_with_file();
        write(&mut disk, file, 0, 7, 1000, Durability::Buffered);
        disk.crash(CrashKind::Process, &mut Rng::new(1));
        assert_eq!(disk.peek("d/f", 0, 1000).unwrap(), vec![7; 1000]);
        disk.crash(CrashKind::Power, &mut Rng::new(1));
        assert!(disk.len_of("d/f").unwrap() <= 1000);
    }

    #[test]
    fn a_write_in_flight_is_torn_by_sectors() {
        let mut outcomes = std::collections::BTreeSet::new();
        for seed in 0..60 {
            let (mut disk, file) = disk_with_file();
            write(&mut disk, file, 0, 1, 2048, Durability::Durable);
            let parts = vec![Buf::from_slice(&[2; 2048])];
            disk.submit(DiskOp::Write { file, offset: 0, parts, durability: Durability::Durable });
            disk.crash(CrashKind::Power, &mut Rng::new(seed));
            let bytes = disk.peek("d/f", 0, 2048).unwrap();
            outcomes.insert(bytes.chunks(512).map(|s| s[0]).collect::<Vec<_>>());
        }
        assert!(outcomes.contains(&vec![1; 4]) && outcomes.contains(&vec![2; 4]) && outcomes.len() > 6);
    }

    #[test]
    fn blobs_are_old_or_new_and_punched_ranges_read_as_zeros() {
        let (mut disk, file) = disk_with_file();
        let (t, _) = disk.submit(DiskOp::PutBlob { path: "d/b".into(), bytes: b"old".to_vec() });
        disk.complete(t).unwrap();
        disk.submit(DiskOp::PutBlob { path: "d/b".into(), bytes: b"new!".to_vec() });
        disk.crash(CrashKind::Power, &mut Rng::new(3));
        assert!([b"old".to_vec(), b"new!".to_vec()].contains(&disk.get_blob("d/b").unwrap()));
        write(&mut disk, file, 0, 1, 8192, Durability::Durable);
        let (t, _) = disk.submit(DiskOp::Punch { file, offset: 4096, len: 4096 });
        disk.complete(t).unwrap();
        assert_eq!(disk.peek("d/f", 4095, 2).unwrap(), [1, 0]);
        assert_eq!(disk.list("d"), ["b", "f"]);
        assert_eq!(disk.list(""), ["d"]);
    }

    #[test]
    fn faults_do_what_they_say() {
        let (mut disk, file) = disk_with_file();
        write(&mut disk, file, 0, 1, 4096, Durability::Durable);
        let go = |disk: &mut VirtualDisk, op: DiskOp| {
            let (t, stall) = disk.submit(op);
            (disk.complete(t), stall)
        };
        let read = || DiskOp::Read { file, offset: 0, len: 4096 };
        let put = |byte| DiskOp::Write {
            file,
            offset: 0,
            parts: vec![Buf::from_slice(&[byte; 4096])],
            durability: Durability::Durable,
        };
        disk.fault(FaultRule::next(FaultOn::Read, "f", FaultEffect::Eio).skipping(1));
        assert!(go(&mut disk, read()).0.is_ok());
        assert_eq!(go(&mut disk, read()).0.unwrap_err().raw_os_error(), Some(libc::EIO));
        disk.fault(FaultRule::next(FaultOn::Write, "", FaultEffect::NoSpace));
        assert_eq!(go(&mut disk, put(2)).0.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        disk.fault(FaultRule::next(FaultOn::Write, "", FaultEffect::Lost).at(4096..8192));
        disk.fault(FaultRule::next(FaultOn::Write, "", FaultEffect::Lost).at(0..1));
        go(&mut disk, put(3)).0.unwrap();
        assert_eq!(go(&mut disk, read()).0.unwrap()[0], 1, "lost write");
        disk.fault(FaultRule::next(FaultOn::Write, "", FaultEffect::Misdirected(8192)));
        go(&mut disk, put(4)).0.unwrap();
        assert_eq!(disk.peek("d/f", 8192, 1).unwrap(), [4]);
        disk.fault(FaultRule::next(FaultOn::Write, "", FaultEffect::WriteFlip));
        go(&mut disk, put(5)).0.unwrap();
        assert_eq!(disk.peek("d/f", 2047, 2).unwrap(), [5, 5 ^ 0x10]);
        go(&mut disk, put(1)).0.unwrap();
        disk.fault(FaultRule::next(FaultOn::Any, "", FaultEffect::Stall(Duration::from_secs(1))));
        assert_eq!(go(&mut disk, read()).1, Duration::from_secs(1));
        assert!(disk.flip_bit("d/f", 7, 0));
        assert_eq!(go(&mut disk, read()).0.unwrap()[7], 0);
        disk.clear_faults();
        disk.set_capacity(4096);
        let grow = DiskOp::Allocate { file, len: 1 << 20 };
        assert!(go(&mut disk, grow).0.is_err());
    }

    #[test]
    fn direct_io_wants_alignment() {
        let how = OpenHow { direct: true, ..OpenHow::default() };
        let buf = Buf::from_slice(&[0; 8192]);
        assert!(check_direct(how, 0, 8192, Some(std::slice::from_ref(&buf)), "f").is_ok());
        assert!(check_direct(how, 512, 4096, None, "f").is_err());
        assert!(check_direct(how, 0, 4096, Some(&[buf.slice(1..4097)]), "f").is_err());
        assert!(check_direct(OpenHow::default(), 1, 1, None, "f").is_ok());
    }
}
