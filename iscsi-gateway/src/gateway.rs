//! What this host serves: targets that are started, sessions of initiators, addresses that are listened on.

use crate::record::Target;
use crate::store::Store;
use crate::unit::Unit;
use crate::worker::{Mailbox, Message, Place, Worker};
use crate::{Error, Result};
use iscsi::Nexus;
use iscsi::login::{Account, Catalog, TargetInfo};
use iscsi::scsi::Medium;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a target that stops waits for what is under way.
const STOP_TIME: Duration = Duration::from_secs(70);

/// What was done for a target since it was started.
#[derive(Default)]
pub struct Counts {
    reads: AtomicU64,
    writes: AtomicU64,
    read_bytes: AtomicU64,
    write_bytes: AtomicU64,
    zeroed_bytes: AtomicU64,
}

impl Counts {
    pub fn count(&self, medium: &Medium) {
        match medium {
            Medium::Read { length_bytes, .. } => {
                self.reads.fetch_add(1, Relaxed);
                self.read_bytes.fetch_add(*length_bytes as u64, Relaxed);
            }
            Medium::Write { data, .. } => {
                self.writes.fetch_add(1, Relaxed);
                self.write_bytes.fetch_add(data.len() as u64, Relaxed);
            }
            Medium::Zero { length_bytes, .. } => drop(self.zeroed_bytes.fetch_add(*length_bytes, Relaxed)),
            Medium::Flush | Medium::Seek { .. } | Medium::Keep(_) => {}
        }
    }
}

/// A target that is served.
pub struct Running {
    pub iqn: String,
    portals: Vec<SocketAddr>,
    /// What logins must know; changed while it is served.
    info: Mutex<Arc<TargetInfo>>,
    pub units: BTreeMap<u16, Arc<Unit>>,
    pub counts: Counts,
}

impl Running {
    fn info(&self) -> Arc<TargetInfo> {
        self.info.lock().expect("no panic under this lock").clone()
    }
}

/// A session that stands.
struct SessionEntry {
    place: Place,
    user: Option<String>,
    peer: SocketAddr,
    since: Instant,
}

impl SessionEntry {
    fn is_at(&self, place: &Place) -> bool {
        Arc::ptr_eq(&self.place.mailbox, &place.mailbox) && self.place.link == place.link
    }
}

#[derive(Default)]
struct State {
    targets: BTreeMap<String, Arc<Running>>,
    sessions: HashMap<(String, Nexus), SessionEntry>,
    portals: Vec<SocketAddr>,
}

pub struct Gateway {
    store: Store,
    host: String,
    workers: Vec<Arc<Mailbox>>,
    next_worker: AtomicUsize,
    next_tsih: AtomicU16,
    state: Mutex<State>,
    /// Held while a target is started or stopped: one at a time.
    changes: Mutex<()>,
}

