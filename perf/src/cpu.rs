//! CPU time: of this machine, of processes; and how much of it strangers took while something was measured.

use nix::sys::resource::{UsageWho, getrusage};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use std::path::Path;
use std::time::{Duration, Instant};

/// Ticks of `/proc/stat` are hundredths of a second on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// CPU time of the whole machine since it started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MachineTime {
    /// Programs, without the kernel.
    pub user: Duration,
    /// All but idle and waiting for disks.
    pub busy: Duration,
    /// Taken by the hypervisor.
    pub stolen: Duration,
    pub at: Instant,
}

impl MachineTime {
    pub fn now() -> Option<MachineTime> {
        Self::parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    fn parse(text: &str) -> Option<MachineTime> {
        let line = text.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u32> = line.split_whitespace().map_while(|w| w.parse().ok()).collect();
        let [user, nice, system, _idle, _iowait, irq, softirq, stolen, ..] = ticks[..] else { return None };
        Some(MachineTime {
            user: TICK * (user + nice),
            busy: TICK * (user + nice + system + irq + softirq),
            stolen: TICK * stolen,
            at: Instant::now(),
        })
    }

    /// Percent of all cores that programs other than ours (which used `own_user`) and the hypervisor took since
    /// `earlier`. Kernel time is left out: threads of the kernel work for us as well.
    pub fn strangers_percent(&self, earlier: &MachineTime, own_user: Duration) -> f64 {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let span = (self.at - earlier.at).as_secs_f64() * cores;
        let user = (self.user - earlier.user).saturating_sub(own_user);
        let stolen = self.stolen.saturating_sub(earlier.stolen);
        if span == 0.0 { 0.0 } else { (user + stolen).as_secs_f64() / span * 100.0 }
    }
}

/// CPU time a program has used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cpu {
    pub total_ns: u64,
    pub user_ns: u64,
}

impl Cpu {
    pub fn of_this_process() -> Cpu {
        Self::of(UsageWho::RUSAGE_SELF)
    }

    /// Of children that have ended and were waited for.
    pub fn of_children() -> Cpu {
        Self::of(UsageWho::RUSAGE_CHILDREN)
    }

    fn of(who: UsageWho) -> Cpu {
        let usage = getrusage(who).expect("the kernel knows its process");
        let ns = |t: nix::sys::time::TimeVal| t.tv_sec() as u64 * 1_000_000_000 + t.tv_usec() as u64 * 1000;
        Cpu { total_ns: ns(usage.user_time()) + ns(usage.system_time()), user_ns: ns(usage.user_time()) }
    }
}

/// Waits until strangers use less than `percent` of the machine, at most `limit`; whether it became so.
pub fn wait_until_quiet(percent: f64, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let Some(before) = MachineTime::now() else { return true };
        std::thread::sleep(Duration::from_millis(300));
        let quiet =
            MachineTime::now().is_none_or(|after| after.strangers_percent(&before, Duration::ZERO) < percent);
        if quiet || Instant::now() > deadline {
            return quiet;
        }
    }
}

/// A process to be charged for what is measured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Watched {
    /// `cs1`, `mds2`, `mount`, …; the part before the number is its role.
    pub name: String,
    pub pid: i32,
}

impl Watched {
    /// `NAME=PID`, or `PID` alone.
    pub fn parse(text: &str) -> Result<Watched, String> {
        let (name, pid) = text.split_once('=').unwrap_or(("", text));
        let pid: i32 = pid.trim().parse().map_err(|_| format!("'{text}' is not PID or NAME=PID"))?;
        let name = if name.is_empty() { command_name(pid) } else { name.trim().into() };
        let watched = Watched { name, pid };
        watched.cpu().ok_or(format!("there is no process {pid}"))?;
        Ok(watched)
    }

    /// CPU time of all its threads, those that have ended included (workers of the kernel come and go); `None` when it
    /// is gone.
    pub fn cpu(&self) -> Option<Duration> {
        clock_getcpuclockid(Pid::from_raw(self.pid)).ok()?.now().ok().map(Duration::from)
    }

    /// Memory that is its own, with its share of what it has together with others; `None` when it is gone.
    pub fn memory_bytes(&self) -> Option<u64> {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid)).ok()?;
        let kib = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?.trim().strip_suffix(" kB")?;
        kib.parse::<u64>().ok().map(|kib| kib << 10)
    }

    /// The daemons of a cluster made by `pstorage local up DIR`.
    pub fn of_local_cluster(dir: &Path) -> Result<Vec<Watched>, String> {
        let dir = dir.canonicalize().map_err(shards::text::at(&dir))?;
        let run = dir.join("run");
        let entries = std::fs::read_dir(&run).map_err(|e| {
            format!("{}: {e}. Is {} the directory of 'pstorage local up'?", run.display(), dir.display())
        })?;
        let mut found: Vec<Watched> = entries.flatten().filter_map(|e| running(&e.path(), &dir)).collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        if found.is_empty() {
            return Err(format!("no daemon of {} runs: start it with pstorage local up", dir.display()));
        }
        Ok(found)
    }
}

