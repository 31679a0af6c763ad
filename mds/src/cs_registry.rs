//! The chunk servers as the master knows them now: sessions of their shards, space, load. Volatile; a new master learns
//! it from the registrations.
//!
//! Invariants:
//! - a shard has at most one session; a newer incarnation of the process replaces it, an older one is refused;
//! - a CS is active when all its shards are registered;
//! - time counts from the loss of the first shard, or from when this master first heard of the server, whichever is later.

use crate::placement::CsView;
use crate::state::{CsRecord, Liveness};
use shards::{ConnId, Timestamp};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use wire::cs_api::{LatencyStat, Load, Space};
use wire::mds_api::{CsInfo, CsStatus};
use wire::{ChunkId, CsId, ShardIndex, shard_of};

/// A shard that sent no heartbeat for so long counts as not reachable, if somebody complains.
pub const HEARTBEAT_LATE: Duration = Duration::from_secs(2);
/// A session without heartbeats is ended after this time.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(5);
/// How often shards report, as told to them, in milliseconds.
pub const HEARTBEAT_MS: u32 = 1000;
/// Chunk servers have this long to find a new master before they count as missing.
pub const GRACE: Duration = Duration::from_secs(2);
/// A server that is found slow within this time after its rest rests twice as long, up to 16 times.
const SLOW_AGAIN: Duration = Duration::from_secs(600);
/// Of so many servers one may rest because it is slow; one always may.
const SLOW_SHARE: usize = 5;
/// After a primary complained about a CS, it gets no repairs for so long.
const SUSPECT_REST: Duration = Duration::from_secs(3);

/// Address of a shard that the master does not know (yet).
pub const UNKNOWN_ADDR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

struct Session {
    conn: ConnId,
    incarnation: u64,
    heard: Timestamp,
    space: Space,
    load: Load,
    rates: Rates,
}

#[derive(Clone, Copy, Default)]
struct Rates {
    reads: u64,
    writes: u64,
    read_bytes: u64,
    write_bytes: u64,
}

/// A server that was found slow rests: it gets no replicas.
#[derive(Clone, Copy)]
struct SlowRest {
    until: Timestamp,
    /// How often it was found slow in a row.
    times: u32,
    /// Its end was told.
    ended: bool,
}

/// What becomes of a complaint that a server is slow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlowVerdict {
    /// It rests from now on, for this time.
    Rests(Duration),
    RestsAlready,
    /// So many others rest already that this one is needed.
    Needed,
}

#[derive(Default)]
struct Server {
    shards: BTreeMap<ShardIndex, Session>,
    addrs: BTreeMap<ShardIndex, SocketAddr>,
    shard_count: u16,
    flags: String,
    /// Since when not all shards are there; `None` while active.
    missing_since: Option<Timestamp>,
    suspected_at: Option<Timestamp>,
    slow: Option<SlowRest>,
    /// What the event log was told last.
    told: Option<Liveness>,
    /// Replicas given to it since its last heartbeat: keeps a burst of allocations from going all one way.
    given: u32,
}

impl Server {
    fn missing(now: Timestamp) -> Server {
        Server { missing_since: Some(now), ..Server::default() }
    }

    /// What the server said of itself, and what its shards do: c, the write journal is clean; R, there is a read cache.
    fn flags_now(&self) -> String {
        let mut flags = self.flags.clone();
        if flags.contains('J') && self.shards.values().all(|s| s.load.journal_used_bytes == 0) {
            flags.push('c');
        }
        if self.shards.values().any(|s| s.load.cache_total_bytes > 0) {
            flags.push('R');
        }
        flags
    }
}

/// A registration as it came.
pub struct Registration {
    pub cs: CsId,
    pub shard: ShardIndex,
    pub shards: u16,
    pub addr: SocketAddr,
    pub incarnation: u64,
    pub space: Space,
    pub flags: String,
}

pub struct CsRegistry {
    servers: BTreeMap<CsId, Server>,
    /// Which shard each connection is.
    by_conn: BTreeMap<ConnId, (CsId, ShardIndex)>,
    since: Timestamp,
}

