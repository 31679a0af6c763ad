//! A metadata server as a node: raft, the state, clients and chunk servers.
//!
//! - [`boot`]: from the files on disk to a running server;
//! - [`server`]: one event after another; raft's batches carried out; the state applied;
//! - [`master`]: what only the master knows; [`outcomes`], [`duties`]: what it does after each command and by the clock;
//! - [`requests`], [`cs_requests`]: what clients and chunk servers ask;
//! - [`nodes`]: nodes that come into the cluster and leave it; [`members`]: the quorum's members;
//! - [`stat`], [`explain`], [`license`]: what administrators see.
//!
//! The way of a mutation: frame → `requests` → proposal → raft → journals of a majority → `server` applies it to
//! the state → reply. Of a read: frame → `reads` → the quorum confirms the master → reply from the state.

mod boot;
mod cs_requests;
mod duties;
mod explain;
mod license;
mod master;
mod members;
mod metrics;
mod nodes;
mod outcomes;
mod removal;
mod requests;
mod server;
mod stat;
mod times;

use crate::control::MdsControl;
use boot::Boot;
use server::Server;
use shards::{Event, Io, Node};
use std::time::Duration;
use wire::auth::{Credentials, Foundation};

/// Somebody asks for the figures of the server; dropped while it has none.
pub type Look = Box<dyn FnOnce(::metrics::Figures) + Send>;

/// Sizes and times of a server.
#[derive(Clone)]
pub struct MdsConfig {
    pub control: MdsControl,
    pub credentials: Credentials,
    /// What a new cluster with a password begins with, as its first servers were given it.
    pub foundation: Option<Box<Foundation>>,
    /// Public keys of those whose licences are believed.
    pub license_makers: Vec<[u8; 32]>,
    /// Size of the raft journal when it is made.
    pub journal_bytes: u64,
    /// A snapshot is made after so many entries (or when a quarter of the journal is in use).
    pub snapshot_entries: u64,
    /// Entries kept in memory behind a snapshot, for servers that lag a little.
    pub keep_entries: u64,
    /// A client's request that takes longer is logged.
    pub slow_request: Duration,
    /// Memory this process uses, for the statistics.
    pub memory_bytes: fn() -> u64,
}

impl MdsConfig {
    pub fn new(control: MdsControl, credentials: Credentials) -> MdsConfig {
        MdsConfig {
            control,
            credentials,
            foundation: None,
            license_makers: Vec::new(),
            journal_bytes: 64 << 20,
            snapshot_entries: 100_000,
            keep_entries: 10_000,
            slow_request: Duration::from_secs(1),
            memory_bytes: || 0,
        }
    }
}

/// How long a master that is asked to stop waits for another to take over.
const HAND_OVER: Duration = Duration::from_millis(500);

pub struct MdsNode {
    stage: Stage,
}

enum Stage {
    New(Box<MdsConfig>),
    Boot(Box<Boot>),
    Running(Box<Server>),
    /// Stopped, or stopping for a reason already given.
    Over,
}

impl MdsNode {
    pub fn new(config: MdsConfig) -> MdsNode {
        MdsNode { stage: Stage::New(Box::new(config)) }
    }

    /// Whether this server is the master and ready. For tests and the simulator.
    pub fn is_master(&self) -> bool {
        matches!(&self.stage, Stage::Running(server) if server.is_ready_master())
    }

    /// Index of the last log entry applied and a digest of the state. For tests and the simulator: servers that have
    /// applied the same entries have the same digest.
    pub fn applied_digest(&self) -> Option<(u64, u64)> {
        match &self.stage {
            Stage::Running(server) => Some(server.applied_digest()),
            _ => None,
        }
    }

    /// The first log entry still in memory and the index of the newest snapshot file. For tests.
    pub fn log_range(&self) -> Option<(u64, u64)> {
        match &self.stage {
            Stage::Running(server) => Some(server.log_range()),
            _ => None,
        }
    }
}

impl Node for MdsNode {
    type Message = Look;

    fn handle(&mut self, event: Event<Look>, io: &mut dyn Io) {
        if let Stage::New(config) = &self.stage {
            assert!(matches!(event, Event::Start), "the first event of a node is Start");
            self.stage = match Boot::start((**config).clone(), io) {
                Ok(boot) => Stage::Boot(Box::new(boot)),
                Err(why) => fail(why, io),
            };
            return;
        }
        match &mut self.stage {
            Stage::Running(server) => {
                if let Err(why) = server.handle(event, io) {
                    self.stage = fail(why, io);
                }
            }
            Stage::Boot(boot) => match boot.handle(event, io) {
                Ok(false) => {}
                Ok(true) => self.run(io),
                Err(why) => self.stage = fail(why, io),
            },
            Stage::New(_) | Stage::Over => {}
        }
    }
}

impl MdsNode {
    fn run(&mut self, io: &mut dyn Io) {
        let Stage::Boot(boot) = std::mem::replace(&mut self.stage, Stage::Over) else { return };
        self.stage = match boot.finish(io) {
            Ok(server) => Stage::Running(Box::new(server)),
            Err(why) => fail(why, io),
        };
    }
}

fn fail(why: String, io: &mut dyn Io) -> Stage {
    tracing::error!(name: "mds_failed", why);
    io.stop(Err(why));
    Stage::Over
}
