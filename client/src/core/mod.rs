//! The client's state machine: one [`shards::Node`] that holds the session with the metadata service, the leases,
//! the chunk maps and every request on its way.
//!
//! | file | subject |
//! |---|---|
//! | [`mds`] | session with the master MDS: finding it, requests executed exactly once |
//! | [`links`] | connections to chunk server shards |
//! | [`parts`] | the data path: one part = one frame to one chunk; retries |
//! | [`maps`] | which chunk lies where: cache, allocation, refresh after failures |
//! | [`leases`] | open files, their leases and sizes |
//! | [`fileio`] | read, write, zero, truncate on bytes; edges of blocks |
//! | [`gather`] | writes that programs do not wait for |
//! | [`cache`], [`cached`] | the read cache on a local SSD: what it holds; moving its bytes |
//! | [`locks`] | order between overlapping changes of a file |
//! | [`settle`] | standing still while a clone is made of a file that is written to |
//! | [`names`] | directories and attributes |
//! | [`recent`] | what the answers of a moment ago have told beside |
//! | [`traces`] | where the time of requests went |
//!
//! Steps that follow one another are closures ([`Then`]) that get the core back when the step before has ended.
//!
//! Invariants:
//! - every `Call` completes exactly once;
//! - two changes of a file that touch the same block never run at the same time ([`locks`]), so a
//!   read-modify-write of a block's part can't undo another write;
//! - bytes of a file behind its size are zero, or the file's tail is not yet known to be clean
//!   (`File::tail_clean`), in which case it is cleaned before the size grows over it.

mod cache;
mod cached;
mod fileio;
mod gather;
mod leases;
mod links;
mod locks;
mod maps;
mod mds;
mod names;
mod parts;
mod recent;
mod settle;
mod traces;

