//! What the kernel knows about the disk below a path (sysfs).

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Device {
    /// `sda`, `nvme0n1`; none when the path lies on no block device of its own (tmpfs, network, FUSE, overlay).
    pub name: Option<String>,
    pub model: Option<String>,
    pub rotational: Option<bool>,
    /// `write back` or `write through`.
    pub write_cache: Option<String>,
    pub file_system: Option<String>,
    pub is_virtual: bool,
    pub in_memory: bool,
}

impl Device {
    /// The device that holds `path`, or that `path` is.
    pub fn below(path: &Path) -> Device {
        let Ok(metadata) = std::fs::metadata(path) else { return Device::default() };
        let is_device = metadata.file_type().is_block_device();
        let number = if is_device { metadata.rdev() } else { metadata.dev() };
        let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        let mut device = match PathBuf::from(format!("/sys/dev/block/{major}:{minor}")).canonicalize() {
            Ok(dir) => Device::at(&dir),
            Err(_) => Device::default(),
        };
        if !is_device {
            device.file_system = file_system(path);
            device.in_memory = matches!(device.file_system.as_deref(), Some("tmpfs" | "ramfs"));
        }
        device
    }

    fn at(dir: &Path) -> Device {
        // A partition's queue is its disk's.
        let disk = if dir.join("partition").exists() { dir.parent().unwrap_or(dir) } else { dir };
        let read = |name: &str| {
            std::fs::read_to_string(disk.join(name))
                .ok()
                .map(|t| t.trim().to_string())
                .filter(|t| !t.is_empty())
        };
        let name = disk.file_name().map(|n| n.to_string_lossy().into_owned());
        let model = read("device/model");
        let says_so = |text: &Option<String>| {
            text.as_deref()
                .is_some_and(|m| ["QEMU", "Virtual", "VBOX", "VMware"].iter().any(|v| m.contains(v)))
        };
        Device {
            is_virtual: disk.components().any(|c| c.as_os_str().to_string_lossy().starts_with("virtio"))
                || name.as_deref().is_some_and(|n| n.starts_with("xvd") || n.starts_with("loop"))
                || says_so(&model),
            name,
            model,
            rotational: read("queue/rotational").map(|t| t == "1"),
            write_cache: read("queue/write_cache"),
            file_system: None,
            in_memory: false,
        }
    }

    /// Bytes written to it since the machine started, by all programs. `None` where there is no block device.
    pub fn written_bytes(&self) -> Option<u64> {
        let stat = std::fs::read_to_string(format!("/sys/class/block/{}/stat", self.name.as_ref()?)).ok()?;
        // Sectors of 512 bytes, whatever the device's are.
        stat.split_whitespace().nth(6)?.parse::<u64>().ok().map(|sectors| sectors * 512)
    }

    /// Waits until what was written is on the disk and hardly anything (1 MB/s) follows any more, at most `limit`; bytes written by then.
    /// It looks for longer than servers wait before they write back what stands in their journals.
    pub fn settled_bytes(&self, limit: Duration) -> Option<u64> {
        const LOOK: Duration = Duration::from_secs(3);
        let deadline = Instant::now() + limit;
        nix::unistd::sync();
        let mut before = self.written_bytes()?;
        loop {
            std::thread::sleep(LOOK);
            let now = self.written_bytes()?;
            if now - before < LOOK.as_secs() * 1_000_000 || Instant::now() > deadline {
                return Some(now);
            }
            before = now;
        }
    }

    /// For the head of a report.
    pub fn facts(&self) -> Vec<(String, String)> {
        let mut words = Vec::new();
        words.extend(self.name.clone());
        words.extend(self.model.clone());
        match self.rotational {
            _ if self.is_virtual => words.push("virtual".into()),
            Some(true) => words.push("rotating".into()),
            Some(false) => words.push("solid state".into()),
            None => {}
        }
        words.extend(self.write_cache.as_ref().map(|c| format!("cache: {c}")));
        let device = if words.is_empty() { "unknown".to_string() } else { words.join(", ") };
        let mut facts = vec![("device".to_string(), device)];
        facts.extend(self.file_system.clone().map(|f| ("file system".to_string(), f)));
        facts
    }
}

fn file_system(path: &Path) -> Option<String> {
    mounted(path).map(|(_, kind)| kind)
}

/// Source and type of the file system that holds `path`, from the longest mount point above it.
pub fn mounted(path: &Path) -> Option<(String, String)> {
    let path = path.canonicalize().ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let mut best: Option<(usize, String, String)> = None;
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (Some(source), Some(at), Some(kind)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let at = at.replace("\\040", " ");
        // Later mounts lie over earlier ones of the same place.
        if path.starts_with(&at) && best.as_ref().is_none_or(|(length, ..)| at.len() >= *length) {
            best = Some((at.len(), source.to_string(), kind.to_string()));
        }
    }
    best.map(|(_, source, kind)| (source, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_from_disks() {
        let proc = Device::below(Path::new("/proc"));
        assert_eq!((proc.name, proc.file_system.as_deref()), (None, Some("proc")));
        let unknown = Device::default();
        assert_eq!(unknown.facts(), [("device".to_string(), "unknown".to_string())]);
        if file_system(Path::new("/dev/shm")).as_deref() == Some("tmpfs") {
            assert!(Device::below(Path::new("/dev/shm")).in_memory);
        }
    }
}
