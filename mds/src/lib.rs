//! The metadata server: namespace, chunk map, placement and leases behind a raft quorum.
