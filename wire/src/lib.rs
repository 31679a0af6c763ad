//! Messages between the processes of a cluster: bytes to types and back, no I/O.
//!
//! - [`frame`]: the 64-byte header every message starts with;
//! - [`data`]: the data path (client, primary, secondaries): fixed layouts;
//! - [`mds_api`], [`cs_api`]: requests to the metadata service: rkyv;
//! - [`hello`], [`auth`]: version negotiation and mutual authentication; [`join`]: how a node gets into a cluster;
//! - [`identity`]: which program a server is, for checks.

#[macro_use]
mod codec;
pub mod attribute;
pub mod auth;
pub mod cs_api;
pub mod data;
pub mod frame;
pub mod hello;
pub mod identity;
pub mod ids;
pub mod join;
pub mod license;
pub mod mds_api;
pub mod status;
pub mod trace;

pub use data::{BlockCrc, BlockCrcs, DataMeta, Grant, Prepared, Replica, Role, TailEntry};
pub use frame::{Frame, FrameError, Head, Kind, flags, framing};
pub use ids::*;
pub use rkyv;
pub use status::Status;
pub use trace::{RequestTrace, TraceId, Work};

/// Block size of the whole system, bytes.
pub use shards::BLOCK_BYTES;
/// Default chunk size, bytes.
pub const DEFAULT_CHUNK_BYTES: u32 = 64 << 20;
/// Largest payload of one data request, bytes.
pub const MAX_IO_BYTES: usize = 1 << 20;

/// The checksum of headers and metadata: CRC-32 (IEEE).
pub fn crc(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// The CRC-32 of parts as if they were one.
pub fn crc_of(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}
