//! `stat`, `get-event`: what the cluster says of itself.

use crate::conf::Conf;
use crate::tables::{self, Grid};
use crate::{Context, Outcome};
use comfy_table::{Table, presets};
use serde::Serialize;
use shards::text::Civil;
use wire::ChunkId;
use wire::mds_api::{ChunkCounts, ClusterStat, CsInfo, CsStatus, Event, FileAttr, MdsReply, MdsRequest};

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

pub fn stat(context: &Context, conf: &Conf, xml: bool) -> Outcome {
    let s = ask(context)?;
    if context.json {
        return crate::print_json(&s);
    }
    println!("{}", if xml { as_xml(&s)? } else { page(&s, conf)? });
    Ok(())
}

pub fn ask(context: &Context) -> Outcome<Box<ClusterStat>> {
    match context.link()?.ask(&MdsRequest::ClusterStat)? {
        MdsReply::Stat(stat) => Ok(stat),
        _ => Err("unexpected answer of the metadata server".into()),
    }
}

/// What people read.
pub fn page(s: &ClusterStat, conf: &Conf) -> Outcome<String> {
    let hosts = !conf.numeric_addrs;
    let mds = sorted(tables::mds(&s.mds, hosts), conf.mds_sort.as_deref())?;
    let cs = sorted(tables::cs_at_once(&s.cs, hosts), conf.cs_sort.as_deref())?;
    let clients = sorted(tables::clients(&s.clients, hosts), conf.clnt_sort.as_deref())?;
    let count = |status: CsStatus| s.cs.iter().filter(|c| c.status == status).count();
    let up = s.mds.iter().filter(|m| m.available).count();
    let mut lines = vec![
        format!("Cluster '{}': {}", s.cluster, s.status),
        format!(
            "Space: allocatable {} of {}, free {}",
            human(s.fs.available_bytes),
            human(s.fs.total_bytes),
            human(s.fs.free_bytes)
        ),
        format!(
            "MDS nodes: {up} of {}, epoch uptime: {}",
            s.mds.len(),
            tables::duration(s.epoch_uptime_ms / 1000)
        ),
        format!(
            "CS nodes:  {} of {} ({} avail, {} inactive, {} offline)",
            count(CsStatus::Active),
            s.cs.len() - count(CsStatus::Dropped),
            count(CsStatus::Active),
            count(CsStatus::Inactive),
            count(CsStatus::Offline)
        ),
        format!("License: {}", s.license),
        format!("Replication: {} norm, {} limit", s.default_policy.normal, s.default_policy.minimum),
        chunks_line(&s.chunks),
    ];
    let r = &s.repair;
    if r.waiting + r.copying + r.without_place > 0 {
        let left = r.seconds_left.map_or("-".into(), |s| format!("{s} s"));
        lines.push(format!(
            "Repair: {} chunks wait, {} are copied, {} have no place to go, {} done at {:.1}/s, {left} left",
            r.waiting, r.copying, r.without_place, r.done, r.chunks_per_s
        ));
    }
    lines.push(format!("FS: {} files, {} chunks, {} clients", s.fs.files, s.fs.chunks, s.clients.len()));
    let mut tables = vec![printed(&mds), printed(&cs)];
    tables.extend(caches(&s.cs));
    if !s.clients.is_empty() {
        tables.push(printed(&clients));
    }
    let tables: String = tables.iter().map(|table| format!("\n\n{table}")).collect();
    Ok(lines.join("\n") + &tables)
}

fn printed(grid: &Grid) -> Table {
    let mut t = table(&grid.heads);
    for row in &grid.rows {
        t.add_row(row.cells.iter().map(|cell| &cell.text));
    }
    t
}

fn sorted(mut grid: Grid, wish: Option<&str>) -> Result<Grid, String> {
    if let Some(wish) = wish {
        let order = grid.order(wish)?;
        grid.sort(&order);
    }
    Ok(grid)
}

