//! The raft log: what of it lies in memory, and how it is written to the journal.
//!
//! Invariants:
//! - [`RaftStore`] holds every entry that raft may still ask for; `first_index()` is the oldest one, and the term of
//!   the entry before it is kept;
//! - each journal record holds the hard state of its moment, so the newest record alone tells it, and the journal may
//!   be cut anywhere in front of the first record with an entry that no snapshot covers.
//!
//! Replay ([`Replay`]) needs no marker for an installed snapshot. Entries left in the journal from before it are told
//! apart by the term at the snapshot's index: raft only replaces a log by a snapshot when that term differs or the log
//! ends earlier.
//!
//! Journal record, little endian (the journal itself adds length and CRC):
//! | bytes | field |
//! |---|---|
//! | 0..2 | version, 1 |
//! | 2..4 | 0 |
//! | 4..8 | number of entries |
//! | 8..16, 16..24, 24..32 | hard state: term, vote, commit |
//! | then per entry | length u32, the raft crate's protobuf `Entry` |

use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use std::cell::Cell;
use std::collections::VecDeque;

pub const RECORD_VERSION: u16 = 1;
pub const RECORD_HEAD_BYTES: usize = 32;
/// Largest command that may be proposed, bytes: with it a raft message stays below the limit of a frame's metadata.
pub const MAX_COMMAND_BYTES: usize = 2 << 20;

/// Encodes what one raft `Ready` wants to be durable.
pub fn encode_record(hard: &HardState, entries: &[Entry]) -> Vec<u8> {
    let bodies: Vec<Vec<u8>> =
        entries.iter().map(|e| e.write_to_bytes().expect("an entry always serialises")).collect();
    let mut out = Vec::with_capacity(RECORD_HEAD_BYTES + bodies.iter().map(|b| 4 + b.len()).sum::<usize>());
    out.extend(RECORD_VERSION.to_le_bytes());
    out.extend([0, 0]);
    out.extend((entries.len() as u32).to_le_bytes());
    out.extend(hard.term.to_le_bytes());
    out.extend(hard.vote.to_le_bytes());
    out.extend(hard.commit.to_le_bytes());
    for body in &bodies {
        out.extend((body.len() as u32).to_le_bytes());
        out.extend_from_slice(body);
    }
    out
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// Decodes a journal record, or says what is wrong with it.
pub fn decode_record(bytes: &[u8]) -> Result<(HardState, Vec<Entry>), String> {
    if bytes.len() < RECORD_HEAD_BYTES {
        return Err(format!("raft record of {} bytes, at least {RECORD_HEAD_BYTES} expected", bytes.len()));
    }
    let version = u16::from_le_bytes([bytes[0], bytes[1]]);
    if version != RECORD_VERSION {
        return Err(format!(
            "raft record version {version}; this program understands {RECORD_VERSION}: start a newer pstorage-mdsd"
        ));
    }
    let mut hard = HardState::default();
    hard.set_term(u64_at(bytes, 8));
    hard.set_vote(u64_at(bytes, 16));
    hard.set_commit(u64_at(bytes, 24));
    let count = u32_at(bytes, 4);
    let mut rest = &bytes[RECORD_HEAD_BYTES..];
    let mut entries: Vec<Entry> = Vec::new();
    for number in 0..count {
        if rest.len() < 4 || rest.len() - 4 < u32_at(rest, 0) as usize {
            return Err(format!("raft record ends within entry {number} of {count}"));
        }
        let (body, behind) = rest[4..].split_at(u32_at(rest, 0) as usize);
        let entry = Entry::parse_from_bytes(body).map_err(|e| format!("raft entry {number}: {e}"))?;
        if entries.last().is_some_and(|before| before.index + 1 != entry.index) || entry.index == 0 {
            return Err(format!("raft entry {number} has index {} out of order", entry.index));
        }
        entries.push(entry);
        rest = behind;
    }
    if !rest.is_empty() {
        return Err(format!("{} bytes behind the last raft entry", rest.len()));
    }
    Ok((hard, entries))
}

/// The log as raft sees it.
pub struct RaftStore {
    hard: HardState,
    /// Members as of the snapshot the node started from; raft asks once, at its start.
    initial_conf: ConfState,
    entries: VecDeque<Entry>,
    /// Index and term of the entry before the first one held.
    before: (u64, u64),
    /// What [`Storage::snapshot`] answers: made by the node when `wanted` is set.
    offered: Option<SnapshotMetadata>,
    wanted: Cell<bool>,
}

impl RaftStore {
    pub fn hard_state(&self) -> &HardState {
        &self.hard
    }

    pub fn set_hard_state(&mut self, hard: HardState) {
        self.hard = hard;
    }

    pub fn first(&self) -> u64 {
        self.before.0 + 1
    }

    pub fn last(&self) -> u64 {
        self.before.0 + self.entries.len() as u64
    }

    /// Appends, replacing what stands at these indexes and behind.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(first.index >= self.first(), "entry {} replaces one in a snapshot", first.index);
        assert!(first.index <= self.last() + 1, "entry {} leaves a gap behind {}", first.index, self.last());
        self.entries.truncate((first.index - self.first()) as usize);
        self.entries.extend(entries.iter().cloned());
    }

    /// Forgets entries up to and including `index`, which must have been applied.
    pub fn compact(&mut self, index: u64) {
        while self.before.0 < index {
            let Some(entry) = self.entries.pop_front() else { break };
            self.before = (entry.index, entry.term);
        }
    }

    /// Replaces the whole log by a snapshot.
    pub fn install(&mut self, meta: &SnapshotMetadata) {
        self.entries.clear();
        self.before = (meta.index, meta.term);
        self.hard.term = self.hard.term.max(meta.term);
        self.hard.commit = self.hard.commit.max(meta.index);
        self.offered = None;
    }

    pub fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.before.0 {
            return Some(self.before.1);
        }
        let at = index.checked_sub(self.first())?;
        self.entries.get(at as usize).map(|e| e.term)
    }

    /// Whether raft asked for a snapshot since the last call.
    pub fn take_wanted(&mut self) -> bool {
        self.wanted.replace(false)
    }

    /// A snapshot that raft may send; `None` takes it back. False if that is as it was.
    pub fn offer(&mut self, meta: Option<SnapshotMetadata>) -> bool {
        std::mem::replace(&mut self.offered, meta.clone()) != meta
    }
}

