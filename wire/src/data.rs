//! Metadata of the data path: fixed little-endian layouts, since they are built and read for every request.
//!
//! Each request and reply that moves payload carries one CRC-32 per 4 KiB block, computed by the client and
//! stored beside the block: the same number is checked by every CS before it writes and before it sends, and
//! by the client on arrival. Payload and offsets are whole blocks.
//!
//! [`DataMeta`], 32 bytes, then (with [`flags::GRANT`]) the grant, then the block CRCs:
//! | bytes | field |
//! |---|---|
//! | 0..8 | lease of the file (fencing: a CS refuses one smaller than the largest it has seen for the chunk) |
//! | 8..16 | sequence (Forward: of this write; Prepare: 0; replies: highest stored) |
//! | 16..24 | committed: all sequences up to it are on all in-sync replicas |
//! | 24..28 | number of block CRCs |
//! | 28..32 | bytes of the grant in front of them |
//!
//! [`Grant`]: count u8, pad 7, then per replica: cs u32, port u16, role u8, pad u8, IPv6 (or mapped IPv4) 16 bytes.

use crate::{CsId, LeaseId, Sequence};
use shards::{BLOCK_BYTES, Buf, BufMut};
use smallvec::SmallVec;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The CRC of one block as stored and sent. 0 means "never written: zeros"; a real CRC of 0 becomes 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BlockCrc(pub u32);

impl BlockCrc {
    pub const HOLE: BlockCrc = BlockCrc(0);
    /// Of a block that no replica holds any more. Zeros stand for it on disks and between chunk servers; they are never
    /// returned to a client.
    pub const GONE: BlockCrc = BlockCrc(u32::MAX - 1);

    /// Never one of those above.
    pub fn of(block: &[u8]) -> BlockCrc {
        match BlockCrc(crc32fast::hash(block)) {
            Self::HOLE => BlockCrc(1),
            Self::GONE => BlockCrc(u32::MAX - 2),
            crc => crc,
        }
    }

    /// Whether `block` is what was summed. A hole, and a block that is gone, match only zeros.
    pub fn matches(self, block: &[u8]) -> bool {
        match self {
            Self::HOLE | Self::GONE => block.iter().all(|&b| b == 0),
            crc => Self::of(block) == crc,
        }
    }
}

/// Checksums of the blocks of a request: those of a small one take no memory of their own.
pub type BlockCrcs = SmallVec<[BlockCrc; 4]>;

/// Block CRCs of a payload of whole blocks.
pub fn block_crcs(payload: &[u8]) -> impl Iterator<Item = BlockCrc> + '_ {
    payload.chunks(BLOCK_BYTES).map(BlockCrc::of)
}

/// Index of the first block that does not match, if any.
pub fn first_mismatch(payload: &[u8], crcs: &[BlockCrc]) -> Option<usize> {
    if payload.len() != crcs.len() * BLOCK_BYTES {
        return Some(payload.len() / BLOCK_BYTES);
    }
    payload.chunks(BLOCK_BYTES).zip(crcs).position(|(block, crc)| !crc.matches(block))
}

/// What a replica is to its chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[repr(u8)]
pub enum Role {
    /// Holds all acknowledged writes; the first in-sync replica of the list is the primary.
    InSync = 0,
    /// Being filled by the primary; receives new writes, does not count for acks.
    Learner = 1,
    /// Holds old data; not used until caught up.
    Stale = 2,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Replica {
    pub cs: CsId,
    /// Address of the shard that owns the chunk on that CS.
    pub addr: SocketAddr,
    pub role: Role,
}

/// The replica set of a chunk at an epoch, as the MDS gave it to the client or the CS.
/// The epoch itself travels in the frame header.
#[derive(Clone, PartialEq, Eq, Debug, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Grant {
    pub replicas: Vec<Replica>,
    /// Writes are accepted while at least this many in-sync replicas are in the set.
    pub min_replicas: u8,
}

impl Grant {
    pub fn in_sync(&self) -> impl Iterator<Item = &Replica> {
        self.replicas.iter().filter(|r| r.role == Role::InSync)
    }
    pub fn primary(&self) -> Option<&Replica> {
        self.in_sync().next()
    }
}

const META_BYTES: usize = 32;
const REPLICA_BYTES: usize = 24;
pub const MAX_REPLICAS: usize = 15;

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DataMeta {
    pub lease: LeaseId,
    pub sequence: Sequence,
    pub committed: Sequence,
    pub grant: Option<Grant>,
    pub crcs: BlockCrcs,
}

