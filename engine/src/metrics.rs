//! The figures of a chunk server for Prometheus, by shard. docs/admin-guide/metrics.md names each.

use ::metrics::{Figures, Histogram};
use std::time::Duration;
use wire::cs_api::{LatencyStat, ShardStat, Space};

/// What one shard knows of itself.
pub struct ShardFigures {
    pub stat: ShardStat,
    pub space: Space,
    /// Reads and writes of the store; of clients.
    pub io_times: Histogram,
    pub read_times: Histogram,
    pub write_times: Histogram,
}

pub fn figures(shards: &[ShardFigures]) -> Figures {
    let mut f = Figures::default();
    for figures in shards {
        let shard = figures.stat.shard.0.to_string();
        of_shard(figures, &[("shard", &shard)], &mut f);
    }
    f
}

fn of_shard(figures: &ShardFigures, of: &[(&'static str, &str)], f: &mut Figures) {
    let ShardFigures { stat, space, io_times, read_times, write_times } = figures;
    let load = &stat.load;
    f.counter("cs_reads", "Reads of clients", of, load.reads);
    f.counter("cs_writes", "Writes of clients, as primary", of, load.writes);
    f.counter("cs_read_bytes", "Bytes that clients read", of, load.read_bytes);
    f.counter("cs_written_bytes", "Bytes that clients wrote, as primary", of, load.write_bytes);
    latency(
        ["cs_io_recent", "cs_io_mean_seconds", "cs_io_max_seconds"],
        [
            "Reads and writes of the store that ended in the last 20 s",
            "Their mean time on this server's disks",
            "Their longest time",
        ],
        &load.io_latency,
        of,
        f,
    );
    latency(
        ["cs_request_recent", "cs_request_mean_seconds", "cs_request_max_seconds"],
        [
            "Requests of clients that ended in the last 20 s",
            "Their mean time, with replication",
            "Their longest time",
        ],
        &load.request_latency,
        of,
        f,
    );
    f.times("cs_io_seconds", "Reads and writes of the store, on this server's disks", of, io_times);
    f.times("cs_read_seconds", "Reads of clients", of, read_times);
    f.times("cs_write_seconds", "Writes of clients, as primary, with replication", of, write_times);
    f.ratio(
        "cs_io_wait_ratio",
        "Part of the last 20 s in which the disk was waited for",
        of,
        load.io_wait_percent,
    );
    f.gauge("cs_queue_depth", "Requests under way", of, load.queue_depth.into());
    f.gauge("cs_journal_used_bytes", "Journal in use", of, load.journal_used_bytes);
    f.gauge("cs_journal_size_bytes", "Size of the journal", of, load.journal_total_bytes);
    f.counter("cs_cache_hits", "Units of 64 KiB read that the read cache answered", of, load.cache_hits);
    f.counter("cs_cache_misses", "Units of 64 KiB read that it did not answer", of, load.cache_misses);
    f.gauge("cs_cache_used_bytes", "What the read cache holds", of, load.cached_bytes);
    f.gauge("cs_cache_size_bytes", "Size of the read cache; 0 without one", of, load.cache_total_bytes);
    f.gauge("cs_scrub_done_bytes", "Bytes verified in this pass of the scrub", of, load.scrubbed_bytes);
    f.gauge("cs_scrub_size_bytes", "Bytes that the pass has to verify", of, load.scrub_total_bytes);
    f.counter("cs_scrub_passes", "Passes of the scrub that ended", of, load.scrub_passes);
    f.counter("cs_checksum_errors", "Damaged places that the scrub found", of, load.scrub_damaged);
    f.counter("cs_catch_ups", "Returned replicas that were sent what they lacked", of, load.catch_ups);
    f.counter("cs_catch_up_bytes", "Bytes sent so", of, load.catch_up_bytes);
    f.counter("cs_full_copies", "Replicas that were sent everything", of, load.full_copies);
    f.counter("cs_full_copy_bytes", "Bytes sent so", of, load.full_copy_bytes);
    f.gauge("cs_chunks", "Replicas held", of, stat.chunks);
    f.gauge("cs_active_primaries", "Chunks that this shard leads", of, stat.active_primaries);
    f.gauge("cs_space_size_bytes", "Room for chunks", of, space.total_bytes);
    f.gauge("cs_space_free_bytes", "Free room for chunks", of, space.free_bytes);
}

fn latency(
    [count, mean, max]: [&'static str; 3],
    helps: [&'static str; 3],
    stat: &LatencyStat,
    of: &[(&'static str, &str)],
    f: &mut Figures,
) {
    f.gauge(count, helps[0], of, stat.operations.into());
    f.seconds(mean, helps[1], of, Duration::from_micros(stat.mean_us.into()));
    f.seconds(max, helps[2], of, Duration::from_micros(stat.max_us.into()));
}
