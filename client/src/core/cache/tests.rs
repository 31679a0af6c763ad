//! What comes in, what goes out, and that nothing stale is ever found.

use super::*;

const FILE: FileId = FileId(9);
const L: fn(u64) -> LeaseId = LeaseId;

fn range(block: u64) -> Range<u64> {
    block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES
}

fn sums(n: u32) -> Vec<BlockCrc> {
    (0..16).map(|i| BlockCrc(n * 16 + i + 1)).collect()
}

/// A file opened for reading under version 1, lease 2.
fn open() -> ReadCache {
    let mut cache = ReadCache::new(4, 1);
    cache.granted(FILE, L(1), L(1), L(2));
    cache
}

fn fill(cache: &mut ReadCache, block: u64) -> bool {
    let Some(fill) = cache.fill_begins(FILE, block) else { return false };
    let Some(slot) = cache.fill_ended(fill, Some(sums(block as u32))) else { return false };
    assert!(cache.find(FILE, &range(block)).is_none(), "not before it is written");
    cache.written(slot, true);
    true
}

fn has(cache: &ReadCache, block: u64) -> bool {
    cache.find(FILE, &range(block)).is_some()
}

#[test]
fn what_came_in_is_found_by_pieces_with_its_checksums() {
    let mut cache = open();
    assert!(fill(&mut cache, 3) && fill(&mut cache, 4));
    let bytes = 4 * BLOCK_BYTES - 8192..4 * BLOCK_BYTES + 4096;
    let pieces = cache.look_up(FILE, bytes.clone()).unwrap();
    assert_eq!((pieces[0].from, pieces[0].len), (14 * 4096, 8192));
    assert_eq!((pieces[1].from, pieces[1].len), (0, 4096));
    assert_eq!(pieces[0].sums, sums(3)[14..]);
    assert!(cache.look_up(FILE, 2 * BLOCK_BYTES..4 * BLOCK_BYTES).is_none(), "a part is missing");
    assert!(cache.look_up(FileId(8), bytes).is_none());
    assert_eq!((cache.counts.hits, cache.counts.misses, cache.counts.hit_bytes), (1, 2, 12288));
    assert!(cache.still_holds(&pieces));
    cache.failed(&pieces, Some(&pieces[0]));
    assert_eq!((cache.counts.hits, cache.counts.checksum_errors), (0, 1));
    assert!(!cache.still_holds(&pieces) && !has(&cache, 3) && has(&cache, 4));
}

#[test]
fn a_version_that_moved_on_without_this_client_empties_the_file() {
    let mut cache = open();
    fill(&mut cache, 0);
    cache.closed(FILE);
    cache.granted(FILE, L(1), L(1), L(5));
    assert!(has(&cache, 0), "nobody could write since");
    // Its own write lease: what was before is still true, and it stays so for the next reader.
    cache.closed(FILE);
    cache.granted(FILE, L(1), L(6), L(6));
    assert!(has(&cache, 0));
    cache.closed(FILE);
    cache.granted(FILE, L(6), L(6), L(7));
    assert!(has(&cache, 0));
    // Somebody else had 8, while this client's session was away.
    let under_way = cache.fill_begins(FILE, 1).unwrap();
    cache.granted(FILE, L(8), L(8), L(9));
    assert!(!has(&cache, 0));
    assert_eq!(cache.fill_ended(under_way, Some(sums(1))), None, "read under an older version");
    assert!(fill(&mut cache, 0));
    cache.lost(FILE);
    assert!(!has(&cache, 0));
    assert!(!fill(&mut cache, 0), "no lease is held");
}

#[test]
fn own_changes_throw_out_what_they_touch_and_nothing_comes_in_meanwhile() {
    let mut cache = open();
    (0..3).for_each(|b| assert!(fill(&mut cache, b)));
    let before = cache.fill_begins(FILE, 3).unwrap();
    let change = cache.change_begins(FILE, BLOCK_BYTES + 4096..BLOCK_BYTES + 8192);
    assert!(has(&cache, 0) && !has(&cache, 1) && has(&cache, 2));
    assert!(cache.fill_begins(FILE, 1).is_none(), "under change");
    cache.change_ended(FILE, change, true);
    assert!(cache.fill_ended(before, Some(sums(3))).is_some(), "another block");
    // Began before the change, ended after it: what was read may be either.
    let across = cache.fill_begins(FILE, 1).unwrap();
    let change = cache.change_begins(FILE, range(1));
    cache.change_ended(FILE, change, true);
    assert_eq!(cache.fill_ended(across, Some(sums(1))), None);
    assert!(fill(&mut cache, 1));
    // Cutting the file.
    let cut = cache.change_begins(FILE, 2 * BLOCK_BYTES + 1..u64::MAX);
    cache.change_ended(FILE, cut, true);
    assert!(has(&cache, 1) && !has(&cache, 2));
}

