//! The figures of a mount for Prometheus. docs/admin-guide/metrics.md names each.

use crate::call::{CacheState, CacheStats, Stats};
use ::metrics::Figures;
use std::time::Duration;

pub fn figures(s: &Stats) -> Figures {
    let mut f = Figures::default();
    f.counter("client_reads", "Reads of programs", &[], s.reads);
    f.counter("client_writes", "Writes of programs", &[], s.writes);
    f.counter("client_read_bytes", "Bytes that programs read", &[], s.read_bytes);
    f.counter("client_written_bytes", "Bytes that programs wrote", &[], s.write_bytes);
    f.counter("client_edge_reads", "Blocks read because a write covers them in part", &[], s.edge_reads);
    let longest = Duration::from_micros(s.longest_us);
    f.seconds("client_longest_seconds", "Longest time that one read or write took", &[], longest);
    f.times("client_read_seconds", "Reads of programs", &[], &s.read_times);
    f.times(
        "client_write_seconds",
        "Writes and other changes of data, until they are durable",
        &[],
        &s.write_times,
    );
    f.times("client_mds_request_seconds", "Requests to metadata servers", &[], &s.mds_times);
    f.counter("client_retries", "Requests that had to be sent again", &[], s.retries);
    f.counter("client_refreshes", "Chunk maps asked for anew after a failure", &[], s.refreshes);
    f.counter("client_checksum_errors", "Data that came with a wrong checksum", &[], s.checksum_errors);
    f.counter("client_cs_connects", "Connections made to chunk servers", &[], s.connects);
    f.counter("client_mds_requests", "Requests to metadata servers", &[], s.mds_requests);
    f.counter("client_mds_connects", "Times the session moved or was opened anew", &[], s.mds_connects);
    if let Some(cache) = &s.cache {
        cache_figures(cache, &mut f);
    }
    f
}

fn cache_figures(c: &CacheStats, f: &mut Figures) {
    let active = u64::from(c.state == CacheState::Active);
    f.gauge("client_cache_active", "Whether the read cache is in use", &[], active);
    f.gauge("client_cache_size_bytes", "Size of the read cache's blocks", &[], c.blocks * c.block_bytes);
    f.gauge("client_cache_used_bytes", "What the read cache holds", &[], c.used_blocks * c.block_bytes);
    let n = &c.counts;
    f.counter("client_cache_hits", "Reads that the cache answered", &[], n.hits);
    f.counter("client_cache_misses", "Reads that it did not answer", &[], n.misses);
    f.counter("client_cache_hit_bytes", "Bytes that it answered with", &[], n.hit_bytes);
    f.counter("client_cache_checksum_errors", "Damaged blocks in the cache", &[], n.checksum_errors);
    f.counter("client_cache_io_errors", "Errors of the cache's disk", &[], c.io_errors);
}
