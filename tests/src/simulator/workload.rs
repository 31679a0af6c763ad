//! What the simulated clients do, and what they saw: random reads and writes of shared files, small files made and
//! removed, clones.
//!
//! A clone is never written to: whatever happens to the original, a read of it shows what the original held when it was
//! made, and is noted as a read at that time. Often the original and the clone change places, so that it is the original that
//! stays as it is.

use crate::registers::{CELL_BYTES, History, cell, value_of};
use client::{Call, ClientCore, ClientError, Done, WriteHow};
use shards::Timestamp;
use shards::sim::{HostId, Rng, World};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wire::mds_api::{FileKind, LeaseMode, MdsReply, MdsRequest};
use wire::{FileId, ROOT};

pub const CHUNK_BYTES: u64 = 1 << 20;
const CHUNKS: u64 = 3;
pub const FILE_BYTES: u64 = CHUNKS * CHUNK_BYTES;
const CHUNK_CELLS: u64 = CHUNK_BYTES / CELL_BYTES as u64;
/// How long a stranded client goes on writing, and its operations under way.
const STRANDED_WRITES: Duration = Duration::from_millis(200);
const STRANDED_DEPTH: u64 = 200;

/// Who asked, of which life, and what it is an answer to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tag {
    client: usize,
    life: u64,
    op: u64,
}

pub enum Answer {
    Data(client::Result<shards::Buf>),
    Unit(client::Result<()>),
    Opened(client::Result<()>),
    Reply(client::Result<MdsReply>),
}

/// Answers that came since the last look.
#[derive(Clone, Default)]
pub struct Answers(Arc<Mutex<VecDeque<(Tag, Answer)>>>);

impl Answers {
    pub fn take(&self) -> VecDeque<(Tag, Answer)> {
        std::mem::take(&mut *self.0.lock().expect("one thread"))
    }

    fn done<T: 'static>(
        &self,
        tag: Tag,
        wrap: impl Fn(client::Result<T>) -> Answer + Send + 'static,
    ) -> Done<T> {
        let answers = self.0.clone();
        Box::new(move |result| answers.lock().expect("one thread").push_back((tag, wrap(result))))
    }
}

#[derive(Debug)]
enum Op {
    Open,
    Read {
        first: u32,
        start: Timestamp,
    },
    /// `waits`: it is answered before it is durable.
    Write {
        value: u64,
        waits: bool,
    },
    /// Makes these writes durable.
    Sync {
        covers: Vec<u64>,
    },
    Close,
    Make {
        name: String,
    },
    Unlink {
        name: String,
    },
    Clone {
        file: usize,
        name: String,
        start: Timestamp,
        /// How often the file had been opened.
        opens: u64,
        /// Left, of a file that somebody writes to.
        tries: u32,
    },
}

/// A file that stays as it is.
#[derive(Clone, Debug)]
pub struct Frozen {
    pub file: FileId,
    /// Whose contents it has, and when it had them.
    pub of: usize,
    pub start: Timestamp,
    pub end: Timestamp,
    /// In the root; `None` for an original.
    name: Option<String>,
}

/// How often a clone of a file is asked for while its writer settles.
const CLONE_TRIES: u32 = 60;
/// Clones that are kept.
const MOST_FROZEN: usize = 6;

/// A small file as far as its maker knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    There,
    Gone,
    Unsure,
}

struct User {
    host: HostId,
    /// Of the client node; answers to earlier ones are not for us.
    life: u64,
    rng: Rng,
    holds: Option<usize>,
    /// Of the file held.
    mode: LeaseMode,
    busy: BTreeMap<u64, Op>,
    /// Writes that were answered and may not be durable.
    unsynced: Vec<u64>,
    /// Operations left before the file is handed on.
    left: u64,
    depth: u64,
    /// Pause after operations were started, at most, while this file is held.
    think_ms: u64,
    next_name: u64,
    /// Nothing new is started before.
    rest_until: Timestamp,
}

pub struct Workload {
    users: Vec<User>,
    pub files: Vec<FileId>,
    pub histories: Vec<History>,
    pub names: BTreeMap<String, Known>,
    pub answers: Answers,
    /// Whether files are opened for reading too.
    readers: bool,
    next_op: u64,
    next_value: u64,
    pub done_ops: u64,
    pub failed_ops: u64,
    pub errors: BTreeMap<String, u64>,
    /// Set when reads showed something that can't be.
    pub violation: Option<String>,
    stopped: bool,
    stranded: Option<Stranded>,
    pub frozen: Vec<Frozen>,
    /// How often each file was opened, or was tried to be.
    opens: Vec<u64>,
    /// Of runs with clones.
    clones: Option<Rng>,
}

