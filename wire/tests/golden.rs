//! Messages as release 0.1 sends them. A later release must read them and, until it raises the protocol's version, send the same:
//! servers are upgraded one at a time. An rkyv enum is as long as its longest variant, so a longer variant changes all: what is
//! long stands in a box; variants are added at the end.
//!
//! Messages that are new are added to the file by `PSTORAGE_WRITE_GOLDEN=1 cargo test -p wire --test golden`; before the first release also
//! those that have changed.

use wire::cs_api::{CsCommand, CsReply, CsRequest, Load, Space};
use wire::hello::{Hello, Peer};
use wire::identity::Identity;
use wire::mds_api::{AttrChange, FileKind, LeaseMode, MdsReply, MdsRequest};
use wire::*;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden-0.1.txt");

/// Name, bytes, and the same bytes decoded and encoded again.
type Sample = (&'static str, Vec<u8>, Result<Vec<u8>, String>);

macro_rules! sample {
    ($name:literal, $type:ty, $value:expr) => {{
        let value: $type = $value;
        let bytes = encode!(&value).into_vec();
        let again = decode!($type, &bytes).map(|value| encode!(&value).into_vec());
        ($name, bytes, again)
    }};
}

fn samples() -> Vec<Sample> {
    let addr = "10.1.2.3:2510".parse().expect("an address");
    let text = |text: &str| text.to_string();
    vec![
        sample!(
            "hello",
            Hello,
            Hello {
                version_oldest: 1,
                version_newest: 1,
                cluster: text("pcs1"),
                peer: Peer::Client { client: ClientId(7), generation: 8 },
                nonce: [9; 32],
            }
        ),
        sample!(
            "mds-request first",
            MdsRequest,
            MdsRequest::OpenSession { host: text("host"), mount_point: text("/mnt"), nonce: 5 }
        ),
        sample!("mds-request lookup", MdsRequest, MdsRequest::Lookup { parent: ROOT, name: text("a") }),
        sample!(
            "mds-request set-attr",
            MdsRequest,
            MdsRequest::SetAttr {
                client: ClientId(1),
                file: FileId(2),
                change: AttrChange { size_bytes: Some(4096), ..AttrChange::default() },
            }
        ),
        sample!(
            "mds-request create",
            MdsRequest,
            MdsRequest::Create {
                client: ClientId(1),
                parent: ROOT,
                name: text("image"),
                kind: FileKind::File,
                mode: 0o644,
                uid: 1,
                gid: 2,
                symlink_target: String::new(),
                exclusive: true,
                open: true,
            }
        ),
        sample!(
            "mds-request open",
            MdsRequest,
            MdsRequest::Open {
                client: ClientId(1),
                file: FileId(2),
                mode: LeaseMode::Write,
                reclaim: LeaseId(3),
            }
        ),
        sample!(
            "mds-request allocate",
            MdsRequest,
            MdsRequest::Allocate {
                client: ClientId(1),
                file: FileId(2),
                lease: LeaseId(3),
                first: 4,
                count: 5,
            }
        ),
        sample!("mds-request last", MdsRequest, MdsRequest::GetLicense),
        sample!("mds-reply first", MdsReply, MdsReply::Done),
        sample!(
            "mds-reply failed",
            MdsReply,
            MdsReply::Failed { status: Status::NotMaster, detail: text("why"), master: Some(addr) }
        ),
        sample!(
            "mds-reply session",
            MdsReply,
            MdsReply::Session { client: ClientId(1), lease_timeout_ms: 2 }
        ),
        sample!(
            "mds-reply alive",
            MdsReply,
            MdsReply::Alive { revoked: vec![LeaseId(4)], mds: vec![addr], certificate: None }
        ),
        sample!("mds-reply nodes", MdsReply, MdsReply::Nodes { nodes: Vec::new() }),
        sample!(
            "cs-request register",
            CsRequest,
            CsRequest::Register {
                cs: CsId(1),
                shard: ShardIndex(2),
                shards: 3,
                addr,
                incarnation: 4,
                host_id: [5; 16],
                host: text("host"),
                location: text("room.row.rack"),
                tier: 1,
                space: Space { total_bytes: 6, free_bytes: 7, chunks: 8 },
                flags: text("JC"),
            }
        ),
        sample!(
            "cs-request heartbeat",
            CsRequest,
            CsRequest::Heartbeat { space: Space::default(), load: Load::default(), generation: 1 }
        ),
        sample!("cs-request last", CsRequest, CsRequest::MayGiveUp { chunk: ChunkId(1), epoch: Epoch(2) }),
        sample!("identity", Identity, Identity { version: text("0.1.0"), time_ms: 1 }),
        sample!("cs-reply done", CsReply, CsReply::Done),
        sample!("cs-command expelled", CsCommand, CsCommand::Expelled { why: text("removed") }),
    ]
}

#[test]
fn messages_are_those_of_the_release() {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let now: Vec<String> = samples()
        .into_iter()
        .map(|(name, bytes, again)| {
            assert_eq!(again.as_ref(), Ok(&bytes), "{name}");
            format!("{name}: {}", hex(&bytes))
        })
        .collect();
    if std::env::var_os("PSTORAGE_WRITE_GOLDEN").is_some() {
        std::fs::write(FILE, now.join("\n") + "\n").expect("the file can be written");
    }
    let golden = std::fs::read_to_string(FILE).expect("the golden file");
    for (now, golden) in now.iter().zip(golden.lines()) {
        assert_eq!(now, golden, "the release before this one would not understand it");
    }
    assert_eq!(now.len(), golden.lines().count());
}
