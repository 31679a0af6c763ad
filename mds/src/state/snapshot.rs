//! The whole state as bytes: `PSMDSTA5`, CRC-32 of what stands behind these 16 bytes, length L of the last part as u32; rkyv
//! of `Data`; rkyv of `Later`, L bytes. `PSMDSTA4` and `PSMDSTA3` are read too: in the first the last part is `Later4`, in the
//! other L is 0 and it is missing.

use super::State;
use super::data::{Body, Data, Inode, Later, Later4};
use super::{DEFAULT_POLICY, FileId, LeaseId, ROOT};
use std::collections::BTreeMap;

const MAGIC: [u8; 8] = *b"PSMDSTA5";
const MAGIC_4: [u8; 8] = *b"PSMDSTA4";
const MAGIC_3: [u8; 8] = *b"PSMDSTA3";
const HEAD_BYTES: usize = 16;

impl State {
    /// An empty cluster: the root directory.
    pub fn new() -> State {
        let root = Inode {
            body: Body::Directory { entries: BTreeMap::new(), subdirectories: 0 },
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime_ms: 0,
            ctime_ms: 0,
            policy: DEFAULT_POLICY,
            chunk_bytes: wire::DEFAULT_CHUNK_BYTES,
            xattrs: BTreeMap::new(),
            parent: FileId(0),
            leases: Vec::new(),
            last_writer: LeaseId(0),
        };
        let data = Data {
            applied: 0,
            next_file: ROOT.0 + 1,
            next_chunk: 1,
            next_client: 1,
            next_lease: 1,
            next_cs: 1,
            next_mds: 1,
            next_event: 1,
            inodes: BTreeMap::from([(ROOT, root)]),
            chunks: BTreeMap::new(),
            in_sync_until: BTreeMap::new(),
            pending_deletes: BTreeMap::new(),
            gone: BTreeMap::new(),
            sessions: BTreeMap::new(),
            revoked: Vec::new(),
            revoking: BTreeMap::new(),
            cs: BTreeMap::new(),
            mds: BTreeMap::new(),
            events: BTreeMap::new(),
            config: BTreeMap::new(),
        };
        State::from_parts(data, Later::default())
    }

    fn from_parts(data: Data, later: Later) -> State {
        let mut on_cs: BTreeMap<_, std::collections::BTreeSet<_>> = BTreeMap::new();
        for (chunk, record) in &data.chunks {
            for (cs, _) in &record.replicas {
                on_cs.entry(*cs).or_default().insert(*chunk);
            }
        }
        State { data, later, on_cs }
    }

    pub fn snapshot(&self) -> Vec<u8> {
        let (data, later) = (wire::encode!(&self.data), wire::encode!(&self.later));
        let mut out = Vec::with_capacity(HEAD_BYTES + data.len() + later.len());
        out.extend(MAGIC);
        out.extend([0; 4]);
        out.extend((later.len() as u32).to_le_bytes());
        out.extend_from_slice(&data);
        out.extend_from_slice(&later);
        let crc = wire::crc(&out[HEAD_BYTES..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub fn restore(bytes: &[u8]) -> Result<State, String> {
        let known = |magic: &[u8]| [MAGIC, MAGIC_4, MAGIC_3].iter().any(|m| m == magic);
        if bytes.len() < HEAD_BYTES || !known(&bytes[..8]) {
            return Err(
                "not a snapshot of this version's metadata (PSMDSTA3, PSMDSTA4, PSMDSTA5): start the \
                        pstorage-mdsd that wrote it"
                    .into(),
            );
        }
        let body = &bytes[HEAD_BYTES..];
        let found = u32::from_le_bytes(bytes[8..12].try_into().expect("4 bytes"));
        let computed = wire::crc(body);
        if found != computed {
            return Err(format!("snapshot checksum is {computed:08x}, expected {found:08x}"));
        }
        let later_bytes = u32::from_le_bytes(bytes[12..16].try_into().expect("4 bytes")) as usize;
        let Some((data, later)) = body.split_at_checked(body.len().saturating_sub(later_bytes)) else {
            return Err(format!("snapshot of {} bytes ends with a part of {later_bytes}", body.len()));
        };
        let later = match &bytes[..8] {
            _ if later.is_empty() => Later::default(),
            magic if magic == MAGIC_4 => wire::decode!(Later4, later)?.into(),
            _ => wire::decode!(Later, later)?,
        };
        Ok(State::from_parts(wire::decode!(Data, data)?, later))
    }

    /// A hash over everything, for comparing servers at the same applied index.
    pub fn digest(&self) -> u64 {
        // FNV-1a: enough to tell states apart, and the same everywhere.
        let (data, later) = (wire::encode!(&self.data), wire::encode!(&self.later));
        data.iter()
            .chain(later.iter())
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
    }
}
