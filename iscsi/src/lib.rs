//! An iSCSI target as a state machine: bytes of initiators in; bytes to send, and requests to the medium behind a LUN, out.
//!
//! | module | subject |
//! |---|---|
//! | [`pdu`] | heads of PDUs: bytes <-> types |
//! | [`assembler`] | a byte stream -> PDUs; payload lands where it stays |
//! | [`text`], [`chap`], [`login`] | keys and values, proofs of passwords, negotiation |
//! | [`connection`] | one connection, which is one session: order, windows, transfers, task management |
//! | [`scsi`] | the block device: commands, reservations, what is asked of the medium |
//!
//! No socket, clock, thread or randomness is in here: [`connection::Connection`] is handed bytes and says what to do,
//! [`scsi::LogicalUnit`] is shared by all connections to it and says what to read and write. Payload lies in [`shards::Buf`] from
//! the socket to the cluster's client and back, without a copy.
//!
//! After RFC 7143 (iSCSI), RFC 7144, SPC-4 and SBC-3. Error recovery level 0, one connection for each session: an initiator
//! whose connection breaks logs in anew, and its new session takes the old one's place.

pub mod assembler;
pub mod chap;
pub mod connection;
pub mod login;
pub mod pdu;
pub mod scsi;
pub mod text;

pub use connection::{Action, Connection, ConnectionError, Outgoing, Reset, Task};
pub use login::{Account, Catalog, TargetInfo};

/// An initiator's port and the target it logged in to: what reservations and unit attentions belong to.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
pub struct Nexus {
    /// Name of the initiator.
    pub initiator: String,
    /// The part of the session's identity that the initiator chooses.
    pub isid: [u8; 6],
}

impl Nexus {
    /// The name of the initiator's port, as SCSI knows it.
    pub fn port(&self) -> String {
        let isid: String = self.isid.iter().map(|b| format!("{b:02x}")).collect();
        format!("{},i,0x{isid}", self.initiator)
    }
}
