//! The tables of `stat` and `top`: one row for each service or event, sorted and filtered as the administrator wishes.

use crate::commands::stat::{human, time};
use std::cmp::Ordering;
use wire::mds_api::{ChunkCounts, ClientInfo, ClusterStat, CsInfo, CsStatus, Event, MdsInfo, Severity};

/// What a cell is sorted by.
#[derive(Clone, PartialEq, Debug)]
enum Key {
    Text(String),
    Number(f64),
}

#[derive(Clone, PartialEq, Debug)]
pub struct Cell {
    pub text: String,
    key: Key,
}

impl Cell {
    fn text(text: impl Into<String>) -> Cell {
        let text = text.into();
        Cell { key: Key::Text(text.to_lowercase()), text }
    }

    fn number(number: u64) -> Cell {
        Cell { text: number.to_string(), key: Key::Number(number as f64) }
    }

    fn bytes(bytes: u64) -> Cell {
        Cell { text: human(bytes), key: Key::Number(bytes as f64) }
    }

    /// Shown as `text`, sorted as `number`.
    fn as_number(text: String, number: f64) -> Cell {
        Cell { text, key: Key::Number(number) }
    }

    fn cmp(&self, other: &Cell) -> Ordering {
        match (&self.key, &other.key) {
            (Key::Number(a), Key::Number(b)) => a.total_cmp(b),
            (Key::Text(a), Key::Text(b)) => a.cmp(b),
            (Key::Number(_), Key::Text(_)) => Ordering::Less,
            (Key::Text(_), Key::Number(_)) => Ordering::Greater,
        }
    }
}

/// How a row, or the cluster, fares: its colour.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mood {
    Good,
    Plain,
    Warn,
    Bad,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    pub cells: Vec<Cell>,
    pub mood: Mood,
    /// Of the service or event, unique in its table.
    pub id: u64,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Grid {
    pub heads: Vec<&'static str>,
    pub rows: Vec<Row>,
}

impl Grid {
    /// The column of that name, in any case.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.heads.iter().position(|head| head.eq_ignore_ascii_case(name))
    }

    /// By the first of `order`, where that is equal by the second, and so on. Otherwise the order stays.
    pub fn sort(&mut self, order: &[(usize, bool)]) {
        self.rows.sort_by(|a, b| {
            order.iter().fold(Ordering::Equal, |so_far, (column, inverse)| {
                let now = a.cells[*column].cmp(&b.cells[*column]);
                so_far.then(if *inverse { now.reverse() } else { now })
            })
        });
    }

    /// Adds columns of another table of the same services, in the same order, before the last `keep` columns.
    fn with(mut self, other: &Grid, columns: &[&str], keep: usize) -> Grid {
        for name in columns {
            let (from, to) = (other.column(name).expect("a column of it"), self.heads.len() - keep);
            self.heads.insert(to, other.heads[from]);
            for (row, other) in self.rows.iter_mut().zip(&other.rows) {
                row.cells.insert(to, other.cells[from].clone());
            }
        }
        self
    }

    /// Keeps rows in which some cell contains `text`, in any case.
    pub fn filter(&mut self, text: &str) {
        let text = text.to_lowercase();
        self.rows.retain(|row| row.cells.iter().any(|cell| cell.text.to_lowercase().contains(&text)));
    }

    /// Reads `key1[=inv],key2…`.
    ///
    /// # Errors
    /// A sentence that names the columns there are.
    pub fn order(&self, wish: &str) -> Result<Vec<(usize, bool)>, String> {
        wish.split(',')
            .map(|key| {
                let (name, how) = key.trim().split_once('=').unwrap_or((key.trim(), ""));
                let column = self.column(name).ok_or_else(|| {
                    format!(
                        "no column '{name}' to sort by; there are {}",
                        self.heads.join(", ").to_lowercase()
                    )
                })?;
                match how {
                    "" => Ok((column, false)),
                    "inv" => Ok((column, true)),
                    _ => Err(format!("'{key}': expected KEY or KEY=inv")),
                }
            })
            .collect()
    }
}

/// Which facts of the chunk servers are shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CsView {
    /// The table of the guide.
    #[default]
    General,
    Traffic,
    Placement,
    /// Read cache, scrub, and how returned replicas were brought up to date.
    Upkeep,
}

