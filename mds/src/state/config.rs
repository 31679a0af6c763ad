//! Settings of the cluster: names as administrators know them, units, defaults, ranges.

pub const LEASE_TIMEOUT_MS: &str = "mds.lease.timeout";
pub const OFFLINE_TIMEOUT_MS: &str = "mds.wd.offline_tout";
pub const SLOW_TIMEOUT_MS: &str = "mds.wd.slow_tout";
pub const MAX_OFFLINE_CS_HOSTS: &str = "mds.wd.max_offline_cs_hosts";
pub const FILL_MARGIN_PERCENT: &str = "mds.alloc.fill_margin";
pub const FREE_SPACE_MARGIN_MB: &str = "mds.alloc.free_space_margin";
pub const COPIES_FROM_SHARD: &str = "mds.repl.max_fills";
pub const COPIES_TO_SERVER: &str = "mds.repl.max_incoming";
pub const MOVES: &str = "mds.repl.max_moves";
pub const COPY_RATE_MB: &str = "mds.repl.max_rate";
pub const BALANCE_MARGIN_PERCENT: &str = "mds.balance.margin";
pub const ENCRYPT: &str = "net.encrypt";
pub const SCRUB_PERIOD_HOURS: &str = "cs.scrub.period";

pub(super) struct Key {
    pub name: &'static str,
    pub default: u64,
    pub least: u64,
    pub most: u64,
    pub unit: &'static str,
    pub meaning: &'static str,
}

pub(super) const KEYS: &[Key] = &[
    Key {
        name: SCRUB_PERIOD_HOURS,
        default: 168,
        least: 0,
        most: 8760,
        unit: "hours, 0 = off",
        meaning: "Within this time a chunk server reads and verifies everything it holds.",
    },
    Key {
        name: FILL_MARGIN_PERCENT,
        default: 5,
        least: 0,
        most: 50,
        unit: "percent",
        meaning: "What must stay free on a chunk server that gets new chunks.",
    },
    Key {
        name: FREE_SPACE_MARGIN_MB,
        default: 512,
        least: 0,
        most: 1 << 20,
        unit: "MB",
        meaning: "The same as a number of MB, at most a quarter of the server; the larger of the two counts.",
    },
    Key {
        name: LEASE_TIMEOUT_MS,
        default: 10_000,
        least: 1_000,
        most: 600_000,
        unit: "ms",
        meaning: "A mount that is silent for so long loses its leases: others may open the files it had open.",
    },
    Key {
        name: COPY_RATE_MB,
        default: 0,
        least: 0,
        most: 100_000,
        unit: "MB/s, 0 = no limit",
        meaning: "What one chunk server copies to others. Clients go first whatever it is.",
    },
    Key {
        name: BALANCE_MARGIN_PERCENT,
        default: 5,
        least: 0,
        most: 100,
        unit: "percent, 0 = off",
        meaning: "Chunks are moved when the used shares of the space of two chunk servers differ by so much.",
    },
    Key {
        name: COPIES_FROM_SHARD,
        default: 8,
        least: 1,
        most: 1000,
        unit: "chunks",
        meaning: "Chunks that one shard of a chunk server copies to others at a time.",
    },
    Key {
        name: COPIES_TO_SERVER,
        default: 16,
        least: 1,
        most: 1000,
        unit: "chunks",
        meaning: "Chunks that are copied to one chunk server at a time.",
    },
    Key {
        name: MOVES,
        default: 4,
        least: 1,
        most: 1000,
        unit: "chunks",
        meaning: "The same, both, for chunks that are in no danger: removal of a server, change of attributes, balance.",
    },
    Key {
        name: MAX_OFFLINE_CS_HOSTS,
        default: 2,
        least: 0,
        most: 10_000,
        unit: "hosts, 0 = off",
        meaning: "When chunk servers of more hosts than this are offline, nothing is copied automatically any more.",
    },
    Key {
        name: SLOW_TIMEOUT_MS,
        default: 60_000,
        least: 1_000,
        most: 3_600_000,
        unit: "ms",
        meaning: "A chunk server that was found slow is left out for so long; longer if it is found slow again and again.",
    },
    Key {
        name: OFFLINE_TIMEOUT_MS,
        default: 300_000,
        least: 1_000,
        most: 86_400_000,
        unit: "ms",
        meaning: "A chunk server that is away for so long is offline, and its chunks are copied elsewhere.",
    },
    Key {
        name: ENCRYPT,
        default: 0,
        least: 0,
        most: 1,
        unit: "1 = on, 0 = off",
        meaning: "All connections of the cluster go through TLS 1.3, and plain ones are refused.",
    },
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
    match key.number(value) {
        Some(v) if (key.least..=key.most).contains(&v) => Ok(()),
        _ => Err(format!("{name}={value}: a number from {} to {} ({})", key.least, key.most, key.unit)),
    }
}

impl Key {
    /// A value as it is set: what can be on or off may be set so in words.
    pub fn number(&self, value: &str) -> Option<u64> {
        match value {
            "on" if self.unit.contains("1 = on") => Some(1),
            "off" if self.unit.contains("0 = off") => Some(0),
            _ => value.parse().ok(),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_may_be_set_in_words() {
        assert!(check(ENCRYPT, "on").is_ok() && check(ENCRYPT, "off").is_ok() && check(ENCRYPT, "1").is_ok());
        assert!(check(SCRUB_PERIOD_HOURS, "off").is_ok());
        assert!(check(SCRUB_PERIOD_HOURS, "on").is_err() && check(LEASE_TIMEOUT_MS, "off").is_err());
        assert!(check(ENCRYPT, "2").unwrap_err().contains("1 = on"));
    }

    #[test]
    fn the_guide_lists_every_setting_as_it_is() {
        let guide = include_str!("../../../docs/admin-guide/cluster-parameters.md");
        for k in KEYS {
            let row = format!(
                "| `{}` | {} | {} | {} to {} | {} |",
                k.name, k.default, k.unit, k.least, k.most, k.meaning
            );
            assert!(guide.contains(&row), "docs/admin-guide/cluster-parameters.md lacks\n{row}");
        }
    }
}
