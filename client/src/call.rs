//! What programs ask of a [`crate::ClientCore`]: one message per request, each with its completion.
//!
//! A completion runs on the core's thread and must not block: it hands the result on (a channel, a FUSE reply).

use crate::core::CacheCounts;
use crate::error::Result;
use ::metrics::Histogram;
use shards::Buf;
use wire::mds_api::{AttrChange, ChunkMap, FileAttr, FileKind, LeaseMode, MdsReply, MdsRequest};
use wire::{ClientId, FileId};

/// Called exactly once with the outcome.
pub type Done<T> = Box<dyn FnOnce(Result<T>) + Send>;

/// Where the chunks of a file lie.
#[derive(Clone, PartialEq, Debug)]
pub struct FileMap {
    pub attr: FileAttr,
    /// Existing chunks in order; holes are left out.
    pub chunks: Vec<ChunkMap>,
}

/// A file opened or created.
#[derive(Clone, PartialEq, Debug)]
pub struct OpenFile {
    pub attr: FileAttr,
}

/// Data or hole, for [`Call::Seek`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SeekFor {
    Data,
    Hole,
}

/// Counters since the start of the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    pub reads: u64,
    pub writes: u64,
    pub read_bytes: u64,
    pub write_bytes: u64,
    /// Requests that had to be sent again.
    pub retries: u64,
    /// Chunk maps asked for anew after a failure.
    pub refreshes: u64,
    pub checksum_errors: u64,
    pub connects: u64,
    pub mds_requests: u64,
    /// Times the session moved to another metadata server or was opened anew.
    pub mds_connects: u64,
    /// Reads of edge blocks for writes that do not cover whole blocks.
    pub edge_reads: u64,
    /// Longest time one read or write of a program took.
    pub longest_us: u64,
    /// Reads and writes of programs, and requests to metadata servers.
    pub read_times: Histogram,
    pub write_times: Histogram,
    pub mds_times: Histogram,
    /// Of the read cache, if there is one.
    pub cache: Option<CacheStats>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CacheState {
    Starting,
    Active,
    Ending,
    /// The cache file can't be used: the log says why.
    Off,
}

/// What is shown of a read cache. Counts begin with the mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheStats {
    pub state: CacheState,
    pub file_bytes: u64,
    pub block_bytes: u64,
    pub blocks: u64,
    pub used_blocks: u64,
    pub counts: CacheCounts,
    pub io_errors: u64,
}

/// A request. `client` fields inside `MdsRequest`s are filled in by the core.
pub enum Call {
    /// Completes when the session with the cluster stands, or fails with the reason why it can't.
    Ready {
        done: Done<ClientId>,
    },
    /// Any request to the metadata service, as it is.
    Mds {
        request: MdsRequest,
        done: Done<MdsReply>,
    },

    Lookup {
        parent: FileId,
        name: String,
        done: Done<FileAttr>,
    },
    GetAttr {
        file: FileId,
        done: Done<FileAttr>,
    },
    /// Changes attributes; a size goes through [`Call::Truncate`]'s machinery.
    SetAttr {
        file: FileId,
        change: AttrChange,
        done: Done<FileAttr>,
    },
    /// Entries of a directory after the name `after`, with sizes as this client knows them.
    ReadDir {
        directory: FileId,
        after: String,
        limit: u32,
        done: Done<(Vec<wire::mds_api::DirEntry>, bool)>,
    },

    Open {
        file: FileId,
        mode: LeaseMode,
        done: Done<OpenFile>,
    },
    /// Creates a file and opens it for writing.
    Create {
        parent: FileId,
        name: String,
        mode: u32,
        uid: u32,
        gid: u32,
        exclusive: bool,
        done: Done<OpenFile>,
    },
    /// Creates a directory, a symlink, or a file without opening it.
    Make {
        parent: FileId,
        name: String,
        kind: FileKind,
        mode: u32,
        uid: u32,
        gid: u32,
        target: String,
        done: Done<FileAttr>,
    },
    /// One `Close` per `Open`/`Create`, with the same mode (`Create` opens for writing).
    Close {
        file: FileId,
        mode: LeaseMode,
        done: Done<()>,
    },

    /// At most `len` bytes; fewer at the end of the file.
    Read {
        file: FileId,
        offset: u64,
        len: usize,
        done: Done<Buf>,
    },
    /// `sync`: also record the size (O_SYNC, O_DSYNC).
    Write {
        file: FileId,
        offset: u64,
        data: Buf,
        how: WriteHow,
        done: Done<()>,
    },
    /// All writes handed in before are durable and the size is recorded.
    Sync {
        file: FileId,
        done: Done<()>,
    },
    /// Zeroes a range. `keep_size`: does not grow the file.
    Zero {
        file: FileId,
        offset: u64,
        len: u64,
        keep_size: bool,
        done: Done<()>,
    },
    /// Makes the file at least `offset + len` long (thin: takes no space).
    Reserve {
        file: FileId,
        offset: u64,
        len: u64,
        done: Done<()>,
    },
    /// Clears the set-uid and set-gid bits of an open file.
    DropPrivileges {
        file: FileId,
        done: Done<()>,
    },
    /// First position of data or of a hole at or behind `offset`; `None` behind the end.
    Seek {
        file: FileId,
        offset: u64,
        what: SeekFor,
        done: Done<Option<u64>>,
    },
    Map {
        file: FileId,
        done: Done<FileMap>,
    },
    Stats {
        done: Done<Stats>,
    },
}

/// What a write is to be beside durable when it is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WriteHow {
    /// The size it reaches is durable too.
    pub sync: bool,
    /// Set-uid and set-gid bits are cleared first.
    pub drops_privileges: bool,
    /// It is answered at once, and durable with the next `Sync` or the last `Close`, which say
    /// if it failed, or half a second later.
    pub may_wait: bool,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self {
            Call::Ready { .. } => "Ready",
            Call::Mds { .. } => "Mds",
            Call::Lookup { .. } => "Lookup",
            Call::GetAttr { .. } => "GetAttr",
            Call::SetAttr { .. } => "SetAttr",
            Call::ReadDir { .. } => "ReadDir",
            Call::Open { .. } => "Open",
            Call::Create { .. } => "Create",
            Call::Make { .. } => "Make",
            Call::Close { .. } => "Close",
            Call::Read { .. } => "Read",
            Call::Write { .. } => "Write",
            Call::Sync { .. } => "Sync",
            Call::Zero { .. } => "Zero",
            Call::Reserve { .. } => "Reserve",
            Call::DropPrivileges { .. } => "DropPrivileges",
            Call::Seek { .. } => "Seek",
            Call::Map { .. } => "Map",
            Call::Stats { .. } => "Stats",
        };
        f.write_str(name)
    }
}
