//! The words of `-o`, and the owner and mode shown in place of the stored ones.

pub use super::convert::Overrides;
use fuser::MountOption;

#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    pub mount_options: Vec<MountOption>,
    pub overrides: Overrides,
    /// Mount over a directory that is not empty.
    pub nonempty: bool,
    /// Only the user who mounted may enter.
    pub only_owner: bool,
    /// `timeout=SECONDS`: how long requests wait through failures.
    pub timeout_s: Option<u64>,
}

const KNOWN: &str = "ro, rw, dev, nodev, suid, nosuid, exec, noexec, atime, noatime, sync, async, dirsync, \
                     allow_other, only_owner, nonempty, timeout=SECONDS";

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
                // Words of /etc/fstab for mount(8), not for us.
                "defaults" | "auto" | "noauto" | "user" | "nouser" | "nofail" | "_netdev" => continue,
                word if word.starts_with("x-") => continue,
                word if word.starts_with("timeout=") => {
                    let seconds = word["timeout=".len()..].parse().ok().filter(|s| (1..=86_400).contains(s));
                    self.timeout_s =
                        Some(seconds.ok_or(format!("-o {word}: seconds from 1 to 86400 expected"))?);
                    continue;
                }
                word => return Err(format!("unknown mount option '{word}'; known are {KNOWN}")),
            };
            self.mount_options.push(option);
        }
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
    }
}