#[test]
fn after_a_change_of_unknown_outcome_nothing_comes_in_under_the_same_lease() {
    let mut cache = ReadCache::new(4, 1);
    cache.granted(FILE, L(1), L(2), L(2));
    fill(&mut cache, 0);
    let change = cache.change_begins(FILE, range(3));
    cache.change_ended(FILE, change, false);
    assert!(!has(&cache, 0) && !fill(&mut cache, 0));
    cache.closed(FILE);
    cache.granted(FILE, L(2), L(2), L(2));
    assert!(!fill(&mut cache, 0), "still the same lease");
    cache.closed(FILE);
    cache.granted(FILE, L(2), L(2), L(3));
    assert!(fill(&mut cache, 0));
    assert!(cache.entries().iter().flatten().count() == 1);
}

#[test]
fn a_slot_being_written_is_not_given_away() {
    let mut cache = ReadCache::new(1, 1);
    cache.granted(FILE, L(1), L(1), L(2));
    let one = cache.fill_begins(FILE, 0).unwrap();
    let slot = cache.fill_ended(one, Some(sums(0))).unwrap();
    let change = cache.change_begins(FILE, range(0));
    cache.change_ended(FILE, change, true);
    let two = cache.fill_begins(FILE, 1).unwrap();
    assert_eq!(cache.fill_ended(two, Some(sums(1))), None, "the only slot is on its way to the device");
    cache.written(slot, true);
    assert!(!has(&cache, 0) && fill(&mut cache, 1));
    // A block the device refused is not there.
    let change = cache.change_begins(FILE, range(1));
    cache.change_ended(FILE, change, true);
    let three = cache.fill_begins(FILE, 2).unwrap();
    let slot = cache.fill_ended(three, Some(sums(2))).unwrap();
    cache.written(slot, false);
    assert!(!has(&cache, 2) && fill(&mut cache, 2));
}

#[test]
fn the_least_used_goes_when_the_cache_is_full() {
    let mut cache = open();
    (0..4).for_each(|b| assert!(fill(&mut cache, b)));
    for block in [0, 1, 3] {
        cache.look_up(FILE, range(block)).unwrap();
    }
    assert!(fill(&mut cache, 7));
    assert!(!has(&cache, 2) && has(&cache, 0) && has(&cache, 1) && has(&cache, 3));
    assert_eq!((cache.counts.evicted, cache.used_slots()), (1, 4));
}

#[test]
fn a_block_that_came_in_at_the_end_of_the_file_is_read_anew_when_the_file_grows() {
    let mut cache = open();
    let id = cache.fill_begins(FILE, 0).unwrap();
    let slot = cache.fill_ended(id, Some(sums(0)[..2].to_vec())).unwrap();
    cache.written(slot, true);
    assert!(cache.look_up(FILE, 0..8192).is_some());
    assert!(cache.look_up(FILE, 0..12288).is_none());
    assert!(fill(&mut cache, 0) && has(&cache, 0));
}

#[test]
fn a_table_brings_back_what_settled_and_versions_judge_it() {
    let mut cache = open();
    (0..3).for_each(|b| assert!(fill(&mut cache, b)));
    let entries = cache.entries();
    let mut again = ReadCache::new(4, 1);
    again.restore(entries.clone());
    assert_eq!(again.used_slots(), 3);
    assert!(has(&again, 2));
    again.granted(FILE, L(1), L(1), L(7));
    assert!(has(&again, 2) && fill(&mut again, 5));
    let mut stale = ReadCache::new(4, 1);
    stale.restore(entries.clone());
    stale.granted(FILE, L(6), L(6), L(7));
    assert!(!has(&stale, 2));
    assert_eq!(stale.used_slots(), 0);
    // A file that is in use already keeps what it knows.
    let mut late = ReadCache::new(4, 1);
    late.granted(FILE, L(1), L(3), L(3));
    late.restore(entries);
    assert!(!has(&late, 2));
}
