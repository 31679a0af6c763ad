//! The answers below `/api`: parts of the model as JSON, with the names of `stat --json`.

use super::model::{Model, Moment, Sample, WINDOW};
use super::topology::{PlaceId, Wish, topology};
use crate::commands::doctor::finding::Finding;
use crate::tables::{ChunksInState, Mood, chunk_states, chunks_mood, cluster_mood, mds_mood, mds_status};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use wire::mds_api::{
    ChunkCounts, ClientInfo, ClusterStat, CsStatus, Event, FsStat, RepairStat, ReplicaPolicy, Severity,
};
use wire::{CsId, MdsId};

/// A damaged disk may be told of for each of a thousand servers.
const MOST_FINDINGS: usize = 50;
const MOST_EVENTS: usize = 1000;
const MOST_CLIENTS: usize = 200;

/// What is always on the page.
#[derive(Serialize)]
struct Status<'a> {
    cluster: &'a str,
    version: &'static str,
    /// Where this program runs.
    host: String,
    unix_ms: u64,
    refresh_ms: u64,
    window_ms: u64,
    /// Of the figures; none when there have never been any.
    age_ms: Option<u64>,
    current: bool,
    trouble: Option<&'a str>,
    last_event: u64,
    last_sample: u64,
    #[serde(flatten)]
    told: Option<Told<'a>>,
}

/// What the master said, as `stat --json` has it.
#[derive(Serialize)]
struct Told<'a> {
    status: &'a str,
    mood: Mood,
    findings: &'a [Finding],
    more_findings: usize,
    fs: FsStat,
    license: &'a str,
    default_policy: ReplicaPolicy,
    epoch_uptime_ms: u64,
    mds: Vec<MdsFacts>,
    /// Without those that were removed.
    cs: CsCounts,
    clients: usize,
    chunks: ChunkCounts,
    chunks_mood: Mood,
    chunk_states: Vec<ChunksInState>,
    repair: RepairStat,
}

#[derive(Serialize)]
struct MdsFacts {
    mds: MdsId,
    addr: SocketAddr,
    state: &'static str,
    mood: Mood,
    master: bool,
    commits: u64,
    uptime_ms: u64,
    memory_bytes: u64,
}

#[derive(Serialize, Default)]
struct CsCounts {
    all: usize,
    by_status: BTreeMap<String, usize>,
    draining: usize,
}

pub fn status(model: &Model, now: Moment) -> serde_json::Value {
    json!(Status {
        cluster: &model.cluster,
        version: wire::identity::PROGRAM_VERSION,
        host: shards::host::host_name(),
        unix_ms: now.unix_ms,
        refresh_ms: model.refresh.as_millis() as u64,
        window_ms: WINDOW.as_millis() as u64,
        age_ms: model.age(now).map(|age| age.as_millis() as u64),
        current: model.is_current(now),
        trouble: model.trouble.as_deref(),
        last_event: model.events.back().map_or(0, |event| event.number),
        last_sample: model.samples.back().map_or(0, |sample| sample.number),
        told: model.stat.as_deref().map(|stat| told(stat, &model.findings)),
    })
}

fn told<'a>(stat: &'a ClusterStat, findings: &'a [Finding]) -> Told<'a> {
    let mds = stat.mds.iter().map(|m| MdsFacts {
        mds: m.mds,
        addr: m.addr,
        state: mds_status(m),
        mood: mds_mood(m),
        master: m.master,
        commits: m.commits,
        uptime_ms: m.uptime_ms,
        memory_bytes: m.memory_bytes,
    });
    let shown = &findings[..findings.len().min(MOST_FINDINGS)];
    let mut cs = CsCounts::default();
    for server in stat.cs.iter().filter(|cs| cs.status != CsStatus::Dropped) {
        cs.all += 1;
        cs.draining += usize::from(server.draining);
        *cs.by_status.entry(format!("{:?}", server.status).to_lowercase()).or_default() += 1;
    }
    Told {
        status: &stat.status,
        mood: cluster_mood(stat),
        findings: shown,
        more_findings: findings.len() - shown.len(),
        fs: stat.fs,
        license: &stat.license,
        default_policy: stat.default_policy,
        epoch_uptime_ms: stat.epoch_uptime_ms,
        mds: mds.collect(),
        cs,
        clients: stat.clients.len(),
        chunks: stat.chunks,
        chunks_mood: chunks_mood(&stat.chunks),
        chunk_states: chunk_states(&stat.chunks),
        repair: stat.repair,
    }
}

/// Points behind number `after`, in columns: there are many of them.
pub fn samples(model: &Model, after: u64) -> serde_json::Value {
    let new: Vec<&Sample> = model.samples.iter().filter(|sample| sample.number > after).collect();
    let column = |of: fn(&Sample) -> u64| new.iter().map(|sample| of(sample)).collect::<Vec<u64>>();
    json!({
        "number": column(|s| s.number),
        "unix_ms": column(|s| s.unix_ms),
        "read_bytes_per_s": column(|s| s.read_bytes_per_s),
        "write_bytes_per_s": column(|s| s.write_bytes_per_s),
        "read_ops_per_s": column(|s| s.read_ops_per_s),
        "write_ops_per_s": column(|s| s.write_ops_per_s),
        "request_mean_us": column(|s| s.requests.mean_us.into()),
        "request_max_us": column(|s| s.requests.max_us.into()),
        "disk_mean_us": column(|s| s.disks.mean_us.into()),
    })
}

