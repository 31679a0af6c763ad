//! What a report tells of this host: kernel, memory, disks, network; the servers and mounts on it, with their logs.
//!
//! Everything is on a list of what helps and holds no secrets; nothing is taken because it lies somewhere. What users or programs wrote
//! (logs, settings, command lines) goes through [`super::redact`] like all else.

use super::archive::Archive;
use crate::commands::services::{self, Service};
use crate::{Context, Outcome};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use wire::auth::KEY_FILE;

/// Variables of services that may be told. Of others not even the names are.
const VARIABLES: [&str; 3] = ["PSTORAGE_ETC", "PSTORAGE_LOG", "PSTORAGE_NAME"];
/// Events of systemd: why a service did not start stands here, and not in its log.
const JOURNAL_LINES: &str = "2000";

const SYSTEM: [&str; 20] = [
    "/etc/os-release",
    "/proc/version",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/cpuinfo",
    "/proc/vmstat",
    "/proc/pressure/cpu",
    "/proc/pressure/io",
    "/proc/pressure/memory",
    "/proc/partitions",
    "/proc/diskstats",
    "/proc/mdstat",
    "/proc/net/dev",
    "/proc/net/route",
    "/proc/net/snmp",
    "/proc/net/netstat",
    "/proc/net/sockstat",
    "/proc/sys/kernel/io_uring_disabled",
    "/proc/self/mountinfo",
];
const OF_DISKS: [&str; 9] = [
    "size",
    "queue/rotational",
    "queue/write_cache",
    "queue/fua",
    "queue/scheduler",
    "queue/logical_block_size",
    "queue/physical_block_size",
    "queue/nr_requests",
    "device/model",
];
const OF_INTERFACES: [&str; 8] = [
    "operstate",
    "mtu",
    "speed",
    "duplex",
    "statistics/rx_packets",
    "statistics/tx_packets",
    "statistics/rx_errors",
    "statistics/tx_errors",
];
const OF_PROCESSES: [&str; 4] = ["status", "limits", "io", "sched"];

pub fn system(archive: &mut Archive) -> Outcome {
    let uname = nix::sys::utsname::uname().map_err(|e| format!("uname: {e}"));
    let uname = uname.map(|u| {
        [u.sysname(), u.nodename(), u.release(), u.version(), u.machine()]
            .map(|part| part.to_string_lossy())
            .join(" ")
    });
    archive.text_or_note("host/uname.txt", uname)?;
    for path in SYSTEM {
        let name = format!("host/{}", path.trim_start_matches('/').replace('/', "-"));
        archive.file(&name, Path::new(path))?;
    }
    archive.text("host/disks.txt", &table_of("/sys/block", &OF_DISKS))?;
    archive.text("host/interfaces.txt", &table_of("/sys/class/net", &OF_INTERFACES))
}

/// The same few files of each entry of a directory.
fn table_of(dir: &str, files: &[&str]) -> String {
    let mut names: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    names.sort();
    let line = |entry: &PathBuf| -> String {
        let value = |file: &&str| {
            let text = fs::read_to_string(entry.join(file)).ok()?;
            Some(format!(" {file}={}", text.trim().replace('\n', "; ")))
        };
        let values: String = files.iter().filter_map(value).collect();
        format!("{}:{values}\n", entry.display())
    };
    names.iter().map(line).collect()
}

/// What `systemctl` and the like know; nothing where there is no systemd.
pub fn journal(archive: &mut Archive) -> Outcome {
    let mut command = Command::new("journalctl");
    command.args(["--no-pager", "--output=short-iso-precise", "-n", JOURNAL_LINES, "-u", "pstorage*"]);
    let said = command.stdin(Stdio::null()).output().map_err(|e| format!("journalctl: {e}"));
    archive
        .text_or_note("host/journal.txt", said.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()))
}

