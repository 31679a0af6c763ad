//! What must hold at any moment of a run: one primary at most for a chunk's epoch, and bounded memory.

use engine::CsShard;
use shards::Timestamp;
use shards::sim::World;
use std::collections::BTreeMap;
use std::time::Duration;
use wire::{ChunkId, Epoch};

/// Virtual time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// Requests of clients under way or waiting in a shard. A client has up to 8 operations under way, each of a few parts;
/// parts that it repeats on a new connection stand here twice for up to 2 s.
const MOST_REQUESTS: usize = 400;
/// Frames, requests to the metadata service and operations of its own that a shard remembers.
const MOST_REMEMBERED: usize = 2000;
/// Connections and events of the whole world.
const MOST_CONNECTIONS: usize = 3000;
const MOST_QUEUED: usize = 20_000;

#[derive(Default)]
pub struct Watch {
    next: Timestamp,
    /// Which chunk server was active as primary of a chunk at an epoch.
    primaries: BTreeMap<(ChunkId, Epoch), usize>,
}

impl Watch {
    /// Whether it is time to look.
    pub fn is_due(&mut self, now: Timestamp) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now.after(LOOK_EVERY);
        }
        due
    }

    /// A shard of the chunk server `n`.
    pub fn look_at(&mut self, n: usize, shard: &CsShard) -> Result<(), String> {
        for (chunk, epoch) in shard.active_chunks() {
            let first = *self.primaries.entry((chunk, epoch)).or_insert(n);
            if first != n {
                return Err(format!(
                    "chunk {chunk} has two primaries at epoch {epoch}: cs{} and cs{}",
                    first + 1,
                    n + 1
                ));
            }
        }
        let backlog = shard.backlog();
        if backlog.requests > MOST_REQUESTS || backlog.remembered > MOST_REMEMBERED {
            return Err(format!("cs{} remembers more than it should: {backlog:?}", n + 1));
        }
        Ok(())
    }

    pub fn look_at_world(&self, world: &World) -> Result<(), String> {
        let (connections, queued) = (world.connections(), world.queued());
        if connections > MOST_CONNECTIONS || queued > MOST_QUEUED {
            return Err(format!(
                "{connections} connections and {queued} events under way: something piles up"
            ));
        }
        Ok(())
    }
}
