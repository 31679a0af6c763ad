//! DNS messages: questions to bytes, bytes to the records that discovery needs. No I/O.

use crate::names::Server;
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE};
use std::net::IpAddr;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ask {
    Txt,
    Srv,
    A,
    Aaaa,
    Soa,
    Ns,
    /// All records of a zone, over TCP.
    Transfer,
}

impl Ask {
    fn qtype(self) -> QTYPE {
        match self {
            Ask::Txt => TYPE::TXT.into(),
            Ask::Srv => TYPE::SRV.into(),
            Ask::A => TYPE::A.into(),
            Ask::Aaaa => TYPE::AAAA.into(),
            Ask::Soa => TYPE::SOA.into(),
            Ask::Ns => TYPE::NS.into(),
            Ask::Transfer => QTYPE::AXFR,
        }
    }
}

/// One record. Names have no dot at the end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    pub owner: String,
    pub data: Data,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Data {
    /// The strings of a TXT record.
    Txt(Vec<Vec<u8>>),
    Srv(Server),
    Address(IpAddr),
    NameServer(String),
    /// The beginning of a zone, at its top name.
    Zone,
    Other,
}

/// What a server said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    pub verdict: Verdict,
    /// It had more to say than a datagram holds: ask again over TCP.
    pub truncated: bool,
    pub records: Vec<Record>,
    /// Of the authority section: which zone is asked.
    pub authority: Vec<Record>,
    /// Of the additional section: addresses of hosts named in the records.
    pub additional: Vec<Record>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Ok,
    NoSuchName,
    Refused,
    Failed,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("'{name}' is no DNS name")]
    BadName { name: String },
    #[error("the answer is no DNS message")]
    Malformed,
    #[error("the answer is to another question")]
    OtherQuestion,
}

