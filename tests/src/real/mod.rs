//! A cluster of real processes, each server and each mount on a host of its own, under real faults.
//!
//! - [`Host`]: a network namespace with one virtual network card, and a shell that lives in it and starts processes;
//! - [`Machine`]: a host that also has files, processes and a name of its own;
//! - [`Switch`]: the network between the hosts, in this process: every ordered pair of hosts can be cut, slowed down and
//!   made to lose frames by itself. No kernel module for that (netem) and no program (iproute2, nftables) is needed;
//! - [`Cluster`]: metadata servers, chunk servers and mounts on such hosts, with the commands of an administrator;
//! - [`Load`]: clients that read and write through the mounts and record what they saw, for the checker of
//!   [`crate::registers`];
//! - [`chaos`]: random faults from a seed.
//!
//! Nothing outlives the process: namespaces have no name and end with their last process, cards with this process, shells
//! with their input, and servers are killed by the kernel when their shell ends (`setpriv --pdeathsig`). Mounts and directories of runs that were killed
//! are removed by the next run ([`sweep`]).

pub mod chaos;
mod cluster;
mod disk;
mod host;
mod load;
mod machine;
mod switch;

pub use cluster::{Cluster, NAME, PASSWORD, Shape};
pub use disk::Disk;
pub use host::{Host, is_running};
pub use load::{Load, LoadReport};
pub use machine::Machine;
pub use switch::{Line, Port, Switch};

use crate::processes::programs;
use nix::mount::{MntFlags, umount2};
use std::path::{Path, PathBuf};

/// Where clusters of this process, and of others, have their directories: `PARENT/NAME-PID`.
fn parent_dir() -> PathBuf {
    programs().join("cluster-tests")
}

/// Unmounts everything below `dir`, innermost first.
fn unmount_below(dir: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|l| l.split(' ').nth(1)).map(PathBuf::from);
    let mut below: Vec<PathBuf> = points.filter(|p| p.starts_with(dir)).collect();
    below.sort();
    for point in below.iter().rev() {
        if let Err(error) = umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            eprintln!("unmounting {}: {error}", point.display());
        }
    }
}

/// Removes what runs that are no more have left: mounts and directories `real-…-PID`.
pub fn sweep() {
    for entry in std::fs::read_dir(parent_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.rsplit('-').next().and_then(|p| p.parse::<u32>().ok());
        let dead = pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        if name.starts_with("real-") && dead {
            unmount_below(&entry.path());
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
