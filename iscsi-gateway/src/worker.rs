//! Event loops: each thread has some connections, reads what initiators send, hands work to the cluster's client and sends answers as
//! they come. Nothing is shared between them but units and the list of sessions; they speak by messages.

use crate::gateway::{Gateway, Running};
use crate::unit::{Outcome, Unit};
use iscsi::login::{Challenge, LoggedIn};
use iscsi::pdu::ManageResult;
use iscsi::scsi::{self, Begun, Failure, Job, Reply, Step, lun_number};
use iscsi::{Action, Connection, Nexus, Outgoing, Reset, Task};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Small PDUs are read together; payload of at least this length goes straight where it stays.
const STAGE_BYTES: usize = 32 << 10;
/// Reads of one connection before others have their turn.
const READ_ROUNDS: usize = 16;
/// An initiator that does not take its answers is not read from any more.
const MAX_OUT_BYTES: usize = 64 << 20;
/// Pieces of one write to a socket.
const MAX_SLICES: usize = 96;
/// Connections of one loop.
const MAX_LINKS: usize = 1024;
/// How long a login may take.
const LOGIN_TIME: Duration = Duration::from_secs(15);
/// An initiator that is silent for so long is asked whether it is there, and is gone when it is silent for longer.
const PING_AFTER: Duration = Duration::from_secs(10);
const GONE_AFTER: Duration = Duration::from_secs(30);
const TICK_MS: u16 = 1000;
/// The event of the mailbox; all others are numbers of links and listeners.
const MAIL: u64 = 0;

pub enum Message {
    Listen(TcpListener, SocketAddr),
    Unlisten(SocketAddr),
    Accept(TcpStream, SocketAddr),
    Answer {
        link: u64,
        task: u32,
        outcome: Outcome,
    },
    /// A job that waited may go on.
    Go {
        link: u64,
        task: u32,
    },
    /// Ends a link; `then` goes on when nothing of it runs any more.
    End {
        link: u64,
        then: Option<Place>,
    },
    /// Nothing of the session before runs any more.
    Resume {
        link: u64,
    },
    Quit,
}

/// How other threads reach a loop.
pub struct Mailbox {
    messages: Mutex<Vec<Message>>,
    wake: EventFd,
}

impl Mailbox {
    pub fn new() -> io::Result<Arc<Mailbox>> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Arc::new(Mailbox { messages: Mutex::new(Vec::new()), wake }))
    }

    pub fn post(&self, message: Message) {
        let mut messages = self.messages.lock().expect("no panic under this lock");
        messages.push(message);
        let first = messages.len() == 1;
        drop(messages);
        if first {
            // It fails only if it is set already.
            let _ = self.wake.write(1);
        }
    }

    fn take(&self) -> Vec<Message> {
        let _ = self.wake.read(); // Nothing in it: fine.
        std::mem::take(&mut *self.messages.lock().expect("no panic under this lock"))
    }
}

/// A command of a link, or the link itself.
#[derive(Clone)]
pub struct Place {
    pub mailbox: Arc<Mailbox>,
    pub link: u64,
    pub task: u32,
}

impl Place {
    pub fn go(self) {
        self.mailbox.post(Message::Go { link: self.link, task: self.task });
    }

    pub fn end(self, then: Option<Place>) {
        self.mailbox.post(Message::End { link: self.link, then });
    }

    fn resume(self) {
        self.mailbox.post(Message::Resume { link: self.link });
    }
}

struct Session {
    running: Arc<Running>,
    nexus: Nexus,
}

/// A connection.
struct Link {
    stream: TcpStream,
    portal: SocketAddr,
    peer: SocketAddr,
    /// When it came, and when it last said anything.
    since: Instant,
    heard: Instant,
    connection: Connection,
    out: VecDeque<Outgoing>,
    out_bytes: usize,
    /// Of the first of `out`.
    written_bytes: usize,
    interest: EpollFlags,
    session: Option<Session>,
    logged_in: bool,
    /// An earlier session of the same initiator still has work under way.
    paused: bool,
    jobs: HashMap<u32, (Job, Arc<Unit>)>,
    /// It ends when all is sent.
    ending: bool,
    /// The socket is of no use any more; what runs ends.
    dead: bool,
    /// Nobody listens to the socket any more.
    buried: bool,
    successors: Vec<Place>,
}

