//! One completion loop per core over io_uring: disk, net, timers, buffers, journal.
//!
//! Read [`node`] first: it is the seam through which everything above speaks to the world.

mod arena;
pub mod blocking;
mod buf;
pub mod count;
pub mod host;
pub mod journal;
pub mod node;
pub mod ring;
pub mod sabotage;
pub mod service;
pub mod sim;
pub mod tap;
pub mod text;
pub mod tls;

pub use buf::{BLOCK_BYTES, Buf, BufMut};
pub use node::{
    BodyLength, ConnId, Durability, Event, FileHandle, Framing, HEAD_BYTES, Io, Node, OpId, OpenHow,
    RawFrame, TimerId, Timestamp,
};
pub use tls::Channel;