impl CsView {
    pub fn next(self) -> CsView {
        match self {
            CsView::General => CsView::Traffic,
            CsView::Traffic => CsView::Placement,
            CsView::Placement => CsView::Upkeep,
            CsView::Upkeep => CsView::General,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            CsView::General => "general",
            CsView::Traffic => "traffic",
            CsView::Placement => "placement",
            CsView::Upkeep => "upkeep",
        }
    }
}

/// `90061` seconds are `1d 1h`.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

fn host(name: &str, shown: bool) -> Cell {
    Cell::text(if shown { name } else { "-" })
}

/// The word for a metadata server's state.
pub fn mds_status(m: &MdsInfo) -> &'static str {
    match (m.available, m.voter) {
        (true, true) => "avail",
        (true, false) => "joining",
        (false, _) => "offline",
    }
}

pub fn mds_mood(m: &MdsInfo) -> Mood {
    match (m.available, m.voter) {
        (true, true) => Mood::Plain,
        (true, false) => Mood::Warn,
        (false, _) => Mood::Bad,
    }
}

pub fn mds(all: &[MdsInfo], hosts: bool) -> Grid {
    let row = |m: &MdsInfo| {
        let id = format!("{}{}", if m.master { "M " } else { "  " }, m.mds);
        // The master knows these of itself only.
        let (memory, uptime) = if m.master {
            (Cell::bytes(m.memory_bytes), Cell::as_number(duration(m.uptime_ms / 1000), m.uptime_ms as f64))
        } else {
            (Cell::text("-"), Cell::text("-"))
        };
        let cells = vec![
            Cell::as_number(id, m.mds.0 as f64),
            Cell::text(mds_status(m)),
            Cell::number(m.commits),
            memory,
            uptime,
            host(&m.addr.to_string(), hosts),
        ];
        Row { cells, mood: mds_mood(m), id: m.mds.0 }
    };
    Grid {
        heads: vec!["MDSID", "STATUS", "COMMITS", "MEM", "UPTIME", "HOST"],
        rows: all.iter().map(row).collect(),
    }
}

/// The word for a chunk server's state.
pub fn cs_status(cs: &CsInfo) -> String {
    match (cs.draining, cs.status) {
        (true, CsStatus::Active) => "draining".into(),
        (true, status) => format!("{status:?}, draining").to_lowercase(),
        (false, status) => format!("{status:?}").to_lowercase(),
    }
}

pub fn cs_mood(cs: &CsInfo) -> Mood {
    match (cs.status, cs.draining) {
        (CsStatus::Active, false) => Mood::Plain,
        (CsStatus::Active, true) | (CsStatus::Inactive, _) => Mood::Warn,
        _ => Mood::Bad,
    }
}

pub fn cs(all: &[CsInfo], view: CsView, hosts: bool) -> Grid {
    let row = |cs: &CsInfo| {
        let ms = |us: u32| f64::from(us) / 1000.0;
        let latency = match cs.io_latency {
            of_late if of_late.operations == 0 => Cell::as_number("-".into(), 0.0),
            of_late => {
                let (mean, longest) = (ms(of_late.mean_us), ms(of_late.max_us));
                Cell::as_number(format!("{mean:.1}/{longest:.1}"), mean)
            }
        };
        let rate = |bytes: u64| Cell::as_number(format!("{}/s", human(bytes)), bytes as f64);
        let reads = cs.cache_hits + cs.cache_misses;
        let hit_percent = (cs.cache_hits * 100).checked_div(reads);
        let mut cells = vec![Cell::number(cs.cs.0.into()), Cell::text(cs_status(cs))];
        cells.extend(match view {
            CsView::General => vec![
                Cell::bytes(cs.total_bytes),
                Cell::bytes(cs.free_bytes),
                Cell::number(cs.replicas),
                Cell::as_number(format!("{}%", cs.io_wait_percent), cs.io_wait_percent.into()),
                latency,
                Cell::number(cs.queue_depth.into()),
                host(&cs.host, hosts),
                Cell::text(&*cs.flags),
            ],
            CsView::Traffic => vec![
                rate(cs.read_bytes_per_s),
                rate(cs.write_bytes_per_s),
                Cell::number(cs.read_ops_per_s),
                Cell::number(cs.write_ops_per_s),
                latency,
                host(&cs.host, hosts),
            ],
            CsView::Placement => vec![
                Cell::number(cs.tier.into()),
                Cell::text(if cs.location.is_empty() { "-" } else { &cs.location }),
                Cell::number(cs.shard_addrs.len() as u64),
                Cell::number(cs.replicas),
                Cell::as_number(
                    format!("{}%", used_percent(cs.total_bytes, cs.free_bytes)),
                    used_percent(cs.total_bytes, cs.free_bytes) as f64,
                ),
                host(&cs.host, hosts),
            ],
            CsView::Upkeep => vec![
                Cell::bytes(cs.cache_total_bytes),
                Cell::bytes(cs.cached_bytes),
                Cell::as_number(
                    hit_percent.map_or("-".into(), |p| format!("{p}%")),
                    hit_percent.map_or(-1.0, |p| p as f64),
                ),
                Cell::as_number(
                    format!("{:.0}% of pass {}", cs.scrub_percent(), cs.scrub_passes + 1),
                    cs.scrub_passes as f64 * 100.0 + cs.scrub_percent(),
                ),
                Cell::number(cs.scrub_damaged),
                Cell::number(cs.catch_ups),
                Cell::number(cs.full_copies),
            ],
        });
        Row { cells, mood: cs_mood(cs), id: cs.cs.0.into() }
    };
    let heads: &[&str] = match view {
        CsView::General => {
            &["CSID", "STATUS", "SPACE", "FREE", "REPLICAS", "IOWAIT", "IOLAT(ms)", "QDEPTH", "HOST", "FLAGS"]
        }
        CsView::Traffic => &["CSID", "STATUS", "READ", "WRITE", "RD_OPS", "WR_OPS", "IOLAT(ms)", "HOST"],
        CsView::Placement => &["CSID", "STATUS", "TIER", "LOCATION", "SHARDS", "REPLICAS", "USED", "HOST"],
        CsView::Upkeep => {
            &["CSID", "STATUS", "CACHE", "CACHED", "HITS", "SCRUB", "DAMAGED", "CATCHUPS", "FULLCOPIES"]
        }
    };
    Grid { heads: heads.to_vec(), rows: all.iter().map(row).collect() }
}

