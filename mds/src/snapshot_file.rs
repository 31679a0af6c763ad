//! A snapshot as bytes: the state, and where in the log it stands.
//!
//! File `snapshot-0` or `snapshot-1`, little endian, a multiple of 4,096 bytes:
//! | bytes | field |
//! |---|---|
//! | 0..8 | magic `PSMDSNAP` |
//! | 8..12 | version, 2 |
//! | 12..16 | 0 |
//! | 16..24, 24..32 | index and term of the last entry it covers |
//! | 32..40 | length of the file that counts |
//! | 40..60 | 0 |
//! | 60..64 | CRC-32 of bytes 0..60 |
//! | 64..4096 | 0 |
//! | then per block | length u32, CRC-32 (u32) of the index (u64), the number of the block (u64) and its bytes, its bytes |
//! | then | zeros |
//!
//! Block 0: length u32 of the protobuf `ConfState`, the `ConfState`, ids of removed servers (u64 each). Blocks 1 and on: the
//! state ([`crate::state::StateWriter`]).
//!
//! Invariants: the head is written when all behind it is durable, so a file with a head is whole; the CRC of a block covers
//! which snapshot it is of and where it stands in it, so what an older one has left behind is never taken for its own.

use crate::state::{State, StateReader, StateWriter};
use protobuf::Message as _;
use raft::eraftpb::{ConfState, SnapshotMetadata};
use shards::{BLOCK_BYTES, Buf, BufMut};
use wire::MdsId;

const MAGIC: [u8; 8] = *b"PSMDSNAP";
const VERSION: u32 = 7;
pub const HEAD_BYTES: usize = BLOCK_BYTES;
const FIELDS_BYTES: usize = 64;
const BLOCK_HEAD_BYTES: usize = 8;
/// A piece is written once it has so many bytes.
const PIECE_BYTES: usize = 256 << 10;
/// Refuses a block beyond this size, bytes.
const MAX_BLOCK_BYTES: usize = 1 << 30;

/// Where in the log a snapshot stands, and who the servers were.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct SnapshotMeta {
    pub index: u64,
    pub term: u64,
    pub conf: ConfState,
    /// Servers that were removed from the cluster; their ids are never used again.
    pub removed: Vec<MdsId>,
}

impl SnapshotMeta {
    /// As raft knows it.
    pub fn for_raft(&self) -> SnapshotMetadata {
        let mut meta = SnapshotMetadata::default();
        meta.set_index(self.index);
        meta.set_term(self.term);
        meta.set_conf_state(self.conf.clone());
        meta
    }

    fn encode(&self) -> Vec<u8> {
        let conf = self.conf.write_to_bytes().expect("a conf state always serialises");
        let mut out = (conf.len() as u32).to_le_bytes().to_vec();
        out.extend_from_slice(&conf);
        self.removed.iter().for_each(|id| out.extend(id.0.to_le_bytes()));
        out
    }

    fn decode(head: &SnapshotHead, bytes: &[u8]) -> Result<SnapshotMeta, String> {
        let short = || "its members are cut short".to_string();
        let (length, rest) = bytes.split_first_chunk().ok_or_else(short)?;
        let (conf, removed) =
            rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(short)?;
        Ok(SnapshotMeta {
            index: head.index,
            term: head.term,
            conf: ConfState::parse_from_bytes(conf).map_err(|e| format!("its members: {e}"))?,
            removed: removed.as_chunks().0.iter().map(|id| MdsId(u64::from_le_bytes(*id))).collect(),
        })
    }
}

/// The first page of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotHead {
    pub index: u64,
    pub term: u64,
    pub file_bytes: u64,
}

impl SnapshotHead {
    pub fn encode(&self) -> Buf {
        let mut out = BufMut::zeroed(HEAD_BYTES);
        out[0..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..24].copy_from_slice(&self.index.to_le_bytes());
        out[24..32].copy_from_slice(&self.term.to_le_bytes());
        out[32..40].copy_from_slice(&self.file_bytes.to_le_bytes());
        let crc = wire::crc(&out[..60]);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
        out.freeze()
    }

