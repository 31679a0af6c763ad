//! Forks: chunks that begin as replicas of others here are, because a file is to write to a chunk that it shares
//! (docs/replication.md, "Clones").
//!
//! Invariant: a fork is made of a replica whose every write is known to be on all of them. Parts of a fork that were made when
//! the same was known to be on all are then the same. (Not all replicas have been sent all sequences: what levels them goes to
//! those that need it.)

use super::{Action, Purpose, Replication};
use crate::store::{ChunkInfo, Done, Store, StoreError};
use shards::Io;
use wire::cs_api::CsRequest;
use wire::{ChunkId, Sequence};

/// A fork that was asked for and is not there.
pub(super) struct Fork {
    from: ChunkId,
    /// The store makes it.
    is_begun: bool,
    /// Nobody wants it any more.
    is_dropped: bool,
}

impl Replication {
    /// Asked for by the metadata service, again and again until it has heard that the fork is there.
    pub(super) fn fork(&mut self, from: ChunkId, to: ChunkId, store: &mut Store, io: &mut dyn Io) {
        match store.chunk(to).filter(|_| !self.forks.contains_key(&to)) {
            Some(info) => self.tell_forked(to, Some(info.committed)),
            None => {
                self.forks.entry(to).or_insert(Fork { from, is_begun: false, is_dropped: false });
            }
        }
        // The others wait to hear what is on all replicas; who leads knows that when it is active.
        match self.chunks.get(&from).and_then(|known| known.primary.as_ref()) {
            Some(primary) if primary.is_active() => {
                self.uncommitted_notes.insert(from);
            }
            Some(primary) if !primary.is_busy() => self.activate(from, store, io),
            _ => {}
        }
    }

    /// Begins the forks whose originals have no write that may be missing elsewhere.
    pub(super) fn begin_forks(&mut self, store: &mut Store, io: &mut dyn Io) {
        if self.forks.values().all(|fork| fork.is_begun) {
            return;
        }
        let can_begin =
            |(_, fork): &(&ChunkId, &Fork)| !fork.is_begun && store.chunk(fork.from).is_none_or(is_level);
        let ready: Vec<(ChunkId, ChunkId)> =
            self.forks.iter().filter(can_begin).map(|(to, fork)| (*to, fork.from)).collect();
        for (to, from) in ready {
            if store.chunk(from).is_none() {
                // Never written: so is the fork.
                self.forks.remove(&to);
                self.tell_forked(to, Some(Sequence(0)));
                continue;
            }
            self.forks.get_mut(&to).expect("just seen").is_begun = true;
            let ticket = self.ticket(Purpose::Fork { to });
            store.clone_chunk(io, ticket, from, to);
        }
    }

    pub(super) fn fork_made(
        &mut self,
        to: ChunkId,
        result: Result<Done, StoreError>,
        store: &mut Store,
        io: &mut dyn Io,
    ) {
        let Some(fork) = self.forks.remove(&to) else { return };
        if let Err(error) = &result {
            tracing::error!(chunk = to.0, from = fork.from.0, %error, "fork_failed");
        }
        if fork.is_dropped {
            return self.delete(&[to], store, io);
        }
        // A write may have come in since it was asked for.
        let made = store.chunk(to).filter(|info| result.is_ok() && is_level(info));
        match made.map(|info| info.committed) {
            Some(sequence) => self.tell_forked(to, Some(sequence)),
            None => {
                self.tell_forked(to, None);
                self.delete(&[to], store, io);
            }
        }
    }

    /// These chunks are to be deleted: forks of them, or that they were to be, are not made. Returns those that can be deleted
    /// now.
    pub(super) fn drop_forks(&mut self, chunks: &[ChunkId]) -> Vec<ChunkId> {
        self.forks.retain(|to, fork| {
            let gone = chunks.contains(to) || chunks.contains(&fork.from);
            fork.is_dropped |= gone && fork.is_begun;
            !gone || fork.is_begun
        });
        chunks.iter().copied().filter(|chunk| !self.forks.contains_key(chunk)).collect()
    }

    fn tell_forked(&mut self, to: ChunkId, sequence: Option<Sequence>) {
        self.actions.push(Action::ToMds(CsRequest::Forked { to, sequence }));
    }
}

/// Whether all that was written is known to be on all replicas.
fn is_level(info: &ChunkInfo) -> bool {
    info.tail.is_empty() && info.committed >= info.last_sequence
}
