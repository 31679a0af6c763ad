//! Nodes of a cluster with a password: who comes in, by which password, and who is taken out while all goes on.

use pstorage_tests::processes::{Ended, wait_until};
use pstorage_tests::real::{Cluster, Load, NAME, Shape};
use std::time::Duration;
use wire::NodeId;
use wire::auth::{Authority, Credentials, KEY_FILE, public_key};

/// Far longer than it takes on an idle machine.
const SOON: Duration = Duration::from_secs(60);

/// What each frame of ours begins with.
const FRAME: &[u8] = b"PSF1";

/// The number of the node that a host is.
fn node_of(c: &Cluster, host: &str) -> u64 {
    let path = c.host(host).dir.join(format!("etc/clusters/{}/auth_digest.key", NAME));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let line = text.lines().find_map(|line| line.strip_prefix("node=")).expect("a line with the number");
    line.parse().expect("a number")
}

fn nodes(c: &Cluster) -> Vec<serde_json::Value> {
    c.json(&["list-nodes"]).as_array().cloned().unwrap_or_default()
}

/// Whether the master has connections of this node.
fn is_connected(c: &Cluster, node: u64) -> bool {
    nodes(c).iter().any(|n| n["node"] == node && n["connections"].as_u64() > Some(0))
}

fn password_file(c: &Cluster, name: &str, password: &str) -> String {
    let path = c.password_file().with_file_name(name);
    std::fs::write(&path, password).expect("written");
    path.to_str().expect("a path of plain characters").into()
}

fn takes_out(c: &Cluster, node: u64) {
    c.admin(&["deauth-node", &node.to_string()]).ok();
    wait_until("a node's connections to end", SOON, || !is_connected(c, node));
}

