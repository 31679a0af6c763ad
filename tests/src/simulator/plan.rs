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
    /// Clocks run too fast or too slow by up to so many parts per million.
    pub drift_ppm: u64,
    /// The only chunk server whose disk damages or refuses something: one failure is within what replicas promise.
    pub bad_disk: Option<(usize, BadDisk)>,
    /// See [`Plan::harsh`].
    pub harsh: bool,
}

/// What is wrong with a bad disk. One thing only: a write that the disk said it had and a crash make a replica forget what
/// it acknowledged, which nothing on it can tell (docs/formats.md).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadDisk {
    /// Damages, loses and misdirects writes, and decays. Its server is never killed.
    Lies,
    /// Returns errors, or is full. Its server may stop because of it.
    Refuses,
    /// Map pages of the chunk store decay while its server is down.
    Decays,
}

/// What a bad disk does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskFault {
    /// So many bits of data turn, wherever they lie.
    Rot(u32),
    /// Some writes of data are lost.
    LostWrite,
    /// Some writes of data land elsewhere.
    Misdirected,
    /// Bits of some writes of data turn on their way.
    WriteFlip,
    /// Bits of some reads of data turn on their way.
    ReadFlip,
    /// Some reads of data fail.
    ReadError,
    /// A write of data fails.
    WriteError,
    /// There is no room left, for as long as the fault lasts.
    Full,
    /// The server is killed, finds a part of its map pages damaged when it starts again, and has lost what they described.
    MapRot,
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
    /// Nothing gets from the first to the second; the other way is open.
    OneWay(Place, Place),
    /// All connections between two hosts break at once, again and again while it lasts.
    Resets(Place, Place),
    /// One packet in so many of a host is lost and sent again: late, and all behind it.
    Loss(Place, u64),
    /// A host is far away: so many milliseconds more, each way.
    Far(Place, u64),
    /// A host's network card sends and receives so few bytes per microsecond.
    Narrow(Place, u64),
    /// A client and those that lead the chunks of its file are on an island, where they believe that all is well; it goes
    /// on reading, others want its file. With `pause` the client stands still for the first half; the chunk server
    /// `early` loses the leaders a moment before the others do.
    Stranded {
        client: usize,
        pause: bool,
        early: Option<usize>,
    },
    /// A client is cut off, and stands still from then until after the cut has ended: what it had sent arrives when its
    /// session is over and others have its file, and it does not know.
    SpeaksLate(usize),
    /// A chunk server and one that it is filling are on an island; what it tells of the copy arrives when others lead the
    /// chunk, and the copy is no longer whole.
    StrandedFill,
    /// To the server with the bad disk.
    Disk(DiskFault),
    /// A metadata server is added.
    AddMds,
    RemoveMds(usize),
    /// The leases of a file are revoked.
    Revoke(usize),
    /// A chunk server is drained and dropped, or dropped at once.
    RemoveCs {
        cs: usize,
        force: bool,
    },
    /// Its removal is cancelled.
    KeepCs(usize),
    /// A setting is changed.
    Configure(&'static str, u64),
    /// All files get another failure domain: replicas that share a rack must move, primaries too.
    FailureDomain(&'static str),
}

impl What {
    /// Has the fault hit no chunk server but this one. Beside a disk that lies two of three replicas stay good so, and the
    /// bad one never is the last.
    fn spare_all_but(&mut self, victim: usize) {
        let moved = |place: Place| if let Place::Cs(_) = place { Place::Cs(victim) } else { place };
        match self {
            What::Kill(p) | What::PowerLoss(p) | What::Isolation(p) | What::Pause(p) => *p = moved(*p),
            What::SlowDisk(p, _) | What::Loss(p, _) | What::Far(p, _) | What::Narrow(p, _) => *p = moved(*p),
            What::Cut(a, b) | What::OneWay(a, b) | What::Resets(a, b) => (*a, *b) = (moved(*a), moved(*b)),
            What::Island(places) => places.retain(|p| !matches!(p, Place::Cs(_)) || *p == Place::Cs(victim)),
            What::RackPowerLoss(_) | What::Blackout => *self = What::PowerLoss(Place::Cs(victim)),
            What::Stranded { client, .. } | What::SpeaksLate(client) => {
                *self = What::Isolation(Place::Client(*client));
            }
            What::RemoveCs { cs, .. } | What::KeepCs(cs) => *cs = victim,
            What::StrandedFill => *self = What::Isolation(Place::Cs(victim)),
            What::Disk(_)
            | What::AddMds
            | What::RemoveMds(_)
            | What::Revoke(_)
            | What::Configure(..)
            | What::FailureDomain(_) => {}
        }
    }

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
            What::OneWay(..) => "one-way cut",
            What::Resets(..) => "resets",
            What::Loss(..) => "loss",
            What::Far(..) => "far away",
            What::Narrow(..) => "narrow link",
            What::Stranded { .. } => "stranded client",
            What::SpeaksLate(_) => "client heard late",
            What::StrandedFill => "stranded copy",
            What::Disk(DiskFault::Rot(_)) => "bit rot",
            What::Disk(DiskFault::LostWrite) => "lost writes",
            What::Disk(DiskFault::Misdirected) => "misdirected writes",
            What::Disk(DiskFault::WriteFlip) => "damaged writes",
            What::Disk(DiskFault::ReadFlip) => "damaged reads",
            What::Disk(DiskFault::ReadError) => "read errors",
            What::Disk(DiskFault::WriteError) => "write error",
            What::Disk(DiskFault::Full) => "full disk",
            What::Disk(DiskFault::MapRot) => "decayed maps",
            What::AddMds => "add-mds",
            What::RemoveMds(_) => "rm-mds",
            What::Revoke(_) => "revoke",
            What::RemoveCs { .. } => "rm-cs",
            What::KeepCs(_) => "rm-cs --cancel",
            What::Configure(..) => "set-config",
            What::FailureDomain(_) => "set-attr",
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
            What::Blackout | What::StrandedFill | What::Disk(_) | What::AddMds => write!(f, "{name}"),
            What::Cut(a, b) => write!(f, "{name} between {a} and {b}"),
            What::Island(places) => {
                let places: Vec<String> = places.iter().map(Place::to_string).collect();
                write!(f, "{name} of {}", places.join(", "))
            }
            What::SlowDisk(p, factor) => write!(f, "{name} of {p}, {factor} times"),
            What::OneWay(from, to) => write!(f, "{name} from {from} to {to}"),
            What::Resets(a, b) => write!(f, "{name} between {a} and {b}"),
            What::Loss(p, one_in) => write!(f, "{name} of one packet in {one_in} of {p}"),
            What::Far(p, ms) => write!(f, "{name}: {p}, by {ms} ms"),
            What::Narrow(p, rate) => write!(f, "{name} of {p}, {rate} bytes/us"),
            What::Stranded { client, pause, early } => {
                write!(
                    f,
                    "{name}: {}{}",
                    Place::Client(*client),
                    if *pause { ", first paused" } else { "" }
                )?;
                early.map_or(Ok(()), |cs| write!(f, ", early from {}", Place::Cs(cs)))
            }
            What::SpeaksLate(client) => write!(f, "{name}: {}", Place::Client(*client)),
            What::RemoveMds(n) => write!(f, "{name} of {}", Place::Mds(*n)),
            What::Revoke(file) => write!(f, "{name} of file {file}"),
            What::RemoveCs { cs, force } => {
                write!(f, "{name} of {}{}", Place::Cs(*cs), if *force { ", at once" } else { "" })
            }
            What::KeepCs(n) => write!(f, "{name} of {}", Place::Cs(*n)),
            What::Configure(key, value) => write!(f, "{name} {key}={value}"),
            What::FailureDomain(domain) => write!(f, "{name} failure-domain={domain}"),
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
    OneWay,
    Resets,
    Loss,
    Far,
    Narrow,
    Stranded,
    SpeaksLate,
    Disk,
    AddMds,
    RemoveMds,
    Revoke,
    RemoveCs,
    Configure,
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
    (Kind::OneWay, 12),
    (Kind::Resets, 8),
    (Kind::Loss, 8),
    (Kind::Far, 5),
    (Kind::Narrow, 5),
    (Kind::Stranded, 12),
    (Kind::Disk, 25),
    (Kind::AddMds, 5),
    (Kind::RemoveMds, 4),
    (Kind::Revoke, 5),
    (Kind::RemoveCs, 6),
    (Kind::Configure, 6),
];

/// Settings changed meanwhile, and to what.
const SETTINGS: &[(&str, &[u64])] = &[
    ("mds.wd.offline_tout", &[2000, 6000, 30_000]),
    ("mds.repl.max_fills", &[1, 2, 8]),
    ("mds.wd.max_offline_cs_hosts", &[0, 1, 2]),
    ("net.encrypt", &[0, 1]),
];

impl Plan {
    /// The plan of a seed, with faults within `chaos`.
    pub fn of_seed(seed: u64, chaos: Duration) -> Plan {
        Plan::made(seed, chaos, false)
    }

    /// As [`Plan::of_seed`], with map pages that decay, clients that go on reading while they are stranded, metadata
    /// servers removed down to one, and a look for damage on good disks
    /// (docs/simulator.md).
    pub fn harsh(seed: u64, chaos: Duration) -> Plan {
        Plan::made(seed, chaos, true)
    }

    fn made(seed: u64, chaos: Duration, harsh: bool) -> Plan {
        // Numbers of its own: those of the world must not depend on how many were used here.
        let mut rng = Rng::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x706c_616e);
        let shape = shape(&mut rng, harsh);
        let faults = faults(seed, &mut rng, &shape, chaos);
        Plan { seed, shape, faults }
    }

    /// The faults to be run, with their numbers.
    pub fn chosen(&self, options: &Options) -> Vec<(usize, Fault)> {
        let wanted = |n: &usize| options.faults.as_ref().is_none_or(|faults| faults.contains(n));
        self.faults.iter().cloned().enumerate().filter(|(n, _)| wanted(n)).collect()
    }
}