    /// `None` when nothing was ever written there.
    pub fn decode(bytes: &[u8]) -> Result<Option<SnapshotHead>, String> {
        let Some(bytes) = bytes.first_chunk::<FIELDS_BYTES>() else {
            return Err(format!("{} bytes, at least {HEAD_BYTES} expected", bytes.len()));
        };
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        if bytes[0..8] != MAGIC {
            return Err(format!("magic {:02x?}, expected {MAGIC:02x?}", &bytes[0..8]));
        }
        let (found, computed) = (u32_at(60), wire::crc(&bytes[..60]));
        if found != computed {
            return Err(format!("header checksum at offset 60 is {found:08x}, expected {computed:08x}"));
        }
        if u32_at(8) != VERSION {
            return Err(format!(
                "version {}; this program understands {VERSION}: start another pstorage-mdsd",
                u32_at(8)
            ));
        }
        Ok(Some(SnapshotHead { index: u64_at(16), term: u64_at(24), file_bytes: u64_at(32) }))
    }
}

fn block_crc(index: u64, number: u64, body: &[u8]) -> u32 {
    wire::crc_of(&[&index.to_le_bytes(), &number.to_le_bytes(), body])
}

/// Makes what stands behind the head, piece by piece.
pub struct FileWriter {
    index: u64,
    number: u64,
    blocks: StateWriter,
    pending: Vec<u8>,
    ended: bool,
}

impl FileWriter {
    pub fn new(meta: &SnapshotMeta, blocks: StateWriter) -> FileWriter {
        let mut writer =
            FileWriter { index: meta.index, number: 0, blocks, pending: Vec::new(), ended: false };
        writer.block(&meta.encode());
        writer
    }

    fn block(&mut self, body: &[u8]) {
        self.pending.extend((body.len() as u32).to_le_bytes());
        self.pending.extend(block_crc(self.index, self.number, body).to_le_bytes());
        self.pending.extend_from_slice(body);
        self.number += 1;
    }
}

impl Iterator for FileWriter {
    type Item = Buf;

    /// A multiple of 4,096 bytes, aligned.
    fn next(&mut self) -> Option<Buf> {
        while self.pending.len() < PIECE_BYTES && !self.ended {
            match self.blocks.next() {
                Some(block) => self.block(&block),
                None => self.ended = true,
            }
        }
        if self.ended {
            self.pending.resize(self.pending.len().next_multiple_of(BLOCK_BYTES), 0);
        }
        let whole = self.pending.len() / BLOCK_BYTES * BLOCK_BYTES;
        let piece = (whole > 0).then(|| Buf::from_slice(&self.pending[..whole]));
        self.pending.drain(..whole);
        piece
    }
}

/// Takes a file from its first byte on, in pieces of any size.
#[derive(Default)]
pub struct FileReader {
    head: Option<SnapshotHead>,
    meta: Option<SnapshotMeta>,
    number: u64,
    state: StateReader,
    pending: Vec<u8>,
}

