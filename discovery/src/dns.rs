//! Questions to the name servers of /etc/resolv.conf, over UDP, and over TCP where an answer is long.
//!
//! Every lookup ends within [`WITHIN`], whatever the servers do; [`TRY`] is the time each gets per attempt.

use crate::message::{self, Answer, Ask, Data, Record, Verdict};
use crate::names::{self, Server};
use resolv_conf::ScopedIp;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

/// For one method of discovery with all its questions.
pub const WITHIN: Duration = Duration::from_secs(3);
/// For one answer of one server.
const TRY: Duration = Duration::from_secs(1);
const ATTEMPTS: usize = 2;
const DNS_PORT: u16 = 53;
/// A zone that is longer is not read: it is not one of a few clusters.
const LONGEST_ZONE_BYTES: usize = 64 << 20;

/// Why DNS did not help.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("{path}: {why}")]
    Settings { path: String, why: String },
    #[error("{path} names no server")]
    NoServer { path: String },
    #[error("{path} names no search domain, whose zone could be asked for")]
    NoDomain { path: String },
    #[error("no answer about {name} ({tried})")]
    NoAnswer { name: String, tried: String },
    #[error("{zone} is not given away ({tried})")]
    NoTransfer { zone: String, tried: String },
    #[error("{servers}: no {what} {name}")]
    Nothing { servers: String, what: &'static str, name: String },
    #[error("the servers of {name} have no address: {hosts}")]
    NoAddress { name: String, hosts: String },
}

type Result<T, E = DnsError> = std::result::Result<T, E>;

/// The name servers that this machine uses, and the domains in which it looks for short names.
#[derive(Clone, Debug)]
pub struct Resolver {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    from: String,
    until: Instant,
}

impl Resolver {
    /// Of the system's settings, usually /etc/resolv.conf. Its time runs from now on.
    pub fn from_file(path: &Path) -> Result<Resolver> {
        let from = path.display().to_string();
        let fail = |why: String| DnsError::Settings { path: from.clone(), why };
        let text = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
        let (settings, _mistakes) = resolv_conf::Config::parse_with_errors(&text);
        let servers: Vec<SocketAddr> = settings.nameservers.iter().filter_map(server_addr).collect();
        if servers.is_empty() {
            return Err(DnsError::NoServer { path: from });
        }
        let search = settings.get_last_search_or_domain().map(|d| d.trim_end_matches('.').to_string());
        let search = search.filter(|d| !d.is_empty()).collect();
        Ok(Resolver { servers, search, from, until: Instant::now() + WITHIN })
    }

    /// Cluster names in the TXT records `pstorage_clusters` of all search domains.
    pub fn clusters_by_txt(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut failed = None;
        for domain in self.domains() {
            match self.ask(&names::join(names::CLUSTERS, domain), Ask::Txt) {
                Ok(answer) => found.extend(answer.records.iter().flat_map(|record| match &record.data {
                    Data::Txt(strings) => names::of_txt(strings.iter().map(Vec::as_slice)),
                    _ => Vec::new(),
                })),
                Err(error) => failed = self.note(failed, domain, error),
            }
        }
        self.something(found, failed, "TXT record", names::CLUSTERS)
    }

