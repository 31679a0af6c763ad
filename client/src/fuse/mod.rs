//! The mount: FUSE requests to [`Call`]s and their ends to FUSE replies.
//!
//! | file | subject |
//! |---|---|
//! | [`filesystem`] | the operations; each hands one call to the core and returns |
//! | [`convert`] | attributes, times and errors between the two worlds |
//! | [`directory`] | reading directories by pages |
//! | [`info`] | `.pstorage.info/`: figures of this mount |
//! | [`xattr`] | extended attributes, and the cluster's own as `user.pstorage.*` |
//! | [`options`] | `-o` words |
//!
//! The event loops never wait: a reply is sent from the core's thread when the call ends, so two loops carry any
//! number of requests under way.
//!
//! Caching: a file opened with O_DIRECT goes past the kernel's cache with parallel writes. Others use it in
//! write-through mode (what waits to be written waits in the core, [`crate::core`]): pages are kept while the file is
//! open, which its lease makes safe, dropped at open, and dropped when the lease is lost. Shared mappings work in both modes.
//!
//! Owners and modes are stored by the cluster and enforced by the kernel (`default_permissions`) on each mount;
//! the cluster itself trusts whoever holds its key, as the original product does. Set-uid and set-gid bits
//! are cleared by writes, truncation and changes of owner; the mount is `nosuid` unless asked otherwise.

mod convert;
mod directory;
mod filesystem;
mod info;
mod options;
mod xattr;

pub use filesystem::{PstorageFs, negotiate, open_flags};
pub use options::{CacheOptions, MountOptions, cache_mb};

use crate::cluster::Cluster;
use fuser::{Config, MountOption, Session, SessionACL};
use std::io;
use std::path::Path;

/// Event loops: two of them halve the latency of single requests (docs/architecture, FUSE facts).
const EVENT_LOOPS: usize = 2;

/// Mounts the cluster at `dir`. The session runs with [`Session::run`] until it is unmounted.
pub fn mount(
    cluster: &Cluster,
    name: &str,
    dir: &Path,
    options: &MountOptions,
) -> io::Result<Session<PstorageFs>> {
    let info = info::Info::new(options.cache.as_ref().map(|c| c.path.clone()));
    let config = config(&format!("pstorage://{name}"), options);
    Session::new(PstorageFs::new(cluster.mailbox(), options.overrides, info), dir, &config)
}

/// What a mount of `source` is like; `perf` measures one with nothing behind it.
pub fn config(source: &str, options: &MountOptions) -> Config {
    let mut config = Config::default();
    config.mount_options = options.mount_options.clone();
    config.mount_options.push(MountOption::FSName(source.into()));
    config.mount_options.push(MountOption::Subtype("pstorage".into()));
    config.mount_options.push(MountOption::DefaultPermissions);
    config.acl = if options.only_owner { SessionACL::Owner } else { SessionACL::All };
    config.n_threads = Some(EVENT_LOOPS);
    config.clone_fd = true;
    config
}

/// Whether the kernel's FUSE device can be reached, or what to do.
pub fn device_is_there() -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    // Its number, the same on every Linux: something else may stand in its place.
    let fuse = libc::makedev(10, 229);
    match std::fs::metadata("/dev/fuse") {
        Ok(found) if found.rdev() == fuse => Ok(()),
        _ => Err("/dev/fuse is missing: load the module with 'modprobe fuse', and in a container pass the device on \
                  (docker run --device /dev/fuse --cap-add SYS_ADMIN)"
            .into()),
    }
}

/// Explains a failed mount to an administrator.
pub fn explain_mount_error(error: &io::Error, dir: &Path) -> String {
    if let Err(why) = device_is_there() {
        return why;
    }
    let text = error.to_string();
    if error.kind() == io::ErrorKind::PermissionDenied
        || text.contains("EPERM")
        || text.contains("fusermount")
    {
        return format!(
            "not allowed to mount at {}: {text}. Run as root, or install fuse3 for its fusermount3 command",
            dir.display()
        );
    }
    format!("can't mount at {}: {text}", dir.display())
}
