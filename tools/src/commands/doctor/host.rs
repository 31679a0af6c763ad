//! The machine and what runs on it: kernel, clock, memory, rights, key files, services.

use super::finding::Finding;
use super::tree::Tree;
use crate::commands::services::Service;
use crate::commands::stat::human;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use wire::auth::KEY_FILE;

const LEAST_KERNEL: (u32, u32) = (6, 1);
/// Names of processes that keep the clock right, as the kernel shows them: 15 characters at most.
const TIME_SERVICES: [&str; 6] = ["chronyd", "ntpd", "systemd-timesyn", "ntp-daemon", "ptp4l", "phc2sys"];
/// Clocks that are read by a trap into the kernel, or slower still.
const SLOW_CLOCKS: [&str; 5] = ["hpet", "acpi_pm", "pit", "jiffies", "refined-jiffies"];
/// What a chunk server takes at most, and what the system needs beside it.
const CS_BYTES: u64 = 1 << 30;
const REST_BYTES: u64 = 512 << 20;
/// What the shards of a chunk server want to hold for disk transfers.
const LOCKED_BYTES: u64 = 64 << 20;
/// The bit of a process's capabilities that frees it from the limit on locked memory.
const CAP_IPC_LOCK: u64 = 1 << 14;

/// What does not depend on servers.
pub fn look(tree: &Tree) -> Vec<Finding> {
    vec![kernel(tree), io_uring(tree), time_service(tree), clock_source(tree), fuse(tree)]
}

fn kernel(tree: &Tree) -> Finding {
    let Some(release) = tree.text("proc/sys/kernel/osrelease") else {
        return Finding::unknown("kernel", "", "its version is not told", "look at 'uname -r'");
    };
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
    let (least_major, least_minor) = LEAST_KERNEL;
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= LEAST_KERNEL => Finding::ok("kernel", "", release),
        (Some(_), Some(_)) => Finding::error(
            "kernel",
            "",
            format!("Linux {release} is too old"),
            format!("install Linux {least_major}.{least_minor} or newer"),
        ),
        _ => Finding::unknown("kernel", "", format!("'{release}' is no version that is understood"), ""),
    }
}

fn io_uring(tree: &Tree) -> Finding {
    let at = "sysctl kernel.io_uring_disabled=0, and the same in /etc/sysctl.d";
    match tree.number("proc/sys/kernel/io_uring_disabled") {
        // Kernels before 6.6 have no such switch.
        None | Some(0) => Finding::ok("io_uring", "", "allowed"),
        Some(1) => Finding::ok("io_uring", "", "allowed for root (kernel.io_uring_disabled=1)"),
        Some(_) => Finding::error("io_uring", "", "switched off: no server and no mount can start", at),
    }
}

fn time_service(tree: &Tree) -> Finding {
    let is_process = |name: &String| name.bytes().all(|b| b.is_ascii_digit());
    let mut names = tree.names("proc").into_iter().filter(is_process);
    let found = names.find_map(|pid| {
        let name = tree.text(&format!("proc/{pid}/comm"))?;
        TIME_SERVICES.contains(&name.as_str()).then_some(name)
    });
    match found {
        None => Finding::warning(
            "time service",
            "",
            "no service that keeps the clock right is running",
            "install chrony: times of files, of the event log and of licences come from the hosts' clocks",
        ),
        Some(name) if name == "systemd-timesyn" && !tree.exists("run/systemd/timesync/synchronized") => {
            Finding::warning(
                "time service",
                "",
                "systemd-timesyncd runs, but has not reached a time server",
                "'timedatectl timesync-status' says which one it asks",
            )
        }
        Some(name) => Finding::ok("time service", "", format!("{name} runs")),
    }
}

fn clock_source(tree: &Tree) -> Finding {
    match tree.text("sys/devices/system/clocksource/clocksource0/current_clocksource") {
        None => Finding::unknown("clock source", "", "the kernel does not tell it", ""),
        Some(name) if SLOW_CLOCKS.contains(&name.as_str()) => Finding::warning(
            "clock source",
            "",
            format!("{name}: each look at the clock takes a microsecond or more"),
            "see why the kernel gave up the processor's own (dmesg | grep -i clocksource)",
        ),
        Some(name) => Finding::ok("clock source", "", name),
    }
}

fn fuse(tree: &Tree) -> Finding {
    if tree.exists("dev/fuse") {
        Finding::ok("fuse", "", "/dev/fuse is there")
    } else {
        Finding::unknown("fuse", "", "there is no /dev/fuse", "for mounts on this host: modprobe fuse")
    }
}

