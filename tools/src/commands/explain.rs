//! `explain FILE|CHUNK|CS`: the metadata server tells the story, this prints it.

use super::stat::{human, table};
use crate::mds_link::MdsLink;
use crate::{Context, Outcome};
use wire::mds_api::{
    ChunkCounts, ChunkState, ChunkStory, CsStory, ExplainTarget, Explanation, FileStory, MdsReply, MdsRequest,
};
use wire::{ChunkId, CsId};

/// Chunks of a file that are told about in full, if they are not well.
const MOST_STORIES: usize = 5;

/// `CS#12` or `cs12` is a server, a number (also `chunk#7`) a chunk, anything else a path inside the cluster.
fn target_of(what: &str) -> ExplainTarget {
    let lower = what.to_ascii_lowercase();
    let number =
        |prefix: &str| lower.strip_prefix(prefix).and_then(|d| d.trim_start_matches('#').parse().ok());
    if let Some(cs) = number("cs") {
        return ExplainTarget::Cs(CsId(cs));
    }
    match number("chunk").or_else(|| number("")) {
        Some(chunk) => ExplainTarget::Chunk(ChunkId(u64::from(chunk))),
        None => ExplainTarget::File { path: what.into(), first: 0 },
    }
}

pub fn ask(link: &mut MdsLink, target: ExplainTarget) -> Outcome<Explanation> {
    match link.ask(&MdsRequest::Explain { target })? {
        MdsReply::Explained(story) => Ok(*story),
        _ => Err("unexpected answer of the metadata server".into()),
    }
}

pub fn explain(context: &Context, what: &str) -> Outcome {
    if what.is_empty() || what.to_ascii_lowercase().starts_with("mds#") {
        return Err(format!(
            "'{what}': expected a file (/vm1.raw), the number of a chunk, or a chunk server (CS#3); 'pstorage stat' shows metadata \
             servers"
        ));
    }
    let mut link = context.link()?;
    let mut story = ask(&mut link, target_of(what)).map_err(|e| match e.contains(what) {
        true => e,
        false => format!("{what}: {e}"),
    })?;
    if let Explanation::File(file) = &mut story {
        while let Some(first) = file.next_first.take() {
            let more = ask(&mut link, ExplainTarget::File { path: what.into(), first })?;
            if let Explanation::File(more) = more {
                file.chunks.extend(more.chunks);
                file.next_first = more.next_first;
            }
        }
    }
    if context.json {
        return print_json(&story);
    }
    match &story {
        Explanation::File(file) => print_file(file),
        Explanation::Chunk(chunk) => print_chunk(chunk),
        Explanation::Cs(cs) => print_server(cs),
    }
    Ok(())
}

fn print_json(story: &Explanation) -> Outcome {
    let mut value = serde_json::to_value(story).map_err(|e| e.to_string())?;
    if let Explanation::File(file) = story {
        value["replicas"] = format!("{}:{}", file.policy.normal, file.policy.minimum).into();
    }
    crate::print_json(&value)
}

/// The states that occur, such as `10 healthy, 2 degraded, 1 unique`.
pub fn states(c: &ChunkCounts) -> String {
    let all = [
        (c.healthy, "healthy"),
        (c.standby, "standby"),
        (c.degraded, "degraded"),
        (c.urgent, "urgent"),
        (c.blocked, "blocked"),
        (c.offline, "offline"),
        (c.pending, "pending"),
        (c.replicating, "replicating"),
        (c.overcommitted, "overcommitted"),
        (c.void, "void"),
        (c.unique, "unique"),
        (c.lossy, "lossy"),
        (c.misplaced, "misplaced"),
    ];
    let words: Vec<String> =
        all.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}")).collect();
    if words.is_empty() { "none".into() } else { words.join(", ") }
}

fn print_file(file: &FileStory) {
    println!(
        "{}: {} in {} chunks of {}, replicas {}:{}, failure-domain {}, tier {}",
        file.path,
        human(file.size),
        file.chunks.len(),
        human(file.chunk_bytes.into()),
        file.policy.normal,
        file.policy.minimum,
        file.policy.domain,
        file.policy.tier
    );
    println!("Chunks: {}", states(&file.states));
    let mut t = table(&["INDEX", "CHUNK", "EPOCH", "STATE", "PRIMARY", "REPLICAS"]);
    for c in &file.chunks {
        let replicas: Vec<String> =
            c.replicas.iter().map(|r| format!("CS#{} {} {}", r.cs, r.addr, r.role)).collect();
        t.add_row([
            c.index.to_string(),
            c.chunk.to_string(),
            c.epoch.to_string(),
            state_of(c),
            c.primary.map_or("none".into(), |p| format!("CS#{p}")),
            replicas.join(", "),
        ]);
    }
    println!("{t}");
    let sick = || file.chunks.iter().filter(|c| c.state != ChunkState::Healthy || !c.wrong.is_empty());
    for chunk in sick().take(MOST_STORIES) {
        println!();
        print_chunk(chunk);
    }
    if sick().count() > MOST_STORIES {
        println!(
            "\n{} more chunks are not well; 'explain CHUNK' tells of each.",
            sick().count() - MOST_STORIES
        );
    }
}

fn state_of(c: &ChunkStory) -> String {
    [&[c.state.name().to_string()], &c.also[..]].concat().join(", ")
}

fn print_chunk(c: &ChunkStory) {
    println!("Chunk {}: {} (epoch {})", c.chunk, state_of(c), c.epoch);
    for r in &c.replicas {
        println!("  CS#{} on {} ({}) {}", r.cs, r.host, r.addr, r.says);
    }
    print_parts(&c.why, &c.wrong, &c.next);
}

fn print_server(s: &CsStory) {
    let status = format!("{:?}", s.server.status).to_lowercase();
    println!("CS#{}: {status}{}", s.server.cs, if s.server.draining { ", draining" } else { "" });
    println!("  Chunks there: {}", states(&s.states));
    print_parts(&s.why, &s.wrong, &s.next);
}

fn print_parts(why: &[String], wrong: &[String], next: &[String]) {
    if !why.is_empty() {
        println!("  Why: {}", why.join("\n       "));
    }
    match wrong {
        [] => println!("  Nothing is wrong."),
        wrong => println!("  Wrong: {}", wrong.join("\n         ")),
    }
    if !next.is_empty() {
        println!("  Next: {}", next.join("\n        "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_chunks_and_servers_are_told_apart() {
        assert_eq!(target_of("CS#12"), ExplainTarget::Cs(CsId(12)));
        assert_eq!(target_of("cs3"), ExplainTarget::Cs(CsId(3)));
        assert_eq!(target_of("77"), ExplainTarget::Chunk(ChunkId(77)));
        assert_eq!(target_of("chunk#77"), ExplainTarget::Chunk(ChunkId(77)));
        for path in ["/77", "image", "cs-images/x", "/cs1"] {
            assert_eq!(target_of(path), ExplainTarget::File { path: path.into(), first: 0 }, "{path}");
        }
    }
}
