//! Pictures of `top` on terminals of several sizes.

use super::model::{Model, Pane};
use super::screen;
use crate::conf::Conf;
use crate::news::News;
use crossterm::event::KeyCode;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use wire::mds_api::{
    ChunkCounts, ClientInfo, ClusterStat, CsInfo, CsStatus, Event, FailureDomain, FsStat, MdsInfo,
    RepairStat, ReplicaPolicy, Severity,
};
use wire::{ClientId, MdsId};

fn server(id: u32) -> CsInfo {
    let json = serde_json::json!({
        "cs": id, "status": "active", "host": format!("host{id}"), "location": format!("r1.1.{}", id % 7),
        "draining": false, "tier": 0, "total_bytes": 100u64 << 30, "free_bytes": u64::from(id) << 20, "replicas": id,
        "shard_addrs": ["127.0.0.1:20000"], "io_latency": {"operations": 9, "mean_us": 1500, "max_us": 4000}, "io_wait_percent": 12,
        "request_latency": {"operations": 3, "mean_us": 2500, "max_us": 5000}, "queue_depth": 3, "flags": "JCD",
        "cache_hits": 0, "cache_misses": 0, "cached_bytes": 0, "cache_total_bytes": 0,
        "read_bytes_per_s": 1 << 20, "write_bytes_per_s": 2 << 20, "read_ops_per_s": 10, "write_ops_per_s": 20,
        "scrubbed_bytes": 0, "scrub_total_bytes": 0, "scrub_passes": 0, "scrub_damaged": 0,
        "catch_ups": 0, "catch_up_bytes": 0, "full_copies": 0, "full_copy_bytes": 0,
    });
    serde_json::from_value(json).expect("a chunk server")
}

/// A cluster with a fault of each kind.
pub(crate) fn cluster(servers: u32) -> Box<ClusterStat> {
    let mds = |n: u64| MdsInfo {
        mds: MdsId(n),
        addr: format!("10.0.0.{n}:2510").parse().expect("an address"),
        master: n == 1,
        available: n != 3,
        voter: true,
        commits: 1000 + n,
        uptime_ms: 90_061_000,
        memory_bytes: 64 << 20,
    };
    let client =
        ClientInfo { client: ClientId(7), host: "vmhost".into(), mount_point: "/vms".into(), leases: 4 };
    Box::new(ClusterStat {
        cluster: "pcs1".into(),
        status: "degraded".into(),
        fs: FsStat {
            total_bytes: 3 << 40,
            free_bytes: 2 << 40,
            used_bytes: 300 << 30,
            available_bytes: 600 << 30,
            files: 9,
            chunks: 99,
        },
        default_policy: ReplicaPolicy { normal: 3, minimum: 2, tier: 0, domain: FailureDomain::Host },
        mds: (1..=3).map(mds).collect(),
        cs: (1..=servers).map(server).collect(),
        clients: vec![client],
        chunks: ChunkCounts { total: 100, healthy: 97, urgent: 3, blocked: 1, ..ChunkCounts::default() },
        repair: RepairStat { waiting: 2, copying: 1, ..RepairStat::default() },
        epoch_uptime_ms: 3_720_000,
        license: "none".into(),
    })
}

fn event(number: u64, severity: Severity, message: &str) -> Event {
    Event { number, time_ms: 1_349_184_606_233, system: "MDS".into(), severity, message: message.into() }
}

fn model(servers: u32) -> Model {
    let mut model = Model::new(Conf::default()).expect("a model");
    let events = vec![
        event(1, Severity::Info, "The cluster is healthy with 3 active CS"),
        event(2, Severity::Warn, "The cluster is degraded"),
    ];
    model.on_news(News { stat: Ok(cluster(servers)), events });
    model
}

/// The lines of the screen, without blanks at their ends.
fn picture(model: &Model, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| screen::draw(frame, model)).expect("draws");
    let buffer = terminal.backend().buffer().clone();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_string();
    (0..height).map(line).collect()
}

fn has(lines: &[String], text: &str) -> bool {
    lines.iter().any(|line| line.contains(text))
}

#[test]
fn all_of_a_small_cluster_stands_on_the_smallest_terminal() {
    let lines = picture(&model(3), 80, 24);
    for text in [
        "Cluster 'pcs1': degraded",
        "Space: [!!] allocatable 600.0GB of 3.0TB, free 2.0TB",
        "MDS nodes: 2 of 3, epoch uptime: 1h 2m",
        "CS nodes:  3 of 3 (3 avail, 0 inactive, 0 offline)",
        "Chunks: [!!] 100 total, 97.00% healthy, 0.00% degraded, 3.00% urgent, blocked: 1",
        "IO: read 3.0MB/s (30ops/s), write 6.0MB/s (60ops/s)",
        "Repair: 2 wait, 1 are copied",
        "M 1",
        "1.5",
        "MESSAGE",
        "h help",
    ] {
        assert!(has(&lines, text), "no {text:?} in\n{}", lines.join("\n"));
    }
}

