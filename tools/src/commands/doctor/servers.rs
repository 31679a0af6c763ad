//! Every server of the cluster, asked from this host: does it answer, also with large messages, what time does it have, which
//! version is it.

use super::finding::Finding;
use crate::mds_link::MdsLink;
use shards::Buf;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use wire::auth::Credentials;
use wire::identity::{Identity, PROGRAM_VERSION};
use wire::mds_api::{ClusterStat, CsStatus};
use wire::{Frame, Head, Kind, decode};

/// Many packets of any network: where some are dropped for their size, this does not arrive.
const LARGE_BYTES: usize = 64 << 10;
const ASKED_AT_ONCE: usize = 16;
/// Clocks further apart than this are wrong; what lies between is how long an answer takes.
const CLOCKS_APART_MS: u64 = 1000;

/// A server to be asked, `MDS#1` or `CS#3`, and what came of it.
pub struct Asked {
    pub name: String,
    pub addr: SocketAddr,
    pub answer: Result<Answer, Silence>,
}

#[derive(Clone, Debug)]
pub struct Answer {
    pub version: String,
    /// How far its clock is ahead of ours, at least: what may be the way of the answer is not counted.
    pub clock_ahead_ms: i64,
}

#[derive(Clone, Debug)]
pub enum Silence {
    /// Not even small messages pass, or it does not know the question.
    Silent(String),
    /// Small ones do.
    LargeLost(String),
}

/// Asks those that the master counts as there.
pub fn ask_all(cluster: &str, credentials: &Credentials, stat: &ClusterStat) -> Vec<Asked> {
    let mds = stat.mds.iter().filter(|m| m.available).map(|m| (format!("MDS#{}", m.mds), m.addr));
    let active = stat.cs.iter().filter(|cs| cs.status == CsStatus::Active);
    let cs = active.filter_map(|cs| Some((format!("CS#{}", cs.cs), *cs.shard_addrs.first()?)));
    let all: Vec<(String, SocketAddr)> = mds.chain(cs).collect();
    let mut asked = Vec::with_capacity(all.len());
    std::thread::scope(|scope| {
        let share = all.len().div_ceil(ASKED_AT_ONCE).max(1);
        let ask = |part: &[(String, SocketAddr)]| -> Vec<Asked> {
            let one = |(name, addr): &(String, SocketAddr)| {
                let answer = ask(cluster, credentials, *addr);
                Asked { name: name.clone(), addr: *addr, answer }
            };
            part.iter().map(one).collect()
        };
        let threads: Vec<_> = all.chunks(share).map(|part| scope.spawn(move || ask(part))).collect();
        asked.extend(threads.into_iter().flat_map(|thread| thread.join().expect("asking does not panic")));
    });
    asked
}

fn ask(cluster: &str, credentials: &Credentials, addr: SocketAddr) -> Result<Answer, Silence> {
    let mut link = MdsLink::new(cluster, credentials.clone(), &[]).hasty();
    // Connects, so that the next question is under way for as short as can be.
    identify(&mut link, addr, 0).map_err(Silence::Silent)?;
    let (began, before_ms) = (Instant::now(), shards::host::unix_ms());
    let identity = identify(&mut link, addr, 0).map_err(Silence::Silent)?;
    let clock_ahead_ms = ahead_ms(identity.time_ms, before_ms, began.elapsed());
    identify(&mut link, addr, LARGE_BYTES).map_err(Silence::LargeLost)?;
    Ok(Answer { version: identity.version, clock_ahead_ms })
}

fn identify(link: &mut MdsLink, addr: SocketAddr, payload_bytes: usize) -> Result<Identity, String> {
    let payload = Buf::from_slice(&vec![0x5a; payload_bytes]);
    let question = Frame::new(Head::new(Kind::Identify, 1), &[], payload.clone());
    let answer = link.ask_shard(addr, &question)?;
    if answer.head.kind != Kind::Identity || answer.payload != payload {
        return Err(format!("{addr}: answers something else"));
    }
    decode!(Identity, &answer.meta)
}

/// The server told its time between our two looks at the clock.
fn ahead_ms(told_ms: u64, before_ms: u64, took: Duration) -> i64 {
    let after_ms = before_ms + took.as_millis() as u64 + 1;
    match told_ms {
        early if early < before_ms => -((before_ms - early) as i64),
        late if late > after_ms => (late - after_ms) as i64,
        _ => 0,
    }
}

