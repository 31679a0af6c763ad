//! The whole state as blocks, for snapshots. They are made from a copy while the state goes on, a few thousand rows at a
//! time, and read the same way.

use super::data::{Body, ChunkRecord, Counters, Data, Fork, Inode, Session, Small};
use super::{DEFAULT_POLICY, FileId, ROOT, State, data};
use imbl::{OrdMap, OrdSet};
use rkyv::{Archive, Deserialize, Serialize};
use roaring::RoaringTreemap;
use smol_str::SmolStr;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use wire::mds_api::Event;
use wire::{ChunkId, ClientId, CsId, Epoch, LeaseId};

/// Rows of a block: half a millisecond's work.
const ROWS: usize = 4096;
/// Of sessions and events, whose rows are long.
const FEW_ROWS: usize = 64;

#[derive(Archive, Serialize, Deserialize)]
enum Block {
    /// Always first.
    Head(Box<(Counters, Small)>),
    Inodes(Vec<(FileId, Inode)>),
    Names(Vec<(FileId, SmolStr, FileId)>),
    Chunks(Vec<(ChunkId, ChunkRecord)>),
    InSyncUntil(Vec<(ChunkId, CsId, Epoch)>),
    BelowMinimumSince(Vec<(ChunkId, Epoch)>),
    PendingDeletes(Vec<(CsId, ChunkId)>),
    Gone(Vec<(ChunkId, u32, u32)>),
    Sessions(Vec<SessionRow>),
    Revoking(Vec<(LeaseId, FileId)>),
    Events(Vec<Event>),
    /// Always last.
    End {
        inodes: u64,
        chunks: u64,
    },
    Sharers(Vec<(ChunkId, FileId)>),
    Forks(Vec<(ChunkId, Fork)>),
}

#[derive(Archive, Serialize, Deserialize)]
struct SessionRow {
    client: ClientId,
    host: String,
    mount_point: String,
    nonce: u64,
    files: Vec<FileId>,
    answers: Vec<(u64, data::Answer)>,
}

/// Gives the next block of its kind until there is none.
type Section = Box<dyn FnMut() -> Option<Block>>;

/// Makes the blocks of a snapshot, one after another.
pub struct StateWriter {
    sections: VecDeque<Section>,
}

impl StateWriter {
    fn new(data: Data) -> StateWriter {
        let Data {
            counters,
            inodes,
            names,
            chunks,
            in_sync_until,
            below_minimum_since,
            pending_deletes,
            sharers,
            forks,
            gone,
            sessions,
            revoking,
            events,
            small,
        } = data;
        let end = Block::End { inodes: inodes.len(), chunks: chunks.len() };
        let sections = [
            once(Block::Head(Box::new((counters, small)))),
            of_map(names, ROWS, |(parent, name), file| (*parent, name.clone(), *file), Block::Names),
            of_map(in_sync_until, ROWS, |(chunk, cs), epoch| (*chunk, *cs, *epoch), Block::InSyncUntil),
            of_map(below_minimum_since, ROWS, |chunk, epoch| (*chunk, *epoch), Block::BelowMinimumSince),
            of_map(gone, ROWS, |(chunk, first), blocks| (*chunk, *first, *blocks), Block::Gone),
            of_map(sessions, FEW_ROWS, session_row, Block::Sessions),
            of_map(revoking, ROWS, |lease, file| (*lease, *file), Block::Revoking),
            of_map(events, FEW_ROWS, |_, event| event.clone(), Block::Events),
            of_set(pending_deletes, Block::PendingDeletes),
            of_set(sharers, Block::Sharers),
            of_map(forks, ROWS, |to, fork| (*to, fork.clone()), Block::Forks),
            of_table(inodes, Block::Inodes),
            of_table(chunks, Block::Chunks),
            once(end),
        ];
        StateWriter { sections: sections.into() }
    }
}

impl Iterator for StateWriter {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        while let Some(section) = self.sections.front_mut() {
            if let Some(block) = section() {
                return Some(wire::encode!(&block).into_vec());
            }
            // With it goes its share of the copy.
            self.sections.pop_front();
        }
        None
    }
}

fn once(block: Block) -> Section {
    let mut block = Some(block);
    Box::new(move || block.take())
}

fn of_map<K: Ord + Clone + 'static, V: Clone + 'static, R: 'static>(
    map: OrdMap<K, V>,
    limit: usize,
    row: fn(&K, &V) -> R,
    block: fn(Vec<R>) -> Block,
) -> Section {
    let mut last: Option<K> = None;
    Box::new(move || {
        let from = last.take().map_or(Unbounded, Excluded);
        let mut rows = Vec::new();
        for (key, value) in map.range((from, Unbounded)).take(limit) {
            rows.push(row(key, value));
            last = Some(key.clone());
        }
        last.as_ref()?;
        Some(block(rows))
    })
}

fn of_set<K: Ord + Copy + 'static>(set: OrdSet<K>, block: fn(Vec<K>) -> Block) -> Section {
    let mut last: Option<K> = None;
    Box::new(move || {
        let from = last.map_or(Unbounded, Excluded);
        let rows: Vec<_> = set.range((from, Unbounded)).take(ROWS).copied().collect();
        last = rows.last().copied().or(last);
        (!rows.is_empty()).then(|| block(rows))
    })
}

fn of_table<K: super::table::Id + 'static, V: Clone + 'static>(
    mut table: super::table::Table<K, V>,
    block: fn(Vec<(K, V)>) -> Block,
) -> Section {
    let mut next = 0;
    Box::new(move || {
        let rows: Vec<_> =
            table.range(K::of(next)).take(ROWS).map(|(id, value)| (id, value.clone())).collect();
        next = rows.last()?.0.number() + 1;
        table.forget_before(K::of(next));
        Some(block(rows))
    })
}

