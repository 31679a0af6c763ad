//! What a seed means: the shape of a cluster, and a list of timed faults.
//!
//! All that goes wrong stands in the list, made before the run begins: so a run can be repeated with some of it only
//! (`--faults 0,3`), and a failing one shrunk. Swarm style: each seed leaves out a random half of the kinds of faults, so
//! that those it has meet more often.

use super::Options;
use shards::sim::Rng;
use std::fmt;
use std::time::Duration;

/// A server or client, whatever runs there now. Numbers begin with 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    Mds(usize),
    Cs(usize),
    Client(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Mds(n) => write!(f, "mds{}", n + 1),
            Place::Cs(n) => write!(f, "cs{}", n + 1),
            Place::Client(n) => write!(f, "client{}", n + 1),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskKind {
    Ssd,
    Hard,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NetKind {
    Fast,
    Slow,
}

/// What runs, and on what.
#[derive(Clone, PartialEq, Debug)]
pub struct Shape {
    pub mds: usize,
    pub cs: usize,
    /// Shards of each chunk server.
    pub shards: u16,
    /// Chunk server n stands in rack n modulo this.
    pub racks: usize,
    pub clients: usize,
    pub files: usize,
    /// Clients open files for reading too, and share them.
    pub readers: bool,
    pub disks: DiskKind,
    pub net: NetKind,
}

/// Something that goes wrong.
#[derive(Clone, PartialEq, Debug)]
pub enum What {
    /// kill -9; started again when the fault is over.
    Kill(Place),
    /// Loss of power; started again when the fault is over.
    PowerLoss(Place),
    /// All chunk servers of a rack lose power.
    RackPowerLoss(usize),
    /// Everything loses power.
    Blackout,
    /// Two hosts do not reach each other; all else does.
    Cut(Place, Place),
    /// A host reaches nobody.
    Isolation(Place),
    /// These reach each other, and nobody else.
    Island(Vec<Place>),
    /// A process stands still, as under SIGSTOP.
    Pause(Place),
    /// A disk is this many times slower.
    SlowDisk(Place, u32),
}

impl What {
    /// The kind, for statistics.
    pub fn name(&self) -> &'static str {
        match self {
            What::Kill(_) => "kill",
            What::PowerLoss(_) => "power loss",
            What::RackPowerLoss(_) => "rack power loss",
            What::Blackout => "blackout",
            What::Cut(..) => "cut",
            What::Isolation(_) => "isolation",
            What::Island(_) => "island",
            What::Pause(_) => "pause",
            What::SlowDisk(..) => "slow disk",
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match self {
            What::Kill(p) | What::PowerLoss(p) | What::Isolation(p) | What::Pause(p) => {
                write!(f, "{name} of {p}")
            }
            What::RackPowerLoss(rack) => write!(f, "{name}, rack {}", rack + 1),
            What::Blackout => write!(f, "{name}"),
            What::Cut(a, b) => write!(f, "{name} between {a} and {b}"),
            What::Island(places) => {
                let places: Vec<String> = places.iter().map(Place::to_string).collect();
                write!(f, "{name} of {}", places.join(", "))
            }
            What::SlowDisk(p, factor) => write!(f, "{name} of {p}, {factor} times"),
        }
    }
}

/// A fault and its time, counted from the moment when the clients begin.
#[derive(Clone, PartialEq, Debug)]
pub struct Fault {
    pub at: Duration,
    pub lasts: Duration,
    pub what: What,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasts) = (self.at.as_secs_f64(), self.lasts.as_secs_f64());
        write!(f, "{at:7.3} s, for {lasts:.3} s: {}", self.what)
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    pub seed: u64,
    pub shape: Shape,
    pub faults: Vec<Fault>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Kill,
    PowerLoss,
    RackPowerLoss,
    Blackout,
    Cut,
    Isolation,
    Island,
    Pause,
    SlowDisk,
}

/// Kinds and how often each is taken, against the others that a seed has.
const KINDS: &[(Kind, u64)] = &[
    (Kind::Kill, 17),
    (Kind::PowerLoss, 17),
    (Kind::RackPowerLoss, 5),
    (Kind::Blackout, 5),
    (Kind::Cut, 20),
    (Kind::Isolation, 12),
    (Kind::Island, 10),
    (Kind::Pause, 13),
    (Kind::SlowDisk, 12),
];

impl Plan {
    /// The plan of a seed, with faults within `chaos`.
    pub fn of_seed(seed: u64, chaos: Duration) -> Plan {
        // Numbers of its own: those of the world must not depend on how many were used here.
        let mut rng = Rng::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x706c_616e);
        let shape = shape(&mut rng);
        let faults = faults(&mut rng, &shape, chaos);
        Plan { seed, shape, faults }
    }

    /// The faults to be run, with their numbers.
    pub fn chosen(&self, options: &Options) -> Vec<(usize, Fault)> {
        let wanted = |n: &usize| options.faults.as_ref().is_none_or(|faults| faults.contains(n));
        self.faults.iter().cloned().enumerate().filter(|(n, _)| wanted(n)).collect()
    }
}

