//! The chunk server: chunk store on a journal, and the replication protocol.

pub mod store;