impl Storage for RaftStore {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.hard.clone(), conf_state: self.initial_conf.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let limit = max_size.into().unwrap_or(u64::MAX);
        let range = (low - self.first()) as usize..(high - self.first()) as usize;
        let mut size = 0u64;
        let mut out = Vec::new();
        for entry in self.entries.range(range) {
            size += u64::from(entry.compute_size());
            if !out.is_empty() && size > limit {
                break;
            }
            out.push(entry.clone());
        }
        Ok(out)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        let missing = if index < self.before.0 { StorageError::Compacted } else { StorageError::Unavailable };
        self.term_of(index).ok_or(raft::Error::Store(missing))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        // One made before the receiver was added is refused by it: it would ask for ever.
        let names = |conf: &ConfState| conf.voters.contains(&to) || conf.learners.contains(&to);
        match &self.offered {
            // Entries behind it must still be there, or the receiver would need another one at once.
            Some(meta)
                if meta.index >= request_index
                    && meta.index + 1 >= self.first()
                    && names(meta.get_conf_state()) =>
            {
                let mut snapshot = Snapshot::default();
                snapshot.set_metadata(meta.clone());
                Ok(snapshot)
            }
            _ => {
                self.wanted.set(true);
                Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}

/// Rebuilds the log from the journal's records, in their order.
#[derive(Default)]
pub struct Replay {
    hard: HardState,
    entries: VecDeque<Entry>,
}

/// What a server starts from: its snapshot file, or for a server of the first quorum an agreed beginning.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Base {
    pub index: u64,
    pub term: u64,
    pub conf: ConfState,
}

impl Base {
    /// The beginning all servers of the first quorum share: entry 1 of term 1 is the agreement on who they are. A
    /// server that joins later therefore can't rebuild the log from nothing and gets a snapshot with the members.
    pub fn first_quorum(mut ids: Vec<u64>) -> Base {
        ids.sort_unstable();
        Base { index: 1, term: 1, conf: ConfState::from((ids, Vec::new())) }
    }
}

impl Replay {
    pub fn record(&mut self, bytes: &[u8]) -> Result<(), String> {
        let (hard, entries) = decode_record(bytes)?;
        self.hard = hard;
        if let Some(first) = entries.first() {
            let held = self.entries.front().map_or(first.index, |e| e.index);
            let next = held + self.entries.len() as u64;
            if first.index > next || first.index < held {
                // A snapshot lies between: `finish` checks that it does.
                self.entries.clear();
            } else {
                self.entries.truncate((first.index - held) as usize);
            }
            self.entries.extend(entries);
        }
        Ok(())
    }

