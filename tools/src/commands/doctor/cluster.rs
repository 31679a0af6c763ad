//! The cluster as its master describes it: what is away, what may fail as a whole, is there room. Then [`super::servers`].

use super::finding::Finding;
use super::servers;
use crate::Context;
use crate::commands::stat::{self, human};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use wire::auth::Credentials;
use wire::mds_api::{ClusterStat, CsInfo, CsStatus, FailureDomain};

/// Of the physical space. From here on the event log warns, too.
const FILLED_PERCENT: u64 = 80;
const FULL_PERCENT: u64 = 95;
/// A disk so many times slower than the one in the middle, and slow at that, is failing.
const SLOWER_TIMES: u32 = 10;
const SLOW_US: u32 = 10_000;
/// Servers that one finding names.
const MOST_NAMES: usize = 10;

pub fn look(context: &Context) -> Vec<Finding> {
    let asked = stat::ask(context);
    let credentials = context.cluster().and_then(|name| Credentials::load(&context.etc, name));
    match (asked, credentials) {
        (Ok(stat), Ok(credentials)) => {
            let mut findings = vec![Finding::ok("master", "", "answers"), password(&stat, &credentials)];
            findings.extend(judge(&stat));
            findings.extend(servers::judge(&servers::ask_all(&stat.cluster, &credentials, &stat)));
            findings
        }
        (Err(why), _) | (_, Err(why)) => {
            let todo =
                "docs/admin-guide/troubleshooting.md, 'A command finds no cluster', lists what it may be";
            vec![Finding::error("master", "", why, todo)]
        }
    }
}

fn password(stat: &ClusterStat, credentials: &Credentials) -> Finding {
    let outside = stat.mds.iter().any(|m| !m.addr.ip().is_loopback());
    if credentials.is_open() && outside {
        let found = "there is none: whoever reaches the network reads, writes and deletes everything";
        return Finding::warning(
            "authentication",
            "",
            found,
            "a cluster is given one when it is made (make-mds -I -p)",
        );
    }
    Finding::ok(
        "authentication",
        "",
        if outside { "nodes prove who they are" } else { "no server is reached from outside" },
    )
}

/// What the master's own description tells.
pub fn judge(stat: &ClusterStat) -> Vec<Finding> {
    // What goes on now, then what might happen one day.
    let mut findings = vec![metadata_servers(stat), chunk_servers(stat), chunks(stat), space(stat)];
    findings.extend(bad_disks(&stat.cs));
    findings.push(license(stat));
    findings.extend(one_host_of_mds(stat));
    findings.push(replicas(stat));
    findings.extend(domains(stat));
    findings.extend(room_for_repair(stat));
    findings
}

fn there(stat: &ClusterStat) -> impl Iterator<Item = &CsInfo> {
    stat.cs.iter().filter(|cs| cs.status != CsStatus::Dropped && !cs.draining)
}

fn metadata_servers(stat: &ClusterStat) -> Finding {
    let (all, up) = (stat.mds.len(), stat.mds.iter().filter(|m| m.available).count());
    let majority = all / 2 + 1;
    let spare = up.saturating_sub(majority);
    let found = format!("{up} of {all} answer, {spare} of them may fail");
    let name = "metadata servers";
    if up < all {
        let away: Vec<String> =
            stat.mds.iter().filter(|m| !m.available).map(|m| format!("MDS#{} ({})", m.mds, m.addr)).collect();
        let found = format!("{found}; away: {}", away.join(", "));
        let todo = "start what is away, or replace it: add-mds, then rm-mds";
        return if spare == 0 {
            Finding::error(name, "", found, todo)
        } else {
            Finding::warning(name, "", found, todo)
        };
    }
    if let Some(new) = stat.mds.iter().find(|m| !m.voter) {
        let found = format!("{found}; MDS#{} is still learning", new.mds);
        return Finding::warning(name, "", found, "wait until stat shows it as avail");
    }
    match all {
        1 => Finding::warning(
            name,
            "",
            "there is one: with it the cluster stops, and its disk is all there is",
            "have three (add-mds)",
        ),
        even if even % 2 == 0 => {
            let todo =
                "have one more or one fewer: an even number survives no more failures, and has more of them";
            Finding::warning(name, "", found, todo)
        }
        _ => Finding::ok(name, "", found),
    }
}

