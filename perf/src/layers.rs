//! Where a server's CPU time goes: samples of `perf record`, sorted into layers by the functions in them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A layer and what names its functions; of several that fit, the first counts. Kernel functions know what they work for
/// by their callers; of our own code only the innermost function is known, since optimised code keeps no frame pointers.
const LAYERS: [(&str, &[&str]); 9] = [
    ("checksums", &["crc32fast"]),
    ("network", &["io_sendmsg", "io_recvmsg", "tcp_", "net_rx_action", "sock_", "io_poll_", "inet_"]),
    (
        "disk",
        &[
            "io_read",
            "io_write",
            "io_fsync",
            "iomap",
            "ext4",
            "xfs",
            "blk_",
            "bio_",
            "virtio",
            "nvme",
            "submit_bio",
        ],
    ),
    ("sleeping, waking", &["schedule", "finish_task_switch", "io_cqring_wait", "try_to_wake_up", "hrtimer"]),
    ("journal", &["journal"]),
    ("chunk store", &["engine::store", "engine::cache"]),
    ("replication", &["engine::replication"]),
    ("frames, wiring", &["engine::node", "CsShard", "wire::"]),
    (
        "ring, buffers, memory",
        &["shards::", "io_uring", "malloc", "free", "memmove", "memset", "syscall", "clock_gettime"],
    ),
];
const OTHER: &str = "other";

/// Starts sampling a process.
pub fn record(pid: i32, file: &Path) -> Result<Child, String> {
    Command::new("perf")
        .args(["record", "-q", "-g", "-p", &pid.to_string(), "-o"])
        .arg(file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("perf: {e} (apt-get install linux-perf)"))
}

/// Shares of the samples by layer, largest first; they add up to 1.
pub fn shares(file: &Path) -> Result<Vec<(&'static str, f64)>, String> {
    let script = Command::new("perf")
        .args(["script", "-F", "ip,sym", "-i"])
        .arg(file)
        .output()
        .map_err(|e| format!("perf script: {e}"))?;
    let text = String::from_utf8_lossy(&script.stdout);
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for sample in text.split("\n\n").filter(|s| !s.trim().is_empty()) {
        *counts.entry(layer(sample)).or_default() += 1;
    }
    let all = counts.values().sum::<u64>() as f64;
    if all == 0.0 {
        return Err("perf has no sample: is it allowed (as root, kernel.perf_event_paranoid)?".into());
    }
    let mut shares: Vec<_> = counts.into_iter().map(|(name, count)| (name, count as f64 / all)).collect();
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    Ok(shares)
}

fn layer(sample: &str) -> &'static str {
    let fits = |names: &[&str]| names.iter().any(|name| sample.contains(name));
    LAYERS.iter().find(|(_, names)| fits(names)).map_or(OTHER, |(layer, _)| layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_sorted_by_what_the_kernel_works_for() {
        assert_eq!(layer(" ffff _raw_spin_unlock\n ffff tcp_v4_rcv\n ffff io_sendmsg\n"), "network");
        assert_eq!(layer(" ffff iowrite16\n ffff virtio_queue_rq\n ffff blk_finish_plug\n"), "disk");
        assert_eq!(layer(" 55aa crc32fast::specialized::pclmulqdq::calculate\n"), "checksums");
        assert_eq!(layer(" 55aa shards::journal::Journal::pump\n"), "journal");
        assert_eq!(layer(" 55aa something_else\n"), OTHER);
    }
}
