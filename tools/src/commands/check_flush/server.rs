//! The half that keeps its power: records what the other half says was acknowledged.
//!
//! Lines of text over TCP. The client opens with `check-flush 1 RUN THREADS HOST:DIR`; the answer is a line of JSON, the
//! record of a run in the same directory that was not compared yet, or `null`. Then come `ack THREAD COUNTER` lines,
//! unanswered, and on a connection of its own `done RUN`. The records stand in one JSON file, replaced as a whole ten
//! times a second: a server that is killed forgets a moment's acknowledgements, which asks less of the drive, never more.

use crate::Outcome;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const GREETING: &str = "check-flush 1";
const SAVE_EVERY: Duration = Duration::from_millis(100);
const MOST_THREADS: usize = super::MOST_THREADS as usize;
/// Longer lines come from strangers.
const MOST_LINE_BYTES: u64 = 8 << 10;

/// One test in one directory of one host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    pub run: String,
    /// `HOST:DIR`.
    pub place: String,
    /// The last counter acknowledged, by thread.
    pub acknowledged: Vec<u64>,
    /// Compared: nothing more to say.
    pub done: bool,
}

#[derive(Default, Serialize, Deserialize)]
struct Records {
    runs: BTreeMap<String, Record>,
}

struct Book {
    /// Written by one thread at a time: they would take the new file away from each other.
    file: Mutex<PathBuf>,
    state: Mutex<(Records, bool)>,
}

impl Book {
    fn load(file: &Path) -> Outcome<Book> {
        let records = match std::fs::read(file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                format!(
                    "{}: {e}: it is no record of this program; name another with --records",
                    file.display()
                )
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Records::default(),
            Err(e) => return Err(shards::text::at(&file)(e)),
        };
        Ok(Book { file: Mutex::new(file.into()), state: Mutex::new((records, true)) })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Records) -> T) -> T {
        let mut state = self.state.lock().expect("no panic under this lock");
        state.1 = true;
        change(&mut state.0)
    }

    fn save(&self) -> Outcome {
        let file = self.file.lock().expect("no panic under this lock");
        let bytes = {
            let mut state = self.state.lock().expect("no panic under this lock");
            if !std::mem::take(&mut state.1) {
                return Ok(());
            }
            serde_json::to_vec_pretty(&state.0).map_err(|e| e.to_string())?
        };
        shards::ring::replace_file(&file, &bytes).map_err(shards::text::at(&*file))
    }
}

/// Serves until it is ended; returns only with an error.
pub fn serve(at: SocketAddr, records: &Path) -> Outcome {
    let records = std::path::absolute(records).map_err(shards::text::at(&records))?;
    let book = Arc::new(Book::load(&records)?);
    book.save()?;
    let listener =
        TcpListener::bind(at).map_err(|e| format!("can't listen on {at}: {}", shards::text::cause(&e)))?;
    let at = listener.local_addr().map_err(|e| e.to_string())?;
    println!("Listening on {at}, recording in {}. On the host to test run:", records.display());
    println!("  pstorage check-flush -s {at} -d DIR");
    let accept = book.clone();
    std::thread::spawn(move || {
        for conn in listener.incoming().flatten() {
            let book = accept.clone();
            std::thread::spawn(move || talk(conn, &book));
        }
    });
    loop {
        std::thread::sleep(SAVE_EVERY);
        book.save()?; // What can't be recorded must not be trusted: ends.
    }
}

fn talk(conn: TcpStream, book: &Book) {
    let peer = conn.peer_addr().map_or_else(|_| "somebody".into(), |a| a.to_string());
    let _ = conn.set_nodelay(true);
    if let Err(why) = listen_to(&conn, book) {
        eprintln!("{peer}: {why}");
    }
}

fn listen_to(mut conn: &TcpStream, book: &Book) -> Outcome {
    let mut lines = BufReader::new(conn);
    let Some(first) = line(&mut lines)? else { return Ok(()) };
    if let Some(run) = first.strip_prefix("done ") {
        book.change(|r| r.runs.get_mut(run).map(|run| run.done = true)).ok_or("unknown run")?;
        book.save()?;
        return conn.write_all(b"null\n").map_err(|e| e.to_string());
    }
    let (run, threads, place) = opening(&first).ok_or("speaks another protocol")?;
    let earlier = book.change(|r| {
        let earlier = r
            .runs
            .values()
            .find(|r| r.place == place && !r.done && r.run != run && r.acknowledged.iter().any(|c| *c > 0))
            .cloned();
        let record =
            Record { run: run.into(), place: place.into(), acknowledged: vec![0; threads], done: false };
        let known = r.runs.contains_key(run);
        let own = known.then(|| r.runs[run].clone());
        if !known && earlier.is_none() {
            println!("{place}: a test with {threads} threads begins");
            r.runs.insert(run.into(), record);
        }
        own.or(earlier)
    });
    let answer = serde_json::to_string(&earlier).map_err(|e| e.to_string())? + "\n";
    conn.write_all(answer.as_bytes()).map_err(|e| e.to_string())?;
    while let Some(line) = line(&mut lines)? {
        let (thread, counter) = ack(&line).ok_or("sent something that is no acknowledgement")?;
        let noted = book.change(|r| {
            let last = r.runs.get_mut(run)?.acknowledged.get_mut(thread)?;
            *last = counter.max(*last);
            Some(())
        });
        noted.ok_or("acknowledges for a run that is not open")?;
    }
    Ok(())
}

fn line(from: &mut BufReader<&TcpStream>) -> Outcome<Option<String>> {
    let mut text = String::new();
    match from.take(MOST_LINE_BYTES).read_line(&mut text) {
        Ok(_) if text.ends_with('\n') => Ok(Some(text.trim_end().to_string())),
        Ok(_) => Ok(None), // The end, or a line cut by it.
        Err(e) => Err(e.to_string()),
    }
}

fn opening(line: &str) -> Option<(&str, usize, &str)> {
    let mut words = line.strip_prefix(GREETING)?.strip_prefix(' ')?.splitn(3, ' ');
    let (run, threads, place) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
    ((1..=MOST_THREADS).contains(&threads) && run.len() == 32).then_some((run, threads, place))
}

fn ack(line: &str) -> Option<(usize, u64)> {
    let (thread, counter) = line.strip_prefix("ack ")?.split_once(' ')?;
    Some((thread.parse().ok()?, counter.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_or_refused() {
        let run = "0123456789abcdef0123456789abcdef";
        let line = format!("check-flush 1 {run} 4 host:/a dir");
        assert_eq!(opening(&line), Some((run, 4, "host:/a dir")));
        for bad in
            ["", "check-flush 2 x 4 h", "check-flush 1 short 4 h:/", &format!("check-flush 1 {run} 0 h:/")]
        {
            assert_eq!(opening(bad), None, "{bad}");
        }
        assert_eq!(ack("ack 3 77"), Some((3, 77)));
        assert_eq!(ack("ack 3"), None);
        assert_eq!(ack("ack -1 7"), None);
    }
}
