//! The half whose power is cut: writes numbered blocks, tells the server of each one the drive acknowledged, and when it
//! is started again in the same directory compares.

use super::block::{self, Label, RunId, Verdict};
use super::server::{GREETING, Record};
use super::{MOST_THREADS, Method};
use crate::Outcome;
use serde::{Deserialize, Serialize};
use shards::{BLOCK_BYTES, BufMut};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub struct Settings {
    pub server: SocketAddr,
    pub dir: PathBuf,
    pub threads: u32,
    /// Of each thread's file.
    pub blocks: u32,
    pub method: Method,
    /// Forgets an earlier test in this directory.
    pub fresh: bool,
    /// Ends by itself.
    pub seconds: Option<f64>,
}

/// What the directory knows of its test; synced before the first block counts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Run {
    version: u32,
    run: String,
    threads: u32,
    blocks: u32,
}

const RUN_VERSION: u32 = 1;
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize)]
pub struct Comparison {
    pub acknowledged: u64,
    pub lost: u64,
    /// The whole test is gone from the directory.
    pub directory_lost: bool,
    pub threads: Vec<Verdict>,
}

/// What a start of the client came to.
pub enum Ended {
    Compared(Comparison),
    /// Wrote until its time was over.
    Wrote {
        acknowledged: u64,
    },
}

pub fn run(settings: &Settings) -> Outcome<Ended> {
    let dir = settings.dir.canonicalize().map_err(shards::text::at(&settings.dir))?;
    let run_file = dir.join("check-flush.run");
    let place = format!("{}:{}", shards::host::host_name(), dir.display());
    if settings.fresh {
        forget(settings, &run_file, &place)?;
    }
    match load_run(&run_file)? {
        Some(run) => compare(settings, &dir, &run_file, &run, &place).map(Ended::Compared),
        None => begin(settings, &dir, &run_file, &place),
    }
}

fn load_run(file: &Path) -> Outcome<Option<Run>> {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(shards::text::at(&file)(e)),
    };
    let damaged = |why: String| {
        format!(
            "{} is damaged ({why}). It was flushed before the test began, so the drive has lost it. Say --fresh to \
             begin anew",
            file.display()
        )
    };
    let run: Run = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    let sane = run.version == RUN_VERSION && (1..=MOST_THREADS).contains(&run.threads) && run.blocks > 0;
    if !sane || run_id(&run.run).is_none() {
        return Err(damaged("not of this version".into()));
    }
    Ok(Some(run))
}