impl DataMeta {
    pub fn encode(&self) -> Buf {
        let grant_len = self.grant.as_ref().map_or(0, |g| 8 + REPLICA_BYTES * g.replicas.len());
        let mut out = BufMut::metadata(META_BYTES + grant_len + 4 * self.crcs.len());
        out[0..8].copy_from_slice(&self.lease.0.to_le_bytes());
        out[8..16].copy_from_slice(&self.sequence.0.to_le_bytes());
        out[16..24].copy_from_slice(&self.committed.0.to_le_bytes());
        out[24..28].copy_from_slice(&(self.crcs.len() as u32).to_le_bytes());
        out[28..32].copy_from_slice(&(grant_len as u32).to_le_bytes());
        let (grant, crcs) = out[META_BYTES..].split_at_mut(grant_len);
        if let Some(g) = &self.grant {
            encode_grant(g, grant);
        }
        for (to, crc) in crcs.chunks_exact_mut(4).zip(&self.crcs) {
            to.copy_from_slice(&crc.0.to_le_bytes());
        }
        out.freeze()
    }

    pub fn decode(bytes: &[u8]) -> Result<DataMeta, String> {
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        if bytes.len() < META_BYTES {
            return Err(format!("{} bytes, at least {META_BYTES} expected", bytes.len()));
        }
        let (crc_count, grant_len) = (u32_at(24) as usize, u32_at(28) as usize);
        let expected =
            META_BYTES.checked_add(grant_len).and_then(|n| n.checked_add(crc_count.checked_mul(4)?));
        if expected != Some(bytes.len()) {
            return Err(format!(
                "{crc_count} checksums and a grant of {grant_len} bytes in {} bytes",
                bytes.len()
            ));
        }
        let grant = if grant_len == 0 {
            None
        } else {
            Some(decode_grant(&bytes[META_BYTES..META_BYTES + grant_len])?)
        };
        let crcs = bytes[META_BYTES + grant_len..]
            .chunks_exact(4)
            .map(|c| BlockCrc(u32::from_le_bytes(c.try_into().expect("4 bytes"))))
            .collect();
        Ok(DataMeta {
            lease: LeaseId(u64_at(0)),
            sequence: Sequence(u64_at(8)),
            committed: Sequence(u64_at(16)),
            grant,
            crcs,
        })
    }
}

fn encode_grant(grant: &Grant, out: &mut [u8]) {
    assert!(grant.replicas.len() <= MAX_REPLICAS, "{} replicas", grant.replicas.len());
    let (head, replicas) = out.split_at_mut(8);
    head.copy_from_slice(&[grant.replicas.len() as u8, grant.min_replicas, 0, 0, 0, 0, 0, 0]);
    for (r, out) in grant.replicas.iter().zip(replicas.chunks_exact_mut(REPLICA_BYTES)) {
        out[0..4].copy_from_slice(&r.cs.0.to_le_bytes());
        out[4..6].copy_from_slice(&r.addr.port().to_le_bytes());
        out[6..8].copy_from_slice(&[r.role as u8, 0]);
        let ip = match r.addr.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        out[8..24].copy_from_slice(&ip.octets());
    }
}

fn decode_grant(bytes: &[u8]) -> Result<Grant, String> {
    if bytes.len() < 8
        || bytes.len() != 8 + REPLICA_BYTES * bytes[0] as usize
        || bytes[0] as usize > MAX_REPLICAS
    {
        return Err(format!("grant of {} bytes", bytes.len()));
    }
    let mut replicas = Vec::with_capacity(bytes[0] as usize);
    for r in bytes[8..].chunks_exact(REPLICA_BYTES) {
        let role = match r[6] {
            0 => Role::InSync,
            1 => Role::Learner,
            2 => Role::Stale,
            other => return Err(format!("replica role {other}")),
        };
        let ip = Ipv6Addr::from(<[u8; 16]>::try_from(&r[8..24]).expect("16 bytes"));
        let ip = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4);
        replicas.push(Replica {
            cs: CsId(u32::from_le_bytes(r[0..4].try_into().expect("4 bytes"))),
            addr: SocketAddr::new(ip, u16::from_le_bytes([r[4], r[5]])),
            role,
        });
    }
    Ok(Grant { replicas, min_replicas: bytes[1] })
}

/// A stored write that may not be on all replicas (answer to Prepare): its blocks are `first..first+count`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct TailEntry {
    pub sequence: Sequence,
    pub first_block: u32,
    pub block_count: u32,
}

/// Metadata of Prepared (rkyv): what a replica holds of a chunk.
#[derive(Clone, PartialEq, Eq, Debug, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Prepared {
    /// The replica knows its copy to be damaged.
    pub damaged: bool,
    /// 0: nothing was ever stored.
    pub last_sequence: Sequence,
    pub committed: Sequence,
    /// Stored writes above `committed`; may be larger than true, never smaller.
    pub tail: Vec<TailEntry>,
}
