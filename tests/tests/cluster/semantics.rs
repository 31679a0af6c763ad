//! What docs/semantics.md says of the mount, beyond what the other tests need anyway.

use crate::common::Cluster;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use std::fs::{self, File, FileTimes, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
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

#[test]
fn what_is_beyond_the_largest_file_is_too_large() {
    let c = small("largest");
    let file = File::create(c.mnt("file")).expect("made");
    let too_large = |result: std::io::Result<()>| {
        assert_eq!(
            result.expect_err("2^32 chunks of 64 MiB are most").raw_os_error(),
            Some(nix::libc::EFBIG)
        );
    };
    too_large(file.set_len(1 << 59));
    too_large(file.write_all_at(b"x", 1 << 59).and_then(|()| file.sync_all()));
    assert_eq!(file.metadata().expect("there").len(), 0);
}

#[test]
fn a_directory_with_the_set_group_id_bit_gives_its_group_on() {
    let c = small("group");
    let above = c.mnt("above");
    fs::create_dir(&above).expect("made");
    chown(&above, None, Some(7)).expect("root may");
    fs::set_permissions(&above, Permissions::from_mode(0o2775)).expect("root may");
    fs::create_dir(c.mnt("above/directory")).expect("made");
    File::create(c.mnt("above/directory/file")).expect("made");
    let found = |name: &str| fs::metadata(c.mnt(name)).map(|m| (m.gid(), m.mode() & 0o2000)).expect("there");
    assert_eq!(found("above/directory"), (7, 0o2000));
    assert_eq!(found("above/directory/file"), (7, 0));
}

#[test]
fn a_directory_is_read_on_from_where_another_handle_was() {
    let c = small("seekdir");
    (0..500).for_each(|n| drop(File::create(c.mnt(&format!("{n:03}"))).expect("made")));
    // What an NFS server does between two requests of one listing.
    let read = |from: i64| {
        let script = "opendir my $d, $ARGV[0]; seekdir $d, $ARGV[1]; my $n = readdir $d; print $n // 'end', ' ', telldir $d";
        let told = Command::new("perl")
            .args(["-e", script, &c.mnt("").to_string_lossy(), &from.to_string()])
            .output();
        String::from_utf8(told.expect("perl runs").stdout).expect("text")
    };
    assert_eq!(read(0), ". 1");
    assert_eq!(read(2 + 192), "192 195", "a page of the client's ends just before it");
    assert_eq!(read(2 + 450), "450 453");
    assert!(read(2 + 500).starts_with("end"));
    assert!(read(9000).starts_with("end"));
}

#[test]
fn a_stranger_who_punches_a_hole_takes_the_set_user_id_bit() {
    let c = small("punch");
    let path = c.mnt("file");
    fs::write(&path, [1; 8192]).expect("written");
    fs::set_permissions(&path, Permissions::from_mode(0o6777)).expect("root may");
    let punch = |user: u32| {
        let file = File::options().read(true).write(true).open(&path).expect("opened");
        let mut run = Command::new("fallocate");
        // By the open file: not every user may come to its name.
        run.args(["-p", "-l", "4096", "/proc/self/fd/0"]).stdin(file).uid(user);
        assert!(run.status().expect("fallocate runs").success());
        fs::metadata(&path).expect("there").mode() & 0o6000
    };
    assert_eq!((punch(0), punch(65534)), (0o6000, 0));
}

/// `ls -l` asks for a label and an access list of every file, unless the first answer says that there are none at all.
#[test]
fn labels_and_access_lists_are_not_supported_and_other_attributes_are() {
    use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
    use rustix::io::Errno;
    let c = small("xattrs");
    let path = c.mnt("file");
    fs::write(&path, "x").expect("written");
    let mut value = [0; 64];
    for name in ["security.selinux", "system.posix_acl_access", "system.posix_acl_default"] {
        assert_eq!(getxattr(&path, name, &mut value), Err(Errno::NOTSUP), "{name}");
    }
    let label = "security.selinux";
    assert_eq!(setxattr(&path, label, b"v", XattrFlags::empty()), Err(Errno::NOTSUP));
    assert_eq!(removexattr(&path, label), Err(Errno::NOTSUP));
    for name in ["user.any", "trusted.any", "security.any"] {
        assert_eq!(getxattr(&path, name, &mut value), Err(Errno::NODATA), "{name}");
        setxattr(&path, name, b"v", XattrFlags::CREATE).expect(name);
        assert_eq!((getxattr(&path, name, &mut value), value[0]), (Ok(1), b'v'), "{name}");
        removexattr(&path, name).expect(name);
    }
    assert_eq!(listxattr(&path, &mut [0; 64]), Ok(0));
}

#[test]
fn data_and_holes_are_found_to_the_block() {
    let c = small("holes");
    let path = c.mnt("file");
    let file = File::options().create_new(true).read(true).write(true).open(&path).expect("made");
    const MIB: i64 = 1 << 20;
    // In two chunks of 64 MiB, with one between that does not exist.
    file.set_len(200 << 20).expect("grown");
    file.write_all_at(&[1; 4096], 5 << 20).expect("written");
    file.write_all_at(&[2; 70_000], (40 << 20) - 100).expect("written");
    file.write_all_at(&[3; 10], (199 << 20) + 5000).expect("written");
    let seek = |from: i64, whence| {
        let found = nix::unistd::lseek(&file, from, whence);
        found.unwrap_or_else(|error| -(error as i64))
    };
    let data = |from| seek(from, nix::unistd::Whence::SeekData);
    let hole = |from| seek(from, nix::unistd::Whence::SeekHole);
    assert_eq!((data(0), hole(0)), (5 * MIB, 0));
    assert_eq!((data(5 * MIB + 7), hole(5 * MIB)), (5 * MIB + 7, 5 * MIB + 4096));
    assert_eq!((data(6 * MIB), hole(6 * MIB + 1)), (40 * MIB - 4096, 6 * MIB + 1));
    assert_eq!(hole(40 * MIB), (40 * MIB - 100 + 70_000 + 4095) / 4096 * 4096);
    assert_eq!((data(41 * MIB), hole(100 * MIB)), (199 * MIB + 4096, 100 * MIB));
    assert_eq!(hole(199 * MIB + 4096), 199 * MIB + 8192);
    assert_eq!(data(199 * MIB + 8192), -(nix::errno::Errno::ENXIO as i64));
    assert_eq!(hole(200 * MIB - 1), 200 * MIB - 1);
    // A copy that keeps holes.
    let copied = std::process::Command::new("cp")
        .args(["--sparse=auto", "--reflink=never"])
        .arg(&path)
        .arg(c.mnt("copy"))
        .status();
    assert!(copied.expect("cp runs").success());
    let same = std::process::Command::new("cmp").arg(&path).arg(c.mnt("copy")).status();
    assert!(same.expect("cmp runs").success());
}