fn shape(rng: &mut Rng, harsh: bool) -> Shape {
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
        drift_ppm: if rng.one_in(2) { 10_000 } else { 0 },
        bad_disk: match rng.below(if harsh { 6 } else { 4 }) {
            0 => Some((rng.below(5) as usize, BadDisk::Lies)),
            1 => Some((rng.below(5) as usize, BadDisk::Refuses)),
            2 if harsh => Some((rng.below(5) as usize, BadDisk::Decays)),
            _ => None,
        },
        harsh,
    }
}

fn faults(seed: u64, rng: &mut Rng, shape: &Shape, chaos: Duration) -> Vec<Fault> {
    let mut kinds: Vec<(Kind, u64)> = KINDS.iter().copied().filter(|_| rng.one_in(2)).collect();
    kinds.retain(|(kind, _)| *kind != Kind::Disk || shape.bad_disk.is_some());
    if matches!(shape.bad_disk, Some((_, BadDisk::Decays))) {
        kinds.push((Kind::Disk, 60));
    }
    if shape.harsh && rng.one_in(3) {
        kinds.push((Kind::SpeaksLate, 20));
    }
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
            let mut at_ms = rng.below(chaos.as_millis() as u64);
            // Most are short, some outlast every timeout.
            let mut lasts_ms = rng.between(1, 90).pow(2);
            let ends_leases = shape.harsh
                && match kind {
                    Kind::Stranded => !rng.one_in(4),
                    kind => *kind == Kind::SpeaksLate,
                };
            if ends_leases {
                // Until the client's leases have ended, and others have worked with its file.
                (at_ms, lasts_ms) = (at_ms / 3, rng.between(3000, 7000));
            }
            let (at, lasts) = (Duration::from_millis(at_ms), Duration::from_millis(lasts_ms));
            Fault { at, lasts, what: what(rng, shape, *kind) }
        })
        .collect();
    let removes = |fault: &Fault| matches!(fault.what, What::RemoveMds(_));
    if shape.harsh && faults.iter().any(removes) && rng.one_in(2) {
        // All but the first, close to each other: who is told to go may still be needed.
        let begin_ms = rng.below(chaos.as_millis() as u64 / 2);
        faults.retain(|fault| !removes(fault));
        faults.extend((1..shape.mds).map(|n| Fault {
            at: Duration::from_millis(begin_ms + rng.below(2000)),
            lasts: Duration::ZERO,
            what: What::RemoveMds(n),
        }));
    }
    if shape.harsh {
        faults.extend(stranded_fills(seed, shape, chaos));
    }
    if let Some((bad, BadDisk::Lies | BadDisk::Decays)) = shape.bad_disk {
        let victim = (bad + 1) % shape.cs;
        faults.iter_mut().for_each(|fault| fault.what.spare_all_but(victim));
    }
    faults.sort_by_key(|fault| fault.at);
    faults
}

