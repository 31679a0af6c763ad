//! [`TestIo`]: the [`Io`] of one component under test. Nothing happens by itself: the test completes disk
//! operations one by one, in the order it wants, moves the clock, and crashes the disk.
//!
//! ```
//! use shards::sim::{CrashKind, TestIo};
//! use shards::{Buf, Durability, Io, OpId, OpenHow};
//! let mut io = TestIo::new(7);
//! let file = io.open("journal", OpenHow { create: true, ..OpenHow::default() }).unwrap();
//! io.write(file, 0, vec![Buf::from_slice(b"hello")], Durability::Durable, OpId(1));
//! let (op, result) = io.complete_next().unwrap();
//! assert!(op == OpId(1) && result.is_ok());
//! let mut io = TestIo::with_disk(io.crash(CrashKind::Power, 42), 8);
//! assert_eq!(io.get_blob("journal").unwrap().unwrap(), b"hello");
//! ```

use super::disk::{CrashKind, DiskOp, VirtualDisk};
use super::faults::FaultRule;
use super::files::{Asked, OpenFiles, pool_buffer, submit};
use super::rng::Rng;
use crate::{
    Buf, BufMut, Channel, ConnId, Durability, FileHandle, Io, OpId, OpenHow, RawFrame, TimerId, Timestamp,
};
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// What a component asked of the network; the test looks at it and plays the other side.
#[derive(Debug)]
pub enum NetAsk {
    Listen(SocketAddr),
    Connect(ConnId, SocketAddr),
    Send(ConnId, RawFrame),
    Close(ConnId),
}

#[derive(Debug)]
struct Pending {
    op: OpId,
    outcome: Asked,
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Asked::Ticket { ticket, .. } => write!(f, "#{ticket}"),
            Asked::Refused(e) => write!(f, "refused: {e}"),
        }
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct TestIo {
    disk: VirtualDisk,
    files: OpenFiles,
    pending: VecDeque<Pending>,
    /// Everything asked of the network since the test last took it.
    pub net: Vec<NetAsk>,
    timers: BTreeSet<(Timestamp, TimerId)>,
    now: Timestamp,
    rng: Rng,
    next_conn: u64,
    encrypts: bool,
    /// Outcome of [`Io::stop`], if it was called.
    pub stopped: Option<Result<(), String>>,
}

impl TestIo {
    pub fn new(seed: u64) -> Self {
        Self::with_disk(VirtualDisk::default(), seed)
    }

    /// The next life of a component, on what [`TestIo::crash`] left.
    pub fn with_disk(disk: VirtualDisk, seed: u64) -> Self {
        TestIo {
            disk,
            files: OpenFiles::default(),
            pending: VecDeque::new(),
            net: Vec::new(),
            timers: BTreeSet::new(),
            now: Timestamp(1_000_000_000),
            rng: Rng::new(seed),
            next_conn: 1,
            encrypts: false,
            stopped: None,
        }
    }

    pub fn disk(&mut self) -> &mut VirtualDisk {
        &mut self.disk
    }

    pub fn fault(&mut self, rule: FaultRule) {
        self.disk.fault(rule);
    }

    /// Operations not completed yet, in the order they were asked for.
    pub fn pending(&self) -> Vec<OpId> {
        self.pending.iter().map(|p| p.op).collect()
    }

    /// Completes the oldest operation.
    pub fn complete_next(&mut self) -> Option<(OpId, io::Result<Buf>)> {
        self.complete_nth(0)
    }

    /// Completes the n-th oldest operation, so that a test can reorder.
    pub fn complete_nth(&mut self, n: usize) -> Option<(OpId, io::Result<Buf>)> {
        let Pending { op, outcome } = self.pending.remove(n)?;
        let result = match outcome {
            Asked::Ticket { ticket, .. } => self.disk.complete(ticket),
            Asked::Refused(e) => Err(e),
        };
        Some((op, result))
    }

    /// Completes an operation of the seed's choice.
    pub fn complete_any(&mut self) -> Option<(OpId, io::Result<Buf>)> {
        let n = self.rng.below(self.pending.len() as u64) as usize;
        self.complete_nth(n)
    }

    /// Completes this operation.
    pub fn complete(&mut self, op: OpId) -> Option<io::Result<Buf>> {
        let n = self.pending.iter().position(|p| p.op == op)?;
        self.complete_nth(n).map(|(_, result)| result)
    }

    /// Ends this life; returns what is on the disk. Operations in flight are torn by the seed.
    pub fn crash(mut self, kind: CrashKind, seed: u64) -> VirtualDisk {
        self.disk.crash(kind, &mut Rng::new(seed));
        self.disk
    }

    /// A copy of the disk as a crash at this moment would leave it; this life goes on.
    pub fn crash_copy(&self, kind: CrashKind, seed: u64) -> VirtualDisk {
        let mut disk = self.disk.clone();
        disk.crash(kind, &mut Rng::new(seed));
        disk
    }

    /// Moves the clock and returns the timers that are due, earliest first.
    pub fn advance(&mut self, by: Duration) -> Vec<TimerId> {
        self.now = self.now.after(by);
        let mut due = Vec::new();
        while let Some(first) = self.timers.first().copied().filter(|(at, _)| *at <= self.now) {
            self.timers.remove(&first);
            due.push(first.1);
        }
        due
    }

    pub fn timers(&self) -> Vec<(Timestamp, TimerId)> {
        self.timers.iter().copied().collect()
    }

    /// A connection number for an `Accepted` event that the test makes up.
    pub fn new_conn(&mut self) -> ConnId {
        self.next_conn += 1;
        ConnId(self.next_conn - 1)
    }