/// A CS whose state changed, for the event log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    pub cs: CsId,
    pub now: Liveness,
    /// Seconds since it was last whole.
    pub silent_s: u64,
}

impl CsRegistry {
    pub fn new(now: Timestamp) -> CsRegistry {
        CsRegistry { servers: BTreeMap::new(), by_conn: BTreeMap::new(), since: now }
    }

    /// Whether chunk servers may still be on their way to this new master.
    pub fn in_grace(&self, now: Timestamp) -> bool {
        now.since(self.since) < GRACE
    }

    /// Takes a shard in. Returns the connection it replaces, or why it is refused.
    pub fn register(
        &mut self,
        conn: ConnId,
        r: &Registration,
        now: Timestamp,
    ) -> Result<Option<ConnId>, String> {
        let server = self.servers.entry(r.cs).or_insert_with(|| Server::missing(now));
        if let Some(old) = server.shards.get(&r.shard).filter(|old| old.incarnation > r.incarnation) {
            return Err(format!(
                "a later start (incarnation {}) of shard {} of CS#{} is registered; this is incarnation {}",
                old.incarnation, r.shard, r.cs, r.incarnation
            ));
        }
        let session = Session {
            conn,
            incarnation: r.incarnation,
            heard: now,
            space: r.space,
            load: Load::default(),
            rates: Rates::default(),
        };
        let replaced = server.shards.insert(r.shard, session).map(|old| old.conn).filter(|old| *old != conn);
        server.addrs.insert(r.shard, r.addr);
        server.shard_count = r.shards;
        server.flags.clone_from(&r.flags);
        server.shards.retain(|shard, _| shard.0 < r.shards);
        server.suspected_at = None;
        if server.shards.len() == usize::from(r.shards) {
            server.missing_since = None;
        }
        if let Some(old) = replaced {
            self.by_conn.remove(&old);
        }
        self.by_conn.insert(conn, (r.cs, r.shard));
        Ok(replaced)
    }

    pub fn heartbeat(&mut self, conn: ConnId, space: Space, load: Load, now: Timestamp) -> bool {
        let Some((cs, shard)) = self.by_conn.get(&conn) else { return false };
        let server = self.servers.get_mut(cs).expect("a session belongs to a server");
        let session = server.shards.get_mut(shard).expect("a connection belongs to a session");
        session.rates = Rates::between(&session.load, &load, now.since(session.heard));
        session.heard = now;
        session.space = space;
        session.load = load;
        server.given = 0;
        true
    }

    /// The shard that talks on this connection.
    pub fn shard_at(&self, conn: ConnId) -> Option<(CsId, ShardIndex)> {
        self.by_conn.get(&conn).copied()
    }

    /// A connection is gone. Returns the CS if a session ended with it.
    pub fn disconnected(&mut self, conn: ConnId, now: Timestamp) -> Option<CsId> {
        let (cs, shard) = self.by_conn.remove(&conn)?;
        let server = self.servers.get_mut(&cs)?;
        server.shards.remove(&shard);
        server.missing_since.get_or_insert(now);
        Some(cs)
    }

    /// Sessions without a heartbeat for too long.
    pub fn silent(&self, now: Timestamp) -> Vec<ConnId> {
        let sessions = self.servers.values().flat_map(|s| s.shards.values());
        sessions.filter(|s| now.since(s.heard) > SESSION_TIMEOUT).map(|s| s.conn).collect()
    }

    /// The connection of the shard that owns `chunk`.
    pub fn conn_for(&self, cs: CsId, chunk: ChunkId) -> Option<ConnId> {
        let server = self.servers.get(&cs)?;
        server.shards.get(&shard_of(chunk, server.shard_count)).map(|s| s.conn)
    }

    /// The owning shard of `chunk` if the CS has ever registered here.
    pub fn shard_for(&self, cs: CsId, chunk: ChunkId) -> Option<ShardIndex> {
        self.servers.get(&cs).filter(|s| s.shard_count > 0).map(|s| shard_of(chunk, s.shard_count))
    }