/// Copies cut off, in every fourth plan, and what makes others make copies. From numbers of its own, so that all else in
/// a plan stays what it was.
fn stranded_fills(seed: u64, shape: &Shape, chaos: Duration) -> Vec<Fault> {
    let mut rng = Rng::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x6669_6c6c);
    if !rng.one_in(4) {
        return Vec::new();
    }
    let mut faults = Vec::new();
    for _ in 0..rng.between(1, 2) {
        let at = Duration::from_millis(rng.below(chaos.as_millis() as u64 * 2 / 3));
        let away = What::Kill(Place::Cs(rng.below(shape.cs as u64) as usize));
        faults.push(Fault { at, lasts: Duration::from_millis(rng.between(500, 1500)), what: away });
        let lasts = Duration::from_millis(rng.between(2000, 5000));
        faults.push(Fault { at: at + Duration::from_millis(300), lasts, what: What::StrandedFill });
    }
    faults
}

fn what(rng: &mut Rng, shape: &Shape, kind: Kind) -> What {
    let places: Vec<Place> = shape.places().collect();
    let place = *rng.pick(&places);
    let others: Vec<Place> = places.iter().copied().filter(|p| *p != place).collect();
    let other = |rng: &mut Rng| *rng.pick(&others);
    match kind {
        Kind::Kill => What::Kill(place),
        Kind::PowerLoss => What::PowerLoss(place),
        Kind::RackPowerLoss => What::RackPowerLoss(rng.below(shape.racks as u64) as usize),
        Kind::Blackout => What::Blackout,
        Kind::Cut => What::Cut(place, other(rng)),
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
        Kind::OneWay => What::OneWay(place, other(rng)),
        Kind::Resets => What::Resets(place, other(rng)),
        Kind::Loss => What::Loss(place, rng.between(3, 50)),
        Kind::Far => What::Far(place, rng.between(5, 300)),
        Kind::Narrow => What::Narrow(place, rng.between(1, 20)),
        Kind::Stranded => What::Stranded {
            client: rng.below(shape.clients as u64) as usize,
            pause: rng.one_in(2),
            early: (shape.harsh && rng.one_in(2)).then(|| rng.below(shape.cs as u64) as usize),
        },
        Kind::SpeaksLate => What::SpeaksLate(rng.below(shape.clients as u64) as usize),
        Kind::Disk => {
            What::Disk(disk_fault(rng, shape.bad_disk.expect("such faults are left out without").1))
        }
        Kind::AddMds => What::AddMds,
        // The first one stays: others are not known to everybody.
        Kind::RemoveMds => What::RemoveMds(rng.between(1, shape.mds as u64 - 1) as usize),
        Kind::Revoke => What::Revoke(rng.below(shape.files as u64) as usize),
        Kind::RemoveCs => {
            // Never more than two, so that three are left.
            let cs = shape.cs - rng.between(1, 2) as usize;
            match rng.below(4) {
                0 => What::KeepCs(cs),
                n => What::RemoveCs { cs, force: n == 1 },
            }
        }
        Kind::Configure if rng.one_in(2) => What::FailureDomain(if rng.one_in(4) { "host" } else { "rack" }),
        Kind::Configure => {
            let (key, values) = rng.pick(SETTINGS);
            What::Configure(key, *rng.pick(values))
        }
    }
}

