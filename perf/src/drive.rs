//! Puts load on a file or block device through the product's runtime: the same ring, direct I/O and journal code as
//! a chunk server uses.

use crate::measure::{Case, Figures, Operation, Pattern, Run};
use crate::scratch::ScratchFile;
use crate::worker::Worker;
use shards::journal::{Journal, Outcome, PayloadCheck};
use shards::{
    BLOCK_BYTES, BodyLength, Buf, BufMut, Durability, Event, FileHandle, HEAD_BYTES, Io, Node, OpId, OpenHow,
};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::Duration;

const FILL_BYTES: usize = 1 << 20;
const FILL_DEPTH: usize = 4;
/// Operation ids below this are slots of a run; the journal has its own name space.
const FILL_OP: u64 = 1 << 32;
const SYNC_OP: u64 = 2 << 32;

/// What load is put on.
#[derive(Clone, Debug)]
pub struct Target {
    pub path: PathBuf,
    /// The part from 0 to here is used.
    pub bytes: u64,
    pub writable: bool,
    /// Where journal cases may make a file of this size, and which; it stays behind.
    pub journal: Option<(PathBuf, u64)>,
}

enum Order {
    /// Writes the whole target once.
    Fill,
    Run(Case, Duration),
}

enum Answer {
    Filled(u64),
    Figures(Box<Figures>),
}

/// A ring that works on one target.
pub struct Driver {
    worker: Worker<Order, Answer>,
}

/// Not a network program: no frame ever comes.
fn no_framing(_: &[u8; HEAD_BYTES]) -> Result<BodyLength, String> {
    Err("no connection is expected".into())
}

impl Driver {
    pub fn start(target: Target) -> Result<Driver, String> {
        let node = move |answers| Load {
            target,
            file: FileHandle(0),
            noise: Vec::new(),
            filled: 0,
            next: 0,
            run: None,
            journal: None,
            waits_for_journal: None,
            answers,
        };
        Ok(Driver { worker: Worker::start(no_framing, node)? })
    }

    /// Writes every block once, so that later no write allocates and reads find data.
    pub fn fill(&mut self, mut progress: impl FnMut(u64)) -> Result<(), String> {
        self.worker.order(Order::Fill);
        loop {
            match self.worker.answer()? {
                Some(Answer::Filled(u64::MAX)) => return Ok(()),
                Some(Answer::Filled(bytes)) => progress(bytes),
                _ => {}
            }
        }
    }

    /// Measures; `waiting` is called every now and then.
    pub fn run(&mut self, case: Case, time: Duration, mut waiting: impl FnMut()) -> Result<Figures, String> {
        self.worker.order(Order::Run(case, time));
        loop {
            if let Some(Answer::Figures(figures)) = self.worker.answer()? {
                return Ok(*figures);
            }
            waiting();
        }
    }
}

struct Load {
    target: Target,
    file: FileHandle,
    /// Data to write: incompressible, so that a clever device gains nothing.
    noise: Vec<Buf>,
    filled: u64,
    /// Next offset of sequential cases.
    next: u64,
    run: Option<Run>,
    journal: Option<Journal>,
    waits_for_journal: Option<(Case, Duration)>,
    answers: Sender<Answer>,
}

impl Node for Load {
    type Message = Order;

