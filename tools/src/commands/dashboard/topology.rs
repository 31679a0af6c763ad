//! Chunk servers by where they stand: tiers, rooms, rows, racks, hosts. Of thousands only what was opened is told, and sums of the rest.

use crate::tables::{Mood, cs_mood, cs_status};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use wire::mds_api::{ClusterStat, CsInfo, CsStatus};
use wire::{CsId, MdsId};

/// Places of one level that are told, those in which something is wrong first.
const MOST_PLACES: usize = 100;
/// Servers that are told when all of them are asked for.
const MOST_SERVERS: usize = 200;

/// A place is known by its depth and the smallest number of its servers.
pub type PlaceId = (usize, CsId);

/// What a page wants to see.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wish {
    /// The inside of these.
    pub open: BTreeSet<PlaceId>,
    /// Of all, if there are not too many.
    pub all: bool,
    /// Only servers that are not as they should be, opened.
    pub unwell: bool,
    /// Only servers in whose description this occurs, opened.
    pub find: String,
}

#[derive(Serialize, Debug)]
pub struct Place<'a> {
    /// Its name, and of those that are alone within it: `[["row", "1"], ["rack", "2"]]`.
    names: Vec<Name<'a>>,
    id: String,
    /// Of the worst server.
    mood: Mood,
    servers: usize,
    unwell: usize,
    total_bytes: u64,
    free_bytes: u64,
    read_bytes_per_s: u64,
    write_bytes_per_s: u64,
    /// Metadata servers with an address of this host.
    mds: BTreeSet<MdsId>,
    open: bool,
    #[serde(flatten)]
    inside: Inside<'a>,
}

#[derive(Serialize, Debug, Default)]
pub struct Inside<'a> {
    places: Vec<Place<'a>>,
    /// Places that were left out.
    more: usize,
    cs: Vec<Server<'a>>,
}

/// The figures of `stat`, under the same names.
#[derive(Serialize, Debug)]
struct Server<'a> {
    cs: CsId,
    state: String,
    mood: Mood,
    tier: u8,
    host: &'a str,
    total_bytes: u64,
    free_bytes: u64,
    replicas: u64,
    io_mean_us: Option<u32>,
    io_max_us: Option<u32>,
    io_wait_percent: u32,
    queue_depth: u32,
    read_bytes_per_s: u64,
    write_bytes_per_s: u64,
    flags: &'a str,
}

impl<'a> From<&'a CsInfo> for Server<'a> {
    fn from(cs: &'a CsInfo) -> Server<'a> {
        let io = Some(cs.io_latency).filter(|io| io.operations > 0);
        Server {
            cs: cs.cs,
            state: cs_status(cs),
            mood: cs_mood(cs),
            tier: cs.tier,
            host: &cs.host,
            total_bytes: cs.total_bytes,
            free_bytes: cs.free_bytes,
            replicas: cs.replicas,
            io_mean_us: io.map(|io| io.mean_us),
            io_max_us: io.map(|io| io.max_us),
            io_wait_percent: cs.io_wait_percent,
            queue_depth: cs.queue_depth,
            read_bytes_per_s: cs.read_bytes_per_s,
            write_bytes_per_s: cs.write_bytes_per_s,
            flags: &cs.flags,
        }
    }
}

/// What kind of place, and how it is called there.
type Name<'a> = (&'static str, &'a str);
/// A server and the places it stands in, the largest first.
type Placed<'a> = (&'a CsInfo, Vec<Name<'a>>);

/// The whole cluster. Servers that were removed are not in it any more.
pub fn topology<'a>(stat: &'a ClusterStat, wish: &Wish) -> Inside<'a> {
    let there = || stat.cs.iter().filter(|cs| cs.status != CsStatus::Dropped);
    let tiers = there().map(|cs| cs.tier).collect::<BTreeSet<_>>().len();
    let find = wish.find.to_lowercase();
    let wanted = |cs: &&CsInfo| {
        (!wish.unwell || cs_mood(cs) != Mood::Plain) && (find.is_empty() || is_named(cs, &find))
    };
    let placed: Vec<Placed> = there().filter(wanted).map(|cs| (cs, places_of(cs, tiers > 1))).collect();
    let opens = wish.all || wish.unwell || !find.is_empty();
    let view = View { stat, open: &wish.open, all: opens && placed.len() <= MOST_SERVERS };
    view.inside(placed, 0)
}

