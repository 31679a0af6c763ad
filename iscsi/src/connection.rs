//! One connection of an initiator, which is one session: login, then commands in their order, within windows.
//!
//! The driver fills [`Connection::room`] with what the socket gives and tells [`Connection::filled`]; after that, and after each
//! [`Connection::complete`], it does what [`Connection::next_action`] says until there is nothing more to do.
//!
//! Invariants:
//! - commands begin in the order of their numbers; one that is outside the window, or came before, is ignored (RFC 7143, 4.2.2.1);
//! - the window never shrinks, and at most [`WINDOW_COMMANDS`] commands are under way;
//! - payload of commands under way takes at most [`WINDOW_BYTES`]; those beyond wait, and no data is asked for;
//! - a command is executed when all its data is there, and has one answer, or none if it was aborted;
//! - what aborts, and a logout, is answered when nothing that it ends runs any more.

use crate::assembler::{Assembler, AssemblyError, Digests, Land, Piece};
use crate::login::{Catalog, Challenge, LoggedIn, Login, MAX_RECEIVE_BYTES, Parameters, Refusal, Step};
use crate::pdu::{
    Command, DataOut, HEAD_BYTES, Head, LogoutReason, Manage, ManageResult, NO_TAG, Numbers, Order,
    RejectReason, Request, Residual, Response, TaskAttribute, is_before, padding_bytes,
};
use crate::scsi::sense::Sense;
use crate::scsi::{MAX_TRANSFER_BYTES, Reply, Status};
use crate::text::{self, MAX_TEXT_BYTES, Text};
use shards::{Buf, BufMut};
use std::collections::{HashMap, HashSet, VecDeque};
use thiserror::Error;

/// Commands that an initiator may have under way.
pub const WINDOW_COMMANDS: u32 = 128;
/// Bytes of payload of commands under way.
pub const WINDOW_BYTES: usize = 64 << 20;
/// What a command without payload counts as.
const COMMAND_COST_BYTES: usize = 4096;
/// Tag of the transfer that goes on with a long text.
const TEXT_TRANSFER: u32 = 1;
/// Tag of a question whether the initiator is there. What comes back is answer enough.
const PING_TRANSFER: u32 = 2;

