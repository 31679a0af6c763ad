//! The seam between state machines and the world.
//!
//! Every server and the client core is a [`Node`]: synchronous code that takes one [`Event`] at a time and
//! speaks to the world only through [`Io`]. Two drivers run nodes: [`crate::ring`] (io_uring, one thread per
//! core) in production, and the deterministic simulator in `tests/`. A node holds no clock, socket, file or
//! thread, so one seed reproduces one run.
//!
//! Rules every driver keeps:
//! - `handle` is called with one event at a time, on one thread, never re-entered;
//! - frames sent on one connection arrive whole and in order, or the connection closes;
//! - after `Closed` no further event of that connection comes; sends to it are dropped silently;
//! - every disk operation completes exactly once with `Event::Disk`, in any order;
//! - operations submitted inside one `handle` call are submitted as one batch after it returns.

use crate::buf::{Buf, BufMut};
use crate::tls::Channel;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// A connection, unique for the life of the node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ConnId(pub u64);

/// An open file of the node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct FileHandle(pub u32);

/// Chosen by the node; comes back with the completion.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct OpId(pub u64);

/// Chosen by the node; comes back when the timer fires.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TimerId(pub u64);

/// Monotonic time in nanoseconds since an arbitrary start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    pub fn after(self, wait: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(wait.as_nanos() as u64))
    }

    /// Time since `earlier`; zero when `earlier` lies in the future.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Bytes of the fixed header in front of every frame.
pub const HEAD_BYTES: usize = 64;

/// A message as the network sees it: header, small metadata, payload.
#[derive(Clone, Debug, PartialEq)]
pub struct RawFrame {
    pub head: [u8; HEAD_BYTES],
    /// Encoded metadata; not block-aligned.
    pub meta: Buf,
    /// Payload; received into its own aligned buffer, so it can be written with O_DIRECT as it is.
    pub payload: Buf,
}

/// Lengths of what follows a header, as told by the header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BodyLength {
    pub meta_bytes: usize,
    pub payload_bytes: usize,
}

/// Reads the body lengths out of a header, or says why the header is not one. The wire crate provides it,
/// the driver calls it: the driver knows nothing else about the format.
pub type Framing = fn(&[u8; HEAD_BYTES]) -> Result<BodyLength, String>;

/// Whether a write completes when the device has it (`Durable`, as O_DSYNC) or needs a later `sync`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    Durable,
    Buffered,
}

/// How to open a file of the node. Paths are relative to the node's directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenHow {
    pub create: bool,
    /// O_DIRECT: offsets, lengths and buffers must be multiples of [`crate::BLOCK_BYTES`].
    pub direct: bool,
    pub read_only: bool,
}

/// What happened.
#[derive(Debug)]
pub enum Event<M> {
    /// First event of a node.
    Start,
    Accepted {
        conn: ConnId,
        peer: SocketAddr,
    },
    /// A connection asked for with [`Io::connect`] stands. (Frames may be sent before this.)
    Connected {
        conn: ConnId,
    },
    Frame {
        conn: ConnId,
        frame: RawFrame,
    },
    /// The connection is gone, or could not be made. `why` is for people.
    Closed {
        conn: ConnId,
        why: String,
    },
    /// A disk operation ended. `Ok` holds the data of a read (full length; a read beyond the end of a file
    /// is zero-filled) and an empty buffer otherwise.
    Disk {
        op: OpId,
        result: io::Result<Buf>,
    },
    Timer {
        id: TimerId,
    },
    /// From another thread of this process (for example a FUSE event loop).
    Message(M),
    /// The process was asked to end (SIGTERM). The node finishes what it must and calls [`Io::stop`].
    Shutdown,
}

/// A state machine that a driver can run.
pub trait Node {
    type Message: Send + 'static;
    fn handle(&mut self, event: Event<Self::Message>, io: &mut dyn Io);
}

/// What a node can ask of the world.
pub trait Io {
    /// Monotonic.
    fn now(&self) -> Timestamp;
    /// Unix time in milliseconds; for file times and event logs only, never for protocol decisions.
    fn wall_ms(&self) -> u64;
    fn random(&mut self) -> u64;

    /// Listens; port 0 takes any. Returns the address bound. Blocking, for a while if the port is in use: only while
    /// starting.
    fn listen(&mut self, at: SocketAddr) -> io::Result<SocketAddr>;
    /// Starts connecting; `Connected` or `Closed` follows.
    fn connect(&mut self, to: SocketAddr) -> ConnId;
    /// Queues a frame. Never blocks; order is kept.
    fn send(&mut self, conn: ConnId, frame: RawFrame);
    /// Bytes queued and not yet taken by the kernel; for back-pressure.
    fn unsent_bytes(&self, conn: ConnId) -> usize;
    /// Closes after the queued frames are sent. `Closed` follows.
    fn close(&mut self, conn: ConnId);
    /// Whether connections made from now on are encrypted ([`crate::tls`]); those that stand stay as they are. What is
    /// accepted is as the caller wants it.
    fn encrypt(&mut self, on: bool);
    /// How a connection carries its frames; known when the first frame has come.
    fn channel(&self, conn: ConnId) -> Channel;

    /// Opens a file. Blocking: only while starting.
    fn open(&mut self, path: &str, how: OpenHow) -> io::Result<FileHandle>;
    /// Length of an open file in bytes. Blocking: only while starting.
    fn file_len(&mut self, file: FileHandle) -> io::Result<u64>;
    fn read(&mut self, file: FileHandle, offset: u64, len: usize, op: OpId);
    /// An empty list for the parts of a [`Io::write`]: one that an ended write gave back, if there is any.
    fn parts(&mut self) -> Vec<Buf> {
        Vec::new()
    }
    /// Writes `parts` one behind the other at `offset`.
    fn write(&mut self, file: FileHandle, offset: u64, parts: Vec<Buf>, durability: Durability, op: OpId);
    /// Makes all completed `Buffered` writes of the file durable.
    fn sync(&mut self, file: FileHandle, op: OpId);
    /// Gives the space of a range back; it then reads as zeros.
    fn punch(&mut self, file: FileHandle, offset: u64, len: u64, op: OpId);
    /// Allocates room up to `len` bytes (file grows; existing data stays).
    fn allocate(&mut self, file: FileHandle, len: u64, op: OpId);

    /// Replaces a small file atomically and durably (written aside, synced, renamed).
    fn put_blob(&mut self, path: &str, bytes: Vec<u8>, op: OpId);
    /// Reads a small file; `None` when there is none. Blocking: only while starting.
    fn get_blob(&mut self, path: &str) -> io::Result<Option<Vec<u8>>>;
    /// Removes a file if it is there. Blocking: only while starting, or for files off the request path.
    fn remove(&mut self, path: &str) -> io::Result<()>;
    /// Names of the files below a directory. Blocking: only while starting.
    fn list(&mut self, dir: &str) -> io::Result<Vec<String>>;
    /// Total and free bytes of the file system below the node's directory.
    fn disk_space(&mut self) -> io::Result<(u64, u64)>;

    /// Fires once, no earlier than `at`. A timer can't be taken back: a node ignores those it no longer wants.
    fn set_timer(&mut self, at: Timestamp, id: TimerId);

    /// An aligned zeroed buffer from the shard's pool.
    fn buffer(&mut self, len: usize) -> BufMut;

    /// Ends the node after what is queued has been sent; the driver returns `outcome`.
    fn stop(&mut self, outcome: Result<(), String>);
}