fn disk_fault(rng: &mut Rng, bad: BadDisk) -> DiskFault {
    match (bad, rng.below(5)) {
        (BadDisk::Lies, 0) => DiskFault::Rot(rng.between(1, 200) as u32),
        (BadDisk::Lies, 1) => DiskFault::LostWrite,
        (BadDisk::Lies, 2) => DiskFault::Misdirected,
        (BadDisk::Lies, 3) => DiskFault::WriteFlip,
        (BadDisk::Lies, _) => DiskFault::ReadFlip,
        (BadDisk::Refuses, 0) => DiskFault::WriteError,
        (BadDisk::Refuses, 1..=2) => DiskFault::Full,
        (BadDisk::Refuses, _) => DiskFault::ReadError,
        (BadDisk::Decays, _) => DiskFault::MapRot,
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
        let plans: Vec<Plan> = (0..200).map(|seed| Plan::harsh(seed, chaos)).collect();
        let names = |plan: &Plan| plan.faults.iter().map(|f| f.what.name()).collect::<BTreeSet<_>>();
        let all: BTreeSet<&str> = plans.iter().flat_map(names).collect();
        assert_eq!(
            all.len(),
            KINDS.len() + 12,
            "two kinds in harsh plans only, nine kinds of faults of disks, two of settings, two of rm-cs"
        );
        for plan in &plans {
            assert!(plan.faults.iter().all(|f| f.at < chaos) && plan.faults.is_sorted_by_key(|f| f.at));
            assert!((3..=5).contains(&plan.shape.mds) && (5..=9).contains(&plan.shape.cs));
            let racks: usize = (0..plan.shape.racks).map(|rack| plan.shape.rack(rack).count()).sum();
            assert_eq!(racks, plan.shape.cs, "everyone stands in one rack");
        }
    }
}
