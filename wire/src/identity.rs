//! Which program a server is and what time it has: `pstorage doctor` compares the servers of a cluster.
//!
//! Every server answers [`crate::Kind::Identify`] with an [`Identity`] and the payload of the question: so who asks learns, too,
//! whether large messages pass both ways.

use crate::{Frame, Kind, Status};
use rkyv::{Archive, Deserialize, Serialize};

#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Identity {
    /// Of the program.
    pub version: String,
    /// By the clock of its host, milliseconds since 1970.
    pub time_ms: u64,
}

/// The version of all programs built together with this.
pub const PROGRAM_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The answer of a server of this version.
pub fn answer(question: &Frame, time_ms: u64) -> Frame {
    let identity = Identity { version: PROGRAM_VERSION.into(), time_ms };
    let head = question.head.reply(Kind::Identity, Status::Ok);
    Frame::new(head, &encode!(&identity), question.payload.clone())
}
