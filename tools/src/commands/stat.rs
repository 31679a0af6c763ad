//! `stat`, `get-event`, `explain`: what the cluster says of itself.

use crate::{Context, Outcome};
use comfy_table::{Table, presets};
use shards::text::Civil;
use wire::mds_api::{ChunkMap, CsInfo, CsStatus, FileAttr, FileKind, MdsReply, MdsRequest, Severity};
use wire::{ChunkId, Replica};

pub fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(heads);
    table
}

/// Bytes as people read them.
pub fn human(bytes: u64) -> String {
    let units = ["B", "KB", "MB", "GB", "TB", "PB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes}B") } else { format!("{value:.1}{}", units[unit]) }
}

pub fn stat(context: &Context) -> Outcome {
    let MdsReply::Stat(s) = context.link()?.ask(&MdsRequest::ClusterStat)? else {
        return Err("unexpected answer of the metadata server".into());
    };
    if context.json {
        return crate::print_json(&s);
    }
    let count = |status: CsStatus| s.cs.iter().filter(|c| c.status == status).count();
    println!("Cluster '{}': {}", s.cluster, s.status);
    println!(
        "Space: allocatable {} of {}, free {}",
        human(s.fs.available_bytes),
        human(s.fs.total_bytes),
        human(s.fs.free_bytes)
    );
    let up = s.mds.iter().filter(|m| m.available).count();
    println!("MDS nodes: {up} of {}, epoch uptime: {}s", s.mds.len(), s.epoch_uptime_ms / 1000);
    println!(
        "CS nodes:  {} of {} ({} avail, {} inactive, {} offline)",
        count(CsStatus::Active),
        s.cs.len() - count(CsStatus::Dropped),
        count(CsStatus::Active),
        count(CsStatus::Inactive),
        count(CsStatus::Offline)
    );
    println!("License: {}", s.license);
    println!("Replication: {} norm, {} limit", s.default_policy.normal, s.default_policy.minimum);
    let c = &s.chunks;
    let share = |n: u64| if c.total == 0 { 100.0 } else { 100.0 * n as f64 / c.total as f64 };
    println!(
        "Chunks: {} total, {:.2}% healthy, {} standby, {} degraded, {} urgent, {} blocked, {} offline, {} replicating, {} deleting{}",
        c.total,
        share(c.healthy),
        c.standby,
        c.degraded,
        c.urgent,
        c.blocked,
        c.offline,
        c.replicating,
        c.deleting,
        if c.misplaced > 0 { format!(", {} misplaced (policy not met)", c.misplaced) } else { String::new() }
    );
    let r = &s.repair;
    if r.waiting + r.copying + r.without_place > 0 {
        let left = r.seconds_left.map_or("-".into(), |s| format!("{s} s"));
        println!(
            "Repair: {} chunks wait, {} are copied, {} have no place to go, {} done at {:.1}/s, {left} left",
            r.waiting, r.copying, r.without_place, r.done, r.chunks_per_s
        );
    }
    println!("FS: {} files, {} chunks, {} clients\n", s.fs.files, s.fs.chunks, s.clients.len());
    let mut t = table(&["MDSID", "STATUS", "COMMITS", "UPTIME", "MEM", "HOST"]);
    for m in &s.mds {
        let id = format!("{}{}", if m.master { "M " } else { "  " }, m.mds);
        let status = match (m.available, m.voter) {
            (true, true) => "avail",
            (true, false) => "joining",
            (false, _) => "offline",
        };
        t.add_row([
            id,
            status.into(),
            m.commits.to_string(),
            format!("{}s", m.uptime_ms / 1000),
            human(m.memory_bytes),
            m.addr.to_string(),
        ]);
    }
    println!("{t}\n");
    let mut t = table(&[
        "CSID", "STATUS", "SPACE", "FREE", "REPLICAS", "QDEPTH", "TIER", "HOST", "LOCATION", "FLAGS",
        "SCRUB", "DAMAGED",
    ]);
    for cs in &s.cs {
        let status = match (cs.draining, cs.status) {
            (true, CsStatus::Active) => "draining".into(),
            (true, status) => format!("{status:?}, draining").to_lowercase(),
            (false, status) => format!("{status:?}").to_lowercase(),
        };
        t.add_row([
            cs.cs.to_string(),
            status,
            human(cs.total_bytes),
            human(cs.free_bytes),
            cs.replicas.to_string(),
            cs.queue_depth.to_string(),
            cs.tier.to_string(),
            cs.host.clone(),
            if cs.location.is_empty() { "-".into() } else { cs.location.clone() },
            cs.flags.clone(),
            format!("{:.0}% of pass {}", cs.scrub_percent(), cs.scrub_passes + 1),
            cs.scrub_damaged.to_string(),
        ]);
    }
    println!("{t}");
    if let Some(caches) = caches(&s.cs) {
        println!("\n{caches}");
    }
    if !s.clients.is_empty() {
        let mut t = table(&["CLID", "LEASES", "HOST", "MOUNT"]);
        for cl in &s.clients {
            t.add_row([
                cl.client.to_string(),
                cl.leases.to_string(),
                cl.host.clone(),
                cl.mount_point.clone(),
            ]);
        }
        println!("\n{t}");
    }
    Ok(())
}