pub fn judge(all: &[Asked]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for asked in all {
        let at = format!("{} ({})", asked.name, asked.addr);
        match &asked.answer {
            Ok(_) => {}
            Err(Silence::Silent(why)) => findings.push(Finding::error(
                "reach",
                at,
                format!("the master hears it, this host does not: {why}"),
                "look at routes and firewalls between the two; servers older than this program do not know the question",
            )),
            Err(Silence::LargeLost(why)) => findings.push(Finding::error(
                "reach",
                at,
                format!("answers small messages, but not one of {} KB: {why}", LARGE_BYTES >> 10),
                "one MTU on all interfaces and switches between the two: large packets get lost",
            )),
        }
    }
    let answered: Vec<(&str, &Answer)> =
        all.iter().filter_map(|a| Some((a.name.as_str(), a.answer.as_ref().ok()?))).collect();
    if findings.is_empty() {
        let found = format!("{} servers answer this host, with large messages too", answered.len());
        findings.push(Finding::ok("reach", "", found));
    }
    findings.extend(clocks(&answered));
    findings.push(versions(&answered));
    findings
}

fn clocks(all: &[(&str, &Answer)]) -> Vec<Finding> {
    let wrong = |ahead_ms: i64| ahead_ms.unsigned_abs() > CLOCKS_APART_MS;
    let apart: Vec<&(&str, &Answer)> = all.iter().filter(|(_, a)| wrong(a.clock_ahead_ms)).collect();
    if apart.is_empty() {
        let most = all.iter().map(|(_, a)| a.clock_ahead_ms.unsigned_abs()).max().unwrap_or(0);
        let found = format!("all within {} ms of this host's", most.max(1));
        return vec![Finding::ok("clocks", "", found)];
    }
    let todo = "times of files, events and licences are wrong: have a time service on both hosts";
    if apart.len() == all.len() && all.len() > 1 {
        let found = format!("this host's differs from all others, by {} ms", apart[0].1.clock_ahead_ms);
        return vec![Finding::warning("clocks", "", found, todo)];
    }
    let one = |(name, a): &&(&str, &Answer)| {
        let way = if a.clock_ahead_ms > 0 { "ahead of" } else { "behind" };
        let found = format!("{} ms {way} this host's", a.clock_ahead_ms.unsigned_abs());
        Finding::warning("clocks", *name, found, todo)
    };
    apart.iter().map(one).collect()
}

fn versions(all: &[(&str, &Answer)]) -> Finding {
    let others: Vec<String> = all
        .iter()
        .filter(|(_, a)| a.version != PROGRAM_VERSION)
        .map(|(name, a)| format!("{name} {}", a.version))
        .collect();
    if others.is_empty() {
        return Finding::ok("versions", "", format!("all {PROGRAM_VERSION}"));
    }
    let found = format!("this program is {PROGRAM_VERSION}, but {}", others.join(", "));
    Finding::warning(
        "versions",
        "",
        found,
        "end the upgrade: install the newest on all hosts, one after the other",
    )
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn answered(name: &str, version: &str, clock_ahead_ms: i64) -> Asked {
        let answer = Answer { version: version.into(), clock_ahead_ms };
        Asked { name: name.into(), addr: "10.0.0.1:2510".parse().unwrap(), answer: Ok(answer) }
    }

    #[test]
    fn what_the_way_takes_is_not_blamed_on_the_clock() {
        let took = Duration::from_millis(300);
        assert_eq!(ahead_ms(1_000, 1_000, took), 0);
        assert_eq!(ahead_ms(1_300, 1_000, took), 0);
        assert_eq!(ahead_ms(2_301, 1_000, took), 1_000);
        assert_eq!(ahead_ms(400, 1_000, took), -600);
    }

    #[test]
    fn servers_that_stand_out_are_named() {
        let verdicts = |all: &[Asked]| {
            let found = judge(all);
            ["reach", "clocks", "versions"].map(|check| {
                found.iter().filter(|f| f.check == check).map(|f| f.verdict).max().expect("each is looked at")
            })
        };
        let own = PROGRAM_VERSION;
        use Verdict::{Error, Ok, Warning};
        assert_eq!(verdicts(&[answered("MDS#1", own, 0), answered("CS#1", own, -20)]), [Ok, Ok, Ok]);
        let late = [answered("MDS#1", own, 0), answered("CS#1", own, -3000)];
        assert_eq!(verdicts(&late), [Ok, Warning, Ok]);
        assert!(judge(&late).iter().any(|f| f.subject == "CS#1" && f.found.contains("3000 ms behind")));
        let all_late = [answered("MDS#1", own, -3000), answered("CS#1", own, -3000)];
        assert!(judge(&all_late).iter().any(|f| f.found.contains("this host's differs")));
        assert_eq!(verdicts(&[answered("MDS#1", "0.0.9", 0)]), [Ok, Ok, Warning]);
        let mut lost = answered("CS#2", own, 0);
        lost.answer = Err(Silence::LargeLost("no answer".into()));
        let found = judge(&[answered("MDS#1", own, 0), lost]);
        assert_eq!(found[0].verdict, Error);
        assert!(found[0].todo.contains("MTU"), "{}", found[0]);
    }
}