/// The process named by a pid file, if its command line says that it belongs to `dir`.
fn running(pid_file: &Path, dir: &Path) -> Option<Watched> {
    let name = pid_file.file_name()?.to_str()?.strip_suffix(".pid")?.to_string();
    let pid = std::fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    String::from_utf8_lossy(&command).contains(&*dir.to_string_lossy()).then_some(Watched { name, pid })
}

fn command_name(pid: i32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if name.is_empty() { pid.to_string() } else { name.trim().to_string() }
}

/// `cs12` plays the role `cs`.
pub fn role(name: &str) -> &str {
    match name.trim_end_matches(|c: char| c.is_ascii_digit()) {
        "" => name,
        role => role,
    }
}

/// What machine, own program and watched processes had used when a measurement began.
pub struct Meter {
    machine: Option<MachineTime>,
    own: Cpu,
    /// Programs run and waited for in between are ours too.
    children: Cpu,
    watched: Vec<(Watched, Option<Duration>)>,
}

/// What was used while it ran.
pub struct Used {
    pub strangers_percent: f64,
    pub own: Duration,
    /// Of the watched processes that lived through it.
    pub watched: Vec<(String, Duration)>,
}

impl Used {
    /// Of all watched processes together.
    pub fn of_watched(&self) -> Duration {
        self.watched.iter().map(|(_, time)| *time).sum()
    }
}

impl Meter {
    pub fn start(watched: &[Watched]) -> Meter {
        Meter {
            machine: MachineTime::now(),
            own: Cpu::of_this_process(),
            children: Cpu::of_children(),
            watched: watched.iter().map(|w| (w.clone(), w.cpu())).collect(),
        }
    }

    pub fn stop(self) -> Used {
        let own = Cpu::of_this_process();
        let children_ns = Cpu::of_children().user_ns - self.children.user_ns;
        let mut ours = Duration::from_nanos(own.user_ns - self.own.user_ns + children_ns);
        let mut watched = Vec::new();
        for (process, before) in self.watched {
            if let (Some(before), Some(after)) = (before, process.cpu()) {
                let used = after.saturating_sub(before);
                ours += used; // Kernel time included: strangers are rather under- than overestimated.
                watched.push((process.name, used));
            }
        }
        let strangers_percent = match (self.machine, MachineTime::now()) {
            (Some(before), Some(after)) => after.strangers_percent(&before, ours),
            _ => 0.0,
        };
        Used { strangers_percent, own: Duration::from_nanos(own.total_ns - self.own.total_ns), watched }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_what_is_not_ours() {
        let before = MachineTime::parse("cpu  100 0 50 1000 20 0 0 0 0 0\ncpu0 1").unwrap();
        let mut after = MachineTime::parse("cpu  220 30 90 1100 20 0 5 10 0 0\n").unwrap();
        assert_eq!(after.user - before.user, Duration::from_millis(1500));
        assert_eq!(after.busy - before.busy, Duration::from_millis(1950));
        after.at = before.at + Duration::from_secs(2);
        let cores = std::thread::available_parallelism().unwrap().get() as f64;
        let percent = after.strangers_percent(&before, Duration::from_millis(600));
        assert!((percent - 100.0 * 1.0 / (2.0 * cores)).abs() < 1e-9, "{percent}");
        assert_eq!(MachineTime::parse("intr 5"), None);
    }

    #[test]
    fn processes_are_named_and_their_time_counted() {
        let own = std::process::id();
        let me = Watched::parse(&format!("cs7={own}")).unwrap();
        assert_eq!((role(&me.name), me.pid), ("cs", own as i32));
        assert!(Watched::parse(&own.to_string()).unwrap().name.len() > 1);
        assert!(Watched::parse("cs=x").unwrap_err().contains("NAME=PID"));
        assert!(me.memory_bytes().is_some_and(|bytes| bytes > 100_000));
        let meter = Meter::start(&[me]);
        let until = Instant::now() + Duration::from_millis(30);
        while Instant::now() < until {}
        let used = meter.stop();
        assert!(used.watched[0].1 >= Duration::from_millis(5), "{:?}", used.watched);
    }

    #[test]
    fn a_directory_that_is_no_cluster_is_explained() {
        assert!(Watched::of_local_cluster(Path::new("/proc")).unwrap_err().contains("pstorage local up"));
        assert_eq!((role("mount"), role("12")), ("mount", "12"));
    }
}
