//! Clones of chunks: what they cost, who sees what afterwards, and random work on them with crashes.

use super::*;

/// Units in use.
fn used(b: &Bench) -> u64 {
    b.store.used_bytes() / UNIT_BYTES
}

#[test]
fn a_clone_costs_nothing_until_it_differs_and_then_a_unit() {
    let mut b = Bench::new();
    let values: Vec<u8> = (0..700).map(|i| (i % 250) as u8 + 1).collect();
    for (first, values) in [(0, &values[..]), (3, &[251, 252])] {
        let ticket = b.write(1, first, values, 1 + u64::from(first));
        b.ok(ticket);
    }
    b.apply();
    let (before, original) = (used(&b), b.read(1, 0, 800).unwrap());
    let ticket = b.clone_chunk(1, 2);
    b.ok(ticket);
    assert_eq!((used(&b), b.read(2, 0, 800).unwrap()), (before, original.clone()));
    assert_eq!(b.store.chunk(ChunkId(2)), b.store.chunk(ChunkId(1)));

    // Both sides write: a block, a whole unit, and holes.
    let small = b.write(2, 20, &[9], 10);
    let large = b.write(1, 32, &[8; 16], 10);
    let hole = b.discard(2, 64, 16, 11);
    for ticket in [small, large, hole] {
        b.ok(ticket);
    }
    b.apply();
    let (mut one, mut two) = (original.clone(), original);
    two[20] = 9;
    one[32..48].fill(8);
    two[64..80].fill(0);
    let expected = |b: &mut Bench| {
        assert_eq!(b.read(1, 0, 800).unwrap(), one);
        assert_eq!(b.read(2, 0, 800).unwrap(), two);
        assert_eq!(used(b), before + 2, "a moved unit and a large write's");
    };
    expected(&mut b);
    b.check_units(0);
    let mut b = b.crash(1);
    assert_eq!(b.broken, None);
    expected(&mut b);

    // What only one of them names any more is free when it goes, and written in place before.
    let ticket = b.write(1, 64, &[7], 12);
    b.ok(ticket);
    b.apply();
    assert_eq!(used(&b), before + 2);
    b.next += 1;
    b.store.delete(&mut b.io, Ticket(b.next), ChunkId(1));
    b.ok(b.next);
    b.apply();
    assert_eq!(b.read(2, 0, 800).unwrap(), two);
    assert_eq!(used(&b), before - 1, "without the hole");
    assert!(!b.store.shares.any());
    b.check_units(0);
}

#[test]
fn what_cannot_be_cloned_is_refused() {
    let mut b = Bench::new();
    let refusal = |b: &mut Bench, from, to| {
        let ticket = b.clone_chunk(from, to);
        b.settle();
        let at = b.finished.iter().position(|f| f.0 == ticket).expect("it ended");
        b.finished.remove(at).1.unwrap_err().to_string()
    };
    assert_eq!(refusal(&mut b, 1, 2), "chunk 1 is not here");
    for chunk in [1, 2] {
        let ticket = b.write(chunk, 0, &[1], 1);
        b.ok(ticket);
    }
    assert_eq!(refusal(&mut b, 1, 2), "bad request: chunk 2 is here already");
    let ticket = b.write(1, 0, &[2], 2);
    b.ok(ticket);
}

#[test]
fn a_read_that_began_before_its_unit_moved_is_whole() {
    let mut b = Bench::new();
    let ticket = b.write(1, 0, &[5; 16], 1);
    b.ok(ticket);
    let ticket = b.clone_chunk(1, 2);
    b.ok(ticket);
    let ticket = b.write(2, 3, &[6], 2);
    b.ok(ticket);
    // A read of blocks that move is under way until their old unit would have been written into.
    let (slow, held) = b.begin_read(2, 8, 4);
    b.apply_without(&held);
    b.write(1, 9, &[7], 2);
    b.apply_without(&held);
    assert_eq!(b.result_of(slow).unwrap(), [5; 4]);
    assert_eq!(b.read(1, 8, 3).unwrap(), [5, 7, 5]);
    b.apply();
    b.apply();
    b.check_units(0);
}

