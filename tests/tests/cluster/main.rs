//! What a cluster does for its administrators and users: real processes and mounts on this machine. One program, as most of these
//! tests wait most of the time and two can do so at once; those that measure times are programs of their own.

#[path = "../common/mod.rs"]
mod common;

mod check_flush;
mod clones;
mod dashboard;
mod doctor;
mod errors;
mod explain;
mod failure_domains;
mod first_start;
mod iscsi;
mod license;
mod local_cluster;
mod mds_disk;
mod membership;
mod messages;
mod metrics;
mod monitoring;
mod nbd;
mod read_cache;
mod report;
mod rm_cs;
mod semantics;
mod space;
mod ssd;
mod tracing;