#[test]
fn nodes_come_and_go_while_the_cluster_works() {
    let c = Cluster::new("nodes", Shape::default());
    let load = Load::start(vec![c.mnt(2)], 7);
    assert!(load.progresses(200, SOON), "the load does not begin{}", c.logs());
    // Every host has a number of its own, and those of servers and mounts are there.
    let hosts: Vec<String> = c.service_names().into_iter().chain(["admin".to_string()]).collect();
    let mut numbers: Vec<u64> = hosts.iter().map(|host| node_of(&c, host)).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=hosts.len() as u64).collect::<Vec<_>>());
    for host in c.service_names() {
        let node = node_of(&c, &host);
        wait_until(&format!("{host} among the nodes"), SOON, || is_connected(&c, node));
    }

    // Another password: the old one is worth nothing any more, nobody who is in is put out.
    let (old, new) = (password_file(&c, "old", "abc-123"), password_file(&c, "new", "another one"));
    c.admin(&["passwd", "--password-file", &new]).ok();
    let auth = |host: &str, file: &str| c.command(host, &["auth-node", "--password-file", file]);
    auth("client1", &old).refused(&["wrong password"]);
    auth("client1", c.password_file().to_str().expect("plain")).refused(&["wrong password"]);
    let killed = format!("mds{}", c.master());
    c.kill(&killed);
    let master = c.master();
    auth("client2", &new).ok();
    auth("client2", &old).refused(&["wrong password"]);
    c.start(&killed);
    assert!(load.progresses(300, SOON), "nothing goes on{}", c.logs());

    // Who is taken out: a client.
    let client = node_of(&c, "client1");
    takes_out(&c, client);
    c.command("client1", &["stat"]).refused(&["was taken out of the cluster", "auth-node"]);
    c.host("client1")
        .run_line(&format!("timeout -s KILL 5 sh -c 'echo x >{}'", c.mnt(1).join("late").display()));
    assert!(!c.mnt(2).join("late").exists(), "a node that was taken out has written");
    println!("until here: {:?}", load.report());
    load.reset_longest();
    // And a chunk server, with its node.
    let server = node_of(&c, "cs4");
    takes_out(&c, server);
    wait_until("the chunk server to be away", SOON, || {
        let stat = c.stat();
        stat["cs"].as_array().is_some_and(|l| l.iter().filter(|cs| cs["status"] == "active").count() == 3)
    });
    assert!(load.progresses(500, SOON), "nothing goes on without the chunk server{}", c.logs());
    println!("while a chunk server was taken out: {:?}", load.report());
    // It ends itself; started anew it is told again.
    c.wait_ended("cs4", SOON);
    let dir = c.cs_dir(4);
    let host = c.host("cs4");
    let again = host.run("pstorage-csd", &["-r", dir.to_str().expect("plain"), "--etc", &host.etc()]);
    again.refused(&["was taken out of the cluster", "auth-node"]);

    // The log and the snapshots hold what certificates are signed with, and what the password is made into: neither is to be
    // seen on the wire when a metadata server is added that has to be told all of it.
    let first = c.host("mds1").path("mds");
    let foundation = mds::control::read_foundation(first.as_ref()).expect("readable").expect("there");
    let secrets = [wire::encode!(&foundation.authority), wire::encode!(&foundation.password)];
    let secrets = secrets.map(|bytes| bytes[bytes.len() - 32..].to_vec());
    secrets.iter().for_each(|secret| c.switch.watch_for(secret));
    c.switch.watch_for(FRAME);
    let (admin, at) = (c.host("admin"), c.host("admin").path("mds"));
    c.admin(&["add-mds", "-a", &admin.ip.to_string(), "-r", &at]).ok();
    admin.start("pstorage-mdsd", &["-r", &at, "--etc", &admin.etc()]);
    wait_until("the added metadata server", SOON, || {
        let stat = c.stat();
        let all = stat["mds"].as_array().cloned().unwrap_or_default();
        all.len() == 4 && all.iter().all(|m| m["available"] == true && m["voter"] == true)
    });
    assert!(c.switch.seen(FRAME) > 0, "what is plain would not be seen");
    assert!(secrets.iter().all(|secret| c.switch.seen(secret) == 0), "the cluster's secrets are on the wire");

    // What must stay.
    let mine = node_of(&c, "admin").to_string();
    c.admin(&["deauth-node", &mine]).refused(&["the one you ask from"]);
    let master_node = node_of(&c, &format!("mds{master}")).to_string();
    c.admin(&["deauth-node", &master_node]).refused(&["runs on node", "rm-mds"]);
    c.admin(&["deauth-node", "99"]).refused(&["there is no node 99"]);

    // The password lets them in again, as others.
    for host in ["client1", "cs4"] {
        auth(host, &new).ok();
    }
    c.kill("client1");
    c.start("client1");
    c.start("cs4");
    assert!(node_of(&c, "client1") > client && node_of(&c, "cs4") > server);
    wait_until("all chunk servers", SOON, || {
        let stat = c.stat();
        stat["cs"].as_array().is_some_and(|l| l.iter().all(|cs| cs["status"] == "active"))
    });
    std::fs::write(c.mnt(1).join("again"), "here").expect("written");
    assert_eq!(std::fs::read_to_string(c.mnt(2).join("again")).expect("read"), "here");
    let report = load.finish().unwrap_or_else(|why| panic!("{why}\nlogs are in {}", c.keep_logs().display()));
    println!("{report:?}");
    assert_eq!(report.errors, 0, "{report:?}");
    let events = c.admin(&["get-event"]).text;
    for said in ["password was changed", "was taken out", "Wrong password from"] {
        assert!(events.contains(said), "the event log lacks '{said}':\n{events}");
    }
    c.check();
}

/// Whether each node that is in has its certificate by the newest keys, but for `but`.
fn all_renewed(c: &Cluster, but: Option<u64>) -> bool {
    nodes(c).iter().all(|n| n["taken-out"] == true || n["renewed"] == (n["node"].as_u64() != but))
}