    pub fn addr_for(&self, cs: CsId, chunk: ChunkId) -> Option<SocketAddr> {
        let server = self.servers.get(&cs)?;
        server.addrs.get(&shard_of(chunk, server.shard_count)).copied()
    }

    /// Whether the shard that owns `chunk` can't be there: no session, or its heartbeats are late. During the grace
    /// of a new master a shard that never came is not counted as gone.
    pub fn is_gone(&self, cs: CsId, chunk: ChunkId, now: Timestamp) -> bool {
        let Some(server) = self.servers.get(&cs) else { return !self.in_grace(now) };
        let shard = shard_of(chunk, server.shard_count);
        match server.shards.get(&shard) {
            Some(session) => now.since(session.heard) > HEARTBEAT_LATE,
            None => server.addrs.contains_key(&shard) || !self.in_grace(now),
        }
    }

    /// All connections of shards.
    pub fn conns(&self) -> impl Iterator<Item = ConnId> + '_ {
        self.by_conn.keys().copied()
    }

    pub fn conns_of(&self, cs: CsId) -> Vec<ConnId> {
        self.servers.get(&cs).map_or_else(Vec::new, |s| s.shards.values().map(|s| s.conn).collect())
    }

    pub fn liveness(&self, cs: CsId, now: Timestamp, offline_after: Duration) -> Liveness {
        match self.away(cs, now) {
            None => Liveness::Active,
            Some(time) if time < offline_after => Liveness::Inactive,
            Some(_) => Liveness::Offline,
        }
    }

    /// How long not all its shards are there; `None` while it is active.
    pub fn away(&self, cs: CsId, now: Timestamp) -> Option<Duration> {
        let since = self.servers.get(&cs).map_or(Some(self.since), |server| server.missing_since);
        since.map(|at| now.since(at))
    }

    /// A primary could not reach this CS.
    pub fn suspect(&mut self, cs: CsId, now: Timestamp) {
        if let Some(server) = self.servers.get_mut(&cs) {
            server.suspected_at = Some(now);
        }
    }

    /// A primary found a server slow.
    pub fn found_slow(&mut self, cs: CsId, rest: Duration, now: Timestamp) -> SlowVerdict {
        let resting = self.servers.keys().filter(|other| **other != cs && self.is_slow(**other, now)).count();
        let most = (self.servers.len() / SLOW_SHARE).max(1);
        let Some(server) = self.servers.get_mut(&cs) else { return SlowVerdict::Needed };
        let times = match server.slow {
            Some(slow) if slow.until > now => return SlowVerdict::RestsAlready,
            _ if resting >= most => return SlowVerdict::Needed,
            Some(slow) if now.since(slow.until) < SLOW_AGAIN => slow.times + 1,
            _ => 1,
        };
        let rest = rest * (1 << (times - 1).min(4));
        server.slow = Some(SlowRest { until: now.after(rest), times, ended: false });
        SlowVerdict::Rests(rest)
    }

    /// Whether it rests because it was found slow.
    pub fn is_slow(&self, cs: CsId, now: Timestamp) -> bool {
        self.servers.get(&cs).and_then(|s| s.slow).is_some_and(|slow| slow.until > now)
    }

    /// Servers whose rest has ended, each once.
    pub fn take_rested(&mut self, now: Timestamp) -> Vec<CsId> {
        let mut rested = Vec::new();
        for (cs, server) in &mut self.servers {
            if let Some(slow) = server.slow.as_mut().filter(|s| !s.ended && s.until <= now) {
                slow.ended = true;
                rested.push(*cs);
            }
        }
        rested
    }

    /// Liveness for repairs: a CS that was complained about rests first.
    pub fn repair_liveness(&self, cs: CsId, now: Timestamp, offline_after: Duration) -> Liveness {
        let rests =
            self.servers.get(&cs).and_then(|s| s.suspected_at).is_some_and(|at| now.since(at) < SUSPECT_REST);
        match self.liveness(cs, now, offline_after) {
            Liveness::Active if rests => Liveness::Inactive,
            other => other,
        }
    }

    /// Chunk servers whose state is not the one told last; they count as told.
    pub fn take_changes(
        &mut self,
        known: impl Iterator<Item = CsId>,
        now: Timestamp,
        offline_after: Duration,
    ) -> Vec<Change> {
        let grace = self.in_grace(now);
        let mut changes = Vec::new();
        for cs in known {
            self.servers.entry(cs).or_insert_with(|| Server::missing(now));
            let live = self.liveness(cs, now, offline_after);
            let server = self.servers.get_mut(&cs).expect("made above");
            // One that was just made is on its way too.
            let new = server.told.is_none() && server.missing_since.is_some_and(|at| now.since(at) < GRACE);
            if server.told == Some(live) || ((grace || new) && live != Liveness::Active) {
                continue;
            }
            server.told = Some(live);
            let silent_s = server.missing_since.map_or(0, |at| now.since(at).as_secs());
            changes.push(Change { cs, now: live, silent_s });
        }
        changes
    }

    pub fn forget(&mut self, cs: CsId) {
        for conn in self.conns_of(cs) {
            self.by_conn.remove(&conn);
        }
        self.servers.remove(&cs);
    }

    /// Remembers that a replica was placed there, until its next heartbeat tells its load.
    pub fn given(&mut self, cs: CsId) {
        if let Some(server) = self.servers.get_mut(&cs) {
            server.given += 1;
        }
    }

    pub fn view(&self, cs: CsId, record: &CsRecord) -> CsView {
        let space = self.space(cs);
        let load = self
            .servers
            .get(&cs)
            .map_or(0, |s| s.given + s.shards.values().map(|s| s.load.queue_depth).sum::<u32>());
        CsView {
            cs,
            host_id: record.host_id,
            location: record.location.clone(),
            tier: record.tier,
            free_bytes: space.free_bytes,
            total_bytes: space.total_bytes,
            load,
            leaving: record.draining,
        }
    }

    /// Space of the CS: the sum of its shards' parts.
    pub fn space(&self, cs: CsId) -> Space {
        let mut sum = Space::default();
        for session in self.servers.get(&cs).iter().flat_map(|s| s.shards.values()) {
            sum.total_bytes += session.space.total_bytes;
            sum.free_bytes += session.space.free_bytes;
            sum.chunks += session.space.chunks;
        }
        sum
    }

    pub fn info(&self, cs: CsId, record: &CsRecord, live: Liveness, replicas: u64) -> CsInfo {
        let space = self.space(cs);
        let server = self.servers.get(&cs);
        let sum = |of: &dyn Fn(&Session) -> u64| server.map_or(0, |s| s.shards.values().map(of).sum::<u64>());
        let addrs = server.map_or_else(Vec::new, |s| s.addrs.values().copied().collect());
        let latency = |of: &dyn Fn(&Load) -> LatencyStat| {
            let shards = server.into_iter().flat_map(|s| s.shards.values());
            shards.map(|s| of(&s.load)).fold(LatencyStat::default(), LatencyStat::with)
        };
        // All shards use one disk.
        let waits = server.and_then(|s| s.shards.values().map(|s| s.load.io_wait_percent).max());
        let passes = server.and_then(|s| s.shards.values().map(|s| s.load.scrub_passes).min());
        let status = match live {
            _ if record.dropped => CsStatus::Dropped,
            Liveness::Active => CsStatus::Active,
            Liveness::Inactive => CsStatus::Inactive,
            Liveness::Offline => CsStatus::Offline,
        };
        CsInfo {
            cs,
            status,
            host: record.host.clone(),
            location: record.location.clone(),
            draining: record.draining && !record.dropped,
            tier: record.tier,
            total_bytes: space.total_bytes,
            free_bytes: space.free_bytes,
            replicas,
            shard_addrs: addrs,
            io_latency: latency(&|load| load.io_latency),
            request_latency: latency(&|load| load.request_latency),
            io_wait_percent: waits.unwrap_or(0),
            queue_depth: sum(&|s| u64::from(s.load.queue_depth)) as u32,
            flags: server.map_or_else(String::new, Server::flags_now),
            cache_hits: sum(&|s| s.load.cache_hits),
            cache_misses: sum(&|s| s.load.cache_misses),
            cached_bytes: sum(&|s| s.load.cached_bytes),
            cache_total_bytes: sum(&|s| s.load.cache_total_bytes),
            read_bytes_per_s: sum(&|s| s.rates.read_bytes),
            write_bytes_per_s: sum(&|s| s.rates.write_bytes),
            read_ops_per_s: sum(&|s| s.rates.reads),
            write_ops_per_s: sum(&|s| s.rates.writes),
            scrubbed_bytes: sum(&|s| s.load.scrubbed_bytes),
            scrub_total_bytes: sum(&|s| s.load.scrub_total_bytes),
            scrub_passes: passes.unwrap_or(0),
            scrub_damaged: sum(&|s| s.load.scrub_damaged),
            catch_ups: sum(&|s| s.load.catch_ups),
            catch_up_bytes: sum(&|s| s.load.catch_up_bytes),
            full_copies: sum(&|s| s.load.full_copies),
            full_copy_bytes: sum(&|s| s.load.full_copy_bytes),
        }
    }
}

