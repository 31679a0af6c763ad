//! Settings of the cluster: names as administrators know them, units, defaults, ranges.

/// A client session ends after so many milliseconds of silence.
pub const LEASE_TIMEOUT_MS: &str = "mds.lease.timeout";
/// A CS that is away for so many milliseconds is offline, and its chunks are copied elsewhere.
pub const OFFLINE_TIMEOUT_MS: &str = "mds.wd.offline_tout";
/// A CS that was found slow is left out for so many milliseconds; longer if it is found slow again and again.
pub const SLOW_TIMEOUT_MS: &str = "mds.wd.slow_tout";
/// More hosts offline than this: automatic replication stops. 0: never.
pub const MAX_OFFLINE_CS_HOSTS: &str = "mds.wd.max_offline_cs_hosts";
/// Least free percent of a CS for new chunks.
pub const FILL_MARGIN_PERCENT: &str = "mds.alloc.fill_margin";
/// Least free MB of a CS for new chunks.
pub const FREE_SPACE_MARGIN_MB: &str = "mds.alloc.free_space_margin";
/// Chunks that one shard of a chunk server copies to others at a time.
pub const COPIES_FROM_SHARD: &str = "mds.repl.max_fills";
/// Chunks that are copied to one chunk server at a time.
pub const COPIES_TO_SERVER: &str = "mds.repl.max_incoming";
/// The same, both, for chunks that are in no danger: removal of a server, change of a policy, balance.
pub const MOVES: &str = "mds.repl.max_moves";
/// What one chunk server copies to others, MB a second. 0: as much as disks and network give.
pub const COPY_RATE_MB: &str = "mds.repl.max_rate";
/// Balance begins when the used shares of the space of two chunk servers differ by so many percent. 0: never.
pub const BALANCE_MARGIN_PERCENT: &str = "mds.balance.margin";
/// Within so many hours a chunk server verifies everything it holds. 0: never.
pub const SCRUB_PERIOD_HOURS: &str = "cs.scrub.period";

pub(super) struct Key {
    pub name: &'static str,
    pub default: u64,
    pub least: u64,
    pub most: u64,
    pub unit: &'static str,
}

pub(super) const KEYS: &[Key] = &[
    Key { name: SCRUB_PERIOD_HOURS, default: 168, least: 0, most: 8760, unit: "hours, 0 = off" },
    Key { name: FILL_MARGIN_PERCENT, default: 5, least: 0, most: 50, unit: "percent" },
    Key { name: FREE_SPACE_MARGIN_MB, default: 512, least: 0, most: 1 << 20, unit: "MB" },
    Key { name: LEASE_TIMEOUT_MS, default: 10_000, least: 1_000, most: 600_000, unit: "ms" },
    Key { name: COPY_RATE_MB, default: 0, least: 0, most: 100_000, unit: "MB/s, 0 = no limit" },
    Key { name: BALANCE_MARGIN_PERCENT, default: 5, least: 0, most: 100, unit: "percent, 0 = off" },
    Key { name: COPIES_FROM_SHARD, default: 8, least: 1, most: 1000, unit: "chunks" },
    Key { name: COPIES_TO_SERVER, default: 16, least: 1, most: 1000, unit: "chunks" },
    Key { name: MOVES, default: 4, least: 1, most: 1000, unit: "chunks" },
    Key { name: MAX_OFFLINE_CS_HOSTS, default: 2, least: 0, most: 10_000, unit: "hosts, 0 = off" },
    Key { name: SLOW_TIMEOUT_MS, default: 60_000, least: 1_000, most: 3_600_000, unit: "ms" },
    Key { name: OFFLINE_TIMEOUT_MS, default: 300_000, least: 1_000, most: 86_400_000, unit: "ms" },
];

pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.name == name)
}

/// Checks a new value, or says what is wrong.
pub(super) fn check(name: &str, value: &str) -> Result<(), String> {
    let Some(key) = find(name) else {
        let nearest = KEYS.iter().min_by_key(|k| distance(k.name, name)).expect("there are keys").name;
        // Half of the letters wrong is no slip of the finger.
        return Err(if distance(nearest, name) <= name.len() / 2 {
            format!("there is no setting '{name}'; did you mean '{nearest}'?")
        } else {
            format!("there is no setting '{name}'; 'pstorage get-config' shows all")
        });
    };
    match value.parse::<u64>() {
        Ok(v) if (key.least..=key.most).contains(&v) => Ok(()),
        _ => Err(format!("{name}={value}: a number from {} to {} ({})", key.least, key.most, key.unit)),
    }
}

/// Edits between two names.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let next = (corner + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            corner = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}
