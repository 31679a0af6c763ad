//! The whole state as bytes: `PSMDSTA3`, CRC-32 of the rest, 4 bytes zero, then rkyv of `Data`.

use super::State;
use super::data::{Body, Data, Inode};
use super::{DEFAULT_POLICY, FileId, LeaseId, ROOT};
use std::collections::BTreeMap;

const MAGIC: [u8; 8] = *b"PSMDSTA3";
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
        State::from_data(Data {
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
        })
    }

    fn from_data(data: Data) -> State {
        let mut on_cs: BTreeMap<_, std::collections::BTreeSet<_>> = BTreeMap::new();
        for (chunk, record) in &data.chunks {
            for (cs, _) in &record.replicas {
                on_cs.entry(*cs).or_default().insert(*chunk);
            }
        }
        State { data, on_cs }
    }

    pub fn snapshot(&self) -> Vec<u8> {
        let body = wire::encode!(&self.data);
        let mut out = Vec::with_capacity(HEAD_BYTES + body.len());
        out.extend(MAGIC);
        out.extend(wire::crc(&body).to_le_bytes());
        out.extend([0; 4]);
        out.extend_from_slice(&body);
        out
    }

    pub fn restore(bytes: &[u8]) -> Result<State, String> {
        if bytes.len() < HEAD_BYTES || bytes[..8] != MAGIC {
            return Err(
                "not a snapshot of this version's metadata (PSMDSTA3): start the pstorage-mdsd that wrote it"
                    .into(),
            );
        }
        let body = &bytes[HEAD_BYTES..];
        let found = u32::from_le_bytes(bytes[8..12].try_into().expect("4 bytes"));
        let computed = wire::crc(body);
        if found != computed {
            return Err(format!("snapshot checksum is {computed:08x}, expected {found:08x}"));
        }
        wire::decode!(Data, body).map(State::from_data)
    }

    /// A hash over everything, for comparing servers at the same applied index.
    pub fn digest(&self) -> u64 {
        // FNV-1a: enough to tell states apart, and the same everywhere.
        let body = wire::encode!(&self.data);
        body.iter()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
    }
}