    /// Cluster names in the SRV records of the zones of all search domains.
    pub fn clusters_by_transfer(&self) -> Result<Vec<String>> {
        if self.search.is_empty() {
            return Err(DnsError::NoDomain { path: self.from.clone() });
        }
        let mut found = Vec::new();
        let mut failed = None;
        for domain in &self.search {
            match self.zone_around(domain).and_then(|zone| self.transfer(&zone)) {
                Ok(records) => {
                    let services = records.iter().filter(|r| matches!(r.data, Data::Srv(_)));
                    found.extend(services.filter_map(|r| names::of_srv_owner(&r.owner, domain)));
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        self.something(found, failed, "SRV record", crate::SERVICE)
    }

    /// Addresses of a cluster's metadata servers from SRV records, in the order in which they are to be tried.
    pub fn mds_of(&self, cluster: &str) -> Result<Vec<SocketAddr>> {
        let mut failed = None;
        for domain in self.domains() {
            let owner = names::srv_owner(cluster, domain);
            let answer = match self.ask(&owner, Ask::Srv) {
                Ok(answer) => answer,
                Err(error) => {
                    failed = self.note(failed, domain, error);
                    continue;
                }
            };
            let servers: Vec<Server> = answer
                .records
                .iter()
                .filter_map(|r| if let Data::Srv(server) = &r.data { Some(server.clone()) } else { None })
                .collect();
            if servers.is_empty() {
                continue;
            }
            let servers = names::order(servers, || u32::from_le_bytes(shards::host::random_bytes()));
            let hosts = servers.iter().map(|s| s.host.as_str()).collect::<Vec<_>>().join(", ");
            let addrs = servers.iter().flat_map(|server| {
                let ips = self.addresses(&server.host, &answer.additional);
                ips.into_iter().map(|ip| SocketAddr::new(ip, server.port))
            });
            let addrs: Vec<SocketAddr> = addrs.collect();
            return if addrs.is_empty() {
                Err(DnsError::NoAddress { name: owner, hosts })
            } else {
                Ok(addrs)
            };
        }
        self.something(Vec::new(), failed, "SRV record", &names::srv_owner(cluster, ""))
    }

    /// The search domains, and at last the name as it is.
    fn domains(&self) -> impl Iterator<Item = &str> {
        self.search.iter().map(String::as_str).chain([""])
    }

    /// The first failure counts. That a name outside all search domains is not answered is as good as its not existing.
    fn note(&self, failed: Option<DnsError>, domain: &str, error: DnsError) -> Option<DnsError> {
        let counts = !domain.is_empty() || self.search.is_empty();
        failed.or(counts.then_some(error))
    }

    /// What was found, or why nothing was.
    fn something<T>(
        &self,
        found: Vec<T>,
        failed: Option<DnsError>,
        what: &'static str,
        name: &str,
    ) -> Result<Vec<T>> {
        match failed {
            _ if !found.is_empty() => return Ok(found),
            Some(error) => return Err(error),
            None => {}
        }
        let mut name = name.to_string();
        if !self.search.is_empty() {
            name += &format!(" in {}", self.search.join(", "));
        }
        let servers = self.servers.iter().map(|s| s.ip().to_string()).collect::<Vec<_>>().join(", ");
        Err(DnsError::Nothing { servers, what, name })
    }

    /// Addresses of a host; from what came along, if they did.
    fn addresses(&self, host: &str, known: &[Record]) -> Vec<IpAddr> {
        let of = |records: &[Record]| -> Vec<IpAddr> {
            let address = |r: &Record| if let Data::Address(ip) = r.data { Some(ip) } else { None };
            records.iter().filter_map(address).collect()
        };
        let along: Vec<Record> =
            known.iter().filter(|r| r.owner.eq_ignore_ascii_case(host)).cloned().collect();
        let mut found = of(&along);
        for ask in [Ask::A, Ask::Aaaa] {
            if found.is_empty() {
                found = self.ask(host, ask).map(|answer| of(&answer.records)).unwrap_or_default();
            }
        }
        found
    }

    /// The zone that `domain` is in, as a server says.
    fn zone_around(&self, domain: &str) -> Result<String> {
        let answer = self.ask(domain, Ask::Soa)?;
        let mut zones = answer.records.iter().chain(&answer.authority).filter(|r| r.data == Data::Zone);
        Ok(zones.next().map_or_else(|| domain.to_string(), |r| r.owner.clone()))
    }

    /// All records of a zone, from one of its own servers or of this machine's.
    fn transfer(&self, zone: &str) -> Result<Vec<Record>> {
        let answer = self.ask(zone, Ask::Ns)?;
        let mut servers = Vec::new();
        for record in &answer.records {
            if let Data::NameServer(host) = &record.data {
                let ips = self.addresses(host, &answer.additional);
                servers.extend(ips.into_iter().map(|ip| SocketAddr::new(ip, DNS_PORT)));
            }
        }
        servers.extend(&self.servers);
        servers.dedup();
        let mut tried = Tried::default();
        for server in servers {
            match self.transfer_from(server, zone) {
                Ok(records) => return Ok(records),
                Err(why) => tried.add(server, why),
            }
        }
        Err(DnsError::NoTransfer { zone: zone.into(), tried: tried.to_string() })
    }

    fn transfer_from(&self, server: SocketAddr, zone: &str) -> Result<Vec<Record>, String> {
        let id = u16::from_le_bytes(shards::host::random_bytes());
        let question = message::question(id, zone, Ask::Transfer).map_err(|e| e.to_string())?;
        let mut stream = self.open(server, &question).map_err(explain)?;
        let mut records: Vec<Record> = Vec::new();
        let (mut ends, mut bytes) = (0, 0);
        // A zone begins and ends with its SOA record.
        while ends < 2 {
            let message = self.receive(&mut stream).map_err(explain)?;
            bytes += message.len();
            if bytes > LONGEST_ZONE_BYTES {
                return Err("the zone is too long".into());
            }
            let part = message::answer(&message, id, zone, Ask::Transfer).map_err(|e| e.to_string())?;
            check(part.verdict)?;
            if part.records.is_empty() {
                return Err("the answer is empty".into());
            }
            ends += part.records.iter().filter(|r| r.data == Data::Zone).count();
            records.extend(part.records);
        }
        Ok(records)
    }

    /// Asks one server after the other, twice at most. A name that does not exist is an answer without records.
    fn ask(&self, name: &str, ask: Ask) -> Result<Answer> {
        let mut tried = Tried::default();
        for _ in 0..ATTEMPTS {
            for &server in &self.servers {
                match self.ask_one(server, name, ask) {
                    Ok(answer) => return Ok(answer),
                    Err(why) => tried.add(server, why),
                }
            }
        }
        Err(DnsError::NoAnswer { name: name.into(), tried: tried.to_string() })
    }

    fn ask_one(&self, server: SocketAddr, name: &str, ask: Ask) -> Result<Answer, String> {
        let id = u16::from_le_bytes(shards::host::random_bytes());
        let question = message::question(id, name, ask).map_err(|e| e.to_string())?;
        let mut answer = self.ask_by_udp(server, &question, |bytes| message::answer(bytes, id, name, ask))?;
        if answer.truncated {
            let mut stream = self.open(server, &question).map_err(explain)?;
            let bytes = self.receive(&mut stream).map_err(explain)?;
            answer = message::answer(&bytes, id, name, ask).map_err(|e| e.to_string())?;
        }
        match answer.verdict {
            Verdict::NoSuchName => {}
            verdict => check(verdict)?,
        }
        Ok(answer)
    }

    /// Datagrams that are no answer to the question are passed over: anyone can send them.
    fn ask_by_udp(
        &self,
        server: SocketAddr,
        question: &[u8],
        read: impl Fn(&[u8]) -> std::result::Result<Answer, message::MessageError>,
    ) -> Result<Answer, String> {
        let local: IpAddr = if server.is_ipv4() { [0, 0, 0, 0].into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((local, 0)).map_err(explain)?;
        socket.connect(server).map_err(explain)?;
        socket.send(question).map_err(explain)?;
        let until = Instant::now() + TRY;
        let mut bytes = [0u8; 4096];
        loop {
            let left = self.left(until.saturating_duration_since(Instant::now())).map_err(explain)?;
            socket.set_read_timeout(Some(left)).map_err(explain)?;
            let got = socket.recv(&mut bytes).map_err(explain)?;
            if let Ok(answer) = read(&bytes[..got]) {
                return Ok(answer);
            }
        }
    }

    /// A TCP connection on which the question has been asked.
    fn open(&self, server: SocketAddr, question: &[u8]) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&server, self.left(TRY)?)?;
        stream.set_write_timeout(Some(self.left(TRY)?))?;
        let len = u16::try_from(question.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        stream.write_all(&[&len.to_be_bytes(), question].concat())?;
        Ok(stream)
    }

    fn receive(&self, stream: &mut TcpStream) -> io::Result<Vec<u8>> {
        stream.set_read_timeout(Some(self.left(TRY)?))?;
        let mut len = [0; 2];
        stream.read_exact(&mut len)?;
        let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
        stream.read_exact(&mut message)?;
        Ok(message)
    }

    /// At most `wish`, and no more than is left of the time for all.
    fn left(&self, wish: Duration) -> io::Result<Duration> {
        let left = wish.min(self.until.saturating_duration_since(Instant::now()));
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

fn server_addr(ip: &ScopedIp) -> Option<SocketAddr> {
    match ip {
        ScopedIp::V4(ip) => Some(SocketAddr::from((*ip, DNS_PORT))),
        ScopedIp::V6(ip, None) => Some(SocketAddr::from((*ip, DNS_PORT))),
        ScopedIp::V6(ip, Some(scope)) => {
            let index = std::fs::read_to_string(format!("/sys/class/net/{scope}/ifindex")).ok();
            let index = scope.parse().ok().or_else(|| index?.trim().parse().ok())?;
            Some(SocketAddrV6::new(*ip, DNS_PORT, 0, index).into())
        }
    }
}

fn check(verdict: Verdict) -> Result<(), String> {
    match verdict {
        Verdict::Ok => Ok(()),
        Verdict::NoSuchName => Err("it knows no such name".into()),
        Verdict::Refused => Err("it refuses".into()),
        Verdict::Failed => Err("it failed".into()),
    }
}

fn explain(e: io::Error) -> String {
    match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no answer in time".into(),
        io::ErrorKind::UnexpectedEof => "it closed the connection".into(),
        io::ErrorKind::ConnectionRefused => "no name server there".into(),
        _ => e.to_string(),
    }
}

/// Servers and what came of them, each server once.
#[derive(Default)]
struct Tried(Vec<(SocketAddr, String)>);

impl Tried {
    fn add(&mut self, server: SocketAddr, why: String) {
        if !self.0.iter().any(|(known, _)| *known == server) {
            self.0.push((server, why));
        }
    }
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(|(server, why)| format!("{}: {why}", server.ip())).collect();
        f.write_str(&all.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<Resolver> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        std::fs::write(&path, text).unwrap();
        Resolver::from_file(&path)
    }

    #[test]
    fn the_systems_settings_are_read() {
        let resolver =
            settings("search pcs.test. other.test\nnameserver 10.0.0.1\nnameserver ::1\noptions nonsense\n")
                .unwrap();
        let servers: Vec<String> = resolver.servers.iter().map(SocketAddr::to_string).collect();
        assert_eq!(servers, ["10.0.0.1:53", "[::1]:53"]);
        assert_eq!(resolver.domains().collect::<Vec<_>>(), ["pcs.test", "other.test", ""]);
        assert!(matches!(settings("search pcs.test\n"), Err(DnsError::NoServer { .. })));
        let missing = Resolver::from_file(Path::new("/nonexistent/resolv.conf"));
        assert!(missing.unwrap_err().to_string().contains("/nonexistent/resolv.conf"));
    }

    /// Servers that say nothing, nonsense, or hang up.
    #[test]
    fn bad_servers_cost_limited_time_and_are_named() {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let babbling = UdpSocket::bind("127.0.0.2:0").unwrap();
        let servers = vec![silent.local_addr().unwrap(), babbling.local_addr().unwrap()];
        std::thread::spawn(move || {
            let mut bytes = [0; 512];
            while let Ok((_, from)) = babbling.recv_from(&mut bytes) {
                let _ = babbling.send_to(b"nonsense", from);
            }
        });
        let until = Instant::now() + WITHIN;
        let resolver = Resolver { servers, search: vec!["pcs.test".into()], from: "x".into(), until };
        let error = resolver.mds_of("pcs1").unwrap_err().to_string();
        assert!(until.elapsed() < Duration::from_secs(5), "too late");
        assert!(error.contains("127.0.0.1: no answer") && error.contains("127.0.0.2: no answer"), "{error}");
    }
}
