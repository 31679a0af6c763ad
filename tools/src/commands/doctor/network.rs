//! The network interfaces of this host that carry the cluster: link, speed, duplex, MTU, errors.

use super::finding::Finding;
use super::tree::Tree;
use crate::commands::services::Service;
use nix::ifaddrs::getifaddrs;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What Ethernet carries everywhere.
const USUAL_MTU_BYTES: i64 = 1500;
const LEAST_SPEED_MBIT: i64 = 1000;
/// One damaged packet of so many is one too many.
const PACKETS_FOR_AN_ERROR: u64 = 1_000_000;

pub fn look(tree: &Tree, services: &[Service]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let interfaces = match interfaces() {
        Ok(all) => all,
        Err(why) => return vec![Finding::unknown("network", "", why, "")],
    };
    let mut used = BTreeSet::new();
    for (server, ip) in addresses(services) {
        match interfaces.iter().find(|(_, ips)| ips.contains(&ip)) {
            _ if ip.is_loopback() => findings.push(Finding::warning(
                "address",
                server,
                format!("listens on {ip}, where only this host reaches it"),
                "right for a cluster on one machine; else give it an address of the network (configure-cs -a IP; an MDS is made anew)",
            )),
            Some((name, _)) => {
                used.insert(name.clone());
                findings.push(Finding::ok("address", server, format!("{ip} on {name}")));
            }
            None => findings.push(Finding::error(
                "address",
                server,
                format!("{ip} is no address of this host"),
                "give the host this address back, or the server another one (configure-cs -a IP)",
            )),
        }
    }
    if services.is_empty() {
        // A client, or a host to be: whatever it has.
        let real = |(_, ips): &(&String, &Vec<IpAddr>)| ips.iter().any(|ip| !ip.is_loopback());
        used.extend(interfaces.iter().filter(real).map(|(name, _)| name.clone()));
    }
    findings.extend(used.iter().flat_map(|name| interface(tree, name)));
    findings
}

fn interfaces() -> Result<BTreeMap<String, Vec<IpAddr>>, String> {
    let mut all: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for entry in getifaddrs().map_err(|e| format!("the interfaces can't be listed: {e}"))? {
        let Some(address) = entry.address else { continue };
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        let ip = v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())));
        all.entry(entry.interface_name).or_default().extend(ip);
    }
    Ok(all)
}

/// Where the servers of this host listen.
fn addresses(services: &[Service]) -> Vec<(String, IpAddr)> {
    let address = |s: &Service| {
        let ip = match s.service.as_str() {
            "mds" => mds::control::MdsControl::load(&s.path).ok()?.addr.ip(),
            _ => engine::control::read(&s.path).ok()?.ip,
        };
        Some((format!("{}#{}", s.service.to_uppercase(), s.id), ip))
    };
    services.iter().filter_map(address).collect()
}

fn interface(tree: &Tree, name: &str) -> Vec<Finding> {
    let at = |file: &str| format!("sys/class/net/{name}/{file}");
    if tree.text(&at("operstate")).as_deref() == Some("down") {
        let todo = "look at the cable and the switch ('ip link')";
        return vec![Finding::error("link", name, "is down", todo)];
    }
    vec![speed(tree, name), duplex(tree, name), mtu(tree, name), errors(tree, name)]
}

fn speed(tree: &Tree, name: &str) -> Finding {
    match tree.number(&format!("sys/class/net/{name}/speed")) {
        Some(mbit) if mbit >= LEAST_SPEED_MBIT => Finding::ok("speed", name, format!("{mbit} Mbit/s")),
        Some(mbit @ 1..) => Finding::warning(
            "speed",
            name,
            format!("{mbit} Mbit/s: each write goes to all its replicas through this"),
            "1 Gbit/s is the least, 10 Gbit/s is better; with a faster card, look at cable and switch ('ethtool')",
        ),
        // Virtual cards say -1, or nothing.
        _ => Finding::unknown("speed", name, "not told", "pcs-bench net measures it"),
    }
}

fn duplex(tree: &Tree, name: &str) -> Finding {
    match tree.text(&format!("sys/class/net/{name}/duplex")).as_deref() {
        Some("full") => Finding::ok("duplex", name, "full"),
        Some("half") => Finding::error(
            "duplex",
            name,
            "half: sending and receiving wait for each other, and packets are lost",
            "let both ends negotiate, or set both alike ('ethtool'), the switch too",
        ),
        _ => Finding::unknown("duplex", name, "not told", ""),
    }
}

fn mtu(tree: &Tree, name: &str) -> Finding {
    match tree.number(&format!("sys/class/net/{name}/mtu")) {
        None => Finding::unknown("MTU", name, "not told", ""),
        Some(mtu) if mtu < USUAL_MTU_BYTES => Finding::warning(
            "MTU",
            name,
            format!("{mtu} bytes: smaller packets than Ethernet has, which cost CPU"),
            "is this interface a tunnel? Give the cluster a network of its own; 9000 where every host and switch has it",
        ),
        Some(mtu) => Finding::ok("MTU", name, format!("{mtu} bytes")),
    }
}

fn errors(tree: &Tree, name: &str) -> Finding {
    let count = |file: &str| {
        tree.number(&format!("sys/class/net/{name}/statistics/{file}")).map_or(0, |n| n.unsigned_abs())
    };
    let packets = count("rx_packets") + count("tx_packets");
    let bad = count("rx_errors") + count("tx_errors");
    let found = format!("{bad} of {packets} packets had errors");
    if bad * PACKETS_FOR_AN_ERROR > packets {
        return Finding::warning(
            "packets",
            name,
            found,
            "look at cable, connectors and the switch's port ('ethtool -S')",
        );
    }
    Finding::ok("packets", name, found)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::super::tree::tests::Machine;
    use super::*;

    #[test]
    fn each_fault_of_an_interface_is_found() {
        let files = [
            ("sys/class/net/eth0/operstate", "up"),
            ("sys/class/net/eth0/speed", "10000"),
            ("sys/class/net/eth0/duplex", "full"),
            ("sys/class/net/eth0/mtu", "9000"),
            ("sys/class/net/eth0/statistics/rx_packets", "5000000"),
            ("sys/class/net/eth0/statistics/rx_errors", "3"),
        ];
        let m = Machine::with(&files);
        let all = |m: &Machine| interface(&m.tree, "eth0");
        let worst = |m: &Machine| all(m).into_iter().map(|f| f.verdict).max().unwrap();
        assert_eq!(worst(&m), Verdict::Ok, "{:?}", all(&m));
        for (file, text, verdict) in [
            ("operstate", "down", Verdict::Error),
            ("speed", "100", Verdict::Warning),
            ("speed", "-1", Verdict::Unknown),
            ("duplex", "half", Verdict::Error),
            ("mtu", "1400", Verdict::Warning),
            ("statistics/rx_errors", "6", Verdict::Warning),
        ] {
            let m = Machine::with(&files);
            m.set(&format!("sys/class/net/eth0/{file}"), text);
            assert_eq!(worst(&m), verdict, "{file} {text}: {:?}", all(&m));
        }
    }

    #[test]
    fn this_host_has_interfaces() {
        let all = interfaces().unwrap();
        assert!(all.values().flatten().any(|ip| ip.is_loopback()), "{all:?}");
    }
}
