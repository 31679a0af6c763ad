//! A command that needs the medium: what to do there, one thing after the other, and the answer when all is done.

use super::locks::JobId;
use super::reservation::Reservations;
use super::sense::Sense;
use super::{BlockSize, Reply};
use shards::Buf;
use std::collections::VecDeque;

/// What is asked of the medium, in bytes.
#[derive(Clone, PartialEq, Debug)]
pub enum Medium {
    /// Exactly so many bytes.
    Read { offset_bytes: u64, length_bytes: usize },
    /// Durable when answered.
    Write { offset_bytes: u64, data: Buf },
    /// Zeros that take no room.
    Zero { offset_bytes: u64, length_bytes: u64 },
    /// All that was answered is durable.
    Flush,
    /// Where data, or a hole, begins at or behind the offset.
    Seek { offset_bytes: u64, hole: bool },
    /// Store the reservations.
    Keep(Box<Reservations>),
}

/// What the medium answers.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    Done,
    Data(Buf),
    /// `None`: not before the end.
    Position(Option<u64>),
}

/// Why the medium did not do it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    NoSpace,
    /// Another gateway serves the unit now.
    Lost,
    Broken,
}

pub enum Step {
    Do(Medium),
    Done(Reply),
}

/// What becomes of an answer.
#[derive(Debug)]
pub(super) enum Then {
    Next,
    /// It is the answer of the command.
    Return,
    /// It must be what the initiator sent: all of it, or each block.
    Equals(Buf),
    EachEquals(Buf),
    /// Whether the block is mapped, and up to where it is alike.
    Status {
        lba: u64,
        block: BlockSize,
        blocks: u64,
    },
    StatusEnd {
        lba: u64,
        block: BlockSize,
        blocks: u64,
    },
}

/// A command under way.
#[derive(Debug)]
pub struct Job {
    pub id: JobId,
    pub(super) ops: VecDeque<(Medium, Then)>,
    /// What is asked now.
    pub(super) current: Option<Then>,
    pub(super) is_write: bool,
    /// Data that the command takes from the initiator.
    pub(super) taken_bytes: u64,
    pub(super) room_bytes: usize,
    pub(super) descriptor_sense: bool,
}

impl Job {
    fn fail(&self, sense: Sense) -> Step {
        Step::Done(Reply::check(sense, self.descriptor_sense))
    }

    /// The first step.
    pub fn start(&mut self) -> Step {
        self.go_on()
    }

    fn go_on(&mut self) -> Step {
        match self.ops.pop_front() {
            Some((medium, then)) => {
                self.current = Some(then);
                Step::Do(medium)
            }
            None => Step::Done(Reply { taken_bytes: self.taken_bytes, ..Reply::good(Buf::empty()) }),
        }
    }

    /// Goes on with what the medium says.
    pub fn answered(&mut self, outcome: Result<Answer, Failure>) -> Step {
        let answer = match outcome {
            Ok(answer) => answer,
            Err(Failure::NoSpace) => return self.fail(Sense::NO_SPACE),
            Err(Failure::Lost) => return self.fail(Sense::PORT_UNAVAILABLE),
            Err(Failure::Broken) if self.is_write => return self.fail(Sense::WRITE_FAILED),
            Err(Failure::Broken) => return self.fail(Sense::READ_FAILED),
        };
        match (self.current.take(), answer) {
            (Some(Then::Next), _) => self.go_on(),
            (Some(Then::Return), Answer::Data(data)) => Step::Done(Reply::good(data)),
            (Some(Then::Equals(wanted)), Answer::Data(data)) => match differs(&data, &wanted) {
                Some(at) => self.fail(Sense::miscompare(at as u64)),
                None => self.go_on(),
            },
            (Some(Then::EachEquals(wanted)), Answer::Data(data)) => {
                let mut blocks = data.chunks(wanted.len().max(1)).enumerate();
                let first =
                    blocks.find_map(|(n, block)| differs(block, &wanted).map(|at| n * wanted.len() + at));
                match first {
                    Some(at) => self.fail(Sense::miscompare(at as u64)),
                    None => self.go_on(),
                }
            }
            (Some(Then::Status { lba, block, blocks }), Answer::Position(data)) => {
                let begin_bytes = lba * block.bytes_u64();
                match data {
                    Some(at) if at <= begin_bytes => {
                        self.current = Some(Then::StatusEnd { lba, block, blocks });
                        Step::Do(Medium::Seek { offset_bytes: begin_bytes, hole: true })
                    }
                    // A block with any data counts as mapped.
                    at => self.status(lba, at.map_or(blocks, |at| at / block.bytes_u64()), true),
                }
            }
            (Some(Then::StatusEnd { lba, block, blocks }), Answer::Position(hole)) => {
                self.status(lba, hole.map_or(blocks, |at| at.div_ceil(block.bytes_u64())), false)
            }
            _ => self.fail(Sense::INTERNAL),
        }
    }

    /// The answer to GET LBA STATUS: one descriptor.
    fn status(&self, lba: u64, end: u64, is_hole: bool) -> Step {
        let (end, is_hole) = if end <= lba { (lba + 1, false) } else { (end, is_hole) };
        let count = u32::try_from(end - lba).unwrap_or(u32::MAX);
        let mut out = vec![0, 0, 0, 20, 0, 0, 0, 0];
        out.extend(lba.to_be_bytes());
        out.extend(count.to_be_bytes());
        out.extend([u8::from(is_hole), 0, 0, 0]);
        out.truncate(self.room_bytes);
        Step::Done(Reply::good(Buf::metadata(&out)))
    }
}

/// Where the first byte is that differs, or is missing.
fn differs(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    Some(a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len())))
}