/// Why a connection can't go on. The initiator logs in anew.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ConnectionError {
    #[error(transparent)]
    Assembly(#[from] AssemblyError),
    #[error("the initiator breaks the protocol: {0}")]
    Protocol(&'static str),
}

use ConnectionError::Protocol;

/// Bytes to send, in three parts.
#[derive(Clone, PartialEq, Debug)]
pub struct Outgoing {
    /// With its digest.
    pub head: Vec<u8>,
    pub data: Buf,
    /// What fills the data up, and its digest.
    pub tail: Vec<u8>,
}

impl Outgoing {
    pub fn bytes(&self) -> usize {
        self.head.len() + self.data.len() + self.tail.len()
    }
}

/// A command to execute; [`Connection::complete`] takes its reply.
#[derive(Clone, PartialEq, Debug)]
pub struct Task {
    pub task: u32,
    pub lun: u64,
    pub cdb: [u8; 16],
    pub data: Buf,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reset {
    Lun(u64),
    Target,
    /// All connections to the target end too.
    TargetCold,
}

#[derive(Clone, Debug)]
pub enum Action {
    Send(Outgoing),
    /// The login was refused; it has been answered.
    Refused(Refusal),
    /// Commands follow. A session of the same nexus, if there is one, ends.
    LoggedIn(LoggedIn),
    Execute(Task),
    /// Reset units; [`Connection::reset_done`] takes the result.
    Reset {
        task: u32,
        what: Reset,
    },
    /// Close the connection when all is sent.
    End,
}

/// Where a command is on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// For its turn.
    Waiting,
    /// For its data.
    Collecting,
    Running,
}

/// A transfer that was asked for.
#[derive(Clone, Copy, Debug)]
struct Transfer {
    tag: u32,
    data_sn: u32,
    end_bytes: usize,
}

struct TaskState {
    command: Command,
    stage: Stage,
    aborted: bool,
    /// Of the window; 0 while it waits.
    cost_bytes: usize,
    /// Data from the initiator, as far as it has come. Not here while the next part lands in it.
    data: Option<BufMut>,
    received_bytes: usize,
    transfer: Option<Transfer>,
    r2t_sn: u32,
}

/// What is answered when some commands have ended.
struct Deferred {
    waits_for: HashSet<u32>,
    then: After,
}

#[derive(Clone, Copy)]
enum After {
    Managed { task: u32 },
    Reset { task: u32, what: Reset },
    Logout { task: u32 },
}

/// The phase of commands.
struct Session {
    parameters: Parameters,
    is_discovery: bool,
    target: String,
    /// Commands that came before one with a lower number.
    held: HashMap<u32, (Request, Option<Land>)>,
    tasks: HashMap<u32, TaskState>,
    /// Their turn has not come, in order.
    waiting: VecDeque<u32>,
    used_bytes: usize,
    /// Admitted and not ended.
    active: usize,
    /// An ordered command is among them.
    ordered: bool,
    next_transfer: u32,
    deferred: Vec<Deferred>,
    /// Text of PDUs with more to come, and of an answer that is longer than a PDU.
    text: Vec<u8>,
    text_left: Vec<u8>,
}

enum Phase {
    Login(Login),
    Full(Box<Session>),
    /// Nothing that comes matters any more.
    Ended,
}

pub struct Connection {
    assembler: Assembler,
    head: Head,
    phase: Phase,
    numbers: Numbers,
    /// Of what is sent.
    digests: Digests,
    actions: VecDeque<Action>,
}

impl Connection {
    /// `tsih`: what the session is known by, not 0.
    pub fn new(challenge: Challenge, tsih: u16) -> Connection {
        Connection {
            assembler: Assembler::new(MAX_TEXT_BYTES),
            head: Head([0; HEAD_BYTES]),
            phase: Phase::Login(Login::new(challenge, tsih)),
            numbers: Numbers::default(),
            digests: Digests::default(),
            actions: VecDeque::new(),
        }
    }

    /// Where the next bytes of the initiator go; never empty.
    pub fn room(&mut self) -> &mut [u8] {
        self.assembler.room()
    }

    /// So many bytes were put into the room.
    pub fn filled(&mut self, bytes: usize, catalog: &dyn Catalog) -> Result<(), ConnectionError> {
        let mut piece = self.assembler.filled(bytes)?;
        if let Piece::Head(head) = piece {
            self.head = head;
            let land = if head.data_bytes() > 0 { Some(self.place(&head)?) } else { None };
            piece = self.assembler.land(land)?;
        }
        match piece {
            Piece::Pdu(land) => self.pdu(land, catalog),
            Piece::Nothing | Piece::Head(_) => Ok(()),
        }
    }

    /// What to do next, if anything.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Asks the initiator whether it is there: it answers, whatever it does otherwise. Nothing happens before its login.
    pub fn ping(&mut self) {
        if matches!(self.phase, Phase::Full(_)) {
            self.send(Response::Ping { transfer: PING_TRANSFER }, Buf::empty());
        }
    }

    /// Commands that are not answered yet.
    pub fn tasks(&self) -> usize {
        match &self.phase {
            Phase::Full(session) => session.tasks.len(),
            _ => 0,
        }
    }

    /// Where the data of a PDU lands.
    fn place(&mut self, head: &Head) -> Result<Land, ConnectionError> {
        let bytes = head.data_bytes();
        let anywhere = || Land { buf: BufMut::scratch(bytes), offset_bytes: 0, bytes };
        let Phase::Full(session) = &mut self.phase else { return Ok(anywhere()) };
        match Request::decode(head) {
            // If there is room for all its data, the first of it lands where it stays.
            Ok(Request::Command(command)) if command.writes => {
                let expected = command.expected_bytes as usize;
                let fits = expected <= MAX_TRANSFER_BYTES
                    && (expected == bytes
                        || (session.waiting.is_empty() && session.used_bytes + expected <= WINDOW_BYTES));
                Ok(if fits && bytes <= expected {
                    Land { buf: BufMut::scratch(expected), offset_bytes: 0, bytes }
                } else {
                    anywhere()
                })
            }
            Ok(Request::DataOut(data)) => {
                let Some(state) = session.tasks.get_mut(&data.task) else { return Ok(anywhere()) };
                if !state.is_in_order(&data, bytes)? {
                    self.fail_transfer(data.task);
                    return Ok(anywhere());
                }
                let buf = state.data.take().ok_or(Protocol("data for a command that wants none"))?;
                Ok(Land { buf, offset_bytes: state.received_bytes, bytes })
            }
            _ => Ok(anywhere()),
        }
    }

    fn pdu(&mut self, land: Option<Land>, catalog: &dyn Catalog) -> Result<(), ConnectionError> {
        let request = Request::decode(&self.head);
        match &mut self.phase {
            Phase::Ended => Ok(()),
            Phase::Login(_) => match request {
                Ok(Request::Login(head)) => {
                    let text = land.as_ref().map_or(&[][..], |land| &land.buf);
                    self.login(&head, text, catalog);
                    Ok(())
                }
                _ => Err(Protocol("something else than a login comes first")),
            },
            Phase::Full(session) => match request {
                Err(reason) => {
                    self.reject(reason);
                    Ok(())
                }
                Ok(Request::Login(_)) => Err(Protocol("a second login")),
                Ok(Request::DataOut(data)) => {
                    let len = self.head.data_bytes();
                    let Some(state) = session.tasks.get_mut(&data.task) else { return Ok(()) };
                    match land {
                        Some(land) => state.data = Some(land.buf),
                        None if state.is_in_order(&data, 0)? => {}
                        None => {
                            self.fail_transfer(data.task);
                            return Ok(());
                        }
                    }
                    self.data_out(&data, len)
                }
                Ok(request) => self.ordered(request, land, catalog),
            },
        }
    }

    fn login(&mut self, head: &crate::pdu::LoginHead, text: &[u8], catalog: &dyn Catalog) {
        let Phase::Login(login) = &mut self.phase else { return };
        // The number of a login is not used up by it, but by the first command that is not immediate.
        self.numbers.exp_cmd_sn = head.cmd_sn;
        self.numbers.max_cmd_sn = head.cmd_sn.wrapping_add(WINDOW_COMMANDS - 1);
        match login.request(head, text, catalog) {
            Step::Answer(response, text) => self.send(response, Buf::metadata(&text)),
            Step::Refuse(response, refusal) => {
                self.send(response, Buf::empty());
                self.phase = Phase::Ended;
                self.actions.extend([Action::Refused(refusal), Action::End]);
            }
            Step::Finish(response, text, done) => {
                self.send(response, Buf::metadata(&text));
                self.digests = done.parameters.digests;
                self.assembler.digests = done.parameters.digests;
                self.assembler.most_bytes = MAX_RECEIVE_BYTES as usize;
                self.phase = Phase::Full(Box::new(Session::new(&done)));
                self.actions.push_back(Action::LoggedIn(done));
            }
        }
    }

    /// Requests with a place in the order of the session.
    fn ordered(
        &mut self,
        request: Request,
        land: Option<Land>,
        catalog: &dyn Catalog,
    ) -> Result<(), ConnectionError> {
        let Order { immediate, cmd_sn } = order_of(&request);
        if immediate {
            return self.request(request, land, catalog);
        }
        let Numbers { exp_cmd_sn, max_cmd_sn, .. } = self.numbers;
        if is_before(cmd_sn, exp_cmd_sn) || is_before(max_cmd_sn, cmd_sn) {
            return Ok(());
        }
        if cmd_sn != exp_cmd_sn {
            if let Phase::Full(session) = &mut self.phase {
                session.held.insert(cmd_sn, (request, land));
            }
            return Ok(());
        }
        let mut next = Some((request, land));
        while let Some((request, land)) = next {
            self.numbers.exp_cmd_sn = self.numbers.exp_cmd_sn.wrapping_add(1);
            self.request(request, land, catalog)?;
            next = match &mut self.phase {
                Phase::Full(session) => session.held.remove(&self.numbers.exp_cmd_sn),
                _ => None,
            };
        }
        Ok(())
    }

    fn request(
        &mut self,
        request: Request,
        land: Option<Land>,
        catalog: &dyn Catalog,
    ) -> Result<(), ConnectionError> {
        let Phase::Full(session) = &mut self.phase else { return Ok(()) };
        match request {
            Request::Nop { task: NO_TAG, .. } => Ok(()),
            Request::Nop { task, lun, .. } => {
                let most = session.parameters.max_send_bytes as usize;
                let data = land.map_or(Buf::empty(), |land| land.buf.freeze());
                let data = data.slice(0..data.len().min(most));
                self.send(Response::Nop { task, lun }, data);
                Ok(())
            }
            Request::Command(_) | Request::Manage { .. } if session.is_discovery => {
                self.reject(RejectReason::ProtocolError);
                Ok(())
            }
            Request::Command(command) => self.command(command, land),
            Request::Manage { task, lun, what, .. } => {
                self.manage(task, lun, what);
                Ok(())
            }
            Request::Text { task, transfer, more, .. } => {
                let text = land.map_or(Buf::empty(), |land| land.buf.freeze());
                self.text(task, transfer, more, &text, catalog)
            }
            Request::Logout { task, reason, .. } => {
                match reason {
                    LogoutReason::Session | LogoutReason::Connection => {
                        let waits_for = session.abort(|_| true);
                        self.defer(waits_for, After::Logout { task });
                    }
                    // Recovery is of higher levels.
                    LogoutReason::Recovery => self.send(Response::Logout { task, result: 2 }, Buf::empty()),
                }
                Ok(())
            }
            Request::Login(_) | Request::DataOut(_) => Ok(()),
        }
    }

    // Commands.

    fn command(&mut self, command: Command, land: Option<Land>) -> Result<(), ConnectionError> {
        let Phase::Full(session) = &mut self.phase else { return Ok(()) };
        let received_bytes = match &land {
            Some(land) if command.writes => land.bytes,
            _ => 0,
        };
        if session.tasks.contains_key(&command.task) {
            self.reject(RejectReason::TaskInProgress);
            return Ok(());
        }
        if session.tasks.len() >= 2 * WINDOW_COMMANDS as usize {
            self.reject(RejectReason::ImmediateReject);
            return Ok(());
        }
        if command.writes && !command.is_final {
            return Err(Protocol("unsolicited data, though InitialR2T=Yes was agreed on"));
        }
        if received_bytes > 0
            && (!session.parameters.immediate_data
                || received_bytes > session.parameters.first_burst_bytes as usize
                || received_bytes > command.expected_bytes as usize)
        {
            return Err(Protocol("more immediate data than was agreed on"));
        }
        let state = TaskState {
            command,
            stage: Stage::Waiting,
            aborted: false,
            cost_bytes: 0,
            data: land.map(|land| land.buf).filter(|_| command.writes),
            received_bytes,
            transfer: None,
            r2t_sn: 0,
        };
        session.tasks.insert(command.task, state);
        match command.attribute {
            TaskAttribute::HeadOfQueue => session.waiting.push_front(command.task),
            TaskAttribute::Simple | TaskAttribute::Ordered => session.waiting.push_back(command.task),
        }
        self.admit();
        Ok(())
    }

    /// Lets commands begin whose turn has come.
    fn admit(&mut self) {
        loop {
            let Phase::Full(session) = &mut self.phase else { return };
            let Some(&task) = session.waiting.front() else { return };
            let Some(state) = session.tasks.get_mut(&task) else { return };
            let command = state.command;
            let turn = match command.attribute {
                TaskAttribute::HeadOfQueue => true,
                TaskAttribute::Simple => !session.ordered,
                TaskAttribute::Ordered => session.active == 0,
            };
            let payload = (command.expected_bytes as usize).min(MAX_TRANSFER_BYTES);
            let cost_bytes = COMMAND_COST_BYTES + payload;
            if !turn || (session.active > 0 && session.used_bytes + cost_bytes > WINDOW_BYTES) {
                return;
            }
            state.cost_bytes = cost_bytes;
            session.waiting.pop_front();
            session.used_bytes += cost_bytes;
            session.active += 1;
            session.ordered |= command.attribute == TaskAttribute::Ordered;
            self.begin(task);
        }
    }

    fn begin(&mut self, task: u32) {
        let Phase::Full(session) = &mut self.phase else { return };
        let Some(state) = session.tasks.get_mut(&task) else { return };
        let expected = state.command.expected_bytes as usize;
        if !state.command.writes || expected == 0 {
            return self.run(task);
        }
        if expected > MAX_TRANSFER_BYTES {
            return self.complete(task, Reply::check(Sense::INVALID_FIELD, false));
        }
        if state.data.as_ref().is_none_or(|data| data.len() < expected) {
            let mut data = BufMut::scratch(expected);
            if let Some(first) = state.data.take() {
                let bytes = state.received_bytes;
                data[..bytes].copy_from_slice(&first[..bytes]);
            }
            state.data = Some(data);
        }
        self.collect(task);
    }

    /// Asks for the next data of a write, or executes it.
    fn collect(&mut self, task: u32) {
        let Phase::Full(session) = &mut self.phase else { return };
        let Some(state) = session.tasks.get_mut(&task) else { return };
        let left = state.command.expected_bytes as usize - state.received_bytes;
        if left == 0 {
            return self.run(task);
        }
        let wanted = left.min(session.parameters.max_burst_bytes as usize);
        session.next_transfer = match session.next_transfer.wrapping_add(1) {
            NO_TAG => 0,
            next => next,
        };
        let tag = session.next_transfer;
        state.stage = Stage::Collecting;
        state.transfer = Some(Transfer { tag, data_sn: 0, end_bytes: state.received_bytes + wanted });
        let ready = Response::Ready {
            task,
            lun: state.command.lun,
            transfer: tag,
            r2t_sn: state.r2t_sn,
            offset_bytes: state.received_bytes as u32,
            wanted_bytes: wanted as u32,
        };
        state.r2t_sn += 1;
        self.send(ready, Buf::empty());
    }

    fn data_out(&mut self, data: &DataOut, bytes: usize) -> Result<(), ConnectionError> {
        let Phase::Full(session) = &mut self.phase else { return Ok(()) };
        let Some(state) = session.tasks.get_mut(&data.task) else { return Ok(()) };
        let Some(transfer) = &mut state.transfer else { return Err(Protocol("data that nobody asked for")) };
        state.received_bytes += bytes;
        transfer.data_sn += 1;
        let complete = state.received_bytes == transfer.end_bytes;
        match (complete, data.is_final) {
            (true, true) => {
                state.transfer = None;
                self.collect(data.task);
                Ok(())
            }
            (false, false) => Ok(()),
            // Its last data is not marked as the last, or it ends before its data does.
            (true, false) | (false, true) => {
                self.fail_transfer(data.task);
                Ok(())
            }
        }
    }

    /// Data of a write came other than it was asked for: the write has failed, and what else comes for it is ignored.
    fn fail_transfer(&mut self, task: u32) {
        self.complete(task, Reply::check(Sense::DATA_PHASE, false));
    }

    fn run(&mut self, task: u32) {
        let Phase::Full(session) = &mut self.phase else { return };
        let Some(state) = session.tasks.get_mut(&task) else { return };
        state.stage = Stage::Running;
        let data = state.data.take().map_or(Buf::empty(), BufMut::freeze);
        let Command { lun, cdb, .. } = state.command;
        self.actions.push_back(Action::Execute(Task { task, lun, cdb, data }));
    }

    /// A command has ended.
    pub fn complete(&mut self, task: u32, reply: Reply) {
        let Phase::Full(session) = &mut self.phase else { return };
        let Some(state) = session.end(task) else { return };
        if !state.aborted {
            self.answer(&state.command, reply);
        }
        self.settle(task);
        self.admit();
    }

    fn answer(&mut self, command: &Command, reply: Reply) {
        let Command { task, expected_bytes, reads, .. } = *command;
        let residual = Residual::between(expected_bytes, reply.data.len() as u64 + reply.taken_bytes);
        let wanted = if reads { expected_bytes as usize } else { 0 };
        let bytes = reply.data.len().min(wanted);
        let ends_with_data = reply.status == Status::Good && reply.sense.is_empty() && bytes > 0;
        let data_count = self.data_in(task, &reply.data.slice(0..bytes), ends_with_data.then_some(residual));
        if ends_with_data {
            return;
        }
        let mut sense = Vec::new();
        if !reply.sense.is_empty() {
            sense.extend((reply.sense.len() as u16).to_be_bytes());
            sense.extend(reply.sense);
        }
        let response = Response::Command { task, status: reply.status as u8, residual, data_count };
        self.send(response, Buf::metadata(&sense));
    }

    /// Sends data of a read; how many PDUs.
    fn data_in(&mut self, task: u32, data: &Buf, ends: Option<Residual>) -> u32 {
        let Phase::Full(session) = &self.phase else { return 0 };
        let (most, burst) =
            (session.parameters.max_send_bytes as usize, session.parameters.max_burst_bytes as usize);
        let (mut sent, mut data_sn) = (0, 0);
        while sent < data.len() {
            let burst_left = burst - sent % burst;
            let bytes = (data.len() - sent).min(most).min(burst_left);
            let is_last = sent + bytes == data.len();
            let response = Response::DataIn {
                task,
                is_final: is_last || bytes == burst_left,
                ends: ends.filter(|_| is_last),
                data_sn,
                offset_bytes: sent as u32,
            };
            self.send(response, data.slice(sent..sent + bytes));
            sent += bytes;
            data_sn += 1;
        }
        data_sn
    }

    // Task management, and the end.

    fn manage(&mut self, task: u32, lun: u64, what: Manage) {
        let Phase::Full(session) = &mut self.phase else { return };
        let (waits_for, then) = match what {
            Manage::AbortTask { task: other } if !session.tasks.contains_key(&other) => {
                return self.managed(task, ManageResult::NoSuchTask);
            }
            Manage::AbortTask { task: other } => {
                (session.abort(|state| state.command.task == other), After::Managed { task })
            }
            Manage::AbortTaskSet | Manage::ClearTaskSet => {
                (session.abort(|state| state.command.lun == lun), After::Managed { task })
            }
            Manage::ResetLun => {
                let what = Reset::Lun(lun);
                (session.abort(|state| state.command.lun == lun), After::Reset { task, what })
            }
            Manage::ResetTarget => (session.abort(|_| true), After::Reset { task, what: Reset::Target }),
            Manage::ResetTargetCold => {
                (session.abort(|_| true), After::Reset { task, what: Reset::TargetCold })
            }
            Manage::Unsupported => return self.managed(task, ManageResult::Unsupported),
        };
        self.defer(waits_for, then);
        self.admit();
    }

    fn managed(&mut self, task: u32, result: ManageResult) {
        self.send(Response::Manage { task, result }, Buf::empty());
    }

    /// The driver has done what [`Action::Reset`] says.
    pub fn reset_done(&mut self, task: u32, result: ManageResult) {
        self.managed(task, result);
    }

    fn defer(&mut self, waits_for: HashSet<u32>, then: After) {
        if waits_for.is_empty() {
            return self.after(then);
        }
        if let Phase::Full(session) = &mut self.phase {
            session.deferred.push(Deferred { waits_for, then });
        }
    }

    /// Answers what waited for the end of a command.
    fn settle(&mut self, ended: u32) {
        let Phase::Full(session) = &mut self.phase else { return };
        for deferred in &mut session.deferred {
            deferred.waits_for.remove(&ended);
        }
        let done = session.deferred.extract_if(.., |deferred| deferred.waits_for.is_empty());
        let done: Vec<After> = done.map(|deferred| deferred.then).collect();
        done.into_iter().for_each(|then| self.after(then));
    }

    fn after(&mut self, then: After) {
        match then {
            After::Managed { task } => self.managed(task, ManageResult::Done),
            After::Reset { task, what } => self.actions.push_back(Action::Reset { task, what }),
            After::Logout { task } => {
                self.send(Response::Logout { task, result: 0 }, Buf::empty());
                self.phase = Phase::Ended;
                self.actions.push_back(Action::End);
            }
        }
    }

    // Texts.

    fn text(
        &mut self,
        task: u32,
        transfer: u32,
        more: bool,
        part: &[u8],
        catalog: &dyn Catalog,
    ) -> Result<(), ConnectionError> {
        let Phase::Full(session) = &mut self.phase else { return Ok(()) };
        if session.text.len() + part.len() > MAX_TEXT_BYTES {
            return Err(Protocol("a text without end"));
        }
        session.text.extend_from_slice(part);
        if more {
            let response = Response::Text { task, is_final: false, more: false, transfer: TEXT_TRANSFER };
            self.send(response, Buf::empty());
            return Ok(());
        }
        let goes_on = transfer == TEXT_TRANSFER && !session.text_left.is_empty();
        if !goes_on {
            let text = std::mem::take(&mut session.text);
            let pairs = text::parse(&text).map_err(|_| Protocol("a text without keys and values"))?;
            let mut out = Text::default();
            for (key, value) in pairs {
                match key {
                    "SendTargets" => session.send_targets(value, catalog, &mut out),
                    // Declared again: it stays what it was.
                    "MaxRecvDataSegmentLength" => {}
                    _ => out.add(key, "NotUnderstood"),
                }
            }
            session.text_left = out.into_bytes();
        }
        let most = session.parameters.max_send_bytes as usize;
        let rest = session.text_left.split_off(session.text_left.len().min(most));
        let now = std::mem::replace(&mut session.text_left, rest);
        let is_last = session.text_left.is_empty();
        let transfer = if is_last { NO_TAG } else { TEXT_TRANSFER };
        self.send(Response::Text { task, is_final: is_last, more: !is_last, transfer }, Buf::metadata(&now));
        Ok(())
    }

    // Sending.

    fn reject(&mut self, reason: RejectReason) {
        let head = self.head;
        self.send(Response::Reject { reason }, Buf::metadata(&head.0));
    }

    fn send(&mut self, response: Response, data: Buf) {
        if let Phase::Full(session) = &self.phase {
            // A slot for each command that is not under way; what was promised once is kept.
            let free = WINDOW_COMMANDS.saturating_sub(session.tasks.len() as u32 + session.held.len() as u32);
            let max = self.numbers.exp_cmd_sn.wrapping_add(free).wrapping_sub(1);
            if is_before(self.numbers.max_cmd_sn, max) {
                self.numbers.max_cmd_sn = max;
            }
        }
        let Head(mut head) = response.encode(&self.numbers);
        head[4..8].copy_from_slice(&(data.len() as u32).to_be_bytes());
        let mut head = head.to_vec();
        if self.digests.head {
            let crc = crc32c::crc32c(&head);
            head.extend(crc.to_le_bytes());
        }
        let mut tail = vec![0; padding_bytes(data.len())];
        if self.digests.data && !data.is_empty() {
            let crc = crc32c::crc32c_append(crc32c::crc32c(&data), &tail);
            tail.extend(crc.to_le_bytes());
        }
        if response.has_status() {
            self.numbers.stat_sn = self.numbers.stat_sn.wrapping_add(1);
        }
        self.actions.push_back(Action::Send(Outgoing { head, data, tail }));
    }
}

fn order_of(request: &Request) -> Order {
    match request {
        Request::Nop { order, .. }
        | Request::Manage { order, .. }
        | Request::Text { order, .. }
        | Request::Logout { order, .. } => *order,
        Request::Command(command) => command.order,
        // They have no place of their own.
        Request::Login(_) | Request::DataOut(_) => Order { immediate: true, cmd_sn: 0 },
    }
}

impl TaskState {
    /// Whether data is the next of what was asked for.
    fn is_in_order(&self, data: &DataOut, bytes: usize) -> Result<bool, ConnectionError> {
        let transfer = self.transfer.ok_or(Protocol("data that nobody asked for"))?;
        Ok(data.transfer == transfer.tag
            && data.data_sn == transfer.data_sn
            && data.offset_bytes as usize == self.received_bytes
            && self.received_bytes + bytes <= transfer.end_bytes)
    }
}

impl Session {
    fn new(done: &LoggedIn) -> Session {
        Session {
            parameters: done.parameters.clone(),
            is_discovery: done.target.is_none(),
            target: done.target.as_ref().map_or_else(String::new, |target| target.name.clone()),
            held: HashMap::new(),
            tasks: HashMap::new(),
            waiting: VecDeque::new(),
            used_bytes: 0,
            active: 0,
            ordered: false,
            next_transfer: 0,
            deferred: Vec::new(),
            text: Vec::new(),
            text_left: Vec::new(),
        }
    }

    /// Takes a command out of the books.
    fn end(&mut self, task: u32) -> Option<TaskState> {
        let state = self.tasks.remove(&task)?;
        match state.stage {
            Stage::Waiting if state.cost_bytes == 0 => self.waiting.retain(|t| *t != task),
            _ => {
                self.used_bytes -= state.cost_bytes;
                self.active -= 1;
                self.ordered &= state.command.attribute != TaskAttribute::Ordered;
            }
        }
        Some(state)
    }

    /// Aborts commands; those that run on the medium and must be waited for.
    fn abort(&mut self, is_meant: impl Fn(&TaskState) -> bool) -> HashSet<u32> {
        let meant: Vec<u32> =
            self.tasks.iter().filter(|(_, state)| is_meant(state)).map(|(task, _)| *task).collect();
        let mut running = HashSet::new();
        for task in meant {
            match self.tasks.get_mut(&task) {
                Some(state) if state.stage == Stage::Running => {
                    state.aborted = true;
                    running.insert(task);
                }
                _ => drop(self.end(task)),
            }
        }
        running
    }

    fn send_targets(&self, wanted: &str, catalog: &dyn Catalog, out: &mut Text) {
        let all = catalog.targets();
        let is_meant = |name: &str| match wanted {
            "All" => self.is_discovery,
            "" => name == self.target,
            one => name == one,
        };
        for target in all.iter().filter(|target| is_meant(&target.name)) {
            out.add("TargetName", &target.name);
            target.portals.iter().for_each(|portal| {
                out.add("TargetAddress", format_args!("{portal},{}", crate::login::PORTAL_GROUP));
            });
        }
    }
}

#[cfg(test)]
mod tests;
