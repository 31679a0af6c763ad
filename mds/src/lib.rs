//! The metadata server: namespace, chunk map, placement and leases behind a raft quorum.
//!
//! - [`state`]: the deterministic state machine every server runs; [`placement`]: where new replicas go;
//! - [`node`]: the server around it, as a node for either driver;
//! - `consensus`, `raft_log`, `log_file`, `snapshot_file`, `snapshot_store`, `transfer`, `net`: raft, its files and its lines;
//! - `sessions`, `cs_registry`, `reads`, `sets`, `repair`: what only the master has, each for itself;
//! - `chunk_state`, `explain`: in which state chunks are, and why, for administrators;
//! - [`control`]: the identity card of a server's directory.

mod chunk_state;
mod consensus;
pub mod control;
mod cs_registry;
mod explain;
mod log_file;
mod net;
pub mod node;
pub mod placement;
mod raft_log;
mod raft_logger;
mod reads;
mod repair;
mod sessions;
mod sets;
pub mod snapshot_file;
mod snapshot_store;
mod space;
pub mod state;
mod transfer;

pub use node::{Look, MdsConfig, MdsNode};