#[test]
fn a_thousand_servers_can_be_walked_sorted_and_filtered() {
    let mut m = model(1000);
    m.on_key(KeyCode::Char('c'));
    let lines = picture(&m, 80, 24);
    assert!(
        has(&lines, "Chunk servers (general), 1 of 1000")
            && lines.iter().any(|l| l.trim_end().ends_with(" host1")),
        "{}",
        lines.join("\n")
    );
    m.on_key(KeyCode::End);
    let lines = picture(&m, 80, 24);
    assert!(has(&lines, "1000 of 1000") && has(&lines, "host1000"), "{}", lines.join("\n"));
    m.on_key(KeyCode::Home);
    (0..4).for_each(|_| m.on_key(KeyCode::Char('s')));
    m.on_key(KeyCode::Char('r'));
    assert_eq!(m.sorted_by(Pane::Cs), Some(("FREE", true)));
    assert!(has(&picture(&m, 80, 24), "FREE▼"));
    assert_eq!(m.table(Pane::Cs).rows[0].id, 1000);
    m.on_key(KeyCode::Char('/'));
    "host77".chars().for_each(|letter| m.on_key(KeyCode::Char(letter)));
    assert!(has(&picture(&m, 80, 24), "show what contains: host77_"));
    m.on_key(KeyCode::Enter);
    // host77 and host770 to host779.
    assert_eq!(m.table(Pane::Cs).rows.len(), 11);
    m.on_key(KeyCode::Esc);
    assert_eq!(m.table(Pane::Cs).rows.len(), 1000);
}

#[test]
fn keys_change_what_is_shown() {
    let mut m = model(3);
    m.on_key(KeyCode::Char('i'));
    assert!(has(&picture(&m, 120, 40), "Chunk servers (traffic)") && has(&picture(&m, 120, 40), "RD_OPS"));
    m.on_key(KeyCode::Char('e'));
    assert!(has(&picture(&m, 120, 40), "healthy with 3 active CS"));
    m.on_key(KeyCode::Char('v'));
    let lines = picture(&m, 120, 40);
    assert!(!has(&lines, "healthy with 3 active CS") && has(&lines, "WRN  The cluster is degraded"));
    m.on_key(KeyCode::Char('x'));
    assert!(has(&picture(&m, 120, 40), "too few replicas to write"));
    m.on_key(KeyCode::Char('c'));
    m.on_key(KeyCode::Down);
    m.on_key(KeyCode::Enter);
    let lines = picture(&m, 120, 40);
    assert!(
        has(&lines, "shard_addrs") && has(&lines, "host2") && !has(&lines, "host3"),
        "{}",
        lines.join("\n")
    );
    m.on_key(KeyCode::Char('h'));
    assert!(has(&picture(&m, 80, 30), "q  quit"));
    m.on_key(KeyCode::Char('a'));
    assert!(!m.help && !m.over);
    m.on_key(KeyCode::Char('q'));
    assert!(m.over);
}

#[test]
fn silence_of_the_metadata_servers_is_said_and_the_last_picture_stays() {
    let mut m = Model::new(Conf::default()).expect("a model");
    assert!(has(&picture(&m, 80, 24), "Asking"));
    m.on_news(News { stat: Err("no metadata server answers".into()), events: Vec::new() });
    assert!(has(&picture(&m, 80, 24), "no metadata server answers"));
    let mut m = model(3);
    m.on_news(News { stat: Err("no metadata server\nanswers".into()), events: Vec::new() });
    let lines = picture(&m, 80, 24);
    assert!(has(&lines, "NOT CURRENT: no metadata server answers") && has(&lines, "Cluster 'pcs1'"));
    m.on_news(News { stat: Ok(cluster(3)), events: Vec::new() });
    assert!(!has(&picture(&m, 80, 24), "NOT CURRENT"));
}

#[test]
fn servers_in_trouble_have_a_colour() {
    let mut stat = cluster(3);
    stat.cs[1].status = CsStatus::Offline;
    let mut m = model(3);
    m.on_news(News { stat: Ok(stat), events: Vec::new() });
    m.on_key(KeyCode::Char('c'));
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("a terminal");
    terminal.draw(|frame| screen::draw(frame, &m)).expect("draws");
    let buffer = terminal.backend().buffer();
    let y = (0..24).find(|y| (0..80).map(|x| buffer[(x, *y)].symbol()).collect::<String>().contains("host2"));
    assert_eq!(buffer[(0, y.expect("it is shown"))].fg, ratatui::style::Color::Red);
}

#[test]
fn a_screen_too_small_for_anything_is_no_reason_to_fall_over() {
    for (width, height) in [(1, 1), (10, 3), (20, 5), (79, 10), (300, 2)] {
        picture(&model(3), width, height);
    }
}

#[test]
fn a_wrong_column_in_the_settings_is_named() {
    let conf = Conf { cs_sort: Some("size".into()), ..Conf::default() };
    let error = Model::new(conf).err().expect("refused");
    assert!(error.contains("no column 'size'"), "{error}");
}
