//! What a loop holds for its node: operations under way, connections, files, timers. Implements [`Io`].

use super::RingConfig;
use super::disk::{self, DiskOp, Files};
use super::net::{Connection, Listener, ReceiveOp, SendOp};
use crate::Channel;
use crate::arena::Arena;
use crate::buf::{Buf, BufMut};
use crate::node::{ConnId, Durability, FileHandle, Framing, Io, OpId, OpenHow, RawFrame, TimerId, Timestamp};
use io_uring::{opcode, squeue, types};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// An event without the node's message type.
pub(super) enum Happening {
    Accepted { conn: ConnId, peer: SocketAddr },
    Connected { conn: ConnId },
    Frame { conn: ConnId, frame: RawFrame },
    Closed { conn: ConnId, why: String },
    Disk { op: OpId, result: io::Result<Buf> },
}

/// An operation the kernel works on, with all memory it may touch.
pub(super) enum Operation {
    Accept(usize),
    Connect {
        conn: ConnId,
        _addr: Box<(libc::sockaddr_storage, libc::socklen_t)>,
        _timeout: Box<types::Timespec>,
    },
    Receive(Box<ReceiveOp>),
    Send(Box<SendOp>),
    Disk(Box<DiskOp>),
    Mailbox {
        _counter: Box<[u8; 8]>,
    },
    Alarm {
        at: Timestamp,
        _wait: Box<types::Timespec>,
    },
    /// Completions nobody waits for (link timeouts).
    Ignored,
}

/// Table of operations; the index is the user data of the entry.
#[derive(Default)]
pub(super) struct Operations {
    slots: Vec<Option<Operation>>,
    free: Vec<usize>,
}

impl Operations {
    pub fn insert(&mut self, operation: Operation) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[index] = Some(operation);
        index as u64
    }

    pub fn take(&mut self, user_data: u64) -> Option<Operation> {
        let taken = self.slots.get_mut(user_data as usize)?.take();
        if taken.is_some() {
            self.free.push(user_data as usize);
        }
        taken
    }
}

pub(super) type BlobDone = Box<dyn Fn(OpId, io::Result<Buf>) + Send>;

pub(super) struct World {
    pub dir: PathBuf,
    pub framing: Framing,
    started: Instant,
    random: u64,
    pub operations: Operations,
    pub backlog: VecDeque<squeue::Entry>,
    pub reaped: Vec<(u64, i32, u32)>,
    pub happenings: VecDeque<Happening>,
    pub connections: HashMap<ConnId, Connection>,
    pub listeners: Vec<Listener>,
    pub next_conn: u64,
    /// Connections made from now on are encrypted.
    pub encrypts: bool,
    /// Connections with frames queued and no send under way.
    pub wants_send: Vec<ConnId>,
    pub files: Files,
    /// Registered with the ring as its only buffer.
    pub arena: Option<Arc<Arena>>,
    pub spares: disk::Spares,
    #[allow(clippy::vec_box)] // The boxes themselves are what is used again.
    pub spare_sends: Vec<Box<SendOp>>,
    timers: BinaryHeap<Reverse<(Timestamp, u64, TimerId)>>,
    next_timer: u64,
    /// The earliest alarm under way ([`World::wake_at`]).
    alarm: Option<Timestamp>,
    mailbox_fd: RawFd,
    blobs: disk::BlobWriter,
    stop: Option<Result<(), String>>,
}

impl World {
    pub fn new(config: &RingConfig, blob_done: BlobDone) -> Self {
        World {
            dir: config.dir.clone(),
            framing: config.framing,
            started: Instant::now(),
            random: u64::from_le_bytes(crate::host::random_bytes()),
            operations: Operations::default(),
            backlog: VecDeque::new(),
            reaped: Vec::new(),
            happenings: VecDeque::new(),
            connections: HashMap::new(),
            listeners: Vec::new(),
            next_conn: 1,
            encrypts: false,
            wants_send: Vec::new(),
            files: Files::default(),
            arena: None,
            spares: disk::Spares::default(),
            spare_sends: Vec::new(),
            timers: BinaryHeap::new(),
            next_timer: 0,
            alarm: None,
            mailbox_fd: -1,
            blobs: disk::BlobWriter::new(blob_done),
            stop: None,
        }
    }

    pub fn submit(&mut self, operation: Operation, entry: squeue::Entry) {
        let user_data = self.operations.insert(operation);
        self.backlog.push_back(entry.user_data(user_data));
    }

    pub fn watch_mailbox(&mut self, eventfd: RawFd) {
        self.mailbox_fd = eventfd;
        let mut counter = Box::new([0u8; 8]);
        let entry = opcode::Read::new(types::Fd(eventfd), counter.as_mut_ptr(), 8).build();
        self.submit(Operation::Mailbox { _counter: counter }, entry);
    }

    pub fn complete(&mut self, user_data: u64, result: i32, flags: u32) {
        let Some(operation) = self.operations.take(user_data) else { return };
        match operation {
            Operation::Accept(listener) => self.accepted(listener, user_data, result, flags),
            Operation::Connect { conn, .. } => self.connect_done(conn, result),
            Operation::Receive(receive) => self.received(receive, result, flags),
            Operation::Send(send) => self.sent(send, result),
            Operation::Disk(op) => self.disk_done(op, result),
            Operation::Mailbox { .. } => self.watch_mailbox(self.mailbox_fd),
            Operation::Alarm { at, .. } => {
                self.alarm.take_if(|next| *next == at);
            }
            Operation::Ignored => {}
        }
    }