/// Whether there is enough of it for the chunk servers made here.
pub fn memory(tree: &Tree, chunk_servers: u64) -> Finding {
    let of = |name| tree.number_of("proc/meminfo", name).map(|kib| kib << 10);
    let (Some(total), Some(available)) = (of("MemTotal"), of("MemAvailable")) else {
        return Finding::unknown("memory", "", "the kernel does not tell how much there is", "");
    };
    let found = format!("{} of {} available", human(available), human(total));
    let needed = REST_BYTES + chunk_servers * CS_BYTES;
    if total < needed {
        let found = format!(
            "{} in all, and {chunk_servers} chunk servers take up to {} each",
            human(total),
            human(CS_BYTES)
        );
        return Finding::warning("memory", "", found, "add memory, or move chunk servers to other hosts");
    }
    if available < REST_BYTES / 2 {
        let todo = "see what takes it: a server that the kernel ends for want of memory is away for a while";
        return Finding::warning("memory", "", found, todo);
    }
    Finding::ok("memory", "", found)
}

/// The keys of clusters are for root alone.
pub fn keys(etc: &Path) -> Vec<Finding> {
    let clusters = std::fs::read_dir(etc.join("clusters")).into_iter().flatten().flatten();
    let mut files: Vec<_> = clusters.map(|cluster| cluster.path().join(KEY_FILE)).collect();
    files.sort();
    let of = |file: &std::path::PathBuf| {
        let mode = std::fs::metadata(file).ok()?.permissions().mode() & 0o777;
        let shown = file.display().to_string();
        if mode & 0o077 == 0 {
            return Some(Finding::ok("key file", shown, "only its owner can read it"));
        }
        let todo = format!(
            "chmod 600 {shown}; if somebody may have read it, auth-node, and deauth-node for the old node"
        );
        Some(Finding::error("key file", shown, format!("others may read or change it (mode {mode:o})"), todo))
    };
    files.iter().filter_map(of).collect()
}

/// Whether a server that was made here runs, as the program that is installed, and with the rights it needs.
/// A server that its cluster has let go.
pub fn removed(service: &Service, list: &Path) -> Finding {
    let path = service.path.display();
    let found = format!("no longer a member of cluster '{}'", service.cluster);
    let todo = format!(
        "delete {path} if nothing in it is needed, and remove the line with it from {}",
        list.display()
    );
    Finding::warning("service", name_of(service), found, todo)
}

fn name_of(service: &Service) -> String {
    format!("{} in {}", service.service.to_uppercase(), service.path.display())
}

/// `list`: where it is noted.
pub fn service(tree: &Tree, service: &Service, list: &Path) -> Vec<Finding> {
    let name = name_of(service);
    match service.status.as_str() {
        "running" => {}
        "stopped" => {
            let todo = format!("start it: pstorage-{}d -r {}", service.service, service.path.display());
            return vec![Finding::warning("service", name, "does not run", todo)];
        }
        _ => {
            let found = format!("{} can't be read", service.path.join("control.json").display());
            let todo = format!(
                "is its disk mounted? If the server is gone for good, remove the line with it from {}",
                list.display()
            );
            return vec![Finding::error("service", service.path.display().to_string(), found, todo)];
        }
    }
    let mut findings = Vec::new();
    let program = tree.link(&format!("proc/{}/exe", service.pid));
    if program.is_some_and(|path| path.to_string_lossy().ends_with(" (deleted)")) {
        let found = "still runs a program that has been replaced since";
        findings.push(Finding::warning("service", name.clone(), found, "restart it, one server at a time"));
    } else {
        findings.push(Finding::ok("service", name.clone(), format!("runs (process {})", service.pid)));
    }
    if service.service == "cs" {
        findings.push(memlock(tree, service.pid, name));
    }
    findings
}