/// The bytes of a question, without the length that goes before it over TCP.
pub fn question(id: u16, name: &str, ask: Ask) -> Result<Vec<u8>, MessageError> {
    let bad = || MessageError::BadName { name: name.into() };
    let mut packet = Packet::new_query(id);
    if ask != Ask::Transfer {
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    let qname = Name::new(name).map_err(|_| bad())?;
    packet.questions.push(Question::new(qname, ask.qtype(), QCLASS::CLASS(CLASS::IN), false));
    packet.build_bytes_vec().map_err(|_| bad())
}

/// Reads the answer to a question. Later messages of a zone transfer may leave the question out.
pub fn answer(bytes: &[u8], id: u16, name: &str, ask: Ask) -> Result<Answer, MessageError> {
    let packet = Packet::parse(bytes).map_err(|_| MessageError::Malformed)?;
    if packet.id() != id || !packet.has_flags(PacketFlag::RESPONSE) {
        return Err(MessageError::OtherQuestion);
    }
    let asked = Name::new(name).map_err(|_| MessageError::BadName { name: name.into() })?;
    let ours = |q: &Question| q.qname == asked && q.qtype == ask.qtype();
    match packet.questions.first() {
        Some(question) if ours(question) => {}
        None if ask == Ask::Transfer => {}
        _ => return Err(MessageError::OtherQuestion),
    }
    let verdict = match packet.rcode() {
        RCODE::NoError => Verdict::Ok,
        RCODE::NameError => Verdict::NoSuchName,
        RCODE::Refused | RCODE::NOTAUTH => Verdict::Refused,
        _ => Verdict::Failed,
    };
    let read = |records: &[ResourceRecord]| records.iter().map(record).collect();
    Ok(Answer {
        verdict,
        truncated: packet.has_flags(PacketFlag::TRUNCATION),
        records: read(&packet.answers),
        authority: read(&packet.name_servers),
        additional: read(&packet.additional_records),
    })
}

fn record(record: &ResourceRecord) -> Record {
    let data = match &record.rdata {
        // The library splits strings at '='. No cluster name has one, so the parts before it are enough to see that.
        RData::TXT(txt) => Data::Txt(txt.iter_raw().map(|(key, value)| whole(key, value)).collect()),
        RData::SRV(srv) => Data::Srv(Server {
            priority: srv.priority,
            weight: srv.weight,
            port: srv.port,
            host: srv.target.to_string(),
        }),
        RData::A(a) => Data::Address(IpAddr::from(a.address.to_be_bytes())),
        RData::AAAA(a) => Data::Address(IpAddr::from(a.address.to_be_bytes())),
        RData::NS(ns) => Data::NameServer(ns.to_string()),
        RData::SOA(_) => Data::Zone,
        _ => Data::Other,
    };
    Record { owner: record.name.to_string(), data }
}

/// A string of a TXT record, as it was before the library split it.
fn whole(key: &[u8], value: Option<&[u8]>) -> Vec<u8> {
    match value {
        Some(value) => [key, b"=", value].concat(),
        None => key.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use simple_dns::rdata::{SRV, TXT};

    fn reply(id: u16, name: &str, ask: Ask, records: Vec<ResourceRecord<'static>>) -> Vec<u8> {
        let mut packet = Packet::new_reply(id);
        let qname = Name::new(name).unwrap();
        packet.questions.push(Question::new(qname, ask.qtype(), QCLASS::CLASS(CLASS::IN), false));
        packet.answers = records;
        packet.build_bytes_vec_compressed().unwrap()
    }

    fn at(name: &'static str, data: RData<'static>) -> ResourceRecord<'static> {
        ResourceRecord::new(Name::new(name).unwrap(), CLASS::IN, 300, data)
    }

    #[test]
    fn txt_and_srv_records_are_read() {
        let txt = TXT::new().with_string("a,b").unwrap().with_string("c=d").unwrap();
        let bytes = reply(7, "x.test", Ask::Txt, vec![at("x.test", RData::TXT(txt))]);
        let read = answer(&bytes, 7, "X.test.", Ask::Txt).unwrap();
        assert_eq!(read.verdict, Verdict::Ok);
        assert_eq!(read.records[0].data, Data::Txt(vec![b"a,b".to_vec(), b"c=d".to_vec()]));

        let target = Name::new("s1.pcs.test").unwrap();
        let srv = SRV { priority: 1, weight: 2, port: 2510, target };
        let owner = "_pstorage._tcp.pcs1.pcs.test";
        let bytes = reply(7, owner, Ask::Srv, vec![at(owner, RData::SRV(srv))]);
        let read = answer(&bytes, 7, owner, Ask::Srv).unwrap();
        let server = Server { priority: 1, weight: 2, port: 2510, host: "s1.pcs.test".into() };
        assert_eq!(read.records, [Record { owner: owner.into(), data: Data::Srv(server) }]);
    }

    #[test]
    fn answers_to_other_questions_are_refused() {
        let bytes = reply(7, "x.test", Ask::Txt, vec![]);
        for (id, name, ask) in [(8, "x.test", Ask::Txt), (7, "y.test", Ask::Txt), (7, "x.test", Ask::Srv)] {
            assert_eq!(answer(&bytes, id, name, ask), Err(MessageError::OtherQuestion));
        }
        let own = question(7, "x.test", Ask::Txt).unwrap();
        assert_eq!(
            answer(&own, 7, "x.test", Ask::Txt),
            Err(MessageError::OtherQuestion),
            "a question is no answer"
        );
        assert!(question(7, &"a".repeat(64), Ask::Txt).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = answer(&bytes, 0, "x.test", Ask::Transfer);
        }

        #[test]
        fn damaged_answers_are_read_or_refused(at_byte in 0usize..200, to in any::<u8>(), cut in 0usize..200) {
            let txt = TXT::new().with_string("cluster1,cluster2").unwrap().with_string("c3").unwrap();
            let target = Name::new("s1.pcs.test").unwrap();
            let srv = SRV { priority: 1, weight: 2, port: 2510, target };
            let records = vec![at("x.test", RData::TXT(txt)), at("_pstorage._tcp.a.x.test", RData::SRV(srv))];
            let mut bytes = reply(7, "x.test", Ask::Txt, records);
            let len = bytes.len();
            bytes[at_byte % len] = to;
            bytes.truncate(len.saturating_sub(cut % len));
            if let Ok(read) = answer(&bytes, 7, "x.test", Ask::Txt) {
                prop_assert!(read.records.len() <= len);
            }
        }
    }
}