    /// Puts an operation back under its number (multishot).
    pub fn keep(&mut self, user_data: u64, operation: Operation) {
        let index = user_data as usize;
        let position = self.operations.free.iter().rposition(|&f| f == index).expect("just taken");
        self.operations.free.swap_remove(position);
        self.operations.slots[index] = Some(operation);
    }

    pub fn next_happening(&mut self) -> Option<Happening> {
        self.happenings.pop_front()
    }

    pub fn has_happenings(&self) -> bool {
        !self.happenings.is_empty()
    }

    pub fn due_timer(&mut self) -> Option<TimerId> {
        let now = self.now();
        match self.timers.peek() {
            Some(Reverse((at, _, _))) if *at <= now => self.timers.pop().map(|Reverse((_, _, id))| id),
            _ => None,
        }
    }

    pub fn next_timer(&self) -> Option<Timestamp> {
        self.timers.peek().map(|Reverse((at, _, _))| *at)
    }

    /// Sees to it that a wait ends by then. An alarm stays for all waits until it is due: a limit given with each wait
    /// would have the kernel start and stop a timer for every one. A later alarm that an earlier one overtakes goes off
    /// for nothing.
    pub fn wake_at(&mut self, at: Timestamp) {
        if self.alarm.is_some_and(|next| next <= at) {
            return;
        }
        self.alarm = Some(at);
        let wait = at.since(self.now());
        let wait = Box::new(types::Timespec::new().sec(wait.as_secs()).nsec(wait.subsec_nanos()));
        let entry = opcode::Timeout::new(&*wait).build();
        self.submit(Operation::Alarm { at, _wait: wait }, entry);
    }

    pub fn take_stop(&mut self) -> Option<Result<(), String>> {
        self.stop.take()
    }

    /// Whether all queued frames have left.
    pub fn drained(&self) -> bool {
        self.connections.values().all(|c| c.unsent_bytes == 0 || c.dead)
    }

    pub fn close_descriptors(&mut self) {
        for connection in self.connections.values() {
            connection.close_descriptor();
        }
        for listener in &self.listeners {
            listener.close_descriptor();
        }
    }
}

impl Io for World {
    fn now(&self) -> Timestamp {
        Timestamp(self.started.elapsed().as_nanos() as u64)
    }

    fn wall_ms(&self) -> u64 {
        crate::host::unix_ms()
    }

    fn random(&mut self) -> u64 {
        // SplitMix64, seeded from the kernel. Nonces are 32 bytes of it; keys never come from here.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn listen(&mut self, at: SocketAddr) -> io::Result<SocketAddr> {
        self.start_listening(at)
    }

    fn connect(&mut self, to: SocketAddr) -> ConnId {
        self.start_connecting(to)
    }

    fn send(&mut self, conn: ConnId, frame: RawFrame) {
        self.queue_frame(conn, frame);
    }

    fn unsent_bytes(&self, conn: ConnId) -> usize {
        self.connections.get(&conn).map_or(0, |c| c.unsent_bytes)
    }

    fn close(&mut self, conn: ConnId) {
        self.start_closing(conn);
    }

    fn encrypt(&mut self, on: bool) {
        self.encrypts = on;
    }

    fn channel(&self, conn: ConnId) -> Channel {
        self.connections.get(&conn).map_or(Channel::Plain, Connection::channel)
    }

    fn open(&mut self, path: &str, how: OpenHow) -> io::Result<FileHandle> {
        self.files.open(&self.dir, path, how)
    }

    fn file_len(&mut self, file: FileHandle) -> io::Result<u64> {
        self.files.len(file)
    }

    fn read(&mut self, file: FileHandle, offset: u64, len: usize, op: OpId) {
        self.start_disk(DiskOp::read(self.files.target(file), offset, len, op));
    }

    fn parts(&mut self) -> Vec<Buf> {
        self.spares.take_parts()
    }

    fn write(&mut self, file: FileHandle, offset: u64, parts: Vec<Buf>, durability: Durability, op: OpId) {
        self.start_disk(DiskOp::write(self.files.target(file), offset, parts, durability, op));
    }

    fn sync(&mut self, file: FileHandle, op: OpId) {
        self.start_disk(DiskOp::sync(self.files.target(file), op));
    }

    fn punch(&mut self, file: FileHandle, offset: u64, len: u64, op: OpId) {
        self.start_disk(DiskOp::punch(self.files.target(file), offset, len, op));
    }

    fn allocate(&mut self, file: FileHandle, len: u64, op: OpId) {
        self.start_disk(DiskOp::allocate(self.files.target(file), len, op));
    }

    fn put_blob(&mut self, path: &str, bytes: Vec<u8>, op: OpId) {
        self.blobs.put(self.dir.join(path), bytes, op);
    }

    fn get_blob(&mut self, path: &str) -> io::Result<Option<Vec<u8>>> {
        disk::none_if_missing(std::fs::read(self.dir.join(path)))
    }

    fn remove(&mut self, path: &str) -> io::Result<()> {
        disk::none_if_missing(std::fs::remove_file(self.dir.join(path))).map(|_| ())
    }

    fn list(&mut self, dir: &str) -> io::Result<Vec<String>> {
        disk::list(&self.dir.join(dir))
    }

    fn disk_space(&mut self) -> io::Result<(u64, u64)> {
        crate::host::space(&self.dir)
    }

    fn set_timer(&mut self, at: Timestamp, id: TimerId) {
        self.next_timer += 1;
        self.timers.push(Reverse((at, self.next_timer, id)));
    }

    fn buffer(&mut self, len: usize) -> BufMut {
        let mut buf = BufMut::for_disk(len);
        buf.fill(0);
        buf
    }

    fn stop(&mut self, outcome: Result<(), String>) {
        self.stop.get_or_insert(outcome);
    }
}
