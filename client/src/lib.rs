//! The file system client: everything between a program's read or write and the frames on the wire.
//!
//! - [`core::ClientCore`]: the state machine (a [`shards::Node`]): sessions, leases, chunk maps, data path;
//! - [`Cluster`]: the library for programs, blocking and with callbacks, around a core on its own thread;
//! - [`fuse`]: the mount on top of it;
//! - [`nbd`]: files as block devices, for qemu;
//! - [`mount_helper`]: what mount(8) says for a line of `/etc/fstab`;
//! - [`setup`]: finds a cluster and reads its key.
//!
//! Invariant of the whole crate: a write is reported done only when the primary of every chunk it touches has
//! acked it, which means it is durable on all in-sync replicas.

pub mod call;
pub mod cluster;
pub mod config;
pub mod core;
pub mod error;
pub mod fuse;
mod metrics;
pub mod mount_helper;
pub mod nbd;
pub mod setup;

pub use self::core::{CacheCounts, ClientCore};
pub use call::{CacheState, CacheStats, Call, Done, FileMap, OpenFile, Stats, WriteHow};
pub use cluster::{Cluster, File};
pub use config::{CacheConfig, ClientConfig};
pub use error::{ClientError, Result};
pub use metrics::figures;