/// The table of `stat`, which has as much room as it needs.
pub fn cs_at_once(all: &[CsInfo], hosts: bool) -> Grid {
    let view = |view| cs(all, view, hosts);
    view(CsView::General).with(&view(CsView::Placement), &["TIER", "LOCATION"], 2).with(
        &view(CsView::Upkeep),
        &["SCRUB", "DAMAGED"],
        0,
    )
}

pub fn clients(all: &[ClientInfo], hosts: bool) -> Grid {
    let row = |c: &ClientInfo| Row {
        cells: vec![
            Cell::number(c.client.0),
            Cell::number(c.leases.into()),
            host(&c.host, hosts),
            Cell::text(&*c.mount_point),
        ],
        mood: Mood::Plain,
        id: c.client.0,
    };
    Grid { heads: vec!["CLID", "LEASES", "HOST", "MOUNT"], rows: all.iter().map(row).collect() }
}

/// The newest first. Messages of severity info are left out unless `verbose`.
pub fn events<'a>(all: impl DoubleEndedIterator<Item = &'a Event>, verbose: bool) -> Grid {
    let row = |e: &Event| Row {
        cells: vec![
            Cell::as_number(time(e.time_ms), e.time_ms as f64),
            Cell::text(&*e.system),
            Cell::text(severity(e.severity)),
            Cell::text(&*e.message),
        ],
        mood: match e.severity {
            Severity::Info => Mood::Plain,
            Severity::Warn => Mood::Warn,
            Severity::Err => Mood::Bad,
        },
        id: e.number,
    };
    Grid {
        heads: vec!["TIME", "SYS", "SEV", "MESSAGE"],
        rows: all.rev().filter(|e| verbose || e.severity != Severity::Info).map(row).collect(),
    }
}

pub fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "INF",
        Severity::Warn => "WRN",
        Severity::Err => "ERR",
    }
}

/// How many chunks are in a state.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize)]
pub struct ChunksInState {
    pub state: &'static str,
    pub count: u64,
    /// If there are such.
    pub mood: Mood,
    pub meaning: &'static str,
}

