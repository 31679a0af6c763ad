//! Networks that fail under real servers and mounts, each on a host of its own: what goes on, and that nothing is lost.

use nix::sys::signal::Signal;
use pstorage_tests::processes::wait_until;
use pstorage_tests::real::{Cluster, Line, Load, Shape, chaos};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// Far longer than it takes on an idle machine.
const SOON: Duration = Duration::from_secs(60);

/// One cluster at a time: hosts must be made while no file on a mount is open, and the machine is small.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|e| e.into_inner())
}

fn begin(name: &str) -> (Cluster, Load) {
    let c = Cluster::new(name, Shape::default());
    let load = Load::start(vec![c.mnt(1), c.mnt(2)], 7);
    assert!(load.progresses(300, SOON), "the load does not begin{}", c.logs());
    (c, load)
}

fn heal_and_check(c: &Cluster, load: Load) {
    c.switch.heal();
    assert!(load.progresses(300, SOON), "requests don't go on{}", c.logs());
    c.wait_healthy(SOON);
    c.assert_all_running();
    let report = load.finish().unwrap_or_else(|why| panic!("{why}\nlogs are in {}", c.keep_logs().display()));
    println!("{report:?}");
    c.check();
}

#[test]
fn a_chunk_server_that_is_cut_off_and_one_that_is_stopped_stall_requests_for_a_moment() {
    let _alone = alone();
    let (c, load) = begin("cut");
    load.reset_longest();
    c.isolate("cs2");
    assert!(load.progresses(1500, SOON), "nothing goes on without cs2{}", c.logs());
    wait_until("cs2 to be missed", SOON, || c.stat()["cs"][1]["status"] == "inactive");
    c.switch.heal();
    wait_until("cs2 to be back", SOON, || c.stat()["cs"][1]["status"] == "active");
    c.wait_healthy(SOON);
    // Now a silence that no closed connection tells of, of another one.
    c.signal("cs3", Signal::SIGSTOP);
    assert!(load.progresses(1500, SOON), "nothing goes on without cs3{}", c.logs());
    c.signal("cs3", Signal::SIGCONT);
    let longest = load.report().longest;
    assert!(longest < Duration::from_secs(20), "a request took {longest:?}");
    heal_and_check(&c, load);
}

#[test]
fn a_master_that_hears_and_is_not_heard_is_replaced() {
    let _alone = alone();
    let (c, load) = begin("deaf");
    let old = c.master();
    let name = format!("mds{old}");
    let cut = Line { cut: true, ..Line::default() };
    c.others(&name).iter().for_each(|other| c.line(&name, other, cut));
    wait_until("another master", SOON, || c.master() != old);
    assert!(load.progresses(500, SOON), "requests don't go on under the new master{}", c.logs());
    heal_and_check(&c, load);
}

/// Every host is reached by somebody: the client does not reach the chunk server, nor two chunk servers each other, and
/// the metadata servers reach all.
#[test]
fn lines_cut_between_some_hosts_only_stop_nobody() {
    let _alone = alone();
    let (c, load) = begin("partial");
    let cut = Line { cut: true, ..Line::default() };
    for (a, b) in [("client1", "cs1"), ("cs2", "cs3"), ("cs3", "cs2")] {
        c.line(a, b, cut);
    }
    assert!(load.progresses(1000, SOON), "requests don't go on{}", c.logs());
    // And a client that nobody hears, for less than its session lasts (10 s): it keeps its files and goes on with them.
    // Cuts that outlast it, with hand-overs, are the simulator's (stranded client).
    c.isolate("client2");
    std::thread::sleep(Duration::from_secs(5));
    heal_and_check(&c, load);
}

/// It is heard and hears, but late: its disk is well, and no other notices where it leads. Others that lead find it out.
#[test]
fn a_chunk_server_with_a_slow_line_is_left_out_and_leads_nothing() {
    let _alone = alone();
    let (c, load) = begin("slow");
    c.admin(&["set-config", "mds.wd.slow_tout=20000"]).ok();
    // Of the chunks the load uses; made one after the other, the servers have the numbers of their hosts.
    let leaders = || -> Vec<u64> {
        let chunks_of = |file| c.json(&["explain", file])["chunks"].as_array().cloned().unwrap_or_default();
        let chunks = ["/f0", "/f1", "/f2"].into_iter().flat_map(chunks_of);
        chunks.map(|chunk| chunk["primary"].as_u64().expect("a number")).collect()
    };
    let slow = leaders()[0];
    let host = format!("cs{slow}");
    let rate = |seconds: u64| {
        let before = load.report();
        std::thread::sleep(Duration::from_secs(seconds));
        let after = load.report();
        (after.writes + after.reads - before.writes - before.reads) / seconds
    };
    let well = rate(5);
    let late = Line { delay: Duration::from_millis(150), ..Line::default() };
    for other in c.others(&host) {
        c.line(&host, &other, late);
        c.line(&other, &host, late);
    }
    let ill = rate(5);
    let is_told = || c.admin(&["get-event"]).text.contains(&format!("CS#{slow} is slow"));
    wait_until("it to be found slow", SOON, is_told);
    wait_until("it to lead nothing", SOON, || !leaders().contains(&slow));
    let left_out = rate(5);
    println!("operations a second: {well} on good lines, {ill} on the slow one, {left_out} without it");
    assert!(left_out > 3 * ill, "{ill} operations a second with it, {left_out} without{}", c.logs());
    heal_and_check(&c, load);
}

#[test]
fn random_faults_of_one_seed() {
    let _alone = alone();
    let mut said = Vec::new();
    let ended = chaos::run(2, Duration::from_secs(20), &mut |text| said.push(text));
    match ended {
        Ok(report) => println!("{report:?}"),
        Err(why) => panic!("{why}\n{}", said.join("\n")),
    }
}
