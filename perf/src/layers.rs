//! Where the CPU time of processes goes: samples of `perf record`, sorted into layers by the functions in them; and counts of what they ask the
//! kernel for (`perf stat`).

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A layer and what names its functions; of several that fit, the first counts. Kernel functions know what they work for
/// by their callers; of our own code only the innermost function is known, since optimised code keeps no frame pointers.
const LAYERS: [(&str, &[&str]); 10] = [
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
    ("client", &["client::"]),
    ("frames, wiring", &["engine::node", "CsShard", "wire::"]),
    (
        "ring, buffers, memory",
        &["shards::", "io_uring", "malloc", "free", "memmove", "memset", "syscall", "clock_gettime"],
    ),
];
const OTHER: &str = "other";

/// Starts sampling processes.
pub fn record(pids: &[i32], file: &Path) -> Result<Child, String> {
    perf(&["record", "-q", "-g", "-p", &list(pids), "-o", &file.to_string_lossy()])
}

/// What is counted, in this order.
pub const COUNTED: [&str; 4] =
    ["raw_syscalls:sys_enter", "context-switches", "sched:sched_wakeup", "cpu-migrations"];

/// Starts counting what a process does, all its threads together.
pub fn count(pid: i32) -> Result<Child, String> {
    perf(&["stat", "-x", ";", "-e", &COUNTED.join(","), "-p", &pid.to_string()])
}

/// The counts, in the order of [`COUNTED`].
pub fn counts(counter: Child) -> Result<[f64; 4], String> {
    let text = end(counter)?;
    let of = |event: &str| {
        let line = text.lines().find(|line| line.split(';').nth(2) == Some(event))?;
        line.split(';').next()?.parse().ok()
    };
    let all = COUNTED.map(of);
    if all.contains(&None) {
        return Err(format!("perf stat counts less than it was asked for (as root?): {}", text.trim()));
    }
    Ok(all.map(Option::unwrap_or_default))
}

/// Ends one that was started; what it said on standard error.
pub fn end(perf: Child) -> Result<String, String> {
    // SIGINT makes perf write what it has.
    kill(Pid::from_raw(perf.id() as i32), Signal::SIGINT).map_err(|e| format!("ending perf: {e}"))?;
    let said = perf.wait_with_output().map_err(|e| format!("perf: {e}"))?;
    Ok(String::from_utf8_lossy(&said.stderr).into_owned())
}

fn perf(arguments: &[&str]) -> Result<Child, String> {
    Command::new("perf")
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("perf: {e} (apt-get install linux-perf)"))
}

fn list(pids: &[i32]) -> String {
    pids.iter().map(i32::to_string).collect::<Vec<_>>().join(",")
}

/// Where samples lie, largest share first; each adds up to 1.
pub struct Shares {
    pub layers: Vec<(String, f64)>,
    /// By the innermost function.
    pub functions: Vec<(String, f64)>,
}

pub fn shares(file: &Path) -> Result<Shares, String> {
    let script = Command::new("perf")
        .args(["script", "-F", "ip,sym", "-i"])
        .arg(file)
        .output()
        .map_err(|e| format!("perf script: {e}"))?;
    let text = String::from_utf8_lossy(&script.stdout);
    let (mut layers, mut functions) = (BTreeMap::new(), BTreeMap::new());
    let mut all = 0;
    for sample in text.split("\n\n").filter(|s| !s.trim().is_empty()) {
        all += 1;
        *layers.entry(layer(sample).to_string()).or_default() += 1;
        *functions.entry(innermost(sample)).or_default() += 1;
    }
    if all == 0 {
        return Err("perf has no sample: is it allowed (as root, kernel.perf_event_paranoid)?".into());
    }
    let sorted = |counts: BTreeMap<String, u32>| {
        let mut shares: Vec<_> =
            counts.into_iter().map(|(name, count)| (name, f64::from(count) / f64::from(all))).collect();
        shares.sort_by(|a, b| b.1.total_cmp(&a.1));
        shares
    };
    Ok(Shares { layers: sorted(layers), functions: sorted(functions) })
}

/// `ADDRESS FUNCTION+OFFSET` of the first line, without the address; hashes of our own names end them.
fn innermost(sample: &str) -> String {
    let first = sample.trim_start().lines().next().unwrap_or_default();
    let name = first.split_once(' ').map_or("?", |(_, name)| name.trim());
    let hash = |end: &str| end.len() == 16 && end.bytes().all(|b| b.is_ascii_hexdigit());
    name.rsplit_once("::h").filter(|(_, end)| hash(end)).map_or(name, |(name, _)| name).to_string()
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
        assert_eq!(innermost(" ffff iowrite16\n ffff virtio_queue_rq\n"), "iowrite16");
        assert_eq!(
            innermost("\t 55aa shards::ring::Ring::turn::h0123456789abcdef\n"),
            "shards::ring::Ring::turn"
        );
        assert_eq!(innermost(" 55aa core::hash::of\n"), "core::hash::of");
    }
}
