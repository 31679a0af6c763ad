//! Linearizability of what is done with names: a directory with a few of them, made, removed, moved and looked up by several
//! threads at once.
//!
//! Just-in-time linearization (Lowe, "Testing for linearizability", 2017): going through beginnings and ends in order of time,
//! all states are kept in which the directory may be, each with the operations under way that have taken effect in it. An
//! operation must have taken effect by its end; if no state is left, no order of the operations explains what was seen.

use std::collections::HashSet;

/// Names of one directory: `0 .. NAMES`.
pub const NAMES: usize = 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Makes something new of this name.
    Make(usize),
    Remove(usize),
    Look(usize),
    /// To a name that must be free.
    Move {
        from: usize,
        to: usize,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The number of what was made; never given twice, and not 0.
    Made(u64),
    Found(u64),
    Done,
    Exists,
    Missing,
}

/// An operation that has ended. Times are nanoseconds of one clock.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Below 32; a thread does one operation at a time.
    pub thread: u32,
    pub op: Op,
    pub outcome: Outcome,
    pub start_ns: u64,
    pub end_ns: u64,
}

/// What each name is: 0 is nothing.
type Names = [u64; NAMES];

/// The names after an operation with this outcome; `None` if it can't have it there.
fn after(mut names: Names, op: Op, outcome: Outcome) -> Option<Names> {
    match (op, outcome) {
        (Op::Make(n), Outcome::Made(id)) if names[n] == 0 => names[n] = id,
        (Op::Make(n), Outcome::Exists) if names[n] != 0 => {}
        (Op::Remove(n), Outcome::Done) if names[n] != 0 => names[n] = 0,
        (Op::Look(n), Outcome::Found(id)) if names[n] == id && id != 0 => {}
        (Op::Remove(n) | Op::Look(n), Outcome::Missing) if names[n] == 0 => {}
        (Op::Move { from, .. }, Outcome::Missing) if names[from] == 0 => {}
        (Op::Move { from, to }, Outcome::Exists) if names[from] != 0 && names[to] != 0 => {}
        (Op::Move { from, to }, Outcome::Done) if names[from] != 0 && names[to] == 0 => {
            names[to] = std::mem::take(&mut names[from]);
        }
        _ => return None,
    }
    Some(names)
}

/// Checks what was done in one directory, which was empty before.
pub fn check(history: &[Entry]) -> Result<(), String> {
    // At one time beginnings stand before ends: what touches may overlap.
    let mut moments: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * history.len());
    for (number, entry) in history.iter().enumerate() {
        moments.push((entry.start_ns, false, number));
        moments.push((entry.end_ns, true, number));
    }
    moments.sort_unstable();
    let mut pending: [Option<usize>; 32] = [None; 32];
    // The names, and a bit for each thread whose operation has taken effect.
    let mut states: HashSet<(Names, u32)> = HashSet::from([([0; NAMES], 0)]);
    for (_, ends, number) in moments {
        let entry = &history[number];
        let thread = entry.thread as usize;
        if !ends {
            pending[thread] = Some(number);
            continue;
        }
        let mut new: Vec<(Names, u32)> = states.iter().copied().collect();
        while let Some((names, effective)) = new.pop() {
            for (other, operation) in pending.iter().enumerate() {
                let Some(operation) = operation.filter(|_| effective & 1 << other == 0) else { continue };
                let Entry { op, outcome, .. } = history[operation];
                if let Some(names) = after(names, op, outcome) {
                    let state = (names, effective | 1 << other);
                    if states.insert(state) {
                        new.push(state);
                    }
                }
            }
        }
        let before = std::mem::take(&mut states);
        let took_effect = before.iter().filter(|(_, effective)| effective & 1 << thread != 0);
        states = took_effect.map(|(names, effective)| (*names, effective & !(1 << thread))).collect();
        if states.is_empty() {
            let under_way: Vec<&Entry> = pending.iter().flatten().map(|n| &history[*n]).collect();
            let names: HashSet<Names> = before.iter().map(|(names, _)| *names).collect();
            return Err(format!(
                "no order explains {entry:?}: the names were one of {names:?}, under way: {under_way:?}"
            ));
        }
        pending[thread] = None;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(thread: u32, op: Op, outcome: Outcome, start_ns: u64, end_ns: u64) -> Entry {
        Entry { thread, op, outcome, start_ns, end_ns }
    }

    #[test]
    fn what_overlaps_may_have_any_order_and_what_does_not_has_one() {
        let make = |thread, outcome, start, end| entry(thread, Op::Make(0), outcome, start, end);
        let look = |thread, outcome, start, end| entry(thread, Op::Look(0), outcome, start, end);
        check(&[make(0, Outcome::Made(7), 0, 10), make(1, Outcome::Exists, 1, 2)]).unwrap();
        check(&[make(0, Outcome::Made(7), 0, 10), look(1, Outcome::Missing, 1, 2)]).unwrap();
        // Lost though acknowledged; seen and then not; made twice.
        let lost = check(&[make(0, Outcome::Made(7), 0, 1), look(1, Outcome::Missing, 2, 3)]);
        assert!(lost.unwrap_err().contains("no order explains"));
        let seen = [look(1, Outcome::Found(7), 1, 2), look(1, Outcome::Missing, 3, 4)];
        assert!(check(&[&seen[..], &[make(0, Outcome::Made(7), 0, 10)]].concat()).is_err());
        assert!(check(&[make(0, Outcome::Made(7), 0, 1), make(1, Outcome::Made(8), 2, 3)]).is_err());
    }

    #[test]
    fn moves_take_effect_at_once() {
        let there = entry(0, Op::Make(1), Outcome::Made(5), 0, 1);
        let moved = entry(0, Op::Move { from: 1, to: 2 }, Outcome::Done, 2, 10);
        let look = |name, outcome, start, end| entry(1, Op::Look(name), outcome, start, end);
        check(&[there, moved, look(1, Outcome::Found(5), 3, 4), look(2, Outcome::Found(5), 5, 6)]).unwrap();
        // Never in both places, never in none.
        let twice = [look(2, Outcome::Found(5), 3, 4), look(1, Outcome::Found(5), 5, 6)];
        assert!(check(&[&[there, moved], &twice[..]].concat()).is_err());
        let nowhere = [look(1, Outcome::Missing, 3, 4), look(2, Outcome::Missing, 5, 6)];
        assert!(check(&[&[there, moved], &nowhere[..]].concat()).is_err());
        let taken = entry(1, Op::Move { from: 1, to: 2 }, Outcome::Exists, 11, 12);
        assert!(check(&[there, moved, taken]).is_err(), "the first name is gone");
    }
}