fn is_named(cs: &CsInfo, find: &str) -> bool {
    let names = [&*format!("CS#{}", cs.cs), &cs.host, &cs.location, &cs_status(cs)];
    names.iter().any(|name| name.to_lowercase().contains(find))
}

fn places_of(cs: &CsInfo, tiers: bool) -> Vec<Name<'_>> {
    let tier = ["0", "1", "2", "3"].get(usize::from(cs.tier)).copied().unwrap_or("?");
    let location = cs.location.split('.').filter(|name| !name.is_empty());
    tiers
        .then_some(("tier", tier))
        .into_iter()
        .chain(["room", "row", "rack"].into_iter().zip(location))
        .chain([("host", &*cs.host)])
        .collect()
}

/// `host2` comes before `host10`.
fn natural(name: &str) -> Vec<(&str, u64)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let number = rest[text..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |n| text + n);
        parts.push((&rest[..text], rest[text..number].parse().unwrap_or(0)));
        rest = &rest[number..];
    }
    parts
}

struct View<'a, 'w> {
    stat: &'a ClusterStat,
    open: &'w BTreeSet<PlaceId>,
    all: bool,
}

impl<'a> View<'a, '_> {
    fn inside(&self, placed: Vec<Placed<'a>>, depth: usize) -> Inside<'a> {
        let mut inside = Inside::default();
        let mut by_place: BTreeMap<Name<'a>, Vec<Placed<'a>>> = BTreeMap::new();
        for (cs, places) in placed {
            match places.get(depth) {
                Some(place) => by_place.entry(*place).or_default().push((cs, places)),
                None => inside.cs.push(cs.into()),
            }
        }
        let mut places: Vec<Place> = by_place.into_values().map(|placed| self.place(placed, depth)).collect();
        let in_order = |a: &Place, b: &Place| natural(a.names[0].1).cmp(&natural(b.names[0].1));
        places.sort_by(in_order);
        inside.more = places.len().saturating_sub(MOST_PLACES);
        if inside.more > 0 {
            places.sort_by_key(|place| std::cmp::Reverse(place.mood));
            places.truncate(MOST_PLACES);
            places.sort_by(in_order);
        }
        inside.places = places;
        inside
    }

    /// `placed`: at least one, all in the same place of this depth.
    fn place(&self, placed: Vec<Placed<'a>>, depth: usize) -> Place<'a> {
        let of_first = placed[0].1.clone();
        let alone =
            |depth: &usize| placed.iter().all(|(_, places)| places.get(*depth) == of_first.get(*depth));
        let below = (depth + 1..of_first.len()).take_while(alone).last().map_or(depth + 1, |last| last + 1);
        let all = || placed.iter().map(|(cs, _)| *cs);
        let sum = |of: fn(&CsInfo) -> u64| all().map(of).sum();
        let first = all().map(|cs| cs.cs).min().unwrap_or(CsId(0));
        let ips: BTreeSet<_> = all().flat_map(|cs| &cs.shard_addrs).map(|addr| addr.ip()).collect();
        let here = self.stat.mds.iter().filter(|m| below == of_first.len() && ips.contains(&m.addr.ip()));
        let open = self.all || self.open.contains(&(depth, first));
        Place {
            names: of_first[depth..below].to_vec(),
            id: format!("{depth}:{first}"),
            mood: all().map(cs_mood).max().unwrap_or(Mood::Plain),
            servers: placed.len(),
            unwell: all().filter(|cs| cs_mood(cs) != Mood::Plain).count(),
            total_bytes: sum(|cs| cs.total_bytes),
            free_bytes: sum(|cs| cs.free_bytes),
            read_bytes_per_s: sum(|cs| cs.read_bytes_per_s),
            write_bytes_per_s: sum(|cs| cs.write_bytes_per_s),
            mds: here.map(|m| m.mds).collect(),
            open,
            inside: if open { self.inside(placed, below) } else { Inside::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::top::tests::cluster;

    /// Two rooms with a row and two racks each, a host for each three servers.
    fn large() -> Box<ClusterStat> {
        let mut stat = cluster(1200);
        for (n, cs) in stat.cs.iter_mut().enumerate() {
            cs.location = format!("{}.1.{}", ["east", "west"][n / 600], n / 300 % 2 + 1);
            cs.host = format!("host{}", n / 3);
        }
        stat.cs[700].status = CsStatus::Offline;
        stat
    }

    fn names(inside: &Inside) -> Vec<String> {
        inside.places.iter().map(|p| format!("{} {}", p.label(), p.servers)).collect()
    }

    #[test]
    fn only_what_was_opened_is_told() {
        let stat = large();
        let closed = topology(&stat, &Wish::default());
        assert_eq!(names(&closed), ["room east row 1 600", "room west row 1 600"]);
        assert!(closed.places.iter().all(|p| p.places_inside() == 0));
        assert_eq!((closed.places[1].mood, closed.places[1].unwell), (Mood::Bad, 1));
        assert_eq!(
            topology(&stat, &Wish { all: true, ..Wish::default() }).places[0].places_inside(),
            0,
            "too many"
        );
        let open = BTreeSet::from([(0, CsId(601)), (2, CsId(601)), (3, CsId(700))]);
        let opened = topology(&stat, &Wish { open, ..Wish::default() });
        let rack = &opened.places[1].inside.places[0];
        assert_eq!((&*rack.label(), rack.inside.places.len(), rack.inside.more), ("rack 1", 100, 0));
        let host = rack.inside.places.iter().find(|p| p.open).expect("one host is open");
        assert_eq!((&*host.label(), host.inside.cs.len(), host.mood), ("host host233", 3, Mood::Bad));
        assert!(serde_json::to_string(&closed).unwrap().len() < 1000);
    }

    #[test]
    fn what_is_not_well_is_found_among_many() {
        let stat = large();
        let unwell = topology(&stat, &Wish { unwell: true, ..Wish::default() });
        let place = &unwell.places[0];
        assert_eq!(place.label(), "room west row 1 rack 1 host host233");
        assert_eq!((place.inside.cs.len(), &*place.inside.cs[0].state), (1, "offline"));
        let found = topology(&stat, &Wish { find: "Host39".into(), ..Wish::default() });
        // host39 and host390 to host399.
        assert_eq!(found.places.iter().map(|p| p.servers).sum::<usize>(), 33);
    }

    #[test]
    fn hosts_without_a_place_are_in_order_and_not_too_many() {
        let mut stat = cluster(300);
        stat.cs.iter_mut().for_each(|cs| cs.location = String::new());
        stat.cs[250].status = CsStatus::Inactive;
        stat.cs[0].shard_addrs = vec!["10.0.0.2:2600".parse().unwrap()];
        stat.cs[1].status = CsStatus::Dropped;
        let inside = topology(&stat, &Wish::default());
        assert_eq!((inside.places.len(), inside.more), (100, 199));
        let hosts: Vec<&str> = inside.places.iter().map(|p| p.names[0].1).collect();
        assert_eq!((hosts[0], hosts[1], hosts[8], hosts[99]), ("host1", "host3", "host10", "host251"));
        assert_eq!(inside.places[0].mds, BTreeSet::from([MdsId(2)]));
        stat.cs[5].tier = 1;
        let tiers = topology(&stat, &Wish { open: BTreeSet::from([(0, CsId(6))]), ..Wish::default() });
        assert_eq!(names(&tiers), ["tier 0 298", "tier 1 host host6 1"]);
        assert_eq!(tiers.places[1].inside.cs.len(), 1);
    }

    impl Place<'_> {
        fn label(&self) -> String {
            self.names.iter().map(|(kind, name)| format!("{kind} {name}")).collect::<Vec<_>>().join(" ")
        }

        fn places_inside(&self) -> usize {
            self.inside.places.len() + self.inside.cs.len()
        }
    }
}
