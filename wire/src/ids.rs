//! Names of things: one newtype per kind, so that they can't be mixed up.

use rkyv::{Archive, Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Archive, Serialize, Deserialize,
                 serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        #[rkyv(derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord))]
        pub struct $name(pub $inner);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(/** A chunk: a fixed-size piece of a file, stored on several CS. Never reused. */ ChunkId(u64));
id!(/** Grows with each change of a chunk's replica set; a CS refuses an older one. */ Epoch(u32));
id!(/** A chunk server. Given by the MDS at make-cs, never reused. */ CsId(u32));
id!(/** A metadata server: its raft id. */ MdsId(u64));
id!(/** A mounted client's session. Never reused. */ ClientId(u64));
id!(/** A file, directory or symlink. 1 is the root. Never reused. */ FileId(u64));
id!(/** The right to use a file. Grows with every grant, so a later lease has the larger number (fencing). */ LeaseId(u64));
id!(/** Order of writes within one chunk and epoch line; given by the primary, grows by one. */ Sequence(u64));
id!(/** One shard of a chunk server. */ ShardIndex(u16));
id!(/** A machine with a key of its own in a cluster with a password. Never reused. */ NodeId(u32));

pub const ROOT: FileId = FileId(1);

/// The shard of a CS with `shards` shards that owns `chunk`. Fixed at make-cs, the same for everybody.
pub fn shard_of(chunk: ChunkId, shards: u16) -> ShardIndex {
    // SplitMix64's finaliser: chunk ids are consecutive, this spreads them evenly.
    let mut x = chunk.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ShardIndex(((x ^ (x >> 31)) % u64::from(shards.max(1))) as u16)
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

/// Checks the location of a host: room.row.rack.
pub fn check_location(location: &str) -> Result<(), String> {
    let good = |name: &str| (1..=63).contains(&name.len()) && name.chars().all(is_name_char);
    if location.split('.').count() == 3 && location.split('.').all(good) {
        return Ok(());
    }
    Err(format!(
        "location '{location}' is not ROOM.ROW.RACK: three names of a-z, A-Z, 0-9, dash (-) and underscore (_), such as \
         cellar.1.rack7"
    ))
}

/// A cluster name of a command line, checked.
pub fn parse_cluster_name(name: &str) -> Result<String, String> {
    check_cluster_name(name).map(|()| name.to_string())
}

/// Checks a cluster name: a-z A-Z 0-9 - _, 1 to 63 characters.
pub fn check_cluster_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > 63 {
        return Err(format!("cluster name '{name}' must have 1 to 63 characters"));
    }
    match name.chars().find(|&c| !is_name_char(c)) {
        Some(bad) => Err(format!(
            "cluster name '{name}' contains '{bad}'; allowed are a-z, A-Z, 0-9, dash (-) and underscore (_)"
        )),
        None => Ok(()),
    }
}
