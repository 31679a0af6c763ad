//! Pins the wire format: golden bytes, and random and damaged input that must be refused, never a panic.

use proptest::prelude::*;
use shards::{Buf, HEAD_BYTES, RawFrame};
use std::net::SocketAddr;
use wire::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn sample_meta() -> DataMeta {
    let addr = |s: &str| s.parse::<SocketAddr>().unwrap();
    DataMeta {
        lease: LeaseId(7),
        sequence: Sequence(42),
        committed: Sequence(40),
        grant: Some(Grant {
            replicas: vec![
                Replica { cs: CsId(1), addr: addr("127.0.0.1:4001"), role: Role::InSync },
                Replica { cs: CsId(2), addr: addr("[fd00::2]:4002"), role: Role::Learner },
            ],
            min_replicas: 2,
        }),
        crcs: [BlockCrc(0x0102_0304), BlockCrc::HOLE].as_slice().into(),
    }
}

#[test]
fn golden_header() {
    let head = Head {
        version: 1,
        kind: Kind::Write,
        flags: flags::GRANT,
        status: Status::Ok,
        request: 0x1122_3344_5566_7788,
        chunk: ChunkId(9),
        epoch: Epoch(3),
        offset_bytes: 8192,
        length_bytes: 4096,
        trace: wire::TraceId(5),
    };
    let raw = Frame::new(head, b"meta", Buf::from_slice(&[0xab; 16])).encode();
    assert_eq!(
        hex(&raw.head[..60]),
        concat!(
            "50534631",
            "0100",
            "1000",
            "0100",
            "0000",
            "04000000",
            "10000000",
            "cb7a1e62",
            "8877665544332211",
            "0900000000000000",
            "03000000",
            "00200000",
            "00100000",
            "0500000000000000"
        )
        .replace("cb7a1e62", &hex(&wire::crc(b"meta").to_le_bytes()))
    );
    assert_eq!(raw.head[60..], wire::crc(&raw.head[..60]).to_le_bytes());
    assert_eq!(Frame::decode(raw).unwrap().head, head);
}

#[test]
fn golden_data_meta() {
    assert_eq!(
        hex(&sample_meta().encode()),
        concat!(
            "0700000000000000",
            "2a00000000000000",
            "2800000000000000",
            "02000000",
            "38000000",
            "0202000000000000",
            "01000000",
            "a10f",
            "00",
            "00",
            "00000000000000000000ffff7f000001",
            "02000000",
            "a20f",
            "01",
            "00",
            "fd000000000000000000000000000002",
            "04030201",
            "00000000"
        )
    );
    assert_eq!(DataMeta::decode(&sample_meta().encode()).unwrap(), sample_meta());
}

#[test]
fn every_kind_and_status_has_one_number() {
    for &kind in Kind::ALL {
        assert_eq!(Kind::from_u16(kind as u16), Some(kind));
    }
    for &status in Status::ALL {
        assert_eq!(Status::from_u16(status as u16), Some(status));
        assert!(!status.text().is_empty());
    }
}

#[test]
fn rkyv_messages_are_validated() {
    let request = mds_api::MdsRequest::Lookup { parent: ROOT, name: "disk.img".into() };
    let bytes = encode!(&request);
    assert_eq!(decode!(mds_api::MdsRequest, &bytes).unwrap(), request);
    for cut in 0..bytes.len() {
        let _ = decode!(mds_api::MdsRequest, &bytes[..cut]); // may fail, must not panic
    }
}

proptest! {
    #[test]
    fn damaged_frames_are_refused(flip in 0usize..HEAD_BYTES * 8, meta in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut raw = Frame::new(Head::new(Kind::Read, 1), &meta, Buf::empty()).encode();
        raw.head[flip / 8] ^= 1 << (flip % 8);
        prop_assert!(Frame::decode(raw).is_err());
    }

    #[test]
    fn random_bytes_never_panic(head in proptest::collection::vec(any::<u8>(), HEAD_BYTES), meta in proptest::collection::vec(any::<u8>(), 0..300)) {
        let head: [u8; HEAD_BYTES] = head.try_into().unwrap();
        let _ = framing(&head);
        let _ = Frame::decode(RawFrame { head, meta: Buf::from_slice(&meta), payload: Buf::empty() });
        let _ = DataMeta::decode(&meta);
        let _ = decode!(mds_api::MdsRequest, &meta);
        let _ = decode!(mds_api::MdsReply, &meta);
        let _ = decode!(cs_api::CsRequest, &meta);
        let _ = decode!(hello::Hello, &meta);
    }

    #[test]
    fn data_meta_survives_damage(at in 0usize..96, value in any::<u8>()) {
        let mut bytes = sample_meta().encode().to_vec();
        let at = at % bytes.len();
        bytes[at] = value;
        let _ = DataMeta::decode(&bytes);
    }
}