/// A command with a key file that somebody made who has the authority's key.
fn with_forged_key(c: &Cluster, authority: &Authority, node: u32, args: &[&str]) -> Ended {
    let admin = c.host("admin");
    let certificate = authority.certify(NAME, NodeId(node), "forged", public_key(&[9; 32]));
    let key = Credentials::node(NAME, certificate, [9; 32]).to_text();
    let below = format!("forged/clusters/{NAME}");
    admin.copy_in(&admin.dir.join(format!("etc/clusters/{NAME}/bs.list")), &format!("{below}/bs.list"));
    std::fs::write(admin.dir.join(below).join(KEY_FILE), key).expect("written");
    admin.run("pstorage", &[&["--etc", &admin.path("forged"), "-c", NAME], args].concat())
}

#[test]
fn the_key_of_the_cluster_changes_while_it_works() {
    let c = Cluster::new("keys", Shape::default());
    let load = Load::start(vec![c.mnt(2)], 8);
    assert!(load.progresses(200, SOON), "the load does not begin{}", c.logs());
    let first = c.host("mds1").path("mds");
    let stolen = mds::control::read_foundation(first.as_ref()).expect("readable").expect("there").authority;
    let server = node_of(&c, "cs4");
    c.admin(&["rotate-key", "--finish"]).refused(&["is not being changed"]);

    // One chunk server is away, and a mount is killed between the two keys.
    c.kill("cs4");
    c.admin(&["rotate-key"]).ok();
    c.admin(&["rotate-key"]).refused(&["being changed already"]);
    wait_until("new certificates for all but one", SOON, || all_renewed(&c, Some(server)));
    let early = c.admin(&["rotate-key", "--finish"]);
    early.refused(&[&format!("node {server} "), "--force"]);
    assert_eq!(early.text.matches("node ").count(), 1, "{}", early.text);
    with_forged_key(&c, &stolen, 99, &["stat"]).ok();
    with_forged_key(&c, &stolen, server as u32, &["list-nodes"]).ok();
    for name in ["client1", &format!("mds{}", c.master())] {
        c.kill(name);
        c.start(name);
    }
    c.start("cs4");
    wait_until("a new certificate for the one that was away", SOON, || all_renewed(&c, None));
    load.reset_longest();
    c.admin(&["rotate-key", "--finish"]).ok();
    wait_until("all nodes to know that the old key is over", SOON, || all_renewed(&c, None));
    for node in [99, server as u32] {
        let forged = with_forged_key(&c, &stolen, node, &["stat"]);
        forged.refused(&["certificate is not of this cluster", "auth-node"]);
    }
    assert!(load.progresses(500, SOON), "nothing goes on with the new key{}", c.logs());
    c.wait_healthy(SOON);
    println!("while the key was changed: {:?}", load.report());

    std::fs::write(c.mnt(1).join("late"), "here").expect("written");

    // All find their way who start anew; who comes in gets a certificate by the new key.
    for name in ["cs2", &format!("mds{}", c.master())] {
        c.kill(name);
        assert!(load.progresses(200, SOON), "nothing goes on without {name}{}", c.logs());
        c.start(name);
    }
    c.wait_healthy(SOON);

    // Who was shut out must be authenticated anew.
    c.kill("cs4");
    c.admin(&["rotate-key"]).ok();
    wait_until("new certificates for all but one", SOON, || all_renewed(&c, Some(server)));
    c.admin(&["rotate-key", "--finish", "--force"]).ok();
    wait_until("all others to know that the old key is over", SOON, || all_renewed(&c, Some(server)));
    c.command("cs4", &["stat"]).refused(&["certificate is not of this cluster", "auth-node"]);
    c.command("cs4", &["auth-node", "--password-file", c.password_file().to_str().expect("plain")]).ok();
    c.start("cs4");
    c.wait_healthy(SOON);
    let report = load.finish().unwrap_or_else(|why| panic!("{why}\nlogs are in {}", c.keep_logs().display()));
    println!("{report:?}");
    assert_eq!(report.errors, 0, "{report:?}");
    c.check();
}
