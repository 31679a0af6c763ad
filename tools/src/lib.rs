//! The administrator's command: pstorage.
//!
//! One file per command below [`commands`]; [`mds_link`] talks to the master metadata server.

pub mod commands;
pub mod conf;
pub mod mds_link;
pub mod news;
pub mod tables;

use std::net::SocketAddr;
use std::path::PathBuf;

/// What every command needs to know.
#[derive(Clone, Debug)]
pub struct Context {
    pub cluster: Option<String>,
    pub etc: PathBuf,
    pub json: bool,
}

/// Errors of commands are sentences for the administrator.
pub type Outcome<T = ()> = Result<T, String>;

/// A file that the administrator named.
pub fn read_text(path: &std::path::Path) -> Outcome<String> {
    std::fs::read_to_string(path).map_err(shards::text::at(&path))
}

impl Context {
    pub fn cluster(&self) -> Outcome<&str> {
        let name = self
            .cluster
            .as_deref()
            .ok_or("name the cluster: pstorage -c CLUSTER … (or set PSTORAGE_NAME)")?;
        wire::check_cluster_name(name)?;
        Ok(name)
    }

    pub fn cluster_dir(&self) -> Outcome<PathBuf> {
        Ok(self.etc.join("clusters").join(self.cluster()?))
    }

    /// Metadata servers named in bs.list; none when there is no such file.
    pub fn bs_list(&self) -> Outcome<Vec<SocketAddr>> {
        discovery::bs_list::read(&self.etc, self.cluster()?)
    }

    /// Metadata servers of the cluster, as [`discovery`] finds them.
    pub fn mds(&self) -> Outcome<Vec<SocketAddr>> {
        discovery::mds_of(&self.etc, self.cluster()?).map_err(|e| e.to_string())
    }

    pub fn link(&self) -> Outcome<mds_link::MdsLink> {
        self.link_by(&[])
    }

    /// By metadata servers that the administrator named, if any.
    pub fn link_by(&self, named: &[SocketAddr]) -> Outcome<mds_link::MdsLink> {
        let credentials = wire::auth::Credentials::load(&self.etc, self.cluster()?)?;
        let known = if named.is_empty() { self.mds()? } else { [named, &self.bs_list()?].concat() };
        Ok(mds_link::MdsLink::new(self.cluster()?, credentials, &known))
    }

    pub fn bs_list_path(&self) -> Outcome<PathBuf> {
        Ok(discovery::bs_list::path(&self.etc, self.cluster()?))
    }

    /// Adds addresses to bs.list that are not there.
    pub fn add_to_bs_list(&self, addrs: &[SocketAddr]) -> Outcome {
        let path = self.bs_list_path()?;
        let mut known = self.bs_list()?;
        let before = known.len();
        addrs.iter().for_each(|a| {
            if !known.contains(a) {
                known.push(*a);
            }
        });
        if known.len() == before {
            return Ok(());
        }
        let text: String = known.iter().map(|a| format!("{a}\n")).collect();
        shards::ring::replace_file(&path, text.as_bytes()).map_err(shards::text::at(&path))
    }
}

/// Prints a value for programs.
pub fn print_json(value: &impl serde::Serialize) -> Outcome {
    println!("{}", serde_json::to_string_pretty(value).map_err(|e| e.to_string())?);
    Ok(())
}

/// `N` or `N:M`: replicas wished for, and at least needed for writes.
pub fn parse_replicas(text: &str) -> Outcome<(u8, u8)> {
    let number = |digits: &str| digits.parse::<u8>().ok().filter(|n| (1..=15).contains(n));
    let read = match text.split_once(':') {
        Some((normal, minimum)) => number(normal).zip(number(minimum)),
        // One server may fail.
        None => number(text).map(|normal| (normal, normal.saturating_sub(1).max(1))),
    };
    let (normal, minimum) = read.ok_or("expected N or N:M with numbers from 1 to 15, such as 3:2")?;
    if minimum > normal {
        return Err(format!("at least {minimum} of {normal} replicas can never be: N:M with M not above N"));
    }
    Ok((normal, minimum))
}

/// A server's number as people type or paste it: `3`, `CS#3` or `cs3`, with `kind` before it.
pub fn parse_id(kind: &str, text: &str) -> Outcome<u32> {
    let lower = text.to_ascii_lowercase();
    let digits =
        lower.strip_prefix(&*kind.to_ascii_lowercase()).map_or(&*lower, |rest| rest.trim_start_matches('#'));
    let number = digits.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()));
    number.ok_or_else(|| format!("expected a number such as 3 or {kind}#3, as 'pstorage stat' shows it"))
}

/// Random bytes as hexadecimal digits.
pub fn random_hex<const N: usize>() -> String {
    shards::host::random_bytes::<N>().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_servers_are_read_or_explained() {
        for good in ["3", "CS#3", "cs3", "cs#3"] {
            assert_eq!(parse_id("CS", good), Ok(3), "{good}");
        }
        for bad in ["", "CS#", "MDS#3", "-1", "+3", "3x", "99999999999"] {
            assert!(parse_id("CS", bad).unwrap_err().contains("CS#3"), "{bad}");
        }
    }

    #[test]
    fn replicas_are_read_or_explained() {
        assert_eq!(parse_replicas("3:2"), Ok((3, 2)));
        assert_eq!(parse_replicas("1"), Ok((1, 1)));
        for bad in ["0", "2:3", "16", "-1", "3:", "3:0", "a", ":", "3:2:1"] {
            assert!(parse_replicas(bad).is_err(), "{bad}");
        }
    }
}