/// Whether a chunk server may have the kernel hold its buffers.
fn memlock(tree: &Tree, pid: u32, name: String) -> Finding {
    let status = tree.text(&format!("proc/{pid}/status")).unwrap_or_default();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = capabilities.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    if capabilities & CAP_IPC_LOCK != 0 {
        return Finding::ok("memlock", name, "it may lock as much as it wants (CAP_IPC_LOCK)");
    }
    let limits = tree.text(&format!("proc/{pid}/limits")).unwrap_or_default();
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    match limit.and_then(|limits| limits.split_whitespace().next()) {
        None => Finding::unknown("memlock", name, "its limit can't be read", "repeat this as root"),
        Some("unlimited") => Finding::ok("memlock", name, "unlimited"),
        Some(bytes) => match bytes.parse::<u64>() {
            Ok(bytes) if bytes < LOCKED_BYTES => Finding::warning(
                "memlock",
                name,
                format!("it may lock {}, and wants {}", human(bytes), human(LOCKED_BYTES)),
                "give its service LimitMEMLOCK=infinity (ulimit -l unlimited): transfers cost less CPU then",
            ),
            _ => Finding::ok("memlock", name, format!("{bytes} bytes")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::super::tree::tests::Machine;
    use super::*;

    fn worst(findings: &[Finding]) -> Verdict {
        findings.iter().map(|f| f.verdict).max().expect("something was found")
    }

    fn healthy() -> Machine {
        Machine::with(&[
            ("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n"),
            ("proc/sys/kernel/io_uring_disabled", "0\n"),
            ("proc/1/comm", "systemd\n"),
            ("proc/77/comm", "chronyd\n"),
            ("proc/meminfo", "MemTotal:  8000000 kB\nMemAvailable:  4000000 kB\n"),
            ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
            ("dev/fuse", ""),
        ])
    }

    #[test]
    fn a_good_machine_is_found_good_and_each_fault_is_found() {
        let m = healthy();
        assert_eq!(worst(&look(&m.tree)), Verdict::Ok, "{:?}", look(&m.tree));
        type Fault = (&'static str, &'static str, fn(&Tree) -> Finding, Verdict, &'static str);
        let faults: [Fault; 6] = [
            ("proc/sys/kernel/osrelease", "5.10.0-9", kernel, Verdict::Error, "too old"),
            ("proc/sys/kernel/osrelease", "6.0.12", kernel, Verdict::Error, "6.1 or newer"),
            ("proc/sys/kernel/io_uring_disabled", "2", io_uring, Verdict::Error, "switched off"),
            ("proc/77/comm", "sshd", time_service, Verdict::Warning, "chrony"),
            ("proc/77/comm", "systemd-timesyn", time_service, Verdict::Warning, "not reached"),
            (
                "sys/devices/system/clocksource/clocksource0/current_clocksource",
                "hpet",
                clock_source,
                Verdict::Warning,
                "microsecond",
            ),
        ];
        for (file, text, check, verdict, word) in faults {
            let m = healthy();
            m.set(file, text);
            let finding = check(&m.tree);
            assert_eq!(finding.verdict, verdict, "{finding}");
            assert!(finding.to_string().contains(word), "{finding}");
            assert!(!finding.todo.is_empty(), "{finding}");
        }
        m.set("proc/77/comm", "systemd-timesyn");
        m.set("run/systemd/timesync/synchronized", "");
        assert_eq!(time_service(&m.tree).verdict, Verdict::Ok);
        m.remove("dev/fuse");
        assert_eq!(fuse(&m.tree).verdict, Verdict::Unknown);
        m.remove("proc/sys/kernel/io_uring_disabled");
        assert_eq!(io_uring(&m.tree).verdict, Verdict::Ok, "older kernels");
    }

    #[test]
    fn memory_is_counted_by_chunk_servers() {
        let m = healthy();
        assert_eq!(memory(&m.tree, 6).verdict, Verdict::Ok);
        assert_eq!(memory(&m.tree, 8).verdict, Verdict::Warning);
        m.set("proc/meminfo", "MemTotal:  8000000 kB\nMemAvailable:  4000 kB\n");
        assert_eq!(memory(&m.tree, 0).verdict, Verdict::Warning);
    }

    #[test]
    fn locked_memory_is_limited_unless_the_process_is_free_of_limits() {
        let limits = |n: &str| format!("Limit   Soft  Hard  Units\nMax locked memory   {n}   {n}   bytes\n");
        let m = Machine::with(&[
            ("proc/9/limits", &limits("8388608")),
            ("proc/9/status", "CapEff:\t0000000000000000\n"),
        ]);
        assert_eq!(memlock(&m.tree, 9, "".into()).verdict, Verdict::Warning);
        m.set("proc/9/limits", &limits("unlimited"));
        assert_eq!(memlock(&m.tree, 9, "".into()).verdict, Verdict::Ok);
        m.set("proc/9/limits", &limits("8388608"));
        m.set("proc/9/status", "CapEff:\t000001ffffffffff\n");
        assert_eq!(memlock(&m.tree, 9, "".into()).verdict, Verdict::Ok);
    }

    #[test]
    fn keys_are_for_their_owner_alone() {
        let etc = tempfile::tempdir().unwrap();
        let dir = etc.path().join("clusters/pcs1");
        std::fs::create_dir_all(&dir).unwrap();
        assert!(keys(etc.path()).is_empty());
        let file = dir.join(KEY_FILE);
        std::fs::write(&file, "secret").unwrap();
        for (mode, verdict) in [(0o600, Verdict::Ok), (0o640, Verdict::Error), (0o644, Verdict::Error)] {
            std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
            let found = keys(etc.path());
            assert_eq!(found[0].verdict, verdict, "{mode:o}");
            assert!(!format!("{found:?}").contains("secret"));
        }
    }
}