/// A client that is cut off together with those that lead the chunks of its file.
#[derive(Clone, Copy)]
struct Stranded {
    client: usize,
    file: usize,
    /// From then on it only reads: what it wrote and could not finish lies in its way otherwise.
    reads_from: Timestamp,
    until: Timestamp,
}

impl Workload {
    pub fn new(
        clients: &[HostId],
        files: Vec<FileId>,
        answers: Answers,
        readers: bool,
        rng: &mut Rng,
    ) -> Workload {
        let user = |&host: &HostId| User {
            host,
            life: 1,
            rng: rng.fork(),
            holds: None,
            mode: LeaseMode::Write,
            busy: BTreeMap::new(),
            unsynced: Vec::new(),
            left: 0,
            depth: 1,
            think_ms: 0,
            next_name: 0,
            rest_until: Timestamp(0),
        };
        let users = clients.iter().map(user).collect();
        let mut clones = rng.fork();
        Workload {
            users,
            frozen: Vec::new(),
            opens: vec![0; files.len()],
            clones: clones.one_in(2).then_some(clones),
            histories: files.iter().map(|_| History::default()).collect(),
            files,
            names: BTreeMap::new(),
            answers,
            readers,
            next_op: 0,
            next_value: 0,
            done_ops: 0,
            failed_ops: 0,
            errors: BTreeMap::new(),
            violation: None,
            stopped: false,
            stranded: None,
        }
    }

    /// The client's node was killed: what it had under way may or may not have happened.
    pub fn client_crashed(&mut self, client: usize) {
        let user = &mut self.users[client];
        user.life += 1;
        user.holds = None;
        user.unsynced.clear();
        for op in std::mem::take(&mut user.busy).into_values() {
            if let Op::Make { name } | Op::Unlink { name } = op {
                self.names.insert(name, Known::Unsure);
            }
        }
    }

    /// The file a client has open, by its number.
    pub fn held_by(&self, client: usize) -> Option<usize> {
        self.users[client].holds
    }

    /// Until then a client goes on reading its file, as much as it may, and others want it.
    pub fn strand(&mut self, client: usize, now: Timestamp, until: Timestamp) {
        if let Some(file) = self.users[client].holds {
            self.stranded = Some(Stranded { client, file, reads_from: now.after(STRANDED_WRITES), until });
            let user = &mut self.users[client];
            // Much of it may never be answered.
            (user.left, user.depth, user.think_ms) = (u64::MAX, STRANDED_DEPTH, 60);
        }
    }

    /// What is over is over.
    fn end_stranding(&mut self, now: Timestamp) {
        if let Some(Stranded { client, file, until, .. }) = self.stranded
            && (now >= until || self.users[client].holds != Some(file))
        {
            self.stranded = None;
            let user = &mut self.users[client];
            (user.left, user.depth) = (user.left.min(20), user.depth.min(8));
        }
    }

