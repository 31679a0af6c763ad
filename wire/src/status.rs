//! How a request ended. One list for all services; `retry` says what the asker may do.

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal);+ $(;)?) => {
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, serde::Serialize)]
        #[serde(rename_all = "snake_case")]
        #[repr(u16)]
        pub enum Status { $($(#[$doc])* $name = $value),+ }
        impl Status {
            pub const ALL: &'static [Status] = &[$(Status::$name),+];
            pub fn from_u16(value: u16) -> Option<Status> {
                match value { $($value => Some(Status::$name),)+ _ => None }
            }
            /// A sentence for people.
            pub fn text(self) -> &'static str {
                match self { $(Status::$name => $text),+ }
            }
        }
    };
}

statuses! {
    Ok = 0, "done";
    // Data path.
    /// The asker's epoch is older than the replica's: fetch the map again.
    OldEpoch = 1, "the chunk's replica set has changed";
    /// This CS is not the primary of the chunk at this epoch.
    NotPrimary = 2, "this chunk server is not the primary of the chunk";
    /// The primary can't serve now (reconciling, waiting for min-replicas): ask again, on the same map.
    Busy = 3, "the chunk is not ready";
    /// A newer lease has used the chunk, or the lease was revoked.
    LeaseLost = 4, "the file's lease was lost to another client or revoked";
    Checksum = 5, "stored data does not match its checksum";
    BadRequest = 6, "malformed request";
    NoSpace = 7, "no space left";
    IoError = 8, "input/output error on the server's disk";
    UnknownChunk = 9, "no such chunk here";
    /// Forward with EXPECT_EMPTY met an existing chunk: the primary must reconcile.
    NotEmpty = 10, "the replica already holds the chunk";
    ShuttingDown = 11, "the server is shutting down";
    /// And no other replica could take over.
    Damaged = 12, "the data is damaged, and no other replica of it is left";
    // MDS.
    /// Not the master; metadata names the master if known.
    NotMaster = 32, "this metadata server is not the master";
    NotFound = 33, "no such file or directory";
    Exists = 34, "file exists";
    NotDirectory = 35, "not a directory";
    IsDirectory = 36, "is a directory";
    NotEmptyDirectory = 37, "directory not empty";
    /// Another client holds a conflicting lease.
    FileBusy = 38, "the file is in use by another client";
    InvalidArgument = 39, "invalid argument";
    TooFewServers = 40, "too few chunk servers for the replicas asked for";
    NoAttribute = 41, "no such attribute";
    NotSupported = 42, "not supported";
    NameTooLong = 43, "name too long";
    StaleHandle = 44, "the session or handle is no longer valid";
    ReadOnly = 45, "read-only";
    /// Another client holds a conflicting lease and has no connection: ask again, its session ends or it comes back.
    HolderAway = 46, "the file is in use by a client that does not answer";
    // Handshake.
    WrongPassword = 64, "wrong password or key";
    WrongCluster = 65, "the server belongs to another cluster";
    Version = 66, "no common protocol version";
    NotReady = 67, "the service has no quorum or is still starting";
    /// Connect again, encrypted.
    NotEncrypted = 68, "the cluster encrypts its traffic";
    /// The node belonged to the cluster once.
    TakenOut = 69, "the node was taken out of the cluster";
    TooManyTries = 70, "too many wrong passwords";
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}
