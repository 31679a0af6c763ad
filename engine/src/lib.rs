//! The chunk server: chunk store on a journal, and the replication protocol.

pub mod cache;
pub mod control;
pub mod journal_move;
pub mod latency;
mod metrics;
mod node;
pub mod replication;
pub mod scrub;
pub mod store;

pub use metrics::figures;
pub use node::{Backlog, CsShard, CsShardConfig, Look};