    fn add(&mut self, op: OpId, outcome: Asked) {
        assert!(
            self.pending.iter().all(|p| p.op != op),
            "{op:?} is asked for twice: its completions could not be told apart"
        );
        self.pending.push_back(Pending { op, outcome });
    }
}

impl Io for TestIo {
    fn now(&self) -> Timestamp {
        self.now
    }
    fn wall_ms(&self) -> u64 {
        1_700_000_000_000 + self.now.0 / 1_000_000
    }
    fn random(&mut self) -> u64 {
        self.rng.next_u64()
    }
    fn listen(&mut self, at: SocketAddr) -> io::Result<SocketAddr> {
        self.net.push(NetAsk::Listen(at));
        Ok(at)
    }
    fn connect(&mut self, to: SocketAddr) -> ConnId {
        let conn = self.new_conn();
        self.net.push(NetAsk::Connect(conn, to));
        conn
    }
    fn send(&mut self, conn: ConnId, frame: RawFrame) {
        self.net.push(NetAsk::Send(conn, frame));
    }
    fn unsent_bytes(&self, _conn: ConnId) -> usize {
        0
    }
    fn close(&mut self, conn: ConnId) {
        self.net.push(NetAsk::Close(conn));
    }
    fn encrypt(&mut self, on: bool) {
        self.encrypts = on;
    }
    fn channel(&self, _conn: ConnId) -> Channel {
        if self.encrypts { Channel::Encrypted { certificate: [1; 32] } } else { Channel::Plain }
    }
    fn open(&mut self, path: &str, how: OpenHow) -> io::Result<FileHandle> {
        self.files.open(&mut self.disk, path, how)
    }
    fn file_len(&mut self, file: FileHandle) -> io::Result<u64> {
        Ok(self.files.len(&self.disk, file))
    }
    fn read(&mut self, file: FileHandle, offset: u64, len: usize, op: OpId) {
        let asked = self.files.read(&mut self.disk, file, offset, len);
        self.add(op, asked);
    }
    fn write(&mut self, file: FileHandle, offset: u64, parts: Vec<Buf>, durability: Durability, op: OpId) {
        let asked = self.files.write(&mut self.disk, file, offset, parts, durability);
        self.add(op, asked);
    }
    fn sync(&mut self, file: FileHandle, op: OpId) {
        let asked = self.files.sync(&mut self.disk, file);
        self.add(op, asked);
    }
    fn punch(&mut self, file: FileHandle, offset: u64, len: u64, op: OpId) {
        let asked = self.files.punch(&mut self.disk, file, offset, len);
        self.add(op, asked);
    }
    fn allocate(&mut self, file: FileHandle, len: u64, op: OpId) {
        let asked = self.files.allocate(&mut self.disk, file, len);
        self.add(op, asked);
    }
    fn put_blob(&mut self, path: &str, bytes: Vec<u8>, op: OpId) {
        let len = bytes.len() as u64;
        let asked = submit(&mut self.disk, DiskOp::PutBlob { path: path.into(), bytes }, len);
        self.add(op, asked);
    }
    fn get_blob(&mut self, path: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.disk.get_blob(path))
    }
    fn remove(&mut self, path: &str) -> io::Result<()> {
        self.disk.remove(path);
        Ok(())
    }
    fn list(&mut self, dir: &str) -> io::Result<Vec<String>> {
        Ok(self.disk.list(dir))
    }
    fn disk_space(&mut self) -> io::Result<(u64, u64)> {
        Ok(self.disk.space())
    }
    fn set_timer(&mut self, at: Timestamp, id: TimerId) {
        self.timers.insert((at, id));
    }
    fn buffer(&mut self, len: usize) -> BufMut {
        pool_buffer(len)
    }
    fn stop(&mut self, outcome: Result<(), String>) {
        self.stopped = Some(outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_come_when_the_test_says_and_in_its_order() {
        let mut io = TestIo::new(1);
        let how = OpenHow { create: true, direct: true, read_only: false };
        let file = io.open("f", how).unwrap();
        for n in 0..3u64 {
            let parts = vec![Buf::from_slice(&[n as u8 + 1; 4096])];
            io.write(file, 4096 * n, parts, Durability::Durable, OpId(n));
        }
        assert_eq!(io.pending(), [OpId(0), OpId(1), OpId(2)]);
        assert_eq!(io.complete_nth(1).unwrap().0, OpId(1));
        io.read(file, 0, 8192, OpId(9));
        let data = io.complete(OpId(9)).unwrap().unwrap();
        assert_eq!((data[0], data[4096]), (0, 2), "a write not completed is not seen");
        io.write(file, 1, vec![Buf::from_slice(&[0; 4096])], Durability::Durable, OpId(10));
        assert!(io.complete(OpId(10)).unwrap().is_err(), "O_DIRECT rules are checked");
        let mut io = TestIo::with_disk(io.crash(CrashKind::Power, 5), 2);
        let file = io.open("f", OpenHow::default()).unwrap();
        io.read(file, 4096, 1, OpId(1));
        assert_eq!(io.complete_next().unwrap().1.unwrap()[0], 2);
        assert!(io.open("absent", OpenHow::default()).is_err());
    }

    #[test]
    fn timers_fire_in_order() {
        let mut io = TestIo::new(1);
        let now = io.now();
        io.set_timer(now.after(Duration::from_millis(20)), TimerId(2));
        io.set_timer(now.after(Duration::from_millis(10)), TimerId(1));
        assert!(io.advance(Duration::from_millis(5)).is_empty());
        assert_eq!(io.advance(Duration::from_millis(20)), [TimerId(1), TimerId(2)]);
    }
}
