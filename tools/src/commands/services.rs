//! `list-services`: the servers that were made on this host, and whether they run.
//!
//! make-mds, add-mds and make-cs note the directory of each server in ETC/services, a path a line. Whether it runs tells the
//! lock that it holds on a file there: it is looked up, never taken, so that nothing that starts meanwhile is disturbed.

use super::stat::table;
use crate::mds_link::MdsLink;
use crate::tables::{cs_status, mds_status};
use crate::{Context, Outcome};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use wire::mds_api::{ClusterStat, MdsReply, MdsRequest};

pub const FILE: &str = "services";
/// Where Linux lists all locks that processes hold.
const LOCKS: &str = "/proc/locks";

/// Notes a new server.
pub fn register(context: &Context, dir: &Path) -> Outcome {
    let path = context.etc.join(FILE);
    let dir = dir.canonicalize().map_err(shards::text::at(&dir))?;
    let mut dirs = noted(context)?;
    if dirs.contains(&dir) {
        return Ok(());
    }
    // What was deleted since is forgotten.
    dirs.retain(|dir| dir.exists());
    dirs.push(dir);
    let text: String = dirs.iter().map(|dir| format!("{}\n", dir.display())).collect();
    shards::ring::replace_file(&path, text.as_bytes()).map_err(shards::text::at(&path))
}

fn noted(context: &Context) -> Outcome<Vec<PathBuf>> {
    let path = context.etc.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().filter(|line| !line.is_empty()).map(PathBuf::from).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(shards::text::at(&path)(e)),
    }
}

/// A server that was made on this host.
#[derive(serde::Serialize)]
pub struct Service {
    pub cluster: String,
    /// mds or cs.
    pub service: String,
    pub id: u64,
    /// running, stopped or unreadable.
    pub status: String,
    /// 0: not running.
    pub pid: u32,
    /// What the cluster says of it; empty if it was not asked.
    pub in_cluster: String,
    pub path: PathBuf,
}

/// The process that holds the lock on `file`, of a list as /proc/locks has it.
fn holder(locks: &str, file: &std::fs::Metadata) -> Option<u32> {
    let (major, minor) = (nix::sys::stat::major(file.dev()), nix::sys::stat::minor(file.dev()));
    let name = format!("{major:02x}:{minor:02x}:{}", file.ino());
    // 1: FLOCK  ADVISORY  WRITE 17258 fe:00:6399696 0 EOF
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let held = words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&name.as_str());
        held.then(|| words[4].parse().ok())?
    })
}

fn service(dir: PathBuf, locks: &str) -> Service {
    let pid = std::fs::metadata(dir.join("lock")).ok().and_then(|file| holder(locks, &file)).unwrap_or(0);
    let card = std::fs::read_to_string(dir.join("control.json")).ok();
    let card: Option<serde_json::Value> = card.and_then(|text| serde_json::from_str(&text).ok());
    let word = |name| card.as_ref().and_then(|card| card[name].as_str()).unwrap_or("-").to_string();
    let status = match (&card, pid) {
        (None, _) => "unreadable",
        (Some(_), 0) => "stopped",
        (Some(_), _) => "running",
    };
    Service {
        cluster: word("cluster"),
        service: word("service"),
        id: card.as_ref().and_then(|card| card["id"].as_u64()).unwrap_or(0),
        status: status.into(),
        pid,
        in_cluster: String::new(),
        path: dir,
    }
}

/// What a cluster says of the service.
fn said_of(service: &Service, stat: &ClusterStat) -> String {
    let word = match &*service.service {
        "mds" => stat.mds.iter().find(|m| m.mds.0 == service.id).map(|m| mds_status(m).to_string()),
        _ => stat.cs.iter().find(|cs| u64::from(cs.cs.0) == service.id).map(cs_status),
    };
    word.unwrap_or_else(|| "removed".into())
}