impl FileReader {
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.pending.extend_from_slice(bytes);
        let mut at = 0;
        let head = match self.head {
            Some(head) => head,
            None if self.pending.len() < HEAD_BYTES => return Ok(()),
            None => {
                at = HEAD_BYTES;
                let head = SnapshotHead::decode(&self.pending)?.ok_or("there is nothing in it")?;
                *self.head.insert(head)
            }
        };
        while let Some((fields, rest)) = self.pending[at..].split_first_chunk::<BLOCK_HEAD_BYTES>() {
            // Only zeros follow.
            if self.state.is_whole() {
                at = self.pending.len();
                break;
            }
            let [l0, l1, l2, l3, c0, c1, c2, c3] = *fields;
            let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
            if length > MAX_BLOCK_BYTES {
                return Err(format!("block {} has {length} bytes", self.number));
            }
            let Some(body) = rest.get(..length) else { break };
            let (found, computed) =
                (u32::from_le_bytes([c0, c1, c2, c3]), block_crc(head.index, self.number, body));
            if found != computed {
                return Err(format!(
                    "checksum of block {} is {computed:08x}, expected {found:08x}",
                    self.number
                ));
            }
            match self.number {
                0 => self.meta = Some(SnapshotMeta::decode(&head, body)?),
                number => self.state.take(body).map_err(|why| format!("block {number}: {why}"))?,
            }
            self.number += 1;
            at += BLOCK_HEAD_BYTES + length;
        }
        self.pending.drain(..at);
        Ok(())
    }

    pub fn finish(self) -> Result<(SnapshotMeta, State), String> {
        let state = self.state.finish()?;
        Ok((self.meta.ok_or("it has no members")?, state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Command;
    use crate::state::Internal;

    fn meta() -> SnapshotMeta {
        let conf = ConfState::from((vec![1, 2], vec![3]));
        SnapshotMeta { index: 7, term: 2, conf, removed: vec![MdsId(9)] }
    }

    fn file() -> (Vec<u8>, u64) {
        let mut state = State::new();
        state.apply(7, &Command::internal(1, Internal::Noop));
        let body: Vec<Buf> = FileWriter::new(&meta(), state.snapshot()).collect();
        let body = body.iter().flat_map(|piece| piece.iter().copied());
        let mut bytes = vec![0; HEAD_BYTES];
        bytes.extend(body);
        let head = SnapshotHead { index: 7, term: 2, file_bytes: bytes.len() as u64 };
        bytes[..HEAD_BYTES].copy_from_slice(&head.encode());
        (bytes, state.digest())
    }

    fn read(bytes: &[u8], piece: usize) -> Result<(SnapshotMeta, State), String> {
        let mut reader = FileReader::default();
        for piece in bytes.chunks(piece) {
            reader.take(piece)?;
        }
        reader.finish()
    }

    #[test]
    fn a_file_is_read_in_pieces_of_any_size() {
        let (bytes, digest) = file();
        assert_eq!(bytes.len() % BLOCK_BYTES, 0);
        for piece in [1, 7, 4096, 100_000] {
            let (found, state) = read(&bytes, piece).unwrap();
            assert_eq!((found, state.digest()), (meta(), digest));
        }
    }

    #[test]
    fn damaged_files_are_refused() {
        let (bytes, _) = file();
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        for at in (0..64).chain(HEAD_BYTES..end) {
            let mut bad = bytes.clone();
            bad[at] ^= 0x40;
            // The length is for those who send the file, and has its CRC there.
            assert!(read(&bad, 4096).is_err(), "byte {at} changed unnoticed");
            assert!(read(&bytes[..at], 4096).is_err(), "cut at {at}");
        }
        // The blocks of another snapshot behind this one's head.
        let mut other = bytes.clone();
        let head = SnapshotHead { index: 8, term: 2, file_bytes: bytes.len() as u64 };
        other[..HEAD_BYTES].copy_from_slice(&head.encode());
        assert!(read(&other, 4096).is_err_and(|why| why.contains("block 0")));
        assert!(read(&vec![0; 8192], 4096).is_err());
    }

    #[test]
    fn head_and_members_are_pinned() {
        let (bytes, _) = file();
        #[rustfmt::skip]
        let golden = [
            b'P', b'S', b'M', b'D', b'S', b'N', b'A', b'P', 7, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0,
            2, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(bytes[..32], golden);
        #[rustfmt::skip]
        let members = [18, 0, 0, 0, 6, 0, 0, 0, 0x08, 1, 0x08, 2, 0x10, 3, 9, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(bytes[HEAD_BYTES..HEAD_BYTES + 4], members[..4]);
        assert_eq!(bytes[HEAD_BYTES + 8..HEAD_BYTES + 26], members[4..]);
    }
}
