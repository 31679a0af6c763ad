//! Clients that share files through mounts, one holder at a time, and the record of all they did.

use crate::registers::{CELL_BYTES, History, cell, value_of};
use shards::Timestamp;
use shards::sim::Rng;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const FILES: usize = 3;
const CHUNKS: u64 = 3;
const CHUNK_BYTES: u64 = 1 << 20;
/// Blocks used at the beginning of each chunk: few, so that operations meet.
const BLOCKS_OF_CHUNK: u64 = 12;
const BLOCK_BYTES: usize = 4096;
const CELLS_OF_BLOCK: u32 = (BLOCK_BYTES / CELL_BYTES) as u32;
const MOST_BLOCKS: u64 = 4;
/// Threads that use one open file at the same time.
const WORKERS: usize = 3;
/// A client that has not ended its last operation by then, with everything healed, hangs.
const END_WITHIN: Duration = Duration::from_secs(120);

/// Clients at work, one for each mount.
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadReport {
    pub writes: u64,
    pub reads: u64,
    pub errors: u64,
    pub sessions: u64,
    /// Of an operation that succeeded.
    pub longest: Duration,
}

struct Shared {
    began: Instant,
    mounts: Vec<Mount>,
    files: Vec<Mutex<Record>>,
    next_value: AtomicU64,
    stop: AtomicBool,
    report: Mutex<LoadReport>,
    violation: Mutex<Option<String>>,
}

struct Mount {
    dir: PathBuf,
    /// Grows whenever the process of the mount is replaced.
    incarnation: AtomicU64,
}

#[derive(Default)]
struct Record {
    history: History,
    /// The mount and its incarnation that opened the file last.
    holder: Option<(usize, u64)>,
}

