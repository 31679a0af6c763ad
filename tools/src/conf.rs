//! `ETC/pstorage.conf`: how `stat` and `top` show the cluster, one `NAME = VALUE` a line.

use std::path::Path;

/// Defaults are those of the guide.
#[derive(Clone, PartialEq, Debug)]
pub struct Conf {
    /// Addresses in place of host names.
    pub numeric_addrs: bool,
    pub refresh_ms: u64,
    /// A chunk server with less free space than both is shown as short of space.
    pub freespace_threshold_mb: u64,
    pub freespace_threshold_percent: u64,
    pub mds_sort: Option<String>,
    pub cs_sort: Option<String>,
    pub clnt_sort: Option<String>,
}

impl Default for Conf {
    fn default() -> Self {
        Conf {
            numeric_addrs: false,
            refresh_ms: 1000,
            freespace_threshold_mb: 1024,
            freespace_threshold_percent: 20,
            mds_sort: None,
            cs_sort: None,
            clnt_sort: None,
        }
    }
}

impl Conf {
    /// The defaults where there is no such file.
    ///
    /// # Errors
    /// A sentence that names the file and the line.
    pub fn read(etc: &Path) -> Result<Conf, String> {
        let path = etc.join("pstorage.conf");
        match std::fs::read_to_string(&path) {
            Ok(text) => Conf::parse(&text).map_err(|e| format!("{}: {e}", path.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Conf::default()),
            Err(e) => Err(shards::text::at(&path)(e)),
        }
    }

    fn parse(text: &str) -> Result<Conf, String> {
        let mut conf = Conf::default();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            conf.set(line).map_err(|e| format!("line {number}: {e}"))?;
        }
        Ok(conf)
    }

    fn set(&mut self, line: &str) -> Result<(), String> {
        let (name, value) = line.split_once('=').ok_or("expected NAME = VALUE")?;
        let (name, value) = (name.trim(), value.trim());
        let number = || value.parse::<u64>().map_err(|_| format!("{name}: '{value}' is no number"));
        match name {
            "numeric.addrs" => {
                self.numeric_addrs = match value {
                    "yes" | "true" | "on" | "1" => true,
                    "no" | "false" | "off" | "0" => false,
                    _ => return Err(format!("{name}: expected yes or no, not '{value}'")),
                }
            }
            "refresh.time" => {
                self.refresh_ms =
                    Some(number()?).filter(|ms| (100..=3_600_000).contains(ms)).ok_or_else(|| {
                        format!("{name}: expected milliseconds from 100 to 3600000, not {value}")
                    })?
            }
            "freespace.threshold.mb" => self.freespace_threshold_mb = number()?,
            "freespace.threshold.percent" => {
                self.freespace_threshold_percent = Some(number()?)
                    .filter(|p| *p <= 100)
                    .ok_or_else(|| format!("{name}: {value} is more than 100 percent"))?
            }
            "mds.sort" => self.mds_sort = Some(value.into()),
            "cs.sort" => self.cs_sort = Some(value.into()),
            "clnt.sort" => self.clnt_sort = Some(value.into()),
            _ => {
                return Err(format!(
                    "unknown name '{name}'; there are numeric.addrs, refresh.time, freespace.threshold.mb, \
                     freespace.threshold.percent, mds.sort, cs.sort, clnt.sort"
                ));
            }
        }
        Ok(())
    }

    /// Whether a chunk server with that much free space is short of it.
    pub fn short_of_space(&self, total_bytes: u64, free_bytes: u64) -> bool {
        free_bytes < self.freespace_threshold_mb << 20
            && u128::from(free_bytes) * 100
                < u128::from(total_bytes) * u128::from(self.freespace_threshold_percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_or_explained() {
        let conf = Conf::parse(
            "# how I like it\n\nrefresh.time = 500\nnumeric.addrs=yes # no names\ncs.sort = free=inv,csid\n",
        )
        .unwrap();
        assert_eq!((conf.refresh_ms, conf.numeric_addrs), (500, true));
        assert_eq!(conf.cs_sort.as_deref(), Some("free=inv,csid"));
        for (bad, why) in [
            ("refresh.time", "line 1: expected NAME = VALUE"),
            ("\nrefresh.time = 5", "line 2: refresh.time: expected milliseconds"),
            ("numeric.addrs = maybe", "expected yes or no"),
            ("colour = red", "unknown name 'colour'"),
            ("freespace.threshold.percent = 101", "more than 100"),
        ] {
            let error = Conf::parse(bad).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_server_is_short_of_space_below_both_thresholds() {
        let conf = Conf::default();
        assert!(conf.short_of_space(4 << 30, 512 << 20));
        assert!(!conf.short_of_space(1 << 30, 512 << 20), "half of it is free");
        assert!(!conf.short_of_space(1 << 40, 2 << 30), "2 GB are free");
    }
}
