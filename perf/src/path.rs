//! The request path of decision 001, in its smallest form: a 64-byte header and a 4 KiB payload come over TCP, the
//! payload is written with O_DIRECT and O_DSYNC at a random block of a prewritten file, a 64-byte header goes back.
//! `path-ring` serves it on our runtime, `path-glommio` on glommio; `path-compare` is the client of both.
//!
//! Header: payload length u32 at 0, kind u32 at 4, request id u64 at 8, CPU time of the server in ns u64 at 16
//! and its user part at 24 (answers to [`REPORT`] only).

use crate::cpu::Cpu;
use shards::{BLOCK_BYTES, BodyLength, HEAD_BYTES};

/// Write the payload somewhere.
pub const WRITE: u32 = 1;
/// Answer with the CPU time used so far.
pub const REPORT: u32 = 2;

/// Name of the prewritten file.
pub const FILE: &str = "path.data";

pub type Head = [u8; HEAD_BYTES];

pub fn head(kind: u32, payload_bytes: usize, id: u64, cpu: Cpu) -> Head {
    let mut head = [0; HEAD_BYTES];
    head[0..4].copy_from_slice(&(payload_bytes as u32).to_le_bytes());
    head[4..8].copy_from_slice(&kind.to_le_bytes());
    head[8..16].copy_from_slice(&id.to_le_bytes());
    head[16..24].copy_from_slice(&cpu.total_ns.to_le_bytes());
    head[24..32].copy_from_slice(&cpu.user_ns.to_le_bytes());
    head
}

fn u32_at(head: &Head, at: usize) -> u32 {
    u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(head: &Head, at: usize) -> u64 {
    u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"))
}

pub fn payload_bytes(head: &Head) -> usize {
    u32_at(head, 0) as usize
}

pub fn kind(head: &Head) -> u32 {
    u32_at(head, 4)
}

pub fn id(head: &Head) -> u64 {
    u64_at(head, 8)
}

pub fn cpu(head: &Head) -> Cpu {
    Cpu { total_ns: u64_at(head, 16), user_ns: u64_at(head, 24) }
}

/// For [`shards::ring::RingConfig`].
pub fn framing(head: &Head) -> Result<BodyLength, String> {
    match payload_bytes(head) {
        bytes @ (0 | BLOCK_BYTES) => Ok(BodyLength { meta_bytes: 0, payload_bytes: bytes }),
        other => Err(format!("a payload of {other} bytes")),
    }
}

/// SplitMix64: places to write at, the same in both servers.
pub struct Places {
    state: u64,
    blocks: u64,
}

impl Places {
    pub fn new(file_bytes: u64) -> Self {
        Places { state: 1, blocks: (file_bytes / BLOCK_BYTES as u64).max(1) }
    }

    /// Byte offset of a random block.
    pub fn next_offset(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.state;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % self.blocks) * BLOCK_BYTES as u64
    }
}