    /// The log behind `base`.
    pub fn finish(mut self, base: &Base) -> Result<RaftStore, String> {
        let stale = self.entries.iter().any(|e| e.index == base.index && e.term != base.term);
        self.entries.retain(|e| e.index > base.index && !stale);
        if let Some(first) = self.entries.front()
            && first.index != base.index + 1
        {
            return Err(format!(
                "the snapshot ends at entry {} and the journal begins at entry {}: entries between them are missing",
                base.index, first.index
            ));
        }
        if self.hard.term < base.term {
            self.hard.term = base.term;
            self.hard.vote = 0;
        }
        let last = base.index + self.entries.len() as u64;
        self.hard.commit = self.hard.commit.clamp(base.index, last);
        Ok(RaftStore {
            hard: self.hard,
            initial_conf: base.conf.clone(),
            entries: self.entries,
            before: (base.index, base.term),
            offered: None,
            wanted: Cell::new(false),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        let mut e = Entry::default();
        e.set_index(index);
        e.set_term(term);
        e.set_data(vec![index as u8; 3].into());
        e
    }

    fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
        range.map(|i| entry(i, term)).collect()
    }

    fn hard(term: u64, vote: u64, commit: u64) -> HardState {
        let mut h = HardState::default();
        h.set_term(term);
        h.set_vote(vote);
        h.set_commit(commit);
        h
    }

    fn base(index: u64, term: u64) -> Base {
        Base { index, term, conf: ConfState::from((vec![1], vec![])) }
    }

    fn replay(records: &[Vec<u8>], base: &Base) -> Result<RaftStore, String> {
        let mut r = Replay::default();
        for bytes in records {
            r.record(bytes)?;
        }
        r.finish(base)
    }

    #[test]
    fn record_bytes_are_pinned() {
        let bytes = encode_record(&hard(3, 2, 1), &[entry(5, 3)]);
        #[rustfmt::skip]
        let golden = [
            1, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
            9, 0, 0, 0, 0x10, 3, 0x18, 5, 0x22, 3, 5, 5, 5,
        ];
        assert_eq!(bytes, golden);
        assert_eq!(decode_record(&bytes).unwrap(), (hard(3, 2, 1), vec![entry(5, 3)]));
    }

    #[test]
    fn damaged_records_are_refused() {
        let bytes = encode_record(&hard(3, 2, 1), &entries(5..=6, 3));
        for cut in 0..bytes.len() {
            assert!(decode_record(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut newer = bytes.clone();
        newer[0] = 9;
        assert!(decode_record(&newer).unwrap_err().contains("version 9"));
    }

    #[test]
    fn a_later_record_replaces_the_tail() {
        let records = [
            encode_record(&hard(1, 1, 0), &entries(2..=6, 1)),
            encode_record(&hard(2, 0, 3), &entries(4..=5, 2)),
            encode_record(&hard(3, 1, 4), &[]),
        ];
        let store = replay(&records, &base(1, 1)).unwrap();
        assert_eq!((store.first(), store.last()), (2, 5));
        assert_eq!((store.term_of(3), store.term_of(4), store.term_of(6)), (Some(1), Some(2), None));
        assert_eq!(*store.hard_state(), hard(3, 1, 4));
    }

    #[test]
    fn a_snapshot_covers_what_it_covers() {
        let records = [encode_record(&hard(1, 1, 5), &entries(2..=6, 1))];
        let store = replay(&records, &base(4, 1)).unwrap();
        assert_eq!((store.first(), store.last()), (5, 6));
        // Installed from another server: its entry 4 is not ours, so nothing behind it is either.
        let store = replay(&records, &base(4, 2)).unwrap();
        assert_eq!((store.first(), store.last()), (5, 4));
        assert_eq!(*store.hard_state(), hard(2, 0, 4));
        // Installed beyond our log, then more entries.
        let mut records = records.to_vec();
        records.push(encode_record(&hard(2, 0, 50), &entries(51..=52, 2)));
        let store = replay(&records, &base(50, 2)).unwrap();
        assert_eq!((store.first(), store.last()), (51, 52));
        assert!(replay(&records, &base(40, 2)).is_err_and(|e| e.contains("missing")));
    }

    #[test]
    fn store_answers_raft() {
        let mut store = replay(&[encode_record(&hard(1, 1, 5), &entries(2..=6, 1))], &base(1, 1)).unwrap();
        let get =
            |s: &RaftStore, low, high, max: u64| s.entries(low, high, max, GetEntriesContext::empty(false));
        assert_eq!(get(&store, 2, 7, u64::MAX).unwrap().len(), 5);
        assert_eq!(get(&store, 2, 7, 0).unwrap().len(), 1, "always at least one");
        store.compact(4);
        assert!(get(&store, 4, 7, 0).is_err());
        assert_eq!((store.term_of(4), store.first(), store.last()), (Some(1), 5, 6));
        assert!(store.snapshot(0, 2).is_err() && store.take_wanted() && !store.take_wanted());
        let mut meta = SnapshotMetadata::default();
        meta.set_index(5);
        meta.set_conf_state(ConfState::from((vec![1], vec![2])));
        store.offer(Some(meta));
        assert_eq!(store.snapshot(0, 2).unwrap().get_metadata().index, 5);
        assert!(!store.take_wanted() && store.snapshot(6, 2).is_err() && store.take_wanted());
        assert!(store.snapshot(0, 3).is_err() && store.take_wanted(), "made before server 3 was added");
    }
}