/// The same names and values as with `--json`.
fn as_xml(stat: &ClusterStat) -> Result<String, String> {
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let mut to =
        quick_xml::se::Serializer::with_root(&mut text, Some("pstorage_stat")).map_err(|e| e.to_string())?;
    to.indent(' ', 2);
    stat.serialize(to).map_err(|e| e.to_string())?;
    Ok(text)
}

/// The states of all chunks, as the guide shows them.
fn chunks_line(c: &ChunkCounts) -> String {
    let verdict = match () {
        () if c.offline + c.blocked > 0 => "ERROR",
        () if c.healthy < c.total => "WARNING",
        () => "OK",
    };
    let share = |n: u64| if c.total == 0 { 0.0 } else { 100.0 * n as f64 / c.total as f64 };
    let states = [
        (c.healthy, "healthy"),
        (c.standby, "standby"),
        (c.degraded, "degraded"),
        (c.urgent, "urgent"),
        (c.blocked, "blocked"),
        (c.pending, "pending"),
        (c.offline, "offline"),
    ]
    .map(|(n, word)| format!("{n} ({:.2}%) {word}", share(n)));
    let mut line = format!(
        "Chunks: [{verdict}] {}, {} replicating, {} overcommitted, {} deleting, {} void, {} unique",
        states.join(", "),
        c.replicating,
        c.overcommitted,
        c.deleting,
        c.void,
        c.unique
    );
    if c.lossy > 0 {
        line += &format!(", {} lossy (blocks gone from all replicas)", c.lossy);
    }
    if c.misplaced > 0 {
        line += &format!(", {} misplaced (policy not met)", c.misplaced);
    }
    line
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
        let (events, last) = events_after(&mut link, after)?;
        for e in &events {
            if context.json {
                println!("{}", serde_json::to_string(e).map_err(|e| e.to_string())?);
            } else {
                println!("{}", event_line(e));
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

/// Some of the events behind number `after`, the oldest first, and the number of the last one there is.
pub fn events_after(link: &mut crate::mds_link::MdsLink, after: u64) -> Outcome<(Vec<Event>, u64)> {
    match link.ask(&MdsRequest::Events { after, limit: 1000 })? {
        MdsReply::Events { events, last } => Ok((events, last)),
        _ => Err("unexpected answer of the metadata server".into()),
    }
}

pub fn event_line(e: &Event) -> String {
    format!("{} {:<4} {} {}", time(e.time_ms), e.system, tables::severity(e.severity), e.message)
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
    let asked = link.ask(&MdsRequest::Resolve { path: path.into() });
    match asked.map_err(|why| format!("{path}: {why}{}", hint_of_place(path)))? {
        MdsReply::Attr(attr) => Ok(attr),
        _ => Err("unexpected answer of the metadata server".into()),
    }
}

/// A path that is there on this host, but not in the cluster, is most likely one through a mount.
pub fn hint_of_place(path: &str) -> &'static str {
    match std::fs::symlink_metadata(path) {
        Ok(_) => ". Paths are those inside the cluster, without the directory of a mount",
        Err(_) => "",
    }
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

    #[test]
    fn the_line_of_chunks_says_how_bad_it_is() {
        let line = |healthy, degraded, blocked| {
            let total = healthy + degraded + blocked;
            super::chunks_line(&super::ChunkCounts {
                total,
                healthy,
                degraded,
                blocked,
                ..Default::default()
            })
        };
        assert!(line(4, 0, 0).starts_with("Chunks: [OK] 4 (100.00%) healthy, 0 (0.00%) standby, "));
        assert!(line(3, 1, 0).starts_with("Chunks: [WARNING] 3 (75.00%) healthy"));
        assert!(line(3, 0, 1).starts_with("Chunks: [ERROR]"));
        assert!(line(0, 0, 0).starts_with("Chunks: [OK] 0 (0.00%) healthy"));
    }
}