/// A host that takes the majority with it.
fn one_host_of_mds(stat: &ClusterStat) -> Option<Finding> {
    let mut by_ip: BTreeMap<IpAddr, usize> = BTreeMap::new();
    stat.mds.iter().for_each(|m| *by_ip.entry(m.addr.ip()).or_default() += 1);
    let (ip, count) = by_ip.into_iter().max_by_key(|(_, count)| *count)?;
    if count < 2 || stat.mds.len() - count > stat.mds.len() / 2 {
        return None;
    }
    let found = format!(
        "{count} of {} metadata servers are on {ip}: with that host the cluster stops",
        stat.mds.len()
    );
    Some(Finding::warning(
        "single point of failure",
        ip.to_string(),
        found,
        "one metadata server a host (add-mds elsewhere, rm-mds)",
    ))
}

fn chunk_servers(stat: &ClusterStat) -> Finding {
    let name = "chunk servers";
    let with = |status| there(stat).filter(move |cs| cs.status == status);
    let list = |all: Vec<&CsInfo>| {
        let names: Vec<String> =
            all.iter().take(MOST_NAMES).map(|cs| format!("CS#{} ({})", cs.cs, cs.host)).collect();
        match all.len().saturating_sub(MOST_NAMES) {
            0 => names.join(", "),
            more => format!("{} and {more} more", names.join(", ")),
        }
    };
    let away: Vec<&CsInfo> = with(CsStatus::Offline).chain(with(CsStatus::Failed)).collect();
    let inactive: Vec<&CsInfo> = with(CsStatus::Inactive).collect();
    if there(stat).next().is_none() {
        return Finding::error(
            name,
            "",
            "there is none: nothing can be stored",
            "make-cs, and start pstorage-csd",
        );
    }
    if !away.is_empty() {
        let found = format!("offline: {}", list(away));
        return Finding::error(
            name,
            "",
            found,
            "start them; if they are lost, rm-cs -f, and make-cs on a good disk",
        );
    }
    if !inactive.is_empty() {
        let found = format!("inactive: {}", list(inactive));
        let todo = "start them within mds.wd.offline_tout, else their chunks are copied elsewhere";
        return Finding::warning(name, "", found, todo);
    }
    Finding::ok(name, "", format!("all {} are active", there(stat).count()))
}

fn chunks(stat: &ClusterStat) -> Finding {
    let c = &stat.chunks;
    let bad = [(c.blocked, "blocked"), (c.offline, "offline"), (c.lossy, "with blocks gone")];
    let poor =
        [(c.urgent, "urgent"), (c.degraded, "degraded"), (c.standby, "standby"), (c.misplaced, "misplaced")];
    let list = |all: &[(u64, &str)]| {
        let there: Vec<String> =
            all.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}")).collect();
        (!there.is_empty()).then(|| there.join(", "))
    };
    if let Some(bad) = list(&bad) {
        let found = format!("{bad}, of {}", c.total);
        return Finding::error(
            "chunks",
            "",
            found,
            "'explain FILE' says why, and what happens next; get-event names the files",
        );
    }
    if let Some(poor) = list(&poor) {
        let found = format!("{poor}, of {}", c.total);
        let todo = "wait for the repair that stat shows; what stays so waits for a server, or for room: 'explain FILE'";
        return Finding::warning("chunks", "", found, todo);
    }
    Finding::ok("chunks", "", format!("all {} are healthy", c.total))
}

