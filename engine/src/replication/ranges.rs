//! Ranges of blocks.

use std::ops::Range;

/// Blocks copied to a learner, or levelled, in one go.
const COPY_BLOCKS: u32 = 64;

pub(super) fn overlaps(a: &Range<u32>, b: &Range<u32>) -> bool {
    a.start < b.end && b.start < a.end
}

/// The ranges, sorted and disjoint.
pub(super) fn merged(mut ranges: Vec<Range<u32>>) -> Vec<Range<u32>> {
    ranges.sort_by_key(|r| r.start);
    let mut merged: Vec<Range<u32>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// What of `ranges` lies inside `held`, and what outside; both sorted and disjoint, as the results are.
pub(super) fn split_held(ranges: &[Range<u32>], held: &[Range<u32>]) -> (Vec<Range<u32>>, Vec<Range<u32>>) {
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for range in ranges {
        let mut at = range.start;
        for part in held.iter().filter(|h| overlaps(h, range)) {
            let (start, end) = (part.start.max(range.start), part.end.min(range.end));
            outside.extend((at < start).then_some(at..start));
            inside.push(start..end);
            at = end;
        }
        outside.extend((at < range.end).then_some(at..range.end));
    }
    (inside, outside)
}

/// Blocks in disjoint ranges.
pub(super) fn count(ranges: &[Range<u32>]) -> u32 {
    ranges.iter().map(|r| r.end - r.start).sum()
}

/// Pieces of at most [`COPY_BLOCKS`] that cover sorted disjoint ranges.
pub(super) fn pieces(ranges: Vec<Range<u32>>) -> Vec<Range<u32>> {
    let cut = |r: Range<u32>| {
        let end = r.end;
        r.step_by(COPY_BLOCKS as usize).map(move |start| start..(start + COPY_BLOCKS).min(end))
    };
    ranges.into_iter().flat_map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_replica_holds_is_copied_and_its_holes_are_cleared() {
        let ranges = merged(vec![40..200, 0..4, 2..10, 300..310]);
        assert_eq!(ranges, [0..10, 40..200, 300..310]);
        let (held, holes) = split_held(&ranges, &[0..16, 48..64, 128..1000]);
        assert_eq!(held, [0..10, 48..64, 128..200, 300..310]);
        assert_eq!(holes, [40..48, 64..128]);
        assert_eq!(pieces(held), [0..10, 48..64, 128..192, 192..200, 300..310]);
    }
}
