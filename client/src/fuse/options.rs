//! The words of `-o`, and the owner and mode shown in place of the stored ones.

pub use super::convert::Overrides;
use fuser::MountOption;
use nix::mount::MsFlags;
use std::path::PathBuf;

#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    pub mount_options: Vec<MountOption>,
    pub overrides: Overrides,
    /// Mount over a directory that is not empty.
    pub nonempty: bool,
    /// Change the options of a mount that is there.
    pub remount: bool,
    /// Only the user who mounted may enter.
    pub only_owner: bool,
    /// `timeout=SECONDS`: how long requests wait through failures.
    pub timeout_s: Option<u64>,
    /// `slow=MS`: requests that take longer are logged.
    pub slow_request_ms: Option<u64>,
    /// `log=FILE`, `-l FILE`.
    pub log: Option<PathBuf>,
    /// `cache=FILE,cachesize=MB`, `-C FILE -R MB`: see [`MountOptions::settle_cache`].
    pub cache_file: Option<PathBuf>,
    pub cache_mb: Option<u64>,
    pub cache: Option<CacheOptions>,
    /// `metrics=IP:PORT,metrics_open`
    pub metrics: ::metrics::Options,
}

/// A read cache on a local SSD.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CacheOptions {
    pub path: PathBuf,
    pub bytes: u64,
}

const KNOWN: &str = "ro, rw, dev, nodev, suid, nosuid, exec, noexec, atime, noatime, sync, async, dirsync, \
                     remount, allow_other, only_owner, nonempty, timeout=SECONDS, slow=MS, log=FILE, cache=FILE, cachesize=MB, \
                     metrics=IP:PORT, metrics_open";

impl MountOptions {
    /// Adds the words of one `-o`.
    pub fn add(&mut self, words: &str) -> Result<(), String> {
        for word in words.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            let option = match word {
                "ro" => MountOption::RO,
                "rw" => MountOption::RW,
                "dev" => MountOption::Dev,
                "nodev" => MountOption::NoDev,
                "suid" => MountOption::Suid,
                "nosuid" => MountOption::NoSuid,
                "exec" => MountOption::Exec,
                "noexec" => MountOption::NoExec,
                "atime" => MountOption::Atime,
                "noatime" | "relatime" => MountOption::NoAtime,
                "sync" => MountOption::Sync,
                "async" => MountOption::Async,
                "dirsync" => MountOption::DirSync,
                "remount" => {
                    self.remount = true;
                    continue;
                }
                "nonempty" => {
                    self.nonempty = true;
                    continue;
                }
                "allow_other" => {
                    self.only_owner = false;
                    continue;
                }
                "only_owner" => {
                    self.only_owner = true;
                    continue;
                }
                "metrics_open" => {
                    self.metrics.metrics_open = true;
                    continue;
                }
                // Words of /etc/fstab for mount(8), or on times that we keep in one way only; not for us.
                "diratime" | "nodiratime" | "strictatime" | "lazytime" | "nolazytime" => continue,
                "defaults" | "auto" | "noauto" | "user" | "nouser" | "nofail" | "_netdev" => continue,
                word if word.starts_with("x-") => continue,
                word if word.starts_with("timeout=") => {
                    let seconds = word["timeout=".len()..].parse().ok().filter(|s| (1..=86_400).contains(s));
                    self.timeout_s =
                        Some(seconds.ok_or(format!("-o {word}: seconds from 1 to 86400 expected"))?);
                    continue;
                }
                word if word.starts_with("slow=") => {
                    let ms = word["slow=".len()..].parse();
                    self.slow_request_ms = Some(ms.map_err(|_| format!("-o {word}: milliseconds expected"))?);
                    continue;
                }
                word if word.starts_with("log=") => {
                    self.log = Some(PathBuf::from(&word["log=".len()..]));
                    continue;
                }
                word if word.starts_with("cache=") => {
                    self.cache_file = Some(PathBuf::from(&word["cache=".len()..]));
                    continue;
                }
                word if word.starts_with("cachesize=") => {
                    let size = &word["cachesize=".len()..];
                    self.cache_mb = Some(cache_mb(size).map_err(|why| format!("-o {word}: {why}"))?);
                    continue;
                }
                word if word.starts_with("metrics=") => {
                    let addr = word["metrics=".len()..].parse();
                    self.metrics.metrics =
                        Some(addr.map_err(|_| format!("-o {word}: an address IP:PORT expected"))?);
                    continue;
                }
                word => return Err(format!("unknown mount option '{word}'; known are {KNOWN}")),
            };
            self.mount_options.push(option);
        }
        Ok(())
    }
}

