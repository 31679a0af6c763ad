//! A whole cluster in the simulator's world: the real MDS, CS and client code, random work, random faults, and proof
//! that nothing acknowledged was lost.
//!
//! One seed is one run: [`run`] builds the cluster, lets clients work while servers are killed, cut off, paused and
//! slowed down, then heals everything and checks:
//! - every read was linearizable, cell by cell ([`registers`]), across crashes of clients and hand-overs of files;
//! - what was made or removed in the name space, and acknowledged, is so;
//! - the cluster heals: every chunk has all replicas in sync, every metadata server has the same state;
//! - the replicas of every chunk are equal, block by block, on their disks;
//! - no server stopped by itself, no client hangs.

mod campaign;
mod cluster;
mod prober;
pub mod registers;
mod workload;

pub use campaign::{Totals, all_cores, campaign, run_caught};
use cluster::{Cluster, Place};
use shards::Timestamp;
use shards::sim::CrashKind;
use std::collections::BTreeMap;
use std::time::Duration;

/// Size and length of a run.
#[derive(Clone, Debug)]
pub struct Options {
    pub mds: usize,
    pub cs: usize,
    pub shards: u16,
    pub clients: usize,
    pub files: usize,
    /// Virtual time during which faults happen.
    pub chaos: Duration,
    /// Mean time between two faults.
    pub fault_every: Duration,
    /// Clients open files also for reading, and share them.
    pub readers: bool,
    /// A deliberate defect, to see whether the checks find it.
    #[cfg(feature = "sabotage")]
    pub sabotage: Option<shards::sabotage::Sabotage>,
    /// Keep the last events for a failed run's report.
    pub log: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            mds: 3,
            cs: 4,
            shards: 2,
            clients: 2,
            files: 3,
            chaos: Duration::from_secs(20),
            fault_every: Duration::from_millis(1500),
            readers: false,
            #[cfg(feature = "sabotage")]
            sabotage: None,
            log: false,
        }
    }
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub trace: u64,
    pub events: u64,
    pub done_ops: u64,
    pub failed_ops: u64,
    /// Errors clients saw, by kind. They are allowed: outcomes stay open.
    pub errors: BTreeMap<String, u64>,
    pub faults: BTreeMap<&'static str, u64>,
    pub virtual_ms: u64,
    /// From the end of the faults until every replica was in sync.
    pub heal_ms: u64,
    /// Since the last start of each chunk server.
    pub cache_hits: u64,
}

/// A run that showed a defect.
#[derive(Clone, Debug)]
pub struct Failure {
    pub seed: u64,
    pub why: String,
    pub log: Vec<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in &self.log {
            writeln!(f, "{line}")?;
        }
        write!(
            f,
            "seed {}: {}\nrun it again: cargo run -p pstorage-tests --bin simulator -- --seed {} --log",
            self.seed, self.why, self.seed
        )
    }
}

/// How long a healed cluster may take to bring every replica in sync.
const HEAL_WITHIN: Duration = Duration::from_secs(120);

/// Runs one seed.
pub fn run(seed: u64, options: &Options) -> Result<Report, Failure> {
    #[cfg(feature = "sabotage")]
    shards::sabotage::choose(options.sabotage);
    let mut cluster = Cluster::new(seed, options);
    match play(&mut cluster, options) {
        Ok(report) => Ok(report),
        Err(why) => Err(Failure { seed, why, log: cluster.world.log() }),
    }
}

/// Something ordered for later.
enum Later {
    Restart(Place),
    Heal(std::net::IpAddr, std::net::IpAddr),
    Quicken(Place),
    Fault,
    EndOfChaos,
}

fn play(cluster: &mut Cluster, options: &Options) -> Result<Report, String> {
    cluster.set_up()?;
    let mut report = Report::default();
    let mut agenda: BTreeMap<(Timestamp, u64), Later> = BTreeMap::new();
    let mut number = 0;
    let mut order = |agenda: &mut BTreeMap<_, _>, at: Timestamp, later| {
        number += 1;
        agenda.insert((at, number), later);
    };
    let begin = cluster.world.now();
    order(&mut agenda, begin.after(options.fault_every), Later::Fault);
    order(&mut agenda, begin.after(options.chaos), Later::EndOfChaos);
    loop {
        let (&(at, _), _) = agenda.first_key_value().expect("the end of the chaos is on the agenda");
        if cluster.world.next_at().is_some_and(|next| next <= at) {
            cluster.step()?;
            continue;
        }
        cluster.world.wait_until(at);
        let now = at;
        match agenda.pop_first().expect("looked at above").1 {
            Later::Restart(place) => cluster.start(place),
            Later::Heal(a, b) => cluster.world.heal(a, b),
            Later::Quicken(place) => cluster.slow_down(place, 1),
            Later::EndOfChaos => break,
            Later::Fault => {
                let mean = options.fault_every.as_millis() as u64;
                let next = cluster.world.rng().between(mean / 4, mean * 7 / 4);
                order(&mut agenda, now.after(Duration::from_millis(next)), Later::Fault);
                let rng = cluster.world.rng();
                let (which, wait) = (rng.below(100), Duration::from_millis(rng.between(1, 90).pow(2)));
                let then = now.after(wait);
                let place = cluster.any_place();
                let name = match which {
                    0..=34 => {
                        let kind = if which < 17 { CrashKind::Process } else { CrashKind::Power };
                        if cluster.crash(place, kind) {
                            order(&mut agenda, then, Later::Restart(place));
                        }
                        "crash"
                    }
                    35..=39 => {
                        // The mains fail: everything at once.
                        for place in cluster.places() {
                            if cluster.crash(place, CrashKind::Power) {
                                let apart = Duration::from_millis(cluster.world.rng().below(2000));
                                order(&mut agenda, then.after(apart), Later::Restart(place));
                            }
                        }
                        "blackout"
                    }
                    40..=59 => {
                        let other = cluster.any_place();
                        let (a, b) = (cluster.ip(place), cluster.ip(other));
                        cluster.world.cut(a, b);
                        order(&mut agenda, then, Later::Heal(a, b));
                        "cut"
                    }
                    60..=74 => {
                        let a = cluster.ip(place);
                        for other in cluster.places() {
                            let b = cluster.ip(other);
                            cluster.world.cut(a, b);
                            order(&mut agenda, then, Later::Heal(a, b));
                        }
                        "isolation"
                    }
                    75..=87 => {
                        cluster.pause(place, wait);
                        "pause"
                    }
                    _ => {
                        let factor = cluster.world.rng().between(5, 200) as u32;
                        cluster.slow_down(place, factor);
                        order(&mut agenda, then, Later::Quicken(place));
                        "slow disk"
                    }
                };
                *report.faults.entry(name).or_default() += 1;
                cluster.world.note(|_| format!("fault: {name} of {place:?}"));
            }
        }
    }
    cluster.world.note(|_| "everything heals".into());
    let end_of_chaos = cluster.world.now();
    cluster.heal()?;
    report.heal_ms = cluster.world.now().since(end_of_chaos).as_millis() as u64;
    cluster.check()?;
    let work = cluster.workload();
    report.done_ops = work.done_ops;
    report.failed_ops = work.failed_ops;
    report.errors = work.errors.clone();
    report.trace = cluster.world.trace();
    report.cache_hits = cluster.cache_hits();
    report.events = cluster.world.events();
    report.virtual_ms = cluster.world.now().since(Timestamp(0)).as_millis() as u64;
    Ok(report)
}
