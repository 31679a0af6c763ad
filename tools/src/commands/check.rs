//! `check [--repair]`: compares all in-sync replicas of all chunks, block by block, reading the data.

use super::stat::all_chunks;
use crate::mds_link::MdsLink;
use crate::{Context, Outcome};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::time::Duration;
use wire::mds_api::{ChunkMap, MdsRequest};
use wire::{BlockCrc, CsId, DataMeta, Frame, Head, Kind, Replica, Role, Status, flags};

/// Blocks asked for at once.
const WINDOW: u32 = 4096;
/// Blocks of the largest chunk: the map does not say how large a chunk is, and behind its end all is hole.
const MOST_BLOCKS: u32 = (256 << 20) / wire::BLOCK_BYTES as u32;
/// A chunk in use may differ for a moment: look again before complaining.
const TRIES: u32 = 5;

/// What is wrong with one chunk.
struct Finding {
    text: String,
    bad: Vec<CsId>,
}

pub fn check(context: &Context, repair: bool) -> Outcome {
    let mut link = context.link()?;
    let chunks = all_chunks(&mut link)?;
    let bar = ProgressBar::new(chunks.len() as u64);
    bar.set_style(
        ProgressStyle::with_template("{bar:40} {pos}/{len} chunks, {eta} left").expect("a valid template"),
    );
    let (mut wrong, mut unreadable) = (0, 0);
    let mut findings = Vec::new();
    for map in &chunks {
        match check_chunk(&mut link, map) {
            Ok(None) => {}
            Ok(Some(finding)) => {
                wrong += 1;
                tell(&bar, map, &finding.text);
                findings
                    .push(serde_json::json!({"chunk": map.chunk, "bad": finding.bad, "what": finding.text}));
                for cs in finding.bad.iter().filter(|_| repair) {
                    let request =
                        MdsRequest::ReportBadReplica { chunk: map.chunk, epoch: map.epoch, cs: *cs };
                    match link.ask(&request) {
                        Ok(_) => tell(&bar, map, &format!("CS#{cs} will be filled again")),
                        Err(e) => tell(&bar, map, &e),
                    }
                }
            }
            Err(why) => {
                unreadable += 1;
                tell(&bar, map, &format!("could not be checked: {why}"));
                findings.push(serde_json::json!({"chunk": map.chunk, "unchecked": why}));
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let behind = chunks.iter().filter(|m| m.grant.in_sync().count() < m.grant.replicas.len()).count();
    if context.json {
        crate::print_json(&serde_json::json!({
            "chunks": chunks.len(), "damaged": wrong, "unchecked": unreadable, "behind": behind,
            "findings": findings,
        }))?;
    } else {
        println!(
            "{} chunks checked: {wrong} with differing or damaged replicas, {unreadable} not checked, {behind} with \
             replicas still being caught up",
            chunks.len()
        );
    }
    match (wrong, unreadable) {
        (0, 0) => Ok(()),
        (0, _) => {
            Err("some chunks could not be checked: see above; check again when all chunk servers run".into())
        }
        _ if repair => Err("damage was found; run check again when the replicas are filled".into()),
        _ => Err("damage was found; 'check --repair' has the damaged replicas filled again".into()),
    }
}

/// A line about a chunk, above the progress bar if there is one.
fn tell(bar: &ProgressBar, map: &ChunkMap, what: &str) {
    bar.suspend(|| eprintln!("chunk {}: {what}", map.chunk));
}

fn check_chunk(link: &mut MdsLink, map: &ChunkMap) -> Outcome<Option<Finding>> {
    let mut map = map.clone();
    let mut last = Ok(None);
    for attempt in 0..TRIES {
        if attempt > 0 {
            std::thread::sleep(Duration::from_millis(200));
            let after = wire::ChunkId(map.chunk.0 - 1);
            if let Ok(wire::mds_api::MdsReply::Maps { chunks }) =
                link.ask(&MdsRequest::ListChunks { after, limit: 1 })
            {
                match chunks.into_iter().next().filter(|m| m.chunk == map.chunk) {
                    Some(newer) => map = newer,
                    None => return Ok(None), // Deleted meanwhile.
                }
            }
        }
        last = compare(link, &map);
        if matches!(last, Ok(None)) {
            break;
        }
    }
    last
}

fn compare(link: &mut MdsLink, map: &ChunkMap) -> Outcome<Option<Finding>> {
    let in_sync: Vec<&Replica> = map.grant.replicas.iter().filter(|r| r.role == Role::InSync).collect();
    for first in (0..MOST_BLOCKS).step_by(WINDOW as usize) {
        let mut answers: BTreeMap<CsId, Option<Vec<BlockCrc>>> = BTreeMap::new();
        for replica in &in_sync {
            answers.insert(replica.cs, sums(link, map, replica, first)?);
        }
        let damaged: Vec<CsId> = answers.iter().filter(|(_, a)| a.is_none()).map(|(cs, _)| *cs).collect();
        if !damaged.is_empty() {
            let text = format!("data does not match its checksums on {damaged:?}");
            return Ok(Some(Finding { text, bad: damaged }));
        }
        let sums: Vec<(CsId, Vec<BlockCrc>)> =
            answers.into_iter().filter_map(|(cs, a)| Some((cs, a?))).collect();
        let agree = |a: &[BlockCrc]| sums.iter().filter(|(_, b)| b[..] == *a).count();
        let Some((_, best)) = sums.iter().max_by_key(|(_, s)| agree(s)) else { return Ok(None) };
        let bad: Vec<CsId> = sums.iter().filter(|(_, s)| s != best).map(|(cs, _)| *cs).collect();
        if !bad.is_empty() {
            let other = &sums.iter().find(|(_, s)| s != best).expect("one differs").1;
            let at = best.iter().zip(other).position(|(a, b)| a != b).unwrap_or(0) as u32 + first;
            let text = format!("replicas on {bad:?} differ from the others, first at block {at}");
            return Ok(Some(Finding { text, bad }));
        }
    }
    Ok(None)
}

/// Block checksums of a replica, read from its disk; `None` when they don't match the data.
fn sums(link: &mut MdsLink, map: &ChunkMap, replica: &Replica, first: u32) -> Outcome<Option<Vec<BlockCrc>>> {
    let mut head = Head::new(Kind::Sums, 1);
    head.chunk = map.chunk;
    head.epoch = map.epoch;
    head.offset_bytes = first * wire::BLOCK_BYTES as u32;
    head.length_bytes = WINDOW * wire::BLOCK_BYTES as u32;
    head.flags = flags::DEEP;
    let answer = link.ask_shard(replica.addr, &Frame::bare(head))?;
    match answer.head.status {
        Status::Ok => Ok(Some(DataMeta::decode(&answer.meta)?.crcs.into_iter().map(zero_is_hole).collect())),
        // Placed and never written.
        Status::UnknownChunk => Ok(Some(vec![BlockCrc::HOLE; WINDOW as usize])),
        Status::Checksum => Ok(None),
        other => Err(format!("CS#{}: {other}", replica.cs)),
    }
}

/// Written zeros and a hole read alike.
fn zero_is_hole(crc: BlockCrc) -> BlockCrc {
    static ZEROS: std::sync::LazyLock<BlockCrc> =
        std::sync::LazyLock::new(|| BlockCrc::of(&[0; wire::BLOCK_BYTES]));
    if crc == *ZEROS { BlockCrc::HOLE } else { crc }
}
