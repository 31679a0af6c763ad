//! The cluster as a SAN: LUNs are files of the cluster, served over iSCSI by gateways, as many as the administrator wants.
//!
//! | module | subject |
//! |---|---|
//! | [`record`] | what is known of a target and of accounts: plain values |
//! | [`store`] | where they lie: in the cluster, so that every gateway knows all of them |
//! | [`unit`] | a LUN that is served: the file under its write lease, the state of the device |
//! | [`worker`] | event loops, each with some connections of initiators |
//! | [`gateway`] | what this host serves: targets, sessions, portals |
//! | [`control`] | what `pstorage-iscsi` says to the daemon of its host |
//! | [`cluster`] | which cluster a program works on |
//! | [`command`] | the subcommands of `pstorage-iscsi` |
//! | [`settings`] | the file ETC/iscsi/config |
//!
//! The protocol is in crate `iscsi`; here are sockets and threads around it, and the cluster's client below it.
//!
//! Invariant: whoever serves a target holds the write leases of its LUNs' files, exclusively. A gateway that lost them, because
//! its host died or was cut off, can't write any more: chunk servers refuse it (docs/replication.md). So a target is active on
//! one gateway at a time, and no write of an earlier one lands after the first of the next one.

pub mod cluster;
pub mod command;
pub mod control;
pub mod error;
pub mod gateway;
pub mod record;
pub mod settings;
pub mod store;
pub mod unit;
pub mod worker;

pub use error::{Error, Result};