/// Those that their clusters say were removed. A cluster that can't be asked says nothing.
pub fn removed<'a>(context: &Context, services: &'a [Service]) -> Vec<&'a Service> {
    let stopped = || services.iter().filter(|s| s.status == "stopped");
    let stats = ask_each(context, stopped(), MdsLink::hasty);
    let said = |s: &Service| stats[&s.cluster].as_ref().ok().map(|stat| said_of(s, stat));
    stopped().filter(|s| said(s).is_some_and(|said| matches!(&*said, "removed" | "dropped"))).collect()
}

/// What the clusters of these services say of them, each asked once.
fn ask_each<'a>(
    context: &Context,
    services: impl Iterator<Item = &'a Service>,
    patience: fn(MdsLink) -> MdsLink,
) -> BTreeMap<String, Outcome<Box<ClusterStat>>> {
    let mut stats = BTreeMap::new();
    for s in services {
        let of = || Context { cluster: Some(s.cluster.clone()), etc: context.etc.clone(), json: false };
        stats.entry(s.cluster.clone()).or_insert_with(|| stat_of(patience(of().link()?)));
    }
    stats
}

fn stat_of(mut link: MdsLink) -> Outcome<Box<ClusterStat>> {
    match link.ask(&MdsRequest::ListServices)? {
        MdsReply::Stat(stat) => Ok(stat),
        _ => Err("unexpected answer of the metadata server".into()),
    }
}

/// Servers of the cluster named, or of all; in order.
pub fn of_host(context: &Context) -> Outcome<Vec<Service>> {
    let locks = std::fs::read_to_string(LOCKS).map_err(|e| format!("{LOCKS}: {e}"))?;
    let mut services: Vec<Service> = noted(context)?.into_iter().map(|dir| service(dir, &locks)).collect();
    if let Some(cluster) = &context.cluster {
        services.retain(|s| s.cluster == *cluster);
    }
    services.sort_by(|a, b| (&a.cluster, &a.service, a.id).cmp(&(&b.cluster, &b.service, b.id)));
    Ok(services)
}

pub fn list_services(context: &Context, ask_clusters: bool) -> Outcome {
    let mut services = of_host(context)?;
    if ask_clusters {
        let is_readable = |s: &Service| s.status != "unreadable";
        let stats = ask_each(context, services.iter().filter(|s| is_readable(s)), |link| link);
        for s in services.iter_mut().filter(|s| is_readable(s)) {
            s.in_cluster = stats[&s.cluster].as_ref().map_or("unknown".into(), |stat| said_of(s, stat));
        }
        for (cluster, stat) in &stats {
            if let Err(why) = stat {
                eprintln!("cluster '{cluster}' can't be asked: {why}");
            }
        }
    }
    if context.json {
        return crate::print_json(&services);
    }
    if services.is_empty() {
        println!("No server was made on this host (none is noted in {}).", context.etc.join(FILE).display());
        return Ok(());
    }
    let mut heads = vec!["CLUSTER", "SERVICE", "ID", "STATUS", "PID", "PATH"];
    if ask_clusters {
        heads.insert(5, "IN CLUSTER");
    }
    let mut t = table(&heads);
    for s in &services {
        let pid = if s.pid == 0 { "-".into() } else { s.pid.to_string() };
        let id = if s.id == 0 { "-".into() } else { s.id.to_string() };
        let mut row = vec![s.cluster.clone(), s.service.to_uppercase(), id, s.status.clone(), pid];
        if ask_clusters {
            row.push(s.in_cluster.clone());
        }
        row.push(s.path.display().to_string());
        t.add_row(row);
    }
    println!("{t}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_found() {
        let dir = std::env::temp_dir().join(format!("services-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("lock");
        let file = std::fs::File::create(&path).unwrap();
        let listed = || std::fs::read_to_string(LOCKS).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!(holder(&listed(), &meta), None);
        let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
        assert_eq!(holder(&listed(), &meta), Some(std::process::id()));
        drop(lock);
        assert_eq!(holder(&listed(), &meta), None);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
