//! An Ethernet switch in this process. Every frame between two hosts passes here, and may be dropped, held back, or
//! looked into.

use shards::sim::Rng;
use shards::tap::Tap;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock};
use std::time::{Duration, Instant};

/// Largest IP packet, bytes: jumbo frames, as the guide recommends.
pub const MTU: u16 = 9000;
const FRAME_BYTES: usize = MTU as usize + 14;
const ETHERTYPES: [[u8; 2]; 2] = [[0x08, 0x00], [0x08, 0x06]]; // IPv4, ARP
/// A frame that would have to wait longer for a slow line is dropped, as by a full queue.
const LONGEST_QUEUE: Duration = Duration::from_millis(300);
const LOOK_FOR_THE_END: Duration = Duration::from_millis(100);

/// Number of a host's plug.
pub type Port = usize;

/// What happens to frames of one host to one other.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Line {
    pub cut: bool,
    pub delay: Duration,
    /// Frames lost, of a thousand.
    pub loss_permille: u16,
    pub bytes_per_s: Option<u64>,
}

pub struct Switch {
    shared: Arc<Shared>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

struct Shared {
    taps: RwLock<Vec<Arc<Tap>>>,
    lines: Mutex<Lines>,
    /// What is looked for, and how many frames had it.
    watched: RwLock<Vec<(Vec<u8>, AtomicU64)>>,
    late: Mutex<BinaryHeap<Reverse<Late>>>,
    more_late: Condvar,
    ended: AtomicBool,
}

struct Lines {
    /// Those that are not plain wires.
    special: BTreeMap<(Port, Port), (Line, Instant)>,
    rng: Rng,
    frames: u64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Late {
    due: Instant,
    number: u64,
    to: Port,
    frame: Vec<u8>,
}

enum Fate {
    Dropped,
    Now,
    At(Instant, u64),
}

/// The hardware address of the card at a port.
pub fn mac(port: Port) -> [u8; 6] {
    [0x02, b'p', b's', 0, 0, port as u8]
}

impl Switch {
    pub fn new(seed: u64) -> Switch {
        let lines = Lines { special: BTreeMap::new(), rng: Rng::new(seed), frames: 0 };
        let shared = Arc::new(Shared {
            taps: RwLock::default(),
            lines: Mutex::new(lines),
            watched: RwLock::default(),
            late: Mutex::default(),
            more_late: Condvar::new(),
            ended: AtomicBool::new(false),
        });
        let deliver = shared.clone();
        Switch { shared, threads: vec![std::thread::spawn(move || deliver.deliver_late())] }
    }

    /// The port that [`plug`](Self::plug) will give next.
    pub fn next_port(&self) -> Port {
        self.shared.taps.read().expect("no panic under this lock").len()
    }

    pub fn plug(&mut self, tap: Tap) -> Port {
        let tap = Arc::new(tap);
        let mut taps = self.shared.taps.write().expect("no panic under this lock");
        let port = taps.len();
        taps.push(tap.clone());
        drop(taps);
        let shared = self.shared.clone();
        self.threads.push(std::thread::spawn(move || shared.read_from(port, &tap)));
        port
    }

    /// What happens from now on to frames of `from` to `to`.
    pub fn set(&self, from: Port, to: Port, line: Line) {
        let mut lines = self.shared.lock_lines();
        if line == Line::default() {
            lines.special.remove(&(from, to));
        } else {
            lines.special.insert((from, to), (line, Instant::now()));
        }
    }

    /// From now on frames that hold these bytes are counted.
    pub fn watch_for(&self, bytes: &[u8]) {
        let mut watched = self.shared.watched.write().expect("no panic under this lock");
        watched.push((bytes.to_vec(), AtomicU64::new(0)));
    }

    /// How many frames had these bytes, since they are watched for.
    pub fn seen(&self, bytes: &[u8]) -> u64 {
        let watched = self.shared.watched.read().expect("no panic under this lock");
        let found = watched.iter().find(|(wanted, _)| wanted == bytes).expect("watched for");
        found.1.load(Ordering::Relaxed)
    }

    /// All lines are plain wires again.
    pub fn heal(&self) {
        self.shared.lock_lines().special.clear();
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.shared.more_late.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock_lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().expect("no panic under this lock")
    }

    fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn read_from(&self, from: Port, tap: &Tap) {
        let mut buf = [0; FRAME_BYTES];
        while !self.ended() {
            match tap.receive(&mut buf, LOOK_FOR_THE_END) {
                Ok(Some(bytes)) => self.forward(from, &buf[..bytes]),
                Ok(None) => {}
                Err(_) => return, // Its namespace is gone.
            }
        }
    }

    fn forward(&self, from: Port, frame: &[u8]) {
        if frame.len() < 14 || !ETHERTYPES.iter().any(|t| frame[12..14] == *t) {
            return;
        }
        for (bytes, seen) in self.watched.read().expect("no panic under this lock").iter() {
            if holds(frame, bytes) {
                seen.fetch_add(1, Ordering::Relaxed);
            }
        }
        let taps = self.taps.read().expect("no panic under this lock");
        let to_all = frame[0] & 1 == 1;
        for (to, tap) in taps.iter().enumerate() {
            if to == from || !(to_all || frame[..6] == mac(to)) {
                continue;
            }
            match self.lock_lines().fate(from, to, frame.len()) {
                Fate::Dropped => {}
                Fate::Now => drop(tap.send(frame)), // A host that is going away has no card.
                Fate::At(due, number) => {
                    let late = Late { due, number, to, frame: frame.to_vec() };
                    self.late.lock().expect("no panic under this lock").push(Reverse(late));
                    self.more_late.notify_one();
                }
            }
        }
    }

    fn deliver_late(&self) {
        let mut late = self.late.lock().expect("no panic under this lock");
        while !self.ended() {
            let now = Instant::now();
            let next = late.peek().map(|Reverse(l)| l.due);
            if next.is_some_and(|due| due <= now) {
                let Some(Reverse(frame)) = late.pop() else { continue };
                drop(late);
                let tap = self.taps.read().expect("no panic under this lock").get(frame.to).cloned();
                let _ = tap.map(|tap| tap.send(&frame.frame)); // As above.
                late = self.late.lock().expect("no panic under this lock");
            } else {
                let wait = next.map_or(LOOK_FOR_THE_END, |due| due - now);
                late = self.more_late.wait_timeout(late, wait).expect("no panic under this lock").0;
            }
        }
    }
}

fn holds(frame: &[u8], bytes: &[u8]) -> bool {
    frame.windows(bytes.len()).any(|window| window == bytes)
}

impl Lines {
    fn fate(&mut self, from: Port, to: Port, bytes: usize) -> Fate {
        self.frames += 1;
        let Some((line, free_at)) = self.special.get_mut(&(from, to)) else { return Fate::Now };
        let now = Instant::now();
        if line.cut || self.rng.below(1000) < line.loss_permille.into() {
            return Fate::Dropped;
        }
        let mut starts = now;
        if let Some(rate) = line.bytes_per_s {
            starts = now.max(*free_at);
            if starts - now > LONGEST_QUEUE {
                return Fate::Dropped;
            }
            *free_at = starts + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            starts = *free_at;
        }
        let due = starts + line.delay;
        if due > now { Fate::At(due, self.frames) } else { Fate::Now }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_cut_lose_delay_and_limit_in_one_direction_only() {
        let switch = Switch::new(1);
        let fates = |from, to, count: usize| {
            let mut lines = switch.shared.lock_lines();
            (0..count).map(|_| lines.fate(from, to, 1000)).collect::<Vec<_>>()
        };
        let dropped = |fates: &[Fate]| fates.iter().filter(|f| matches!(f, Fate::Dropped)).count();
        switch.set(0, 1, Line { cut: true, ..Line::default() });
        assert!(dropped(&fates(0, 1, 10)) == 10 && dropped(&fates(1, 0, 10)) == 0);
        switch.set(0, 1, Line { loss_permille: 100, ..Line::default() });
        assert!((50..150).contains(&dropped(&fates(0, 1, 1000))));
        // 1 MB/s: 300 frames of a kilobyte fill the queue.
        switch.set(0, 1, Line { bytes_per_s: Some(1_000_000), ..Line::default() });
        let limited = fates(0, 1, 400);
        assert!((80..=100).contains(&dropped(&limited)), "{}", dropped(&limited));
        let before = Instant::now();
        switch.set(0, 1, Line { delay: Duration::from_millis(50), ..Line::default() });
        assert!(
            fates(0, 1, 5)
                .iter()
                .all(|f| matches!(f, Fate::At(due, _) if *due - before >= Duration::from_millis(50)))
        );
        switch.heal();
        assert!(fates(0, 1, 5).iter().all(|f| matches!(f, Fate::Now)));
    }
}