/// The read caches of chunk servers that have one.
fn caches(all: &[CsInfo]) -> Option<Table> {
    let mut t = table(&["CSID", "CACHE", "CACHED", "HITS", "MISSES", "HIT RATE"]);
    for cs in all.iter().filter(|cs| cs.cache_total_bytes > 0) {
        let reads = cs.cache_hits + cs.cache_misses;
        let rate = (cs.cache_hits * 100).checked_div(reads).map_or("-".into(), |rate| format!("{rate}%"));
        t.add_row([
            cs.cs.to_string(),
            human(cs.cache_total_bytes),
            human(cs.cached_bytes),
            cs.cache_hits.to_string(),
            cs.cache_misses.to_string(),
            rate,
        ]);
    }
    (t.row_count() > 0).then_some(t)
}

pub fn get_event(context: &Context, follow: bool) -> Outcome {
    let mut link = context.link()?;
    let mut after = 0;
    loop {
        let MdsReply::Events { events, last } = link.ask(&MdsRequest::Events { after, limit: 1000 })? else {
            return Err("unexpected answer of the metadata server".into());
        };
        for e in &events {
            if context.json {
                println!("{}", serde_json::to_string(e).map_err(|e| e.to_string())?);
            } else {
                let severity = match e.severity {
                    Severity::Info => "INF",
                    Severity::Warn => "WRN",
                    Severity::Err => "ERR",
                };
                println!("{} {:<4} {severity} {}", time(e.time_ms), e.system, e.message);
            }
            after = after.max(e.number);
        }
        if events.is_empty() {
            if !follow {
                return Ok(());
            }
            after = after.max(last);
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
    }
}

/// `DD-MM-YY hh:mm:ss.mmm`, UTC.
pub fn time(unix_ms: u64) -> String {
    let c = Civil::from_unix_s(unix_ms / 1000);
    format!(
        "{:02}-{:02}-{:02} {:02}:{:02}:{:02}.{:03}",
        c.day,
        c.month,
        c.year % 100,
        c.hour,
        c.minute,
        c.second,
        unix_ms % 1000
    )
}

pub fn resolve(link: &mut crate::mds_link::MdsLink, path: &str) -> Outcome<FileAttr> {
    match link.ask(&MdsRequest::Resolve { path: path.into() }).map_err(|e| format!("{path}: {e}"))? {
        MdsReply::Attr(attr) => Ok(attr),
        _ => Err("unexpected answer of the metadata server".into()),
    }
}

/// Where the chunks of a file lie. `path` is one inside the cluster.
pub fn explain(context: &Context, path: &str) -> Outcome {
    let mut link = context.link()?;
    let attr = resolve(&mut link, path)?;
    if attr.kind != FileKind::File {
        return Err(format!("{path} is not a regular file: only those have chunks"));
    }
    let count = attr.size_bytes.div_ceil(u64::from(attr.chunk_bytes)) as u32;
    let mut maps: Vec<ChunkMap> = Vec::new();
    for first in (0..count.max(1)).step_by(1000) {
        let MdsReply::Maps { chunks } = link.ask(&MdsRequest::Map { file: attr.file, first, count: 1000 })?
        else {
            return Err("unexpected answer of the metadata server".into());
        };
        maps.extend(chunks);
    }
    if context.json {
        return crate::print_json(&serde_json::json!({
            "path": path, "size": attr.size_bytes, "chunk-size": attr.chunk_bytes,
            "replicas": format!("{}:{}", attr.replicas.normal, attr.replicas.minimum),
            "chunks": maps.iter().map(chunk_json).collect::<Vec<_>>(),
        }));
    }
    let mut t = table(&["INDEX", "CHUNK", "EPOCH", "PRIMARY", "REPLICAS"]);
    for m in &maps {
        let primary = m.grant.primary().map_or("none".into(), |p| format!("CS#{}", p.cs));
        let replicas: Vec<String> =
            m.grant.replicas.iter().map(|r| format!("CS#{} {} {}", r.cs, r.addr, role(r))).collect();
        t.add_row([
            m.index.to_string(),
            m.chunk.to_string(),
            m.epoch.to_string(),
            primary,
            replicas.join(", "),
        ]);
    }
    let seen = maps.len();
    println!(
        "{path}: {} in {seen} chunks of {}, replicas {}:{}",
        human(attr.size_bytes),
        human(attr.chunk_bytes.into()),
        attr.replicas.normal,
        attr.replicas.minimum
    );
    println!("{t}");
    Ok(())
}

fn role(replica: &Replica) -> String {
    format!("{:?}", replica.role).to_lowercase()
}

fn chunk_json(m: &ChunkMap) -> serde_json::Value {
    let replicas: Vec<_> = m
        .grant
        .replicas
        .iter()
        .map(|r| serde_json::json!({"cs": r.cs, "addr": r.addr.to_string(), "role": role(r)}))
        .collect();
    serde_json::json!({
        "index": m.index, "chunk": m.chunk, "epoch": m.epoch,
        "primary": m.grant.primary().map(|p| p.cs), "replicas": replicas,
    })
}

/// All chunks of the cluster, page by page.
pub fn all_chunks(link: &mut crate::mds_link::MdsLink) -> Outcome<Vec<wire::mds_api::ChunkMap>> {
    let (mut all, mut after) = (Vec::new(), ChunkId(0));
    loop {
        let MdsReply::Maps { chunks } = link.ask(&MdsRequest::ListChunks { after, limit: 1000 })? else {
            return Err("unexpected answer of the metadata server".into());
        };
        let Some(last) = chunks.last() else { return Ok(all) };
        after = last.chunk;
        all.extend(chunks);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_and_sizes_read_well() {
        assert_eq!(super::time(1_349_184_606_233), "02-10-12 13:30:06.233");
        assert_eq!(super::human(512), "512B");
        assert_eq!(super::human(3 << 30), "3.0GB");
    }
}