/// Size of a read cache in MB, or with a unit: `10240`, `10G`.
pub fn cache_mb(text: &str) -> Result<u64, String> {
    Ok(shards::text::parse_size(text, 1 << 20)? >> 20)
}

impl MountOptions {
    /// What the kernel is told when a mount is changed: all that it is to be, as for a new one.
    pub fn remount_flags(&self) -> MsFlags {
        let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        for option in &self.mount_options {
            let (flag, on) = match option {
                MountOption::RO => (MsFlags::MS_RDONLY, true),
                MountOption::RW => (MsFlags::MS_RDONLY, false),
                MountOption::Dev => (MsFlags::MS_NODEV, false),
                MountOption::NoDev => (MsFlags::MS_NODEV, true),
                MountOption::Suid => (MsFlags::MS_NOSUID, false),
                MountOption::NoSuid => (MsFlags::MS_NOSUID, true),
                MountOption::Exec => (MsFlags::MS_NOEXEC, false),
                MountOption::NoExec => (MsFlags::MS_NOEXEC, true),
                MountOption::Atime => (MsFlags::MS_NOATIME, false),
                MountOption::NoAtime => (MsFlags::MS_NOATIME, true),
                MountOption::Sync => (MsFlags::MS_SYNCHRONOUS, true),
                MountOption::Async => (MsFlags::MS_SYNCHRONOUS, false),
                MountOption::DirSync => (MsFlags::MS_DIRSYNC, true),
                _ => continue,
            };
            flags.set(flag, on);
        }
        flags
    }

    /// Puts together what was said of the read cache: the file and its size go with each other.
    pub fn settle_cache(&mut self) -> Result<(), String> {
        self.cache = match (self.cache_file.take(), self.cache_mb.take()) {
            (None, None) => None,
            (Some(file), _) if file.as_os_str().is_empty() => {
                return Err("the read cache needs the name of a file".into());
            }
            (Some(file), Some(mb)) => {
                let bytes = mb << 20;
                crate::core::check_cache_size(bytes).map_err(|e| e.to_string())?;
                // The daemon changes its directory.
                let path = std::path::absolute(&file).map_err(shards::text::at(&file))?;
                Some(CacheOptions { path, bytes })
            }
            (Some(file), None) => {
                return Err(format!(
                    "say how large the read cache {} may be: -R SIZE_MB (or -o cachesize=MB)",
                    file.display()
                ));
            }
            (None, Some(_)) => {
                return Err("say where the read cache is: -C FILE on a local SSD (or -o cache=FILE)".into());
            }
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_o_are_taken_or_explained() {
        let mut options = MountOptions::default();
        options.add("rw,nosuid,nonempty,timeout=5,_netdev").unwrap();
        assert_eq!(options.mount_options, vec![MountOption::RW, MountOption::NoSuid]);
        assert!(options.nonempty && options.timeout_s == Some(5));
        assert!(options.add("bogus").unwrap_err().contains("known are"));
        assert!(options.add("timeout=0").is_err());
        options.add("metrics=192.0.2.1:9527").unwrap();
        assert!(options.metrics.check().is_err());
        options.add("metrics_open").unwrap();
        assert!(options.metrics.check().is_ok());
        assert!(options.add("metrics=host").unwrap_err().contains("IP:PORT"));
    }

    #[test]
    fn a_mount_is_changed_to_what_is_said_last() {
        let mut options = MountOptions::default();
        options.add("rw,remount,dev,ro,nodiratime").unwrap();
        assert!(options.remount);
        let expected = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_RDONLY;
        assert_eq!(options.remount_flags(), expected);
    }

    #[test]
    fn a_read_cache_has_a_file_and_a_size() {
        let settled = |words: &str| {
            let mut options = MountOptions::default();
            options.add(words)?;
            options.settle_cache().map(|()| options.cache)
        };
        let cache = settled("rw,cache=/ssd/c,cachesize=64").unwrap().unwrap();
        assert_eq!((cache.path, cache.bytes), (PathBuf::from("/ssd/c"), 64 << 20));
        assert_eq!(settled("cache=/ssd/c,cachesize=2G").unwrap().unwrap().bytes, 2 << 30);
        assert_eq!(settled("rw"), Ok(None));
        assert!(settled("cache=/ssd/c").unwrap_err().contains("-R"));
        assert!(settled("cachesize=5").unwrap_err().contains("-C"));
        assert!(settled("cache=/ssd/c,cachesize=0").is_err());
        assert!(settled("cache=/ssd/c,cachesize=x").is_err());
    }
}