impl Rates {
    fn between(old: &Load, new: &Load, time: Duration) -> Rates {
        let ms = (time.as_millis() as u64).max(1);
        // Counters start again with the process: a smaller one counts from zero.
        let rate = |old: u64, new: u64| new.checked_sub(old).unwrap_or(new).saturating_mul(1000) / ms;
        Rates {
            reads: rate(old.reads, new.reads),
            writes: rate(old.writes, new.writes),
            read_bytes: rate(old.read_bytes, new.read_bytes),
            write_bytes: rate(old.write_bytes, new.write_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFLINE: Duration = Duration::from_secs(300);

    fn at(ms: u64) -> Timestamp {
        Timestamp(ms * 1_000_000)
    }

    fn registration(shard: u16, incarnation: u64) -> Registration {
        Registration {
            cs: CsId(1),
            shard: ShardIndex(shard),
            shards: 2,
            addr: SocketAddr::from(([127, 0, 0, 1], 4000 + shard)),
            incarnation,
            space: Space { total_bytes: 100, free_bytes: 50, chunks: 3 },
            flags: String::new(),
        }
    }

    #[test]
    fn a_server_is_active_with_all_its_shards() {
        let mut r = CsRegistry::new(at(0));
        r.register(ConnId(1), &registration(0, 5), at(10)).unwrap();
        assert_eq!(r.liveness(CsId(1), at(20), OFFLINE), Liveness::Inactive);
        r.register(ConnId(2), &registration(1, 5), at(10)).unwrap();
        assert_eq!(r.liveness(CsId(1), at(20), OFFLINE), Liveness::Active);
        assert_eq!(r.space(CsId(1)), Space { total_bytes: 200, free_bytes: 100, chunks: 6 });
        assert_eq!(r.disconnected(ConnId(1), at(1000)), Some(CsId(1)));
        assert_eq!(r.liveness(CsId(1), at(1001), OFFLINE), Liveness::Inactive);
        assert_eq!(r.liveness(CsId(1), at(302_000), OFFLINE), Liveness::Offline);
    }

    #[test]
    fn a_lost_connection_is_known_at_once_and_an_unknown_server_after_the_grace() {
        let mut r = CsRegistry::new(at(0));
        let chunk = ChunkId(9);
        assert!(!r.is_gone(CsId(1), chunk, at(100)), "it may be on its way");
        assert!(r.is_gone(CsId(1), chunk, at(2100)));
        for shard in 0..2 {
            r.register(ConnId(shard), &registration(shard as u16, 5), at(2100)).unwrap();
        }
        assert!(!r.is_gone(CsId(1), chunk, at(2200)));
        assert!(r.is_gone(CsId(1), chunk, at(4200)), "no heartbeat for more than 2 s");
        r.heartbeat(ConnId(0), Space::default(), Load::default(), at(4200));
        r.heartbeat(ConnId(1), Space::default(), Load::default(), at(4200));
        assert!(!r.is_gone(CsId(1), chunk, at(4201)));
        let owner = r.conn_for(CsId(1), chunk).unwrap();
        r.disconnected(owner, at(4202));
        assert!(r.is_gone(CsId(1), chunk, at(4202)));
    }

    #[test]
    fn a_newer_process_replaces_an_older_one_and_not_the_other_way() {
        let mut r = CsRegistry::new(at(0));
        r.register(ConnId(1), &registration(0, 5), at(0)).unwrap();
        assert_eq!(r.register(ConnId(2), &registration(0, 6), at(0)), Ok(Some(ConnId(1))));
        assert!(r.register(ConnId(3), &registration(0, 5), at(0)).is_err());
        assert_eq!(r.disconnected(ConnId(1), at(1)), None, "the replaced one is forgotten");
        assert_eq!(r.shard_at(ConnId(2)), Some((CsId(1), ShardIndex(0))));
    }

    #[test]
    fn a_slow_server_rests_and_never_too_many_at_once() {
        let (rest, mut r) = (Duration::from_secs(60), CsRegistry::new(at(0)));
        for n in 1..=3 {
            let shard = Registration { cs: CsId(n), ..registration(0, 5) };
            r.register(ConnId(u64::from(n)), &shard, at(0)).unwrap();
        }
        assert_eq!(r.found_slow(CsId(1), rest, at(0)), SlowVerdict::Rests(rest));
        assert_eq!(r.found_slow(CsId(1), rest, at(1000)), SlowVerdict::RestsAlready);
        assert_eq!(r.found_slow(CsId(2), rest, at(1000)), SlowVerdict::Needed);
        assert!(r.is_slow(CsId(1), at(59_999)) && !r.is_slow(CsId(1), at(60_000)));
        assert!(r.take_rested(at(59_999)).is_empty());
        assert_eq!(r.take_rested(at(60_000)), [CsId(1)]);
        assert!(r.take_rested(at(60_000)).is_empty());
        assert_eq!(r.found_slow(CsId(1), rest, at(70_000)), SlowVerdict::Rests(rest * 2), "again");
        assert_eq!(r.found_slow(CsId(2), rest, at(190_000)), SlowVerdict::Rests(rest), "it is its turn");
        assert_eq!(r.found_slow(CsId(1), rest, at(790_001)), SlowVerdict::Rests(rest), "well for long");
    }

    #[test]
    fn changes_are_told_once() {
        let mut r = CsRegistry::new(at(0));
        let known = || [CsId(1), CsId(2)].into_iter();
        assert!(r.take_changes(known(), at(0), OFFLINE).is_empty(), "grace");
        r.register(ConnId(1), &registration(0, 5), at(0)).unwrap();
        r.register(ConnId(2), &registration(1, 5), at(0)).unwrap();
        let told = r.take_changes(known(), at(200), OFFLINE);
        assert_eq!(told, [Change { cs: CsId(1), now: Liveness::Active, silent_s: 0 }]);
        let told = r.take_changes(known(), at(5000), OFFLINE);
        assert_eq!(told, [Change { cs: CsId(2), now: Liveness::Inactive, silent_s: 5 }]);
        assert!(r.take_changes(known(), at(6000), OFFLINE).is_empty());
    }

    #[test]
    fn a_server_that_was_just_made_is_waited_for_as_if_it_had_been_there() {
        let mut r = CsRegistry::new(at(0));
        let known = || [CsId(1)].into_iter();
        let late = 10 * OFFLINE.as_millis() as u64;
        assert!(r.take_changes(known(), at(late), OFFLINE).is_empty());
        let told = r.take_changes(known(), at(late + 3000), OFFLINE);
        assert_eq!(told, [Change { cs: CsId(1), now: Liveness::Inactive, silent_s: 3 }]);
    }
}
