//! Gives a stopped shard another journal: opens its store on the old one, which applies all that stands in there to the
//! files, and makes a new, empty one that goes on from there. A node of its own, for configure-cs.
//!
//! The old journal stays whole: until the server's card names the new one, the shard can start on the old one, and after
//! that on the new one. So whatever dies here at whatever moment, nothing is lost.

use crate::store::{Outcome, Store, StoreConfig};
use shards::journal::{Checkpoint, Journal, Outcome as JournalOutcome};
use shards::{Buf, Event, Io, Node, OpId};
use std::io;

enum Stage {
    Start,
    Applying(Box<Store>),
    Making(Box<Journal>),
    Ended,
}

pub struct JournalMove {
    from: StoreConfig,
    to_path: String,
    to_bytes: u64,
    stage: Stage,
}

impl JournalMove {
    /// `from` is the shard as it is; the new journal must not be there yet.
    pub fn new(from: StoreConfig, to_path: String, to_bytes: u64) -> JournalMove {
        // The cache learns of what changes here by the versions of its blocks.
        let from = StoreConfig { cache: None, ..from };
        JournalMove { from, to_path, to_bytes, stage: Stage::Start }
    }

    fn start(&mut self, io: &mut dyn Io) {
        match Store::open(io, &self.from) {
            Ok(store) => self.stage = Stage::Applying(Box::new(store)),
            Err(error) => self.end(io, Err(error.to_string())),
        }
    }

    fn make(&mut self, io: &mut dyn Io, checkpoint: Checkpoint) {
        match Journal::create_with(io, &self.to_path, self.to_bytes, checkpoint) {
            Ok(journal) => self.stage = Stage::Making(Box::new(journal)),
            Err(error) => self.end(io, Err(error.to_string())),
        }
    }

    fn end(&mut self, io: &mut dyn Io, outcome: Result<(), String>) {
        self.stage = Stage::Ended;
        io.stop(outcome);
    }

    fn disk(&mut self, io: &mut dyn Io, op: OpId, result: io::Result<Buf>) {
        match &mut self.stage {
            Stage::Applying(store) => {
                store.on_disk(io, op, result);
                let outcome = store.outcomes().next();
                match outcome {
                    // Ready means that the journal is empty, and trimmed durably.
                    Some(Outcome::Ready) => {
                        let checkpoint = store.durable_checkpoint();
                        self.make(io, checkpoint);
                    }
                    Some(Outcome::Broken(error)) => self.end(io, Err(error.to_string())),
                    _ => {}
                }
            }
            Stage::Making(journal) => {
                journal.on_disk(io, op, result);
                let outcome = journal.outcomes().next();
                match outcome {
                    Some(JournalOutcome::Ready) => self.end(io, Ok(())),
                    Some(JournalOutcome::Broken(error)) => self.end(io, Err(error.to_string())),
                    _ => {}
                }
            }
            Stage::Start | Stage::Ended => {}
        }
    }
}

impl Node for JournalMove {
    type Message = ();

    fn handle(&mut self, event: Event<()>, io: &mut dyn Io) {
        match event {
            Event::Start => self.start(io),
            Event::Disk { op, result } => self.disk(io, op, result),
            _ => {}
        }
    }
}