/// Settings below ETC. Of key files it is only told that they are there, and for whom.
pub fn settings(archive: &mut Archive, context: &Context) -> Outcome {
    for name in ["pstorage.conf", "location", "services"] {
        let path = context.etc.join(name);
        if path.exists() {
            archive.file(&format!("etc/{name}"), &path)?;
        }
    }
    let dir = context.cluster_dir()?;
    let cluster = context.cluster()?;
    let bs_list = dir.join("bs.list");
    if bs_list.exists() {
        archive.file(&format!("etc/clusters/{cluster}/bs.list"), &bs_list)?;
    }
    let key = dir.join(KEY_FILE);
    let told = match fs::metadata(&key) {
        Ok(meta) => format!(
            "{}: {} bytes, mode {:o}, owner {}; its contents are not in this report",
            key.display(),
            meta.len(),
            meta.permissions().mode() & 0o7777,
            meta.uid()
        ),
        Err(e) => format!("{}: {e}", key.display()),
    };
    archive.text(&format!("etc/clusters/{cluster}/{KEY_FILE}.txt"), &told)
}

/// Cards, logs and processes of the cluster's servers on this host.
pub fn servers(archive: &mut Archive, context: &Context) -> Outcome {
    let services = match services::of_host(context) {
        Ok(services) => services,
        Err(why) => {
            archive.note("services", &why);
            return Ok(());
        }
    };
    archive.json("services.json", &services)?;
    services.iter().try_for_each(|service| server(archive, service))
}

fn server(archive: &mut Archive, service: &Service) -> Outcome {
    let top = format!("services/{}-{}", service.service, service.id);
    archive.file(&format!("{top}/control.json"), &service.path.join("control.json"))?;
    logs(archive, &format!("{top}/logs"), &service.path.join("logs"))?;
    archive.text(&format!("{top}/files.txt"), &files_of(&service.path))?;
    match service.pid {
        0 => Ok(()),
        pid => process(archive, &top, pid),
    }
}

fn logs(archive: &mut Archive, top: &str, dir: &Path) -> Outcome {
    let mut files: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.sort();
    let is_log = |path: &&PathBuf| path.extension().is_some_and(|e| e == "log") && path.is_file();
    for path in files.iter().filter(is_log) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("{top}/{name}"), path)?;
    }
    Ok(())
}

/// Names, sizes and what is taken of the disk, two levels deep.
fn files_of(dir: &Path) -> String {
    let mut lines = Vec::new();
    let mut dirs = vec![(dir.to_path_buf(), 0)];
    while let Some((at, depth)) = dirs.pop() {
        for entry in fs::read_dir(&at).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() && depth < 1 {
                dirs.push((entry.path(), depth + 1));
            }
            lines.push(format!(
                "{} {} bytes, {} on disk",
                entry.path().display(),
                meta.len(),
                meta.blocks() * 512
            ));
        }
    }
    lines.sort();
    lines.join("\n")
}

fn process(archive: &mut Archive, top: &str, pid: u32) -> Outcome {
    let at = PathBuf::from(format!("/proc/{pid}"));
    for name in OF_PROCESSES {
        archive.file(&format!("{top}/process-{name}.txt"), &at.join(name))?;
    }
    let program =
        fs::read_link(at.join("exe")).map_or_else(|e| e.to_string(), |path| path.display().to_string());
    let variables = words(&at.join("environ"));
    let told = variables.iter().filter(|v| VARIABLES.iter().any(|name| v.starts_with(&format!("{name}="))));
    let text = format!(
        "program: {program}\ncommand: {}\n{}\n",
        words(&at.join("cmdline")).join(" "),
        told.cloned().collect::<Vec<_>>().join("\n")
    );
    archive.text(&format!("{top}/process.txt"), &text)
}

/// Of a file of words that end with zeros.
fn words(path: &Path) -> Vec<String> {
    let bytes = fs::read(path).unwrap_or_default();
    bytes
        .split(|b| *b == 0)
        .filter(|w| !w.is_empty())
        .map(|w| String::from_utf8_lossy(w).into_owned())
        .collect()
}