fn shape(rng: &mut Rng) -> Shape {
    Shape {
        mds: rng.between(3, 5) as usize,
        cs: rng.between(5, 9) as usize,
        shards: rng.between(1, 2) as u16,
        racks: rng.between(2, 5) as usize,
        clients: rng.between(2, 4) as usize,
        files: rng.between(2, 3) as usize,
        readers: rng.one_in(2),
        disks: if rng.one_in(3) { DiskKind::Hard } else { DiskKind::Ssd },
        net: if rng.one_in(3) { NetKind::Slow } else { NetKind::Fast },
    }
}

fn faults(rng: &mut Rng, shape: &Shape, chaos: Duration) -> Vec<Fault> {
    let mut kinds: Vec<(Kind, u64)> = KINDS.iter().copied().filter(|_| rng.one_in(2)).collect();
    if kinds.is_empty() {
        kinds.push(KINDS[0]);
    }
    let total: u64 = kinds.iter().map(|(_, weight)| weight).sum();
    let count = rng.between(3, 12);
    let mut faults: Vec<Fault> = (0..count)
        .map(|_| {
            let mut at = rng.below(total);
            let (kind, _) = kinds
                .iter()
                .find(|(_, weight)| {
                    at < *weight || {
                        at -= weight;
                        false
                    }
                })
                .expect("within the sum of all");
            Fault {
                at: Duration::from_millis(rng.below(chaos.as_millis() as u64)),
                // Most are short, some outlast every timeout.
                lasts: Duration::from_millis(rng.between(1, 90).pow(2)),
                what: what(rng, shape, *kind),
            }
        })
        .collect();
    faults.sort_by_key(|fault| fault.at);
    faults
}

fn what(rng: &mut Rng, shape: &Shape, kind: Kind) -> What {
    let places: Vec<Place> = shape.places().collect();
    let place = *rng.pick(&places);
    match kind {
        Kind::Kill => What::Kill(place),
        Kind::PowerLoss => What::PowerLoss(place),
        Kind::RackPowerLoss => What::RackPowerLoss(rng.below(shape.racks as u64) as usize),
        Kind::Blackout => What::Blackout,
        Kind::Cut => {
            let others: Vec<Place> = places.iter().copied().filter(|p| *p != place).collect();
            What::Cut(place, *rng.pick(&others))
        }
        Kind::Isolation => What::Isolation(place),
        Kind::Island => {
            let one_in = rng.between(2, 4);
            let mut island: Vec<Place> = places.into_iter().filter(|_| rng.one_in(one_in)).collect();
            if island.is_empty() {
                island.push(place);
            }
            What::Island(island)
        }
        Kind::Pause => What::Pause(place),
        Kind::SlowDisk => What::SlowDisk(place, rng.between(5, 200) as u32),
    }
}

impl Shape {
    /// Everything that faults can hit.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        let mds = (0..self.mds).map(Place::Mds);
        mds.chain((0..self.cs).map(Place::Cs)).chain((0..self.clients).map(Place::Client))
    }

    /// Chunk servers of a rack.
    pub fn rack(&self, rack: usize) -> impl Iterator<Item = Place> {
        (rack..self.cs).step_by(self.racks).map(Place::Cs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_seed_is_a_plan_and_all_kinds_occur() {
        let chaos = Duration::from_secs(10);
        assert_eq!(Plan::of_seed(7, chaos), Plan::of_seed(7, chaos));
        let plans: Vec<Plan> = (0..200).map(|seed| Plan::of_seed(seed, chaos)).collect();
        let names = |plan: &Plan| plan.faults.iter().map(|f| f.what.name()).collect::<BTreeSet<_>>();
        let all: BTreeSet<&str> = plans.iter().flat_map(names).collect();
        assert_eq!(all.len(), KINDS.len());
        assert!(plans.iter().all(|p| names(p).len() < KINDS.len()), "swarm: none has all kinds");
        for plan in &plans {
            assert!(plan.faults.iter().all(|f| f.at < chaos) && plan.faults.is_sorted_by_key(|f| f.at));
            assert!((3..=5).contains(&plan.shape.mds) && (5..=9).contains(&plan.shape.cs));
            let racks: usize = (0..plan.shape.racks).map(|rack| plan.shape.rack(rack).count()).sum();
            assert_eq!(racks, plan.shape.cs, "everyone stands in one rack");
        }
    }
}