/// The newest first, of this severity at least.
pub fn events(model: &Model, limit: usize, least: Severity) -> serde_json::Value {
    let mut fitting = model.events.iter().rev().filter(|event| event.severity >= least);
    let events: Vec<&Event> = fitting.by_ref().take(limit.min(MOST_EVENTS)).collect();
    json!({ "events": events, "more": fitting.next().is_some() })
}

/// Those that have most files open.
pub fn clients(model: &Model) -> serde_json::Value {
    let mut all: Vec<&ClientInfo> = model.stat.iter().flat_map(|stat| &stat.clients).collect();
    all.sort_by_key(|client| (std::cmp::Reverse(client.leases), client.client));
    let more = all.len().saturating_sub(MOST_CLIENTS);
    all.truncate(MOST_CLIENTS);
    json!({ "clients": all, "more": more })
}

pub fn servers(model: &Model, wish: &Wish) -> serde_json::Value {
    json!(model.stat.as_deref().map(|stat| topology(stat, wish)))
}

/// `1:17,2:5`. What is none is left out.
pub fn place_ids(text: &str) -> impl Iterator<Item = PlaceId> {
    text.split(',').filter_map(|id| {
        let (depth, cs) = id.split_once(':')?;
        Some((depth.parse().ok()?, CsId(cs.parse().ok()?)))
    })
}

/// A value of a query without its escapes.
pub fn unescaped(value: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), value.as_bytes());
    while let [first, more @ ..] = rest {
        let digits = more.get(..2).filter(|_| *first == b'%').and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => (bytes.push(byte), rest = &more[2..]).1,
            None => (bytes.push(*first), rest = more).1,
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::{event, later, watched};
    use super::*;
    use crate::news::News;

    #[test]
    fn the_status_is_that_of_stat_and_its_age() {
        let (mut model, now) = watched(3, 2);
        let stat = serde_json::to_value(model.stat.as_deref().unwrap()).unwrap();
        let told = status(&model, later(now, 3));
        for name in
            ["cluster", "status", "fs", "license", "default_policy", "epoch_uptime_ms", "chunks", "repair"]
        {
            assert_eq!(told[name], stat[name], "{name}");
        }
        assert_eq!(
            (&told["age_ms"], &told["current"], &told["cs"]["all"]),
            (&json!(3000), &json!(true), &json!(3))
        );
        // One of three metadata servers is away, chunks are blocked: the worst comes first.
        assert_eq!(told["findings"][0]["verdict"], "error");
        assert!(!told["findings"][0]["todo"].as_str().unwrap().is_empty());
        model.on_news(News { stat: Err("nobody".into()), events: Vec::new() }, later(now, 9));
        let told = status(&model, later(now, 9));
        assert_eq!(
            (&told["current"], &told["trouble"], &told["fs"]),
            (&json!(false), &json!("nobody"), &stat["fs"])
        );
    }

    #[test]
    fn without_any_figures_the_status_says_why() {
        let now = Moment::now();
        let mut model = Model::new("pcs1", std::time::Duration::from_secs(1), now);
        model.on_news(News { stat: Err("nobody".into()), events: Vec::new() }, now);
        let told = status(&model, now);
        assert_eq!(
            (&told["age_ms"], &told["trouble"], told.get("fs")),
            (&json!(null), &json!("nobody"), None)
        );
        assert_eq!(servers(&model, &Wish::default()), json!(null));
    }

    #[test]
    fn only_new_samples_and_the_newest_events_are_told() {
        let (mut model, now) = watched(3, 5);
        let all = samples(&model, 0);
        let numbers = all["number"].as_array().unwrap();
        assert_eq!((numbers.len(), &all["read_bytes_per_s"][4]), (5, &json!(3 << 20)));
        assert_eq!(samples(&model, numbers[3].as_u64().unwrap())["number"], json!([numbers[4]]));
        let news = vec![event(100, Severity::Err), event(101, Severity::Warn), event(102, Severity::Info)];
        model.on_news(News { stat: Err(String::new()), events: news }, now);
        let told = events(&model, 2, Severity::Info);
        assert_eq!((&told["events"][0]["number"], &told["more"]), (&json!(102), &json!(true)));
        let told = events(&model, 9, Severity::Warn);
        assert_eq!((told["events"].as_array().unwrap().len(), &told["more"]), (2, &json!(false)));
        assert_eq!(clients(&model)["clients"][0]["host"], "vmhost");
    }

    #[test]
    fn queries_are_read() {
        assert_eq!(place_ids("1:17,2:5,x,3:,:4,1:2:3").collect::<Vec<_>>(), [(1, CsId(17)), (2, CsId(5))]);
        for (coded, plain) in
            [("a%20b", "a b"), ("%", "%"), ("%4", "%4"), ("%zz", "%zz"), ("%c3%BC", "ü"), ("%ff", "\u{fffd}")]
        {
            assert_eq!(unescaped(coded), plain);
        }
    }
}
