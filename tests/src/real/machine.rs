//! A host as an administrator knows one: beside its network it has a root directory, processes and a name of its own. `/etc`,
//! `/mnt`, `/pstorage` and all else that is written lie in the host's directory; `/usr` is this machine's, with our programs in
//! `/usr/local/bin`.

use super::host::quoted;
use super::{Host, Switch};
use crate::processes::{Ended, programs};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Machine {
    host: Host,
}

/// Mounts are seen in this namespace only, and gone with its first process, the shell, as all processes in it.
const SHELL: &[&str] = &["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "sh"];
/// All that commands find in their environment.
const ENVIRONMENT: &str =
    "env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=xterm LANG=C.UTF-8";

/// `$1`: the host's directory, `$2`: its name, `$3`: our programs.
const MAKE: &str = r#"
cd "$1" && mkdir root && mount --bind root root && cd root &&
mkdir -p dev etc mnt proc pstorage root run sbin srv ssd sys tmp usr var/log var/tmp &&
chmod 1777 tmp var/tmp &&
mount --rbind /dev dev && mount -t proc none proc && mount -t sysfs none sys &&
mount --bind /usr usr && mount --bind "$3" usr/local/bin &&
for dir in bin lib lib64; do [ ! -e /$dir ] || ln -s usr/$dir; done &&
ln -s /usr/sbin/* sbin && ln -s /usr/local/bin/pstorage-mount sbin/mount.fuse.pstorage &&
cp /etc/passwd /etc/group /etc/nsswitch.conf etc && touch etc/fstab etc/resolv.conf &&
hostname "$2" && echo "127.0.0.1 localhost" >etc/hosts"#;

impl Machine {
    /// Why machines can't be made here, if they can't.
    pub fn refused() -> Option<String> {
        if !nix::unistd::geteuid().is_root() {
            return Some("needs root, for namespaces".into());
        }
        let needed = ["/dev/fuse", "/dev/net/tun", "/usr/bin/script"];
        if let Some(path) = needed.into_iter().find(|path| !Path::new(path).exists()) {
            return Some(format!("there is no {path}"));
        }
        match Command::new(SHELL[0]).args(&SHELL[1..]).args(["-c", "true"]).output() {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().into()),
            Err(e) => Some(format!("{}: {e}", SHELL[0])),
        }
    }

    pub fn new(dir: PathBuf, name: &str, ip: Ipv4Addr, switch: &mut Switch) -> Machine {
        let host = Host::with_shell(dir, ip, switch, SHELL);
        let programs = programs();
        let [dir, programs] = [&host.dir, &programs].map(|p| quoted(p.to_str().expect("plain characters")));
        host.run_line(&format!("set -- {dir} {name} {programs}; {MAKE}")).ok();
        Machine { host }
    }

    fn inside(&self, line: &str) -> String {
        format!(
            "chroot {} {ENVIRONMENT} sh -c {}",
            quoted(&self.host.path("root")),
            quoted(&format!("cd\n{line}"))
        )
    }

    /// Runs shell commands to their end. What they say on standard error stands where it was said.
    pub fn run(&self, lines: &str) -> Ended {
        self.host.run_line(&format!("exec {} 2>&1", self.inside(lines)))
    }

    /// The same on a terminal of 40 lines, which shows of what is typed only where a line ends, as programs that ask for a password have it:
    /// a person would not type before they do. Each word is typed when there are so many lines with its text (a pattern of grep) as it
    /// stands for in the list.
    pub fn run_typing(&self, line: &str, words: &[(String, String)]) -> Ended {
        let mut typed = String::new();
        for (number, (text, word)) in (1..).zip(words) {
            let (text, word) = (quoted(text), quoted(word));
            typed += &format!(
                "until [ $(grep -c {text} /tmp/typescript) -ge {number} -o -e /tmp/ended ]; do sleep 0.05; done; echo {word}; "
            );
        }
        self.run(&format!(
            "rm -f /tmp/ended; >/tmp/typescript
            ({typed}) | {{ script -qec {} /dev/null >/tmp/typescript; echo $? >/tmp/ended; }}
            cat /tmp/typescript; exit $(cat /tmp/ended)",
            quoted(&format!("stty rows 40 cols 110 -echo echonl; {line}"))
        ))
    }

    /// Starts the last of the lines and leaves it running; returns its number among this host's processes.
    pub fn start(&self, name: &str, lines: &str) -> i32 {
        self.host.start_line(name, &format!("exec {}", self.inside(lines)))
    }

    /// What a program that was started has said so far.
    pub fn said(&self, name: &str) -> String {
        let bytes = std::fs::read(self.host.dir.join(format!("{name}.out"))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub fn runs(&self, pid: i32) -> bool {
        self.run(&format!("kill -0 {pid}")).code == 0
    }

    /// A file of this host.
    pub fn file(&self, path: &str) -> PathBuf {
        self.host.dir.join("root").join(path.trim_start_matches('/'))
    }
}
