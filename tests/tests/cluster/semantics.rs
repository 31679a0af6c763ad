//! What docs/semantics.md says of the mount, beyond what the other tests need anyway.

use crate::common::Cluster;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use std::fs::{self, File, FileTimes};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, SystemTime};

fn small(name: &str) -> Cluster {
    let c = Cluster::new(name);
    c.up_with(&["--mds", "1", "--cs", "1", "--shards", "1", "--replicas", "1"]);
    c
}

#[test]
fn fifos_sockets_and_devices_are_what_they_are() {
    let c = small("special");
    let fifo = c.mnt("fifo");
    nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o600)).expect("a FIFO can be made");
    let (told, path) = (b"through a FIFO", fifo.clone());
    let writer = std::thread::spawn(move || fs::write(path, told));
    assert_eq!(fs::read(&fifo).expect("read"), told);
    writer.join().expect("no panic").expect("written");

    let socket = c.mnt("socket");
    let listener = UnixListener::bind(&socket).expect("a socket can be made");
    UnixStream::connect(&socket).expect("found").write_all(b"hello").expect("sent");
    let mut heard = String::new();
    listener.accept().expect("accepted").0.read_to_string(&mut heard).expect("received");
    assert_eq!(heard, "hello");

    for (name, kind) in [("character", SFlag::S_IFCHR), ("block", SFlag::S_IFBLK)] {
        let number = makedev(259, 70_000);
        mknod(&c.mnt(name), kind, Mode::from_bits_truncate(0o600), number).expect("a device can be made");
        let found = fs::metadata(c.mnt(name)).expect("there");
        assert_eq!(found.rdev(), number);
        let error = File::open(c.mnt(name)).expect_err("the mount is 'nodev'");
        assert_eq!(error.raw_os_error(), Some(nix::libc::EACCES));
    }
    let kind = |name: &str| fs::symlink_metadata(c.mnt(name)).expect("there").file_type();
    assert!(kind("fifo").is_fifo() && kind("socket").is_socket());
    assert!(kind("character").is_char_device() && kind("block").is_block_device());
    assert_eq!(fs::read_dir(c.mnt("")).expect("listed").filter(Result::is_ok).count(), 4);
    ["fifo", "socket", "character", "block"].iter().for_each(|name| {
        fs::rename(c.mnt(name), c.mnt("other")).expect("renamed");
        fs::remove_file(c.mnt("other")).expect("removed");
    });
}

#[test]
fn times_are_kept_to_the_nanosecond_and_written_files_get_new_ones() {
    let c = small("times");
    let path = c.mnt("file");
    let file = File::create(&path).expect("made");
    file.write_all_at(&[1; 5000], 0).expect("written");
    let at = |s: u64, ns: u32| SystemTime::UNIX_EPOCH + Duration::new(s, ns);
    let seen = || {
        let found = fs::metadata(&path).expect("there");
        (found.accessed().expect("kept"), found.modified().expect("kept"))
    };
    // As cp -p does it: before the last close.
    let (read, written) = (at(1_234_567_890, 123_456_789), at(987_654_321, 1));
    file.set_times(FileTimes::new().set_accessed(read).set_modified(written)).expect("set");
    drop(file);
    // Longer than the kernel believes what it was told.
    let forget = || std::thread::sleep(Duration::from_millis(1200));
    forget();
    assert_eq!(seen(), (read, written));
    let early = SystemTime::UNIX_EPOCH - Duration::new(86_400 * 365, 5);
    File::open(&path).expect("there").set_times(FileTimes::new().set_modified(early)).expect("set");
    assert_eq!(seen(), (read, early));

    // Written over, no longer than before: another time, now and after the close.
    let before = SystemTime::now() - Duration::from_secs(1);
    let file = File::options().write(true).open(&path).expect("there");
    file.write_all_at(&[2; 100], 0).expect("written");
    assert!(seen().1 > before, "{:?}", seen());
    drop(file);
    forget();
    assert!(seen().1 > before && seen().0 == read, "{:?}", seen());
    assert!(
        fs::metadata(&path).expect("there").ctime() + 60
            > before.duration_since(SystemTime::UNIX_EPOCH).expect("now").as_secs() as i64
    );
    fs::read(&path).expect("readable");
    assert_eq!(seen().0, read, "reading is not kept");
}
