//! Connections of a loop: accept, connect, framed receive, gathered send.
//!
//! Receiving: bytes arrive in a staging buffer; a header tells the lengths of metadata and payload, which get
//! buffers of their own. What of them has already arrived is copied out of staging; the rest is received straight
//! into them, and what follows into staging again, by one recvmsg.
//!
//! On an encrypted connection ([`crate::tls`]) everything is received into memory of its own, and what it held is copied
//! to where it belongs while it is read; what is sent leaves from one sealed run of bytes. An accepted connection is
//! one if its first byte says so.

use super::world::{Happening, Operation, World};
use crate::buf::BufMut;
use crate::node::{BodyLength, ConnId, HEAD_BYTES, RawFrame};
use crate::tls::{Channel, FIRST_BYTE, RECORD_BYTES, Tls};
use io_uring::{cqueue, opcode, squeue, types};
use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// Small enough that a large payload is received mostly in place, large enough for a batch of small frames.
const STAGING_BYTES: usize = 32 << 10;
/// Received at once on an encrypted connection: some whole records.
const SEALED_BYTES: usize = 128 << 10;
/// Sealed bytes gathered into one send, before the records' overhead: they have to be in memory at once.
const SEALED_SEND_BYTES: usize = 512 << 10;
/// Most bytes gathered into one send.
const SEND_BYTES: usize = 2 << 20;
const SEND_PARTS: usize = 256;
/// A socket takes as much at once, unless its peer is slow to read.
const SMALL_SEND_BYTES: usize = 64 << 10;
/// Payloads from this size on are received into memory for disk transfers.
const ARENA_PAYLOAD_BYTES: usize = 64 << 10;
/// Ended sends kept for their memory.
const MOST_SPARE_SENDS: usize = 64;
const CONNECT_TIMEOUT_S: u64 = 3;
/// How long a starting server waits for a port in use.
const PORT_PATIENCE: Duration = Duration::from_secs(3);

pub(super) struct Listener {
    fd: RawFd,
}

impl Listener {
    pub fn close_descriptor(&self) {
        close(self.fd);
    }
}

pub(super) struct Connection {
    fd: RawFd,
    queue: VecDeque<RawFrame>,
    pub unsent_bytes: usize,
    connected: bool,
    receiving: bool,
    sending: bool,
    /// Close once the queue is empty.
    closing: bool,
    /// `Closed` was delivered; waits for its operations to end.
    pub dead: bool,
    queued_for_send: bool,
    /// On an encrypted connection.
    tls: Option<Box<Tls>>,
    /// This side made it.
    called: bool,
    /// Words of the TLS handshake, to be sent before any frame.
    handshake: Vec<u8>,
}

impl Connection {
    fn new(fd: RawFd, connected: bool) -> Self {
        Connection {
            fd,
            queue: VecDeque::new(),
            unsent_bytes: 0,
            connected,
            receiving: false,
            sending: false,
            closing: false,
            dead: false,
            queued_for_send: false,
            tls: None,
            called: !connected,
            handshake: Vec::new(),
        }
    }

    /// Whether there is something that can be sent now.
    fn has_words(&self) -> bool {
        let sealable = self.tls.as_ref().is_none_or(|tls| tls.channel().is_some());
        self.connected && (!self.handshake.is_empty() || sealable && !self.queue.is_empty())
    }

    pub fn channel(&self) -> Channel {
        self.tls.as_ref().and_then(|tls| tls.channel()).unwrap_or_default()
    }

    pub fn close_descriptor(&self) {
        close(self.fd);
    }
}

/// A frame whose header has arrived.
struct Partial {
    head: [u8; HEAD_BYTES],
    meta: BufMut,
    meta_have: usize,
    payload: BufMut,
    payload_have: usize,
}

