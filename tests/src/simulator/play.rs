//! Carries out a plan: its faults begin and end at their times, while clients work.

use super::cluster::Cluster;
use super::plan::{DiskFault, Fault, Place, Plan, What};
use super::{Options, Report};
use shards::Timestamp;
use shards::sim::{CrashKind, FaultEffect, FaultOn, Weather};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;
use wire::mds_api::MdsRequest;

/// Something ordered for later.
enum Later {
    Begin(Fault),
    Restart(Place),
    Heal(IpAddr, IpAddr),
    Quicken(Place),
    /// Until this time, again and again.
    Reset(IpAddr, IpAddr, Timestamp),
    Clear(IpAddr),
    /// The bad disk has room again.
    Room,
    Strand {
        client: usize,
        leaders: Vec<Place>,
        pause: bool,
        until: Timestamp,
    },
    Pause(Place, Timestamp),
    /// Looks for a copy that is being made; who makes it and who gets it are then cut off for so long.
    StrandFill {
        lasts: Duration,
        look_until: Timestamp,
    },
    /// Who made the copy comes back once another one makes it, at the latest by then.
    ComeBack {
        from: Place,
        to: Place,
        rest: Vec<Place>,
        at_latest: Timestamp,
    },
    EndOfChaos,
}

/// Servers that lost power together come back one after another.
const RESTART_APART: Duration = Duration::from_millis(170);
const RESET_EVERY: Duration = Duration::from_millis(700);
/// One of those that a stranded client's writes should reach is cut off so much earlier than the others.
const EARLY: Duration = Duration::from_millis(60);

/// A client sends something within this time after a cut, and stands still so long after the cut's end.
const SENDS: Duration = Duration::from_millis(15);
const STILL: Duration = Duration::from_millis(500);

/// Copies of small chunks are made within milliseconds.
const LOOK_EVERY: Duration = Duration::from_micros(300);
/// How long after who was filled the other one comes back, at the latest.
const COMES_BACK: Duration = Duration::from_secs(3);

struct Player<'a> {
    cluster: &'a mut Cluster,
    /// By time; the number keeps the order of those at one time.
    agenda: BTreeMap<(Timestamp, u64), Later>,
    ordered: u64,
}

/// Runs the faults that the options choose of the plan, heals everything, and checks.
pub fn play(cluster: &mut Cluster, plan: &Plan, options: &Options) -> Result<Report, String> {
    cluster.set_up()?;
    let begin = cluster.world.now();
    let mut report = Report::default();
    let mut player = Player { cluster, agenda: BTreeMap::new(), ordered: 0 };
    player.order(begin.after(options.chaos), Later::EndOfChaos);
    for (_, fault) in plan.chosen(options) {
        *report.faults.entry(fault.what.name()).or_default() += 1;
        player.order(begin.after(fault.at), Later::Begin(fault));
    }
    player.run()?;
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
    report.filled = cluster.filled();
    report.slow_rests = cluster.slow_rests()?;
    report.events = cluster.world.events();
    report.virtual_ms = cluster.world.now().since(Timestamp(0)).as_millis() as u64;
    Ok(report)
}

