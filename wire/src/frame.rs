//! The frame: a fixed 64-byte little-endian header, small metadata, payload.
//!
//! | bytes | field | meaning |
//! |---|---|---|
//! | 0..4 | magic | `PSF1` |
//! | 4..6 | version | protocol version of the sender's encoding |
//! | 6..8 | kind | what the message is ([`Kind`]) |
//! | 8..10 | flags | [`flags`] |
//! | 10..12 | status | [`crate::Status`] of a reply; 0 in requests |
//! | 12..16 | meta_len | bytes of metadata behind the header, at most [`MAX_META_BYTES`] |
//! | 16..20 | payload_len | bytes of payload behind the metadata, at most [`MAX_PAYLOAD_BYTES`] |
//! | 20..24 | meta_crc | CRC-32 (IEEE) of the metadata. Payload is covered by per-block CRCs *inside* the metadata, so each payload byte is summed once per hop |
//! | 24..32 | request | chosen by the asker, repeated in the reply |
//! | 32..40 | chunk | [`ChunkId`] or 0 |
//! | 40..44 | epoch | [`Epoch`] or 0 |
//! | 44..48 | offset | byte offset within the chunk |
//! | 48..52 | length | bytes asked for (reads, discards) |
//! | 52..60 | trace | [`TraceId`]: follows a user's request through all processes; 0 = none |
//! | 60..64 | header_crc | CRC-32 of bytes 0..60 |
//!
//! Invariant: a frame that decodes has a known kind, lengths within bounds and matching header and metadata
//! CRCs; anything else closes the connection with a reason and never panics.

use crate::{ChunkId, DataMeta, Epoch, Status, TraceId};
use shards::{BodyLength, Buf, HEAD_BYTES, RawFrame};

pub const MAGIC: [u8; 4] = *b"PSF1";
// An accepting side tells frames from TLS by the first byte.
const _: () = assert!(MAGIC[0] != shards::tls::FIRST_BYTE);
/// Newest protocol version spoken. Hello negotiates the highest common one.
pub const VERSION: u16 = 1;
/// Oldest protocol version still understood.
pub const VERSION_OLDEST: u16 = 1;
pub const MAX_META_BYTES: usize = 4 << 20;
pub const MAX_PAYLOAD_BYTES: usize = 4 << 20;