impl Partial {
    fn new(head: [u8; HEAD_BYTES], lengths: BodyLength) -> Partial {
        let meta = BufMut::metadata(lengths.meta_bytes);
        // Small ones wait in memory for their write-back, with others and gathered in one write: the arena is for
        // those that go to the disk as they are.
        let payload = match lengths.payload_bytes {
            ARENA_PAYLOAD_BYTES.. => BufMut::for_disk(lengths.payload_bytes),
            short => BufMut::scratch(short),
        };
        Partial { head, meta, meta_have: 0, payload, payload_have: 0 }
    }

    /// Copies as much of the body as there is; returns how many bytes of it that was.
    fn fill(&mut self, bytes: &[u8]) -> usize {
        let meta = bytes.len().min(self.meta.len() - self.meta_have);
        self.meta[self.meta_have..self.meta_have + meta].copy_from_slice(&bytes[..meta]);
        self.meta_have += meta;
        let payload = (bytes.len() - meta).min(self.payload.len() - self.payload_have);
        self.payload[self.payload_have..self.payload_have + payload]
            .copy_from_slice(&bytes[meta..meta + payload]);
        self.payload_have += payload;
        meta + payload
    }

    fn is_complete(&self) -> bool {
        self.meta_have == self.meta.len() && self.payload_have == self.payload.len()
    }

    fn frame(self) -> RawFrame {
        RawFrame { head: self.head, meta: self.meta.freeze(), payload: self.payload.freeze() }
    }
}

/// What an encrypted connection has received and not read yet: `bytes[..have]`.
struct Sealed {
    bytes: Box<[u8]>,
    have: usize,
}

/// A receive under way and all that stays of the stream between two of them.
pub(super) struct ReceiveOp {
    conn: ConnId,
    staging: Box<[u8; STAGING_BYTES]>,
    /// Unparsed bytes are `staging[..have]`.
    have: usize,
    partial: Option<Partial>,
    sealed: Option<Sealed>,
    /// Nothing has been received yet.
    fresh: bool,
    /// Nothing more has come yet: the kernel waits before it tries.
    drained: bool,
    iovecs: [libc::iovec; 3],
    message: libc::msghdr,
}

pub(super) struct SendOp {
    conn: ConnId,
    frames: Vec<RawFrame>,
    total: usize,
    sent: usize,
    /// On an encrypted connection: the frames and what goes before them, as they are sent.
    sealed: Vec<u8>,
    /// Gathers short runs of bytes while frames are sealed; empty otherwise, kept for its memory.
    short: Vec<u8>,
    /// What of `total` the frames are.
    frame_bytes: usize,
    iovecs: Vec<libc::iovec>,
    message: libc::msghdr,
}

fn empty_message() -> libc::msghdr {
    // SAFETY: all-zero is a valid msghdr: no name, no parts, no control data.
    unsafe { std::mem::zeroed() }
}

/// IORING_RECVSEND_POLL_FIRST.
const POLL_FIRST: u16 = 1;

const NO_PART: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

fn part(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: bytes.len() }
}

fn close(fd: RawFd) {
    // SAFETY: closes a descriptor this module owns, once (callers keep that invariant).
    unsafe { libc::close(fd) };
}

