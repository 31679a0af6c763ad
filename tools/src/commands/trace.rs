//! `trace FILE`: does a request, and shows where its time went; `trace --slow`: the slow requests that servers remember.

use super::stat::{ask, table, time};
use crate::mds_link::MdsLink;
use crate::{Context, Outcome};
use clap::Args;
use client::core::PartTrace;
use client::{Cluster, File};
use serde_json::{Value, json};
use shards::text::parse_size;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use wire::mds_api::LeaseMode;
use wire::{BLOCK_BYTES, CsId, Frame, Head, Kind, RequestTrace, Role, TraceId, decode};

const MOST_BYTES: u64 = 16 << 20;

#[derive(Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub struct Arguments {
    /// Path of the file in the cluster.
    #[arg(group = "what")]
    file: Option<String>,
    /// Show the slow requests that the chunk servers remember instead.
    #[arg(long, group = "what")]
    slow: bool,
    /// Writes what was read back to its place, and traces that.
    #[arg(short, long)]
    write: bool,
    /// Where in the file.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = |s: &str| parse_size(s, 1))]
    offset: u64,
    /// How much, up to 16M.
    #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = |s: &str| parse_size(s, 1))]
    size: u64,
    /// Do it so often, and show the one with the median time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    count: u32,
}

pub fn trace(context: &Context, arguments: &Arguments) -> Outcome {
    match &arguments.file {
        Some(path) => trace_file(context, path, arguments),
        None => slow(context),
    }
}

/// A request of a program, and those to chunk servers that it took.
struct Traced {
    took: Duration,
    parts: Vec<PartTrace>,
}

/// What a server of the chunk says about its part in a request.
struct Told {
    cs: CsId,
    says: Outcome<RequestTrace>,
}

fn trace_file(context: &Context, path: &str, arguments: &Arguments) -> Outcome {
    let block = BLOCK_BYTES as u64;
    if !(1..=MOST_BYTES).contains(&arguments.size) {
        return Err("--size: from 1 byte to 16M".into());
    }
    if arguments.write && !(arguments.offset.is_multiple_of(block) && arguments.size.is_multiple_of(block)) {
        return Err(format!("--write: --offset and --size must be multiples of {block}"));
    }
    let config = client::setup::load(&context.etc, context.cluster()?)?;
    let (tell, parts) = channel();
    let notify = Box::new(move |part| tell.send(part).unwrap_or_default()); // Nobody listens at the end.
    let cluster =
        Cluster::connect_with(config, move |core| core.on_traced(notify)).map_err(|e| e.to_string())?;
    let failed = |e: client::ClientError| match e.status() {
        Some(wire::Status::FileBusy) => format!(
            "{path}: {e}. Close it there, or have that mount log what takes long (pstorage-mount -o slow=MS)"
        ),
        Some(wire::Status::IsDirectory) => format!("{path}: {e}: name a file"),
        _ => format!("{path}: {e}"),
    };
    let mode = if arguments.write { LeaseMode::Write } else { LeaseMode::Read };
    let file = cluster.open(path.trim_matches('/'), mode).map_err(failed)?;
    let mut traced = requests(&file, &parts, arguments).map_err(failed);
    let closed = file.close().and_then(|()| cluster.close()).map_err(failed);
    if let Ok(traced) = &mut traced {
        traced.sort_by_key(|t| t.took);
    }
    let traced = traced?;
    closed?;
    let Some(median) = traced.get(traced.len() / 2) else {
        return Err(format!("{path}: the file ends before byte {}: nothing to read there", arguments.offset));
    };
    let mut link = context.link()?;
    let stories: Vec<(&PartTrace, Vec<Told>)> =
        median.parts.iter().map(|part| (part, ask_servers(&mut link, part))).collect();
    if context.json {
        return crate::print_json(&json!({
            "file": path,
            "requests_us": traced.iter().map(|t| t.took.as_micros() as u64).collect::<Vec<_>>(),
            "median_us": median.took.as_micros() as u64,
            "parts": stories.iter().map(|(part, told)| part_json(part, told)).collect::<Vec<_>>(),
        }));
    }
    let us = |t: &Traced| t.took.as_micros();
    println!("{path}: {} us from the call to its return", us(median));
    if traced.len() > 1 {
        let (least, most) = (us(&traced[0]), us(&traced[traced.len() - 1]));
        println!("(the median of {} requests, which took {least} to {most} us)", traced.len());
    }
    for (part, told) in &stories {
        println!();
        print_part(part, told);
    }
    if median.parts.is_empty() {
        println!("No chunk server was asked: nothing was ever written there.");
    }
    Ok(())
}

/// Nothing at all when there are no bytes at the offset.
fn requests(file: &File, parts: &Receiver<PartTrace>, arguments: &Arguments) -> client::Result<Vec<Traced>> {
    let mut traced = Vec::new();
    for _ in 0..arguments.count {
        let began = Instant::now();
        let data = file.read_at(arguments.offset, arguments.size as usize)?;
        let mut took = began.elapsed();
        if data.is_empty() {
            break;
        }
        if arguments.write {
            parts.try_iter().for_each(drop);
            let began = Instant::now();
            file.write_at(arguments.offset, data)?;
            took = began.elapsed();
        }
        traced.push(Traced { took, parts: parts.try_iter().collect() });
    }
    Ok(traced)
}