impl Player<'_> {
    fn order(&mut self, at: Timestamp, later: Later) {
        self.ordered += 1;
        self.agenda.insert((at, self.ordered), later);
    }

    /// Until the end of the chaos.
    fn run(&mut self) -> Result<(), String> {
        loop {
            let (&(at, _), _) = self.agenda.first_key_value().expect("the end of the chaos is on the agenda");
            if self.cluster.world.next_at().is_some_and(|next| next <= at) {
                self.cluster.step()?;
                continue;
            }
            self.cluster.world.wait_until(at);
            match self.agenda.pop_first().expect("looked at above").1 {
                Later::Begin(fault) => self.begin(fault),
                Later::Restart(place) => self.cluster.start(place),
                Later::Heal(a, b) => self.cluster.world.heal(a, b),
                Later::Quicken(place) => self.cluster.slow_down(place, 1),
                Later::Reset(a, b, until) => self.reset(a, b, until),
                Later::Clear(ip) => self.cluster.world.set_weather(ip, Weather::default()),
                Later::Room => self.cluster.mend_disk(),
                Later::Strand { client, leaders, pause, until } => self.strand(client, leaders, pause, until),
                Later::Pause(place, until) => {
                    let now = self.cluster.world.now();
                    self.cluster.pause(place, until.since(now));
                }
                Later::StrandFill { lasts, look_until } => self.strand_fill(lasts, look_until),
                Later::ComeBack { from, to, rest, at_latest } => self.come_back(from, to, rest, at_latest),
                Later::EndOfChaos => return Ok(()),
            }
        }
    }

    fn begin(&mut self, fault: Fault) {
        self.cluster.world.note(|_| format!("fault: {}, for {:?}", fault.what, fault.lasts));
        let then = self.cluster.world.now().after(fault.lasts);
        let places = self.cluster.places();
        match fault.what {
            What::Kill(place) => self.crash([place], CrashKind::Process, then),
            What::PowerLoss(place) => self.crash([place], CrashKind::Power, then),
            What::RackPowerLoss(rack) => {
                self.crash(self.cluster.shape.clone().rack(rack), CrashKind::Power, then)
            }
            What::Blackout => self.crash(places, CrashKind::Power, then),
            What::Cut(a, b) => self.cut(&[a], &[b], then),
            What::Isolation(place) => self.cut(&[place], &places, then),
            What::Island(island) => {
                let rest: Vec<Place> = places.into_iter().filter(|p| !island.contains(p)).collect();
                self.cut(&island, &rest, then);
            }
            What::Pause(place) => self.cluster.pause(place, fault.lasts),
            What::SlowDisk(place, factor) => {
                self.cluster.slow_down(place, factor);
                self.order(then, Later::Quicken(place));
            }
            What::OneWay(from, to) => {
                let (from, to) = (self.cluster.ip(from), self.cluster.ip(to));
                self.cluster.world.cut_one_way(from, to);
                self.order(then, Later::Heal(from, to));
            }
            What::Resets(a, b) => self.reset(self.cluster.ip(a), self.cluster.ip(b), then),
            What::Loss(p, loses_one_in) => {
                self.weather(p, then, Weather { loses_one_in, ..Weather::default() })
            }
            What::Far(p, ms) => {
                let delay = Duration::from_millis(ms);
                self.weather(p, then, Weather { delay, ..Weather::default() });
            }
            What::Narrow(p, bytes_per_us) => {
                self.weather(p, then, Weather { bytes_per_us, ..Weather::default() });
            }
            What::Stranded { client, pause, early } => {
                let leaders = self.cluster.leaders_for(client);
                match early.map(Place::Cs).filter(|cs| !leaders.contains(cs)) {
                    Some(early) => {
                        self.cut(&leaders, &[early], then);
                        let soon = self.cluster.world.now().after(EARLY);
                        self.order(soon, Later::Strand { client, leaders, pause, until: then });
                    }
                    None => self.strand(client, leaders, pause, then),
                }
            }
            What::SpeaksLate(client) => {
                let client = Place::Client(client);
                let others: Vec<Place> = places.into_iter().filter(|p| *p != client).collect();
                self.cut(&[client], &others, then);
                // Once it has sent something that does not arrive.
                let soon = self.cluster.world.now().after(SENDS);
                self.order(soon, Later::Pause(client, then.after(STILL)));
            }
            What::StrandedFill => self.strand_fill(fault.lasts, then),
            What::Disk(fault) => self.disk(fault, then),
            What::AddMds => self.cluster.add_mds(),
            What::RemoveMds(n) => self.cluster.remove_mds(n),
            What::Revoke(file) => {
                self.cluster.revoke(file);
            }
            What::FailureDomain(domain) => self.cluster.set_failure_domain(domain),
            What::RemoveCs { cs, force } => self.cluster.remove_cs(cs, force),
            What::KeepCs(cs) => self.cluster.keep_cs(cs),
            What::Configure(key, value) => {
                let (key, value) = (key.to_string(), value.to_string());
                self.cluster.order("set-config", MdsRequest::SetConfig { key, value });
            }
        }
    }

    /// Cuts a client and those that lead the chunks of its file off from all others.
    fn strand(&mut self, client: usize, leaders: Vec<Place>, pause: bool, until: Timestamp) {
        let island: Vec<Place> = leaders.into_iter().chain([Place::Client(client)]).collect();
        let rest: Vec<Place> = self.cluster.places().into_iter().filter(|p| !island.contains(p)).collect();
        self.cut(&island, &rest, until);
        if pause {
            let lasts = until.since(self.cluster.world.now());
            self.cluster.pause(Place::Client(client), lasts / 2);
        }
        if self.cluster.shape.harsh {
            self.cluster.strand(client, until);
        }
    }

    /// Cuts a chunk server and one that it is filling off from all others, once there is such a pair.
    fn strand_fill(&mut self, lasts: Duration, look_until: Timestamp) {
        let now = self.cluster.world.now();
        let Some((from, to)) = self.cluster.fills_under_way().next() else {
            if now < look_until {
                self.order(now.after(LOOK_EVERY), Later::StrandFill { lasts, look_until });
            }
            return;
        };
        let rest: Vec<Place> =
            self.cluster.places().into_iter().filter(|p| ![from, to].contains(p)).collect();
        self.cluster.world.note(|_| format!("fault: {from}, which fills {to}, and this one are cut off"));
        // Who was filled comes back first, with a connection that makes the next copy take a while. The other one comes
        // back meanwhile, and tells that its copy is whole.
        let then = now.after(lasts);
        self.cut(&[to], &rest, then);
        let at_latest = then.after(COMES_BACK);
        self.cut(&[from], &rest, at_latest);
        self.weather(to, at_latest, Weather { bytes_per_us: 1, ..Weather::default() });
        self.order(then, Later::ComeBack { from, to, rest, at_latest });
    }

    fn come_back(&mut self, from: Place, to: Place, rest: Vec<Place>, at_latest: Timestamp) {
        let now = self.cluster.world.now();
        let is_filled_by_another = self.cluster.fills_under_way().any(|(by, of)| of == to && by != from);
        if !is_filled_by_another && now < at_latest {
            return self.order(now.after(LOOK_EVERY), Later::ComeBack { from, to, rest, at_latest });
        }
        for place in rest {
            let (a, b) = (self.cluster.ip(from), self.cluster.ip(place));
            self.cluster.world.heal(a, b);
        }
    }

    fn reset(&mut self, a: IpAddr, b: IpAddr, until: Timestamp) {
        self.cluster.world.reset_links(a, b);
        let next = self.cluster.world.now().after(RESET_EVERY);
        if next < until {
            self.order(next, Later::Reset(a, b, until));
        }
    }

    fn weather(&mut self, place: Place, then: Timestamp, weather: Weather) {
        let ip = self.cluster.ip(place);
        self.cluster.world.set_weather(ip, weather);
        self.order(then, Later::Clear(ip));
    }

    fn disk(&mut self, fault: DiskFault, then: Timestamp) {
        let (on, effect) = match fault {
            DiskFault::Rot(bits) => return self.cluster.rot(bits),
            DiskFault::MapRot => {
                let Some(bad) = self.cluster.bad_disk() else { return };
                // Not long, so that it comes back as the primary it was.
                let now = self.cluster.world.now();
                self.crash([bad], CrashKind::Process, now.after(then.since(now) / 8));
                return self.cluster.rot_maps();
            }
            DiskFault::Full => {
                self.cluster.fill_disk();
                return self.order(then, Later::Room);
            }
            DiskFault::LostWrite => (FaultOn::Write, FaultEffect::Lost),
            DiskFault::Misdirected => (FaultOn::Write, FaultEffect::Misdirected(4096)),
            DiskFault::WriteFlip => (FaultOn::Write, FaultEffect::WriteFlip),
            DiskFault::ReadFlip => (FaultOn::Read, FaultEffect::ReadFlip),
            DiskFault::ReadError => (FaultOn::Read, FaultEffect::Eio),
            DiskFault::WriteError => (FaultOn::Write, FaultEffect::Eio),
        };
        self.cluster.spoil_disk(on, effect);
    }

    fn crash(&mut self, places: impl IntoIterator<Item = Place>, kind: CrashKind, then: Timestamp) {
        let mut then = then;
        for place in places {
            if self.cluster.crash(place, kind) {
                self.order(then, Later::Restart(place));
                then = then.after(RESTART_APART);
            }
        }
    }

    fn cut(&mut self, these: &[Place], those: &[Place], then: Timestamp) {
        for a in these {
            for b in those {
                let (a, b) = (self.cluster.ip(*a), self.cluster.ip(*b));
                self.cluster.world.cut(a, b);
                self.order(then, Later::Heal(a, b));
            }
        }
    }
}