fn shutdown(fd: RawFd) {
    // SAFETY: no pointers; a failure means the peer was faster.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

impl ReceiveOp {
    fn new(conn: ConnId) -> Self {
        ReceiveOp {
            conn,
            staging: Box::new([0; STAGING_BYTES]),
            have: 0,
            partial: None,
            sealed: None,
            fresh: true,
            drained: false,
            iovecs: [NO_PART; 3],
            message: empty_message(),
        }
    }

    fn entry(&mut self, fd: RawFd) -> squeue::Entry {
        let mut parts = 0;
        let staging = match &self.sealed {
            Some(sealed) => part(&sealed.bytes[sealed.have..]),
            None => part(&self.staging[self.have..]),
        };
        if let Some(p) = self.partial.as_ref().filter(|_| self.sealed.is_none()) {
            for (buf, have) in [(&p.meta, p.meta_have), (&p.payload, p.payload_have)] {
                if have < buf.len() {
                    self.iovecs[parts] = part(&buf[have..]);
                    parts += 1;
                }
            }
        }
        self.iovecs[parts] = staging;
        self.message.msg_iov = self.iovecs.as_mut_ptr();
        self.message.msg_iovlen = (parts + 1) as _;
        let flags = if self.drained { POLL_FIRST } else { 0 };
        opcode::RecvMsg::new(types::Fd(fd), &mut self.message).ioprio(flags).build()
    }

    /// Takes `count` received bytes; complete frames come out through `emit`.
    fn take(
        &mut self,
        mut count: usize,
        framing: crate::Framing,
        mut emit: impl FnMut(RawFrame),
    ) -> Result<(), String> {
        if let Some(p) = &mut self.partial {
            let to_meta = count.min(p.meta.len() - p.meta_have);
            p.meta_have += to_meta;
            count -= to_meta;
            let to_payload = count.min(p.payload.len() - p.payload_have);
            p.payload_have += to_payload;
            count -= to_payload;
        }
        self.have += count;
        let mut at = 0;
        loop {
            if let Some(p) = &mut self.partial {
                if !p.is_complete() {
                    break;
                }
                emit(self.partial.take().expect("looked at above").frame());
            }
            let rest = &self.staging[at..self.have];
            let Some(head) = rest.first_chunk::<HEAD_BYTES>() else { break };
            let mut partial = Partial::new(*head, framing(head)?);
            at += HEAD_BYTES + partial.fill(&rest[HEAD_BYTES..]);
            self.partial = Some(partial);
        }
        self.staging.copy_within(at..self.have, 0);
        self.have -= at;
        Ok(())
    }

    /// From now on what comes is TLS; so is what has just been received into staging.
    fn expect_sealed(&mut self, received: usize) {
        let mut bytes = vec![0; SEALED_BYTES].into_boxed_slice();
        bytes[..received].copy_from_slice(&self.staging[..received]);
        self.sealed = Some(Sealed { bytes, have: 0 });
    }

    /// As `take`, of bytes that `tls` reads. What it has to say to them goes to `outgoing`.
    fn take_sealed(
        &mut self,
        count: usize,
        tls: &mut Tls,
        outgoing: &mut Vec<u8>,
        framing: crate::Framing,
        mut emit: impl FnMut(RawFrame),
    ) -> Result<(), String> {
        let ReceiveOp { staging, have, partial, sealed, .. } = self;
        let sealed = sealed.as_mut().expect("a receive of an encrypted connection");
        sealed.have += count;
        let used = tls.receive(&mut sealed.bytes[..sealed.have], outgoing, |mut plain| {
            while !plain.is_empty() {
                let p = match partial {
                    Some(p) => p,
                    None => {
                        let of_head = plain.len().min(HEAD_BYTES - *have);
                        staging[*have..*have + of_head].copy_from_slice(&plain[..of_head]);
                        *have += of_head;
                        plain = &plain[of_head..];
                        if *have < HEAD_BYTES {
                            return Ok(());
                        }
                        *have = 0;
                        let head = staging.first_chunk::<HEAD_BYTES>().expect("staging holds a header");
                        partial.insert(Partial::new(*head, framing(head)?))
                    }
                };
                plain = &plain[p.fill(plain)..];
                if let Some(whole) = partial.take_if(|p| p.is_complete()) {
                    emit(whole.frame());
                }
            }
            Ok(())
        })?;
        sealed.bytes.copy_within(used..sealed.have, 0);
        sealed.have -= used;
        if sealed.have == sealed.bytes.len() {
            return Err("TLS: a record longer than any can be".into());
        }
        Ok(())
    }
}

impl SendOp {
    fn new() -> Box<SendOp> {
        Box::new(SendOp {
            conn: ConnId(0),
            frames: Vec::new(),
            total: 0,
            sent: 0,
            sealed: Vec::new(),
            short: Vec::new(),
            frame_bytes: 0,
            iovecs: Vec::new(),
            message: empty_message(),
        })
    }

    /// Takes as many frames as one send should carry, at least one if there is any.
    fn fill(&mut self, conn: ConnId, queue: &mut VecDeque<RawFrame>, most_bytes: usize) {
        (self.conn, self.total, self.sent) = (conn, 0, 0);
        while self.frames.len() * 3 + 3 <= SEND_PARTS {
            match queue.front() {
                Some(next) if self.total == 0 || self.total + frame_bytes(next) <= most_bytes => {
                    self.total += frame_bytes(next);
                    self.frames.extend(queue.pop_front());
                }
                _ => break,
            }
        }
        self.frame_bytes = self.total;
    }

    /// Seals the frames behind the words of the handshake and lets them go.
    fn seal(&mut self, tls: &mut Tls, handshake: &mut Vec<u8>) -> Result<(), String> {
        self.sealed.clear();
        self.sealed.append(handshake);
        // Short ones share a record.
        let short = &mut self.short;
        for frame in self.frames.drain(..) {
            for bytes in [&frame.head[..], &frame.meta, &frame.payload] {
                if short.len() + bytes.len() > RECORD_BYTES && !short.is_empty() {
                    tls.seal(short, &mut self.sealed)?;
                    short.clear();
                }
                if bytes.len() > RECORD_BYTES {
                    tls.seal(bytes, &mut self.sealed)?;
                } else {
                    short.extend_from_slice(bytes);
                }
            }
        }
        if !short.is_empty() {
            tls.seal(short, &mut self.sealed)?;
            short.clear();
        }
        self.total = self.sealed.len();
        Ok(())
    }

    fn entry(&mut self, fd: RawFd) -> squeue::Entry {
        self.iovecs.clear();
        let mut skip = self.sent;
        if !self.sealed.is_empty() {
            self.iovecs.push(part(&self.sealed[skip..]));
        }
        for frame in &self.frames {
            for bytes in [&frame.head[..], &frame.meta, &frame.payload] {
                if skip >= bytes.len() {
                    skip -= bytes.len();
                    continue;
                }
                self.iovecs.push(part(&bytes[skip..]));
                skip = 0;
            }
        }
        self.message.msg_iov = self.iovecs.as_mut_ptr();
        self.message.msg_iovlen = self.iovecs.len() as _;
        opcode::SendMsg::new(types::Fd(fd), &self.message)
            .flags((libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32)
            .build()
    }
}

fn frame_bytes(frame: &RawFrame) -> usize {
    HEAD_BYTES + frame.meta.len() + frame.payload.len()
}

impl World {
    pub fn start_listening(&mut self, at: SocketAddr) -> io::Result<SocketAddr> {
        let (fd, bound) = listen_when_free(at)
            .map_err(|e| io::Error::new(e.kind(), format!("cannot listen on {at}: {e}")))?;
        self.listeners.push(Listener { fd });
        self.arm_accept(self.listeners.len() - 1);
        Ok(bound)
    }

    fn arm_accept(&mut self, listener: usize) {
        let entry = opcode::AcceptMulti::new(types::Fd(self.listeners[listener].fd))
            .flags(libc::SOCK_CLOEXEC)
            .build();
        self.submit(Operation::Accept(listener), entry);
    }

    pub fn accepted(&mut self, listener: usize, user_data: u64, result: i32, flags: u32) {
        if cqueue::more(flags) {
            self.keep(user_data, Operation::Accept(listener));
        } else {
            self.arm_accept(listener);
        }
        if result < 0 {
            tracing::warn!(error = %io::Error::from_raw_os_error(-result), "accept failed");
            return;
        }
        let fd = result;
        tune(fd);
        let peer = peer_address(fd).unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
        let conn = self.add_connection(Connection::new(fd, true));
        self.happenings.push_back(Happening::Accepted { conn, peer });
        self.arm_receive(Box::new(ReceiveOp::new(conn)));
    }

    fn add_connection(&mut self, connection: Connection) -> ConnId {
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        self.connections.insert(conn, connection);
        conn
    }

    pub fn start_connecting(&mut self, to: SocketAddr) -> ConnId {
        let fd = match socket(to) {
            Ok(fd) => fd,
            Err(error) => {
                let conn = ConnId(self.next_conn);
                self.next_conn += 1;
                self.happenings
                    .push_back(Happening::Closed { conn, why: format!("no socket for {to}: {error}") });
                return conn;
            }
        };
        tune(fd);
        let mut connection = Connection::new(fd, false);
        if self.encrypts {
            let mut handshake = Vec::new();
            let tls = Tls::caller().and_then(|mut tls| {
                tls.receive(&mut [], &mut handshake, |_| Ok(()))?;
                Ok(tls)
            });
            match tls {
                Ok(tls) => (connection.tls, connection.handshake) = (Some(Box::new(tls)), handshake),
                Err(why) => {
                    let conn = self.add_connection(connection);
                    self.closed(conn, why);
                    return conn;
                }
            }
        }
        let conn = self.add_connection(connection);
        let addr = Box::new(raw_address(to));
        let timeout = Box::new(types::Timespec::new().sec(CONNECT_TIMEOUT_S));
        let connect = opcode::Connect::new(types::Fd(fd), (&raw const addr.0).cast(), addr.1).build();
        let limit = opcode::LinkTimeout::new(&*timeout).build();
        self.submit(
            Operation::Connect { conn, _addr: addr, _timeout: timeout },
            connect.flags(squeue::Flags::IO_LINK),
        );
        self.submit(Operation::Ignored, limit);
        conn
    }

    pub fn connect_done(&mut self, conn: ConnId, result: i32) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        if result < 0 {
            let why = match -result {
                libc::ECANCELED => "timed out".to_string(),
                errno => io::Error::from_raw_os_error(errno).to_string(),
            };
            return self.closed(conn, why);
        }
        connection.connected = true;
        if connection.closing && connection.queue.is_empty() {
            return self.closed(conn, "closed by this side".into());
        }
        let mut receive = Box::new(ReceiveOp::new(conn));
        if connection.tls.is_some() {
            receive.expect_sealed(0);
        } else {
            self.happenings.push_back(Happening::Connected { conn });
        }
        self.arm_receive(receive);
        self.want_send(conn);
    }

    fn arm_receive(&mut self, mut receive: Box<ReceiveOp>) {
        let Some(connection) = self.connections.get_mut(&receive.conn) else { return };
        connection.receiving = true;
        let entry = receive.entry(connection.fd);
        self.submit(Operation::Receive(receive), entry);
    }

    pub fn received(&mut self, mut receive: Box<ReceiveOp>, result: i32, flags: u32) {
        let conn = receive.conn;
        receive.drained = !cqueue::sock_nonempty(flags);
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        connection.receiving = false;
        if connection.dead {
            return self.bury(conn);
        }
        let closing = connection.closing;
        if result > 0
            && std::mem::take(&mut receive.fresh)
            && connection.tls.is_none()
            && receive.staging[0] == FIRST_BYTE
        {
            match Tls::listener() {
                Ok(tls) => connection.tls = Some(Box::new(tls)),
                Err(why) => return self.closed(conn, why),
            }
            receive.expect_sealed(result as usize);
        }
        match result {
            0 if closing => self.closed(conn, "closed by this side".into()),
            0 => self.closed(conn, "closed by the peer".into()),
            n if n == -libc::EINTR || n == -libc::EAGAIN => self.arm_receive(receive),
            n if n < 0 => self.closed(conn, io::Error::from_raw_os_error(-n).to_string()),
            n => {
                let (framing, happenings) = (self.framing, &mut self.happenings);
                let emit = |frame| {
                    if !closing {
                        happenings.push_back(Happening::Frame { conn, frame });
                    }
                };
                let taken = match &mut connection.tls {
                    None => receive.take(n as usize, framing, emit),
                    Some(tls) => {
                        let stood = tls.channel().is_some();
                        let words = &mut connection.handshake;
                        let taken = receive.take_sealed(n as usize, tls, words, framing, emit);
                        if !stood && tls.channel().is_some() && connection.called && !closing {
                            happenings.push_back(Happening::Connected { conn });
                        }
                        taken
                    }
                };
                match taken {
                    Ok(()) => {
                        self.arm_receive(receive);
                        self.want_send(conn);
                    }
                    Err(why) => {
                        tracing::warn!(conn = conn.0, %why, "closing connection: bad frame");
                        self.closed(conn, why);
                    }
                }
            }
        }
    }

    pub fn queue_frame(&mut self, conn: ConnId, frame: RawFrame) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        if connection.dead || connection.closing {
            return;
        }
        connection.unsent_bytes += frame_bytes(&frame);
        connection.queue.push_back(frame);
        self.want_send(conn);
    }

    fn want_send(&mut self, conn: ConnId) {
        let Some(c) = self.connections.get_mut(&conn) else { return };
        if c.has_words() && !c.sending && !c.dead && !c.queued_for_send {
            c.queued_for_send = true;
            self.wants_send.push(conn);
        }
    }

    /// Starts one send for every connection that has frames: called once a turn, so that all frames a node
    /// queued in a turn leave together.
    /// Returns how many of them are so small that they most likely end while they are submitted.
    pub fn start_sends(&mut self) -> usize {
        let mut small = 0;
        while let Some(conn) = self.wants_send.pop() {
            let Some(c) = self.connections.get_mut(&conn) else { continue };
            c.queued_for_send = false;
            if c.dead || c.sending || !c.has_words() {
                continue;
            }
            c.sending = true;
            let fd = c.fd;
            let mut send = self.spare_sends.pop().unwrap_or_else(SendOp::new);
            match &mut c.tls {
                None => send.fill(conn, &mut c.queue, SEND_BYTES),
                Some(tls) => {
                    let mut none = VecDeque::new();
                    let queue = if tls.channel().is_some() { &mut c.queue } else { &mut none };
                    send.fill(conn, queue, SEALED_SEND_BYTES);
                    if let Err(why) = send.seal(tls, &mut c.handshake) {
                        c.sending = false;
                        self.closed(conn, why);
                        continue;
                    }
                }
            }
            small += usize::from(send.total <= SMALL_SEND_BYTES);
            let entry = send.entry(fd);
            self.submit(Operation::Send(send), entry);
        }
        small
    }

    pub fn sent(&mut self, mut send: Box<SendOp>, result: i32) {
        let conn = send.conn;
        let Some(c) = self.connections.get_mut(&conn) else { return };
        if c.dead {
            c.sending = false;
            return self.bury(conn);
        }
        if result < 0 && !matches!(-result, libc::EINTR | libc::EAGAIN) {
            c.sending = false;
            return self.closed(conn, io::Error::from_raw_os_error(-result).to_string());
        }
        let sent = result.max(0) as usize;
        send.sent += sent;
        if send.sealed.is_empty() {
            c.unsent_bytes = c.unsent_bytes.saturating_sub(sent);
        } else if send.sent == send.total {
            c.unsent_bytes = c.unsent_bytes.saturating_sub(send.frame_bytes);
        }
        if send.sent < send.total {
            let entry = send.entry(c.fd);
            return self.submit(Operation::Send(send), entry);
        }
        c.sending = false;
        if c.closing && c.queue.is_empty() {
            shutdown(c.fd);
        } else {
            self.want_send(conn);
        }
        send.frames.clear();
        send.sealed.clear();
        if self.spare_sends.len() < MOST_SPARE_SENDS {
            self.spare_sends.push(send);
        }
    }

    pub fn start_closing(&mut self, conn: ConnId) {
        let Some(c) = self.connections.get_mut(&conn) else { return };
        if c.dead || std::mem::replace(&mut c.closing, true) {
            return;
        }
        if c.connected && c.queue.is_empty() && !c.sending {
            shutdown(c.fd);
        }
    }

    fn closed(&mut self, conn: ConnId, why: String) {
        let Some(c) = self.connections.get_mut(&conn) else { return };
        c.dead = true;
        c.queue.clear();
        shutdown(c.fd);
        self.happenings.push_back(Happening::Closed { conn, why });
        self.bury(conn);
    }

    /// Forgets a dead connection once the kernel has let go of it.
    fn bury(&mut self, conn: ConnId) {
        if let Some(c) = self.connections.get(&conn)
            && c.dead
            && !c.receiving
            && !c.sending
        {
            c.close_descriptor();
            self.connections.remove(&conn);
        }
    }
}

