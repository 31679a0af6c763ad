//! Linearizability of reads and writes, cell by cell.
//!
//! A cell is 512 bytes of a file; every write gives it a value never written before. For such registers the
//! question is exact and cheap (Gibbons and Korach, "Testing shared memories", 1997): each value with its reads
//! forms a *zone* from the earliest end to the latest start of its operations. The history is linearizable iff
//! no read ends before the write of its value begins, no two forward zones (end before start) overlap, and no
//! backward zone lies inside a forward one.

use shards::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

pub const CELL_BYTES: usize = 512;

/// The value a cell has before anything is written.
pub const UNWRITTEN: u64 = 0;

/// End of an operation whose outcome nobody knows (yet).
const UNKNOWN: Timestamp = Timestamp(u64::MAX);

/// The contents of a cell that holds `value`.
pub fn cell(value: u64, file: usize, at: u32) -> [u8; CELL_BYTES] {
    let mut bytes = [0; CELL_BYTES];
    if value == UNWRITTEN {
        return bytes;
    }
    let mut word = value ^ u64::from(at) << 40 ^ (file as u64) << 56;
    for (n, chunk) in bytes.chunks_mut(8).enumerate() {
        if n > 0 {
            word = (word ^ (word >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).wrapping_add(n as u64);
        }
        chunk.copy_from_slice(&if n == 0 { value } else { word }.to_le_bytes());
    }
    bytes
}

/// The value in a cell's contents, or what is wrong with them.
pub fn value_of(bytes: &[u8], file: usize, at: u32) -> Result<u64, String> {
    let value = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    if bytes == cell(value, file, at) {
        return Ok(value);
    }
    let same = bytes.iter().zip(cell(value, file, at)).take_while(|(a, b)| *a == b).count();
    Err(format!(
        "file {file} cell {at}: torn or foreign contents: begins as value {value}, breaks at byte {same}"
    ))
}

#[derive(Clone, Debug)]
struct Write {
    cells: Range<u32>,
    start: Timestamp,
    end: Timestamp,
    /// Reported done. Others may have happened, wholly or in part, or not.
    acked: bool,
}

#[derive(Clone, Debug)]
struct Read {
    first: u32,
    values: Vec<u64>,
    start: Timestamp,
    end: Timestamp,
}

/// Everything that was done to one file.
#[derive(Debug, Default)]
pub struct History {
    writes: BTreeMap<u64, Write>,
    /// Writes that have not ended.
    open: BTreeSet<u64>,
    reads: Vec<Read>,
}

struct Zone {
    value: u64,
    first_end: Timestamp,
    last_start: Timestamp,
}

impl History {
    pub fn begin_write(&mut self, value: u64, cells: Range<u32>, start: Timestamp) {
        let before = self.writes.insert(value, Write { cells, start, end: UNKNOWN, acked: false });
        assert!(before.is_none() && value != UNWRITTEN, "values are written once");
        self.open.insert(value);
    }

    pub fn end_write(&mut self, value: u64, end: Timestamp) {
        let write = self.writes.get_mut(&value).expect("a write that began");
        (write.end, write.acked) = (end, true);
        self.open.remove(&value);
    }

    pub fn read(&mut self, first: u32, values: Vec<u64>, start: Timestamp, end: Timestamp) {
        self.reads.push(Read { first, values, start, end });
    }

    /// From now on nothing that was begun before and never ended may still take effect: another lease was granted.
    pub fn fence(&mut self, now: Timestamp) {
        self.fence_others(now, &BTreeSet::new());
    }

    /// The same, but for the writes named: their holder may take its lease up again.
    pub fn fence_others(&mut self, now: Timestamp, go_on: &BTreeSet<u64>) {
        let writes = &mut self.writes;
        self.open.retain(|value| {
            let write = writes.get_mut(value).expect("a write that began");
            let fenced = write.start < now && !go_on.contains(value);
            if fenced {
                write.end = now;
            }
            !fenced
        });
    }

    pub fn counts(&self) -> (usize, usize) {
        (self.writes.len(), self.reads.len())
    }

    /// The first violation, told for people.
    pub fn check(&self) -> Result<(), String> {
        let mut cells = self.zones_seen()?;
        for zones in &mut cells {
            zones.sort_by_key(|z| z.value);
        }
        for (&value, write) in self.writes.iter().filter(|(_, w)| w.acked) {
            for at in write.cells.clone() {
                // A cell that nobody read says nothing.
                let Some(zones) = cells.get_mut(at as usize).filter(|z| !z.is_empty()) else { continue };
                if let Err(place) = zones.binary_search_by_key(&value, |z| z.value) {
                    zones.insert(place, Zone { value, first_end: write.end, last_start: write.start });
                }
            }
        }
        for (at, mut zones) in cells.into_iter().enumerate().filter(|(_, z)| !z.is_empty()) {
            // The unwritten value is "written" before everything.
            if zones[0].value != UNWRITTEN {
                zones.push(Zone { value: UNWRITTEN, first_end: Timestamp(0), last_start: Timestamp(0) });
            }
            self.check_cell(at as u32, zones)?;
        }
        Ok(())
    }

    /// By cell, the zones of the values that were read.
    fn zones_seen(&self) -> Result<Vec<Vec<Zone>>, String> {
        let mut cells: Vec<Vec<Zone>> = Vec::new();
        let zero = Timestamp(0);
        for read in &self.reads {
            let end = read.first as usize + read.values.len();
            cells.resize_with(cells.len().max(end), Vec::new);
            for (at, &value) in (read.first..).zip(&read.values) {
                let (start, end) = match self.writes.get(&value) {
                    _ if value == UNWRITTEN => (zero, zero),
                    Some(w) if w.cells.contains(&at) => (w.start, w.end),
                    _ => return Err(format!("cell {at} holds value {value}, which was never written to it")),
                };
                if read.end < start {
                    return Err(format!("cell {at}: value {value} was read before it was written"));
                }
                let zones = &mut cells[at as usize];
                // Most reads see what was seen last.
                let place = zones.iter().rposition(|z| z.value == value).unwrap_or_else(|| {
                    zones.push(Zone { value, first_end: end, last_start: start });
                    zones.len() - 1
                });
                let zone = &mut zones[place];
                zone.first_end = zone.first_end.min(read.end);
                zone.last_start = zone.last_start.max(read.start);
            }
        }
        Ok(cells)
    }

    fn check_cell(&self, at: u32, zones: Vec<Zone>) -> Result<(), String> {
        let (mut forward, backward): (Vec<Zone>, Vec<Zone>) =
            zones.into_iter().partition(|z| z.first_end < z.last_start);
        forward.sort_by_key(|z| z.first_end);
        for pair in forward.windows(2) {
            if pair[1].first_end < pair[0].last_start {
                return Err(self.tell(at, &pair[0], &pair[1], "both are seen across each other"));
            }
        }
        for zone in &backward {
            let behind = forward.partition_point(|f| f.first_end < zone.last_start);
            if let Some(f) = behind.checked_sub(1).map(|n| &forward[n])
                && zone.first_end < f.last_start
                && f.first_end < zone.last_start
            {
                return Err(self.tell(at, f, zone, "the second lies inside the first's life"));
            }
        }
        Ok(())
    }

    fn tell(&self, at: u32, a: &Zone, b: &Zone, why: &str) -> String {
        let mut text = format!("cell {at}: values {} and {}: {why}", a.value, b.value);
        let mut lines = Vec::new();
        for zone in [a, b] {
            if let Some(w) = self.writes.get(&zone.value) {
                lines.push((w.start, format!("{} .. {}  write {}", ms(w.start), ms(w.end), zone.value)));
            }
            for read in &self.reads {
                let index = at.checked_sub(read.first).map(|n| n as usize);
                if index.and_then(|n| read.values.get(n)) == Some(&zone.value) {
                    lines.push((
                        read.start,
                        format!("{} .. {}  read {}", ms(read.start), ms(read.end), zone.value),
                    ));
                }
            }
        }
        lines.sort();
        for (_, line) in lines.into_iter().take(12) {
            text += "\n    ";
            text += &line;
        }
        text
    }
}

fn ms(at: Timestamp) -> String {
    if at == UNKNOWN {
        "?".into()
    } else {
        format!("{:.6}", (at.0.saturating_sub(1_000_000_000)) as f64 / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(n: u64) -> Timestamp {
        Timestamp(n)
    }

    /// Writes as (value, start, end), reads as (value, start, end), all of cell 3; end 0: never ended.
    fn check(writes: &[(u64, u64, u64)], reads: &[(u64, u64, u64)]) -> Result<(), String> {
        let mut history = History::default();
        for &(value, start, end) in writes {
            history.begin_write(value, 3..4, t(start));
            if end > 0 {
                history.end_write(value, t(end));
            }
        }
        for &(value, start, end) in reads {
            history.read(3, vec![value], t(start), t(end));
        }
        history.check()
    }

    #[test]
    fn what_is_allowed_and_what_is_not() {
        assert!(check(&[(1, 10, 20), (2, 30, 40)], &[(1, 21, 25), (2, 41, 50)]).is_ok());
        assert!(check(&[(1, 10, 20)], &[(0, 21, 25)]).is_err(), "an acknowledged write is lost");
        assert!(check(&[(1, 10, 20), (2, 30, 40)], &[(1, 41, 50)]).is_err(), "stale read");
        assert!(check(&[(1, 10, 20)], &[(0, 11, 12), (1, 13, 14), (0, 15, 16)]).is_err(), "flickers");
        assert!(check(&[(1, 10, 20)], &[(0, 11, 14), (1, 12, 13)]).is_ok(), "concurrent reads");
        assert!(check(&[(1, 10, 0)], &[(0, 50, 60), (1, 70, 80)]).is_ok(), "unknown, took effect late");
        assert!(check(&[(1, 10, 0)], &[(1, 50, 60), (0, 70, 80)]).is_err(), "unknown, undone");
        assert!(check(&[], &[(9, 1, 2)]).is_err(), "never written");
        assert!(check(&[(1, 30, 40)], &[(1, 1, 2)]).is_err(), "read before written");
        assert!(check(&[(1, 10, 20), (2, 12, 18)], &[(1, 30, 40), (1, 50, 60)]).is_ok(), "either order");
        assert!(check(&[(1, 10, 20), (2, 12, 18)], &[(1, 30, 40), (2, 50, 60)]).is_err(), "but one order");
    }

    #[test]
    fn a_fenced_write_must_not_land_later() {
        let mut history = History::default();
        history.begin_write(1, 0..1, t(10));
        history.fence(t(50));
        history.read(0, vec![0], t(60), t(61));
        assert!(history.check().is_ok(), "it may never have happened");
        history.read(0, vec![1], t(70), t(71));
        assert!(history.check().is_err());
    }

    #[test]
    fn a_write_whose_holder_may_come_back_may_land_after_others_have_read() {
        let mut history = History::default();
        history.begin_write(1, 0..1, t(10));
        history.begin_write(2, 1..2, t(10));
        history.fence_others(t(50), &BTreeSet::from([1]));
        history.read(0, vec![0, 0], t(60), t(61));
        history.read(0, vec![1, 0], t(70), t(71));
        assert!(history.check().is_ok());
        history.read(0, vec![1, 2], t(80), t(81));
        assert!(history.check().is_err());
    }

    #[test]
    fn contents_tell_their_value() {
        let bytes = cell(77, 1, 9);
        assert_eq!(value_of(&bytes, 1, 9), Ok(77));
        assert!(value_of(&bytes, 1, 8).is_err() && value_of(&bytes, 2, 9).is_err());
        let mut torn = bytes;
        torn[500] ^= 1;
        assert!(value_of(&torn, 1, 9).is_err());
        assert_eq!(value_of(&[0; CELL_BYTES], 1, 9), Ok(UNWRITTEN));
    }
}
