//! Random faults on a cluster of real processes under load, from a seed. What happens depends on the seed only as far as
//! real time allows: a seed gives the same faults at the same times, not the same run.

use super::cluster::CUT;
use super::{Cluster, Line, Load, LoadReport, Shape};
use nix::sys::signal::Signal;
use shards::sim::Rng;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Everything is back to normal within this time after the last fault.
const HEALED_WITHIN: Duration = Duration::from_secs(240);
/// Faults at the same time.
const MOST_FAULTS: usize = 3;
/// The one server whose data is damaged: of damage on several at once, more than was promised could be lost.
const DAMAGED: usize = 2;

/// One fault while it lasts.
#[derive(Clone, Debug)]
enum Fault {
    Killed(Vec<String>),
    Stopped(String),
    /// Frames between two hosts, both ways or from the first to the second only.
    CutPair(String, String, bool),
    /// All frames from and to a host, or only from it, or only to it.
    CutHost(String, bool, bool),
    Slow(String, Line),
    FullDisk,
    Damage,
}

/// A run that ended well.
#[derive(Debug)]
pub struct Report {
    pub load: LoadReport,
    pub faults: usize,
    /// From the last fault until everything was healthy.
    pub healed_after: Duration,
}

/// Runs faults for `time` on a cluster made for it, then heals it and checks everything. `tell` hears what happens.
pub fn run(seed: u64, time: Duration, tell: &mut dyn FnMut(String)) -> Result<Report, String> {
    let cluster = Cluster::new("chaos", Shape { small_disk: true, ..Shape::default() });
    let mounts = (1..=cluster.shape.clients).map(|n| cluster.mnt(n)).collect();
    let load = Load::start(mounts, seed);
    let mut chaos = Chaos {
        cluster: &cluster,
        load: &load,
        rng: Rng::new(seed),
        active: Vec::new(),
        begun: 0,
        damaged: false,
        tell,
        began: Instant::now(),
    };
    chaos.run(time);
    let (faults, began) = (chaos.begun, chaos.began);
    let outcome = heal_and_check(&cluster, load, began, tell);
    if outcome.is_err() {
        tell(format!("the logs are kept in {}", cluster.keep_logs().display()));
    }
    outcome.map(|(load, healed_after)| Report { load, faults, healed_after })
}

fn heal_and_check(
    cluster: &Cluster,
    load: Load,
    began: Instant,
    tell: &mut dyn FnMut(String),
) -> Result<(LoadReport, Duration), String> {
    let healed = Instant::now();
    if !load.progresses(100, HEALED_WITHIN) {
        return Err(format!("requests don't go on within {HEALED_WITHIN:?} after the last fault"));
    }
    tell(format!("{:>6.1}s requests go on", began.elapsed().as_secs_f64()));
    cluster.assert_all_running();
    cluster.wait_healthy(HEALED_WITHIN);
    let healed_after = healed.elapsed();
    tell(format!("{:>6.1}s healthy", began.elapsed().as_secs_f64()));
    let report = load.finish()?;
    // Damage that nobody has read yet is found by the first, repaired, and gone in the second.
    cluster.admin(&["check", "--repair"]);
    cluster.wait_healthy(HEALED_WITHIN);
    let checked = cluster.admin(&["check"]);
    if checked.code != 0 {
        return Err(format!("replicas differ: {}", checked.text));
    }
    Ok((report, healed_after))
}

struct Chaos<'a> {
    cluster: &'a Cluster,
    load: &'a Load,
    rng: Rng,
    active: Vec<(Instant, Fault)>,
    begun: usize,
    damaged: bool,
    tell: &'a mut dyn FnMut(String),
    began: Instant,
}