fn replicas(stat: &ClusterStat) -> Finding {
    let policy = &stat.default_policy;
    let found = format!("{}:{} for what is made in /", policy.normal, policy.minimum);
    let todo = "pstorage set-attr -R / replicas=3:2";
    match (policy.normal, policy.minimum) {
        (1, _) => {
            let found = format!("{found}: each chunk is on one disk, and lost with it");
            Finding::warning("replicas", "", found, todo)
        }
        (normal, minimum) if normal == minimum => {
            let found = format!("{found}: writes stop as soon as one server is away");
            Finding::warning("replicas", "", found, todo)
        }
        _ => Finding::ok("replicas", "", found),
    }
}

/// What fails together with a server. Those that nobody gave a location stand in one unknown place.
fn domain_of(cs: &CsInfo, domain: FailureDomain) -> String {
    let parts = match domain {
        FailureDomain::Disk => return cs.cs.to_string(),
        FailureDomain::Host => return cs.host.clone(),
        FailureDomain::Rack => 3,
        FailureDomain::Row => 2,
        FailureDomain::Room => 1,
    };
    cs.location.split('.').take(parts).collect::<Vec<_>>().join(".")
}

/// Do replicas find as many places that fail apart as there are of them, and one more?
fn domains(stat: &ClusterStat) -> Vec<Finding> {
    let policy = &stat.default_policy;
    let (kind, name) = (policy.domain, "failure domain");
    let mut findings = Vec::new();
    if kind > FailureDomain::Host {
        let lost: Vec<String> =
            there(stat).filter(|cs| cs.location.is_empty()).map(|cs| format!("CS#{}", cs.cs)).collect();
        if !lost.is_empty() {
            let found = format!("failure-domain={}, but nobody said where {} stand", kind, lost.join(", "));
            let todo = "write ROOM.ROW.RACK into /etc/pstorage/location of their hosts, and restart them";
            findings.push(Finding::error(name, "", found, todo));
        }
    }
    let places = there(stat).map(|cs| domain_of(cs, kind)).collect::<BTreeSet<_>>().len();
    let hosts = there(stat).map(|cs| cs.host.as_str()).collect::<BTreeSet<_>>().len();
    let normal = usize::from(policy.normal);
    let found = format!("{places} of kind '{}' for {normal} replicas", kind);
    if kind == FailureDomain::Disk {
        let (found, todo) = if hosts > 1 {
            ("replicas of a chunk may all be on one host", "pstorage set-attr -R / failure-domain=host")
        } else {
            (
                "all chunk servers are on one host",
                "have chunk servers on as many hosts as replicas, and failure-domain=host",
            )
        };
        findings.push(Finding::warning("single point of failure", "", found, todo));
    }
    if places == 0 {
        return findings;
    }
    findings.push(match places {
        n if n < normal => {
            let found = format!("{found}: some of them share one, and are lost together");
            Finding::error(
                name,
                "",
                found,
                format!("add chunk servers on another {}, or ask for fewer replicas", kind),
            )
        }
        n if n == normal && normal > 1 => {
            let found = format!("{found}: when one is lost, its chunks have no place to be copied to");
            Finding::warning(name, "", found, format!("have chunk servers on one more {}", kind))
        }
        _ => Finding::ok(name, "", found),
    });
    findings
}

fn space(stat: &ClusterStat) -> Finding {
    let fs = &stat.fs;
    let used = crate::tables::used_percent(fs.total_bytes, fs.free_bytes);
    let found =
        format!("{used}% of {} used, {} allocatable", human(fs.total_bytes), human(fs.available_bytes));
    let todo = "start what is away, add chunk servers, or delete something; fstrim in virtual machines gives back what they don't use";
    match used {
        _ if fs.total_bytes == 0 => {
            Finding::unknown("free space", "", "no chunk server tells how much there is", "")
        }
        _ if fs.available_bytes == 0 => {
            Finding::error("free space", "", format!("{found}: writes that need room fail"), todo)
        }
        FULL_PERCENT.. => Finding::error("free space", "", found, todo),
        FILLED_PERCENT.. => Finding::warning("free space", "", found, todo),
        _ => Finding::ok("free space", "", found),
    }
}