pub fn chunk_states(counts: &ChunkCounts) -> Vec<ChunksInState> {
    let states: [(&str, u64, Mood, &str); 14] = [
        ("healthy", counts.healthy, Mood::Good, "enough replicas, their servers there"),
        ("standby", counts.standby, Mood::Warn, "a replica is inactive for less than the offline timeout"),
        ("degraded", counts.degraded, Mood::Warn, "fewer replicas than wished for, enough to write"),
        ("urgent", counts.urgent, Mood::Warn, "fewer than wished for, and one that was left out differs"),
        ("blocked", counts.blocked, Mood::Bad, "too few replicas to write: reads go on, writes wait"),
        ("pending", counts.pending, Mood::Warn, "blocked, and a copy is on its way or waits"),
        ("offline", counts.offline, Mood::Bad, "no replica can be reached: all requests wait"),
        ("replicating", counts.replicating, Mood::Plain, "being copied to one more server"),
        ("overcommitted", counts.overcommitted, Mood::Plain, "more replicas than wished for"),
        ("deleting", counts.deleting, Mood::Plain, "replicas that servers have yet to delete"),
        ("void", counts.void, Mood::Plain, "placed for a file, never written"),
        ("unique", counts.unique, Mood::Plain, "one replica in sync only"),
        ("misplaced", counts.misplaced, Mood::Warn, "not in the failure domains or on the tier wished for"),
        (
            "lossy",
            counts.lossy,
            Mood::Bad,
            "blocks that were on no replica any more: reading them is an error",
        ),
    ];
    let told = states.into_iter();
    told.map(|(state, count, mood, meaning)| ChunksInState { state, count, mood, meaning }).collect()
}

/// How many chunks are in each state, with what the state means.
pub fn chunks(counts: &ChunkCounts) -> Grid {
    let share = |n: u64| if counts.total == 0 { 0.0 } else { 100.0 * n as f64 / counts.total as f64 };
    let row = |(n, of): (usize, ChunksInState)| Row {
        cells: vec![
            Cell::text(of.state),
            Cell::number(of.count),
            Cell::as_number(format!("{:.2}%", share(of.count)), share(of.count)),
            Cell::text(of.meaning),
        ],
        mood: if of.count == 0 { Mood::Plain } else { of.mood },
        id: n as u64,
    };
    Grid {
        heads: vec!["STATE", "CHUNKS", "SHARE", "MEANING"],
        rows: chunk_states(counts).into_iter().enumerate().map(row).collect(),
    }
}

/// Of `total`, how much is not free, in percent.
pub fn used_percent(total_bytes: u64, free_bytes: u64) -> u64 {
    (total_bytes.saturating_sub(free_bytes) as f64 * 100.0 / total_bytes.max(1) as f64) as u64
}

/// How the cluster as a whole fares.
pub fn cluster_mood(stat: &ClusterStat) -> Mood {
    match &*stat.status {
        "healthy" => Mood::Good,
        "failure" => Mood::Bad,
        _ => Mood::Warn,
    }
}

/// How its chunks fare.
pub fn chunks_mood(counts: &ChunkCounts) -> Mood {
    if counts.blocked + counts.offline + counts.lossy > 0 {
        Mood::Bad
    } else if counts.standby + counts.degraded + counts.urgent + counts.misplaced > 0 {
        Mood::Warn
    } else {
        Mood::Good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(grid: &Grid) -> Vec<u64> {
        grid.rows.iter().map(|row| row.id).collect()
    }

    fn grid(rows: &[(u64, &str)]) -> Grid {
        let row = |&(n, text): &(u64, &str)| Row {
            cells: vec![Cell::bytes(n), Cell::text(text)],
            mood: Mood::Plain,
            id: n,
        };
        Grid { heads: vec!["FREE", "HOST"], rows: rows.iter().map(row).collect() }
    }

    #[test]
    fn rows_are_sorted_by_what_they_mean_not_by_what_is_shown() {
        // 9.0KB before 10.0KB, though '1' comes before '9'.
        let mut g = grid(&[(10 << 10, "b"), (9 << 10, "B"), (2 << 20, "a")]);
        g.sort(&g.order("free").unwrap());
        assert_eq!(ids(&g), [9 << 10, 10 << 10, 2 << 20]);
        g.sort(&g.order("host=inv,Free").unwrap());
        assert_eq!(ids(&g), [9 << 10, 10 << 10, 2 << 20]);
        g.sort(&g.order("host").unwrap());
        assert_eq!(ids(&g)[0], 2 << 20);
        let error = g.order("size").unwrap_err();
        assert!(error.contains("free, host"), "{error}");
        assert!(g.order("free=up").is_err());
    }

    #[test]
    fn rows_are_filtered_by_any_cell_in_any_case() {
        let mut g = grid(&[(1, "Rack1"), (2, "rack2"), (3, "other")]);
        g.filter("RACK");
        assert_eq!(ids(&g), [1, 2]);
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(duration(59), "59s");
        assert_eq!(duration(3599), "59m 59s");
        assert_eq!(duration(90_061), "1d 1h");
    }
}