fn socket(family_of: SocketAddr) -> io::Result<RawFd> {
    let family = if family_of.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(fd) }
}

fn set_option(fd: RawFd, level: i32, name: i32, value: i32) {
    // SAFETY: passes a live i32 with its size. A refused option only costs speed.
    unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), size_of::<i32>() as u32) };
}

/// Small frames leave at once; a dead path is noticed by keep-alive even when nothing is sent.
fn tune(fd: RawFd) {
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
    set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 5);
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 2);
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 3);
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 10_000);
}

/// Listens. The kernel takes the rings of a killed process apart in the background, so that its ports come free a moment
/// after its death: one that is in use is tried again for a while before it counts as somebody else's.
fn listen_when_free(at: SocketAddr) -> io::Result<(RawFd, SocketAddr)> {
    let began = Instant::now();
    loop {
        let fd = socket(at)?;
        match bind_and_listen(fd, at) {
            Ok(bound) => return Ok((fd, bound)),
            Err(e) => {
                close(fd);
                if e.kind() != io::ErrorKind::AddrInUse || began.elapsed() > PORT_PATIENCE {
                    return Err(e);
                }
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn bind_and_listen(fd: RawFd, at: SocketAddr) -> io::Result<SocketAddr> {
    set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
    let (storage, len) = raw_address(at);
    // SAFETY: storage holds a socket address of `len` bytes.
    if unsafe { libc::bind(fd, (&raw const storage).cast(), len) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no pointers.
    if unsafe { libc::listen(fd, 1024) } != 0 {
        return Err(io::Error::last_os_error());
    }
    address_by(fd, libc::getsockname)
}

fn peer_address(fd: RawFd) -> io::Result<SocketAddr> {
    address_by(fd, libc::getpeername)
}

type AddressCall =
    unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

fn address_by(fd: RawFd, call: AddressCall) -> io::Result<SocketAddr> {
    // SAFETY: all-zero is a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: storage is large enough for any address and len says so.
    if unsafe { call(fd, (&raw mut storage).cast(), &mut len) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if i32::from(storage.ss_family) == libc::AF_INET {
        // SAFETY: the family says it is a sockaddr_in, which fits into the storage.
        let v4: libc::sockaddr_in = unsafe { std::ptr::read((&raw const storage).cast()) };
        Ok(SocketAddrV4::new(u32::from_be(v4.sin_addr.s_addr).into(), u16::from_be(v4.sin_port)).into())
    } else {
        // SAFETY: only AF_INET6 remains: sockets are made by `socket` above.
        let v6: libc::sockaddr_in6 = unsafe { std::ptr::read((&raw const storage).cast()) };
        Ok(SocketAddrV6::new(v6.sin6_addr.s6_addr.into(), u16::from_be(v6.sin6_port), 0, v6.sin6_scope_id)
            .into())
    }
}

fn raw_address(addr: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all-zero is a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let len = match addr {
        SocketAddr::V4(a) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as _,
                sin_port: a.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*a.ip()).to_be() },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is larger and at least as aligned.
            unsafe { std::ptr::write((&raw mut storage).cast(), raw) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(a) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as _,
                sin6_port: a.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: a.ip().octets() },
                sin6_scope_id: a.scope_id(),
            };
            // SAFETY: as above.
            unsafe { std::ptr::write((&raw mut storage).cast(), raw) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, len as libc::socklen_t)
}