#[test]
fn random_work_on_clones_with_crashes_keeps_every_acknowledged_block() {
    let (seeds, made): (u64, u64) = (seeds(), (0..seeds()).map(random_run).sum());
    assert!(made > seeds, "{made} clones in {seeds} runs");
}

/// Blocks of a chunk, and what each may hold.
type Content = BTreeMap<u32, BTreeSet<u8>>;

/// Returns how many clones were made.
fn random_run(seed: u64) -> u64 {
    let mut random = randomness(seed);
    let mut b = Bench::new();
    let mut model = Model::default();
    let (mut sequence, mut next_chunk, mut made) = (0, 10, 0);
    let mut chunks: Vec<u64> = vec![0, 1, 2];
    for life in 0..4 {
        let mut under_way = UnderWay::new();
        let mut cloning: BTreeMap<u64, (u64, Content)> = BTreeMap::new();
        for _ in 0..random(150) {
            let chunk = chunks[random(chunks.len() as u64) as usize];
            let is_quiet = under_way.values().all(|(c, ..)| *c != chunk);
            match random(12) {
                0..5 => {
                    sequence += 1;
                    change_something(&mut b, &mut random, chunk, sequence, &mut under_way, &mut model);
                }
                5 | 6 if is_quiet && b.store.chunk(ChunkId(chunk)).is_some() => {
                    let of_it = model.0.range((chunk, 0)..(chunk + 1, 0));
                    let content = of_it.map(|((_, block), values)| (*block, values.clone())).collect();
                    let ticket = b.clone_chunk(chunk, next_chunk);
                    cloning.insert(ticket, (next_chunk, content));
                    next_chunk += 1;
                }
                7 if is_quiet && cloning.is_empty() && chunks.len() > 5 => {
                    b.next += 1;
                    let ticket = b.next;
                    b.store.delete(&mut b.io, Ticket(ticket), ChunkId(chunk));
                    for _ in 0..100_000 {
                        if b.finished.iter().any(|f| f.0 == ticket) || !b.step(false) {
                            break;
                        }
                    }
                    b.ok_now(ticket);
                    model.0.retain(|(c, _), _| *c != chunk);
                    chunks.retain(|c| *c != chunk);
                }
                8 => {
                    for timer in b.io.advance(Duration::from_millis(700)) {
                        b.store.on_timer(&mut b.io, timer);
                    }
                }
                _ => {
                    for _ in 0..random(8) {
                        b.step(true);
                    }
                }
            }
            made += end_clones(&mut b, &mut cloning, &mut chunks, &mut model);
            acknowledge(&mut b, &mut under_way, &mut model, seed);
        }
        if life == 3 {
            b.settle();
            made += end_clones(&mut b, &mut cloning, &mut chunks, &mut model);
            acknowledge(&mut b, &mut under_way, &mut model, seed);
            assert!(under_way.is_empty() && cloning.is_empty(), "seed {seed}: something never ended");
        }
        b = b.crash(seed * 7 + life);
        assert_eq!(b.broken, None, "seed {seed}");
        b.check_units(seed);
        // A clone that nobody was told of is there as a whole, or not at all.
        for (_, (clone, content)) in cloning {
            if b.store.chunk(ChunkId(clone)).is_some() {
                chunks.push(clone);
                model.0.extend(content.into_iter().map(|(block, values)| ((clone, block), values)));
            }
        }
        check(&mut b, &mut model, seed);
    }
    made
}

/// Takes the clones that are made into the model; returns their number.
fn end_clones(
    b: &mut Bench,
    cloning: &mut BTreeMap<u64, (u64, Content)>,
    chunks: &mut Vec<u64>,
    model: &mut Model,
) -> u64 {
    let ended = b.finished.extract_if(.., |(ticket, _)| cloning.contains_key(ticket));
    let mut made = 0;
    for (ticket, result) in ended.collect::<Vec<_>>() {
        result.unwrap();
        let (clone, content) = cloning.remove(&ticket).expect("just seen");
        model.0.extend(content.into_iter().map(|(block, values)| ((clone, block), values)));
        chunks.push(clone);
        made += 1;
    }
    made
}