fn session_row(client: &ClientId, session: &Session) -> SessionRow {
    SessionRow {
        client: *client,
        host: session.host.clone(),
        mount_point: session.mount_point.clone(),
        nonce: session.nonce,
        files: session.files.iter().copied().collect(),
        answers: session.answers.iter().map(|(request, answer)| (*request, answer.clone())).collect(),
    }
}

/// Takes the blocks of a snapshot, in their order.
#[derive(Default)]
pub struct StateReader {
    state: Option<State>,
    /// Replicas that are not in `State::on_cs` yet: entered many at a time, or each would find its server's part of it out of
    /// the cache.
    replicas: Vec<(CsId, ChunkId)>,
    is_whole: bool,
}

/// Replicas entered at once.
const REPLICAS: usize = 200_000;

impl StateReader {
    pub fn take(&mut self, block: &[u8]) -> Result<(), String> {
        let block = wire::decode!(Block, block)?;
        if self.is_whole {
            return Err("a block behind the end".into());
        }
        let Some(state) = &mut self.state else {
            let Block::Head(head) = block else { return Err("the first block is not the head".into()) };
            let (counters, small) = *head;
            self.state =
                Some(State { data: Data { counters, small, ..Data::empty() }, on_cs: BTreeMap::new() });
            return Ok(());
        };
        let data = &mut state.data;
        match block {
            Block::Head(_) => return Err("a second head".into()),
            Block::Inodes(rows) => rows.into_iter().for_each(|(file, inode)| {
                data.inodes.insert(file, inode);
            }),
            Block::Names(rows) => {
                data.names.extend(rows.into_iter().map(|(p, name, file)| ((p, name), file)))
            }
            Block::Chunks(rows) => rows.into_iter().for_each(|(chunk, record)| {
                self.replicas.extend(record.replicas.iter().map(|(cs, _)| (cs, chunk)));
                data.chunks.insert(chunk, record);
            }),
            Block::InSyncUntil(rows) => {
                data.in_sync_until.extend(rows.into_iter().map(|(chunk, cs, epoch)| ((chunk, cs), epoch)))
            }
            Block::BelowMinimumSince(rows) => data.below_minimum_since.extend(rows),
            Block::PendingDeletes(rows) => data.pending_deletes.extend(rows),
            Block::Sharers(rows) => data.sharers.extend(rows),
            Block::Forks(rows) => data.forks.extend(rows),
            Block::Gone(rows) => {
                data.gone.extend(rows.into_iter().map(|(chunk, first, blocks)| ((chunk, first), blocks)))
            }
            Block::Sessions(rows) => data.sessions.extend(rows.into_iter().map(|row| {
                let (files, answers) = (row.files.into_iter().collect(), row.answers.into_iter().collect());
                let (host, mount_point) = (row.host, row.mount_point);
                (row.client, Session { host, mount_point, nonce: row.nonce, files, answers })
            })),
            Block::Revoking(rows) => data.revoking.extend(rows),
            Block::Events(rows) => data.events.extend(rows.into_iter().map(|event| (event.number, event))),
            Block::End { inodes, chunks } => {
                let found = (data.inodes.len(), data.chunks.len());
                if found != (inodes, chunks) {
                    return Err(format!(
                        "{} files and {} chunks where there should be {inodes} and {chunks}",
                        found.0, found.1
                    ));
                }
                self.is_whole = true;
            }
        }
        if self.is_whole || self.replicas.len() >= REPLICAS {
            self.replicas.sort_unstable();
            for of_one in self.replicas.chunk_by(|a, b| a.0 == b.0) {
                let on_cs = state.on_cs.entry(of_one[0].0).or_default();
                on_cs.extend(of_one.iter().map(|(_, chunk)| chunk.0));
            }
            self.replicas.clear();
        }
        Ok(())
    }

    /// Whether the last block has come.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    pub fn finish(self) -> Result<State, String> {
        self.state.filter(|_| self.is_whole).ok_or_else(|| "it ends before its last block".into())
    }
}

impl Data {
    fn empty() -> Data {
        Data {
            counters: Counters {
                applied: 0,
                next_file: ROOT.0 + 1,
                next_chunk: 1,
                next_client: 1,
                next_lease: 1,
                next_cs: 1,
                next_mds: 1,
                next_event: 1,
            },
            inodes: Default::default(),
            names: OrdMap::new(),
            chunks: Default::default(),
            in_sync_until: OrdMap::new(),
            below_minimum_since: OrdMap::new(),
            pending_deletes: OrdSet::new(),
            sharers: OrdSet::new(),
            forks: OrdMap::new(),
            gone: OrdMap::new(),
            sessions: OrdMap::new(),
            revoking: OrdMap::new(),
            events: OrdMap::new(),
            small: Small::default(),
        }
    }
}

impl State {
    /// An empty cluster: the root directory.
    pub fn new() -> State {
        let mut data = Data::empty();
        let root = Body::Directory { entries: 0, subdirectories: 0 };
        data.inodes.insert(ROOT, Inode::new(root, DEFAULT_POLICY, wire::DEFAULT_CHUNK_BYTES, FileId(0)));
        State { data, on_cs: BTreeMap::<CsId, RoaringTreemap>::new() }
    }

    /// The state as it is now, to be written while it goes on.
    pub fn snapshot(&self) -> StateWriter {
        StateWriter::new(self.data.clone())
    }

    /// A hash over everything, for comparing servers at the same applied index.
    pub fn digest(&self) -> u64 {
        // FNV-1a: enough to tell states apart, and the same everywhere.
        self.snapshot()
            .flatten()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    }
}
