//! Configuration keys the node itself looks at; the state owns their values, units and ranges.

/// A client session ends after so many milliseconds of silence.
pub const LEASE_TIMEOUT_MS: &str = "mds.lease.timeout";
/// A CS that is away for so many milliseconds is offline, and its chunks are copied elsewhere.
pub const OFFLINE_TIMEOUT_MS: &str = "mds.wd.offline_tout";
/// More hosts offline than this: automatic replication stops. 0: never.
pub const MAX_OFFLINE_CS_HOSTS: &str = "mds.wd.max_offline_cs_hosts";
/// Least free percent of a CS for new chunks.
pub const FILL_MARGIN_PERCENT: &str = "mds.alloc.fill_margin";
/// Least free MB of a CS for new chunks.
pub const FREE_SPACE_MARGIN_MB: &str = "mds.alloc.free_space_margin";
/// Chunks a primary shard fills at a time.
pub const FILLS_PER_SHARD: &str = "mds.repl.max_fills";