    fn handle(&mut self, event: Event<Order>, io: &mut dyn Io) {
        let done = match event {
            Event::Start => self.open(io),
            Event::Message(Order::Fill) => self.start_fill(io),
            Event::Message(Order::Run(case, time)) => self.start_run(case, time, io),
            Event::Disk { op, result } => self.disk(op, result, io),
            Event::Shutdown => {
                io.stop(Ok(()));
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(why) = done {
            io.stop(Err(why));
        }
    }
}

impl Load {
    fn open(&mut self, io: &mut dyn Io) -> Result<(), String> {
        let how = OpenHow { create: false, direct: true, read_only: !self.target.writable };
        self.file = io.open(path_text(&self.target.path)?, how).map_err(|e| e.to_string())?;
        self.noise = noise_blocks(8, FILL_BYTES);
        Ok(())
    }

    fn start_fill(&mut self, io: &mut dyn Io) -> Result<(), String> {
        self.filled = 0;
        self.next = 0;
        (0..FILL_DEPTH).for_each(|_| self.fill_more(io));
        Ok(())
    }

    fn fill_more(&mut self, io: &mut dyn Io) {
        let len = (self.target.bytes - self.next).min(FILL_BYTES as u64);
        if len > 0 {
            let data = self.noise[self.next as usize / FILL_BYTES % self.noise.len()].slice(0..len as usize);
            io.write(self.file, self.next, vec![data], Durability::Buffered, OpId(FILL_OP | len));
            self.next += len;
        }
    }

    fn start_run(&mut self, case: Case, time: Duration, io: &mut dyn Io) -> Result<(), String> {
        if case.block_bytes as u64 > self.target.bytes || case.block_bytes > FILL_BYTES {
            return Err(format!("a block of {} bytes does not fit", case.block_bytes));
        }
        self.next = 0;
        if case.operation == Operation::Journal && self.journal.is_none() {
            let (path, bytes) = self.target.journal.clone().ok_or("no place for a journal")?;
            let made = Journal::create(io, path_text(&path)?, bytes);
            self.journal = Some(made.map_err(|e| e.to_string())?);
            // Goes on when it is ready: making it must not count as time of the measurement.
            self.waits_for_journal = Some((case, time));
            return Ok(());
        }
        self.begin(case, time, io)
    }

    fn begin(&mut self, case: Case, time: Duration, io: &mut dyn Io) -> Result<(), String> {
        self.run = Some(Run::new(case, io.now(), time));
        for slot in 0..case.depth {
            self.start(slot, io)?;
        }
        Ok(())
    }

    fn start(&mut self, slot: usize, io: &mut dyn Io) -> Result<(), String> {
        let Some(run) = &mut self.run else { return Ok(()) };
        if !run.start(slot, io.now()) {
            if run.is_over() {
                let figures = Box::new(run.figures());
                self.run = None;
                let _ = self.answers.send(Answer::Figures(figures)); // Nobody waits: the program ends.
            }
            return Ok(());
        }
        let case = run.case;
        let data = |noise: &[Buf]| noise[slot % noise.len()].slice(0..case.block_bytes);
        match case.operation {
            Operation::Write => {
                let at = self.place(case, io);
                let durability = if case.flushed { Durability::Durable } else { Durability::Buffered };
                io.write(self.file, at, vec![data(&self.noise)], durability, OpId(slot as u64));
            }
            Operation::Journal => {
                let journal = self.journal.as_mut().ok_or("the journal is not open")?;
                journal
                    .append(io, &[0; 48], data(&self.noise), PayloadCheck::Caller, slot as u64, false)
                    .map_err(|_| "the journal is full: give it more room with --size")?;
            }
            _ => {
                let at = self.place(case, io);
                io.read(self.file, at, case.block_bytes, OpId(slot as u64));
            }
        }
        Ok(())
    }

    fn place(&mut self, case: Case, io: &mut dyn Io) -> u64 {
        let block = case.block_bytes as u64;
        let blocks = self.target.bytes / block;
        match case.pattern {
            Pattern::Random => io.random() % blocks * block,
            Pattern::Sequential => {
                let at = self.next;
                self.next = if at + 2 * block > self.target.bytes { 0 } else { at + block };
                at
            }
        }
    }

    fn disk(&mut self, op: OpId, result: std::io::Result<Buf>, io: &mut dyn Io) -> Result<(), String> {
        if let Some(journal) = &mut self.journal
            && op.0 >> 56 != 0
        {
            journal.on_disk(io, op, result);
            return self.journal_outcomes(io);
        }
        result.map_err(shards::text::at(&self.target.path))?;
        if op.0 == SYNC_OP {
            let _ = self.answers.send(Answer::Filled(u64::MAX));
        } else if op.0 & FILL_OP != 0 {
            self.filled += op.0 & !FILL_OP;
            let _ = self.answers.send(Answer::Filled(self.filled));
            if self.filled == self.target.bytes {
                io.sync(self.file, OpId(SYNC_OP));
            }
            self.fill_more(io);
        } else {
            self.complete(op.0 as usize, io)?;
        }
        Ok(())
    }

    fn complete(&mut self, slot: usize, io: &mut dyn Io) -> Result<(), String> {
        if let Some(run) = &mut self.run {
            run.complete(slot, io.now());
        }
        self.start(slot, io)
    }

    fn journal_outcomes(&mut self, io: &mut dyn Io) -> Result<(), String> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let outcomes: Vec<Outcome> = journal.outcomes().collect();
        // As if everything had been applied by now.
        if journal.used_bytes() > journal.total_bytes() / 2 {
            journal.trim(io, journal.end());
        }
        for outcome in outcomes {
            match outcome {
                Outcome::Ready => {
                    if let Some((case, time)) = self.waits_for_journal.take() {
                        self.begin(case, time, io)?;
                    }
                }
                Outcome::Durable { token, .. } => self.complete(token as usize, io)?,
                Outcome::Broken(why) => return Err(why.to_string()),
                Outcome::Replayed { .. } | Outcome::Trimmed => {}
            }
        }
        Ok(())
    }
}

fn path_text(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or_else(|| format!("{}: the name is not UTF-8", path.display()))
}

/// Incompressible data.
pub fn noise_blocks(count: usize, len: usize) -> Vec<Buf> {
    let mut state = u64::from_le_bytes(shards::host::random_bytes()) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut block = || {
        let mut buf = BufMut::zeroed(len);
        buf.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&next().to_le_bytes()));
        buf.freeze()
    };
    (0..count).map(|_| block()).collect()
}

/// Blocks are whole: what a size given by a person is rounded down to.
pub fn whole_blocks(bytes: u64) -> u64 {
    bytes / BLOCK_BYTES as u64 * BLOCK_BYTES as u64
}

/// A new file of `bytes` in `dir`, written once.
pub fn filled(dir: &Path, name: &str, bytes: u64) -> Result<ScratchFile, String> {
    let file = ScratchFile::create(dir, name)?;
    let target = Target { path: file.path().into(), bytes, writable: true, journal: None };
    Driver::start(target)?.fill(|_| {})?;
    Ok(file)
}
