//! Files of the cluster as block devices for qemu and others: the NBD protocol, without FUSE in the path.
//!
//! | file | subject |
//! |---|---|
//! | [`protocol`] | the protocol: bytes in, bytes and requests out; no socket |
//! | [`server`] | connections, each with a thread that reads and one that writes, on top of [`crate::Cluster`] |
//!
//! Writes are answered when they are durable on all in-sync replicas, so a flush has nothing to wait for but the writes before it,
//! and several connections to one export are safe. TRIM and WRITE_ZEROES give space back.

pub mod protocol;
pub mod server;

pub use server::{Export, serve};