/// Could the others take what the largest domain holds?
fn room_for_repair(stat: &ClusterStat) -> Option<Finding> {
    let kind = stat.default_policy.domain;
    let mut by_place: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for cs in there(stat) {
        let (used, free) = by_place.entry(domain_of(cs, kind)).or_default();
        *used += cs.total_bytes.saturating_sub(cs.free_bytes);
        *free += cs.free_bytes;
    }
    // Too few places for a copy are told by `domains`.
    if by_place.len() <= usize::from(stat.default_policy.normal) {
        return None;
    }
    let all_free: u64 = by_place.values().map(|(_, free)| free).sum();
    let (place, (used, free)) = by_place.into_iter().max_by_key(|(_, (used, _))| *used)?;
    let left = all_free - free;
    let found = format!("{} {place} holds {}, the others have {} free", kind, human(used), human(left));
    if used > left {
        let todo = "add room elsewhere: when it is lost, not all of its chunks can be copied";
        return Some(Finding::warning("room for repair", "", found, todo));
    }
    Some(Finding::ok("room for repair", "", found))
}

/// Disks that return damaged data, or are far slower than the others.
fn bad_disks(all: &[CsInfo]) -> Vec<Finding> {
    let replace = "replace its disk: rm-cs --wait, make-cs on a new one";
    let mut findings = Vec::new();
    for cs in all.iter().filter(|cs| cs.status != CsStatus::Dropped && cs.scrub_damaged > 0) {
        let found = format!("{} damaged places found on its disk since it started", cs.scrub_damaged);
        findings.push(Finding::warning("damage", format!("CS#{} ({})", cs.cs, cs.host), found, replace));
    }
    let busy = || all.iter().filter(|cs| cs.io_latency.operations > 0);
    let mut means: Vec<u32> = busy().map(|cs| cs.io_latency.mean_us).collect();
    means.sort_unstable();
    let Some(middle) = means.get(means.len() / 2).filter(|_| means.len() > 2) else { return findings };
    for cs in busy().filter(|cs| cs.io_latency.mean_us > SLOW_US.max(middle * SLOWER_TIMES)) {
        let ms = |us: u32| f64::from(us) / 1e3;
        let mean = ms(cs.io_latency.mean_us);
        let found = format!("an operation takes {mean:.1} ms on its disk, and {:.1} on others", ms(*middle));
        findings.push(Finding::warning("slow disk", format!("CS#{} ({})", cs.cs, cs.host), found, replace));
    }
    findings
}

