//! What `explain` and `get-attr` are answered: finds what is asked about; [`crate::explain`] has the words.

use super::server::Server;
use crate::explain::Teller;
use crate::state::{ChunkView, Refusal};
use shards::Timestamp;
use wire::mds_api::{ChunkCounts, EXPLAINED_CHUNKS, ExplainTarget, Explanation, FileKind, FileStory};
use wire::{ChunkId, CsId, FileId, Status};

impl Server {
    pub(super) fn explain(&self, target: &ExplainTarget, now: Timestamp) -> Result<Explanation, Refusal> {
        match target {
            ExplainTarget::File { path, first } => self.explain_file(path, *first, now),
            ExplainTarget::Chunk(chunk) => self.explain_chunk(*chunk, now),
            ExplainTarget::Cs(cs) => self.explain_cs(*cs, now),
        }
    }

    /// In which states the chunks of a file are.
    pub(super) fn file_chunks(&self, file: FileId, now: Timestamp) -> Result<ChunkCounts, Refusal> {
        self.state.policy(file)?;
        Ok(self.count(self.state.chunks_of(file), now))
    }

    fn with_teller<T>(&self, now: Timestamp, of: impl FnOnce(&Teller<'_>) -> T) -> T {
        let master = self.master.as_ref();
        self.with_surroundings(now, |around| {
            of(&Teller {
                state: &self.state,
                around,
                away: &|cs| master.and_then(|m| m.registry.away(cs, now)),
                addr: &|cs, chunk| master.map_or(crate::cs_registry::UNKNOWN_ADDR, |m| m.addr_of(cs, chunk)),
                is_slow: &|cs| master.is_some_and(|m| m.registry.is_slow(cs, now)),
                offline_after: self.offline_after(),
                may_place: self.cluster_health(now).0 != "failure",
                waiting: master.map_or(0, |m| m.repair.stat(now).waiting),
            })
        })
    }

    fn explain_file(&self, path: &str, first: u32, now: Timestamp) -> Result<Explanation, Refusal> {
        let attr = self.state.resolve(path)?;
        if attr.kind != FileKind::File {
            let detail = format!("{path} is not a regular file: only those have chunks");
            return Err(Refusal { status: Status::InvalidArgument, detail });
        }
        let mut rest = self.state.chunks_of(attr.file).skip_while(|v| v.index < first);
        let page: Vec<ChunkView> = rest.by_ref().take(EXPLAINED_CHUNKS).collect();
        let next_first = rest.next().map(|v| v.index);
        let tell = |t: &Teller<'_>| page.iter().map(|v| t.chunk(v, &attr.replicas, String::new())).collect();
        Ok(Explanation::File(FileStory {
            path: path.to_string(),
            size: attr.size_bytes,
            chunk_bytes: attr.chunk_bytes,
            policy: attr.replicas,
            states: self.file_chunks(attr.file, now)?,
            chunks: self.with_teller(now, tell),
            next_first,
        }))
    }

    fn explain_chunk(&self, chunk: ChunkId, now: Timestamp) -> Result<Explanation, Refusal> {
        let Some(view) = self.state.chunk(chunk) else {
            let detail = if chunk.0 > 0 && chunk <= self.state.newest_chunk() {
                format!("chunk {chunk} was deleted, with its file or by a truncation")
            } else {
                format!("there never was a chunk {chunk}: 'explain FILE' lists those of a file")
            };
            return Err(Refusal { status: Status::UnknownChunk, detail });
        };
        let (policy, path) = (self.state.policy_of(&view), self.state.path_of(view.file));
        Ok(Explanation::Chunk(self.with_teller(now, |t| t.chunk(&view, &policy, path))))
    }

    fn explain_cs(&self, cs: CsId, now: Timestamp) -> Result<Explanation, Refusal> {
        let Some(info) = self.server_info(cs, now) else {
            let detail = format!("there is no CS#{cs}: 'pstorage stat' lists the chunk servers");
            return Err(Refusal { status: Status::NotFound, detail });
        };
        let held = || self.state.chunks_on(cs, ChunkId(0)).filter_map(|c| self.state.chunk(c));
        let (states, leads) =
            (self.count(held(), now), held().filter(|v| v.primary() == Some(cs)).count() as u64);
        Ok(Explanation::Cs(self.with_teller(now, |t| t.server(info, states, leads))))
    }
}