pub struct Worker {
    gateway: Arc<Gateway>,
    mailbox: Arc<Mailbox>,
    epoll: Epoll,
    links: HashMap<u64, Link>,
    listeners: HashMap<u64, (TcpListener, SocketAddr)>,
    stage: Vec<u8>,
    next_id: u64,
    quits: bool,
}

impl Worker {
    pub fn spawn(
        gateway: Arc<Gateway>,
        mailbox: Arc<Mailbox>,
        n: usize,
    ) -> io::Result<std::thread::JoinHandle<()>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&mailbox.wake, EpollEvent::new(EpollFlags::EPOLLIN, MAIL))?;
        let mut worker = Worker {
            gateway,
            mailbox,
            epoll,
            links: HashMap::new(),
            listeners: HashMap::new(),
            stage: vec![0; STAGE_BYTES],
            next_id: MAIL,
            quits: false,
        };
        std::thread::Builder::new().name(format!("iscsi-{n}")).spawn(move || worker.run())
    }

    fn run(&mut self) {
        let mut events = [EpollEvent::empty(); 64];
        let mut looked_at = Instant::now();
        while !(self.quits && self.links.is_empty()) {
            let count = match self.epoll.wait(&mut events, EpollTimeout::from(TICK_MS)) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => {
                    tracing::error!(%error, "iscsi_epoll_failed");
                    return;
                }
            };
            for event in &events[..count] {
                match event.data() {
                    MAIL => self.mail(),
                    id if self.listeners.contains_key(&id) => self.accept(id),
                    id => self.with_link(id, |worker, link| {
                        if event.events().contains(EpollFlags::EPOLLIN) {
                            worker.read(id, link);
                        } else if event.events().intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
                            link.dead = true;
                        }
                    }),
                }
            }
            if looked_at.elapsed() >= Duration::from_secs(1) {
                looked_at = Instant::now();
                self.look_after_links();
            }
        }
    }

    /// Asks silent initiators, and ends connections of those that are gone, or don't log in.
    fn look_after_links(&mut self) {
        let all: Vec<u64> = self.links.keys().copied().collect();
        for id in all {
            self.with_link(id, |_, link| {
                let silent = link.heard.elapsed();
                if silent > GONE_AFTER || (!link.logged_in && link.since.elapsed() > LOGIN_TIME) {
                    link.dead = true;
                } else if silent > PING_AFTER && link.out.is_empty() {
                    link.connection.ping();
                }
            });
        }
    }

    fn mail(&mut self) {
        let mut touched = Vec::new();
        for message in self.mailbox.take() {
            match message {
                Message::Listen(listener, portal) => self.listen(listener, portal),
                Message::Unlisten(portal) => self.listeners.retain(|_, (_, at)| *at != portal),
                Message::Accept(stream, portal) => self.welcome(stream, portal),
                Message::Answer { link: id, task, outcome } => {
                    if let Some(mut link) = self.links.remove(&id) {
                        self.answered(id, &mut link, task, outcome);
                        self.links.insert(id, link);
                        touched.push(id);
                    }
                }
                Message::Go { link: id, task } => {
                    if let Some(mut link) = self.links.remove(&id) {
                        self.go(id, &mut link, task);
                        self.links.insert(id, link);
                        touched.push(id);
                    }
                }
                Message::End { link: id, then } => match self.links.get_mut(&id) {
                    Some(link) => {
                        link.dead = true;
                        link.successors.extend(then);
                        touched.push(id);
                    }
                    None => then.into_iter().for_each(Place::resume),
                },
                Message::Resume { link: id } => self.with_link(id, |_, link| {
                    link.paused = false;
                    if !link.dead {
                        link.connect_units();
                    }
                }),
                Message::Quit => {
                    self.quits = true;
                    self.listeners.clear();
                    touched.extend(self.links.keys().copied());
                    self.links.values_mut().for_each(|link| link.dead = true);
                }
            }
        }
        touched.sort_unstable();
        touched.dedup();
        // One write to each socket for all that was answered.
        touched.into_iter().for_each(|id| self.with_link(id, |_, _| {}));
    }

    // Connections come and go.

    fn listen(&mut self, listener: TcpListener, portal: SocketAddr) {
        self.next_id += 1;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, self.next_id);
        match self.epoll.add(&listener, event) {
            Ok(()) => drop(self.listeners.insert(self.next_id, (listener, portal))),
            Err(error) => tracing::error!(%portal, %error, "iscsi_listen_failed"),
        }
    }

    fn accept(&mut self, id: u64) {
        let Some((listener, portal)) = self.listeners.get(&id) else { return };
        let portal = *portal;
        match listener.accept() {
            Ok((stream, _)) => self.gateway.assign(stream, portal),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => {}
            Err(error) => {
                tracing::warn!(%portal, %error, "iscsi_accept_failed");
                // Too many files, perhaps: later there may be room.
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn welcome(&mut self, stream: TcpStream, portal: SocketAddr) {
        if self.quits || self.links.len() >= MAX_LINKS {
            return;
        }
        let prepared = stream
            .set_nonblocking(true)
            .and_then(|()| stream.set_nodelay(true))
            .and_then(|()| stream.peer_addr());
        let Ok(peer) = prepared else { return };
        self.next_id += 1;
        let id = self.next_id;
        let [challenge_id, bytes @ ..] = shards::host::random_bytes::<17>();
        let connection = Connection::new(Challenge { id: challenge_id, bytes }, self.gateway.next_tsih());
        let interest = EpollFlags::EPOLLIN;
        if let Err(error) = self.epoll.add(&stream, EpollEvent::new(interest, id)) {
            return tracing::warn!(%portal, %error, "iscsi_accept_failed");
        }
        let link = Link {
            stream,
            portal,
            peer,
            since: Instant::now(),
            heard: Instant::now(),
            connection,
            out: VecDeque::new(),
            out_bytes: 0,
            written_bytes: 0,
            interest,
            session: None,
            logged_in: false,
            paused: false,
            jobs: HashMap::new(),
            ending: false,
            dead: false,
            buried: false,
            successors: Vec::new(),
        };
        self.links.insert(id, link);
    }

    /// Does something with a link, then all that follows from it.
    fn with_link(&mut self, id: u64, work: impl FnOnce(&mut Worker, &mut Link)) {
        let Some(mut link) = self.links.remove(&id) else { return };
        work(self, &mut link);
        self.act(id, &mut link);
        if !link.dead {
            link.flush();
        }
        if link.dead || (link.ending && link.out.is_empty()) {
            return self.bury(id, link);
        }
        self.watch(id, &mut link);
        self.links.insert(id, link);
    }

    /// Which events of the socket are waited for.
    fn watch(&mut self, id: u64, link: &mut Link) {
        let mut interest = EpollFlags::empty();
        interest.set(EpollFlags::EPOLLIN, link.out_bytes < MAX_OUT_BYTES && !link.ending);
        interest.set(EpollFlags::EPOLLOUT, !link.out.is_empty());
        if interest != link.interest {
            link.interest = interest;
            let mut event = EpollEvent::new(interest, id);
            if self.epoll.modify(&link.stream, &mut event).is_err() {
                link.dead = true;
            }
        }
    }

    /// A link whose socket is of no use any more: it goes when nothing of it runs.
    fn bury(&mut self, id: u64, mut link: Link) {
        link.dead = true;
        if !link.buried {
            link.buried = true;
            let _ = self.epoll.delete(&link.stream); // It was there, or is gone.
            let _ = link.stream.shutdown(std::net::Shutdown::Both);
        }
        // One that waits for an earlier session has not ended before that one: a third may wait for both.
        if !link.jobs.is_empty() || link.paused {
            self.links.insert(id, link);
            return;
        }
        if let Some(session) = link.session.take() {
            let place = self.place(id, 0);
            if self.gateway.session_ended(&session.running, &session.nexus, &place) {
                session.running.units.values().for_each(|unit| unit.disconnect(&session.nexus));
            }
            tracing::info!(initiator = session.nexus.initiator, peer = %link.peer, "iscsi_session_ended");
        }
        link.successors.into_iter().for_each(Place::resume);
    }

    fn place(&self, link: u64, task: u32) -> Place {
        Place { mailbox: self.mailbox.clone(), link, task }
    }

    // What initiators say.

    fn read(&mut self, id: u64, link: &mut Link) {
        for _ in 0..READ_ROUNDS {
            if link.dead || link.ending || link.out_bytes >= MAX_OUT_BYTES {
                return;
            }
            let room = link.connection.room();
            let direct = room.len() >= STAGE_BYTES;
            let read = if direct { link.stream.read(room) } else { link.stream.read(&mut self.stage) };
            let (count, is_all) = match read {
                Ok(0) => {
                    link.dead = true;
                    return;
                }
                Ok(count) => (count, count < STAGE_BYTES),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => {
                    link.dead = true;
                    return;
                }
            };
            link.heard = Instant::now();
            let fed = {
                let catalog = self.gateway.catalog(link.portal, &link.stream);
                match direct {
                    true => link.connection.filled(count, &catalog),
                    false => feed(&mut link.connection, &self.stage[..count], &catalog),
                }
            };
            self.act(id, link);
            if let Err(error) = fed {
                tracing::warn!(peer = %link.peer, %error, "iscsi_connection_broken");
                link.dead = true;
                return;
            }
            if is_all && !direct {
                return;
            }
        }
    }

    /// Does what the protocol says.
    fn act(&mut self, id: u64, link: &mut Link) {
        while !link.paused
            && !link.dead
            && let Some(action) = link.connection.next_action()
        {
            match action {
                Action::Send(outgoing) => {
                    link.out_bytes += outgoing.bytes();
                    link.out.push_back(outgoing);
                }
                Action::Refused(refusal) => {
                    tracing::warn!(peer = %link.peer, %refusal, "iscsi_login_refused");
                }
                Action::LoggedIn(done) => self.logged_in(id, link, done),
                Action::Execute(task) => self.execute(id, link, task),
                Action::Reset { task, what } => self.reset(id, link, task, what),
                Action::End => link.ending = true,
            }
        }
    }

    fn logged_in(&mut self, id: u64, link: &mut Link, done: LoggedIn) {
        link.logged_in = true;
        let LoggedIn { nexus, target, user, .. } = done;
        let Some(target) = target else { return };
        tracing::info!(initiator = nexus.initiator, iqn = target.name, peer = %link.peer, "iscsi_session_began");
        let place = self.place(id, 0);
        match self.gateway.session_began(&target.name, &nexus, user, link.peer, &place) {
            // Stopped meanwhile.
            None => link.dead = true,
            Some((running, earlier)) => {
                link.session = Some(Session { running, nexus });
                match earlier {
                    Some(earlier) => {
                        link.paused = true;
                        earlier.end(Some(place));
                    }
                    None => link.connect_units(),
                }
            }
        }
    }

    // Commands.

    fn execute(&mut self, id: u64, link: &mut Link, task: Task) {
        let Task { task, lun, cdb, data } = task;
        let Some(session) = &link.session else { return };
        let units = &session.running.units;
        if let Some(reply) = scsi::report_luns(&cdb, units.keys().copied()) {
            return link.connection.complete(task, reply);
        }
        let Some(unit) = lun_number(lun).and_then(|lun| units.get(&lun)) else {
            return link.connection.complete(task, scsi::no_unit(&cdb));
        };
        let unit = unit.clone();
        match unit.begin(&session.nexus, &cdb, data, || self.place(id, task)) {
            Begun::Done(reply) => link.connection.complete(task, reply),
            Begun::Wait(job) => drop(link.jobs.insert(task, (job, unit))),
            Begun::Run(mut job) => {
                let step = job.start();
                link.jobs.insert(task, (job, unit));
                self.step(id, link, task, step);
            }
        }
    }

    fn go(&mut self, id: u64, link: &mut Link, task: u32) {
        let Some((job, _)) = link.jobs.get_mut(&task) else { return };
        let step = job.start();
        self.step(id, link, task, step);
    }

    fn answered(&mut self, id: u64, link: &mut Link, task: u32, outcome: Outcome) {
        let Some((job, _)) = link.jobs.get_mut(&task) else { return };
        if outcome == Err(Failure::Lost)
            && let Some(session) = &link.session
        {
            self.gateway.lost(&session.running);
        }
        let step = job.answered(outcome);
        self.step(id, link, task, step);
    }

    fn step(&mut self, id: u64, link: &mut Link, task: u32, step: Step) {
        let Some((_, unit)) = link.jobs.get(&task) else { return };
        match step {
            // Nobody will hear of it: what is not begun is left undone.
            Step::Do(_) if link.dead => self.finish(link, task, None),
            Step::Do(medium) => {
                if let Some(session) = &link.session {
                    session.running.counts.count(&medium);
                }
                let place = self.place(id, task);
                unit.submit(medium, move |outcome| {
                    let Place { mailbox, link, task } = place;
                    mailbox.post(Message::Answer { link, task, outcome });
                });
            }
            Step::Done(reply) => self.finish(link, task, Some(reply)),
        }
    }

    fn finish(&mut self, link: &mut Link, task: u32, reply: Option<Reply>) {
        let Some((job, unit)) = link.jobs.remove(&task) else { return };
        unit.end(job.id);
        if let Some(reply) = reply {
            link.connection.complete(task, reply);
        }
    }

    fn reset(&mut self, id: u64, link: &mut Link, task: u32, what: Reset) {
        let Some(session) = &link.session else { return };
        let units = &session.running.units;
        let result = match what {
            Reset::Lun(lun) => match lun_number(lun).and_then(|lun| units.get(&lun)) {
                Some(unit) => {
                    unit.reset();
                    ManageResult::Done
                }
                None => ManageResult::NoSuchLun,
            },
            Reset::Target | Reset::TargetCold => {
                units.values().for_each(|unit| unit.reset());
                ManageResult::Done
            }
        };
        link.connection.reset_done(task, result);
        if what == Reset::TargetCold {
            let own = self.place(id, 0);
            self.gateway.end_sessions(&session.running, Some(&own));
            link.ending = true;
        }
    }
}

impl Link {
    fn connect_units(&mut self) {
        if let Some(session) = &self.session {
            session.running.units.values().for_each(|unit| {
                unit.disconnect(&session.nexus);
                unit.connect(&session.nexus);
            });
        }
    }

    /// Sends as much as the socket takes.
    fn flush(&mut self) {
        while !self.out.is_empty() {
            let mut skip = self.written_bytes;
            let mut slices = Vec::with_capacity(MAX_SLICES.min(3 * self.out.len()));
            for outgoing in self.out.iter().take(MAX_SLICES / 3) {
                for part in [&outgoing.head[..], &outgoing.data, &outgoing.tail] {
                    let skipped = skip.min(part.len());
                    skip -= skipped;
                    if skipped < part.len() {
                        slices.push(IoSlice::new(&part[skipped..]));
                    }
                }
            }
            match self.stream.write_vectored(&slices) {
                Ok(count) => self.sent(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.dead = true;
                    return;
                }
            }
        }
    }

    fn sent(&mut self, count: usize) {
        self.out_bytes -= count;
        self.written_bytes += count;
        while let Some(first) = self.out.front()
            && self.written_bytes >= first.bytes()
        {
            self.written_bytes -= first.bytes();
            self.out.pop_front();
        }
    }
}

fn feed(
    connection: &mut Connection,
    mut bytes: &[u8],
    catalog: &dyn iscsi::Catalog,
) -> Result<(), iscsi::ConnectionError> {
    while !bytes.is_empty() {
        let room = connection.room();
        let count = room.len().min(bytes.len());
        room[..count].copy_from_slice(&bytes[..count]);
        bytes = &bytes[count..];
        connection.filled(count, catalog)?;
    }
    Ok(())
}