// What is told of a gateway.

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct GatewayState {
    pub host: String,
    pub targets: Vec<TargetState>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TargetState {
    pub iqn: String,
    pub portals: Vec<SocketAddr>,
    pub luns: Vec<LunState>,
    pub sessions: Vec<SessionState>,
    pub reads: u64,
    pub writes: u64,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub zeroed_bytes: u64,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LunState {
    pub lun: u16,
    pub size_bytes: u64,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SessionState {
    pub initiator: String,
    pub address: SocketAddr,
    pub user: Option<String>,
    pub seconds: u64,
}

/// A gateway and its threads.
pub struct Started {
    pub gateway: Arc<Gateway>,
    threads: Vec<JoinHandle<()>>,
}

impl Started {
    /// Stops all targets, which stay marked as started, and ends.
    pub fn end(self) -> Result {
        let iqns: Vec<String> = self.gateway.state().targets.keys().cloned().collect();
        let stopped: Vec<Result> = iqns.iter().map(|iqn| self.gateway.stop_serving(iqn)).collect();
        self.gateway.workers.iter().for_each(|worker| worker.post(Message::Quit));
        self.threads.into_iter().for_each(|thread| drop(thread.join()));
        stopped.into_iter().collect()
    }
}

impl Gateway {
    pub fn start(store: Store, host: String, threads: usize) -> std::io::Result<Started> {
        let workers = (0..threads.max(1)).map(|_| Mailbox::new()).collect::<std::io::Result<Vec<_>>>()?;
        let [low, high] = shards::host::random_bytes::<2>();
        let gateway = Arc::new(Gateway {
            store,
            host,
            workers: workers.clone(),
            next_worker: AtomicUsize::new(0),
            // Handles of sessions before a restart are not met again soon.
            next_tsih: AtomicU16::new(u16::from_le_bytes([low, high])),
            state: Mutex::default(),
            changes: Mutex::default(),
        });
        let spawn = |(n, mailbox)| Worker::spawn(gateway.clone(), mailbox, n);
        let threads = workers.into_iter().enumerate().map(spawn).collect::<std::io::Result<Vec<_>>>()?;
        Ok(Started { gateway, threads })
    }

    pub fn host(&self) -> &str {
        &self.host
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }

    // Targets.

    /// Starts what was started when the gateway ended. Each that can't be is logged.
    pub fn start_all(&self) -> Result {
        for target in self.store.targets()? {
            let is_ours = target.started && target.host.as_deref() == Some(&self.host);
            if is_ours && let Err(error) = self.serve(&target) {
                tracing::error!(iqn = target.iqn, %error, "iscsi_target_not_started");
            }
        }
        Ok(())
    }

    /// Serves a target of this host, and notes that it is to be served.
    pub fn start_target(&self, iqn: &str) -> Result {
        let mut locked = self.store.lock(iqn)?;
        match &locked.target.host {
            Some(host) if *host == self.host => {}
            Some(host) => {
                return Error::refused(format!(
                    "{iqn} is registered on host {host}: start it there, or run 'pstorage-iscsi register -t {iqn}' here first"
                ));
            }
            None => {
                return Error::refused(format!(
                    "{iqn} is on no host: run 'pstorage-iscsi register -t {iqn}' first"
                ));
            }
        }
        self.serve(&locked.target)?;
        if !locked.target.started {
            locked.target.started = true;
            locked.save()?;
        }
        Ok(())
    }

    fn serve(&self, target: &Target) -> Result {
        let _one_at_a_time = self.changes.lock().expect("no panic under this lock");
        let iqn = &target.iqn;
        if self.state().targets.contains_key(iqn) {
            return Ok(());
        }
        if target.luns.is_empty() {
            return Error::refused(format!(
                "{iqn} has no LUN: make one with 'pstorage-iscsi lun-add -t {iqn} -l 0 -s SIZE'"
            ));
        }
        let info = Mutex::new(Arc::new(self.info(target)?));
        let mut units = BTreeMap::new();
        for lun in &target.luns {
            let unit = Unit::open(&self.store, target, lun).map_err(|error| match error.is_busy() {
                true => Error::Refused(format!(
                    "{error}: another gateway or mount has LUN {} of {iqn}; if its host is dead, run 'pstorage-iscsi register -f -t {iqn}'",
                    lun.lun
                )),
                false => error,
            })?;
            units.insert(lun.lun, Arc::new(unit));
        }
        let listening: Result = target.portals.iter().try_for_each(|portal| self.listen(*portal));
        if listening.is_err() {
            self.unlisten();
            return listening;
        }
        let running = Running {
            iqn: iqn.clone(),
            portals: target.portals.clone(),
            info,
            units,
            counts: Counts::default(),
        };
        self.state().targets.insert(iqn.clone(), Arc::new(running));
        tracing::info!(iqn, "iscsi_target_started");
        Ok(())
    }

    fn info(&self, target: &Target) -> Result<TargetInfo> {
        let account = |user: &String| {
            let account = self.store.account(user)?;
            Ok(Account { user: account.user, secret: account.secret })
        };
        Ok(TargetInfo {
            name: target.iqn.clone(),
            alias: String::new(),
            accounts: target.users.iter().map(account).collect::<Result<_>>()?,
            mutual: target.mutual_user.as_ref().map(account).transpose()?,
            initiators: target.initiators.clone(),
            portals: target.portals.iter().map(SocketAddr::to_string).collect(),
        })
    }

    /// Takes over what was changed of a target's logins; sessions that stand are left alone.
    pub fn refresh(&self, iqn: &str) -> Result {
        let Some(running) = self.state().targets.get(iqn).cloned() else { return Ok(()) };
        let info = self.info(&self.store.target(iqn)?)?;
        *running.info.lock().expect("no panic under this lock") = Arc::new(info);
        Ok(())
    }

    pub fn stop_target(&self, iqn: &str) -> Result {
        self.stop_serving(iqn)?;
        let mut locked = self.store.lock(iqn)?;
        if locked.target.host.as_deref() == Some(&self.host) {
            locked.target.started = false;
            return locked.save();
        }
        Ok(())
    }

    /// Ends all sessions of a target, waits for what is under way, and gives its files back.
    fn stop_serving(&self, iqn: &str) -> Result {
        let _one_at_a_time = self.changes.lock().expect("no panic under this lock");
        let Some(mut running) = self.state().targets.remove(iqn) else { return Ok(()) };
        self.end_sessions(&running, None);
        self.unlisten();
        let began = Instant::now();
        let running = loop {
            match Arc::try_unwrap(running) {
                Ok(running) => break running,
                Err(shared) if began.elapsed() < STOP_TIME => running = shared,
                Err(_) => {
                    return Error::refused(format!(
                        "{iqn}: what is under way does not end; the cluster does not answer"
                    ));
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        tracing::info!(iqn, "iscsi_target_stopped");
        let closed = running.units.into_values().filter_map(Arc::into_inner).map(Unit::close);
        closed.collect::<Vec<_>>().into_iter().collect()
    }

    /// Another gateway took a target's files: it is not served here any more.
    pub fn lost(self: &Arc<Self>, running: &Arc<Running>) {
        let is_served =
            self.state().targets.get(&running.iqn).is_some_and(|served| Arc::ptr_eq(served, running));
        if !is_served {
            return;
        }
        let (gateway, iqn) = (self.clone(), running.iqn.clone());
        // It waits for the worker that says so.
        std::thread::spawn(move || {
            tracing::error!(iqn, "iscsi_target_lost: its files' leases were taken away");
            if let Err(error) = gateway.stop_serving(&iqn) {
                tracing::warn!(iqn, %error, "iscsi_target_lost");
            }
        });
    }

    /// Makes a LUN larger, of a target that is served here. False: it is not.
    pub fn grow(&self, iqn: &str, lun: u16, size_bytes: u64) -> Result<bool> {
        let Some(running) = self.state().targets.get(iqn).cloned() else { return Ok(false) };
        match running.units.get(&lun) {
            Some(unit) => unit.grow(size_bytes).map(|()| true),
            None => Error::refused(format!("{iqn} has no LUN {lun}")),
        }
    }

    // Portals.

    fn listen(&self, portal: SocketAddr) -> Result {
        if self.state().portals.contains(&portal) {
            return Ok(());
        }
        let failed = |error: std::io::Error| {
            Error::Refused(format!(
                "listening on {portal}: {error}; 'pstorage-iscsi set -a IP[:PORT]' gives a target another address"
            ))
        };
        let listener = TcpListener::bind(portal).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        self.state().portals.push(portal);
        self.workers[0].post(Message::Listen(listener, portal));
        Ok(())
    }

    /// Closes portals that no target needs any more.
    fn unlisten(&self) {
        let mut state = self.state();
        let State { targets, portals, .. } = &mut *state;
        portals.retain(|portal| {
            let is_needed = targets.values().any(|running| running.portals.contains(portal));
            if !is_needed {
                self.workers[0].post(Message::Unlisten(*portal));
            }
            is_needed
        });
    }

    /// Gives a new connection to a loop.
    pub fn assign(&self, stream: TcpStream, portal: SocketAddr) {
        let n = self.next_worker.fetch_add(1, Relaxed) % self.workers.len();
        self.workers[n].post(Message::Accept(stream, portal));
    }

    pub fn next_tsih(&self) -> u16 {
        // 0 means none.
        self.next_tsih.fetch_add(1, Relaxed).max(1)
    }

    /// What an initiator that came through a portal may see.
    pub fn catalog<'a>(&'a self, portal: SocketAddr, stream: &'a TcpStream) -> impl Catalog + 'a {
        View { gateway: self, portal, stream }
    }

    // Sessions.

    /// A session begins; the target, and the earlier session of the same initiator, which must end first. `None`: it is not served.
    pub fn session_began(
        &self,
        iqn: &str,
        nexus: &Nexus,
        user: Option<String>,
        peer: SocketAddr,
        place: &Place,
    ) -> Option<(Arc<Running>, Option<Place>)> {
        let mut state = self.state();
        let running = state.targets.get(iqn)?.clone();
        let entry = SessionEntry { place: place.clone(), user, peer, since: Instant::now() };
        let earlier = state.sessions.insert((iqn.to_string(), nexus.clone()), entry);
        Some((running, earlier.map(|entry| entry.place)))
    }

    /// Nothing of a session runs any more. False: a newer one has its place.
    pub fn session_ended(&self, running: &Running, nexus: &Nexus, place: &Place) -> bool {
        let mut state = self.state();
        let key = (running.iqn.clone(), nexus.clone());
        let is_last = state.sessions.get(&key).is_some_and(|entry| entry.is_at(place));
        if is_last {
            state.sessions.remove(&key);
        }
        is_last
    }

    pub fn end_sessions(&self, running: &Running, except: Option<&Place>) {
        let state = self.state();
        let of_target = state.sessions.iter().filter(|((iqn, _), _)| *iqn == running.iqn);
        let others = of_target.filter(|(_, entry)| !except.is_some_and(|place| entry.is_at(place)));
        others.for_each(|(_, entry)| entry.place.clone().end(None));
    }

    pub fn report(&self) -> GatewayState {
        let state = self.state();
        let target = |running: &Arc<Running>| {
            let counts = &running.counts;
            let of_target = state.sessions.iter().filter(|((iqn, _), _)| *iqn == running.iqn);
            let mut sessions: Vec<SessionState> = of_target
                .map(|((_, nexus), entry)| SessionState {
                    initiator: nexus.initiator.clone(),
                    address: entry.peer,
                    user: entry.user.clone(),
                    seconds: entry.since.elapsed().as_secs(),
                })
                .collect();
            sessions.sort_by(|a, b| (&a.initiator, a.address).cmp(&(&b.initiator, b.address)));
            let lun = |(lun, unit): (&u16, &Arc<Unit>)| LunState { lun: *lun, size_bytes: unit.size_bytes() };
            TargetState {
                iqn: running.iqn.clone(),
                portals: running.portals.clone(),
                luns: running.units.iter().map(lun).collect(),
                sessions,
                reads: counts.reads.load(Relaxed),
                writes: counts.writes.load(Relaxed),
                read_bytes: counts.read_bytes.load(Relaxed),
                write_bytes: counts.write_bytes.load(Relaxed),
                zeroed_bytes: counts.zeroed_bytes.load(Relaxed),
            }
        };
        GatewayState { host: self.host.clone(), targets: state.targets.values().map(target).collect() }
    }
}

struct View<'a> {
    gateway: &'a Gateway,
    portal: SocketAddr,
    stream: &'a TcpStream,
}

impl View<'_> {
    /// An address that means "all of this host" is told as the one that the initiator has come to.
    fn told(&self, info: Arc<TargetInfo>) -> Arc<TargetInfo> {
        if !self.portal.ip().is_unspecified() {
            return info;
        }
        let local = self.stream.local_addr().unwrap_or(self.portal);
        Arc::new(TargetInfo { portals: vec![local.to_string()], ..(*info).clone() })
    }
}

impl Catalog for View<'_> {
    fn target(&self, name: &str) -> Option<Arc<TargetInfo>> {
        let running = self.gateway.state().targets.get(name).cloned();
        running.filter(|running| running.portals.contains(&self.portal)).map(|running| running.info())
    }

    fn targets(&self) -> Vec<Arc<TargetInfo>> {
        let all: Vec<Arc<Running>> = self.gateway.state().targets.values().cloned().collect();
        let here = all.iter().filter(|running| running.portals.contains(&self.portal));
        here.map(|running| self.told(running.info())).collect()
    }
}