impl Load {
    /// Makes the files and begins.
    pub fn start(mounts: Vec<PathBuf>, seed: u64) -> Load {
        for file in 0..FILES {
            let path = mounts[0].join(format!("f{file}"));
            let made = File::create(&path).and_then(|f| f.set_len(CHUNKS * CHUNK_BYTES));
            made.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
        let mounts = mounts.into_iter().map(|dir| Mount { dir, incarnation: AtomicU64::new(1) }).collect();
        let shared = Arc::new(Shared {
            began: Instant::now(),
            mounts,
            files: (0..FILES).map(|_| Mutex::default()).collect(),
            next_value: AtomicU64::new(1),
            stop: AtomicBool::new(false),
            report: Mutex::default(),
            violation: Mutex::default(),
        });
        let mut rng = Rng::new(seed);
        let clients = (0..shared.mounts.len()).map(|mount| {
            let (shared, rng) = (shared.clone(), rng.fork());
            std::thread::spawn(move || shared.work(mount, rng))
        });
        let clients = clients.collect();
        Load { shared, clients }
    }

    /// To be called after the process of a mount has ended and before there is another. Mounts count from 0.
    pub fn mount_replaced(&self, mount: usize) {
        self.shared.mounts[mount].incarnation.fetch_add(1, Ordering::SeqCst);
    }

    pub fn report(&self) -> LoadReport {
        *self.shared.lock_report()
    }

    /// Runs until so many more operations have succeeded; false if that takes longer than `within`.
    pub fn progresses(&self, operations: u64, within: Duration) -> bool {
        let done = |r: LoadReport| r.writes + r.reads;
        let (began, wanted) = (Instant::now(), done(self.report()) + operations);
        while done(self.report()) < wanted && began.elapsed() < within {
            std::thread::sleep(Duration::from_millis(20));
        }
        done(self.report()) >= wanted
    }

    /// Forgets the longest operation so far.
    pub fn reset_longest(&self) {
        self.shared.lock_report().longest = Duration::ZERO;
    }

    /// Ends the clients, reads everything once more through each mount, and checks what was seen by all.
    pub fn finish(self) -> Result<LoadReport, String> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let began = Instant::now();
        while !self.clients.iter().all(|c| c.is_finished()) {
            if began.elapsed() > END_WITHIN {
                return Err(format!("a client hangs for {END_WITHIN:?}, though all is healed"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        for mount in 0..self.shared.mounts.len() {
            for file in 0..FILES {
                self.shared.read_all(mount, file)?;
            }
        }
        if let Some(violation) = self.shared.violation.lock().expect("no panic under this lock").take() {
            return Err(violation);
        }
        for (n, file) in self.shared.files.iter().enumerate() {
            let record = file.lock().expect("no panic under this lock");
            record.history.check().map_err(|why| format!("file f{n}: {why}"))?;
        }
        Ok(self.report())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn now(&self) -> Timestamp {
        // Never 0, which is when everything unwritten was "written".
        Timestamp(self.began.elapsed().as_nanos() as u64 + 1)
    }

    fn lock_report(&self) -> MutexGuard<'_, LoadReport> {
        self.report.lock().expect("no panic under this lock")
    }

    fn record(&self, file: usize) -> MutexGuard<'_, Record> {
        self.files[file].lock().expect("no panic under this lock")
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn violated(&self, why: String) {
        self.violation.lock().expect("no panic under this lock").get_or_insert(why);
    }

    /// Opens a file as its only holder.
    fn open(&self, mount: usize, file: usize) -> std::io::Result<File> {
        let at = &self.mounts[mount];
        let incarnation = at.incarnation.load(Ordering::SeqCst);
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_DIRECT);
        let opened = options.open(at.dir.join(format!("f{file}")))?;
        let mut record = self.record(file);
        if record.holder != Some((mount, incarnation)) {
            record.history.fence(self.now());
            record.holder = Some((mount, incarnation));
        }
        self.lock_report().sessions += 1;
        Ok(opened)
    }

    /// Opens one file after another, works on it and closes it.
    fn work(&self, mount: usize, mut rng: Rng) {
        while !self.stopped() {
            let number = rng.below(FILES as u64) as usize;
            let Ok(file) = self.open(mount, number) else {
                // Somebody else holds it, or the mount is gone.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            std::thread::scope(|scope| {
                for _ in 0..WORKERS {
                    let (file, rng) = (&file, rng.fork());
                    scope.spawn(move || self.use_file(file, number, rng));
                }
            });
        }
    }

    fn use_file(&self, file: &File, number: usize, mut rng: Rng) {
        for _ in 0..rng.between(10, 150) {
            if self.stopped() {
                return;
            }
            let first = rng.below(CHUNKS) * BLOCKS_OF_CHUNK + rng.below(BLOCKS_OF_CHUNK);
            let blocks = rng.between(1, MOST_BLOCKS).min(BLOCKS_OF_CHUNK - first % BLOCKS_OF_CHUNK);
            let began = Instant::now();
            let done = match rng.one_in(2) {
                true => self.write(file, number, first, blocks),
                false => self.read(file, number, first, blocks),
            };
            let mut report = self.lock_report();
            if done.is_err() {
                report.errors += 1;
                return;
            }
            report.longest = report.longest.max(began.elapsed());
            drop(report);
            std::thread::sleep(Duration::from_micros(rng.between(0, 4000)));
        }
    }

    fn write(&self, file: &File, number: usize, first: u64, blocks: u64) -> std::io::Result<()> {
        let value = self.next_value.fetch_add(1, Ordering::SeqCst);
        let cells = first as u32 * CELLS_OF_BLOCK..(first + blocks) as u32 * CELLS_OF_BLOCK;
        let bytes: Vec<u8> = cells.clone().flat_map(|at| cell(value, number, at)).collect();
        self.record(number).history.begin_write(value, cells, self.now());
        file.write_all_at(&bytes, offset_of(first))?;
        let end = self.now();
        self.record(number).history.end_write(value, end);
        self.lock_report().writes += 1;
        Ok(())
    }

    fn read(&self, file: &File, number: usize, first: u64, blocks: u64) -> std::io::Result<()> {
        let mut bytes = vec![0; blocks as usize * BLOCK_BYTES];
        let start = self.now();
        file.read_exact_at(&mut bytes, offset_of(first))?;
        let end = self.now();
        let at = first as u32 * CELLS_OF_BLOCK;
        let values = bytes.chunks(CELL_BYTES).zip(at..).map(|(bytes, at)| value_of(bytes, number, at));
        match values.collect::<Result<Vec<u64>, String>>() {
            Ok(values) => self.record(number).history.read(at, values, start, end),
            Err(why) => self.violated(why),
        }
        self.lock_report().reads += 1;
        Ok(())
    }

    fn read_all(&self, mount: usize, number: usize) -> Result<(), String> {
        let began = Instant::now();
        let file = loop {
            match self.open(mount, number) {
                Ok(file) => break file,
                Err(e) if began.elapsed() > END_WITHIN => {
                    return Err(format!("f{number} can't be opened: {e}"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        };
        for first in (0..CHUNKS * BLOCKS_OF_CHUNK).step_by(MOST_BLOCKS as usize) {
            self.read(&file, number, first, MOST_BLOCKS)
                .map_err(|e| format!("f{number} can't be read: {e}"))?;
        }
        Ok(())
    }
}

/// Where a block used by the load stands in its file.
fn offset_of(block: u64) -> u64 {
    block / BLOCKS_OF_CHUNK * CHUNK_BYTES + block % BLOCKS_OF_CHUNK * BLOCK_BYTES as u64
}
