//! Small facts about this machine and process, for binaries.

use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

pub fn kernel_version() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".into(), |v| v.trim().to_string())
}

/// Ends the program without a word, as others do, when nobody reads on what it prints (`| head`).
pub fn end_with_readers() {
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic
            .payload_as_str()
            .is_some_and(|why| why.starts_with("failed printing to stdout") && why.contains("Broken pipe"))
        {
            std::process::exit(128 + nix::libc::SIGPIPE);
        }
        others(panic);
    }));
}

/// Bytes of the file system that a directory is on: all, and those that can be had.
pub fn space(dir: &Path) -> io::Result<(u64, u64)> {
    let stat = nix::sys::statvfs::statvfs(dir)?;
    let unit = stat.fragment_size() as u64;
    Ok((stat.blocks() as u64 * unit, stat.blocks_available() as u64 * unit))
}

pub fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_else(|| "localhost".into())
}

/// Locks a file for this process alone; `None` if another one holds it for longer than `wait`. One that was killed may hold its
/// locks for a moment after it looks dead.
pub fn lock_within(mut file: File, wait: Duration) -> Option<Flock<File>> {
    let began = std::time::Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Some(locked),
            Err((back, _)) if began.elapsed() < wait => file = back,
            Err(_) => return None,
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How long a server waits for the lock on its directory.
pub const LOCK_WITHIN: Duration = Duration::from_secs(2);

/// Random bytes from the kernel, fit for keys and nonces.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0u8; N];
    let mut have = 0;
    while have < N {
        // SAFETY: the pointer and length describe the rest of a live array.
        let got = unsafe { libc::getrandom(bytes[have..].as_mut_ptr().cast(), N - have, 0) };
        assert!(
            got > 0 || std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR),
            "getrandom failed"
        );
        have += got.max(0) as usize;
    }
    bytes
}

/// Whether files below `dir` can be opened for direct I/O (O_DIRECT). Leaves nothing behind.
pub fn supports_direct_io(dir: &Path) -> io::Result<bool> {
    let probe = dir.join(".direct-io-probe");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).custom_flags(libc::O_DIRECT);
    let opened = options.open(&probe);
    let _ = std::fs::remove_file(&probe);
    match opened {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(e) => Err(e),
    }
}

/// CPU time this process has used, user and system.
pub fn cpu_time() -> Duration {
    let Ok(usage) = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF) else {
        return Duration::ZERO;
    };
    let us = |t: nix::sys::time::TimeVal| Duration::new(t.tv_sec() as u64, t.tv_usec() as u32 * 1000);
    us(usage.user_time()) + us(usage.system_time())
}

/// The time by this machine's clock, milliseconds since 1970.
pub fn unix_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// Resident memory of this process, bytes; 0 when /proc is not there.
pub fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

/// Blocks SIGTERM and SIGINT in this thread and those it starts later; call first in `main`.
pub fn block_termination_signals() {
    let _ = termination_signals().thread_block();
}

/// Waits for SIGTERM or SIGINT (blocked before).
pub fn wait_for_termination() {
    while termination_signals().wait().is_err() {}
}

fn termination_signals() -> nix::sys::signal::SigSet {
    let mut set = nix::sys::signal::SigSet::empty();
    set.add(nix::sys::signal::Signal::SIGTERM);
    set.add(nix::sys::signal::Signal::SIGINT);
    set
}