impl Chaos<'_> {
    fn run(&mut self, time: Duration) {
        let end = self.began + time;
        let mut next = Instant::now();
        while Instant::now() < end {
            if Instant::now() >= next {
                if self.active.len() < MOST_FAULTS {
                    let fault = self.choose();
                    let until = Instant::now() + Duration::from_millis(self.rng.between(500, 9000));
                    self.begin(until.min(end), fault);
                }
                next = Instant::now() + Duration::from_millis(self.rng.between(300, 4000));
            }
            self.end_due(Instant::now());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.end_due(end + Duration::from_secs(3600));
    }

    /// A fault on services that have none.
    fn choose(&mut self) -> Fault {
        loop {
            let services = self.cluster.service_names();
            let one = self.rng.pick(&services).clone();
            let other = self.rng.pick(&services).clone();
            let fault = match self.rng.below(20) {
                0..=4 => Fault::Killed(vec![one.clone()]),
                5 => Fault::Killed(services.into_iter().filter(|s| s.starts_with("cs")).collect()),
                6 => Fault::Killed(services.into_iter().filter(|s| s.starts_with("mds")).collect()),
                7..=9 => Fault::Stopped(one.clone()),
                10..=12 => Fault::CutPair(one.clone(), other.clone(), self.rng.one_in(2)),
                13..=15 => {
                    let (from, to) =
                        *self.rng.pick(&[(true, true), (true, true), (true, false), (false, true)]);
                    Fault::CutHost(one.clone(), from, to)
                }
                16..=17 => Fault::Slow(one.clone(), self.slow_line()),
                18 => Fault::FullDisk,
                _ => Fault::Damage,
            };
            let busy =
                |wanted: &str| self.active.iter().any(|(_, f)| f.touches().iter().any(|t| t == wanted));
            let free = fault.touches().iter().all(|service| !busy(service));
            let sensible = match &fault {
                Fault::CutPair(a, b, _) => a != b,
                Fault::Damage => !self.damaged,
                _ => true,
            };
            if free && sensible {
                return fault;
            }
        }
    }

    fn slow_line(&mut self) -> Line {
        let mut line = Line::default();
        match self.rng.below(3) {
            0 => line.delay = Duration::from_millis(self.rng.between(5, 200)),
            1 => line.loss_permille = self.rng.between(5, 150) as u16,
            _ => line.bytes_per_s = Some(self.rng.between(100_000, 5_000_000)),
        }
        line
    }

    fn say(&mut self, text: String) {
        (self.tell)(format!("{:>6.1}s {text}", self.began.elapsed().as_secs_f64()));
    }

    fn begin(&mut self, until: Instant, fault: Fault) {
        let seconds = until.saturating_duration_since(Instant::now()).as_secs_f64();
        self.say(format!("{fault:?} for {seconds:.1}s"));
        self.begun += 1;
        match &fault {
            Fault::Killed(names) => {
                for name in names {
                    self.cluster.kill(name);
                    if let Some(number) = client_number(name) {
                        self.load.mount_replaced(number - 1);
                    }
                }
            }
            Fault::Stopped(name) => self.cluster.signal(name, Signal::SIGSTOP),
            Fault::FullDisk => self.cluster.disk.iter().for_each(|d| d.fill()),
            Fault::Damage => {
                self.damaged = true;
                let turned = damage(self.cluster, DAMAGED, &mut self.rng);
                self.say(format!("{turned} bits turned in the data of cs{DAMAGED}"));
            }
            Fault::CutPair(..) | Fault::CutHost(..) | Fault::Slow(..) => {}
        }
        self.active.push((until, fault));
        self.set_lines();
    }

    fn end_due(&mut self, now: Instant) {
        let (mut due, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.active).into_iter().partition(|(until, _)| *until <= now);
        self.active = rest;
        // A mount that starts is waited for, and needs a majority of the metadata servers: it goes behind them.
        let troubled =
            self.active.iter().flat_map(|(_, f)| f.touches()).filter(|s| s.starts_with("mds")).count();
        let (mounts, others): (Vec<_>, Vec<_>) = due.into_iter().partition(|(_, fault)| fault.is_of_mount());
        due = others;
        if troubled < 2 {
            due.extend(mounts)
        } else {
            self.active.extend(mounts)
        }
        if due.is_empty() {
            return;
        }
        self.set_lines();
        for (_, fault) in due {
            match &fault {
                Fault::Killed(names) => names.iter().for_each(|name| self.cluster.start(name)),
                Fault::Stopped(name) => self.cluster.signal(name, Signal::SIGCONT),
                Fault::FullDisk => self.cluster.disk.iter().for_each(|d| d.free_up()),
                Fault::Damage | Fault::CutPair(..) | Fault::CutHost(..) | Fault::Slow(..) => {}
            }
            self.say(format!("end of {fault:?}"));
        }
    }

    /// Makes the network what the active faults say.
    fn set_lines(&self) {
        let c = self.cluster;
        c.switch.heal();
        for (_, fault) in &self.active {
            match fault {
                Fault::CutPair(a, b, both) => {
                    c.line(a, b, CUT);
                    if *both {
                        c.line(b, a, CUT);
                    }
                }
                Fault::CutHost(name, from, to) => {
                    for other in c.others(name) {
                        if *from {
                            c.line(name, &other, CUT);
                        }
                        if *to {
                            c.line(&other, name, CUT);
                        }
                    }
                }
                Fault::Slow(name, line) => {
                    for other in c.others(name) {
                        c.line(name, &other, *line);
                        c.line(&other, name, *line);
                    }
                }
                _ => {}
            }
        }
    }
}

impl Fault {
    fn is_of_mount(&self) -> bool {
        matches!(self, Fault::Killed(names) if names.iter().all(|name| client_number(name).is_some()))
    }

    /// Services that must not have another fault at the same time.
    fn touches(&self) -> Vec<String> {
        match self {
            Fault::Killed(names) => names.clone(),
            Fault::Stopped(a) | Fault::CutHost(a, ..) | Fault::Slow(a, _) => vec![a.clone()],
            Fault::CutPair(a, b, _) => vec![a.clone(), b.clone()],
            Fault::FullDisk => vec!["cs1".into()],
            Fault::Damage => vec![format!("cs{DAMAGED}")],
        }
    }
}

fn client_number(name: &str) -> Option<usize> {
    name.strip_prefix("client")?.parse().ok()
}

/// Turns a bit in some of the blocks that hold something, under the running server; returns how many.
fn damage(cluster: &Cluster, cs: usize, rng: &mut Rng) -> usize {
    let path = cluster.cs_dir(cs).join("shard-000/data");
    let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else { return 0 };
    let length = file.metadata().map_or(0, |m| m.len());
    let mut turned = 0;
    for at in (0..length).step_by(4096).take(16384) {
        let mut block = [0; 4096];
        if file.read_exact_at(&mut block, at).is_ok() && block.iter().any(|b| *b != 0) && rng.one_in(4) {
            // One byte is written, so that the server's own writes beside it stand.
            let place = rng.below(4096);
            let byte = block[place as usize] ^ 1 << rng.below(8);
            if file.write_all_at(&[byte], at + place).is_ok() {
                turned += 1;
            }
        }
    }
    let _ = file.sync_all();
    turned
}
