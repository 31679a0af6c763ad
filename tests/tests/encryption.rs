//! A cluster that goes over to TLS while it works: what is readable on the wire before, and not after; and that nothing
//! else changes for those who use it.

use pstorage_tests::processes::wait_until;
use pstorage_tests::real::{Cluster, Load, PASSWORD, Shape};
use std::time::Duration;

/// Far longer than it takes on an idle machine.
const SOON: Duration = Duration::from_secs(60);
/// What each frame of ours begins with.
const FRAME: &[u8] = b"PSF1";

/// Writes a file full of `mark` through one mount and reads it through the other.
fn write_and_read(c: &Cluster, name: &str, mark: &str) {
    let bytes = mark.repeat((2 << 20) / mark.len());
    std::fs::write(c.mnt(1).join(name), &bytes).expect("written");
    assert!(std::fs::read_to_string(c.mnt(2).join(name)).expect("read") == bytes, "{name} differs");
}

#[test]
fn nothing_is_readable_on_the_wire_once_the_cluster_encrypts() {
    let c = Cluster::new("tls", Shape::default());
    let load = Load::start(vec![c.mnt(1), c.mnt(2)], 7);
    assert!(load.progresses(300, SOON), "the load does not begin{}", c.logs());
    let (plain_name, plain_mark) = ("a-name-before", "what is written in the open. ");
    let (name, mark) = ("a-name-after", "what is written in secret. ");
    for bytes in [FRAME, plain_name.as_bytes(), plain_mark.as_bytes(), name.as_bytes(), mark.as_bytes()] {
        c.switch.watch_for(bytes);
    }
    c.switch.watch_for(PASSWORD.as_bytes());
    write_and_read(&c, plain_name, plain_mark);
    for bytes in [FRAME, plain_name.as_bytes(), plain_mark.as_bytes()] {
        assert!(c.switch.seen(bytes) > 0, "this test would not see {:?}", String::from_utf8_lossy(bytes));
    }

    load.reset_longest();
    c.admin(&["set-config", "net.encrypt=on"]).ok();
    assert!(load.progresses(500, SOON), "nothing goes on over TLS{}", c.logs());
    // No command asks meanwhile: the first words of one are plain, as it does not know of TLS yet.
    wait_until("the last plain frame", SOON, || {
        let before = c.switch.seen(FRAME);
        assert!(load.progresses(200, SOON), "nothing goes on over TLS{}", c.logs());
        std::thread::sleep(Duration::from_secs(2));
        c.switch.seen(FRAME) == before
    });
    println!("while it changed over: {:?}", load.report());
    let (seen_before, done_before) = (c.switch.seen(FRAME), load.report());
    write_and_read(&c, name, mark);
    assert!(load.progresses(1000, SOON), "nothing goes on over TLS{}", c.logs());
    assert_eq!(c.switch.seen(FRAME), seen_before, "plain frames though all is encrypted, {done_before:?}");
    c.wait_healthy(SOON);

    // Servers that start anew, and commands, find their way.
    for name in [format!("mds{}", c.master()), "cs2".to_string()] {
        c.kill(&name);
        assert!(load.progresses(300, SOON), "nothing goes on without {name}{}", c.logs());
        c.start(&name);
    }
    assert!(load.progresses(500, SOON), "nothing goes on{}", c.logs());
    c.wait_healthy(SOON);
    let file = c.password_file();
    let file = file.to_str().expect("a path of plain characters");
    c.command("client1", &["auth-node", "--password-file", file]).ok();
    let wrong = c.host("client1").dir.join("wrong");
    std::fs::write(&wrong, "not the password").expect("written");
    let wrong = wrong.to_str().expect("a path of plain characters");
    let refused = c.command("client1", &["auth-node", "--password-file", wrong]);
    assert!(refused.code != 0 && refused.text.contains("wrong password"), "{}", refused.text);
    c.check();
    for bytes in [name.as_bytes(), mark.as_bytes(), PASSWORD.as_bytes()] {
        assert_eq!(c.switch.seen(bytes), 0, "seen: {:?}", String::from_utf8_lossy(bytes));
    }

    c.admin(&["set-config", "net.encrypt=off"]).ok();
    c.kill("cs3");
    c.start("cs3");
    assert!(load.progresses(500, SOON), "nothing goes on in the open{}", c.logs());
    c.wait_healthy(SOON);
    c.assert_all_running();
    let report = load.finish().unwrap_or_else(|why| panic!("{why}\nlogs are in {}", c.keep_logs().display()));
    println!("{report:?}");
    assert_eq!(report.errors, 0, "{report:?}");
    c.check();
}