    /// No new operations; those under way may end.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    pub fn idle(&self) -> bool {
        self.users.iter().all(|u| u.busy.is_empty())
    }

    pub fn waiting(&self) -> String {
        let list: Vec<String> = self
            .users
            .iter()
            .enumerate()
            .map(|(n, u)| format!("client {n}: {:?}", u.busy.values()))
            .collect();
        list.join("; ")
    }

    /// Takes answers and starts what is to be started.
    pub fn turn(&mut self, world: &mut World) {
        for (tag, answer) in self.answers.take() {
            if self.users[tag.client].life == tag.life {
                self.answered(world, tag, answer);
            }
        }
        if self.stopped {
            return;
        }
        self.end_stranding(world.now());
        for client in 0..self.users.len() {
            if world.is_up(self.users[client].host) && self.users[client].rest_until <= world.now() {
                self.start_some(world, client);
            }
        }
    }

    fn tag(&mut self, client: usize, op: Op) -> Tag {
        self.next_op += 1;
        let user = &mut self.users[client];
        user.busy.insert(self.next_op, op);
        Tag { client, life: user.life, op: self.next_op }
    }

    fn say(&self, world: &mut World, client: usize, call: Call) {
        world.message::<ClientCore>(self.users[client].host, call);
    }

    fn start_some(&mut self, world: &mut World, client: usize) {
        let user = &mut self.users[client];
        let waiting_alone = user.busy.values().any(|op| matches!(op, Op::Open | Op::Close));
        let (files, readers) = (self.files.len() as u64, self.readers);
        let stranded = self.stranded.filter(|s| s.client == client).is_some();
        let wanted = self.stranded.map(|s| s.file);
        let is_free = user.holds.is_none() && user.busy.is_empty();
        if is_free && wanted.is_none() && self.start_clone(world, client) {
            return;
        }
        let user = &mut self.users[client];
        match user.holds {
            None if user.busy.is_empty() => {
                let any = user.rng.below(files) as usize;
                let file = wanted.filter(|_| user.rng.one_in(2)).unwrap_or(any);
                user.holds = Some(file);
                self.opens[file] += 1;
                // Readers share a file; they may find it in their caches.
                user.mode = if readers && user.rng.one_in(4) { LeaseMode::Read } else { LeaseMode::Write };
                (user.left, user.depth) = (user.rng.between(20, 300), user.rng.between(1, 8));
                user.think_ms = *user.rng.pick(&[0, 4, 20]);
                let tag = self.tag(client, Op::Open);
                let done = self
                    .answers
                    .done(tag, |r: client::Result<client::OpenFile>| Answer::Opened(r.map(|_| ())));
                let (file, mode) = (self.files[file], self.users[client].mode);
                self.say(world, client, Call::Open { file, mode, done });
            }
            Some(file) if !waiting_alone && user.left == 0 && user.busy.is_empty() => {
                let tag = self.tag(client, Op::Close);
                let done = self.answers.done(tag, Answer::Unit);
                let (file, mode) = (self.files[file], self.users[client].mode);
                self.say(world, client, Call::Close { file, mode, done });
            }
            Some(file) if !waiting_alone => {
                while (self.users[client].busy.len() as u64) < self.users[client].depth
                    && self.users[client].left > 0
                {
                    self.users[client].left -= 1;
                    self.start_one(world, client, file);
                    if stranded {
                        break; // One after the other, answered or not.
                    }
                }
                let user = &mut self.users[client];
                let think = Duration::from_millis(user.rng.between(0, user.think_ms));
                user.rest_until = world.now().after(think);
            }
            _ => {}
        }
    }

    fn start_one(&mut self, world: &mut World, client: usize, file: usize) {
        let reads_only = self.users[client].mode == LeaseMode::Read;
        let now = world.now();
        let kinds = match self.stranded.filter(|s| s.client == client && now >= s.reads_from) {
            Some(_) => 2..=15,
            None if reads_only => 0..=15,
            None => 0..=39,
        };
        match self.users[client].rng.between(*kinds.start(), *kinds.end()) {
            0 => {
                let covers = self.users[client].unsynced.clone();
                let tag = self.tag(client, Op::Sync { covers });
                let done = self.answers.done(tag, Answer::Unit);
                self.say(world, client, Call::Sync { file: self.files[file], done });
            }
            1 => self.make_or_unlink(world, client),
            2..=15 => {
                let cells = self.pick_cells(client);
                let tag = self.tag(client, Op::Read { first: cells.start, start: world.now() });
                let done = self.answers.done(tag, Answer::Data);
                let offset = u64::from(cells.start) * CELL_BYTES as u64;
                let len = cells.len() * CELL_BYTES;
                self.say(world, client, Call::Read { file: self.files[file], offset, len, done });
            }
            _ => {
                let cells = self.pick_cells(client);
                self.next_value += 1;
                let value = self.next_value;
                let data: Vec<u8> = cells.clone().flat_map(|at| cell(value, file, at)).collect();
                self.histories[file].begin_write(value, cells.clone(), world.now());
                let rng = &mut self.users[client].rng;
                let how = WriteHow { sync: rng.one_in(10), may_wait: rng.one_in(3), ..WriteHow::default() };
                let tag = self.tag(client, Op::Write { value, waits: how.may_wait && !how.sync });
                let done = self.answers.done(tag, Answer::Unit);
                let offset = u64::from(cells.start) * CELL_BYTES as u64;
                let data = shards::Buf::from_slice(&data);
                self.say(world, client, Call::Write { file: self.files[file], offset, data, how, done });
            }
        }
    }

    /// Few places, so that operations meet; mostly whole blocks; now and then large or across chunks.
    fn pick_cells(&mut self, client: usize) -> std::ops::Range<u32> {
        let rng = &mut self.users[client].rng;
        let chunk = rng.below(CHUNKS);
        let (at, count) = match rng.below(20) {
            0 => (rng.below(CHUNK_CELLS), rng.between(256, 900)),
            1..=2 => (CHUNK_CELLS - rng.between(1, 20), rng.between(1, 40)),
            3..=7 => (rng.below(64), rng.between(1, 20)),
            _ => (8 * rng.below(12), 8 * rng.between(1, 3)),
        };
        let first = (chunk * CHUNK_CELLS + at) as u32;
        let end = (CHUNKS * CHUNK_CELLS) as u32;
        first..(first + count as u32).min(end)
    }

    fn make_or_unlink(&mut self, world: &mut World, client: usize) {
        let mine = format!("c{client}-");
        let there: Vec<String> = self
            .names
            .iter()
            .filter(|(name, known)| name.starts_with(&mine) && **known == Known::There)
            .map(|(name, _)| name.clone())
            .collect();
        let user = &mut self.users[client];
        if !there.is_empty() && user.rng.one_in(2) {
            let name = user.rng.pick(&there).clone();
            self.names.insert(name.clone(), Known::Unsure);
            let tag = self.tag(client, Op::Unlink { name: name.clone() });
            let request =
                MdsRequest::Unlink { client: wire::ClientId(0), parent: ROOT, name, directory: false };
            let done = self.answers.done(tag, Answer::Reply);
            return self.say(world, client, Call::Mds { request, done });
        }
        user.next_name += 1;
        let name = format!("{mine}{}-{}", user.life, user.next_name);
        self.names.insert(name.clone(), Known::Unsure);
        let tag = self.tag(client, Op::Make { name: name.clone() });
        let done = self.answers.done(tag, |r: client::Result<_>| Answer::Unit(r.map(|_| ())));
        let (kind, target) = (FileKind::File, String::new());
        let call = Call::Make { parent: ROOT, name, kind, mode: 0o644, uid: 0, gid: 0, target, done };
        self.say(world, client, call);
    }

    /// Now and then a client clones a file, open or not, or removes a clone.
    fn start_clone(&mut self, world: &mut World, client: usize) -> bool {
        let Some(rng) = &mut self.clones else { return false };
        if !rng.one_in(3) {
            return false;
        }
        if self.frozen.len() >= MOST_FROZEN {
            let at = rng.below(MOST_FROZEN as u64) as usize;
            let Some(name) = self.frozen[at].name.clone() else { return false };
            self.frozen.remove(at);
            let tag = self.tag(client, Op::Unlink { name: name.clone() });
            let request =
                MdsRequest::Unlink { client: wire::ClientId(0), parent: ROOT, name, directory: false };
            let done = self.answers.done(tag, Answer::Reply);
            self.say(world, client, Call::Mds { request, done });
            return true;
        }
        let file = rng.below(self.files.len() as u64) as usize;
        self.next_op += 1;
        let name = format!("s{}", self.next_op);
        let (start, opens) = (world.now(), self.opens[file]);
        self.ask_for_clone(world, client, Op::Clone { file, name, start, opens, tries: CLONE_TRIES });
        true
    }

    fn ask_for_clone(&mut self, world: &mut World, client: usize, op: Op) {
        let Op::Clone { file, name, .. } = &op else { return };
        let (file, name, nobody) = (self.files[*file], name.clone(), wire::ClientId(0));
        let tag = self.tag(client, op);
        let request = MdsRequest::Clone { client: nobody, file, parent: ROOT, name };
        let done = self.answers.done(tag, Answer::Reply);
        self.say(world, client, Call::Mds { request, done });
    }

    /// Whether anybody has the file open, or may have.
    fn is_held(&self, file: usize) -> bool {
        self.users.iter().any(|user| user.holds == Some(file))
    }

    fn cloned(
        &mut self,
        of: usize,
        clone: FileId,
        name: String,
        opens: u64,
        (start, end): (Timestamp, Timestamp),
    ) {
        // Nobody has written to the original since.
        let is_same = !self.is_held(of) && self.opens[of] == opens;
        let swap = is_same && self.clones.as_mut().is_some_and(|rng| rng.one_in(2));
        let (file, name) = match swap {
            true => (std::mem::replace(&mut self.files[of], clone), None),
            false => (clone, Some(name)),
        };
        self.frozen.push(Frozen { file, of, start, end, name });
    }

    fn answered(&mut self, world: &mut World, tag: Tag, answer: Answer) {
        let user = &mut self.users[tag.client];
        let Some(op) = user.busy.remove(&tag.op) else {
            self.violation.get_or_insert(format!("an operation of client {} was answered twice", tag.client));
            return;
        };
        let now = world.now();
        if let (Op::Clone { file, name, start, opens, tries: 1.. }, Answer::Reply(Err(e))) = (&op, &answer)
            && e.status() == Some(wire::Status::FileBusy)
        {
            let Op::Clone { tries, .. } = op else { return };
            let again =
                Op::Clone { file: *file, name: name.clone(), start: *start, opens: *opens, tries: tries - 1 };
            return self.ask_for_clone(world, tag.client, again);
        }
        let (what, error) = match &answer {
            Answer::Data(r) => ("read", r.as_ref().err()),
            Answer::Unit(r) => ("op", r.as_ref().err()),
            Answer::Opened(r) => ("open", r.as_ref().err()),
            Answer::Reply(r) => ("request", r.as_ref().err()),
        };
        if let Some(error) = error {
            let kind = match error {
                ClientError::Refused { status, .. } => format!("{what}: {status:?}"),
                other => format!("{what}: {}", other.to_string().split(':').next().unwrap_or("")),
            };
            *self.errors.entry(kind).or_default() += 1;
            self.failed_ops += 1;
            user.left = 0;
            user.rest_until = now.after(Duration::from_millis(user.rng.between(10, 300)));
            match op {
                Op::Open | Op::Close => (user.holds, user.unsynced) = (None, Vec::new()),
                _ => {}
            }
            return;
        }
        self.done_ops += 1;
        match (op, answer) {
            (Op::Open, _) => {
                let file = user.holds.expect("the file being opened");
                // A client that was cut off takes its write lease up again, and goes on, unless others could write.
                let mut go_on = BTreeSet::new();
                if user.mode == LeaseMode::Read {
                    let holders = self.users.iter().filter(|u| u.holds == Some(file));
                    let of = |op: &Op| if let Op::Write { value, .. } = op { Some(*value) } else { None };
                    for holder in holders {
                        go_on.extend(
                            holder.busy.values().filter_map(of).chain(holder.unsynced.iter().copied()),
                        );
                    }
                }
                self.histories[file].fence_others(now, &go_on);
            }
            (Op::Close, _) => {
                let file = user.holds.take().expect("the file that was closed");
                for value in std::mem::take(&mut user.unsynced) {
                    self.histories[file].end_write(value, now);
                }
                user.rest_until = now.after(Duration::from_millis(user.rng.between(0, 400)));
            }
            (Op::Sync { covers }, _) => {
                let file = user.holds.expect("files are held while operations run");
                user.unsynced.retain(|value| !covers.contains(value));
                for value in covers {
                    self.histories[file].end_write(value, now);
                }
            }
            (Op::Write { value, waits: true }, _) => user.unsynced.push(value),
            (Op::Write { value, .. }, _) => {
                let file = user.holds.expect("files are held while operations run");
                self.histories[file].end_write(value, now);
            }
            (Op::Read { first, start }, Answer::Data(Ok(data))) => {
                let file = user.holds.expect("files are held while operations run");
                self.saw(file, first, &data, start, now);
            }
            (Op::Make { name }, _) => {
                self.names.insert(name, Known::There);
            }
            (Op::Unlink { name }, _) => {
                self.names.insert(name, Known::Gone);
            }
            (Op::Clone { file, name, start, opens, .. }, Answer::Reply(Ok(MdsReply::Attr(attr)))) => {
                self.cloned(file, attr.file, name, opens, (start, now));
            }
            _ => {}
        }
    }

    /// Notes what a read returned.
    pub fn saw(&mut self, file: usize, first: u32, data: &[u8], start: Timestamp, end: Timestamp) {
        let cells = data.chunks(CELL_BYTES).zip(first..);
        match cells.map(|(bytes, at)| value_of(bytes, file, at)).collect() {
            Ok(values) => self.histories[file].read(first, values, start, end),
            Err(why) => {
                self.violation.get_or_insert(why);
            }
        }
    }

    /// Compares what makers know with what a listing shows.
    pub fn check_names(&self, listed: &BTreeSet<String>) -> Result<(), String> {
        for (name, known) in &self.names {
            match known {
                Known::There if !listed.contains(name) => {
                    return Err(format!("file {name} was made, acknowledged, and is gone"));
                }
                Known::Gone if listed.contains(name) => {
                    return Err(format!("file {name} was removed, acknowledged, and is there"));
                }
                _ => {}
            }
        }
        match listed.iter().find(|n| n.starts_with('c') && !self.names.contains_key(*n)) {
            Some(foreign) => Err(format!("file {foreign} is listed and nobody made it")),
            None => Ok(()),
        }
    }
}
