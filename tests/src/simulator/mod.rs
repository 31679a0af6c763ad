//! A whole cluster in the simulator's world: the real MDS, CS and client code, random work, random faults, and proof
//! that nothing acknowledged was lost.
//!
//! One seed is one run: [`run`] builds the cluster, lets clients work while servers are killed, cut off, paused and
//! slowed down, then heals everything and checks:
//! - every read was linearizable, cell by cell ([`crate::registers`]), across crashes of clients and hand-overs of files;
//! - what was made or removed in the name space, and acknowledged, is so;
//! - the cluster heals: every chunk has all replicas in sync, every metadata server has the same state;
//! - the replicas of every chunk are equal, block by block, on their disks;
//! - no server stopped by itself, no client hangs.

mod campaign;
mod checks;
mod cluster;
mod plan;
mod play;
mod prober;
mod shrink;
mod watch;
mod workload;

pub use campaign::{Totals, all_cores, campaign, run_caught};
use cluster::Cluster;
pub use plan::{Fault, Place, Plan, Shape, What};
use std::collections::BTreeMap;
use std::time::Duration;

/// How a seed is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Virtual time during which faults begin.
    pub chaos: Duration,
    /// Plans of [`Plan::harsh`].
    pub harsh: bool,
    /// Only these faults of the plan. `None`: all.
    pub faults: Option<Vec<usize>>,
    /// Most runs spent on finding out which faults a failure needs. 0: none.
    pub shrink_runs: usize,
    /// A deliberate defect, to see whether the checks find it.
    #[cfg(feature = "sabotage")]
    pub sabotage: Option<shards::sabotage::Sabotage>,
    /// So many chunk servers instead of those of the plan.
    pub servers: Option<usize>,
    /// Print everything that happens.
    pub trace: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            chaos: Duration::from_secs(10),
            harsh: false,
            faults: None,
            shrink_runs: 0,
            #[cfg(feature = "sabotage")]
            sabotage: None,
            servers: None,
            trace: false,
        }
    }
}

impl Options {
    /// What a seed means with these options.
    pub fn plan(&self, seed: u64) -> Plan {
        let mut plan =
            if self.harsh { Plan::harsh(seed, self.chaos) } else { Plan::of_seed(seed, self.chaos) };
        plan.shape.cs = self.servers.map_or(plan.shape.cs, |servers| servers.max(plan.shape.cs));
        plan
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
    pub filled: Filled,
    /// Chunk servers that were left out for a while because they were slow.
    pub slow_rests: u64,
}

/// How replicas were brought up to date.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filled {
    pub catch_ups: u64,
    pub catch_up_bytes: u64,
    pub full_copies: u64,
    pub full_copy_bytes: u64,
}

impl std::ops::AddAssign for Filled {
    fn add_assign(&mut self, more: Filled) {
        self.catch_ups += more.catch_ups;
        self.catch_up_bytes += more.catch_up_bytes;
        self.full_copies += more.full_copies;
        self.full_copy_bytes += more.full_copy_bytes;
    }
}

/// A run that showed a defect.
#[derive(Clone, Debug)]
pub struct Failure {
    pub seed: u64,
    /// Of a plan of [`Plan::harsh`].
    pub harsh: bool,
    /// As [`Options::servers`].
    pub servers: Option<usize>,
    pub why: String,
    /// The faults it needs, with their numbers in the plan; all if it was not shrunk.
    pub faults: Vec<(usize, Fault)>,
}

impl Failure {
    /// What repeats it.
    pub fn command(&self) -> String {
        let numbers: Vec<String> = self.faults.iter().map(|(n, _)| n.to_string()).collect();
        format!(
            "cargo run -p pstorage-tests --bin simulator -- --seed {}{}{} --faults {} --trace",
            self.seed,
            if self.harsh { " --harsh" } else { "" },
            self.servers.map(|servers| format!(" --servers {servers}")).unwrap_or_default(),
            if numbers.is_empty() { "none".into() } else { numbers.join(",") }
        )
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "seed {}: {}", self.seed, self.why)?;
        for (n, fault) in &self.faults {
            writeln!(f, "  fault {n}: {fault}")?;
        }
        write!(f, "run it again: {}", self.command())
    }
}

/// Runs one seed. A panic of the product is a panic here; see [`run_caught`].
pub fn run(seed: u64, options: &Options) -> Result<Report, Failure> {
    run_plan(&options.plan(seed), options)
}

/// Runs a plan that need not be a seed's.
pub fn run_plan(plan: &Plan, options: &Options) -> Result<Report, Failure> {
    #[cfg(feature = "sabotage")]
    shards::sabotage::choose(options.sabotage);
    let mut cluster = Cluster::new(plan.seed, &plan.shape, options);
    let outcome = play::play(&mut cluster, plan, options);
    outcome.map_err(|why| Failure {
        seed: plan.seed,
        harsh: plan.shape.harsh,
        servers: options.servers,
        why,
        faults: plan.chosen(options),
    })
}