use crate::call::{Call, Done, Stats, WriteHow};
use crate::config::{ClientConfig, TICK};
use crate::error::{ClientError, Result};
pub use cache::{ADMIT_AT_USES, Counts as CacheCounts};
use cached::Cached;
pub use cached::check_cache_size;
use leases::File;
use links::Links;
use mds::Mds;
use parts::{Part, Transfer};
pub use recent::LIFE as ATTRIBUTES_KEPT;
use recent::Recent;
use shards::{ConnId, Event, Io, Node, TimerId, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;
use traces::Traces;
pub use traces::{OnTraced, PartTrace};
use wire::FileId;

/// What to do when a step has ended.
type Then<T> = Box<dyn FnOnce(&mut ClientCore, &mut dyn Io, Result<T>) + Send>;
/// What to do when a time has come.
type Alarm = Box<dyn FnOnce(&mut ClientCore, &mut dyn Io) + Send>;

/// Timers of the client core carry this in their top byte.
const TIMER_SPACE: u64 = 0x06 << 56;
const TICK_TIMER: TimerId = TimerId(TIMER_SPACE);
/// How long a stopping client tries to hand in sizes and leases.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Called with a file whose data may have changed behind the back of local caches.
pub type OnLeaseLost = Box<dyn FnMut(FileId) + Send>;

pub struct ClientCore {
    config: ClientConfig,
    mds: Mds,
    links: Links,
    files: BTreeMap<FileId, File>,
    transfers: BTreeMap<u64, Transfer>,
    parts: BTreeMap<u64, Part>,
    /// Reads that were answered when the session was not sure: done again once it is.
    unsure_reads: Vec<u64>,
    recent: Recent,
    /// Files that nobody here uses any more, whose leases are given back in a moment.
    unused: Vec<FileId>,
    alarms: BTreeMap<u64, Alarm>,
    cached: Option<Box<Cached>>,
    last_id: u64,
    /// Bytes of programs that were answered and are not yet durable.
    waiting_bytes: usize,
    stats: Stats,
    on_lease_lost: Option<OnLeaseLost>,
    traces: Traces,
    stopping: Option<Timestamp>,
    stop_said: bool,
}

impl ClientCore {
    pub fn new(config: ClientConfig) -> Self {
        let mds = Mds::new(&config.mds);
        let cached = config.cache.clone().and_then(Cached::new);
        ClientCore {
            config,
            mds,
            links: Links::default(),
            files: BTreeMap::new(),
            transfers: BTreeMap::new(),
            parts: BTreeMap::new(),
            unsure_reads: Vec::new(),
            recent: Recent::default(),
            unused: Vec::new(),
            alarms: BTreeMap::new(),
            cached,
            last_id: 0,
            waiting_bytes: 0,
            stats: Stats::default(),
            on_lease_lost: None,
            traces: Traces::default(),
            stopping: None,
            stop_said: false,
        }
    }

    /// `notify` hears of files whose lease was lost, on the core's thread.
    pub fn on_lease_lost(mut self, notify: OnLeaseLost) -> Self {
        self.on_lease_lost = Some(notify);
        self
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Runs `alarm` no earlier than after `wait`.
    fn after(&mut self, io: &mut dyn Io, wait: Duration, alarm: Alarm) {
        let id = self.next_id();
        self.alarms.insert(id, alarm);
        io.set_timer(io.now().after(wait), TimerId(TIMER_SPACE | id));
    }

    fn on_timer(&mut self, io: &mut dyn Io, id: TimerId) {
        if id == TICK_TIMER {
            self.tick(io);
            io.set_timer(io.now().after(TICK), TICK_TIMER);
        } else if let Some(alarm) = self.alarms.remove(&(id.0 & !TIMER_SPACE)) {
            alarm(self, io);
        }
    }

    fn tick(&mut self, io: &mut dyn Io) {
        self.mds_tick(io);
        self.links_tick(io);
        self.parts_tick(io);
        self.gather_tick(io);
        self.leases_tick(io);
        self.stop_if_done(io);
    }

    fn on_frame(&mut self, io: &mut dyn Io, conn: ConnId, raw: shards::RawFrame) {
        let frame = match wire::Frame::decode(raw) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::warn!(?conn, %error, "bad_frame");
                let why = format!("sent a bad frame: {error}");
                io.close(conn);
                return self.on_closed(io, conn, why);
            }
        };
        if self.mds.conn() == Some(conn) {
            self.mds_frame(io, frame);
        } else {
            self.link_frame(io, conn, frame);
        }
    }

    fn on_closed(&mut self, io: &mut dyn Io, conn: ConnId, why: String) {
        if self.mds.conn() == Some(conn) {
            self.mds_lost(io, why);
        } else {
            self.link_closed(io, conn, why);
        }
    }

    fn on_call(&mut self, io: &mut dyn Io, call: Call) {
        if self.stopping.is_some() && !matches!(call, Call::Close { .. }) {
            return refuse(call, ClientError::Closed("the client is stopping"));
        }
        match call {
            Call::Ready { done } => self.when_ready(
                io,
                Box::new(|core, io, ready| {
                    core.when_cache_settled(io, Box::new(move |_, _, _| done(ready)));
                }),
            ),
            Call::Stats { done } => done(Ok(Stats { cache: self.cache_stats(), ..self.stats })),
            Call::Mds { request, done } => self.mds_call(io, request, pass(done)),
            Call::Lookup { parent, name, done } => self.lookup(io, parent, name, pass(done)),
            Call::GetAttr { file, done } => self.get_attr(io, file, pass(done)),
            Call::SetAttr { file, change, done } => self.set_attr(io, file, change, pass(done)),
            Call::ReadDir { directory, after, limit, done } => {
                self.read_dir(io, directory, after, limit, pass(done))
            }
            Call::Open { file, mode, done } => self.open(io, file, mode, pass(done)),
            Call::Create { parent, name, mode, uid, gid, exclusive, done } => {
                self.create(io, names::NewFile { parent, name, mode, uid, gid, exclusive }, pass(done))
            }
            Call::Make { parent, name, kind, mode, uid, gid, target, done } => {
                self.make(io, names::NewName { parent, name, kind, mode, uid, gid, target }, pass(done))
            }
            Call::Close { file, mode, done } => self.close(io, file, mode, pass(done)),
            Call::Read { file, offset, len, done } => self.read(io, file, offset, len, pass(done)),
            Call::Write { file, offset, data, how, done } if how.drops_privileges => {
                let write: Then<()> = Box::new(move |core, io, dropped| match dropped {
                    Ok(()) => core.write_as(io, file, offset, data, how, pass(done)),
                    Err(error) => done(Err(error)),
                });
                self.drop_privileges(io, file, write)
            }
            Call::Write { file, offset, data, how, done } => {
                self.write_as(io, file, offset, data, how, pass(done))
            }
            Call::Sync { file, done } => self.sync(io, file, pass(done)),
            Call::Zero { file, offset, len, keep_size, done } => {
                self.zero(io, file, offset, len, keep_size, pass(done))
            }
            Call::Reserve { file, offset, len, done } => self.reserve(io, file, offset, len, pass(done)),
            Call::DropPrivileges { file, done } => self.drop_privileges(io, file, pass(done)),
            Call::Seek { file, offset, what, done } => self.seek(io, file, offset, what, pass(done)),
            Call::Map { file, done } => self.file_map(io, file, pass(done)),
        }
    }

    fn write_as(
        &mut self,
        io: &mut dyn Io,
        file: FileId,
        offset: u64,
        data: shards::Buf,
        how: WriteHow,
        then: Then<()>,
    ) {
        if how.may_wait && !how.sync {
            self.write_soon(io, file, offset, data, then);
        } else {
            self.write(io, file, offset, data, how.sync, then);
        }
    }

    /// Starts to end the client: requests under way finish, sizes and leases are handed in, the session closes.
    fn shutdown(&mut self, io: &mut dyn Io) {
        if self.stopping.is_none() {
            tracing::info!(open_files = self.files.len(), parts = self.parts.len(), "client_stopping");
            self.stopping = Some(io.now().after(STOP_WITHIN));
            let files: Vec<FileId> = self.files.keys().copied().collect();
            for file in files {
                self.close_all(io, file);
            }
            self.release_unused(io);
        }
        self.stop_if_done(io);
    }

    fn stop_if_done(&mut self, io: &mut dyn Io) {
        let Some(deadline) = self.stopping else { return };
        let late = io.now() >= deadline;
        if self.stop_said || !(late || (self.files.is_empty() && self.transfers.is_empty())) {
            return;
        }
        if !late && !self.cache_is_saved(io) {
            return;
        }
        self.stop_said = true;
        let unsaved: Vec<FileId> =
            self.files.iter().filter(|(_, f)| f.unrecorded()).map(|(id, _)| *id).collect();
        let outcome = if unsaved.is_empty() {
            Ok(())
        } else {
            Err(format!(
                "stopped before the sizes of files {unsaved:?} could be recorded: {}",
                self.mds.tried()
            ))
        };
        self.mds_bye(io);
        io.stop(outcome);
    }
}