/// Mounts of the cluster: their command lines, and logs where these say there are some.
pub fn mounts(archive: &mut Archive, context: &Context) -> Outcome {
    let cluster = context.cluster()?;
    for pid in processes() {
        let words = words(&PathBuf::from(format!("/proc/{pid}/cmdline")));
        let is_mount = words.first().is_some_and(|program| program.ends_with("pstorage-mount"));
        // Another cluster may have the same name.
        if !is_mount
            || !words.iter().any(|word| word == cluster)
            || !is_same(&etc_of(pid, &words), &context.etc)
        {
            continue;
        }
        let top = format!("mounts/{pid}");
        process(archive, &top, pid)?;
        if let Some(log) = log_of(&words) {
            archive.file(&format!("{top}/mount.log"), &log)?;
        }
    }
    Ok(())
}

/// Where a mount has its settings.
fn etc_of(pid: u32, words: &[String]) -> PathBuf {
    let behind = words.windows(2).find(|pair| pair[0] == "--etc").map(|pair| pair[1].clone());
    let variable = || {
        let variables = self::words(&PathBuf::from(format!("/proc/{pid}/environ")));
        variables.iter().find_map(|variable| variable.strip_prefix("PSTORAGE_ETC=").map(String::from))
    };
    behind.or_else(variable).unwrap_or_else(|| "/etc/pstorage".into()).into()
}

fn is_same(one: &Path, other: &Path) -> bool {
    one.canonicalize().ok().zip(other.canonicalize().ok()).is_some_and(|(one, other)| one == other)
}

pub fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// `-l FILE`, `--log FILE`, `--log=FILE`, or `log=FILE` among the options behind `-o`.
fn log_of(words: &[String]) -> Option<PathBuf> {
    let behind =
        words.windows(2).find(|pair| pair[0] == "-l" || pair[0] == "--log").map(|pair| pair[1].as_str());
    let joined = || words.iter().find_map(|word| word.strip_prefix("--log="));
    let option = || words.iter().flat_map(|word| word.split(',')).find_map(|word| word.strip_prefix("log="));
    behind.or_else(joined).or_else(option).map(PathBuf::from)
}

/// Secrets that this host has, so that they can be taken out wherever they stand: key files of all clusters, and variables of
/// this program and of the servers and mounts whose names say so.
pub fn known_secrets(context: &Context, names_a_secret: impl Fn(&str) -> bool) -> Vec<String> {
    let mut secrets = Vec::new();
    let clusters = fs::read_dir(context.etc.join("clusters")).into_iter().flatten().flatten();
    for cluster in clusters {
        let text = fs::read(cluster.path().join(KEY_FILE)).unwrap_or_default();
        for line in String::from_utf8_lossy(&text).lines() {
            // Lines are NAME=VALUE; what names and numbers the node is no secret.
            let (name, value) = line.split_once('=').unwrap_or(("", line));
            if !["cluster", "node", "name", "generation"].contains(&name.trim()) {
                secrets.push(value.trim().to_string());
            }
        }
    }
    let ours = std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
    secrets.extend(ours.filter(|(name, _)| names_a_secret(name)).map(|(_, value)| value));
    for pid in processes() {
        let at = PathBuf::from(format!("/proc/{pid}"));
        let name = fs::read_to_string(at.join("comm")).unwrap_or_default();
        if !name.starts_with("pstorage") {
            continue;
        }
        let variables = words(&at.join("environ"));
        let pairs = variables.iter().filter_map(|v| v.split_once('='));
        secrets.extend(pairs.filter(|(name, _)| names_a_secret(name)).map(|(_, value)| value.to_string()));
    }
    secrets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_of_mounts_are_found_in_their_words() {
        let log = |line: &str| log_of(&line.split(' ').map(String::from).collect::<Vec<_>>());
        assert_eq!(log("pstorage-mount -c pcs1 /mnt -l /var/log/m"), Some("/var/log/m".into()));
        assert_eq!(log("pstorage-mount --log=/var/log/m -c pcs1 /mnt"), Some("/var/log/m".into()));
        assert_eq!(log("pstorage-mount -o rw,log=/var/log/m,nodev -c pcs1 /mnt"), Some("/var/log/m".into()));
        assert_eq!(log("pstorage-mount -c pcs1 /mnt"), None);
    }
}