fn run_id(text: &str) -> Option<RunId> {
    let mut id = [0; 16];
    if text.len() != 32 || !text.is_ascii() {
        return None;
    }
    for (byte, at) in id.iter_mut().zip((0..32).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(id)
}

fn data_file(dir: &Path, thread: u32) -> PathBuf {
    dir.join(format!("check-flush.{thread:03}"))
}

// Talking to the server.

fn connect(server: SocketAddr) -> Outcome<TcpStream> {
    let conn = TcpStream::connect_timeout(&server, CONNECT_WITHIN).map_err(|e| {
        format!("server {server}: {}; start 'pstorage check-flush -l' there", shards::text::cause(&e))
    })?;
    conn.set_nodelay(true).map_err(|e| e.to_string())?;
    Ok(conn)
}

fn ask(mut conn: &TcpStream, line: &str) -> Outcome<Option<Record>> {
    let fail = |e: std::io::Error| format!("the server: {}", shards::text::cause(&e));
    conn.write_all(format!("{line}\n").as_bytes()).map_err(fail)?;
    conn.set_read_timeout(Some(CONNECT_WITHIN)).map_err(fail)?;
    let mut answer = String::new();
    BufReader::new(conn.take(1 << 20)).read_line(&mut answer).map_err(fail)?;
    serde_json::from_str(&answer)
        .map_err(|_| "the server speaks another protocol: is it 'check-flush -l'?".into())
}

fn open_run(conn: &TcpStream, run: &Run, place: &str) -> Outcome<Option<Record>> {
    ask(conn, &format!("{GREETING} {} {} {place}", run.run, run.threads))
}

// Comparing.

fn compare(settings: &Settings, dir: &Path, run_file: &Path, run: &Run, place: &str) -> Outcome<Comparison> {
    let conn = connect(settings.server)?;
    let record = open_run(&conn, run, place)?.filter(|r| r.run == run.run).ok_or_else(|| {
        format!(
            "{} knows nothing of the test in {}: name the server that was used, with its --records file; or say \
             --fresh to begin anew",
            settings.server,
            dir.display()
        )
    })?;
    let mut threads = Vec::new();
    for thread in 0..run.threads {
        let acknowledged = record.acknowledged.get(thread as usize).copied().unwrap_or(0);
        threads.push(block::judge(thread, &counters(dir, run, thread)?, acknowledged));
    }
    let lost = threads.iter().map(|t| t.lost.len() as u64).sum();
    if lost == 0 {
        ask(&connect(settings.server)?, &format!("done {}", run.run))?;
        remove(dir, run_file, run.threads)?; // With losses everything stays, to be looked at.
    }
    let acknowledged = record.acknowledged.iter().sum();
    Ok(Comparison { acknowledged, lost, directory_lost: false, threads })
}

/// What stands at each place of a thread's file. A file that is gone or short has nothing there.
fn counters(dir: &Path, run: &Run, thread: u32) -> Outcome<Vec<Option<u64>>> {
    let path = data_file(dir, thread);
    let id = run_id(&run.run).ok_or("not a run")?;
    let mut bytes = Vec::new();
    match File::open(&path).and_then(|mut f| f.read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(shards::text::at(&path)(e)),
    }
    bytes.resize(run.blocks as usize * BLOCK_BYTES, 0);
    let labels = (0..run.blocks).map(|place| Label { run: id, thread, place });
    Ok(labels
        .zip(bytes.chunks_exact(BLOCK_BYTES))
        .map(|(label, block)| block::decode(block, label))
        .collect())
}

fn remove(dir: &Path, run_file: &Path, threads: u32) -> Outcome {
    // The run's name first: data without it means nothing.
    for path in std::iter::once(run_file.to_path_buf()).chain((0..threads).map(|t| data_file(dir, t))) {
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(shards::text::at(&path)(e));
            }
            _ => {}
        }
    }
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> Outcome {
    File::open(dir).and_then(|d| d.sync_all()).map_err(shards::text::at(&dir))
}

fn forget(settings: &Settings, run_file: &Path, place: &str) -> Outcome {
    let nobody = new_run(1, 1);
    // Asking opens a run of its own when there is nothing to forget: it is closed again below.
    let known = open_run(&connect(settings.server)?, &nobody, place)?;
    for run in known.map(|r| r.run).into_iter().chain([nobody.run]) {
        let _ = ask(&connect(settings.server)?, &format!("done {run}")); // It may never have been opened.
    }
    let dir = run_file.parent().unwrap_or(Path::new("."));
    remove(dir, run_file, MOST_THREADS)
}

// Writing.

fn new_run(threads: u32, blocks: u32) -> Run {
    Run { version: RUN_VERSION, run: crate::random_hex::<16>(), threads, blocks }
}

fn begin(settings: &Settings, dir: &Path, run_file: &Path, place: &str) -> Outcome<Ended> {
    let run = new_run(settings.threads, settings.blocks);
    let conn = connect(settings.server)?;
    if let Some(earlier) = open_run(&conn, &run, place)? {
        let acknowledged: u64 = earlier.acknowledged.iter().sum();
        return Ok(Ended::Compared(Comparison {
            acknowledged,
            lost: acknowledged,
            directory_lost: true,
            threads: Vec::new(),
        }));
    }
    // Laid out in full and flushed, so that later writes change nothing but their blocks.
    let files: Vec<File> = (0..run.threads)
        .map(|thread| lay_out(&data_file(dir, thread), &run, thread, settings.method))
        .collect::<Outcome<_>>()?;
    let text = serde_json::to_vec(&run).map_err(|e| e.to_string())?;
    shards::ring::replace_file(run_file, &text).map_err(shards::text::at(&run_file))?;
    eprintln!(
        "Writing with {} threads in {}. Cut the power now (not by shutting down); then start this command again.",
        run.threads,
        dir.display()
    );
    write_all(settings, &run, files, place)
}