impl Node for ClientCore {
    type Message = Call;

    fn handle(&mut self, event: Event<Call>, io: &mut dyn Io) {
        match event {
            Event::Start => {
                io.set_timer(io.now().after(TICK), TICK_TIMER);
                self.mds_start(io);
                self.cache_start(io);
            }
            Event::Message(call) => self.on_call(io, call),
            Event::Frame { conn, frame } => self.on_frame(io, conn, frame),
            Event::Closed { conn, why } => self.on_closed(io, conn, why),
            Event::Timer { id } => self.on_timer(io, id),
            Event::Shutdown => self.shutdown(io),
            Event::Connected { .. } => {}
            Event::Accepted { conn, .. } => io.close(conn),
            Event::Disk { op, result } => {
                if !self.cache_disk(io, op, result) {
                    tracing::warn!(?op, "unexpected_disk_completion");
                }
            }
        }
    }
}

/// Hands the end of the last step to the program that asked.
fn pass<T: 'static>(done: Done<T>) -> Then<T> {
    Box::new(move |_, _, result| done(result))
}

/// Ends a call that can't be started.
pub(crate) fn refuse(call: Call, why: ClientError) {
    match call {
        Call::Ready { done } => done(Err(why)),
        Call::Stats { done } => done(Err(why)),
        Call::Mds { done, .. } => done(Err(why)),
        Call::Lookup { done, .. }
        | Call::GetAttr { done, .. }
        | Call::SetAttr { done, .. }
        | Call::Make { done, .. } => done(Err(why)),
        Call::ReadDir { done, .. } => done(Err(why)),
        Call::Open { done, .. } | Call::Create { done, .. } => done(Err(why)),
        Call::Read { done, .. } => done(Err(why)),
        Call::Close { done, .. }
        | Call::Write { done, .. }
        | Call::Sync { done, .. }
        | Call::Zero { done, .. }
        | Call::Reserve { done, .. }
        | Call::DropPrivileges { done, .. } => done(Err(why)),
        Call::Seek { done, .. } => done(Err(why)),
        Call::Map { done, .. } => done(Err(why)),
    }
}