/// Those that have, or must have, all of the chunk; the primary first.
fn ask_servers(link: &mut MdsLink, part: &PartTrace) -> Vec<Told> {
    let mut members: Vec<_> = part.grant.replicas.iter().filter(|r| r.role != Role::Stale).collect();
    members.sort_by_key(|r| r.role != Role::InSync);
    // Reads are answered by the primary alone.
    let asked = if part.work == wire::Work::Read { 1 } else { usize::MAX };
    let tell = |replica: &wire::Replica| {
        let mine = |t: &RequestTrace| t.chunk == part.chunk && t.offset_bytes == part.offset_bytes;
        let says = traces(link, replica.addr, part.trace).and_then(|all| {
            all.into_iter().rev().find(mine).ok_or_else(|| "does not remember it".to_string())
        });
        Told { cs: replica.cs, says }
    };
    members.into_iter().take(asked).map(tell).collect()
}

fn traces(link: &mut MdsLink, addr: std::net::SocketAddr, trace: TraceId) -> Outcome<Vec<RequestTrace>> {
    let question = Frame::bare(Head { trace, ..Head::new(Kind::Traces, 1) });
    let answer = link.ask_shard(addr, &question)?;
    if answer.head.kind != Kind::TracesDone {
        return Err(format!("{addr}: answers something else; its program may be older than this one"));
    }
    decode!(Vec<RequestTrace>, &answer.meta)
}

fn part_json(part: &PartTrace, told: &[Told]) -> Value {
    let servers = told.iter().map(|told| match &told.says {
        Ok(trace) => json!({ "cs": told.cs, "told": trace }),
        Err(why) => json!({ "cs": told.cs, "error": why }),
    });
    json!({
        "trace": part.trace, "work": part.work, "chunk": part.chunk, "offset_bytes": part.offset_bytes,
        "length_bytes": part.length_bytes, "tries": part.tries, "waited_us": part.waited.as_micros() as u64,
        "answered_us": part.answered.as_micros() as u64, "servers": servers.collect::<Vec<_>>(),
    })
}

fn print_part(part: &PartTrace, told: &[Told]) {
    println!(
        "{} of {} KiB at {} of chunk {}, trace {}",
        part.work,
        part.length_bytes >> 10,
        part.offset_bytes,
        part.chunk,
        part.trace
    );
    let mut steps = table(&["US", "WHERE", "WHAT"]);
    let mut step = |us: u64, place: &str, what: &str| {
        steps.add_row([us.to_string(), place.to_string(), what.to_string()]);
    };
    let (waited, answered) = (part.waited.as_micros() as u64, part.answered.as_micros() as u64);
    step(waited, "client", "the right to use the file, the chunk's place, a connection");
    if let Some(Told { cs, says: Ok(primary) }) = told.first() {
        let RequestTrace { total_us, waited_us, store_us, replicas_us, .. } = primary;
        let at = format!("CS#{cs}");
        step(
            answered.saturating_sub((*total_us).into()),
            "network",
            "there and back, and until it was taken",
        );
        step((*waited_us).into(), &at, "until its servers agreed and overlapping changes were done");
        step((*store_us).into(), &at, if replicas_us.is_empty() { "disk" } else { "disk, meanwhile:" });
        for (replica, us) in replicas_us {
            let own = told.iter().find(|t| t.cs == *replica).and_then(|t| t.says.as_ref().ok());
            let own = own.map_or_else(String::new, |t| format!(", of which its disk {} us", t.store_us));
            step((*us).into(), &format!("CS#{replica}"), &format!("from the primary and back{own}"));
        }
    }
    println!("{steps}");
    if part.tries > 1 {
        println!("It was sent {} times. {}", part.tries, part.last_error);
    }
    for Told { cs, says } in told {
        if let Err(why) = says {
            println!("CS#{cs}: {why}");
        }
    }
}

fn slow(context: &Context) -> Outcome {
    let stat = ask(context)?;
    let mut link = context.link()?.hasty();
    let mut all: Vec<(CsId, RequestTrace)> = Vec::new();
    let mut silent = Vec::new();
    for cs in &stat.cs {
        for addr in &cs.shard_addrs {
            match traces(&mut link, *addr, TraceId(0)) {
                Ok(traces) => all.extend(traces.into_iter().filter(|t| t.slow).map(|t| (cs.cs, t))),
                Err(why) => silent.push(format!("CS#{}: {why}", cs.cs)),
            }
        }
    }
    all.sort_by_key(|(_, t)| t.ended_ms);
    if context.json {
        let requests = all.iter().map(|(cs, trace)| json!({ "cs": cs, "told": trace }));
        return crate::print_json(&json!({ "requests": requests.collect::<Vec<_>>(), "silent": silent }));
    }
    let mut rows = table(&[
        "TIME",
        "CS",
        "TRACE",
        "WORK",
        "CHUNK",
        "OFFSET",
        "BYTES",
        "STATUS",
        "TOTAL ms",
        "WAITED ms",
        "DISK ms",
        "REPLICAS ms",
    ]);
    let ms = |us: u32| format!("{:.1}", f64::from(us) / 1000.0);
    for (cs, t) in &all {
        let replicas: Vec<String> =
            t.replicas_us.iter().map(|(cs, us)| format!("CS#{cs} {}", ms(*us))).collect();
        rows.add_row([
            time(t.ended_ms),
            cs.to_string(),
            t.trace.to_string(),
            t.work.to_string(),
            t.chunk.to_string(),
            t.offset_bytes.to_string(),
            t.length_bytes.to_string(),
            t.status.text().to_string(),
            ms(t.total_us),
            ms(t.waited_us),
            ms(t.store_us),
            replicas.join(", "),
        ]);
    }
    match all.is_empty() {
        true => println!(
            "The chunk servers remember no slow requests (--slow-request-ms of pstorage-csd says what is slow)."
        ),
        false => println!("{rows}"),
    }
    silent.iter().for_each(|line| eprintln!("{line}"));
    Ok(())
}
