//! `idle-costs FEW MANY`: what it costs metadata servers that chunk servers and clients are there at all: CPU time of two quiet clusters, one of few
//! shards and one of many, and of the first again with many sessions of clients. `perf/scale.sh` makes them.

use clap::Parser;
use client::Cluster;
use perf::cpu::{Meter, Watched, role};
use perf::engine::etc;
use perf::text::number;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Measures what heartbeats and sessions cost.
#[derive(Parser)]
struct Args {
    few: PathBuf,
    many: PathBuf,
    #[arg(long, default_value_t = 32)]
    sessions: usize,
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
}

/// Of each shard (`HEARTBEAT_EVERY` in engine/src/node.rs).
const HEARTBEATS_PER_S: f64 = 2.0;
/// Of each session (`KEEP_ALIVE` in client/src/config.rs).
const KEEP_ALIVES_PER_S: f64 = 0.5;

/// CPU us in a second.
struct Idle {
    master: f64,
    follower: f64,
    cs: f64,
    /// This program, with the sessions in it.
    own: f64,
}

fn main() -> Result<(), String> {
    let args = Args::parse();
    let time = Duration::from_secs_f64(args.seconds);
    let (few_shards, many_shards) = (shards_of(&args.few)?, shards_of(&args.many)?);
    let few = idle(&args.few, time)?;
    let many = idle(&args.many, time)?;
    let open =
        |_| Cluster::connect(client::setup::load(&etc(&args.few), "local")?).map_err(|e| e.to_string());
    let sessions: Vec<Cluster> = (0..args.sessions).map(open).collect::<Result<_, _>>()?;
    let used = idle(&args.few, time)?;
    sessions.into_iter().try_for_each(|cluster| cluster.close().map_err(|e| e.to_string()))?;
    println!(
        "| CPU us in each second of a quiet cluster | shards | sessions | master | each follower | all CS | sessions |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (name, shards, sessions, idle) in [
        ("few shards", few_shards, 0, &few),
        ("many shards", many_shards, 0, &many),
        ("few shards, many sessions", few_shards, args.sessions, &used),
    ] {
        println!(
            "| {name} | {shards} | {sessions} | {} | {} | {} | {} |",
            number(idle.master),
            number(idle.follower),
            number(idle.cs),
            number(idle.own)
        );
    }
    let heartbeats = (many_shards - few_shards) as f64 * HEARTBEATS_PER_S;
    let keep_alives = args.sessions as f64 * KEEP_ALIVES_PER_S;
    println!(
        "\nSo a heartbeat costs the master {} us; a shard that does nothing its server {} us in a second; a keep-alive the master {} us and each \
         follower {} us; a session that does nothing {} us in a second.",
        number((many.master - few.master) / heartbeats),
        number((many.cs - few.cs) / (many_shards - few_shards) as f64),
        number((used.master - few.master) / keep_alives),
        number((used.follower - few.follower) / keep_alives),
        number((used.own - few.own) / args.sessions as f64),
    );
    Ok(())
}

fn idle(dir: &Path, time: Duration) -> Result<Idle, String> {
    let meter = Meter::start(&Watched::of_local_cluster(dir)?);
    std::thread::sleep(time);
    let used = meter.stop();
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    let per_s = |used: Duration| us(used) / time.as_secs_f64();
    let of = |wanted: &str| -> Vec<f64> {
        let named = used.watched.iter().filter(|(name, _)| role(name) == wanted);
        named.map(|(_, time)| per_s(*time)).collect()
    };
    let mut mds = of("mds");
    // Who has most to do.
    mds.sort_by(|a, b| b.total_cmp(a));
    let followers = mds.len().saturating_sub(1).max(1) as f64;
    Ok(Idle {
        master: mds.first().copied().ok_or("no metadata server runs")?,
        follower: mds.iter().skip(1).sum::<f64>() / followers,
        cs: of("cs").iter().sum(),
        own: per_s(used.own),
    })
}

/// Directories `csN/shard-NNN`.
fn shards_of(dir: &Path) -> Result<usize, String> {
    let names = |dir: &Path, prefix: &str| -> Result<Vec<PathBuf>, String> {
        let entries = std::fs::read_dir(dir).map_err(shards::text::at(&dir))?.flatten();
        let fits = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
        Ok(fits.map(|entry| entry.path()).collect())
    };
    names(dir, "cs")?.iter().map(|cs| Ok(names(cs, "shard-")?.len())).sum()
}