fn lay_out(path: &Path, run: &Run, thread: u32, method: Method) -> Outcome<File> {
    let fail = |e: std::io::Error| match (e.raw_os_error(), method) {
        (Some(nix::libc::EINVAL), Method::Direct) => format!(
            "{}: this file system has no direct I/O (O_DIRECT): say --fdatasync to write through the page cache",
            path.display()
        ),
        _ => shards::text::at(path)(e),
    };
    let flags = if method == Method::Direct { nix::libc::O_DIRECT | nix::libc::O_DSYNC } else { 0 };
    // Laid out without them: a flush for each block would take minutes.
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path).map_err(fail)?;
    let id = run_id(&run.run).ok_or("not a run")?;
    let mut bytes = vec![0; run.blocks as usize * BLOCK_BYTES];
    for (place, block) in (0..).zip(bytes.chunks_exact_mut(BLOCK_BYTES)) {
        block::encode(block, Label { run: id, thread, place }, 0);
    }
    file.write_all_at(&bytes, 0).and_then(|()| file.sync_all()).map_err(fail)?;
    OpenOptions::new().write(true).custom_flags(flags).open(path).map_err(fail)
}

fn write_all(settings: &Settings, run: &Run, files: Vec<File>, place: &str) -> Outcome<Ended> {
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut writers = Vec::new();
    for (thread, file) in (0..).zip(files) {
        let conn = connect(settings.server)?;
        open_run(&conn, run, place)?;
        let (run, method, stop, written) = (run.clone(), settings.method, stop.clone(), written.clone());
        writers.push(std::thread::spawn(move || {
            let outcome = write_on(&run, thread, &file, &conn, method, &stop, &written);
            stop.store(true, Ordering::Relaxed); // One that fails ends all.
            outcome
        }));
    }
    let began = Instant::now();
    let limit = settings.seconds.map(Duration::from_secs_f64);
    let bar = indicatif::ProgressBar::new_spinner();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
        let count = written.load(Ordering::Relaxed);
        let rate = count as f64 / began.elapsed().as_secs_f64();
        bar.set_message(format!("{count} blocks acknowledged, {rate:.0} a second"));
        bar.tick();
        if limit.is_some_and(|limit| began.elapsed() >= limit) {
            stop.store(true, Ordering::Relaxed);
        }
    }
    bar.finish_and_clear();
    for writer in writers {
        writer.join().map_err(|_| "a writing thread has failed")??;
    }
    Ok(Ended::Wrote { acknowledged: written.load(Ordering::Relaxed) })
}

fn write_on(
    run: &Run,
    thread: u32,
    file: &File,
    mut conn: &TcpStream,
    method: Method,
    stop: &AtomicBool,
    written: &AtomicU64,
) -> Outcome {
    let id = run_id(&run.run).ok_or("not a run")?;
    let mut buffer = BufMut::zeroed(BLOCK_BYTES); // Aligned, as direct I/O wants it.
    let mut counter = 0u64;
    while !stop.load(Ordering::Relaxed) {
        counter += 1;
        let place = block::place_of(counter, run.blocks);
        block::encode(&mut buffer, Label { run: id, thread, place }, counter);
        file.write_all_at(&buffer, u64::from(place) * BLOCK_BYTES as u64)
            .and_then(|()| if method == Method::Fdatasync { file.sync_data() } else { Ok(()) })
            .map_err(|e| format!("writing block {place} of thread {thread}: {e}"))?;
        conn.write_all(format!("ack {thread} {counter}\n").as_bytes()).map_err(|e| {
            format!("the server is gone ({e}): what was written from here on could not be compared")
        })?;
        written.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