/// Flag bits of the header.
pub mod flags {
    /// The metadata carries the chunk's [`crate::Grant`] (replica set), for a CS that may not know it yet.
    pub const GRANT: u16 = 1;
    /// Forward: the secondary must not hold the chunk yet; if it does, it refuses and the primary reconciles.
    pub const EXPECT_EMPTY: u16 = 2;
    /// Forward: fills a learner from existing data; carries no new client write.
    pub const FILL: u16 = 4;
    /// Sums: read the data and verify it, not only the tables.
    pub const DEEP: u16 = 8;
    /// The frame asks for no reply.
    pub const ONE_WAY: u16 = 16;
    /// Stored, of a Forward with FILL: clients work at this shard, so the next ones should come slowly.
    pub const CLIENTS_WORK: u16 = 32;
    /// Read: the checksums of the blocks are asked for, of up to 16 MiB, and no data.
    pub const NO_DATA: u16 = 64;
    /// Write, Read, Discard, Forward: where the time goes is to be remembered, for who asks with Traces.
    pub const TRACE: u16 = 128;
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $value:literal),+ $(,)?) => {
        /// What a message is.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(u16)]
        pub enum Kind { $($(#[$doc])* $name = $value),+ }

        impl Kind {
            pub const ALL: &'static [Kind] = &[$(Kind::$name),+];
            pub fn from_u16(value: u16) -> Option<Kind> {
                match value { $($value => Some(Kind::$name),)+ _ => None }
            }
        }
    };
}

kinds! {
    // Handshake ([`crate::hello`]).
    Hello = 1, Challenge = 2, Proof = 3, Welcome = 4, Refused = 5,
    /// Answered by Pong with the same request id; keeps a silent peer from looking dead.
    Ping = 6, Pong = 7,
    // A node that knows the password gets a key ([`crate::join`]).
    PasswordSalt = 8, PasswordSaltReply = 9, Try = 10, TryReply = 11, JoinProof = 12, Right = 13,
    /// Asked of any server by tools ([`crate::identity`]).
    Identify = 14, Identity = 15,
    // Client to primary ([`crate::data`]).
    Write = 16, WriteDone = 17, Read = 18, ReadDone = 19,
    /// Zeroes `length` bytes at `offset` and gives their space back. Block-aligned.
    Discard = 20, DiscardDone = 21,
    /// Block checksums of a replica, for comparison.
    Sums = 22, SumsDone = 23,
    /// Counters of a CS shard, for administrators (metadata: [`crate::cs_api::ShardStat`]).
    ShardStat = 24, ShardStatDone = 25,
    /// What a CS shard remembers of the request of the header's trace; 0: of all (metadata: `Vec` of [`crate::RequestTrace`]).
    Traces = 26, TracesDone = 27,
    // Primary to secondary ([`crate::data`]).
    Forward = 32, Stored = 33, Prepare = 34, Prepared = 35, CommitNote = 36,
    ForwardDiscard = 37,
    // Client and tools to MDS ([`crate::mds_api`]).
    MdsRequest = 64, MdsReply = 65,
    // CS to MDS ([`crate::cs_api`]).
    CsRequest = 72, CsReply = 73,
    /// MDS to CS, unasked.
    CsCommand = 74,
    /// MDS to client, unasked ([`crate::mds_api::ClientNote`]).
    ClientNote = 75,
    // MDS to MDS.
    Raft = 80, RaftSnapshot = 81, RaftSnapshotDone = 82, RaftSnapshotTaken = 83,
}

/// The decoded header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    pub version: u16,
    pub kind: Kind,
    pub flags: u16,
    pub status: Status,
    pub request: u64,
    pub chunk: ChunkId,
    pub epoch: Epoch,
    pub offset_bytes: u32,
    pub length_bytes: u32,
    pub trace: TraceId,
}

impl Head {
    pub fn new(kind: Kind, request: u64) -> Self {
        Head {
            version: VERSION,
            kind,
            flags: 0,
            status: Status::Ok,
            request,
            chunk: ChunkId(0),
            epoch: Epoch(0),
            offset_bytes: 0,
            length_bytes: 0,
            trace: TraceId(0),
        }
    }

    /// A reply to this message: same request, chunk, epoch, offset and trace.
    pub fn reply(&self, kind: Kind, status: Status) -> Head {
        Head { version: VERSION, kind, flags: 0, status, length_bytes: 0, ..*self }
    }

    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// A decoded frame. `meta` has matched its CRC; `payload` has not been looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    pub head: Head,
    pub meta: Buf,
    pub payload: Buf,
}

/// Why bytes are not a frame.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    #[error("not a pstorage frame: magic {0:02x?}, expected {MAGIC:02x?}")]
    Magic([u8; 4]),
    #[error("header checksum {found:08x}, computed {computed:08x}")]
    HeaderCrc { found: u32, computed: u32 },
    #[error("metadata checksum {found:08x}, computed {computed:08x}")]
    MetaCrc { found: u32, computed: u32 },
    #[error("protocol version {0}; this side understands {VERSION_OLDEST} to {VERSION}")]
    Version(u16),
    #[error("unknown message kind {0}")]
    Kind(u16),
    #[error("unknown status {0}")]
    Status(u16),
    #[error("{what} of {found} bytes, the limit is {limit}")]
    TooLong { what: &'static str, found: usize, limit: usize },
    #[error("lengths in the header and of the body differ")]
    Lengths,
    #[error("metadata of {kind:?}: {why}")]
    Meta { kind: Kind, why: String },
}

fn u16_at(head: &[u8; HEAD_BYTES], at: usize) -> u16 {
    u16::from_le_bytes([head[at], head[at + 1]])
}
fn u32_at(head: &[u8; HEAD_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"))
}
fn u64_at(head: &[u8; HEAD_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(head[at..at + 8].try_into().expect("8 bytes"))
}

/// Lengths of the body behind a header; checks magic, header CRC and limits. The driver's [`shards::Framing`].
pub fn framing(head: &[u8; HEAD_BYTES]) -> Result<BodyLength, String> {
    check_head(head).map_err(|e| e.to_string())
}

fn check_head(head: &[u8; HEAD_BYTES]) -> Result<BodyLength, FrameError> {
    if head[0..4] != MAGIC {
        return Err(FrameError::Magic([head[0], head[1], head[2], head[3]]));
    }
    let (found, computed) = (u32_at(head, 60), crc32fast::hash(&head[..60]));
    if found != computed {
        return Err(FrameError::HeaderCrc { found, computed });
    }
    let (meta_bytes, payload_bytes) = (u32_at(head, 12) as usize, u32_at(head, 16) as usize);
    if meta_bytes > MAX_META_BYTES {
        return Err(FrameError::TooLong { what: "metadata", found: meta_bytes, limit: MAX_META_BYTES });
    }
    if payload_bytes > MAX_PAYLOAD_BYTES {
        return Err(FrameError::TooLong { what: "payload", found: payload_bytes, limit: MAX_PAYLOAD_BYTES });
    }
    Ok(BodyLength { meta_bytes, payload_bytes })
}

impl Frame {
    pub fn new(head: Head, meta: &[u8], payload: Buf) -> Frame {
        Frame { head, meta: Buf::metadata(meta), payload }
    }

    /// A frame of the data path.
    pub fn data(head: Head, meta: &DataMeta, payload: Buf) -> Frame {
        Frame { head, meta: meta.encode(), payload }
    }

    pub fn bare(head: Head) -> Frame {
        Frame { head, meta: Buf::empty(), payload: Buf::empty() }
    }

    /// Encodes. Panics if metadata or payload exceed the limits (a defect of the sender, not bad input).
    pub fn encode(&self) -> RawFrame {
        assert!(self.meta.len() <= MAX_META_BYTES, "metadata of {} bytes", self.meta.len());
        assert!(self.payload.len() <= MAX_PAYLOAD_BYTES, "payload of {} bytes", self.payload.len());
        let h = &self.head;
        let mut head = [0u8; HEAD_BYTES];
        head[0..4].copy_from_slice(&MAGIC);
        head[4..6].copy_from_slice(&h.version.to_le_bytes());
        head[6..8].copy_from_slice(&(h.kind as u16).to_le_bytes());
        head[8..10].copy_from_slice(&h.flags.to_le_bytes());
        head[10..12].copy_from_slice(&(h.status as u16).to_le_bytes());
        head[12..16].copy_from_slice(&(self.meta.len() as u32).to_le_bytes());
        head[16..20].copy_from_slice(&(self.payload.len() as u32).to_le_bytes());
        head[20..24].copy_from_slice(&crc32fast::hash(&self.meta).to_le_bytes());
        head[24..32].copy_from_slice(&h.request.to_le_bytes());
        head[32..40].copy_from_slice(&h.chunk.0.to_le_bytes());
        head[40..44].copy_from_slice(&h.epoch.0.to_le_bytes());
        head[44..48].copy_from_slice(&h.offset_bytes.to_le_bytes());
        head[48..52].copy_from_slice(&h.length_bytes.to_le_bytes());
        head[52..60].copy_from_slice(&h.trace.0.to_le_bytes());
        let crc = crc32fast::hash(&head[..60]);
        head[60..64].copy_from_slice(&crc.to_le_bytes());
        RawFrame { head, meta: self.meta.clone(), payload: self.payload.clone() }
    }

    pub fn decode(raw: RawFrame) -> Result<Frame, FrameError> {
        let h = &raw.head;
        let lengths = check_head(h)?;
        if lengths.meta_bytes != raw.meta.len() || lengths.payload_bytes != raw.payload.len() {
            return Err(FrameError::Lengths);
        }
        let (found, computed) = (u32_at(h, 20), crc32fast::hash(&raw.meta));
        if found != computed {
            return Err(FrameError::MetaCrc { found, computed });
        }
        let kind = Kind::from_u16(u16_at(h, 6)).ok_or(FrameError::Kind(u16_at(h, 6)))?;
        let version = u16_at(h, 4);
        // A Hello may come from any version: refusing it is the negotiation's task, with a message.
        if !(VERSION_OLDEST..=VERSION).contains(&version) && !matches!(kind, Kind::Hello | Kind::Refused) {
            return Err(FrameError::Version(version));
        }
        let head = Head {
            version,
            kind,
            flags: u16_at(h, 8),
            status: Status::from_u16(u16_at(h, 10)).ok_or(FrameError::Status(u16_at(h, 10)))?,
            request: u64_at(h, 24),
            chunk: ChunkId(u64_at(h, 32)),
            epoch: Epoch(u32_at(h, 40)),
            offset_bytes: u32_at(h, 44),
            length_bytes: u32_at(h, 48),
            trace: TraceId(u64_at(h, 52)),
        };
        Ok(Frame { head, meta: raw.meta, payload: raw.payload })
    }
}