fn license(stat: &ClusterStat) -> Finding {
    if stat.license.starts_with("ACTIVE") {
        return Finding::ok("license", "", stat.license.as_str());
    }
    Finding::warning(
        "license",
        "",
        stat.license.as_str(),
        "load-license or update-license ('stat-license' says what has ended)",
    )
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;
    use crate::commands::top::tests::cluster;
    use wire::mds_api::{ChunkCounts, ReplicaPolicy};

    /// Three metadata servers, five chunk servers on hosts of their own, replicas 3:2.
    fn healthy() -> ClusterStat {
        let mut stat = *cluster(5);
        stat.mds.iter_mut().for_each(|m| m.available = true);
        stat.default_policy = ReplicaPolicy { normal: 3, minimum: 2, tier: 0, domain: FailureDomain::Host };
        stat.chunks = ChunkCounts { total: 100, healthy: 100, ..ChunkCounts::default() };
        stat.fs.total_bytes = 5 << 40;
        stat.fs.free_bytes = 4 << 40;
        stat.fs.available_bytes = 1 << 40;
        stat.license = "ACTIVE (free, without limits)".into();
        for cs in &mut stat.cs {
            cs.host = format!("host{}", cs.cs);
            cs.location = String::new();
            (cs.total_bytes, cs.free_bytes) = (1 << 40, 800 << 30);
            cs.io_latency = Default::default();
        }
        stat
    }

    #[test]
    fn each_weakness_of_a_cluster_is_found() {
        let all = judge(&healthy());
        assert!(all.iter().all(|f| f.verdict == Verdict::Ok), "{all:#?}");
        type Change = fn(&mut ClusterStat);
        let faults: [(&str, Verdict, Change); 22] = [
            ("metadata servers", Verdict::Warning, |s| s.mds.truncate(1)),
            ("metadata servers", Verdict::Warning, |s| s.mds.truncate(2)),
            ("metadata servers", Verdict::Error, |s| s.mds[1].available = false),
            ("metadata servers", Verdict::Warning, |s| s.mds[1].voter = false),
            ("single point of failure", Verdict::Warning, |s| s.mds[1].addr = s.mds[0].addr),
            ("chunk servers", Verdict::Error, |s| s.cs.clear()),
            ("chunk servers", Verdict::Error, |s| s.cs[4].status = CsStatus::Offline),
            ("chunk servers", Verdict::Warning, |s| s.cs[4].status = CsStatus::Inactive),
            ("chunks", Verdict::Error, |s| s.chunks.blocked = 1),
            ("chunks", Verdict::Error, |s| s.chunks.lossy = 1),
            ("chunks", Verdict::Warning, |s| s.chunks.urgent = 1),
            ("replicas", Verdict::Warning, |s| (s.default_policy.normal, s.default_policy.minimum) = (1, 1)),
            ("replicas", Verdict::Warning, |s| s.default_policy.minimum = 3),
            ("failure domain", Verdict::Error, |s| s.cs.iter_mut().for_each(|cs| cs.host = "one".into())),
            ("failure domain", Verdict::Warning, |s| s.cs.truncate(3)),
            ("failure domain", Verdict::Error, |s| s.default_policy.domain = FailureDomain::Rack),
            ("single point of failure", Verdict::Warning, |s| s.default_policy.domain = FailureDomain::Disk),
            ("free space", Verdict::Warning, |s| s.fs.free_bytes = 800 << 30),
            ("free space", Verdict::Error, |s| s.fs.available_bytes = 0),
            ("room for repair", Verdict::Warning, |s| {
                s.cs.iter_mut().for_each(|cs| cs.free_bytes = 100 << 30)
            }),
            ("damage", Verdict::Warning, |s| s.cs[0].scrub_damaged = 2),
            ("license", Verdict::Warning, |s| s.license = "EXPIRED (…)".into()),
        ];
        for (n, (check, verdict, change)) in faults.into_iter().enumerate() {
            let mut stat = healthy();
            change(&mut stat);
            let all = judge(&stat);
            let found = all.iter().filter(|f| f.check == check).max_by_key(|f| f.verdict);
            let found = found.unwrap_or_else(|| panic!("fault {n}: no '{check}' in {all:#?}"));
            assert_eq!(found.verdict, verdict, "fault {n}: {found}");
            assert!(!found.todo.is_empty(), "fault {n}: {found}");
        }
    }

    #[test]
    fn a_disk_far_slower_than_the_others_is_named() {
        let mut stat = healthy();
        for (cs, mean_us) in stat.cs.iter_mut().zip([400, 500, 450, 600, 30_000]) {
            cs.io_latency = wire::cs_api::LatencyStat { operations: 9, mean_us, max_us: 2 * mean_us };
        }
        let found = bad_disks(&stat.cs);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].subject.starts_with("CS#5"), "{}", found[0]);
    }

    #[test]
    fn racks_count_by_their_whole_name() {
        let mut stat = healthy();
        stat.default_policy.domain = FailureDomain::Rack;
        let places = ["a.1.1", "a.1.2", "a.2.1", "b.1.1", "b.1.1"];
        stat.cs.iter_mut().zip(places).for_each(|(cs, place)| cs.location = place.into());
        let found = domains(&stat);
        assert_eq!(found[0].verdict, Verdict::Ok, "{}", found[0]);
        assert!(found[0].found.starts_with("4 of kind 'rack'"), "{}", found[0]);
    }
}
