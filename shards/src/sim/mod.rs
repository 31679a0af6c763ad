//! The second driver of the seam in [`crate::node`]: a world of virtual time, network and disks in which the
//! real nodes run, on one thread, and one seed is one run.
//!
//! - [`World`]: many nodes, a network between them, a disk under each;
//! - [`TestIo`]: the [`crate::Io`] of a single component; the test pumps its completions by hand.

mod disk;
mod faults;
mod files;
mod image;
mod net;
mod rng;
mod test_io;
mod world;

pub use disk::{CrashKind, DiskOp, SECTOR_BYTES, VirtualDisk};
pub use faults::{FaultEffect, FaultOn, FaultRule};
pub use net::Weather;
pub use rng::Rng;
pub use test_io::{NetAsk, TestIo};
pub use world::{HostId, Speeds, World};
